"""The baseline: the task loss alone."""

from torch import Tensor

from .base import SampleLoss


class Plain(SampleLoss):
    """The task loss itself: every sample has weight 1."""

    takes_soft_targets = True

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return self.task_loss(output, target)
