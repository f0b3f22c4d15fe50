"""Many finished runs in three small files: the compact logs that results/ holds.

A compact log is a folder with ``runs.csv``, a line per run; ``epochs.csv``, a line per run and
epoch; and ``configs.yaml``, each configuration by the hash under which the other two name it. All
runs of one hash differ in nothing but their seed. What a rule for the epoch says is computed from
the epochs; runs.csv has it only of runs whose epochs are not there, or in an old log.
"""

import io
import os
from pathlib import Path

import pandas as pd
import yaml

from utils.epoch_rules import RULES
from utils.errors import UserError
from utils.escapes import from_a_cell, in_a_cell
from utils.files import atomic_write, read_bytes, read_yaml
from utils.report.identity import CELL, KEY, without_execution
from utils.report.run_files import (
    NEEDED,
    TEXTS,
    LoggedRun,
    check,
    check_epochs,
    further_columns,
    numbers_by_rule,
)

FILES = ("runs.csv", "epochs.csv", "configs.yaml")


def read_log(folder: Path, skipped: dict[str, str]) -> list[LoggedRun]:
    """The runs of a compact log. If their epochs cannot be read, ``skipped`` says why.

    Raises an Exception if these are not the files of one; of many kinds, by what is wrong.
    """
    table = _read_csv(folder / "runs.csv", dtype=dict.fromkeys(NEEDED, str))
    configs = read_yaml(folder / "configs.yaml")
    missing = {*NEEDED, "seed", "fraction", "metric"} - set(table)
    if missing:
        raise UserError(f"runs.csv lacks the columns {', '.join(sorted(missing))}")
    unknown = set(table.config) - set(configs)
    if unknown:
        raise UserError(f"configs.yaml lacks {', '.join(sorted(unknown))}")
    epochs, runs = _read_epochs(folder / "epochs.csv", skipped), []
    for row in table.to_dict("records"):
        check(row, configs[row["config"]])
        name = f"{row['config']} seed {row['seed']}"
        own = epochs.get((row["config"], row["seed"]))
        if own is not None:
            try:
                check_epochs(own, row.get("epochs", float("nan")), "runs.csv")
                row |= numbers_by_rule(own, row["metric"])
            except ValueError as error:
                own = None
                skipped[f"{folder}/epochs.csv, {name}"] = (
                    f"cannot be read, its epochs are left out: {error}"
                )
        row["path"] = f"{folder}/runs.csv, {name}"
        # what says only where a run is executed may be more now than when the log was written
        runs.append(LoggedRun(row, without_execution(configs[row["config"]]), own))
    return runs


def _read_epochs(path, skipped):
    """(config, seed) -> its epochs in their order."""
    if not os.path.lexists(path):
        return {}
    try:
        epochs = _read_csv(path, dtype={"config": str, "test_metric": float})
        epochs = epochs.sort_values("epoch", kind="stable")
        return dict(iter(epochs.drop(columns=KEY).groupby([epochs[key] for key in KEY])))
    except (OSError, ValueError, KeyError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        skipped[str(path)] = f"cannot be read, its epochs are left out: {reason}"
        return {}


def _read_csv(path, **options):
    return _map_texts(pd.read_csv(io.BytesIO(read_bytes(path)), **options), from_a_cell)


def _map_texts(table, function):
    texts = {name: table[name].map(function, na_action="ignore") for name in TEXTS if name in table}
    return table.assign(**texts)


def write_log(
    folder: Path, table: pd.DataFrame, epochs: pd.DataFrame, configs: dict[str, dict]
) -> list[Path]:
    """Write runs as a compact log, over one that is there; returns the files.

    Raises:
        UserError: the log that is there has runs that would be lost.
    """
    table = table.drop(columns=["path", "label"]).sort_values([*CELL, "seed"])
    _check_nothing_is_lost(folder, table)
    epochs = epochs.sort_values([*KEY, "epoch"])
    further = [f"{column}_{rule}" for column in further_columns(epochs) for rule in RULES]
    computed = _keys(epochs)
    logged = [key in computed for key in zip(table.config, table.seed, strict=True)]
    for name in {*RULES, "best_epoch", *further} & set(table):
        table[name] = table[name].mask(logged)
    epochs = epochs.drop(columns=["seconds", "images_per_second"], errors="ignore")
    folder.mkdir(parents=True, exist_ok=True)
    # runs.csv last: with the runs of the log that was there, all that they need is there after
    # each of these steps
    with atomic_write(folder / "configs.yaml") as file:
        kept = {name: configs[name] for name in sorted(set(table.config))}
        yaml.safe_dump(kept, file, sort_keys=False)
    for name, content in (("epochs.csv", epochs), ("runs.csv", table)):
        with atomic_write(folder / name) as file:
            _map_texts(content, in_a_cell).dropna(axis="columns", how="all").to_csv(
                file, index=False, float_format="%.6g", lineterminator="\n"
            )
    return [folder / name for name in FILES]


def _check_nothing_is_lost(folder, table):
    path = folder / "runs.csv"
    if not os.path.lexists(path):
        others = [name for name in FILES if os.path.lexists(folder / name)]
        if others:
            raise UserError(
                f"{folder} has no runs.csv, so it is no log, and it holds {', '.join(others)}, "
                "which would be lost: choose another folder"
            )
        return
    try:
        old = _read_csv(path, dtype={"config": str})[KEY]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is no log that can be written over, remove it: {error}") from error
    lost = len(_keys(old) - _keys(table))
    if lost:
        raise UserError(
            f"{path} has {lost} runs that would be lost: "
            f"name {folder} too among the folders to read, or remove it"
        )


def _keys(table):
    return set(zip(table.config, table.seed, strict=True))
