"""MNIST, LeNet, 40 % `permute`, seed 1: our runs beside those of the reference's own code on the same data.

    python benchmarks/mnist.py data_root=<folder with MNIST> --out results/mnist/seed1.csv

The reference numbers were measured with the authors' code (github.com/tangminji/DiscrimLoss, commit dbee288) and the same
hyper-parameters, one run each; its random numbers are others, so only nearness can be asked for.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
REFERENCE = {"plain": (97.86, 97.81), "superloss": (98.46, 97.96), "discrimloss": (98.55, 98.30)}  # best, last

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/benchmark-mnist")
    parser.add_argument("--out", type=Path, default=ROOT / "results/mnist/seed1.csv")
    parser.add_argument("options", nargs="*", help="overrides for every run, e.g. data_root=/data threads=2")
    arguments = parser.parse_intermixed_args()
    rows, epochs = [], []
    for method, (best, last) in REFERENCE.items():
        for seed in arguments.seeds:
            directory = arguments.runs / method / f"seed{seed}"
            command = [sys.executable, "main.py", f"params/mnist/{method}.yaml", f"seed={seed}", f"run_dir={directory}"]
            subprocess.run([*command, *arguments.options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            summary = json.loads((directory / "summary.json").read_text())
            test, found = summary["test"], summary["detection"]
            rows.append({"method": method, "seed": seed, "best": test["best"], "reference best": best, "last": test["last"],
                         "reference last": last, "mean_last_5": test["mean_last_5"], "auroc": found["auroc"],
                         "hard_vs_incorrect": found["hard_vs_incorrect_auroc"], "memorised": found["memorised_fraction"]})
            epochs.append(pd.read_csv(directory / "metrics.csv").drop(columns=["seconds", "images_per_second"])
                          .assign(method=method, seed=seed))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(epochs).to_csv(arguments.out, index=False)  # a line per run and epoch
    print(pd.DataFrame(rows).round(4).to_string(index=False))
