"""Random search for hyper-parameters, which no test image takes part in: as many trials a method.

    python -m utils.search trials mnist permute 0.4 "plain gce" 8
        the cells of a sweep: 8 trials of each method
    python -m utils.search chosen mnist permute 0.4 "plain gce" 8 "11 12"
        the best of each, on all training samples, 2 seeds
    python -m utils.search chosen mnist pair 0.4 "plain gce" 8 "11 12" --under permute-0.4
        the best of a search under another noise; with --searched trials.csv from its table
    python -m utils.search table runs/search/mnist --out trials.csv --figure trials.png
        every trial

examples/search.sbatch runs the first two. A trial trains on 90 % of the training samples. It is
judged after the last epoch by its accuracy on the other 10 %, with their labels as they are, noise
and all. It is drawn from its number and the name of each key alone: all methods try the same
learning rates and weight decays, and more trials leave the first ones as they are; but those of
mnist_mlp, published with its learning rate, draw only what is the method's own. Nothing of what a
search on test images has put into a params file is tried.

The trials are one draw of the many that might have been made. ``table`` draws from them again, with
replacement and the same numbers for every method, and says how often each trial would have been
chosen, and how often each method would have come out ahead.
"""

import argparse
import io
import itertools
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from utils.config import resolve
from utils.errors import UserError
from utils.escapes import printable
from utils.files import read_bytes
from utils.params_file import flatten, parse_overrides
from utils.run_state import FAILED, OTHER, read_config, read_failed, read_summary

# Of all trials: labels, split and initialisation are the same. It is not one of the reported seeds.
SEED = 101
RECORDING = "rsl_recording"  # the folder of the runs whose losses RSL selects by
COLUMNS = ["method", "noise", "trial", "state", "noisy_validation", "test_last", "seconds"]
COLUMNS += ["chosen", "overrides"]
RESAMPLES = 10_000


def log_uniform(low: float, high: float) -> Callable:
    """Draws uniformly on a logarithmic scale, to three digits."""
    return lambda generator, epochs: float(f"{low * (high / low) ** generator.random():.3g}")


def uniform(low: float, high: float) -> Callable:
    """Draws uniformly, to three digits."""
    return lambda generator, epochs: float(f"{generator.uniform(low, high):.3g}")


def choice(*values) -> Callable:
    """Draws one of the values."""
    return lambda generator, epochs: generator.choice(values)


def epoch(low: float, high: float) -> Callable:
    """Draws a whole epoch between these fractions of a run."""
    return lambda generator, epochs: generator.randint(round(low * epochs), round(high * epochs))


COMMON = {
    "optimizer.lr": log_uniform(0.001, 0.3),
    "optimizer.weight_decay": log_uniform(1e-5, 1e-2),
}
SMALL_LOSSES = {"loss.forget_rate_scale": uniform(0.5, 1.1), "loss.num_gradual": epoch(0.1, 0.6)}
# by the name of the params file; DiscrimLoss's are the ranges that its authors searched, widened
SPACES = {
    "plain": {},
    "discrimloss": {
        "loss.a": uniform(0.1, 0.5),
        "loss.p": uniform(0.2, 2),
        "loss.q": epoch(0.1, 0.9),
        "loss.suppression_epochs": choice(0, 1, 2, 3),
        "loss.sigma_lr": log_uniform(0.01, 10),
        "loss.sigma_decay": choice(0.0),
        "loss.log_sigma_low": choice(-3.0, 0.05, 0.1, 0.2, 0.4, 0.7),
    },
    "superloss": {"loss.tau": choice("null", "ema"), "loss.lam": log_uniform(0.1, 10)},
    "data_parameters": {
        "loss.level": choice("instance", "class", "both"),
        "loss.instance_lr": log_uniform(0.01, 10),
        "loss.class_lr": log_uniform(0.01, 10),
    },
    # its gradients do not shrink as the network fits, so that it diverges at the others' rates
    # where there is no BatchNorm
    "gradient_rescaling": {
        "optimizer.lr": log_uniform(1e-4, 0.03),
        "loss.beta": log_uniform(0.5, 16),
        "loss.lam": choice(0.0, 0.5, 1.0, 2.0),
    },
    "gce": {"loss.q": uniform(0.1, 1)},
    "truncated_gce": {
        "loss.q": uniform(0.1, 1),
        "loss.k": uniform(0.1, 0.6),
        "loss.prune_from": epoch(0.1, 0.7),
    },
    "rsl": {"dataset.selection.beta": uniform(0, 0.4)},
    "co_teaching": SMALL_LOSSES,
    "co_teaching_plus": SMALL_LOSSES | {"loss.warmup_epochs": epoch(0, 0.3)},
    "jocor": SMALL_LOSSES | {"loss.lam": uniform(0.1, 0.95)},
    "decoupling": {"loss.floor": uniform(0, 0.5)},
    "selfie": {
        "loss.warm_up": epoch(0.3, 0.6),
        "loss.q": choice(2, 3),
        "loss.eps": uniform(0, 0.5),
    },
    "joint_optimization": {
        "loss.alpha": log_uniform(0.1, 5),
        "loss.beta": log_uniform(0.1, 5),
        "loss.begin": epoch(0.2, 0.6),
    },
    "mentornet": {"loss.percentile": uniform(0.3, 0.9), "loss.decay": uniform(0, 0.95)},
    "forward_correction": {
        "loss.estimate_epochs": epoch(0.1, 0.5),
        "loss.percentile": uniform(80, 100),
    },
    "two_stage": {
        "loss.select_epochs": epoch(0.1, 0.5),
        "loss.share": uniform(0.1, 0.7),
        "loss.max_weight": log_uniform(1, 100),
    },
}

# of 200 epochs with Adam, in which a network begins to learn wrong labels by heart after the tenth
MNIST_MLP = {
    "discrimloss": SPACES["discrimloss"] | {"loss.q": epoch(0.025, 0.5)},
    "selfie": SPACES["selfie"] | {"loss.warm_up": epoch(0.025, 0.2), "loss.q": choice(3, 5)},
    "joint_optimization": SPACES["joint_optimization"] | {"loss.begin": epoch(0.05, 0.2)},
}


def space_of(dataset: str, method: str) -> dict[str, Callable]:
    """Key -> what draws its values. mnist_mlp is published with its learning rate, which stays.

    Raises:
        UserError: there is none for this method.
    """
    if method not in SPACES:
        raise UserError(f"there is no search space for {method!r}; choose from {', '.join(SPACES)}")
    if dataset == "mnist_mlp":
        return MNIST_MLP.get(method, SPACES[method])
    return COMMON | SPACES[method]


def draw(dataset: str, method: str, trial: int) -> list[str]:
    """The overrides of a trial."""
    space = space_of(dataset, method)
    epochs = resolve(f"params/{dataset}/{method}.yaml", [])["epochs"]
    return [f"{key}={space[key](random.Random(f'{key} {trial}'), epochs)}" for key in space]


def cell(dataset: str, method: str, trial: int, directory: Path, common: list[str]) -> str:
    """A line of a sweep: the arguments of main.py, which writes a trial to ``directory``.

    Before a run of RSL is its recording run, at the same rates.
    """
    overrides = draw(dataset, method, trial)
    if method != "rsl":
        run = [f"params/{dataset}/{method}.yaml", *common, *overrides, f"run_dir={directory}"]
        return " ".join(run)
    recording = recording_of(directory)
    rates = [text for text in overrides if text.startswith("optimizer.")]
    record = [f"params/{dataset}/plain.yaml", *common, *rates]
    # a report on the whole folder is to tell it from cross-entropy at the rates chosen for that
    record += ["record_losses=true", f"label={RECORDING}", f"run_dir={recording}"]
    select = [f"params/{dataset}/rsl.yaml", *common, *overrides]
    select += ["dataset.selection.noise_rate=estimate"]
    select += [f"dataset.selection.history={recording}/losses.npy", f"run_dir={directory}"]
    return f"{' '.join(record)} && {' '.join(select)}"


def recording_of(directory: Path) -> Path:
    """Where the losses are recorded for a run of RSL in <folder>/rsl/<noise>/<name>."""
    return directory.parents[2] / RECORDING / directory.parent.name / directory.name


def trial_state(directory: Path) -> str:
    """What has become of a trial: "finished"; "diverged", the worst; "" if it is to be run."""
    if read_summary(directory).get("finished"):
        return "finished"
    reasons = [read_failed(path) for path in (directory, recording_of(directory))]
    diverged = any("not finite" in reason for reason in reasons)
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


def resample(trials: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Method -> the trial chosen in each of RESAMPLES further searches, a row each.

    A search draws as many trials as there are, with replacement, from those that every method has;
    it draws the same numbers for all methods, which share learning rates and weight decays. The
    columns are ``trial`` and ``test_last``. If all drawn trials of a method diverged, both are NaN.

    Args:
        trials: rows of ``trials_table`` under one noise.
    """
    noisy = trials.pivot(index="trial", columns="method", values="noisy_validation")
    tested = trials.pivot(index="trial", columns="method", values="test_last")
    common = trials.groupby("trial").method.nunique() == trials.method.nunique()
    numbers = np.flatnonzero(common.reindex(noisy.index))
    if not len(numbers):
        return {}
    drawn = np.random.default_rng(0).choice(numbers, (RESAMPLES, len(numbers)))
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

    The difference is that of the accuracies, after the last epoch, of the trials that are chosen.

    Args:
        searches: what ``resample`` makes of the trials under each noise.
    """
    lines = []
    for noise, trials in table.groupby("noise"):
        chosen = searches[noise]
        best = trials[trials.chosen].set_index("method").test_last
        order = [name for name in best.sort_values(ascending=False).index if name in chosen]
        for better, worse in itertools.combinations(order, 2):
            difference = (chosen[better].test_last - chosen[worse].test_last).dropna()
            if difference.empty:
                continue
            low, high = difference.quantile([0.05, 0.95])
            lines.append(
                f"{noise}: {better} - {worse}: {best[better] - best[worse]:+.2f} with these trials,"
                f" [{low:+.2f}, {high:+.2f}] in 90 % of {RESAMPLES:,} resamples, "
                f"ahead in {100 * (difference > 0).mean():.0f} %"
            )
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
    if state == "finished" and not _is_of(directory, overrides):
        row["state"] = state = OTHER
    if state == "finished":
        last = read_csv(directory / "metrics.csv").iloc[-1]
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


def cells_of_stage(
    stage: str,
    dataset: str,
    kind: str,
    fractions: list[str],
    methods: list[str],
    trials: int,
    seeds: list[int] = (),
    under: str | None = None,
    searched: Path | None = None,
    runs: Path = Path("runs"),
) -> list[str]:
    """The lines of a sweep of one stage, "trials" or "chosen".

    Args:
        under: the folder of the trials to choose from, if they were of another noise.
        searched: where the trials are, if not in <runs>/search: a folder, or a file of ``table``.
        runs: the folder of search/ and chosen/.

    Raises:
        UserError: the methods do not share one protocol; or, of "chosen", a trial is not over.
    """
    check_protocols(dataset, methods)
    own, repeated = (runs / name / dataset for name in ("search", "chosen"))
    source = searched or own
    if stage == "chosen":
        table = trials_to_choose_from(source, dataset, methods)
    lines = []
    for fraction in fractions:
        noise = [f"noise.kind={kind}", f"noise.fraction={fraction}", "noise.seed=null"]
        noise.append("validation.clean=false")
        folder = f"{kind.replace(':', '-')}-{fraction}"
        if stage == "trials":
            common = [*noise, f"seed={SEED}", "validation.fraction=0.1"]
            lines += [
                cell(dataset, method, trial, own / method / folder / f"trial{trial}", common)
                for trial in range(trials)
                for method in methods
            ]
            continue
        best = {
            method: best_trial(table, source, method, under or folder, trials) for method in methods
        }
        folder += f"-of-{under}" if under else ""
        for seed in seeds:
            common = [*noise, f"seed={seed}", "validation.fraction=0"]
            for method in methods:
                directory = repeated / method / folder / f"seed{seed}"
                lines.append(cell(dataset, method, best[method], directory, common))
    return lines


def check_protocols(dataset: str, methods: list[str]):
    """Raises UserError if the methods differ in what all must share to be compared."""
    protocols = {}
    for method in methods:
        config = resolve(f"params/{dataset}/{method}.yaml", [])
        protocols[method] = {
            key: config[key] for key in ("model", "epochs", "batch_size", "schedule")
        }
    different = [method for method in methods if protocols[method] != protocols[methods[0]]]
    if different:
        raise UserError(
            f"{', '.join(different)} of params/{dataset} differ from {methods[0]} in model, "
            f"epochs, batch_size or schedule: there is nothing to compare"
        )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for stage in ("trials", "chosen"):
        command = commands.add_parser(stage)
        command.add_argument("dataset")
        command.add_argument("kind", help="of noise")
        command.add_argument("fractions", type=str.split)
        command.add_argument("methods", type=str.split)
        command.add_argument("trials", type=int)
        command.add_argument(
            "--runs", type=Path, default=Path("runs"), help="the folder of search/ and chosen/"
        )
        if stage == "chosen":
            command.add_argument("seeds", type=lambda text: [int(seed) for seed in text.split()])
            command.add_argument("--under", metavar="NOISE", help="of the search: permute-0.4")
            command.add_argument(
                "--searched", type=Path, metavar="FILE", help="which table --out wrote"
            )
    command = commands.add_parser("table")
    command.add_argument(
        "root", type=Path, help="runs/search/<dataset>, or a file that --out wrote"
    )
    command.add_argument("--first", type=int, metavar="N", help="of each method N trials alone")
    command.add_argument("--out", type=Path, metavar="FILE")
    command.add_argument("--figure", type=Path, metavar="FILE.png")
    options = vars(parser.parse_args(arguments))
    try:
        if options["command"] == "table":
            write_table(options["root"], options["out"], options["figure"], options["first"])
        else:
            print("\n".join(cells_of_stage(options.pop("command"), **options)))
    except (UserError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    return 0


def write_table(root: Path, out: Path | None, figure: Path | None, first: int | None):
    table = read_trials(root)
    if first is not None:
        table = with_chosen(table[table.trial < first].reset_index(drop=True))
    searches = {noise: resample(trials) for noise, trials in table.groupby("noise")}
    table = with_shares(table, searches)
    if out:
        table.to_csv(out, index=False, float_format="%.6g")
    if figure:
        from utils.sweep.figure import draw_trials  # matplotlib takes its time

        draw_trials(table, figure)
    print(printable(table.to_string(index=False)))
    print(printable(describe_resamples(table, searches)))
