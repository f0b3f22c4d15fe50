"""The pre-activation ResNet-18 for 32x32 images."""

from torch import nn

from models.wide_resnet import PreActBlock, he_init, pre_activation_net


def preact_resnet18(num_outputs: int, in_channels: int = 3) -> nn.Module:
    """ResNet-18 of pre-activation blocks, as commonly adapted to 32x32 images.

    [B, in_channels, H, W] -> [B, num_outputs]; the last maps are an eighth of the image, 4x4 at
    32x32. A 3x3 stem of stride 1, four groups of two blocks with 64 to 512 channels, a final batch
    normalisation and ReLU. 11,172,170 parameters with 10 outputs and 3 channels. He's normal
    initialisation.

    Deviation from the paper, He et al. 2016 (arXiv 1603.05027): only the block is the paper's,
    which has no network of this depth and width. Much code that is called PreActResNet-18 lacks the
    final normalisation and ReLU, and so has 1,024 parameters fewer.
    """
    model = pre_activation_net(
        PreActBlock,
        num_outputs=num_outputs,
        in_channels=in_channels,
        stem=64,
        widths=[64, 128, 256, 512],
        blocks=2,
    )
    he_init(model)
    return model
