"""The time of a whole run of the demo, against that of a script that trains the same model and does
nothing else.

    python -m benchmarks.demo --out results/speed/demo.csv

Both are processes of their own, from the start of Python to its end, and take turns. A run of ours:
configuration, noise, 60 epochs of DiscrimLoss, the test set after each, metrics.csv, checkpoints,
detection, tables and pictures in the end. The bare script: ``bare`` below, cross-entropy on the
same digits, as many steps, no evaluation.
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
    """How long such a process of Python takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


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
        sys.exit()
    import pandas as pd
    import torch

    from utils.epoch_log import commit

    rows = []
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        for number in range(arguments.rounds + 1):
            row = {
                "ours": seconds(
                    "main.py",
                    "params/digits/discrimloss.yaml",
                    f"epochs={EPOCHS}",
                    "device=cpu",
                    f"threads={arguments.threads}",
                    f"run_dir={directory}/{number}",
                ),
                "bare": seconds(
                    "-m", "benchmarks.demo", "--bare", f"--threads={arguments.threads}"
                ),
                "start of Python and PyTorch": seconds("-c", "import torch, sklearn.datasets"),
            }
            if number:  # the first fills the file cache
                rows.append(row | {"ours/bare": row["ours"] / row["bare"]})
    table = pd.DataFrame(rows)
    print(table.agg(["min", "median", "max"]).round(2).to_string())
    if arguments.out:
        table.round(3).assign(
            threads=arguments.threads,
            cores=os.cpu_count(),
            torch=torch.__version__,
            commit=commit(),
        ).to_csv(arguments.out, index=False)
