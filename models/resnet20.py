"""The ResNet of 20 layers that its authors made for the 32x32 images of CIFAR-10."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.wide_resnet import he_init


def resnet20(num_outputs: int, in_channels: int = 3) -> nn.Module:
    """A 3x3 stem and three groups of three blocks, 16, 32 and 64 channels wide.

    [B, in_channels, H, W] -> [B, num_outputs]; the last maps are a quarter of the image. 269,722
    parameters with 10 outputs and 3 channels, He's normal initialisation. He et al. 2015 (arXiv
    1512.03385, section 4.2), with its shortcuts without parameters (option A).

    Deviations: none known.
    """
    blocks, width = [], 16
    for wider in (16, 32, 64):
        for position in range(3):
            blocks.append(Block(width, wider, stride=2 if position == 0 and wider > 16 else 1))
            width = wider
    model = nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_outputs),
    )
    he_init(model)
    return model


class Block(nn.Module):
    """Two 3x3 convolutions and what goes past them: the input, thinned and padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.new_channels = stride, outputs - inputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        past = x[..., :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            past = F.pad(past, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(self.layers(x) + past)
