"""Several networks as one module, for methods that let them teach each other."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn


class Several(nn.Module):
    """Networks of one kind on the same inputs, with initial parameters of their own.

    In training mode [B, ...] -> [B, networks, num_outputs], so that the samples stay in dimension
    0, along which processes share and gather them. In evaluation mode [B, num_outputs].

    Args:
        networks: at least one; they share no parameters.
        evaluate: what evaluation mode returns. "first": the output of network 0. "mean": the
            logarithm of the mean class probabilities, or, with one output, the mean output.
    """

    def __init__(
        self, networks: Iterable[nn.Module], *, evaluate: Literal["first", "mean"] = "first"
    ):
        super().__init__()
        self.networks, self.evaluate = nn.ModuleList(networks), evaluate

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            return torch.stack([network(inputs) for network in self.networks], dim=1)
        if self.evaluate == "first":
            return self.networks[0](inputs)
        outputs = torch.stack([network(inputs) for network in self.networks], dim=1)
        if outputs.ndim < 3 or outputs.shape[2] == 1:
            return outputs.mean(1)
        log_probabilities = outputs.float().log_softmax(2)
        return log_probabilities.logsumexp(1) - torch.tensor(len(self.networks)).log()


def build_several(
    build: Callable[[], nn.Module], count: int, evaluate: Literal["first", "mean"] = "first"
) -> nn.Module:
    """The network that ``build`` makes, or, if ``count`` is above 1, that many as one module.

    Networks are built one after another: each draws initial parameters of its own, and network 0
    has those that it would have alone.
    """
    if count == 1:
        return build()
    return Several((build() for _ in range(count)), evaluate=evaluate)
