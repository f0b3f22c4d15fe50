"""Generalised cross-entropy: from cross-entropy to MAE (Zhang and Sabuncu, NeurIPS 2018)."""

from collections.abc import Callable

import torch
from torch import Tensor

from losses.base import SampleLoss, check_classification
from utils.errors import UserError


class GCE(SampleLoss):
    """(1 - p^q) / q, with p the probability of the given label: the L_q loss of arXiv 1805.07836.

    Its gradient is p^q times that of cross-entropy: a label that the network finds improbable pulls
    less. q -> 0 is cross-entropy, q = 1 the mean absolute error 1 - p. It is computed from log p,
    and so exact for small q and small p.

    Classification only; no state.

    Args:
        task_loss: cross_entropy.
        q: in (0, 1]; the paper uses 0.7.

    Deviation: the paper's truncated variant, with its pruning by the best model so far, is not part
    of this class.

    Raises:
        UserError: a regression task loss, or q outside (0, 1].
    """

    def __init__(self, task_loss: Callable, *, q: float = 0.7):
        super().__init__(task_loss)
        check_classification("GCE", task_loss)
        if not 0 < q <= 1:
            raise UserError(f"q must lie in (0, 1], got {q}")
        self.q = q

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return -torch.expm1(-self.q * self.task_loss(output, target)) / self.q
