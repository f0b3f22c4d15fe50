"""What it costs a step of several processes that each knows the outputs for the whole batch.

    torchrun --nproc-per-node=2 -m benchmarks.gather --threads 1 --out results/gather.csv

Synthetic images, forward, backward and step of SGD on each process's share of a batch. Of each
number of samples N, and of each round: a step of DistributedDataParallel with DiscrimLoss on the
share alone, as if there was nothing to gather; the step as main.py has it; the gathering by itself,
of outputs, targets and indices; and the question whether any process has been asked to stop. In
milliseconds, medians over the steps; the shares are those of gathering and asking in the step.
"""

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import torch

import losses
import models
from losses.task import cross_entropy
from utils.checkpoint import StopRequest
from utils.distributed import (
    barrier,
    data_parallel,
    gather,
    process_group,
    rank,
    rank_slice,
    world_size,
)


def milliseconds(function, times: int) -> float:
    """Median duration of a call; all processes begin each together."""
    measured = []
    for _ in range(times):
        barrier()
        began = time.perf_counter()
        function()
        measured.append(1000 * (time.perf_counter() - began))
    return statistics.median(measured)


def measure(name: str, num_samples: int, batch_size: int, steps: int) -> dict:
    """One row of the table."""
    torch.manual_seed(0)
    model = data_parallel(getattr(models, name)(10), torch.device("cpu"))
    optimizer, stop = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), StopRequest()
    alone, together = (losses.DiscrimLoss(cross_entropy, num_samples) for _ in range(2))
    share = rank_slice(slice(0, batch_size))
    images = torch.randn(batch_size, 3, 32, 32)[share]
    target = (torch.arange(batch_size) % 10)[share]
    index = torch.randperm(num_samples)[:batch_size][share]
    output = torch.randn(len(target), 10, requires_grad=True)

    def step(score):
        loss = score(model(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def without():
        step(lambda output: alone(output, target, index).mean())

    def with_gather():
        step(lambda output: together(*gather(output, target, index)).mean())
        stop.agreed()

    def gather_alone():
        gather(output, target, index)[0].sum().backward()

    for function in (without, with_gather, gather_alone, stop.agreed):  # warm up
        function()
    row = {
        "model": name,
        "processes": world_size(),
        "batch_size": batch_size,
        "N": num_samples,
        "step_without": milliseconds(without, steps),
        "step": milliseconds(with_gather, steps),
        "gather": milliseconds(gather_alone, 100),
        "agree": milliseconds(stop.agreed, 100),
    }
    return row | {
        "share_of_gather": row["gather"] / row["step"],
        "share_of_both": (row["gather"] + row["agree"]) / row["step"],
        "step_over_without": row["step"] / row["step_without"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["wide_resnet28_2"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--samples", type=int, nargs="+", default=[50_000, 5_000_000])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with process_group():
        rows = [
            {"round": number} | measure(name, num_samples, options.batch_size, options.steps)
            for number in range(options.rounds)
            for name in options.models
            for num_samples in options.samples
        ]
    if rank() == 0:
        table = pd.DataFrame(rows)
        print(table.round(4).to_string(index=False))
        if options.out:
            table.round(4).to_csv(options.out, index=False)
