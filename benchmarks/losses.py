"""The cost of a loss per step, by the batch and by the size of the training set.

    python -m benchmarks.losses threads=1
    python -m benchmarks.losses device=cuda --out results/gpu/losses.csv

What is timed is forward in training mode on given logits: task loss, weights, and the step of what
the loss keeps of each sample, without the backward pass of the model, which all have in common.
``cross_entropy`` is F.cross_entropy alone. ``SuperLoss, SciPy`` computes the confidence as public
code does, on the CPU with scipy.special.lambertw. The size of the training set only matters to
losses that keep something of each sample.

The losses take turns, separately for each batch size. The table has the median, the lowest and the
highest of the rounds; ratios are taken within a round.
"""

import argparse
import functools
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from scipy.special import lambertw

import losses
from benchmarks.throughput import seconds_of
from losses.task import cross_entropy
from utils.device import choose_device, device_name
from utils.epoch_log import commit

NUM_OUTPUTS = 10
STATELESS = {
    "Plain": losses.Plain,
    "GCE": losses.GCE,
    "SuperLoss": functools.partial(losses.SuperLoss, num_outputs=NUM_OUTPUTS),
    "GradientRescaling": functools.partial(losses.GradientRescaling, beta=8.0, lam=0.5),
}
PER_SAMPLE = {
    "DiscrimLoss": losses.DiscrimLoss,
    "DataParameters": functools.partial(losses.DataParameters, num_outputs=NUM_OUTPUTS),
    "truncated GCE": functools.partial(losses.GCE, k=0.5),
    "MentorNet": functools.partial(
        losses.MentorNet, noise_rate=0.4, epochs=1, steps_per_epoch=10, curriculum="self_paced"
    ),
    "ForwardCorrection": functools.partial(
        losses.ForwardCorrection,
        num_outputs=NUM_OUTPUTS,
        noise_transition=0.5 * torch.eye(NUM_OUTPUTS).double() + 0.5 / NUM_OUTPUTS,
        epochs=1,
    ),
}


def scipy_superloss(output, target, index):
    """SuperLoss with the confidence from SciPy: to the host and back in every step."""
    task = cross_entropy(output, target)
    excess = (task.detach() - math.log(NUM_OUTPUTS)).cpu().numpy()
    sigma = torch.from_numpy(lambertw(0.5 * excess.clip(-2 / math.e)).real).neg().exp().to(task)
    return (task - math.log(NUM_OUTPUTS)) * sigma + sigma.log().square()


def microseconds(
    loss, num_samples: int, batch_size: int, steps: int, device: torch.device
) -> float:
    """Mean time of a forward pass, over batches that are drawn at random."""
    output = torch.randn(batch_size, NUM_OUTPUTS, device=device, requires_grad=True)
    target = torch.randint(NUM_OUTPUTS, (batch_size,), device=device)
    indices = []
    for _ in range(steps):  # distinct samples in random order
        drawn = torch.randint(num_samples, (2 * batch_size,)).unique()
        indices.append(drawn[torch.randperm(len(drawn))[:batch_size]].to(device))

    def work():
        for index in indices:
            loss(output, target, index)

    return 1e6 * seconds_of(device, work) / steps


def make_losses(sizes: list[int], device: torch.device) -> dict[tuple[str, int | None], Callable]:
    """All losses by name and size of the training set; None if the size does not matter."""
    made = {
        ("cross_entropy", None): lambda output, target, index: F.cross_entropy(output, target),
        ("SuperLoss, SciPy", None): scipy_superloss,
    }
    for name, make in STATELESS.items():
        made[name, None] = make(cross_entropy).to(device)
    for name, make in PER_SAMPLE.items():
        for size in sizes:
            made[name, size] = make(cross_entropy, num_samples=size).to(device)
    for loss in made.values():
        if isinstance(loss, torch.nn.Module):
            for state in loss.buffers():
                state.copy_(state.clone())  # the system only gives memory that is written to
    return made


def compare(spent: dict[tuple[str, int | None], float], batch_size: int) -> list[dict]:
    """A row for each loss of one round, from the microseconds that it took."""
    smallest = min(size for _, size in spent if size)
    rows = []
    for (name, size), microseconds_taken in spent.items():
        row = {
            "loss": name,
            "batch_size": batch_size,
            "N": size,
            "microseconds": microseconds_taken,
            "over cross_entropy": microseconds_taken / spent["cross_entropy", None],
        }
        if name.startswith("SuperLoss"):
            row["SciPy over this"] = spent["SuperLoss, SciPy", None] / microseconds_taken
        if size:
            hundred_thousand = spent.get((name, 100_000), math.nan)
            row["over the smallest N"] = microseconds_taken / spent[name, smallest]
            row["over N = 100,000"] = microseconds_taken / hundred_thousand
        rows.append(row)
    return rows


def summarise(rows: list[dict]) -> pd.DataFrame:
    """The median of the rounds, and the lowest and the highest time."""
    rounds = pd.DataFrame(rows).groupby(["batch_size", "loss", "N"], dropna=False, sort=False)
    table = rounds.median()
    table.insert(1, "lowest", rounds["microseconds"].min())
    table.insert(2, "highest", rounds["microseconds"].max())
    table = table.round(2).reset_index()
    table["N"] = table["N"].astype("Int64").astype("string").fillna("any")
    return table


def main(arguments):
    options = {"device": "auto", "threads": "1"}
    options |= dict(option.split("=") for option in arguments.options)
    device, _ = choose_device(options["device"], threads=int(options["threads"]))
    made = make_losses(arguments.sizes, device)
    largest, steps = max(arguments.sizes), arguments.steps
    Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for batch_size in arguments.batch_sizes:
        for number in range(arguments.rounds + 1):
            spent = {
                (name, size): microseconds(loss, size or largest, batch_size, steps, device)
                for (name, size), loss in made.items()
            }
            if number:  # the first round warms up
                rows += compare(spent, batch_size)
    table = summarise(rows)
    print(table.to_string(index=False))
    table.assign(
        rounds=arguments.rounds,
        steps=steps,
        device=device_name(device.type),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        commit=commit(),
    ).to_csv(arguments.out, index=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [10_000, 100_000, 1_000_000, 10_000_000, 100_000_000]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 4096])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default="results/speed/losses.csv")
    parser.add_argument("options", nargs="*", help="device=cpu|cuda, threads=1")
    main(parser.parse_intermixed_args())
