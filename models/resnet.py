"""ResNet-18 and ResNet-34 for 32x32 images: torchvision's networks with another stem."""

from torch import nn


def resnet18(num_outputs: int, in_channels: int = 3) -> nn.Module:
    """ResNet-18 as commonly adapted to the 32x32 images of CIFAR.

    [B, in_channels, H, W] -> [B, num_outputs]; the last maps are an eighth of the image, 4x4 at
    32x32. 11,173,962 parameters with 10 outputs and 3 channels. He et al. 2015 (arXiv 1512.03385).

    Initialisation is torchvision's. Shortcuts that change the shape are 1x1 convolutions with batch
    normalisation, the paper's option B.

    Deviations from the paper's network for ImageNet:
        1. The stem is a 3x3 convolution of stride 1, not 7x7 of stride 2.
        2. There is no max-pool; with both, 1x1 would be left of a 32x32 image.

    The paper's own networks for CIFAR are 16 to 64 channels wide.
    """
    return _cifar_form("resnet18", num_outputs, in_channels)


def resnet34(num_outputs: int, in_channels: int = 3) -> nn.Module:
    """ResNet-34 as commonly adapted to the 32x32 images of CIFAR.

    Shapes and deviations as for resnet18. 21,282,122 parameters with 10 outputs and 3 channels.
    """
    return _cifar_form("resnet34", num_outputs, in_channels)


def _cifar_form(name: str, num_outputs: int, in_channels: int) -> nn.Module:
    import torchvision  # takes seconds: only if a model needs it

    model = getattr(torchvision.models, name)(weights=None, num_classes=num_outputs)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    # as torchvision draws the convolutions that it makes itself
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model
