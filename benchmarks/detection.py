"""Which score finds most of the wrong labels? Every score of utils.scores, and cleanlab's.

    python -m benchmarks.detection digits mnist_permute mnist_pair --data-root /data threads=1
    python -m benchmarks.detection cifar10n texts --data-root /data --encoder <folder> threads=1

For each case, method and seed all folds are trained and joined, so that each sample is judged by
networks that were not trained on it, and its scores of training are the means over those that were.
Average precision, precision at N (of the first N, how many of the N wrong labels), and AUROC; all
rankings of one seed are of the same runs. What is in the table already is not made again. cleanlab
(pip install cleanlab) gets the same out-of-sample probabilities. ``figures.csv`` has all figures,
of rules that select labels too: how many, their precision, and the part of the wrong ones that is
among them; beside it is a table a figure, with a column a case and method.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

from utils import scores
from utils.folds import join, read_folds

ROOT = Path(__file__).parents[1]
CASES = {  # folder of params, folds, options
    "digits": ("digits", 5, ["noise.kind=symmetric", "noise.fraction=0.2"]),
    "mnist_permute": ("mnist", 2, ["noise.kind=permute", "noise.fraction=0.2"]),
    "mnist_pair": ("mnist", 2, ["noise.kind=pair", "noise.fraction=0.2"]),
    "cifar10n": ("cifar10_features", 2, ["noise.kind=human:worse", "model.hidden=[256]"]),
    "texts": (
        "text",
        3,
        [
            *("dataset.file=noisywikihow_val.csv.gz", "dataset.text_column=step"),
            *("dataset.label_column=cat", "dataset.max_length=24", "dataset.test_fraction=0"),
            *("noise.kind=symmetric", "noise.fraction=0.2"),
        ],
    ),
}
METHODS = {"text": ("plain_frozen", "discrimloss_frozen")}  # else plain, discrimloss


def rankings(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rankings [N] by name, larger is more suspicious, of what ``utils.folds.join`` returns."""
    found = {name: scores.suspicion(name, table) for name in scores.NAMES if name in table}
    found["method's own"] = table["score"]
    found["loss, out of sample"] = table["loss"]
    chances, given = table["probabilities"].astype(float), table["given"]
    from cleanlab.rank import get_label_quality_scores

    for method in ("confidence_weighted_entropy", "self_confidence", "normalized_margin"):
        adjust = method != "confidence_weighted_entropy"  # which it does not allow there
        quality = get_label_quality_scores(given, chances, method=method, adjust_pred_probs=adjust)
        found[f"cleanlab {method}{', adjusted' * adjust}"] = -quality
    return found


def selections(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Masks [N] of the labels that a rule selects, by name."""
    from cleanlab.filter import find_label_issues

    chances, given = table["probabilities"].astype(float), table["given"]
    found = {"confident_learning": table["confident_learning"] > 0}
    for rule in ("prune_by_noise_rate", "both", "predicted_neq_given"):
        found[f"cleanlab {rule}"] = find_label_issues(given, chances, filter_by=rule, n_jobs=1)
    return found


def measure(table: dict[str, np.ndarray]) -> list[dict]:
    """A row per ranking and selection."""
    wrong, rows = table["given"] != table["true"], []
    for name, ranking in rankings(table).items():
        order = np.argsort(-ranking, kind="stable")
        row = {"score": name, "average_precision": average_precision_score(wrong, ranking)}
        row["precision_at_n"] = wrong[order[: wrong.sum()]].mean()
        row["auroc"] = roc_auc_score(wrong, ranking)
        rows.append(row)
    for name, selected in selections(table).items():
        row = {"score": f"{name} (selects)", "selected": int(selected.sum())}
        row["precision"] = wrong[selected].mean() if selected.any() else np.nan
        row["recall"] = selected[wrong].mean()
        rows.append(row)
    return rows


def run(case: str, method: str, seed: int, options: list[str]) -> list[dict]:
    """Train all folds, and measure."""
    folder, folds, own = CASES[case]
    directory = Path(tempfile.mkdtemp(prefix="detection"))
    for fold in range(folds):
        command = [sys.executable, "main.py", f"params/{folder}/{method}.yaml", f"seed={seed}"]
        command += [f"validation.folds={folds}", f"validation.fold={fold}"]
        command += [f"run_dir={directory}/fold{fold}", *own, *options]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    table = join(read_folds(directory), "method")
    shutil.rmtree(directory)
    return measure(table)


def write_tables(rows: pd.DataFrame, folder: Path):
    """A table a figure: a row a score and seed, a column a case and method."""
    columns = rows.case + ", " + rows.method
    for figure in ("average_precision", "precision_at_n"):
        known = rows.assign(column=columns).dropna(subset=figure)
        table = known.pivot(index=["score", "seed"], columns="column", values=figure)
        table = table[list(dict.fromkeys(known.column))]
        table.reindex(known.score.unique(), level="score").to_csv(folder / f"{figure}.csv")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="+", help=f"of {', '.join(CASES)}; and overrides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--encoder", help="folder or name of the encoder of texts")
    parser.add_argument("--out", type=Path, default=ROOT / "results/detection/figures.csv")
    arguments = parser.parse_intermixed_args()
    cases = [name for name in arguments.cases if "=" not in name]
    overrides = [name for name in arguments.cases if "=" in name]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    known = pd.read_csv(arguments.out) if arguments.out.exists() else pd.DataFrame()
    for seed in arguments.seeds:
        for case in cases:
            for method in METHODS.get(CASES[case][0], ("plain", "discrimloss")):
                cell = {"case": case, "method": method.removesuffix("_frozen"), "seed": seed}
                if len(known) and (known[list(cell)] == cell).all(axis=1).any():
                    continue
                options = [f"data_root={arguments.data_root}", *overrides]
                options += [f"dataset.encoder={arguments.encoder}"] if case == "texts" else []
                rows = pd.DataFrame([cell | row for row in run(case, method, seed, options)])
                known = pd.concat([known, rows]).round(5)
                known.to_csv(arguments.out, index=False)
                write_tables(known, arguments.out.parent)
                best = rows.sort_values("average_precision", ascending=False).head(3)
                print(cell, best[["score", "average_precision"]].to_dict("list"), flush=True)


if __name__ == "__main__":
    main()
