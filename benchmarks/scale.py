"""Time and memory of whole runs, by the number of training samples and of classes.

    python -m benchmarks.scale --out results/speed/scale.csv

Random images of 64 pixels, one hidden layer of 16, batches of 512, 40 % symmetric noise, two
epochs through main.py: with its records, evaluation, checkpoints, list of suspects and pictures.
Each run has a process of its own. Seconds are of CPU time, on one thread; memory is the most that
the process held.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).parents[1]
SIZES = [(10_000, 10), (1_000_000, 10), (5_000_000, 10), (10_000, 10_000), (1_000_000, 10_000)]
METHODS = ["plain", "discrimloss"]
RUN = """
import sys, time
from benchmarks import throughput
import main
num_samples, num_classes, arguments = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
throughput.SHAPES["digits"] = 1, 8, num_classes
throughput.make_synthetic("digits", num_samples)
start = time.process_time()
assert main.main(arguments) == 0
seconds = time.process_time() - start
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak.split()[1]) / 1024, file=sys.stderr)
"""


def measure(method: str, num_samples: int, num_classes: int, epochs: int) -> dict:
    """A row: seconds, and MiB at most, of a whole run."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"run_dir={folder}/run", "model={name: mlp, hidden: [16]}", "schedule=null"]
        options += ["noise={kind: symmetric, fraction: 0.4}", "batch_size=512"]
        options += [f"epochs={epochs}", "threads=1", "device=cpu"]
        command = [sys.executable, "-c", RUN, str(num_samples), str(num_classes)]
        command += [f"params/digits/{method}.yaml", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        seconds, megabytes = map(float, done.stderr.split()[-2:])
        size = sum(path.stat().st_size for path in Path(folder, "run").rglob("*"))
    return {
        "method": method,
        "N": num_samples,
        "classes": num_classes,
        "epochs": epochs,
        "seconds": round(seconds, 1),
        "MiB": round(megabytes),
        "MiB on disk": round(size / 2**20, 1),
        "torch": torch.__version__,
    }


def with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """With what each further sample costs, relative to the smallest N with as many classes."""
    first = table.groupby(["method", "classes"])[["N", "seconds", "MiB", "MiB on disk"]]
    more = table[["N", "seconds", "MiB", "MiB on disk"]] - first.transform("first")
    return table.assign(
        **{
            "microseconds a sample": (1e6 * more.seconds / more.N / table.epochs).round(2),
            "bytes a sample": (2**20 * more.MiB / more.N).round(),
            "bytes a sample on disk": (2**20 * more["MiB on disk"] / more.N).round(),
        }
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=METHODS, help="params files of digits")
    parser.add_argument("--largest", type=int, default=5_000_000, help="N; default: 5,000,000")
    parser.add_argument("--out", type=Path, help="a CSV file")
    options = parser.parse_args()
    rows = []
    for method in options.methods:
        for num_samples, num_classes in SIZES:
            if num_samples <= options.largest:
                rows.append(measure(method, num_samples, num_classes, options.epochs))
                print(rows[-1], flush=True)
    table = with_ratios(pd.DataFrame(rows))
    print(table.to_string(index=False))
    if options.out:
        table.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
