"""Methods x noise fractions x seeds on one dataset: the test metric under each epoch rule, and what each method finds.

    python -m benchmarks.methods digitsum --methods plain superloss discrimloss --fractions 0 0.4 --jobs 2 threads=1

writes results/<dataset>/methods.csv, a line a run. Finished runs in --runs are not run again: remove them after a change.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]


def run(dataset: str, method: str, fraction: float, seed: int, directory: Path, options: list[str]) -> dict:
    """One row of the table, from a run of main.py in a process of its own."""
    command = [sys.executable, "main.py", f"params/{dataset}/{method}.yaml", f"noise.fraction={fraction}", f"seed={seed}",
               f"run_dir={directory}", *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    summary = json.loads((directory / "summary.json").read_text())
    others = {f"{key}_{rule}": values[rule] for key, values in summary["at_the_same_epochs"].items()
              for rule in ("last", "best", "validated")}
    row = {"method": method, "fraction": fraction, "seed": seed, "realised": summary["noise"]["realised"], **summary["test"],
           **others, **summary["detection"], "seconds": summary["seconds"]}
    print(f"{method} {fraction} seed {seed}: {summary['test']}", flush=True)
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a folder of params/")
    parser.add_argument("--methods", nargs="+", required=True, help="its files, without .yaml")
    parser.add_argument("--fractions", type=float, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--jobs", type=int, default=1, help="how many runs at a time")
    parser.add_argument("--runs", type=Path, help="default: runs/benchmark-<dataset>")
    parser.add_argument("--out", type=Path, help="default: results/<dataset>/methods.csv")
    parser.add_argument("options", nargs="*", help="overrides for every run, e.g. threads=1 data_root=/data")
    arguments = parser.parse_intermixed_args()
    runs = arguments.runs or ROOT / f"runs/benchmark-{arguments.dataset}"
    out = arguments.out or ROOT / f"results/{arguments.dataset}/methods.csv"
    cells = list(product(arguments.fractions, arguments.methods, arguments.seeds))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = [pool.submit(run, arguments.dataset, method, fraction, seed, runs / f"{method}-{fraction:g}-seed{seed}",
                               arguments.options) for fraction, method, seed in cells]
        try:
            table = pd.DataFrame([one.result() for one in waiting])
        finally:
            pool.shutdown(cancel_futures=True)  # where one has failed
    out.parent.mkdir(parents=True, exist_ok=True)
    table.dropna(axis="columns", how="all").round(5).to_csv(out, index=False)
    shown = table.drop(columns="seed").groupby(["fraction", "method"], sort=False).agg(["mean", "std"])
    print(shown[["last", "best", "validated"]].round(2).to_string())
