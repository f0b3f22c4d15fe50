"""Networks that are not trained here, and turn images into features: the key ``features``."""

from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.efficientnet_lite0 import MEAN, STD, Features, imagenet_weights
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


def efficientnet_lite0(image_size: SIZE = 224, grid: bool = True) -> Backbone:
    """3,072 features of models.efficientnet_lite0 with its ImageNet weights.

    1,280 are the means of the last maps, which know what is on a photograph, and 1,792 are the 112
    maps of the fifth stage on a grid of 4x4, which know what is where: on images that are no
    photographs, as digits, they tell more. Either is scaled to length 1. Images are normalised as
    they were when the weights were trained.

    Args:
        image_size: 224 as in training; 96 takes a tenth of the time.
        grid: whether the maps of the fifth stage are among them; without, they are 1,280.

    Raises FileNotFoundError if the weights are not installed.
    """
    features = Features(3)
    features.load_state_dict(imagenet_weights())
    return Backbone(_MeansAndGrid(features, grid), image_size, (MEAN,) * 3, (STD,) * 3)


class _MeansAndGrid(nn.Module):
    def __init__(self, features: Features, with_grid: bool):
        super().__init__()
        self.features, self.with_grid = features, with_grid

    def extra_repr(self) -> str:  # by which features that are kept are told apart
        return f"with_grid={self.with_grid}"

    def forward(self, images: Tensor) -> Tensor:
        network = self.features
        maps = network.blocks[:11](network.stem(images))  # of stages one to five
        means = F.normalize(network.last(network.blocks[11:](maps)).mean((2, 3)), dim=1)
        if not self.with_grid:
            return means
        grid = F.adaptive_avg_pool2d(maps, 4).flatten(1)
        return torch.cat([means, F.normalize(grid, dim=1)], dim=1)
