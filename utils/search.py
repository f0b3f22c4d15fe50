"""Hyper-parameters chosen without a look at the test set: as many random trials for each method, judged on noisy labels.

    python -m utils.search trials mnist "plain gce" 0.4 8              the cells of a sweep: 8 trials of each method
    python -m utils.search chosen mnist "plain gce" 0.4 8 "11 12"      the best of each, on all training samples, seeds 11, 12
    python -m utils.search table runs/search/mnist --out trials.csv    every trial

examples/search.sbatch runs the first two. A trial trains on 90 % of the training samples, and is judged by its accuracy on the
other 10 %, with their labels as they are, noise and all, after the last epoch. Each is drawn from (method, trial) alone, so
that more trials leave the first ones as they are; nothing of what a search on test images has put into a params file is tried.
"""

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from utils.config import resolve
from utils.sweep import FAILED, summary

SEED = 101  # of all trials: labels, split and initialisation are the same; not one of the reported seeds
HELD_OUT = "validation.fraction=0.1"


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
SPACES = {  # by the name of the params file; DiscrimLoss's are the ranges that its authors searched, widened
    "plain": {},
    "discrimloss": {"loss.a": uniform(0.1, 0.5), "loss.p": uniform(0.2, 2), "loss.q": epoch(0.1, 0.9),
                    "loss.suppression_epochs": choice(0, 1, 2, 3), "loss.sigma_lr": log(0.01, 10),
                    "loss.sigma_decay": choice(0.0), "loss.log_sigma_low": choice(-3.0, 0.05, 0.1, 0.2, 0.4, 0.7)},
    "superloss": {"loss.tau": choice("null", "ema"), "loss.lam": log(0.1, 10)},
    "data_parameters": {"loss.level": choice("instance", "class", "both"), "loss.instance_lr": log(0.01, 10),
                        "loss.class_lr": log(0.01, 10)},
    # its gradients do not shrink as the network fits, so that it diverges at the others' rates where there is no BatchNorm
    "gradient_rescaling": {"optimizer.lr": log(1e-4, 0.03), "loss.beta": log(0.5, 16), "loss.lam": choice(0.0, 0.5, 1.0, 2.0)},
    "gce": {"loss.q": uniform(0.1, 1)},
    "rsl": {"dataset.selection.beta": uniform(0, 0.4)},
}


def draw(dataset: str, method: str, fraction: str, trial: int) -> list[str]:
    """The overrides of a trial."""
    if method not in SPACES:
        raise ValueError(f"there is no search space for {method!r}; choose from {', '.join(SPACES)}")
    epochs = resolve(f"params/{dataset}/{method}.yaml", [f"noise.fraction={fraction}"])["epochs"]
    generator = random.Random(f"{method} {trial}")
    return [f"{key}={draws(generator, epochs)}" for key, draws in (COMMON | SPACES[method]).items()]


def cell(dataset: str, method: str, fraction: str, trial: int, seed: int, directory: Path, held_out: list[str]) -> str:
    """A line of a sweep: the arguments of main.py; of RSL, those of the recording run before it, at the same rates."""
    overrides = draw(dataset, method, fraction, trial)
    common = [f"noise.fraction={fraction}", f"seed={seed}", *held_out]
    if method != "rsl":
        return " ".join([f"params/{dataset}/{method}.yaml", *common, *overrides, f"run_dir={directory}"])
    record = directory.parents[2] / "rsl_recording" / directory.relative_to(directory.parents[1])
    rates = [text for text in overrides if text.startswith("optimizer.")]
    return (f"params/{dataset}/plain.yaml {' '.join([*common, *rates])} record_losses=true run_dir={record} && "
            f"params/{dataset}/rsl.yaml {' '.join([*common, *overrides])} dataset.selection.noise_rate=estimate "
            f"dataset.selection.history={record}/losses.npy run_dir={directory}")


def table(root: Path) -> pd.DataFrame:
    """A row for each trial in a folder that is over, by the last epoch; one that failed, e.g. by diverging, has no accuracies.

    Raises ValueError where there is none.
    """
    rows = []
    for directory in root.glob("*/*/trial*"):
        method, noise, trial = directory.parts[-3:]
        if method == "rsl_recording" or not (summary(directory).get("finished") or (directory / FAILED).exists()):
            continue
        number, fraction = int(trial.removeprefix("trial")), noise.rpartition("-")[2]
        row = {"method": method, "fraction": fraction, "trial": number}
        if summary(directory).get("finished"):
            last = pd.read_csv(directory / "metrics.csv").iloc[-1]
            row |= {"noisy_validation": last["validation_metric"], "test_last": last["test_metric"]}
        rows.append(row | {"overrides": " ".join(draw(root.name, method, fraction, number))})
    if not rows:
        raise ValueError(f"there is no finished trial in {root}")
    columns = ["method", "fraction", "trial", "noisy_validation", "test_last", "overrides"]
    return pd.DataFrame(rows).reindex(columns=columns).sort_values(["fraction", "method", "trial"], ignore_index=True)


def best(root: Path, method: str, fraction: str, trials: int) -> int:
    """The trial with the highest accuracy on the held-out labels; raises ValueError where one is not over."""
    rows = table(root)
    rows = rows[(rows.method == method) & (rows.fraction == fraction) & (rows.trial < trials)]
    if len(rows) < trials or rows.noisy_validation.isna().all():
        raise ValueError(f"{len(rows)} of {trials} trials of {method} at {fraction} are over, "
                         f"{rows.noisy_validation.notna().sum()} of them finished: run the others first")
    return int(rows.loc[rows.noisy_validation.idxmax(), "trial"])


def cells(stage: str, dataset: str, methods: list[str], fractions: list[str], trials: int, seeds: list[int]) -> list[str]:
    """The lines of a sweep of one stage, "trials" or "chosen"."""
    lines = []
    for fraction in fractions:
        for method in methods:
            noise = f"{resolve(f'params/{dataset}/{method}.yaml', [])['noise']['kind']}-{fraction}"
            if stage == "trials":
                runs, numbers, held_out = Path("runs/search", dataset, method, noise), range(trials), [HELD_OUT]
                lines += [cell(dataset, method, fraction, trial, SEED, runs / f"trial{trial}", held_out) for trial in numbers]
            else:
                runs = Path("runs/chosen", dataset, method, noise)
                trial = best(Path("runs/search", dataset), method, fraction, trials)
                lines += [cell(dataset, method, fraction, trial, seed, runs / f"seed{seed}", []) for seed in seeds]
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for stage in ("trials", "chosen"):
        made = commands.add_parser(stage)
        made.add_argument("dataset")
        made.add_argument("methods", type=str.split)
        made.add_argument("fractions", type=str.split)
        made.add_argument("number", type=int)
        if stage == "chosen":
            made.add_argument("seeds", type=lambda text: [int(seed) for seed in text.split()])
    made = commands.add_parser("table")
    made.add_argument("root", type=Path)
    made.add_argument("--out", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "table":
            found = table(options.root)
            print(found.to_string(index=False))
            if options.out:
                found.to_csv(options.out, index=False)
        else:
            print("\n".join(cells(options.command, options.dataset, options.methods, options.fractions, options.number,
                                  getattr(options, "seeds", []))))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
