"""All finished runs in and under folders as one table, and which of them are wanted."""

import collections
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from utils.epoch_rules import RULES
from utils.errors import UserError
from utils.escapes import in_a_line
from utils.params_file import flatten
from utils.report.compact_log import read_log
from utils.report.condition import evaluate
from utils.report.hardness import add_hardness, add_mass
from utils.report.identity import (
    KEY,
    NOISE_RATE,
    config_hash,
    labels,
    same_numbers,
    shared_variants,
    variant,
    without_variant,
    written_as,
)
from utils.report.run_files import OPTIONAL, LoggedRun, Unfinished, read_run
from utils.run_state import FAILED

FILES_OF_A_LOG = {"runs.csv", "configs.yaml"}
FILES_OF_A_RUN = {"config.yaml", "summary.json", "metrics.csv", FAILED}
FOREIGN = (  # what files may raise that are not ours, or damaged
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)
ORDER = ["dataset", "noise", "fraction", "label", *KEY]
MEASURED = ("mass_incorrect", "hard_test")
SHOWN = 20  # lines of what was not counted


@dataclass
class Results:
    """What was found.

    ``table``: a row per run; ``configs``: by hash, without seeds and what says only where a run is
    executed; ``directories``, ``epochs_by_run``: by (config, seed), as far as they are there;
    ``unfinished`` and ``skipped``: path -> why; ``axis``: the key that the column fraction has;
    ``whole``: what ``choose`` has chosen this from, whose rows keep their index here.
    """

    table: pd.DataFrame
    configs: dict[str, dict]
    directories: dict[tuple[str, int], Path] = field(default_factory=dict)
    epochs_by_run: dict[tuple[str, int], pd.DataFrame] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    axis: str = NOISE_RATE
    whole: "Results | None" = None

    @functools.cached_property
    def epochs(self) -> pd.DataFrame:
        """A row per run of the table and epoch: config, seed, and the columns of metrics.csv."""
        keys = zip(self.table.config, self.table.seed, strict=True)
        known = {key: self.epochs_by_run[key] for key in keys if key in self.epochs_by_run}
        if not known:
            return pd.DataFrame(columns=[*KEY, "epoch", "test_metric"])
        joined = pd.concat(known, names=KEY).reset_index(KEY).reset_index(drop=True)
        return joined.astype({"epoch": int})

    @functools.cached_property
    def measured(self) -> pd.DataFrame:
        """The table with what epochs and test samples say besides: mass_incorrect, hard_test.

        Which test samples are hard, all runs say that were read, also those not chosen.
        """
        if self.whole is not None:
            known = self.whole.measured
            return self.table.assign(**{name: known[name] for name in MEASURED})
        table = add_mass(self.table, self.epochs)
        return add_hardness(table, self.configs, self.directories, self.skipped)


def collect(paths: list[Path]) -> Results:
    """All finished runs in and under these folders, each configuration and seed once.

    Never raises over what a folder holds: what is no finished run is named in ``unfinished`` or
    ``skipped``.

    Raises:
        FileNotFoundError: a path does not exist.
    """
    results, rows, counted = Results(pd.DataFrame(), {}), [], {}
    found = [
        run
        for folder, files in _folders(paths, results.skipped)
        for run in _read(folder, files, results)
    ]
    for run in _tell_apart(found):
        key, path = (run.row["config"], run.row["seed"]), run.row["path"]
        if key in counted:
            results.skipped[path] = (
                f"the same configuration and seed as {counted[key]}, which is counted"
            )
        elif all(pd.isna(run.row.get(rule)) for rule in RULES):
            results.skipped[path] = "no test metric of any epoch is there"
        else:
            counted[key] = path
            rows.append(run.row)
            results.configs.setdefault(key[0], run.config)
            if run.directory is not None:
                results.directories[key] = run.directory
            if run.epochs is not None:
                results.epochs_by_run[key] = run.epochs
    if rows:
        table = pd.DataFrame(rows)
        table = table.assign(**{name: np.nan for name in OPTIONAL if name not in table})
        table["label"] = labels(table, results.configs).map(in_a_line)
        results.table = table.sort_values(ORDER, ignore_index=True)
    return results


def _tell_apart(runs: list[LoggedRun]) -> list[LoggedRun]:
    """The runs, those with another fixed seed of the noise or other inputs under another hash.

    Those that write a number differently, as 1 and 1.0, are under that of the first one.
    """
    groups, told_apart, spelled = collections.defaultdict(list), list(runs), {}
    for position, run in enumerate(runs):
        base = run.row["config"]
        if variant(run.config):
            base = config_hash(without_variant(run.config))
        first = spelled.setdefault(same_numbers(without_variant(run.config)), base)
        if first != base:
            config = written_as(run.config, runs[groups[first][0]].config)
            told_apart[position] = run._replace(config=config)
        groups[first].append(position)
    for base, positions in groups.items():
        members = [told_apart[position] for position in positions]
        alike = [(run.config, run.row["seed"]) for run in members]
        for position, config in zip(positions, shared_variants(alike), strict=True):
            name = config_hash(config) if variant(config) else base
            row = runs[position].row | {"config": name}
            told_apart[position] = runs[position]._replace(row=row, config=config)
    return told_apart


def _folders(paths: list[Path], skipped: dict[str, str]) -> Iterator[tuple[Path, set[str]]]:
    """Each folder in and under these once, with the names of its files; links are followed."""

    def unreadable(error):
        skipped[str(error.filename)] = f"cannot be read: {error.strerror}"

    visited = set()
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"there is no folder {path}")
        for folder, names, files in os.walk(path, followlinks=True, onerror=unreadable):
            if os.path.realpath(folder) in visited:  # a link, or a folder that was named twice
                names.clear()
                continue
            visited.add(os.path.realpath(folder))
            names.sort()
            yield Path(folder), set(files)


def _read(folder: Path, files: set[str], results: Results) -> list[LoggedRun]:
    """The finished runs that the files of a folder hold; none, if it is noted why not."""
    try:
        if files >= FILES_OF_A_LOG:
            return read_log(folder, results.skipped)
        if files & FILES_OF_A_RUN:
            return [read_run(folder, results.skipped)]
    except Unfinished as error:
        results.unfinished[str(folder)] = str(error)
    except FOREIGN as error:
        if isinstance(error, KeyError):
            reason = f"{error} is missing"
        else:
            reason = " ".join(str(error).split()) or type(error).__name__
        results.skipped[str(folder)] = f"not the files of a run: {reason}"
    return []


def choose(results: Results, name: str | None, condition: str | None = None) -> Results:
    """The runs of one table: those of a dataset, or, for "rsl", all on data that was selected from.

    The latter are those with the dataset, noise and fraction of any run on a selection. Of these,
    the ones for which a condition holds.

    Raises:
        UserError: there are none; the message names the tables that there are.
    """
    table = results.table
    if name is not None and not table.empty:
        selecting = table.method.str.contains(r"^(?:RSL|small-loss)")
        noises = table[["dataset", "noise", "fraction"]].apply(tuple, axis=1)
        chosen = noises.isin(noises[selecting]) if name == "rsl" else table.dataset == name
        if not chosen.any():
            names = [*dict.fromkeys(table.dataset), *(["rsl"] if selecting.any() else [])]
            raise UserError(
                f"there is no finished run for the table {name!r}; "
                f"there are some for {', '.join(names)}"
            )
        table = table[chosen]
    return replace(results, table=where(table, condition), whole=results.whole or results)


def over(results: Results, key: str) -> Results:
    """The same with a number of the configurations in the place of the noise fraction.

    That is then in the column noise_fraction, and in the label of a method that was run at several.
    Runs without such a number are skipped.

    Raises:
        UserError: none has one.
    """
    table = results.table
    flat = {name: flatten(results.configs[name]) for name in dict.fromkeys(table.config)}
    known = {name: keys[key] for name, keys in flat.items() if _is_number(keys.get(key))}
    if not known:
        numbers = {name for keys in flat.values() for name in keys if _is_number(keys[name])}
        raise UserError(
            f"--over {key}: no run has such a number; there are {', '.join(sorted(numbers))}"
        )
    kept = table.config.isin(known)
    reason = f"its configuration has no number {key}"
    skipped = results.skipped | dict.fromkeys(table.path[~kept], reason)
    table = table[kept]
    table = table.assign(
        noise_fraction=table.fraction, fraction=table.config.map(known).astype(float)
    )
    table["label"] = labels(table, results.configs, key).map(in_a_line)
    rates = table.groupby(["dataset", "noise", "label"]).noise_fraction
    rate = table.noise_fraction.map(lambda value: f", {100 * value:g} % noise")
    table["label"] += rate.where(rates.transform("nunique") > 1, "")
    table = table.sort_values(ORDER, ignore_index=True)
    return replace(results, table=table, axis=key, skipped=skipped, whole=None)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def where(table: pd.DataFrame, condition: str | None) -> pd.DataFrame:
    """The rows for which a condition on columns holds; ``condition.py`` says how it is written.

    Raises:
        UserError: it is none, or no row is left.
    """
    if condition is None or table.empty:
        return table
    try:
        mask = evaluate(table, condition)
    except UserError as error:
        raise UserError(
            f"--where {condition!r} is no condition such as "
            f"\"fraction == 0.4 and method != 'GCE'\": {error}; the columns are {', '.join(table)}"
        ) from None
    if not mask.any():
        raise UserError(f"--where {condition!r}: there is no such row")
    return table[mask]


def left_out(results: Results) -> str:
    """What was not counted, and why, in lines; the last one says how many were."""
    unfinished, skipped = results.unfinished, results.skipped
    lines = [f"not finished, not counted: {path} ({why})" for path, why in unfinished.items()]
    lines += [f"skipped: {path} ({why})" for path, why in skipped.items()]
    lines = [in_a_line(line) for line in lines]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"... and {len(lines) - SHOWN} more"]
    counts = f"{len(unfinished)} not finished, {len(skipped)} skipped"
    return "\n".join([*lines, f"{len(results.table)} finished runs, {counts}\n"])
