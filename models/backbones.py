"""Networks that are not trained here, and turn images into features: the key ``features``."""

from typing import Annotated, NamedTuple

from torch import nn

from models.efficientnet_lite0 import Features, imagenet_weights
from utils.build import Must

__all__ = ["efficientnet_lite0"]

SIZE = Annotated[int, Must("lie in [32, 1024]", lambda value: 32 <= value <= 1024)]


class Backbone(NamedTuple):
    """A network from images [B, 3, image_size, image_size] to features [B, D].

    Its images are normalised by ``mean`` and ``std`` of pixels in [0, 1], per channel.
    """

    network: nn.Module
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def efficientnet_lite0(image_size: SIZE = 224) -> Backbone:
    """The 1,280 features of models.efficientnet_lite0 with its ImageNet weights.

    Images are normalised as they were when these were trained.

    Args:
        image_size: 224 as in training; with 96 it takes a tenth of the time.

    Raises FileNotFoundError if the weights are not installed.
    """
    network = Features(3)
    network.load_state_dict(imagenet_weights())
    return Backbone(network, image_size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
