"""ResNet-18 and ResNet-50 for photographs, with or without ImageNet weights."""

from pathlib import Path

import torch
from torch import Tensor, nn

# Not torchvision's newer V2 weights of ResNet-50: published Clothing1M numbers start from these,
# and V2 is 4.7 points better on ImageNet. Of ResNet-18 there are no others.
WEIGHTS = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
}


def resnet50(num_outputs: int, *, pretrained: bool = False) -> nn.Module:
    """torchvision's ResNet-50 with a new head of num_outputs: He et al. 2015 (arXiv 1512.03385),
    the network for Clothing1M.

    [B, 3, H, W] -> [B, num_outputs], made for 224x224. 23,536,718 parameters with 14 outputs. With
    pretrained the backbone starts from the ImageNet weights, which expect images normalised by the
    ImageNet mean and deviation. The head is always new, in torch's default initialisation; nothing
    is frozen.

    Deviation from the paper: the stride of a block is in its 3x3 convolution, not in the first 1x1
    ("ResNet v1.5").

    Args:
        pretrained: load the weights from torch's cache, where they are downloaded to if absent.

    Raises:
        FileNotFoundError: pretrained, and the weights are neither in the cache nor can be
            downloaded.
    """
    return _with_head("resnet50", num_outputs, pretrained)


def imagenet_resnet18(num_outputs: int, *, pretrained: bool = False) -> nn.Module:
    """torchvision's ResNet-18 with a new head of num_outputs: the network for UTKFace.

    As resnet50 otherwise; any size of image from 32x32 on. 11,177,025 parameters with one output.
    Not ``resnet18``, which is the form for CIFAR.
    """
    return _with_head("resnet18", num_outputs, pretrained)


def _with_head(name, num_outputs, pretrained):
    import torchvision  # torchvision takes seconds to import: only where it is used

    model = getattr(torchvision.models, name)(weights=None)
    if pretrained:
        model.load_state_dict(_imagenet_weights(name))
    model.fc = nn.Linear(model.fc.in_features, num_outputs)
    return model


def _imagenet_weights(name) -> dict[str, Tensor]:
    import torchvision

    weights = torchvision.models.get_weight(WEIGHTS[name])
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        # torch downloads to a temporary name and checks the hash before it renames: a broken
        # download leaves no file.
        return weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except OSError as error:
        raise FileNotFoundError(
            f"pretrained {name} needs {path}, which is not there and could not be downloaded "
            f"({error}); "
            f"fetch {weights.url} on a machine with a network and place it at that path, or set "
            f"pretrained: false"
        ) from error
