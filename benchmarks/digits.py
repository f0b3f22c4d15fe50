"""Every method on digits at 40 % noise over several seeds: test accuracy under each epoch rule, and what it finds.

    python benchmarks/digits.py --seeds 5 --out results/digits/methods.csv

Two lines are controls of Plain. DiscrimLoss scales its gradients by about 0.1 / sigma, which weight decay does not know:
"Plain, lr 0.01, decay 5e-3" is Plain with the learning rate and decay that this amounts to. "Plain on the true labels"
is what there is to reach.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
METHODS = {"Plain": ["plain"], "DiscrimLoss": ["discrimloss"], "SuperLoss": ["superloss"],
           "Data Parameters": ["data_parameters"], "Gradient Rescaling": ["gradient_rescaling"], "GCE": ["gce"],
           "Plain, lr 0.01, decay 5e-3": ["plain", "optimizer.lr=0.01", "optimizer.weight_decay=5e-3"],
           "Plain on the true labels": ["plain", "noise.kind=none"]}


def run(method: str, overrides: list[str], seed: int, directory: Path, options: list[str]) -> dict:
    """The summary of one run, of a process of its own."""
    command = [sys.executable, "main.py", f"params/digits/{method}.yaml", f"seed={seed}", f"run_dir={directory}"]
    subprocess.run([*command, *overrides, *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((directory / "summary.json").read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/benchmark-digits")
    parser.add_argument("--out", type=Path, default=ROOT / "results/digits/methods.csv")
    parser.add_argument("options", nargs="*", help="overrides for every run, e.g. threads=1 noise.fraction=0.2")
    arguments = parser.parse_args()
    rows = []
    for name, (method, *overrides) in METHODS.items():
        for seed in range(1, arguments.seeds + 1):
            directory = arguments.runs / name.replace(" ", "-").replace(",", "") / f"seed{seed}"
            summary = run(method, overrides, seed, directory, arguments.options)
            test, found = summary["test"], summary["detection"]
            rows.append({"method": name, "seed": seed, "realised": summary["noise"]["realised"], "last": test["last"],
                         "mean_last_5": test["mean_last_5"], "best": test["best"], "auroc": found["auroc"],
                         "hard_vs_incorrect_auroc": found["hard_vs_incorrect_auroc"],
                         "memorised_fraction": found["memorised_fraction"]})
        table = pd.DataFrame(rows)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        table.round(5).to_csv(arguments.out, index=False)
        part = table[table.method == name].drop(columns=["method", "seed"]).agg(["mean", "std"])
        print(f"{name} (n = {arguments.seeds})\n{part.round(4).to_string()}\n", flush=True)
