"""The learning-rate schedules that a params file may name.

Those of torch.optim are stepped after each epoch, the two that are defined here after each batch.
"""

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)

from utils.build import AT_LEAST_0, AT_LEAST_1, Must, check_interval

__all__ = [
    "MultiStepLR",
    "StepLR",
    "ExponentialLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "LinearLR",
    "PolynomialLR",
    "ConstantLR",
    "ExponentialPerBatch",
    "LinearPerBatch",
]


def is_ascending(epochs: list[int]) -> bool:
    return list(epochs) == sorted(epochs) and all(epoch >= 0 for epoch in epochs)


# of the arguments of PyTorch's own, which checks few of them
RANGES = {
    "gamma": [AT_LEAST_0],
    "milestones": [Must("be epochs in ascending order, from 0", is_ascending)],
    "step_size": [AT_LEAST_1],
    "T_max": [AT_LEAST_1],
    "T_0": [AT_LEAST_1],
    "T_mult": [AT_LEAST_1],
    "eta_min": [AT_LEAST_0],
    "total_iters": [AT_LEAST_1],
    "power": [AT_LEAST_0],
    "last_epoch": [Must("be -1: a run goes on from its checkpoint", lambda value: value == -1)],
}


class ExponentialPerBatch(LambdaLR):
    """lr exp(-rate t), with t in batches: the schedule of the DiscrimLoss authors for UTKFace.

    Args:
        steps_per_epoch: batches of a pass over the data.
        restart: when t starts again from 0. "epoch": at every epoch, so that the learning rate is
            a saw-tooth, as their code makes it under PyTorch 1.4, which their published runs used.
            "never": as their code makes it under PyTorch 1.10 and later, where the learning rate
            has all but vanished after a few epochs.

    Raises UserError if rate is negative.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps_per_epoch: int,
        *,
        rate: float = 0.01,
        restart: Literal["epoch", "never"] = "epoch",
    ):
        check_interval("rate", rate, "[0, inf)")

        def factor(step):
            return math.exp(-rate * (step % steps_per_epoch if restart == "epoch" else step))

        super().__init__(optimizer, factor)


class LinearPerBatch(LambdaLR):
    """From lr to 0 in a straight line over the run: the usual schedule to fine-tune a Transformer.

    Args:
        steps_per_epoch: batches of a pass over the data.
        epochs: of the run.
        warmup: the part of the run, in [0, 1), over which the rate first rises from 0 to lr.

    Raises UserError if warmup lies outside [0, 1).
    """

    def __init__(
        self, optimizer: Optimizer, steps_per_epoch: int, epochs: int, *, warmup: float = 0.0
    ):
        check_interval("warmup", warmup, "[0, 1)")
        total = steps_per_epoch * epochs
        rising = warmup * total

        def factor(step):
            if step < rising:
                return step / rising
            return (total - step) / max(total - rising, 1)

        super().__init__(optimizer, factor)


def step(schedule, after: Literal["batch", "epoch"]):
    """Step a schedule if it counts what has just ended; None is no schedule."""
    per_batch = isinstance(schedule, (ExponentialPerBatch, LinearPerBatch))
    if schedule and after == ("batch" if per_batch else "epoch"):
        schedule.step()
