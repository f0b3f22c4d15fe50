"""Images per second of training on MNIST: the bare model, an epoch of ours, and a plain PyTorch loop, side by side.

    python -m benchmarks.throughput data_root=<folder with MNIST> --rounds 5 --out results/mnist/throughput.csv

bare    forward, backward and optimiser step of the model under cross-entropy, on one batch that is in memory already
ours    main.py's own train_epoch with the given method, data path, records and all
usual   torchvision's MNIST, ToTensor, Normalize, DataLoader(num_workers=0), the same method, and .item() at every step
plain   the same loop under cross-entropy

Same model, batch size, precision and threads, taking turns in one process. Absolute numbers are the machine's; the ratios
are taken within each round.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
import torchvision
from torchvision import transforms

import main
from losses import Plain
from losses.task import cross_entropy
from utils.checkpoint import StopRequest
from utils.config import load
from utils.record import RunDirectory, commit


def bare(run: main.Run, steps: int) -> float:
    """Images per second of the model alone."""
    run.model.train()
    batch = next(iter(run.loaders.train))
    start = time.perf_counter()
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(run.model(batch.input), batch.target)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
    loss.item()
    return steps * len(batch.target) / (time.perf_counter() - start)


def ours(run: main.Run) -> float:
    """Images per second of one epoch of main.py."""
    run.step = 0
    start = time.perf_counter()
    main.train_epoch(run, StopRequest())
    run.epoch += 1
    return len(run.loaders.train.rows) / (time.perf_counter() - start)


def usual(run: main.Run, loader, steps: int, method) -> float:
    """Images per second of the loop that most code has."""
    run.model.train()
    start, images, total = time.perf_counter(), 0, 0.0
    for step, (inputs, target, index) in enumerate(loader):
        if step == steps:
            break
        inputs, target, index = inputs.to(run.device), target.to(run.device), index.to(run.device)
        loss = method(run.model(inputs), target, index).mean()
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        total += loss.item()
        images += len(target)
    return images / (time.perf_counter() - start)


class MNIST(torchvision.datasets.MNIST):  # the name is that of the folder it reads
    """MNIST that says which sample it gives: what methods with memory ask of a dataset."""

    def __getitem__(self, index):
        return *super().__getitem__(index), index


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params/mnist/discrimloss.yaml")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=469, help="of bare, and at most of usual")
    parser.add_argument("--out", type=Path)
    parser.add_argument("options", nargs="*", help="overrides, e.g. data_root=/data threads=2")
    arguments = parser.parse_intermixed_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        config = load(arguments.params, [f"run_dir={directory}/run", "epochs=1000", *arguments.options], main.PACKAGES)
        run = main.Run(config, RunDirectory(config))
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
        files = MNIST(config["data_root"], train=True, transform=transform)
        loader = torch.utils.data.DataLoader(files, batch_size=config["batch_size"], shuffle=True, num_workers=0)
        for number in range(arguments.rounds + 1):
            speeds = {"bare": bare(run, arguments.steps), "ours": ours(run),
                      "usual": usual(run, loader, arguments.steps, run.objective.loss),
                      "plain": usual(run, loader, arguments.steps, Plain(cross_entropy))}
            if number:  # the first warms up
                rows.append(speeds | {f"ours/{other}": speeds["ours"] / speeds[other] for other in ("bare", "usual", "plain")})
    table = pd.DataFrame(rows)
    print(f"{arguments.params}, {run.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, commit {commit()}")
    print(table.describe(percentiles=[]).drop(["count", "std"]).rename({"50%": "median"}).round(2).to_string())
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        table.round(4).assign(device=str(run.device), threads=torch.get_num_threads(), torch=torch.__version__).to_csv(
            arguments.out, index=False)
