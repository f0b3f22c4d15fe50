"""ResNet-18 and ResNet-34 for 32x32 images: torchvision's networks with another stem."""

from torch import nn


def resnet18(num_outputs: int, in_channels: int = 3) -> nn.Module:
    """ResNet-18 in its CIFAR form: He et al. 2015 (arXiv 1512.03385) as commonly adapted to 32x32
    images.

    [B, in_channels, H, W] -> [B, num_outputs]; the last maps are an eighth of the image, 4x4 at
    32x32. 11,173,962 parameters with 10 outputs and 3 channels.

    Deviations from the paper: its ImageNet network, with a 3x3 stem of stride 1 for the 7x7 of
    stride 2 and without the max-pool, which would leave 1x1 of a 32x32 image. The paper's own CIFAR
    networks are 16 to 64 channels wide. Shortcuts of changing shape are 1x1 convolutions with batch
    normalisation (its option B). Initialisation is torchvision's.
    """
    return _cifar_form("resnet18", num_outputs, in_channels)


def resnet34(num_outputs: int, in_channels: int = 3) -> nn.Module:
    """ResNet-34 in its CIFAR form: He et al. 2015 (arXiv 1512.03385) as commonly adapted to 32x32
    images.

    Shapes and deviations as for resnet18. 21,282,122 parameters with 10 outputs and 3 channels.
    """
    return _cifar_form("resnet34", num_outputs, in_channels)


def _cifar_form(name: str, num_outputs: int, in_channels: int) -> nn.Module:
    import torchvision  # torchvision takes seconds to import: only where it is used

    model = getattr(torchvision.models, name)(weights=None, num_classes=num_outputs)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    # As torchvision draws its convolutions; it could not know of this one.
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model
