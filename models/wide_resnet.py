"""Wide residual networks for 32x32 images: the paper's, and those of DiscrimLoss and RSL."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import UserError, check_interval

DEEPEST = 1000  # a thousand layers are more than anybody has trained


def wide_resnet(
    num_outputs: int,
    in_channels: int = 3,
    *,
    depth: int = 28,
    width: int = 10,
    dropout: float = 0.0,
) -> nn.Module:
    """The wide residual network WRN-depth-width of Zagoruyko and Komodakis 2016 (arXiv 1605.07146).

    [B, in_channels, H, W] -> [B, num_outputs]; the last maps are a quarter of the image, 8x8 at
    32x32. A 3x3 stem of 16 channels, then three groups of (depth - 4) / 6 blocks with 16, 32 and 64
    times width channels. Parameters with 10 outputs and 3 channels: WRN-28-10 36,479,194, WRN-28-2
    1,467,610, WRN-16-4 2,748,890.

    Convolutions have no bias, and He's normal initialisation over the fan out. The bias of the
    linear layer starts at 0.

    Args:
        depth: 6n + 4, so 10, 16, 22, 28, 34, 40, ...
        width: multiplier of the channels, at least 1.
        dropout: probability to zero a value between the two convolutions of a block, in [0, 1]; the
            paper uses 0.3 on CIFAR.

    Raises:
        UserError: a depth that is not 6n + 4 with n >= 1, width < 1, or dropout outside [0, 1].
    """
    if not 10 <= depth <= DEEPEST or depth % 6 != 4:
        raise UserError(
            f"depth must be 6n + 4 with n >= 1 (10, 16, 22, 28, 34, 40, ...), and at most "
            f"{DEEPEST}, got {depth}"
        )
    if width < 1:
        raise UserError(f"width must be at least 1, got {width}")
    check_interval("dropout", dropout, "[0, 1]")
    model = pre_activation_net(
        partial(PreActBlock, dropout=dropout),
        num_outputs=num_outputs,
        in_channels=in_channels,
        stem=16,
        widths=[16 * width, 32 * width, 64 * width],
        blocks=(depth - 4) // 6,
    )
    he_init(model)
    return model


def wide_resnet28_10(num_outputs: int, in_channels: int = 3, *, dropout: float = 0.0) -> nn.Module:
    """WRN-28-10 as the authors of Data Parameters and of DiscrimLoss trained it.

    For a new experiment use wide_resnet. [B, in_channels, H, W] -> [B, num_outputs]; the last maps
    are a quarter of the image, 8x8 at 32x32. Parameters with 3 channels: 36,489,290 with 10
    outputs, 36,546,980 with 100. Saxena, Tuzel and DeCoste, NeurIPS 2019, published the code
    (apple/ml-data-parameters, after meliketoy/wide-resnet.pytorch); DiscrimLoss (arXiv 2208.09884)
    uses the same file.

    Deviations from wide_resnet, the paper's network:
        1. The stride of a block is in its second 3x3 convolution.
        2. A shortcut that changes the shape takes the block's raw input, not the activated one.
        3. Every convolution has a bias, the 1x1 shortcuts and the stem included.
        4. torch's default initialisation: the code has a routine for another one, but never calls
           it.
        5. The last batch normalisation has momentum 0.9 in torch's sense: its running statistics
           are little more than those of the last batch, so an evaluation depends on it. All others
           have 0.1.
        6. Dropout follows the first convolution, before normalisation. The published runs use 0.

    Args:
        dropout: probability to zero a value between the two convolutions of a block, in [0, 1].

    Raises:
        UserError: dropout outside [0, 1].
    """
    check_interval("dropout", dropout, "[0, 1]")
    return pre_activation_net(
        partial(RawShortcutBlock, dropout=dropout),
        num_outputs=num_outputs,
        in_channels=in_channels,
        stem=16,
        widths=[160, 320, 640],
        blocks=4,
        bias=True,
        last_momentum=0.9,
    )


def wide_resnet28_2(num_outputs: int, in_channels: int = 3) -> nn.Module:
    """WRN-28-2 as the authors of RSL have it, after the MixMatch code.

    For a new experiment use wide_resnet with width=2. [B, in_channels, H, W] -> [B, num_outputs];
    the last maps are a quarter of the image, 8x8 at 32x32. Parameters with 3 channels: 1,467,610
    with 10 outputs, 1,479,220 with 100. Gui, Wang and Tian, IJCAI 2021
    (github.com/guixianjin/RSL).

    Deviations from wide_resnet, the paper's network:
        1. Leaky ReLU of slope 0.1.
        2. BatchNorm of momentum 0.001 in torch's sense: its running statistics are those of some
           thousand batches, and 70 % the initial ones after an epoch of 352.
        3. In the first blocks of the second and third group, residual and shortcut take the raw
           input. Their first normalisation is in the state, but not used and not trained.
        4. The weights of the linear layer have Glorot's normal initialisation.
    """
    model = pre_activation_net(
        LeakyBlock,
        num_outputs=num_outputs,
        in_channels=in_channels,
        stem=16,
        widths=[32, 64, 128],
        blocks=4,
        slope=0.1,
    )
    he_init(model)
    nn.init.xavier_normal_(model.head.weight)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.001
    return model


class PreActBlock(nn.Module):
    """The basic block of He et al. 2016 (arXiv 1603.05027).

    Twice normalise, ReLU and 3x3 convolution, plus a shortcut: if the shape changes, a 1x1
    convolution of the activated input, else the raw input.
    [B, in_channels, H, W] -> [B, channels, H / stride, W / stride].
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, dropout: float = 0.0):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        residual = self.conv1(activated)
        residual = self.conv2(self.dropout(F.relu(self.bn2(residual))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class RawShortcutBlock(nn.Module):
    """The block of wide_resnet28_10, which lists its differences from PreActBlock; same shapes."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, dropout: float = 0.0):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.dropout(self.conv1(F.relu(self.bn1(x))))
        residual = self.conv2(F.relu(self.bn2(residual)))
        return residual + self.shortcut(x)


class LeakyBlock(nn.Module):
    """The block of wide_resnet28_2, which lists its differences from PreActBlock; same shapes."""

    def __init__(self, in_channels: int, channels: int, *, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        self.raw = stride != 1
        self.bn1.requires_grad_(not self.raw)  # several processes would wait for its gradient

    def forward(self, x: Tensor) -> Tensor:
        before = x if self.raw else F.leaky_relu(self.bn1(x), 0.1)
        residual = self.conv2(F.leaky_relu(self.bn2(self.conv1(before)), 0.1))
        return residual + (x if self.shortcut is None else self.shortcut(before))


def pre_activation_net(
    block: Callable[..., nn.Module],
    *,
    num_outputs: int,
    in_channels: int,
    stem: int,
    widths: list[int],
    blocks: int,
    bias: bool = False,
    last_momentum: float = 0.1,
    slope: float = 0.0,
) -> nn.Sequential:
    """A 3x3 stem, groups of blocks, then normalise, ReLU, average and a linear layer.

    Every group but the first halves the image.

    Args:
        block: ``(in_channels, channels, stride=) -> module``.
        stem: channels of the stem.
        widths: channels of each group.
        blocks: how many each group has.
        bias: whether the stem has one.
        last_momentum: of the last normalisation.
        slope: of the last activation's negative side.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Conv2d(in_channels, stem, 3, padding=1, bias=bias)
    channels = stem
    for number, width in enumerate(widths, start=1):
        first = block(channels, width, stride=1 if number == 1 else 2)
        rest = [block(width, width, stride=1) for _ in range(blocks - 1)]
        layers[f"group{number}"] = nn.Sequential(first, *rest)
        channels = width
    layers["bn"] = nn.BatchNorm2d(channels, momentum=last_momentum)
    layers["relu"] = nn.LeakyReLU(slope) if slope else nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels, num_outputs)
    return nn.Sequential(layers)


def he_init(model: nn.Module) -> None:
    """He's normal initialisation of convolutions, over the fan out; biases of linear layers are 0.

    He et al. 2015 (arXiv 1502.01852).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
