"""Are the labels that suspects.csv lists first wrong? Digits as image files, with planted errors.

    python -m benchmarks.suspects --seeds 5 threads=1

A folder of your own is read in the same way. Precision at N: of the first N suspects, how many are
among the N planted errors; of the suspects that were trained on, as none were planted in test/.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from tests.fixtures import SUSPECTS_OPTIONS, write_digits

ROOT = Path(__file__).parents[1]


def precision(method: str, seed: int, fraction: float, options: list[str]) -> dict:
    """Train on digits of which this fraction is planted under another class; a row of the table."""
    with tempfile.TemporaryDirectory() as directory:
        planted = write_digits(Path(directory, "images"), fraction, seed)
        command = [
            sys.executable,
            "main.py",
            f"params/folder/{method}.yaml",
            f"dataset.root={directory}/images",
            f"run_dir={directory}/run",
            f"seed={seed}",
            *SUSPECTS_OPTIONS,
            *options,
        ]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        suspects = pd.read_csv(Path(directory, "run/suspects.csv"))
        first = suspects.path[suspects.part == "train"][: len(planted)]
    return {
        "method": method,
        "seed": seed,
        "planted": len(planted),
        "precision at 50": first[:50].isin(planted).mean(),
        "precision at planted": first.isin(planted).mean(),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--methods", nargs="+", default=["discrimloss", "plain"])
    parser.add_argument("--out", type=Path, default=ROOT / "results/digits/suspects.csv")
    parser.add_argument(
        "options", nargs="*", help="overrides for every run, e.g. threads=1 epochs=10"
    )
    arguments = parser.parse_intermixed_args()
    rows = []
    for seed in range(1, arguments.seeds + 1):
        for method in arguments.methods:
            rows.append(precision(method, seed, arguments.fraction, arguments.options))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.round(5).to_csv(arguments.out, index=False)
    columns = ["precision at 50", "precision at planted"]
    print(table.groupby("method")[columns].agg(["mean", "std"]).round(4).to_string())


if __name__ == "__main__":
    main()
