"""The time of a whole run of the demo, against a script that trains the same model and no more.

    python -m benchmarks.demo --out results/speed/demo.csv

Both are processes of their own, timed from the start of Python to its end, and take turns. A run of
ours: configuration, noise, 60 epochs of DiscrimLoss, the test set after each, metrics.csv,
checkpoints, detection, tables and pictures at the end. The bare script: ``bare`` below, with
cross-entropy on the same digits and as many steps, but no evaluation.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EPOCHS, BATCH_SIZE, TRAINING = 60, 128, 1297


def bare(threads: int):
    """Nothing but the model, its optimiser and its data."""
    import torch
    from sklearn.datasets import load_digits

    import models

    torch.set_num_threads(threads)
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = ((images.float() / 16 - 0.3053) / 0.3758).view(-1, 1, 8, 8)
    model = models.cnn(10, in_channels=1, image_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(EPOCHS):
        for index in torch.randperm(TRAINING).split(BATCH_SIZE):
            loss = torch.nn.functional.cross_entropy(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def seconds(*arguments: str) -> float:
    """How long Python takes with these arguments."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(threads: int, directory: str) -> dict[str, float]:
    """Seconds of a run of ours, of the bare script, and of the imports that both need."""
    run = ["main.py", "params/digits/discrimloss.yaml", f"epochs={EPOCHS}", "device=cpu"]
    ours = seconds(*run, f"threads={threads}", f"run_dir={directory}")
    bare_script = seconds("-m", "benchmarks.demo", "--bare", f"--threads={threads}")
    start = seconds("-c", "import torch, sklearn.datasets")
    return {
        "ours": ours,
        "bare": bare_script,
        "start of Python and PyTorch": start,
        "ours/bare": ours / bare_script,
    }


def main(rounds: int, threads: int, out: Path | None):
    import pandas as pd
    import torch

    from utils.epoch_log import commit

    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        rows = [measure(threads, f"{directory}/{number}") for number in range(rounds + 1)]
    table = pd.DataFrame(rows[1:])  # the first fills the file cache
    print(table.agg(["min", "median", "max"]).round(2).to_string())
    if out:
        machine = {"threads": threads, "cores": os.cpu_count()}
        code = {"torch": torch.__version__, "commit": commit()}
        table.round(3).assign(**machine, **code).to_csv(out, index=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bare", action="store_true", help="be the bare script")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.bare:
        bare(arguments.threads)
    else:
        main(arguments.rounds, arguments.threads, arguments.out)
