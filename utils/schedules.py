"""The learning-rate schedules that a params file may name.

RampUpAndDown and those of torch.optim are stepped after each epoch, the others after each batch.
"""

import copy
import math
import warnings
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

from losses.ramp import ramp_up
from utils.build import AT_LEAST_0, AT_LEAST_1, Must
from utils.errors import UserError, check_interval

__all__ = [
    "MultiStepLR",
    "StepLR",
    "ExponentialLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "LinearLR",
    "PolynomialLR",
    "ConstantLR",
    "RampUpAndDown",
    "ConstantThenLinear",
    "ExponentialPerBatch",
    "LinearPerBatch",
]


def is_ascending(epochs: list[int]) -> bool:
    return list(epochs) == sorted(epochs) and all(epoch >= 0 for epoch in epochs)


CHANGED = {"lr", "betas"}  # by a schedule, in the groups of an optimiser
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


class FromItsStart:
    """A schedule of a run that was extended, as a part of a checkpoint.

    What a shorter schedule has left does not fit the longer one, which is therefore taken through
    all steps that were made: the learning rate is the one that it would have had from the start.
    """

    def __init__(self, schedule):
        self.schedule = schedule
        self.start = copy.deepcopy(schedule.state_dict())
        # a schedule changes them by factors, the first one when it is made
        self.rates = [
            {key: group[key] for key in CHANGED & group.keys()}
            for group in schedule.optimizer.param_groups
        ]

    def state_dict(self) -> dict:
        return {"last_epoch": self.schedule.last_epoch}

    def load_state_dict(self, state: dict):
        self.schedule.load_state_dict(copy.deepcopy(self.start))
        for group, rates in zip(self.schedule.optimizer.param_groups, self.rates, strict=True):
            group.update(rates)
        with warnings.catch_warnings():  # the optimiser's steps were made by another process
            warnings.simplefilter("ignore")
            for _ in range(state["last_epoch"] - self.schedule.last_epoch):
                self.schedule.step()


class RampUpAndDown(LambdaLR):
    """From 0.0067 lr up to lr, and down at the end: the schedule of temporal ensembling.

    lr exp(-5 (1 - e / up)^2) in the first ``up`` epochs e = 0, 1, ...; in the last ``down`` epochs
    lr exp(-(k / 2)^2 / down), k = 0, 1, ... (Laine and Aila, ICLR 2017). As the rate falls, their
    code also lowers the first beta of Adam from 0.9 to 0.5, which this does not.

    Args:
        epochs: of the run.
        up, down: how many epochs, at least 0.

    Raises UserError if up or down is negative.
    """

    def __init__(self, optimizer: Optimizer, epochs: int, *, up: int = 80, down: int = 50):
        check_interval("up", up, "[0, inf)")
        check_interval("down", down, "[0, inf)")

        def factor(epoch):
            after = epoch - (epochs - down)
            return ramp_up(epoch, up) * (math.exp(-((after / 2) ** 2) / down) if after > 0 else 1.0)

        super().__init__(optimizer, factor)


class ConstantThenLinear(LambdaLR):
    """lr for some epochs, then in equal steps to 0: the schedule of Co-teaching and JoCoR.

    In epoch e, counted from 0, of E: lr min(1, (E - e) / (E - constant_epochs)).

    Args:
        steps_per_epoch: batches of an epoch; of chunks of a pass, the mean.
        epochs: E.
        constant_epochs: in [0, E).
        late_beta1: beta1 of Adam from epoch ``constant_epochs`` on; None leaves it.

    Raises UserError for an argument outside its range, and for an optimiser without beta1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps_per_epoch: float,
        epochs: int,
        *,
        constant_epochs: int,
        late_beta1: float | None = None,
    ):
        if not 0 <= constant_epochs < epochs:
            raise UserError(
                f"constant_epochs must lie in [0, {epochs}), the epochs of the training, got "
                f"{constant_epochs}"
            )
        if late_beta1 is not None:
            check_interval("late_beta1", late_beta1, "[0, 1)")
        if late_beta1 is not None and "betas" not in optimizer.defaults:
            raise UserError(
                f"late_beta1 is of Adam and its kin, and {type(optimizer).__name__} has no beta1: "
                "leave it out"
            )
        self.constant_steps, self.late_beta1 = constant_epochs * steps_per_epoch, late_beta1

        def factor(step):
            return min(1, (epochs - step // steps_per_epoch) / (epochs - constant_epochs))

        super().__init__(optimizer, factor)

    def step(self):
        super().step()
        if self.late_beta1 is not None and self.last_epoch >= self.constant_steps:
            for group in self.optimizer.param_groups:
                group["betas"] = (self.late_beta1, *group["betas"][1:])


class ExponentialPerBatch(LambdaLR):
    """lr exp(-rate t), with t in batches: the schedule of the DiscrimLoss authors for UTKFace.

    Args:
        steps_per_epoch: batches of an epoch; of chunks of a pass, the mean.
        restart: when t starts again from 0. "epoch": at every epoch, so that the learning rate is
            a saw-tooth, as their code makes it under PyTorch 1.4, which their published runs used.
            "never": as their code makes it under PyTorch 1.10 and later, where the learning rate
            has all but vanished after a few epochs.

    Raises UserError if rate is negative.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps_per_epoch: float,
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
        steps_per_epoch: batches of an epoch; of chunks of a pass, the mean.
        epochs: of the run.
        warmup: the part of the run, in [0, 1), over which the rate first rises from 0 to lr.

    Raises UserError if warmup lies outside [0, 1).
    """

    def __init__(
        self, optimizer: Optimizer, steps_per_epoch: float, epochs: int, *, warmup: float = 0.0
    ):
        check_interval("warmup", warmup, "[0, 1)")
        total = round(steps_per_epoch * epochs)
        rising = warmup * total

        def factor(step):
            if step < rising:
                return step / rising
            return (total - step) / max(total - rising, 1)

        super().__init__(optimizer, factor)


def step(schedule, after: Literal["batch", "epoch"]):
    """Step a schedule if it counts what has just ended; None is no schedule."""
    per_batch = isinstance(schedule, (ConstantThenLinear, ExponentialPerBatch, LinearPerBatch))
    if schedule and after == ("batch" if per_batch else "epoch"):
        schedule.step()
