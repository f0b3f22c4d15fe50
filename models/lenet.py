"""LeNet in the form the noisy-label papers use, for the 28x28 images of MNIST or others."""

from torch import nn

from utils.errors import UserError


def lenet(num_outputs: int, in_channels: int = 1, *, image_size: int = 28) -> nn.Module:
    """Two 5x5 convolutions with max-pools, then three linear layers, with ReLU in between.

    [B, in_channels, image_size, image_size] -> [B, num_outputs]. 44,426 parameters with 10 outputs
    and one channel at 28x28, and 62,006 with three at 32x32, where it is the small network of
    Co-teaching+ for CIFAR-10. torch's default initialisation. After LeNet-5 of LeCun, Bottou,
    Bengio and Haffner, Proc. IEEE 1998.

    Deviations from LeNet-5, all as in the DiscrimLoss authors' code:
        1. ReLU instead of the scaled tanh, max-pooling instead of trained subsampling.
        2. Images stay 28x28, not padded to 32x32, so the first linear layer has 256 inputs, not
           400.
        3. Every map of the second convolution sees all six of the first.
        4. A linear output layer instead of radial basis functions.

    Raises:
        UserError: an image is smaller than 16x16.
    """
    side = ((image_size - 4) // 2 - 4) // 2
    if side < 1:
        raise UserError(
            f"lenet takes images of 16x16 and more, got {image_size}x{image_size}; resize them, or "
            f"use cnn or mlp"
        )
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side**2, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_outputs),
    )
