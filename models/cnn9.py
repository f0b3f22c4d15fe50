"""The nine convolutions that Co-teaching is published with (Han et al., NeurIPS 2018)."""

from itertools import pairwise

from torch import nn

from utils.errors import UserError


def cnn9(
    num_outputs: int, in_channels: int = 3, *, image_size: int = 32, dropout: float = 0.25
) -> nn.Module:
    """Nine 3x3 convolutions with BatchNorm and leaky ReLU, global average, one linear layer.

    [B, in_channels, image_size, image_size] -> [B, num_outputs]. 4,434,570 parameters by default
    with 10 outputs, Table 3 of arXiv 1804.06872: three of 128 channels, three of 256, and without
    padding 512, 256 and 128; after the third and the sixth a max-pool, and dropout of whole
    channels. torch's default initialisation.

    Args:
        image_size: at least 28, so that two halvings and three unpadded convolutions leave a pixel.
        dropout: the probability that a channel is dropped.

    Deviation from the authors' code: dropout in training mode alone. They call dropout2d without
    saying which mode it is, and what that means differs between versions of PyTorch.

    Raises:
        UserError: a smaller image, or a dropout outside [0, 1].
    """
    if image_size < 28:
        raise UserError(
            f"cnn9 takes images of at least 28x28, got {image_size}x{image_size}; use cnn or mlp"
        )
    if not 0 <= dropout <= 1:
        raise UserError(f"dropout must lie in [0, 1], got {dropout}")

    def convolutions(*channels, padding):
        for inputs, outputs in pairwise(channels):
            yield nn.Conv2d(inputs, outputs, 3, padding=padding)
            yield nn.BatchNorm2d(outputs)
            yield nn.LeakyReLU(0.01)

    return nn.Sequential(
        *convolutions(in_channels, 128, 128, 128, padding=1),
        nn.MaxPool2d(2),
        nn.Dropout2d(dropout),
        *convolutions(128, 256, 256, 256, padding=1),
        nn.MaxPool2d(2),
        nn.Dropout2d(dropout),
        *convolutions(256, 512, 256, 128, padding=0),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, num_outputs),
    )
