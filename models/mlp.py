"""A multi-layer perceptron: for inputs without a useful geometry, and the fastest for tests."""

from itertools import pairwise

from torch import nn

from utils.errors import UserError


def mlp(
    num_outputs: int,
    in_channels: int = 1,
    *,
    image_size: int = 8,
    hidden: list[int] | None = None,
    batch_norm: bool = False,
    input_norm: bool = False,
) -> nn.Module:
    """Flatten, then linear layers with ReLU in between; torch's default initialisation.

    [B, in_channels, image_size, image_size] -> [B, num_outputs]. 85,002 parameters by default with
    10 outputs. Of no paper.

    Args:
        hidden: units of each hidden layer; None is [256, 256], and [] a linear model.
        batch_norm: between each hidden layer and its ReLU.
        input_norm: a BatchNorm without weights of its own before the first layer, as a linear layer
            on features has it in He et al. 2022 (arXiv 2111.06377, appendix A.1): it then learns at
            the rates that suit other networks.

    Raises:
        UserError: a hidden layer of less than one unit, or inputs without a size.
    """
    hidden = [256, 256] if hidden is None else list(hidden)
    if any(units < 1 for units in hidden):
        raise UserError(
            f"every hidden layer needs at least 1 unit, got hidden = {hidden}; [] is a linear model"
        )
    if in_channels * image_size < 1:
        raise UserError("mlp takes images or features, and the inputs of this dataset are neither")
    size = in_channels * image_size**2
    layers: list[nn.Module] = [nn.Flatten()]
    if input_norm:
        layers.append(nn.BatchNorm1d(size, affine=False))
    for inputs, units in pairwise([size, *hidden]):
        norm = [nn.BatchNorm1d(units)] if batch_norm else []
        layers += [nn.Linear(inputs, units), *norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1] if hidden else size, num_outputs))
