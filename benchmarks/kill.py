"""Stop a run at random moments, in every way, and resume it: does the interruption leave no trace?

    python -m benchmarks.kill --trials 30 --jobs 2

writes results/digits/kill.csv, a line for each trial: the signal ("KILL while saving": as soon as
the temporary file of a checkpoint is there), when after the start of training it was sent, the exit
code, whether half a checkpoint was left, what the resumed run went on from, and whether metrics.csv
(times aside), samples.npz and every tensor of the last checkpoint are those of an undisturbed run
to the last bit.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).parents[1]
RUN = ["params/digits/discrimloss.yaml", "epochs=20", "threads=1", "device=cpu"]
WAYS = ("USR1", "TERM", "INT", "KILL", "KILL while saving")


def start(directory: Path) -> subprocess.Popen:
    """A run, with its training begun."""
    run = subprocess.Popen(
        [sys.executable, "main.py", *RUN, f"run_dir={directory}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while run.poll() is None and not (directory / "noise.npz").exists():
        time.sleep(0.01)
    return run


def content(directory: Path) -> dict:
    """All numbers that a finished run leaves, except for wall-clock times."""
    table = pd.read_csv(directory / "metrics.csv").drop(columns=["seconds", "images_per_second"])
    with np.load(directory / "samples.npz") as samples:
        numbers = {f"samples.{key}": samples[key] for key in samples.files}
    numbers |= {f"metrics.{key}": table[key].to_numpy() for key in table}

    def collect(state, name):
        if isinstance(state, torch.Tensor):
            numbers[name] = state.numpy()
        elif isinstance(state, dict):
            for key, value in state.items():
                collect(value, f"{name}.{key}")

    collect(torch.load(directory / "checkpoint.pt", weights_only=True), "checkpoint")
    return numbers


def is_same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(first[key], second[key], equal_nan=first[key].dtype.kind == "f")
        for key in first
    )


def trial(number: int, way: str, moment: float, directory: Path, undisturbed: dict) -> dict:
    """One row of the table; ``moment`` in seconds."""
    run = start(directory)
    time.sleep(moment)
    temporary = directory / ".checkpoint.pt.tmp"
    while way == "KILL while saving" and run.poll() is None and not temporary.exists():
        pass
    run.send_signal(getattr(signal, f"SIG{way.split()[0]}"))
    code, half_written = run.wait(), temporary.exists()
    saved = {"epoch": None, "step": None}
    if (directory / "checkpoint.pt").exists():
        saved = torch.load(directory / "checkpoint.pt", weights_only=True)
    resumed_code = start(directory).wait()
    row = {
        "trial": number,
        "signal": way,
        "after_seconds": round(moment, 3),
        "exit_code": code,
        "half_written": half_written,
        "epoch": saved["epoch"],
        "step": saved["step"],
        "exit_code_of_the_resumed_run": resumed_code,
        "identical": resumed_code == 0 and is_same(content(directory), undisturbed),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1, help="of signals and moments")
    parser.add_argument("--out", type=Path, default=ROOT / "results/digits/kill.csv")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        directory = Path(folder, "undisturbed")
        run, began = start(directory), time.time()
        if run.wait():
            raise SystemExit("the undisturbed run has failed")
        training_seconds = (directory / "checkpoint.pt").stat().st_mtime - began
        undisturbed = content(directory)

        def draw_trial(number):
            way, moment = generator.choice(WAYS), generator.uniform(0, training_seconds)
            return number, way, moment, Path(folder, str(number)), undisturbed

        drawn = [draw_trial(number) for number in range(arguments.trials)]
        table = pd.DataFrame(pool.map(lambda arguments: trial(*arguments), drawn))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False)
    by_signal = table.groupby("signal")
    print(by_signal.agg(trials=("trial", "size"), identical=("identical", "sum")).to_string())
    print(f"{table.identical.sum()} of {len(table)} identical")
