"""The table of a search's trials: which one is chosen, and which others might have been.

The trials are one draw of the many that might have been made. ``resample`` draws from them again,
with replacement and the same numbers for every method, and the table says how often each trial
would have been chosen, and how often each method would have come out ahead.
"""

import io
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import UserError
from utils.files import read_bytes
from utils.params_file import flatten, parse_overrides
from utils.run_state import FAILED, OTHER, read_config, read_failed, read_summary
from utils.sweep.spaces import draw

RECORDING = "rsl_recording"  # the folder of the runs whose losses RSL selects by
COLUMNS = ["method", "noise", "trial", "state", "noisy_validation", "test_last", "seconds"]
COLUMNS += ["chosen", "overrides"]
RESAMPLES = 10_000


def recording_of(directory: Path) -> Path:
    """Where the losses are recorded for a run of RSL in <folder>/rsl/<noise>/<name>."""
    return directory.parents[2] / RECORDING / directory.parent.name / directory.name


def trial_state(directory: Path) -> str:
    """What has become of a trial: "finished"; "diverged", the worst; "" if it is to be run."""
    if read_summary(directory).get("finished"):
        return "finished"
    is_rsl = directory.parts[-3] == "rsl"
    runs = (directory, recording_of(directory)) if is_rsl else (directory,)
    diverged = any("not finite" in read_failed(run) for run in runs)
    return "diverged" if diverged else ""


def trials_table(root: Path) -> pd.DataFrame:
    """A row for each trial in a folder that is over, by the last epoch.

    One that diverged, or whose directory holds other values than are drawn now ("other
    configuration"), has no accuracies. ``chosen``: the best of its method under its noise, of all
    trials in the folder, by the held-out labels. ``seconds``: of training, of both runs of RSL.

    Raises:
        UserError: there is no such trial.
    """
    rows = [_row(root, directory) for directory in _trial_directories(root)]
    rows = [row for row in rows if row]
    if not rows:
        raise UserError(f"there is no finished trial in {root}")
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    return with_chosen(table.sort_values(["noise", "method", "trial"], ignore_index=True))


def with_chosen(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``chosen`` of the trials that are in it."""
    judged = table.dropna(subset="noisy_validation")
    best = judged.groupby(["noise", "method"]).noisy_validation.idxmax()
    return table.assign(chosen=table.index.isin(best))


def in_common(trials: pd.DataFrame) -> pd.DataFrame:
    """Of trials under one noise those whose number every method has, with ``chosen`` of these."""
    methods = trials.groupby("trial").method.transform("nunique")
    return with_chosen(trials[methods == trials.method.nunique()])


def resample(trials: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Method -> the trial chosen in each of RESAMPLES further searches, a row each.

    A search draws as many trials as there are, with replacement, from those that every method has;
    it draws the same numbers for all methods, which share learning rates and weight decays. The
    columns are ``trial`` and ``test_last``. If all drawn trials of a method diverged, both are NaN.

    Args:
        trials: rows of ``trials_table`` under one noise.
    """
    common = in_common(trials)
    if common.empty:
        return {}
    noisy = common.pivot(index="trial", columns="method", values="noisy_validation")
    tested = common.pivot(index="trial", columns="method", values="test_last")
    drawn = np.random.default_rng(0).choice(len(noisy), (RESAMPLES, len(noisy)))
    drawn.sort(axis=1)  # of two equal ones, the first trial is chosen, as in the table
    searches = {}
    for method in noisy:
        judged = noisy[method].fillna(-np.inf).to_numpy()
        rows = drawn[np.arange(RESAMPLES), judged[drawn].argmax(axis=1)]
        trial = np.where(np.isfinite(judged[rows]), noisy.index[rows], np.nan)
        chosen = {"trial": trial, "test_last": tested[method].to_numpy()[rows]}
        searches[method] = pd.DataFrame(chosen)
    return searches


def with_shares(table: pd.DataFrame, searches: dict[str, dict[str, pd.DataFrame]]) -> pd.DataFrame:
    """The table with ``chosen_share``: in which part of the resamples a trial is chosen."""
    shares = pd.Series(0.0, table.index)
    for noise, trials in table.groupby("noise"):
        for method, rows in searches[noise].items():
            times = trials[trials.method == method].trial.map(rows.trial.value_counts())
            shares[times.index] = times.fillna(0) / RESAMPLES
    table = table.drop(columns="chosen_share", errors="ignore")
    table.insert(table.columns.get_loc("overrides"), "chosen_share", shares)
    return table


def describe_resamples(table: pd.DataFrame, searches: dict[str, dict[str, pd.DataFrame]]) -> str:
    """A line for each two methods: how far apart further searches would have put them.

    The difference is that of the accuracies, after the last epoch, of the trials that are chosen,
    of those that every method has. A method all of whose trials diverged is behind every other.

    Args:
        searches: what ``resample`` makes of the trials under each noise.
    """
    lines = []
    for noise, trials in table.groupby("noise"):
        chosen, common = searches[noise], in_common(trials)
        best = common[common.chosen].set_index("method").test_last
        which = "these trials"
        if len(common) < len(trials):
            which = f"the {common.trial.nunique()} trials that all have"
        order = best.sort_values(ascending=False).index
        for better, worse in itertools.combinations(order, 2):
            own, other = chosen[better].test_last, chosen[worse].test_last
            known = (own - other).dropna()
            if known.empty:
                continue
            low, high = known.quantile([0.05, 0.95])
            ahead = (own > other) | (own.notna() & other.isna())
            line = (
                f"{noise}: {better} - {worse}: {best[better] - best[worse]:+.2f} with {which},"
                f" [{low:+.2f}, {high:+.2f}] in 90 % of {len(known):,} resamples, "
                f"ahead in {100 * ahead.mean():.0f} %"
            )
            if len(known) < RESAMPLES:
                line += f" of {RESAMPLES:,}: in the others all trials of one of them diverged"
            lines.append(line)
    return "\n".join(lines)


def _trial_directories(root: Path) -> set[Path]:
    """<root>/<method>/<noise>/trial<number>; that of RSL also if only its recording was begun."""
    directories = set()
    for name in ("summary.json", FAILED):
        for path in root.glob(f"*/*/trial*/{name}"):
            method, noise, trial = path.parent.parts[-3:]
            directories.add(root / ("rsl" if method == RECORDING else method) / noise / trial)
    return directories


def _row(root: Path, directory: Path) -> dict | None:
    """Of a trial that is over; None of another."""
    state = trial_state(directory)
    if not state:
        return None
    method, noise, name = directory.parts[-3:]
    number = name.removeprefix("trial")
    if not number.isdecimal():
        raise UserError(f"{directory} is named like a trial, trial<number>, and is none")
    row = {"method": method, "noise": noise, "trial": int(number), "state": state}
    overrides = draw(root.name, method, row["trial"])
    if state == "finished":
        last = read_csv(directory / "metrics.csv").iloc[-1]
        if "validation_metric" not in last or not _is_of(directory, overrides):
            row["state"] = state = OTHER
    if state == "finished":
        runs = (directory, recording_of(directory)) if method == "rsl" else (directory,)
        row["noisy_validation"] = last["validation_metric"]
        row["test_last"] = last["test_metric"]
        row["seconds"] = sum(read_summary(run).get("seconds", float("nan")) for run in runs)
    return row | {"overrides": " ".join(overrides)}


def _is_of(directory: Path, overrides: list[str]) -> bool:
    """Whether the run in a directory was begun with these values."""
    begun, drawn = read_config(directory), parse_overrides(overrides)
    return begun is None or flatten(begun).items() >= flatten(drawn).items()


def read_csv(path: Path) -> pd.DataFrame:
    """Raises UserError if the file is no table."""
    try:
        return pd.read_csv(io.BytesIO(read_bytes(path)))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_trials(source: Path) -> pd.DataFrame:
    """The table of trials of a folder, or of a file that ``table --out`` wrote.

    Raises:
        UserError: there is no trial, or the file is no such table.
    """
    table = read_csv(source) if source.is_file() else trials_table(source)
    lacking = [name for name in COLUMNS if name not in table]
    if lacking:
        columns = ", ".join(lacking)
        raise UserError(f"{source} is no table of trials: it lacks the columns {columns}")
    return table


def best_trial(table: pd.DataFrame, source: Path, method: str, noise: str, trials: int) -> int:
    """The trial with the highest accuracy on the held-out labels.

    Args:
        table: what ``trials_to_choose_from`` made of ``source``.

    Raises:
        UserError: one of them is not over, or was run with other values than are drawn now.
    """
    rows = table[(table.method == method) & (table.noise == noise) & (table.trial < trials)]
    listed = source.is_file()
    others = rows.trial[rows.state == OTHER].tolist()
    if others:
        mend = f"remove these folders of {source / method / noise}, and run them again"
        raise UserError(
            f"trials {others} of {method} under {noise} were run with other values than are drawn "
            f"now: {f'{source} is of no use here' if listed else mend}"
        )
    if len(rows) < trials or rows.noisy_validation.isna().all():
        mend = "run the others first, with --only missing and --only failed"
        raise UserError(
            f"{len(rows)} of {trials} trials of {method} under {noise} are over, "
            f"{(rows.state == 'diverged').sum()} of them diverged: "
            f"{f'{source} lacks the others' if listed else mend}"
        )
    return int(rows.loc[rows.noisy_validation.idxmax(), "trial"])


def trials_to_choose_from(source: Path, dataset: str, methods: list[str]) -> pd.DataFrame:
    """The trials of these methods; of a file, too, those of other values have the state OTHER."""
    table = read_trials(source)
    table = table[table.method.isin(methods)]
    if source.is_file():
        trials = zip(table.method, table.trial, strict=True)
        drawn = [" ".join(draw(dataset, *trial)) for trial in trials]
        table = table.assign(state=table.state.mask(table.overrides != drawn, OTHER))
    return table
