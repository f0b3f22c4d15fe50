"""The learning-rate schedules that a params file may name: those of torch.optim stepped after each
epoch, and two of our own that are stepped after each batch."""

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

from utils.errors import UserError

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


class ExponentialPerBatch(LambdaLR):
    """lr exp(-rate t): the schedule of the DiscrimLoss authors for UTKFace, written out.

    Args:
        steps_per_epoch: batches of a pass over the data.
        restart: "epoch": t counts the batches of the epoch, so that the rate is a saw-tooth, which
            is what their code does under the PyTorch 1.4 of their published runs; "never": since
            the start, what it does under PyTorch 1.10 and later, where the rate has all but
            vanished after a few epochs.

    Raises ValueError where rate is negative.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps_per_epoch: int,
        *,
        rate: float = 0.01,
        restart: Literal["epoch", "never"] = "epoch",
    ):
        if rate < 0:
            raise UserError(f"rate must be at least 0, got {rate}")
        super().__init__(
            optimizer,
            lambda step: math.exp(-rate * (step % steps_per_epoch if restart == "epoch" else step)),
        )


class LinearPerBatch(LambdaLR):
    """From lr to 0 in a straight line over all batches of the run, after a ``warmup`` in [0, 1) of
    them from 0 to lr.

    The usual schedule for fine-tuning a Transformer. Raises ValueError where warmup lies outside
    [0, 1).
    """

    def __init__(
        self, optimizer: Optimizer, steps_per_epoch: int, epochs: int, *, warmup: float = 0.0
    ):
        if not 0 <= warmup < 1:
            raise UserError(f"warmup is a part of the run and must lie in [0, 1), got {warmup}")
        total = steps_per_epoch * epochs
        rising = warmup * total
        super().__init__(
            optimizer,
            lambda step: (
                step / rising if step < rising else (total - step) / max(total - rising, 1)
            ),
        )


def step(schedule, after: Literal["batch", "epoch"]):
    """Step a schedule, or None, if this is the end of what it counts."""
    if schedule and after == (
        "batch" if isinstance(schedule, (ExponentialPerBatch, LinearPerBatch)) else "epoch"
    ):
        schedule.step()
