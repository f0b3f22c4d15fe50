"""From a folder with wrong labels to a mended one, by the commands of docs: does it help?

    python -m benchmarks.mend --seeds 5 threads=1 data_root=/tmp/data

600 digits as image files, 30 of them under a wrong class. A network is trained, the first 60
suspects are looked at (by the truth, for want of a person), the decisions are applied, and a second
network is trained on the mended labels. Both are asked about 500 other digits, whose labels are
right. With --folds the suspects are those of so many folds, else of one run.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from datasets import digits
from tests.fixtures import write_digits

ROOT = Path(__file__).parents[1]
COUNT, PLANTED, LOOKED_AT = 600, 30, 60


def command(*arguments: str):
    """Run a command of the project; what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stdout


def accuracy(run: Path, photos: Path, output: Path) -> float:
    """Of a finished run on images in class folders, in percent."""
    command("-m", "utils.predict", run, photos, "--output", output)
    table = pd.read_csv(output, dtype=str)
    return float(100 * (table.path.str.split("/").str[0] == table.label).mean())


def mend(seed: int, params: str, folds: int, options: list[str], folder: Path) -> dict:
    """All steps once; a row of the table."""
    photos, run, mended = folder / "photos", folder / "run", folder / "mended"
    planted = set(write_digits(folder / "images", PLANTED / COUNT, seed, COUNT))
    truth = {str(n): str(int(label)) for n, label in enumerate(digits().train.targets)}
    (folder / "images/train").rename(photos)
    test = folder / "images/test"
    planted = {path.removeprefix("train/") for path in planted}
    common = [f"params/folder/{params}.yaml", f"dataset.root={photos}", f"seed={seed}", *options]
    if folds:
        for fold in range(folds):
            more = [f"validation.folds={folds}", f"validation.fold={fold}"]
            more += ["dataset.test_fraction=0", f"run_dir={run}/fold{fold}"]
            command("main.py", *common, *more)
        command("-m", "utils.folds", run)
        command("main.py", *common, f"run_dir={folder}/whole")
    else:
        command("main.py", *common, f"run_dir={run}")
    suspects = pd.read_csv(run / "suspects.csv", dtype=str)
    with open(folder / "decisions.csv", "w") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "given", "decision", "label", "time"])
        for row in suspects[:LOOKED_AT].itertuples():
            label = truth[Path(row.path).stem]
            decision = "keep" if label == row.given_label else "relabel"
            writer.writerow([row.path, row.given_label, decision, label * (decision != "keep"), ""])
    command("-m", "utils.review", run, "--apply", folder / "decisions.csv")
    fixed = pd.read_csv(run / "labels_fixed.csv", dtype=str)
    left = fixed.label != fixed.path.map(lambda path: truth[Path(path).stem])
    table = [f"params/csv/{params}.yaml", f"dataset.file={run}/labels_fixed.csv"]
    command(
        "main.py", *table, f"dataset.root={photos}", f"seed={seed}", *options, f"run_dir={mended}"
    )
    first = folder / "whole" if folds else run
    return {
        "judged": len(suspects),
        "precision_at_30": float(suspects.path[:PLANTED].isin(planted).mean()),
        "wrong_before": len(planted),
        "wrong_after": int(left.sum()),
        "accuracy_before": accuracy(first, test, folder / "before.csv"),
        "accuracy_after": accuracy(mended, test, folder / "after.csv"),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--params", nargs="+", default=["discrimloss", "small"])
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results/digits/mended.csv")
    parser.add_argument("options", nargs="*", help="overrides for every run, e.g. threads=1")
    arguments = parser.parse_intermixed_args()
    rows = pd.read_csv(arguments.out).to_dict("records") if arguments.out.exists() else []
    for seed in range(1, arguments.seeds + 1):
        for params in arguments.params:
            with tempfile.TemporaryDirectory() as folder:
                cell = {"params": params, "folds": arguments.folds, "seed": seed}
                if any(cell.items() <= row.items() for row in rows):
                    continue  # it is in the table already
                rows.append(cell | mend(**cell, options=arguments.options, folder=Path(folder)))
            print(rows[-1], flush=True)
            pd.DataFrame(rows).round(4).to_csv(arguments.out, index=False)
    table = pd.DataFrame(rows).groupby(["params", "folds"]).mean().drop(columns="seed")
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
