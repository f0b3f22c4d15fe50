"""One finished run, from its directory; and what its epochs say under every rule."""

import csv
import functools
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from utils import files
from utils.epoch_rules import RULES, apply_rules
from utils.errors import UserError
from utils.escapes import in_a_line
from utils.metrics import METRICS
from utils.report.identity import KEY, config_hash, identity, inputs, with_inputs
from utils.run_state import DATA, read_failed

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
OPTIONAL = (  # or NaN
    "model",
    "epochs",
    "realised",
    *RULES,
    "best_epoch",
    *DETECTION,
    LEARNED,
    *COST,
)
NEEDED = ("config", "dataset", "noise", "method")
TEXTS = (*NEEDED, "model", "metric", "device", "commit")
# What is in the files of others: a name is shorter, a number nearer to zero, a table not as wide.
LONGEST_NAME = 1000
LARGEST = 1e30
MOST_COLUMNS = 1000
LARGEST_ARRAYS = 2**30  # bytes


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
    config = files.read_yaml(directory / "config.yaml")
    data = directory / DATA
    named = inputs(config, summary, files.read_json(data) if data.exists() else None)
    stored = with_inputs(config, named)
    row = {
        "config": config_hash(stored),
        "seed": config["seed"],
        **identity(config),
        "metric": summary["metric"],
        "epochs": summary["epochs"],
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
    }
    check(row, stored)
    row["path"] = in_a_line(directory)
    path = directory / "metrics.csv"
    try:
        epochs = _read_metrics(path)
        check_epochs(epochs, row["epochs"], "summary.json")
    except (OSError, ValueError, csv.Error) as error:
        skipped[str(path)] = f"cannot be read, its epochs are left out: {error}"
        return LoggedRun(row, stored, None, directory)
    return LoggedRun(row | numbers_by_rule(epochs, row["metric"]), stored, epochs, directory)


def _finished_summary(directory):
    path = directory / "summary.json"
    if not os.path.lexists(path):
        reason = read_failed(directory)
        raise Unfinished(f"failed: {reason}" if reason else "no epoch is over")
    summary = files.read_json(path)
    if not isinstance(summary["finished"], bool):
        raise UserError(f"finished is {summary['finished']!r}, not true or false")
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
    """Raise an Exception if something in a row or configuration is no such; of many kinds.

    The names in the row are made printable, each in one line, and its noise fraction, which a log
    rounds, is that of the configuration.
    """
    if row["metric"] not in METRICS:
        raise UserError(f"the metric {row['metric']!r} is not known")
    if len(row) > MOST_COLUMNS:
        raise UserError(f"it has more than {MOST_COLUMNS} numbers")
    named = identity(config)
    for name, value in (named | row).items():
        if name not in TEXTS:
            _check_number(name, value)
        elif name in NEEDED or not (value is None or value != value):
            _check_text(name, value)
    if row["config"] != in_a_line(row["config"]):
        raise UserError(f"the hash {row['config']!r} is none")
    row |= {name: in_a_line(row[name]) for name in NEEDED}
    if not 0 <= row["fraction"] <= 1 or row["seed"] != int(row["seed"]) or row["seed"] < 0:
        raise UserError(f"there is no noise fraction {row['fraction']}, or no seed {row['seed']}")
    row["fraction"] = named["fraction"]
    _check_text("task", config["task"])  # figures and hardness need it


def _check_text(name, value):
    if not isinstance(value, str) or len(value) > LONGEST_NAME:
        raise UserError(f"{name} is {str(value)[:100]!r}, no text, or a long one")


def _check_number(name, value):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and (np.isnan(value) or abs(value) < LARGEST)):
        raise UserError(f"{name} is {str(value)[:100]!r}, no number, or a huge one")


def _read_metrics(path: Path) -> pd.DataFrame:
    """metrics.csv, three times as fast as pandas reads so small a file.

    Raises:
        OSError, ValueError: it cannot be read, or has cells that are no numbers.
    """
    head, *rows = csv.reader(io.StringIO(files.read_text(path)))
    values = [[cell or "nan" for cell in row] for row in rows]
    return pd.DataFrame(np.array(values, float).reshape(len(rows), len(head)), columns=head)


def check_epochs(epochs: pd.DataFrame, number: float, source: str):
    """Raise ValueError if these are not all epochs of a run, from 0, in order.

    ``number``: how many there are as ``source`` has it, or NaN.
    """
    missing = {"epoch", "test_metric"} - set(epochs)
    if missing:
        raise UserError(f"it lacks the columns {', '.join(sorted(missing))}")
    taken = {*KEY, "label"} & set(epochs)
    if taken or not epochs.columns.is_unique or len(epochs.columns) > MOST_COLUMNS:
        raise UserError("its columns are not those of a run")
    if any(kind.kind not in "iuf" for kind in epochs.dtypes):
        raise UserError("it has cells that are no numbers")
    numbers = epochs.to_numpy(float)
    if not (np.isnan(numbers) | (np.abs(numbers) < LARGEST)).all():
        raise UserError("it has numbers that are huge")
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
    """These arrays [N] of an .npz; None if there are none, or it is damaged: see ``skipped``."""
    if not os.path.lexists(path):  # a run of an earlier version, or of a compact log
        return None
    try:
        arrays = list(files.read_arrays(path, names, LARGEST_ARRAYS).values())
        if any(array.dtype.kind not in "iuf" for array in arrays):
            raise UserError("there are no numbers in it")
        if any(array.ndim != 1 or len(array) != len(arrays[0]) for array in arrays):
            raise UserError("its arrays are not of one length")
        return arrays if len(arrays[0]) else None
    except (OSError, ValueError) as error:
        skipped[str(path)] = f"cannot be read: {error}"
        return None
