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

    python -m benchmarks.losses --training threads=1

times whole steps instead: forward and backward pass of a small network on 28x28 images, optimiser
and method. The methods that keep something of each sample, train two networks or learn from trusted
samples are compared with Plain: the median of the rounds, of ratios within a round. Many short
rounds say more than a few long ones.
"""

import argparse
import functools
import math
import random
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from scipy.special import lambertw

import losses
from benchmarks.throughput import seconds_of
from datasets.base import Batch
from losses.base import as_objective
from losses.task import cross_entropy
from models.lenet import lenet
from models.several import build_several
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

NUM_SAMPLES = 50_000
GIVEN = {"num_outputs": NUM_OUTPUTS, "given": torch.zeros(NUM_SAMPLES, dtype=torch.int64)}
IN_TRAINING = {
    "Plain": losses.Plain,
    **{name: functools.partial(make, num_samples=NUM_SAMPLES) for name, make in PER_SAMPLE.items()},
    "CoTeaching": functools.partial(losses.CoTeaching, num_samples=NUM_SAMPLES, noise_rate=0.4),
    "CoTeachingPlus": functools.partial(
        losses.CoTeachingPlus, num_samples=NUM_SAMPLES, noise_rate=0.4
    ),
    "JoCoR": functools.partial(losses.JoCoR, num_samples=NUM_SAMPLES, noise_rate=0.4),
    "Decoupling": functools.partial(losses.Decoupling, num_samples=NUM_SAMPLES),
    "SELFIE": functools.partial(losses.SELFIE, num_samples=NUM_SAMPLES, noise_rate=0.4, **GIVEN),
    "JointOptimization": functools.partial(
        losses.JointOptimization, num_samples=NUM_SAMPLES, begin=10, **GIVEN
    ),
    "TwoStage": functools.partial(losses.TwoStage, num_samples=NUM_SAMPLES, **GIVEN),
    "LearningToReweight": functools.partial(
        losses.LearningToReweight, num_samples=NUM_SAMPLES, trusted_batch_size=100
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


class Training:
    """Steps of SGD on random images under a method that is past its first phase."""

    def __init__(self, name: str, device: torch.device):
        make, networks = IN_TRAINING[name], getattr(getattr(losses, name, None), "networks", 1)
        self.model = build_several(lambda: lenet(NUM_OUTPUTS), networks).to(device)
        facts = {"model": self.model} if networks > 1 else {}
        self.objective = as_objective(make(cross_entropy, **facts)).to(device)
        self.objective.set_epoch(30)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.device = device

    def microseconds(self, batch_size: int, steps: int) -> float:
        """Mean time of a step."""
        inputs = torch.randn(batch_size, 1, 28, 28, device=self.device)
        target = torch.randint(NUM_OUTPUTS, (batch_size,), device=self.device)
        index = [torch.randperm(NUM_SAMPLES)[:batch_size].to(self.device) for _ in range(steps)]
        extra, size = None, self.objective.trusted_batch_size
        if size:
            extra = Batch(
                torch.randn(size, *inputs.shape[1:], device=self.device), target[:size], index[0]
            )

        def work():
            for drawn in index:
                loss = self.objective(self.model, Batch(inputs, target, drawn, extra))
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()

        return 1e6 * seconds_of(self.device, work) / steps


def compare_training(
    batch_sizes: list[int], rounds: int, steps: int, device: torch.device
) -> pd.DataFrame:
    """Microseconds of a step by method, and how many times Plain's: medians of the rounds.

    All networks of one kind are one and the same, and each round has an order of its own, so that
    only the methods differ.
    """
    trainings, networks = {}, {}
    for name in IN_TRAINING:
        own = trainings[name] = Training(name, device)
        own.model, own.optimizer = networks.setdefault(type(own.model), (own.model, own.optimizer))
    rows, names = [], list(trainings)
    for batch_size in batch_sizes:
        for number in range(rounds + 1):
            random.Random(number).shuffle(names)
            spent = {name: trainings[name].microseconds(batch_size, steps) for name in names}
            if number:  # the first round warms up
                for name in trainings:
                    row = {"batch_size": batch_size, "method": name, "microseconds": spent[name]}
                    rows.append(row | {"over Plain": spent[name] / spent["Plain"]})
    by_method = pd.DataFrame(rows).groupby(["batch_size", "method"], sort=False)
    return by_method.median().round(2).reset_index()


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


def compare_losses(
    sizes: list[int], batch_sizes: list[int], rounds: int, steps: int, device: torch.device
) -> pd.DataFrame:
    """Microseconds of a forward pass by loss, and their ratios."""
    made = make_losses(sizes, device)
    rows = []
    for batch_size in batch_sizes:
        for number in range(rounds + 1):
            spent = {
                (name, size): microseconds(loss, size or max(sizes), batch_size, steps, device)
                for (name, size), loss in made.items()
            }
            if number:  # the first round warms up
                rows += compare(spent, batch_size)
    return summarise(rows)


def main(arguments):
    options = {"device": "auto", "threads": "1"}
    options |= dict(option.split("=") for option in arguments.options)
    device, _ = choose_device(options["device"], threads=int(options["threads"]))
    measured = (arguments.batch_sizes, arguments.rounds, arguments.steps, device)
    if arguments.training:
        out, table = "results/speed/losses_in_training.csv", compare_training(*measured)
    else:
        out, table = "results/speed/losses.csv", compare_losses(arguments.sizes, *measured)
    path = Path(arguments.out or out)
    path.parent.mkdir(parents=True, exist_ok=True)
    print(table.to_string(index=False))
    table.assign(
        rounds=arguments.rounds,
        steps=arguments.steps,
        device=device_name(device.type),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        commit=commit(),
    ).to_csv(path, index=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [10_000, 100_000, 1_000_000, 10_000_000, 100_000_000]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 4096])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--training", action="store_true", help="time whole steps of training")
    parser.add_argument("--out", help="default: results/speed/losses[_in_training].csv")
    parser.add_argument("options", nargs="*", help="device=cpu|cuda, threads=1")
    main(parser.parse_intermixed_args())
