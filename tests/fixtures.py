"""What tests and benchmarks share: runs made up, digits as image files, and the golden traces."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor
from torchvision.io import write_png

from datasets import digits
from losses import DataParameters, DiscrimLoss
from losses.task import cross_entropy, mse, smooth_l1
from utils.epoch_rules import apply_rules
from utils.metrics import METRIC_OF_TASK
from utils.params_file import merge
from utils.settings import DEFAULTS

GOLDEN = Path(__file__).parent / "golden"
# for images of 8x8: a small network from scratch, and crops that leave most of a digit
SUSPECTS_OPTIONS = [
    "features=null",
    "model=cnn",
    "optimizer.lr=0.1",
    "epochs=30",
    "schedule=null",
    "dataset.image_size=8",
    "dataset.num_workers=0",
    "dataset.crop_scale=0.7",
    "dataset.flip=false",
]
DISCRIM_TRACES = {  # file: (task loss, what differs from the full method)
    "cls_newq_linear": (cross_entropy, {}),
    "cls_newq_linear_wd0": (cross_entropy, {}),
    "cls_newq_sin": (cross_entropy, {}),
    "cls_gak_linear": (cross_entropy, {"threshold": "mean"}),
    "cls_tanh_linear": (cross_entropy, {"threshold": math.log(5)}),
    "cls_fixk_linear": (cross_entropy, {"threshold": math.log(5), "a": 0.0}),
    "cls_wo_es_linear": (cross_entropy, {"suppression_epochs": 0}),
    "cls_wo_ea_linear": (cross_entropy, {"beta": 0.0}),
    "regL1_newq_linear": (smooth_l1, {}),
    "regL2_newq_linear": (mse, {}),
}


def make_run(
    directory: Path,
    values: list[float],
    *,
    validation: list[float] | None = None,
    realised: float | None = 0.36,
    detection: dict | None = None,
    **overrides,
):
    """Leave a finished run in ``directory`` as ``main.py`` would; ``values``: test metric by epoch.

    ``overrides``: sections and keys of the configuration, merged over the defaults.
    """
    directory.mkdir(parents=True)
    config = merge(DEFAULTS, overrides)
    config["noise"]["seed"] = config["noise"]["seed"] or config["seed"]
    config["run_dir"] = str(directory)
    metric = METRIC_OF_TASK[config["task"]]
    columns = {
        "epoch": range(len(values)),
        "lr": 0.1,
        "train_loss": 1.0,
        "train_metric": 50.0,
        "test_metric": values,
        "seconds": 1.0,
        "images_per_second": 1000.0,
        "weight_easy": 1.0,
        "weight_hard": 0.5,
        "weight_incorrect": 0.1,
        "mass_incorrect": 0.25,
    }
    if validation:
        columns["validation_metric"] = validation
    summary = {
        "finished": True,
        "metric": metric.name,
        "test": apply_rules(values, validation, metric.higher_is_better),
        "at_the_same_epochs": {},
        "noise": {
            "kind": config["noise"]["kind"],
            "requested": config["noise"]["fraction"],
            "realised": realised,
        },
        "selection": None,
        "detection": detection or {"auroc": 0.9, "memorised_fraction": 0.1},
        "seconds": float(len(values)),
        "epochs": len(values),
        "seed": config["seed"],
        "processes": 1,
        "device": "cpu",
        "commit": None,
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    pd.DataFrame(columns).to_csv(directory / "metrics.csv", index=False)
    (directory / "summary.json").write_text(json.dumps(summary))


def make_sweep(
    folder: Path, seeds: int, epochs: int, fractions: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8)
):
    """Leave the finished runs of five methods on MNIST, by these noise fractions."""
    generator = np.random.default_rng(0)
    for number, method in enumerate(("Plain", "SuperLoss", "DiscrimLoss", "DataParameters", "GCE")):
        for fraction in fractions:
            end = 98 - 5 * fraction + number / 10
            for seed in range(seeds):
                curve = end - 3 * np.exp(-np.arange(epochs) / 9) + generator.normal(0, 0.2, epochs)
                make_run(
                    folder / method / f"permute-{fraction}" / f"seed{seed}",
                    curve.round(2).tolist(),
                    seed=seed,
                    dataset={"name": "mnist"},
                    model={"name": "lenet"},
                    loss={"name": method},
                    realised=0.9 * fraction,
                    noise={"kind": "permute", "fraction": fraction, "seed": seed},
                    epochs=epochs,
                )


def write_digits(
    root: Path,
    fraction: float,
    seed: int,
    num_training: int | None = None,
    num_test: int | None = None,
) -> list[str]:
    """Write train/<class>/<number>.png and test/...; returns the paths in there of those planted.

    Planted are this fraction of the training images: they are under another class. Of both parts
    the first ones are taken, or all.
    """
    dataset, generator, planted = digits(), np.random.default_rng(seed), []
    for split, count in ((dataset.train, num_training), (dataset.test, num_test)):
        split.inputs, split.targets = split.inputs[:count], split.targets[:count]
    order = generator.permutation(len(dataset.train))
    chosen = set(order[: round(fraction * len(order))].tolist())
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        images = zip(split.inputs, split.targets.tolist(), strict=True)
        for number, (image, target) in enumerate(images):
            wrong = part == "train" and number in chosen
            label = (target + generator.integers(1, 10)) % 10 if wrong else target
            path = root / part / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(image, str(path))
            planted += [str(path.relative_to(root))] * wrong
    return planted


def read_trace(name: str) -> tuple[dict[str, Tensor], dict]:
    """The arrays of a trace in tests/golden, and what its .json says of them."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        arrays = {
            key: torch.from_numpy(value) if value.ndim else value.item()
            for key, value in stored.items()
        }
    return arrays, json.loads((GOLDEN / f"{name}.json").read_text())


def discrim_trace(name: str) -> Iterator[tuple[int, dict]]:
    """Run DiscrimLoss over a trace.

    Yields per step its number, and by quantity what we get and what the reference got, or None.
    """
    arrays, about = read_trace(name)
    hyper, (task_loss, changes) = about["hyper"], DISCRIM_TRACES[name]
    arguments = {
        "a": hyper["a"],
        "p": hyper["p"],
        "q": hyper["q"],
        "beta": hyper["beta"],
        "rho": hyper["rho"],
        "suppression": about["es_type"],
        "suppression_epochs": hyper["sup_eps"],
        "sigma_lr": hyper["lr_inst"],
        "sigma_momentum": hyper["momentum"],
        "sigma_decay": hyper["wd_inst"],
        "log_sigma_low": hyper["clamp_min"],
        "log_sigma_high": hyper["clamp_max"],
    } | changes
    loss = DiscrimLoss(task_loss, about["N"], **arguments)
    averaged = "exp_avg" in arrays and changes.get("beta") != 0
    for step in range(len(arrays["logits"])):
        loss.set_epoch(int(arrays["epoch"][step]))
        output = arrays["logits"][step].clone().requires_grad_()
        log_sigma = loss.log_sigma.value[arrays["indices"][step]].clone()
        losses = loss(output, arrays["targets"][step], arrays["indices"][step])
        losses.mean().backward()
        decay = 0.5 * hyper["wd_inst"] * log_sigma.square().sum()
        quantities = {
            "loss_vec": losses.detach(),
            "mean_loss": losses.mean().detach() + decay,
            "grad_logits": output.grad,
            "log_sigma": loss.log_sigma.value,
            "momentum_buf": loss.log_sigma.velocity,
            "exp_avg": loss.history,
            "k": loss.threshold,
        }
        pairs = {
            what: (value, arrays[what][step] if what != "exp_avg" or averaged else None)
            for what, value in quantities.items()
        }
        yield step, pairs


def data_parameters_trace(name: str) -> Iterator[tuple[int, dict]]:
    """Run DataParameters over a trace; yields as ``discrim_trace``."""
    arrays, about = read_trace(name)
    hyper = about["hyper"]
    loss = DataParameters(
        cross_entropy,
        about["N"],
        about["C"],
        level="both" if hyper["cls"] else "instance",
        instance_lr=hyper["lr_inst_param"],
        instance_decay=hyper["wd_inst_param"],
        class_lr=hyper["lr_class_param"],
        class_decay=hyper["wd_class_param"],
        low=about["clamp_log_min"],
        high=about["clamp_log_max"],
    )
    for step in range(len(arrays["logits"])):
        output = arrays["logits"][step].clone().requires_grad_()
        mean = loss(output, arrays["targets"][step], arrays["indices"][step]).mean()
        mean.backward()
        quantities = {
            "loss_nowd": mean.detach(),
            "grad_logits": output.grad,
            "inst_log": loss.instance.value,
            "inst_momentum": loss.instance.velocity,
        }
        if loss.classes is not None:
            quantities["class_log"] = loss.classes.value
            quantities["class_momentum"] = loss.classes.velocity
        yield step, {what: (value, arrays[what][step]) for what, value in quantities.items()}


def check_trace(name: str, methods: dict[str, Callable]):
    """Replay a trace of tests/golden/methods through the real class, and compare every answer.

    ``methods``: the METHODS of tests/replay_methods.py.
    """
    about = json.loads((GOLDEN / "methods" / f"{name}.json").read_text())
    with np.load(GOLDEN / "methods" / f"{name}.npz") as stored:
        trace = dict(stored)
    keys = {role: set() for role in ("epoch_input", "input", *ANSWERS)}
    for key, spec in about["arrays"].items():
        keys.setdefault(spec["role"], set()).add(key)
    constants = {key: trace[key] for key in keys.get("constant", ())}
    replayed = methods[about["method"]](about, constants)

    def row(role, position):
        return {key: trace[key][position] for key in keys[role]}

    def compare(answers, role, position):
        assert set(answers) == keys[role]
        for key, got in answers.items():
            assert within(got, trace[key][position], **about["tolerance"]), (key, position)

    for step in range(about["epochs"] * about["steps_per_epoch"]):
        epoch, in_epoch = divmod(step, about["steps_per_epoch"])
        if in_epoch == 0 and keys["epoch_start_output"]:
            started = replayed.start_epoch(epoch, row("epoch_input", epoch))
            compare(started, "epoch_start_output", epoch)
        compare(replayed.step(row("input", step)), "output", step)
        if in_epoch == about["steps_per_epoch"] - 1 and keys["epoch_output"]:
            compare(replayed.end_epoch(epoch), "epoch_output", epoch)
    assert step + 1 == min(len(trace[key]) for key in keys["output"])


ANSWERS = ("output", "epoch_start_output", "epoch_output")  # roles of what a replay must give


def within(got, expected: np.ndarray, rtol: float, atol: float) -> bool:
    """Whether an answer has this shape and these values: whole numbers exactly."""
    got, expected = np.asarray(torch.as_tensor(got).detach()), np.asarray(expected)
    if expected.dtype.kind in "iub":
        return np.array_equal(got, expected)
    return got.shape == expected.shape and np.allclose(got, expected, rtol=rtol, atol=atol)
