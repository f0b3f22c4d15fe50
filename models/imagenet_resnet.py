"""ResNet-18 and ResNet-50 for photographs, with or without ImageNet weights."""

from pathlib import Path

import torch
from torch import Tensor, nn

# For ResNet-50 not torchvision's newer V2 weights, which are 4.7 points better on ImageNet:
# published Clothing1M numbers start from these. ResNet-18 has no others.
WEIGHTS = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
}


def resnet50(num_outputs: int, *, pretrained: bool = False) -> nn.Module:
    """torchvision's ResNet-50 with a new head of num_outputs: the network for Clothing1M.

    [B, 3, H, W] -> [B, num_outputs], made for 224x224. 23,536,718 parameters with 14 outputs. The
    head is in torch's default initialisation; nothing is frozen.

    Deviation from the paper, He et al. 2015 (arXiv 1512.03385): the stride of a block is in its 3x3
    convolution, not in the first 1x1 ("ResNet v1.5").

    Args:
        pretrained: start the backbone from ImageNet weights, which expect images normalised by the
            ImageNet mean and deviation. They are downloaded to torch's cache if they are not there.

    Raises:
        FileNotFoundError: the weights are not in the cache and cannot be downloaded.
    """
    return _with_head("resnet50", num_outputs, pretrained)


def imagenet_resnet18(num_outputs: int, *, pretrained: bool = False) -> nn.Module:
    """torchvision's ResNet-18 with a new head of num_outputs: the network for UTKFace.

    As resnet50 otherwise; images of any size from 32x32 on. 11,177,025 parameters with one output.
    Not to be confused with ``resnet18``, which is for CIFAR.
    """
    return _with_head("resnet18", num_outputs, pretrained)


def _with_head(name, num_outputs, pretrained):
    import torchvision  # takes seconds: only if a model needs it

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
        # Torch renames a temporary file once its hash is right: a broken download leaves nothing.
        return weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except OSError as error:
        raise FileNotFoundError(
            f"pretrained {name} needs {path}, which is not there and could not be downloaded "
            f"({error}); fetch {weights.url} on a machine with a network and place it at that "
            "path, or set pretrained: false"
        ) from error
