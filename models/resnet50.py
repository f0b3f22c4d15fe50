"""ResNet-50 for photographs, with or without ImageNet weights."""

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

# Not torchvision's newer V2 weights: published Clothing1M numbers start from these, and V2 is 4.7 points better on ImageNet.
WEIGHTS = ResNet50_Weights.IMAGENET1K_V1


def resnet50(num_outputs: int, *, pretrained: bool = False) -> nn.Module:
    """torchvision's ResNet-50 with a new head of num_outputs: He et al. 2015 (arXiv 1512.03385), the network for Clothing1M.

    [B, 3, H, W] -> [B, num_outputs], made for 224x224. 23,536,718 parameters with 14 outputs. With pretrained the backbone
    starts from the ImageNet weights, which expect images normalised by the ImageNet mean and deviation. The head is always
    new, in torch's default initialisation; nothing is frozen.

    Deviation from the paper: the stride of a block is in its 3x3 convolution, not in the first 1x1 ("ResNet v1.5").

    Args:
        pretrained: load the weights from torch's cache, where they are downloaded to (98 MB) if absent.

    Raises:
        FileNotFoundError: pretrained, and the weights are neither in the cache nor can be downloaded.
    """
    model = torchvision.models.resnet50(weights=None)
    if pretrained:
        model.load_state_dict(_imagenet_weights())
    model.fc = nn.Linear(model.fc.in_features, num_outputs)
    return model


def _imagenet_weights() -> dict[str, Tensor]:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(WEIGHTS.url).name
    try:
        # torch downloads to a temporary name and checks the hash before it renames: a broken download leaves no file.
        return WEIGHTS.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FileNotFoundError(
            f"pretrained ResNet-50 needs {path}, which is not there and could not be downloaded ({error}); "
            f"fetch {WEIGHTS.url} on a machine with a network and place it at that path, or set pretrained: false"
        ) from error
