"""A small convolutional network for the 8x8 digits, to try a method with on a laptop."""

from torch import nn

from utils.errors import UserError


def cnn(
    num_outputs: int, in_channels: int = 1, *, image_size: int = 8, width: int = 32
) -> nn.Module:
    """Two 3x3 convolutions, one max-pool, two linear layers; torch's default initialisation.

    [B, in_channels, image_size, image_size] -> [B, num_outputs]. 151,306 parameters by default with
    10 outputs, most of them in the first linear layer, which grows with image_size squared. There
    is no batch normalisation: the output for an image does not depend on its batch, so an
    evaluation is exact for any batch size. Of no paper.

    Args:
        width: channels of the first convolution; the second has twice as many.

    Raises:
        UserError: image_size < 2 (the pooling would leave nothing), or width < 1.
    """
    if image_size < 2:
        raise UserError(
            f"cnn halves the image once, so image_size must be at least 2, got {image_size}; use "
            f"mlp instead"
        )
    if width < 1:
        raise UserError(f"width must be at least 1, got {width}")
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (image_size // 2) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, num_outputs),
    )
