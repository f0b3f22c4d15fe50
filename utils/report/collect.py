"""Finished runs as one table: from their directories, or from the compact logs in results/ that
stand for them.

A compact log is a folder with ``runs.csv``, a line per run; ``epochs.csv``, a line per run and
epoch; and ``configs.yaml``, each configuration by the hash under which the other two name it. All
runs of one hash differ in nothing but their seed.
"""

import collections
import functools
import hashlib
import json
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from utils.config import DEFAULTS, EXECUTION, SECTIONS, flatten
from utils.epoch_rules import RULES
from utils.errors import UserError
from utils.files import atomic_write
from utils.run_state import FAILED

YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
KEY = ["config", "seed"]
BROKEN = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)  # what NumPy raises for a damaged .npz
CELL = ["dataset", "noise", "fraction", "config"]
DETECTION = (
    "auroc",
    "average_precision",
    "hard_vs_incorrect_auroc",
    "memorised_fraction",
    "flag_precision",
    "flag_recall",
)
OPTIONAL = (
    "model",
    "epochs",
    "realised",
    "best_epoch",
    "seconds",
    "processes",
    "threads",
    "device",
    *DETECTION,
)  # or NaN
NUMBERS = {*RULES, *OPTIONAL, "seed", "fraction"} - {"model", "device"}
HARD = 0.1  # the part of the test samples that count as hard


@dataclass
class Runs:
    """What was found.

    ``table``: a row per run; ``configs``: by hash, without what says where a run was executed;
    ``directories``: by (config, seed), of those that are no compact logs; ``logs``: which (config,
    seed) each of these gave; ``unfinished`` and ``skipped``: path -> why.
    """

    table: pd.DataFrame
    configs: dict[str, dict]
    directories: dict[tuple[str, int], Path] = field(default_factory=dict)
    logs: dict[Path, set] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def epochs(self) -> pd.DataFrame:
        """A row per run and epoch.

        Config, seed, and the columns of metrics.csv. What cannot be read goes to ``skipped``.
        """
        parts, known = (
            [],
            dict(
                zip(
                    zip(self.table.config, self.table.seed, strict=True),
                    self.table.epochs,
                    strict=True,
                )
            ),
        )
        for (config, seed), directory in self.directories.items():
            try:
                if (config, seed) in known:
                    part = pd.read_csv(directory / "metrics.csv")
                    if len(part) != known[config, seed] or "test_metric" not in part:
                        raise UserError(
                            f"it has {len(part)} epochs, summary.json says {known[config, seed]}"
                        )
                    parts.append(part.assign(config=config, seed=seed))
            except (OSError, ValueError) as error:
                self.skipped[str(directory / "metrics.csv")] = (
                    f"cannot be read, its epochs are left out: {error}"
                )
        for log, counted in self.logs.items():
            try:
                if (log / "epochs.csv").exists():
                    part = pd.read_csv(log / "epochs.csv", dtype={"config": str})
                    keep = [
                        pair in known and pair in counted
                        for pair in zip(part["config"], part["seed"], strict=True)
                    ]
                    parts.append(part[keep].astype({"test_metric": float}))
            except (OSError, ValueError, KeyError) as error:
                self.skipped[str(log / "epochs.csv")] = (
                    f"cannot be read, its epochs are left out: {error}"
                )
        if not parts:
            return pd.DataFrame(columns=[*KEY, "epoch", "test_metric"])
        joined = pd.concat(parts, ignore_index=True)
        return joined[[*KEY, *joined.columns.drop(KEY)]]

    @functools.cached_property
    def measured(self) -> pd.DataFrame:
        """The table, with what the epochs and the test samples say besides.

        Mass_incorrect and hard_test.
        """
        return add_hardness(add_mass(self.table, self.epochs), self)


def collect(paths: list[Path]) -> Runs:
    """All finished runs in and under these folders, each configuration and seed once.

    Never raises over what a folder holds: what is no finished run is named in ``unfinished`` or
    ``skipped``. Raises FileNotFoundError where a path does not exist.
    """
    runs, rows, counted, visited = Runs(pd.DataFrame(), {}), [], {}, set()

    def unreadable(error):
        runs.skipped[str(error.filename)] = f"cannot be read: {error.strerror}"

    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"there is no folder {path}")
        for folder, names, files in os.walk(path, followlinks=True, onerror=unreadable):
            if os.path.realpath(folder) in visited:  # a link, or a folder that was named twice
                names.clear()
                continue
            visited.add(os.path.realpath(folder))
            names.sort()
            found, here = set(files), Path(folder)
            try:
                if {"runs.csv", "configs.yaml"} <= found:
                    new = _read_log(here, runs)
                elif found & {"config.yaml", "summary.json", "metrics.csv", FAILED}:
                    new = [_read_run(here, runs)]
                else:
                    continue
            except _Unfinished as error:
                runs.unfinished[str(here)] = str(error)
                continue
            except (
                OSError,
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
                RecursionError,
                yaml.YAMLError,
            ) as error:
                told = (
                    f"{error} is missing"
                    if isinstance(error, KeyError)
                    else " ".join(str(error).split())
                )
                runs.skipped[str(here)] = f"not the files of a run: {told or type(error).__name__}"
                continue
            for row in new:
                key = row["config"], row["seed"]
                if key in counted:
                    runs.skipped[row["path"]] = (
                        f"the same configuration and seed as {counted[key]}, which is counted"
                    )
                    continue
                rows.append(row)
                counted[key] = row["path"]
                if "directory" in row:
                    runs.directories[key] = row.pop("directory")
                else:
                    runs.logs.setdefault(here, set()).add(key)
    runs.table = pd.DataFrame(rows)
    if rows:
        for name in set(OPTIONAL) - set(runs.table):
            runs.table[name] = np.nan
        runs.table["label"] = _labels(runs.table, runs.configs)
        runs.table = runs.table.sort_values(
            ["dataset", "noise", "fraction", "label", "config", "seed"], ignore_index=True
        )
    return runs


class _Unfinished(Exception):
    pass


def _read_run(directory: Path, runs: Runs) -> dict:
    """The row of a finished run."""
    if not (directory / "summary.json").exists():
        failed = directory / FAILED
        raise _Unfinished(
            f"failed: {failed.read_text(errors='replace').strip()}"
            if failed.exists()
            else "no epoch is over"
        )
    said = json.loads((directory / "summary.json").read_text())
    if not said["finished"]:
        raise _Unfinished(f"{said['epochs']} epochs are over")
    config = yaml.load((directory / "config.yaml").read_text(), YAML)
    seed = int(config["seed"])
    name = config_hash(config)
    runs.configs.setdefault(name, without_place(config))
    row = {
        "config": name,
        "seed": seed,
        **identity(config),
        "metric": str(said["metric"]),
        "epochs": int(said["epochs"]),
        "realised": said["noise"]["realised"],
    }
    row |= {
        rule: said["test"][rule]
        for rule in ("last", "mean_last_5", "best", "best_epoch", "validated")
    }
    row |= {
        f"{key}_{rule}": values[rule]
        for key, values in (said.get("at_the_same_epochs") or {}).items()
        for rule in ("last", "best", "validated")
    }
    row |= {key: (said["detection"] or {}).get(key) for key in DETECTION}
    row |= {
        f"selection_{key}": (said.get("selection") or {}).get(key)
        for key in ("precision", "recall")
    }
    row |= {
        "seconds": said["seconds"],
        "processes": said.get("processes", 1),
        "threads": config.get("threads"),
        "device": said.get("device"),
        "commit": said.get("commit"),
    }
    _check([row], {name: config})
    return row | {"path": str(directory), "directory": directory}


def _check(rows: list[dict], configs: dict[str, dict]):
    """Raise ValueError, TypeError or KeyError where something in a row, or in its configuration, is
    not what it is called.
    """
    for row in rows:
        if row["metric"] not in ("accuracy", "mae"):
            raise UserError(f"the metric {row['metric']!r} is not known")
        for name in NUMBERS & set(row):
            if row[name] is not None and not isinstance(row[name], (int, float)):
                raise UserError(f"{name} is {row[name]!r}, no number")
        identity(configs[row["config"]]), configs[row["config"]]["task"]


def _read_log(folder: Path, runs: Runs) -> list[dict]:
    """The rows of a compact log."""
    table = pd.read_csv(folder / "runs.csv", dtype={"config": str})
    configs = yaml.load((folder / "configs.yaml").read_text(), YAML)
    missing = {*KEY, "dataset", "noise", "fraction", "method", "metric", *RULES} - set(table)
    if missing:
        raise UserError(f"runs.csv lacks the columns {', '.join(sorted(missing))}")
    unknown = set(table.config) - set(configs)
    if unknown:
        raise UserError(f"configs.yaml lacks {', '.join(sorted(unknown))}")
    rows = table.to_dict("records")
    _check(rows, configs)
    for name in dict.fromkeys(table.config):
        runs.configs.setdefault(
            name, without_place(configs[name])
        )  # what says so may be more now than when it was written
    return [
        {**row, "path": f"{folder}/runs.csv, {row['config']} seed {row['seed']}"} for row in rows
    ]


def write_log(runs: Runs, folder: Path) -> list[Path]:
    """Write these runs as a compact log, over one that is there. Returns the files."""
    epochs, table = (
        runs.epochs,
        runs.measured.drop(columns=["path", "label"]).sort_values([*CELL, "seed"]),
    )
    before = folder / "runs.csv"
    if before.exists():
        old = pd.read_csv(before, dtype={"config": str})
        lost = set(zip(old.config, old.seed, strict=True)) - set(
            zip(table.config, table.seed, strict=True)
        )
        if lost:
            raise UserError(
                f"{before} has {len(lost)} runs that would be lost: name {folder} too among the folders to read, "
                f"or remove it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("runs.csv", table),
        (
            "epochs.csv",
            epochs.drop(columns=["seconds", "images_per_second"], errors="ignore").sort_values(
                [*KEY, "epoch"]
            ),
        ),
    ):
        with atomic_write(folder / name) as file:
            content.dropna(axis="columns", how="all").reindex(columns=_kept(content)).to_csv(
                file, index=False, float_format="%.6g", lineterminator="\n"
            )
    with atomic_write(folder / "configs.yaml") as file:
        yaml.safe_dump(
            {name: runs.configs[name] for name in sorted(set(table.config))}, file, sort_keys=False
        )
    return [folder / name for name in ("runs.csv", "epochs.csv", "configs.yaml")]


def _kept(table: pd.DataFrame) -> list[str]:
    """The columns that say something, and those that a reader counts on."""
    return [name for name in table if name in RULES or table[name].notna().any()]


def without_place(config: dict) -> dict:
    """A configuration without its seeds and what only says where a run is executed.

    Of a full path, its last two parts.
    """
    gone = {"seed", "noise.seed", *EXECUTION}

    def strip(part, prefix=""):
        return {
            key: strip(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else "/".join(Path(value).parts[-2:])
            if isinstance(value, str) and value.startswith("/")
            else value
            for key, value in part.items()
            if f"{prefix}{key}" not in gone
        }

    return strip(config)


def config_hash(config: dict) -> str:
    """Ten digits that all runs share which differ in nothing but their seed and where they are
    executed.

    A top-level key with its default counts as absent, so that a key new in a later version changes
    no hash.
    """
    default = {
        key: value for key, value in flatten(DEFAULTS).items() if key.split(".")[0] not in SECTIONS
    }
    flat = {
        key: value
        for key, value in flatten(without_place(config)).items()
        if key not in default or default[key] != value
    }
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:10]


def identity(config: dict) -> dict:
    """What a run is called in tables.

    Dataset, noise, fraction, method, model. The fraction is 0 where none is read.
    """
    kind = config["noise"]["kind"]
    fraction = 0.0 if kind == "none" or ":" in kind else float(config["noise"]["fraction"])
    return {
        "dataset": dataset_name(config),
        "noise": kind,
        "fraction": fraction,
        "method": method_name(config),
        "model": config["model"]["name"],
    }


def dataset_name(config: dict) -> str:
    """That of its section, with the file, folder or task where there are several."""
    section = config["dataset"]
    source = section.get("file") or section.get("root") or section.get("task")
    return section["name"] + (f"-{Path(source).stem}" if source else "")


def method_name(config: dict) -> str:
    """Its loss.

    On selected samples "RSL", or "small-loss" where the losses of one epoch select, and the loss if
    not Plain.
    """
    name, selection = config["loss"]["name"], config["dataset"].get("selection")
    if selection is None:
        return name
    selected = (
        "small-loss" if str(selection.get("criterion", "mean")).startswith("epoch") else "RSL"
    )
    return selected if name == "Plain" else f"{selected} + {name}"


def _labels(table: pd.DataFrame, configs: dict[str, dict]) -> pd.Series:
    """The method of each run; where it has several configurations at one noise, with the values in
    which one differs.

    Differs, that is, from what more than half of them have, or, at all fractions together, if there
    is such a value. A configuration that would need more than four has its hash, and so have those
    that this leaves with one name.
    """
    flat = {
        name: {key: value for key, value in flatten(config).items() if key != "noise.fraction"}
        for name, config in configs.items()
    }
    suffix = dict.fromkeys(flat, "")
    for _, group in table.groupby(["dataset", "noise", "method"], sort=False):
        names, own = list(dict.fromkeys(group.config)), collections.defaultdict(dict)
        for _, cell in group.groupby("fraction"):
            here = list(dict.fromkeys(cell.config))
            for key in dict.fromkeys(key for name in here for key in flat[name]):
                values = {name: repr(flat[name].get(key)) for name in names}
                if len({values[name] for name in here}) == 1:
                    continue
                usual = _majority([values[name] for name in here]) or _majority(
                    list(values.values())
                )
                for name in here:
                    if values[name] != usual:
                        own[name][key] = None
        count = collections.Counter(
            key.rsplit(".", 1)[-1] for key in {key for keys in own.values() for key in keys}
        )
        for name in names:
            known = {key: flat[name][key] for key in own[name] if flat[name].get(key) is not None}
            for key, value in known.items():
                short = key.rsplit(".", 1)[-1]
                if short == "name":
                    suffix[name] += f", {value}"
                elif len(known) <= 4:
                    suffix[name] += f", {short if count[short] == 1 else key}={value}"
            if len(known) > 4:
                suffix[name] += f" [{name}]"
        for _, cell in group.groupby("fraction"):
            here = list(dict.fromkeys(cell.config))
            alike = collections.Counter(suffix[name] for name in here)
            for name in here:
                suffix[name] += f" [{name}]" if alike[suffix[name]] > 1 else ""
    return table.method + table.config.map(suffix)


def _majority(values: list[str]) -> str | None:
    """What more than half of them are."""
    most, number = collections.Counter(values).most_common(1)[0]
    return most if 2 * number > len(values) else None


def add_mass(table: pd.DataFrame, epochs: pd.DataFrame) -> pd.DataFrame:
    """With the column mass_incorrect.

    The mean over all epochs of the part of all gradient that incorrect labels have.
    """
    if "mass_incorrect" not in epochs:
        return table if "mass_incorrect" in table else table.assign(mass_incorrect=np.nan)
    means = epochs.groupby(KEY).mass_incorrect.mean()
    return table.drop(columns="mass_incorrect", errors="ignore").join(means, on=KEY)


def add_hardness(table: pd.DataFrame, runs: Runs) -> pd.DataFrame:
    """With the column hard_test: the metric on the HARD part of the test samples, hardest after
    training on clean labels.

    Hardness is that of the runs of Plain without noise on the same dataset with the same network,
    of those configured in most runs: the mean of their test losses, for one of these itself that of
    the others. NaN where there is none, or a run left no test.npz.
    """
    losses, values = _clean_losses(table, runs), {}
    for (config, seed), directory in runs.directories.items():
        others = [
            loss
            for key, loss in losses.get(_recipe(runs.configs[config]), {}).items()
            if key != (config, seed)
        ]
        tested = _tested(directory, runs) if others else None
        if tested is not None and len(tested["loss"]) == len(others[0]):
            rows = np.argsort(-np.mean(others, axis=0), kind="stable")[
                : max(1, round(HARD * len(others[0])))
            ]
            target, predicted = tested["target"][rows], tested["predicted"][rows]
            numbers = runs.configs[config]["task"] == "regression"
            values[config, seed] = float(
                np.abs(target - predicted).mean() if numbers else 100 * (target == predicted).mean()
            )
    known = pd.Series(
        [values.get(key, np.nan) for key in zip(table.config, table.seed, strict=True)],
        table.index,
        float,
    )
    return table.assign(hard_test=known.fillna(table.hard_test) if "hard_test" in table else known)


def _clean_losses(table: pd.DataFrame, runs: Runs) -> dict[str, dict[tuple, np.ndarray]]:
    """Recipe -> (config, seed) -> test losses [n] of the runs that say what is hard."""
    clean = table[
        (table.method == "Plain") & (table.fraction == 0) & (table.realised.astype(float) == 0)
    ]
    found = collections.defaultdict(dict)
    for config in clean.config.value_counts(
        sort=True, ascending=True
    ).index:  # the last one of a recipe stays
        tested = {
            key: _tested(runs.directories[key], runs)
            for key in zip(clean.config, clean.seed, strict=True)
            if key[0] == config and key in runs.directories
        }
        losses = {key: values["loss"] for key, values in tested.items() if values is not None}
        if losses and len({len(values) for values in losses.values()}) == 1:
            found[_recipe(runs.configs[config])] = losses
    return found


def _recipe(config: dict) -> str:
    """What two runs share whose test samples are the same and whose networks find the same ones
    hard.
    """
    dataset = {key: value for key, value in config["dataset"].items() if key != "selection"}
    return json.dumps([dataset, config["model"], config["task"]], sort_keys=True)


def _tested(directory: Path, runs: Runs) -> dict[str, np.ndarray] | None:
    if not (directory / "test.npz").exists():  # a run of an earlier version
        return None
    try:
        with np.load(directory / "test.npz") as file:
            return {key: file[key] for key in ("target", "loss", "predicted")}
    except BROKEN as error:
        runs.skipped[str(directory / "test.npz")] = f"cannot be read: {error}"
        return None
