"""What an epoch costs beside its training: evaluation, records, recorded losses, checkpoint.

    python -m benchmarks.epoch params/cifar10/discrimloss.yaml precision=bf16 compile=true
    python -m benchmarks.epoch params/cifar10/discrimloss.yaml model=wide_resnet28_2 threads=2 \\
        --steps 2 --rounds 3

On random images, as many as the dataset has. Training, evaluation and recording are timed over so
many steps and taken to the whole dataset by the number of images; records and checkpoint are those
of the whole. Medians of rounds that take turns.
"""

import argparse
import contextlib
import itertools
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch

import main
from benchmarks.throughput import circumstances, make_synthetic, seconds_of
from experiment import SCHEMAS, Experiment
from utils.checkpoint import StopRequest
from utils.config import load
from utils.evaluation import predict
from utils.run_directory import RunDirectory


class Shortened:
    """The first batches of a loader."""

    def __init__(self, loader, steps: int):
        self.loader, self.rows_of, self.set_epoch = loader, loader.rows_of, loader.set_epoch
        self.steps = min(steps, len(loader))

    def __len__(self):
        return self.steps

    def __iter__(self):
        return itertools.islice(self.loader, self.steps)


def measure(run: Experiment, steps: int, num_test: int) -> dict[str, float]:
    """Seconds of each part of an epoch, of the whole dataset."""
    whole, num_train = run.loaders, len(run.loaders.train.rows)
    train, recorded, evaluated = (
        Shortened(loader, steps)
        for loader in (whole.train, whole.recording, whole.evaluation["test"])
    )
    losses = torch.randn(num_train), torch.arange(num_train)
    run.loaders, run.step = SimpleNamespace(train=train, set_epoch=whole.set_epoch), 0
    model = run.objective.evaluated(run.forward)

    def seconds_per_image(loader):
        count = 0

        def forward():
            nonlocal count
            count = len(predict(model, loader, run.autocast)[-1])

        return seconds_of(run.device, forward) / count

    def records():
        row = {"epoch": run.epoch, "test_metric": 50.0}
        run.log.add_row(row | run.record.end_epoch(run.noise.corrupted))

    training = seconds_of(run.device, lambda: main.train_epoch(run, StopRequest()))
    seconds = {
        "training": training / run.record.images * num_train,
        "evaluation": seconds_per_image(evaluated) * num_test,
        "records": seconds_of(run.device, records),
        "checkpoint": seconds_of(run.device, lambda: run.checkpoint.save(run.epoch, 0)),
        "recorded losses": seconds_per_image(recorded) * num_train
        + seconds_of(run.device, lambda: run.record_losses(*losses)),
    }
    run.loaders, run.epoch = whole, run.epoch + 1
    return seconds


def measure_rounds(arguments) -> tuple[pd.DataFrame, dict]:
    """A row per round, and the configuration of the run."""
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(None):
        overrides = [f"run_dir={directory}/run", "epochs=100", "record_losses=true"]
        config = load(arguments.params, [*overrides, *arguments.options], SCHEMAS)
        name = config["dataset"]["name"]
        make_synthetic(name, arguments.train)
        config["dataset"] = {"name": name}
        run = Experiment(config, RunDirectory(config))
        run.resume()
        rows = [measure(run, arguments.steps, arguments.test) for _ in range(arguments.rounds + 1)]
    table = pd.DataFrame(rows[1:])  # the first warms up
    for part in table.columns.drop("training"):
        table[f"{part}, % of training"] = 100 * table[part] / table["training"]
    return table, config


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("params", help="a params file of digits, mnist or a CIFAR")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("options", nargs="*", help="overrides, e.g. threads=2")
    arguments = parser.parse_intermixed_args()
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table, config = measure_rounds(arguments)
    print(table.agg(["min", "median", "max"]).T.round(3).to_string())
    if arguments.out:
        where = {
            "params": arguments.params,
            "train": arguments.train,
            "test": arguments.test,
            "steps": arguments.steps,
            **circumstances(config),
        }
        table.round(4).assign(**where).to_csv(arguments.out, index=False)
