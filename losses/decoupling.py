"""Decoupling.

Two networks that learn only from what they disagree about (Malach and Shalev-Shwartz, NeurIPS
2017).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .errors import UserError
from .two_networks import TwoNetworks, disagree


class Decoupling(TwoNetworks):
    """Both networks learn from the samples for which they predict different classes.

    Once they agree on a sample, its label, right or wrong, moves neither any more. For each batch
    (arXiv 1706.02613), l1 and l2 the cross-entropy under either network:

        d_b  = 1 where the networks predict different classes, or in the first ``init_steps`` steps
        a_b  = 1; with ``balance``, B / (C n_b), with n_b samples of b's label in the whole batch
        loss = sum_b d_b a_b (l1_b + l2_b) / max(floor B, sum_b d_b)

    No gradient flows through d. ``floor`` makes the steps small when few samples are left. Two
    networks that begin equal never disagree: only weight decay and momentum move them. Where many
    labels are wrong they are so among the disagreeing samples too, and methods that choose small
    losses are far better (Co-teaching's Tables 4 to 6).

    Classification only.

    Args:
        task_loss: cross_entropy.
        num_samples: N, the size of the training set that ``batch.index`` counts in.
        model: of two networks; only looked at.
        floor: in [0, 1], the least part of a batch that the sum is divided by.
        balance: give all classes of a batch the same weight in sum.
        init_steps: how many steps train on whole batches first.

    State: the number of steps; and for ``sample_score`` alone the last mean loss of both networks,
    4 bytes per sample.

    Deviations from the authors' code (github.com/emalach/UpdateByDisagreement): 1. It balances two
    classes, always; here any number, if asked to. 2. Its variant that collects disagreeing samples
    until they fill a batch is not here.

    Raises:
        UserError: a task loss other than cross-entropy; an argument out of range; two networks
            that share parameters; a model that does not return [B, 2, C].
        IndexError: on the CPU, an index outside [0, num_samples).
    """

    def __init__(
        self,
        task_loss: Callable,
        num_samples: int,
        model: nn.Module,
        *,
        floor: float = 0.1,
        balance: bool = False,
        init_steps: int = 0,
    ):
        super().__init__(task_loss, num_samples, model)
        if not 0 <= floor <= 1:
            raise UserError(f"floor is a part of a batch and must lie in [0, 1], got {floor}")
        if init_steps < 0:
            raise UserError(f"init_steps must be at least 0, got {init_steps}")
        self.floor, self.balance, self.init_steps = floor, balance, init_steps
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, model: nn.Module, batch) -> Tensor:
        outputs, target, index = self.run_both(model, batch)
        both = self.task_loss(outputs[0], target) + self.task_loss(outputs[1], target)
        loss = (self.weights(*outputs, target).to(both.dtype) * both).sum()
        self.remember(both / 2, index)
        if self.training:
            self.steps += 1
        return loss

    @torch.no_grad()
    def weights(self, first: Tensor, second: Tensor, target: Tensor) -> Tensor:
        """d_b a_b / max(floor B, sum d) of each sample, [B]."""
        size, num_classes = first.shape
        update = disagree(first, second) | (self.steps < self.init_steps)
        weights = update.double()
        if self.balance:
            counts = weights.new_zeros(num_classes).index_add_(0, target, torch.ones_like(weights))
            weights = weights * (size / num_classes / counts[target])
        # where the floor is below 1: no disagreement is 0, not 0 / 0
        return weights / update.sum().clamp(min=max(self.floor * size, 1))
