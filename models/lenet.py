"""LeNet for 28x28 images, in the form the noisy-label papers use on MNIST."""

from torch import nn

from utils.errors import UserError


def lenet(num_outputs: int, in_channels: int = 1, *, image_size: int = 28) -> nn.Module:
    """Two 5x5 convolutions with max-pools, then three linear layers, with ReLU in between.

    [B, in_channels, 28, 28] -> [B, num_outputs]. 44,426 parameters with 10 outputs and one channel;
    torch's default initialisation. After LeNet-5 of LeCun, Bottou, Bengio and Haffner, Proc. IEEE
    1998.

    Deviations from LeNet-5, all as in the DiscrimLoss authors' code:
        1. ReLU instead of the scaled tanh, max-pooling instead of trained subsampling.
        2. Images stay 28x28, not padded to 32x32, so the first linear layer has 256 inputs, not
           400.
        3. Every map of the second convolution sees all six of the first.
        4. A linear output layer instead of radial basis functions.

    Raises:
        UserError: image_size is not 28.
    """
    if image_size != 28:
        raise UserError(
            f"lenet takes images of 28x28, got {image_size}x{image_size}; resize them, or use cnn "
            f"or mlp"
        )
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_outputs),
    )
