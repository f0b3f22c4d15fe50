"""Numbers outside their ranges: whatever a params file can build refuses them, in one line."""

import copy
import inspect
import math
import types

import pytest
import torch

import datasets
import losses
import models
from experiment import SCHEMAS
from losses.task import cross_entropy, mse
from utils import optimizers, schedules
from utils.build import build, fits, problems, public_names, type_hints
from utils.errors import UserError, check_interval

MODEL = torch.nn.Linear(4, 3)
FACTS = {
    "model": {"num_outputs": 3, "in_channels": 1, "image_size": 28},
    "loss": {
        "task_loss": cross_entropy,
        "num_samples": 60,
        "num_outputs": 3,
        "given": torch.arange(60) % 3,
        "trusted_labels": torch.arange(60) % 3,
        "verified": torch.arange(60) % 3 - 1,
        "noise_rate": 0.3,
        "noise_transition": torch.eye(3) * 0.7 + 0.1,
        "model": MODEL,
        "epochs": 60,
        "steps_per_epoch": 5,
    },
    "optimizer": {"params": list(MODEL.parameters())},
    "schedule": {"epochs": 20, "steps_per_epoch": 5},
}
PACKAGES = {
    "dataset": datasets,
    "model": models,
    "loss": losses,
    "optimizer": optimizers,
    "schedule": schedules,
}
REQUIRED = {
    "GradientRescaling": {"beta": 2.0, "lam": 0.5},
    "MultiStepLR": {"milestones": [2]},
    "StepLR": {"step_size": 2},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "ConstantThenLinear": {"constant_epochs": 5},
}
MAY_BE_NEGATIVE = {  # thresholds, logarithms, exponents, and the -1 by which PyTorch starts anew
    ("DiscrimLoss", "threshold"),
    ("DiscrimLoss", "log_sigma_low"),
    ("DiscrimLoss", "log_sigma_high"),
    ("GradientRescaling", "beta"),
    ("SELFIE", "eps"),
    ("SuperLoss", "tau"),
    ("DataParameters", "low"),
    ("DataParameters", "high"),
    *((name, "last_epoch") for name in schedules.__all__ if not name.endswith("PerBatch")),
}
MAY_BE_NEGATIVE |= {(name, "mean") for name in ("cifar10", "cifar100")}
FROM_DISK = ("text_encoder",)  # built from a pretrained model


def numeric_arguments():
    """(section, name, argument, whether it takes a list of numbers)."""
    for section, package in PACKAGES.items():
        facts = SCHEMAS[section].facts
        for name in public_names(package):
            constructor = getattr(package, name)
            hints = type_hints(constructor)
            for argument in inspect.signature(constructor).parameters:
                if argument in facts or name in FROM_DISK:
                    continue
                for example in (1, [1], (1, 1)):
                    if fits(example, hints.get(argument)):
                        yield section, name, argument, example


ARGUMENTS = list(numeric_arguments())


def refusal(section, name, **arguments):
    """The one line by which these arguments are refused; None if they are not."""
    spec = {"name": name} | REQUIRED.get(name, {}) | arguments
    facts = copy.copy(FACTS.get(section))
    if section == "schedule":
        facts["optimizer"] = torch.optim.SGD(MODEL.parameters(), lr=0.1)
    mistakes = problems(PACKAGES[section], spec, section=section, context=SCHEMAS[section].facts)
    if mistakes:
        return next((line for line in mistakes if "is missing" not in line), None)
    if section == "dataset":  # is read from files
        return None
    try:
        # models are built without their memory: Wide ResNets take their time
        with torch.device("meta" if section == "model" else "cpu"):
            build(PACKAGES[section], spec, **facts)
    except UserError as error:
        return str(error)
    return None


def test_every_kind_of_section_has_arguments_here():
    assert {section for section, *_ in ARGUMENTS} == set(PACKAGES)
    assert len(ARGUMENTS) > 100


@pytest.mark.parametrize(("section", "name", "argument", "example"), ARGUMENTS)
def test_a_number_that_is_none_is_refused_and_a_negative_one_where_it_has_no_meaning(
    section, name, argument, example
):
    def put(number):
        return number if isinstance(example, int) else [number] * len(example)

    hint = type_hints(getattr(PACKAGES[section], name))[argument]
    for number in (math.nan, math.inf, -math.inf, 10**400, 1e308):
        line = refusal(section, name, **{argument: put(number)})
        assert line is not None and argument in line and "\n" not in line, number
    for number in (-1, -0.5, -(10**6)):
        line = refusal(section, name, **{argument: put(number)})
        allowed = (name, argument) in MAY_BE_NEGATIVE
        assert line is None or "\n" not in line
        assert allowed or line is not None, number
    # zero and what is huge are refused in one line or work, and nothing else
    for number in (0, 10**12, 1e30):
        if fits(put(number), hint):
            line = refusal(section, name, **{argument: put(number)})
            assert line is None or "\n" not in line, number


@pytest.mark.parametrize("name", losses.__all__)
def test_a_loss_refuses_what_is_no_number_also_from_python(name):
    constructor = getattr(losses, name)
    known = inspect.signature(constructor).parameters
    facts = {key: value for key, value in FACTS["loss"].items() if key in known}
    for section, owner, argument, example in ARGUMENTS:
        # whole numbers are left to the type checker
        takes_floats = fits(0.5, type_hints(constructor).get(argument))
        if section == "loss" and owner == name and isinstance(example, int) and takes_floats:
            given = facts | REQUIRED.get(name, {}) | {argument: math.nan}
            with pytest.raises(UserError, match="nan"):
                constructor(**given)


def test_an_interval_in_words():
    for interval, inside, outside in (
        ("[0, 1)", (0, 0.5), (-1e-9, 1, math.nan)),
        ("(0, inf)", (1e-9, 1e9), (0, math.inf, 10**400, math.nan)),
        ("(-inf, inf)", (-5, 0), (-math.inf, math.inf, math.nan)),
        ("[1, 100]", (1, 100), (0, 101)),
    ):
        for value in inside:
            check_interval("x", value, interval)
        for value in outside:
            with pytest.raises(UserError, match="x must lie in"):
                check_interval("x", value, interval)


def test_what_does_not_fit_into_memory_is_a_users_error():
    def mlp(width: int = 8):
        return torch.empty(width, width)

    package = types.SimpleNamespace(mlp=mlp)
    with pytest.raises(UserError, match="mlp"):
        build(package, {"name": "mlp", "width": 2**40})


def test_regression_losses_are_checked_as_well():
    with pytest.raises(UserError, match="tau"):
        losses.SuperLoss(mse, tau=math.nan)
