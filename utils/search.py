"""Hyper-parameters chosen without a look at the test set: as many random trials for each method,
judged on noisy labels.

    python -m utils.search trials mnist permute 0.4 "plain gce" 8            the cells of a sweep: 8 trials of each method
    python -m utils.search chosen mnist permute 0.4 "plain gce" 8 "11 12"    the best of each, on all training samples, 2 seeds
    python -m utils.search table runs/search/mnist --out trials.csv --figure trials.png        every trial

examples/search.sbatch runs the first two. A trial trains on 90 % of the training samples, and is
judged by its accuracy on the other 10 %, with their labels as they are, noise and all, after the
last epoch. It is drawn from its number and the name of each key alone: all methods try the same
learning rates and weight decays, and more trials leave the first ones as they are. Nothing of what
a search on test images has put into a params file is tried.
"""

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from utils.config import resolve
from utils.errors import UserError
from utils.run_state import FAILED, read_summary

# of all trials: labels, split and initialisation are the same; not one of the reported seeds
SEED = 101
RECORDING = "rsl_recording"  # of the runs whose losses RSL selects by


def log(low: float, high: float) -> Callable:
    """Draws uniformly on a logarithmic scale, to three digits."""
    return lambda generator, epochs: float(f"{low * (high / low) ** generator.random():.3g}")


def uniform(low: float, high: float) -> Callable:
    """Draws uniformly, to three digits."""
    return lambda generator, epochs: float(f"{generator.uniform(low, high):.3g}")


def choice(*values) -> Callable:
    """Draws one of them."""
    return lambda generator, epochs: generator.choice(values)


def epoch(low: float, high: float) -> Callable:
    """Draws a whole epoch between these parts of a run."""
    return lambda generator, epochs: generator.randint(round(low * epochs), round(high * epochs))


COMMON = {"optimizer.lr": log(0.001, 0.3), "optimizer.weight_decay": log(1e-5, 1e-2)}
# by the name of the params file; DiscrimLoss's are the ranges that its authors searched, widened
SPACES = {
    "plain": {},
    "discrimloss": {
        "loss.a": uniform(0.1, 0.5),
        "loss.p": uniform(0.2, 2),
        "loss.q": epoch(0.1, 0.9),
        "loss.suppression_epochs": choice(0, 1, 2, 3),
        "loss.sigma_lr": log(0.01, 10),
        "loss.sigma_decay": choice(0.0),
        "loss.log_sigma_low": choice(-3.0, 0.05, 0.1, 0.2, 0.4, 0.7),
    },
    "superloss": {"loss.tau": choice("null", "ema"), "loss.lam": log(0.1, 10)},
    "data_parameters": {
        "loss.level": choice("instance", "class", "both"),
        "loss.instance_lr": log(0.01, 10),
        "loss.class_lr": log(0.01, 10),
    },
    # its gradients do not shrink as the network fits, so that it diverges at the others' rates
    # where there is no BatchNorm
    "gradient_rescaling": {
        "optimizer.lr": log(1e-4, 0.03),
        "loss.beta": log(0.5, 16),
        "loss.lam": choice(0.0, 0.5, 1.0, 2.0),
    },
    "gce": {"loss.q": uniform(0.1, 1)},
    "rsl": {"dataset.selection.beta": uniform(0, 0.4)},
}


def draw(dataset: str, method: str, trial: int) -> list[str]:
    """The overrides of a trial."""
    if method not in SPACES:
        raise UserError(f"there is no search space for {method!r}; choose from {', '.join(SPACES)}")
    epochs = resolve(f"params/{dataset}/{method}.yaml", [])["epochs"]
    return [
        f"{key}={draws(random.Random(f'{key} {trial}'), epochs)}"
        for key, draws in (COMMON | SPACES[method]).items()
    ]


def cell(dataset: str, method: str, trial: int, directory: Path, common: list[str]) -> str:
    """A line of a sweep.

    The arguments of main.py; of RSL, those of the recording run before it, at the same rates.
    """
    overrides = draw(dataset, method, trial)
    if method != "rsl":
        return " ".join(
            [f"params/{dataset}/{method}.yaml", *common, *overrides, f"run_dir={directory}"]
        )
    recording = recording_of(directory)
    rates = [text for text in overrides if text.startswith("optimizer.")]
    return (
        f"params/{dataset}/plain.yaml {' '.join([*common, *rates])} record_losses=true run_dir={recording} && "
        f"params/{dataset}/rsl.yaml {' '.join([*common, *overrides])} dataset.selection.noise_rate=estimate "
        f"dataset.selection.history={recording}/losses.npy run_dir={directory}"
    )


def recording_of(directory: Path) -> Path:
    """Where the losses are recorded for the run of RSL that writes ``directory``,
    <folder>/rsl/<noise>/<name>.
    """
    return directory.parents[2] / RECORDING / directory.parent.name / directory.name


def state(directory: Path) -> str:
    """Of a trial.

    "finished", "diverged", which counts as the worst, or "" where it is still to be run.
    """
    if read_summary(directory).get("finished"):
        return "finished"
    said = [
        path / FAILED for path in (directory, recording_of(directory)) if (path / FAILED).exists()
    ]
    return "diverged" if any("not finite" in path.read_text() for path in said) else ""


def table(root: Path) -> pd.DataFrame:
    """A row for each trial in a folder that is over, by the last epoch; one that diverged has no
    accuracies.

    ``chosen``: the best of its method under its noise, of all trials in the folder, by the held-out
    labels; ``seconds``: of training, of both runs of RSL.

    Raises ValueError where there is none.
    """
    rows = []
    for found in {
        path.parent for name in ("summary.json", FAILED) for path in root.glob(f"*/*/trial*/{name}")
    }:
        directory = (
            root / "rsl" / found.relative_to(root / RECORDING)
            if RECORDING in found.parts
            else found
        )
        method, noise, trial = directory.parts[-3:]
        over = state(directory)
        if over:
            row = {
                "method": method,
                "noise": noise,
                "trial": int(trial.removeprefix("trial")),
                "state": over,
            }
            if over == "finished":
                last = pd.read_csv(directory / "metrics.csv").iloc[-1]
                runs = (directory, recording_of(directory)) if method == "rsl" else (directory,)
                row |= {
                    "noisy_validation": last["validation_metric"],
                    "test_last": last["test_metric"],
                    "seconds": sum(read_summary(run).get("seconds", float("nan")) for run in runs),
                }
            rows.append(row | {"overrides": " ".join(draw(root.name, method, row["trial"]))})
    if not rows:
        raise UserError(f"there is no finished trial in {root}")
    columns = [
        "method",
        "noise",
        "trial",
        "state",
        "noisy_validation",
        "test_last",
        "seconds",
        "chosen",
        "overrides",
    ]
    found = (
        pd.DataFrame(rows)
        .reindex(columns=columns)
        .drop_duplicates()
        .sort_values(["noise", "method", "trial"], ignore_index=True)
    )
    judged = found.dropna(subset="noisy_validation")
    found["chosen"] = found.index.isin(
        judged.groupby(["noise", "method"]).noisy_validation.idxmax()
    )
    return found


def best(root: Path, method: str, noise: str, trials: int) -> int:
    """The trial with the highest accuracy on the held-out labels.

    Raises ValueError where one is not over.
    """
    rows = table(root)
    rows = rows[(rows.method == method) & (rows.noise == noise) & (rows.trial < trials)]
    if len(rows) < trials or rows.noisy_validation.isna().all():
        raise UserError(
            f"{len(rows)} of {trials} trials of {method} under {noise} are over, "
            f"{(rows.state == 'diverged').sum()} of them diverged: run the others first, with --only missing and "
            f"--only failed"
        )
    return int(rows.loc[rows.noisy_validation.idxmax(), "trial"])


def cells(
    stage: str,
    dataset: str,
    kind: str,
    fractions: list[str],
    methods: list[str],
    trials: int,
    seeds: list[int] = (),
) -> list[str]:
    """The lines of a sweep of one stage, "trials" or "chosen".

    Raises ValueError where the methods do not share one protocol, or, of "chosen", a trial is not
    over.
    """
    protocols = {
        method: {key: config[key] for key in ("model", "epochs", "batch_size", "schedule")}
        for method, config in (
            (name, resolve(f"params/{dataset}/{name}.yaml", [])) for name in methods
        )
    }
    strange = [method for method in methods if protocols[method] != protocols[methods[0]]]
    if strange:
        raise UserError(
            f"{', '.join(strange)} of params/{dataset} differ from {methods[0]} in model, epochs, batch_size or "
            f"schedule: there is nothing to compare"
        )
    lines = []
    for fraction in fractions:
        noise = [
            f"noise.kind={kind}",
            f"noise.fraction={fraction}",
            "noise.seed=null",
            "validation.clean=false",
        ]
        folder = f"{kind}-{fraction}"
        searched, repeated = (Path("runs", name, dataset) for name in ("search", "chosen"))
        if stage == "trials":
            common = [*noise, f"seed={SEED}", "validation.fraction=0.1"]
            lines += [
                cell(dataset, method, trial, searched / method / folder / f"trial{trial}", common)
                for trial in range(trials)
                for method in methods
            ]
        else:
            chosen = {method: best(searched, method, folder, trials) for method in methods}
            lines += [
                cell(
                    dataset,
                    method,
                    chosen[method],
                    repeated / method / folder / f"seed{seed}",
                    [*noise, f"seed={seed}", "validation.fraction=0"],
                )
                for seed in seeds
                for method in methods
            ]
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for stage in ("trials", "chosen"):
        made = commands.add_parser(stage)
        made.add_argument("dataset")
        made.add_argument("kind", help="of noise")
        made.add_argument("fractions", type=str.split)
        made.add_argument("methods", type=str.split)
        made.add_argument("trials", type=int)
        if stage == "chosen":
            made.add_argument("seeds", type=lambda text: [int(seed) for seed in text.split()])
    made = commands.add_parser("table")
    made.add_argument("root", type=Path, help="runs/search/<dataset>, or a file that --out wrote")
    made.add_argument("--out", type=Path, metavar="FILE")
    made.add_argument("--figure", type=Path, metavar="FILE.png")
    options = vars(parser.parse_args())
    try:
        if options["command"] == "table":
            found = (
                pd.read_csv(options["root"])
                if options["root"].is_file()
                else table(options["root"])
            )
            print(found.to_string(index=False))
            if options["out"]:
                found.to_csv(options["out"], index=False, float_format="%.6g")
            if options["figure"]:
                from utils.report import figures  # matplotlib takes its time

                figures.save(figures.trials(found), options["figure"], ("png",))
        else:
            print("\n".join(cells(options.pop("command"), **options)))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
