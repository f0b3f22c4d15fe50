"""One finished run, from its directory; and what its epochs say under every rule."""

import csv
import functools
import json
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from utils.epoch_rules import RULES, apply_rules
from utils.errors import UserError
from utils.files import YAML, read_json
from utils.metrics import METRICS
from utils.report.identity import config_hash, identity, inputs, with_inputs
from utils.run_state import FAILED

DETECTION = (
    "auroc",
    "average_precision",
    "hard_vs_incorrect_auroc",
    "memorised_fraction",
    "flag_precision",
    "flag_recall",
)
LEARNED = "learned"  # 1 or 0: whether the finished network has learned anything
COST = ("seconds", "processes", "threads", "device")
OPTIONAL = (
    "model",
    "epochs",
    "realised",
    *RULES,
    "best_epoch",
    *DETECTION,
    LEARNED,
    *COST,
)  # or NaN
NUMBERS = {*OPTIONAL, "seed", "fraction"} - {"model", "device"}


class LoggedRun(NamedTuple):
    """A finished run.

    ``row``: its row of the table; ``config``: without seed and execution; ``epochs``: the rows of
    its metrics.csv, or None; ``directory``: None if it was read from a compact log.
    """

    row: dict
    config: dict
    epochs: pd.DataFrame | None
    directory: Path | None = None


class Unfinished(Exception):
    """The run in a directory is not finished; the message is how far it is."""


def read_run(directory: Path, skipped: dict[str, str]) -> LoggedRun:
    """The finished run in a directory. If its epochs cannot be read, ``skipped`` says why.

    Raises:
        Unfinished: the run is not finished.
        Exception: these are not the files of a run; of many kinds, by what is wrong.
    """
    summary = _finished_summary(directory)
    config = yaml.load((directory / "config.yaml").read_text(), YAML)
    data = directory / "data.json"
    named = inputs(config, summary, read_json(data) if data.exists() else None)
    stored = with_inputs(config, named)
    row = {
        "config": config_hash(stored),
        "seed": int(config["seed"]),
        **identity(config),
        "metric": str(summary["metric"]),
        "epochs": int(summary["epochs"]),
        "realised": summary["noise"]["realised"],
        **_stored_numbers(summary),
        **{key: (summary["detection"] or {}).get(key) for key in DETECTION},
    }
    learning = summary.get("learning")
    row[LEARNED] = None if not learning else float(learning["warning"] is None)
    for key in ("precision", "recall"):
        row[f"selection_{key}"] = (summary.get("selection") or {}).get(key)
    row |= {
        "seconds": summary["seconds"],
        "processes": summary.get("processes", 1),
        "threads": config.get("threads"),
        "device": summary.get("device"),
        "commit": summary.get("commit"),
        "path": str(directory),
    }
    check(row, stored)
    path = directory / "metrics.csv"
    try:
        epochs = _read_metrics(path)
        check_epochs(epochs, row["epochs"], "summary.json")
    except (OSError, ValueError) as error:
        skipped[str(path)] = f"cannot be read, its epochs are left out: {error}"
        return LoggedRun(row, stored, None, directory)
    return LoggedRun(row | numbers_by_rule(epochs, row["metric"]), stored, epochs, directory)


def _finished_summary(directory):
    path = directory / "summary.json"
    if not path.exists():
        failed = directory / FAILED
        if failed.exists():
            raise Unfinished(f"failed: {failed.read_text(errors='replace').strip()}")
        raise Unfinished("no epoch is over")
    summary = json.loads(path.read_text())
    if not summary["finished"]:
        raise Unfinished(f"{summary['epochs']} epochs are over")
    return summary


def _stored_numbers(summary):
    """What ``numbers_by_rule`` computes, as the run itself summed it up: for want of its epochs."""
    numbers = {name: summary["test"].get(name) for name in (*RULES, "best_epoch")}
    for column, values in (summary.get("at_the_same_epochs") or {}).items():
        numbers |= {f"{column}_{rule}": values.get(rule) for rule in RULES}
    return numbers


def check(row: dict, config: dict):
    """Raise ValueError, TypeError or KeyError if something in a row or configuration is no such."""
    if row["metric"] not in METRICS:
        raise UserError(f"the metric {row['metric']!r} is not known")
    for name in ("dataset", "noise", "method"):
        if not isinstance(row[name], str):
            raise UserError(f"{name} is {row[name]!r}, no text")
    for name in NUMBERS & set(row):
        if row[name] is not None and not isinstance(row[name], (int, float)):
            raise UserError(f"{name} is {row[name]!r}, no number")
    identity(config)
    config["task"]  # figures and hardness need it


def _read_metrics(path: Path) -> pd.DataFrame:
    """metrics.csv, three times as fast as pandas reads so small a file.

    Raises:
        OSError, ValueError: it cannot be read, or has cells that are no numbers.
    """
    with open(path) as file:
        head, *rows = csv.reader(file)
    values = [[cell or "nan" for cell in row] for row in rows]
    return pd.DataFrame(np.array(values, float).reshape(len(rows), len(head)), columns=head)


def check_epochs(epochs: pd.DataFrame, number: float, source: str):
    """Raise ValueError if these are not all epochs of a run, from 0, in order.

    ``number``: how many there are as ``source`` has it, or NaN.
    """
    missing = {"epoch", "test_metric"} - set(epochs)
    if missing:
        raise UserError(f"it lacks the columns {', '.join(sorted(missing))}")
    if len(epochs) != number and not pd.isna(number):
        raise UserError(f"it has {len(epochs)} epochs, {source} says {number:g}")
    if not np.array_equal(epochs.epoch, np.arange(len(epochs))):
        raise UserError("its epochs are not numbered 0, 1, 2 ...")


def numbers_by_rule(epochs: pd.DataFrame, metric: str) -> dict[str, float | None]:
    """The test metric under every rule for the epoch, and ``best_epoch``.

    Also whatever else was measured on test samples, at the epochs that the rule chooses by the test
    metric: ``<column>_<rule>``.
    """
    validation = epochs.get("validation_metric")
    if validation is not None:
        validation = validation.tolist() if validation.notna().any() else None
    test = epochs.test_metric.tolist()
    by_rule = functools.partial(apply_rules, test, validation, METRICS[metric].higher_is_better)
    numbers = by_rule()
    for column in further_columns(epochs):
        values = by_rule(epochs[column].tolist())
        numbers |= {f"{column}_{rule}": values[rule] for rule in RULES}
    return numbers


def further_columns(epochs: pd.DataFrame) -> list[str]:
    """The columns of test samples besides the test metric: of ``test_`` and of further parts."""
    parts = {name.removesuffix("metric") for name in epochs if name.endswith("_metric")}
    prefixes = tuple(parts - {"train_", "validation_"})
    return [
        name
        for name in epochs
        if name.startswith(prefixes) and name != "test_metric" and epochs[name].notna().any()
    ]


def read_arrays(path: Path, names: tuple[str, ...], skipped: dict[str, str]) -> list | None:
    """These arrays of an .npz; None if there is no such file, or it is damaged: see ``skipped``."""
    if not path.exists():  # a run of an earlier version, or of a compact log
        return None
    damaged = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
    try:
        with open(path, "rb") as file, np.load(file) as stored:
            arrays = [stored[name] for name in names]
        if any(array.dtype.kind not in "biuf" for array in arrays):
            raise UserError("there are no numbers in it")
        if len({array.shape for array in arrays}) > 1:
            raise UserError("its arrays are not of one length")
        return arrays
    except damaged as error:
        skipped[str(path)] = f"cannot be read: {error}"
        return None
