"""Images per second of training: the bare model, an epoch of ours, and a plain PyTorch loop.

    python -m benchmarks.throughput params/mnist/discrimloss.yaml data_root=<folder> \\
        --out results/speed/throughput.csv
    python -m benchmarks.throughput params/cifar10/gce.yaml --synthetic 50000 precision=bf16 \\
        compile=true

bare     forward, backward and optimiser step of the model under cross-entropy, on one batch that
         is in memory already
ours     main.py's own train_epoch with the given method: data path, records and all
usual    the loop that most code has, with the same method: one image at a time through
         torchvision's transforms, a DataLoader without workers, .item() at every step, and, of
         DiscrimLoss, an SGD over the parameters of all samples with a mask
workers  the same with as many workers as there are cores
plain    the loop without workers under cross-entropy alone
lightning  the same data path and method, without workers, in a Trainer of Lightning (pip install
         lightning)
loaded   bare, on the batches that main.py loads: what the data path costs
unrecorded  ours without the record of every sample

The last three only if --only asks for them.

utilisation: the arithmetic of a training step (torch.utils.flop_counter) at ours' images per
second, over what the device does on the largest matrices in the same precision, measured here too.

Same model, batch size, precision and threads, taking turns in one process, but for
--usual-precision. Absolute numbers are the machine's; the ratios are taken within each round.
``--synthetic N``: so many random images instead of the dataset's.
"""

import argparse
import contextlib
import math
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

import datasets
import main
from datasets.base import Dataset, Split
from datasets.contents import LISTS
from experiment import SCHEMAS, Experiment
from losses import Plain
from losses.discrimloss import DiscrimLoss, suppression_factor
from losses.task import cross_entropy
from utils.checkpoint import StopRequest
from utils.config import load
from utils.device import choose_device, device_name
from utils.epoch_log import commit
from utils.files import atomic_write
from utils.run_directory import RunDirectory

SHAPES = {  # channels, height = width, classes
    "digits": (1, 8, 10),
    "mnist": (1, 28, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
}
WAYS = ("bare", "ours", "usual", "workers", "plain")
OTHERS = ("lightning", "loaded", "unrecorded")


class OneByOne(torch.utils.data.Dataset):
    """Images as torchvision's datasets give them: PIL images, transformed one by one."""

    def __init__(self, data: Dataset):
        steps = []
        if data.crop_padding:
            steps.append(transforms.RandomCrop(data.image_size, data.crop_padding))
        if data.flip:
            steps.append(transforms.RandomHorizontalFlip())
        steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
        self.transform = transforms.Compose(steps)
        self.images = data.train.inputs.permute(0, 2, 3, 1).squeeze(-1).contiguous().numpy()
        self.targets = data.train.targets.tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.targets[index], index


class UsualDiscrimLoss:
    """DiscrimLoss as public code has it: a parameter for all samples, stepped as a whole."""

    def __init__(self, loss: DiscrimLoss, device: torch.device):
        self.loss, self.first = loss, True
        self.log_sigma = torch.zeros(loss.num_samples, device=device, requires_grad=True)
        self.velocity = torch.zeros(loss.num_samples, device=device)
        self.history = torch.zeros(loss.num_samples, device=device)

    def __call__(self, output, target, index):
        loss = self.loss
        losses = torch.nn.functional.cross_entropy(output, target, reduction="none")
        average = loss.beta * self.history[index] + (1 - loss.beta) * losses
        self.history[index] = average.detach()
        average = average / (1 - loss.beta ** (loss.epoch + 1))
        threshold = average.mean().item()
        if not self.first:
            threshold = loss.rho * self.threshold + (1 - loss.rho) * threshold
        self.threshold, self.first = threshold, False
        gamma = loss.a * math.tanh(loss.p * (loss.epoch - loss.q)) + loss.a + 1
        factor = suppression_factor(loss.suppression, loss.epoch, loss.suppression_epochs)
        return factor * (average - gamma * self.threshold) / self.log_sigma[index].exp()

    @torch.no_grad()
    def step(self):
        grad, parameter = self.log_sigma.grad, self.loss.log_sigma
        drawn = grad != 0
        velocity = self.velocity.clone()
        velocity[drawn] = parameter.momentum * velocity[drawn] + grad[drawn]
        value = self.log_sigma.detach().clone()
        value[drawn] -= parameter.lr * velocity[drawn]
        self.velocity.copy_(velocity)
        self.log_sigma.copy_(value.clamp_(parameter.low, parameter.high))
        self.log_sigma.grad = None


def seconds_of(device: torch.device, work) -> float:
    """How long some work takes, until the device has done it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def plain_loss(model, batch) -> torch.Tensor:
    """Cross-entropy, called as an Objective is."""
    return torch.nn.functional.cross_entropy(model(batch.input), batch.target)


def steps_alone(run: Experiment, batches, loss_of) -> float:
    """Images per second of forward and backward passes and steps, and nothing else."""
    run.forward.train()
    run.objective.set_epoch(run.epoch)
    images = 0

    def work():
        nonlocal images
        for batch in batches:
            images += len(batch.target)
            with run.autocast():
                loss = loss_of(run.forward, batch)
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()

    spent = seconds_of(run.device, work)
    return images / spent


def ours(run: Experiment) -> float:
    """Images per second of one epoch of main.py."""
    run.step = 0
    spent = seconds_of(run.device, lambda: main.train_epoch(run, StopRequest()))
    run.epoch += 1
    return len(run.loaders.train.rows) / spent


def usual(run: Experiment, loader, steps: int, method, autocast) -> float:
    """Images per second of the loop that most code has."""
    run.model.train()
    images = 0

    def work():
        nonlocal images
        total = 0.0
        for step, (inputs, target, index) in enumerate(loader):
            if step == steps:
                break
            inputs, target = inputs.to(run.device), target.to(run.device)
            index = index.to(run.device)
            with autocast():
                loss = method(run.model(inputs), target, index).mean()
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()
            if isinstance(method, UsualDiscrimLoss):
                method.step()
            total += loss.item()
            images += len(target)

    spent = seconds_of(run.device, work)
    return images / spent


def lightning(run: Experiment, loader, steps: int, method) -> float:
    """Images per second of a Trainer of Lightning, its progress bar and logger off."""
    from lightning import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.images = run.model, 0

        def training_step(self, batch, number):
            inputs, target, index = batch
            self.images += len(target)
            loss = method(self.model(inputs), target, index).mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return run.optimizer

    on_gpu = run.device.type == "cuda"
    precision = "bf16-mixed" if run.config["precision"] == "bf16" else "32-true"
    module = Module()
    trainer = Trainer(
        max_steps=steps,
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    spent = seconds_of(run.device, lambda: trainer.fit(module, loader))
    return module.images / spent


def make_synthetic(name: str, count: int):
    """Put ``count`` random images of the dataset's form into its place."""
    channels, size, classes = SHAPES[name]
    real = getattr(datasets, name)

    def random_split(generator, number):
        images = generator.integers(0, 256, (number, channels, size, size), np.uint8)
        labels = generator.integers(0, classes, number)
        return Split(torch.from_numpy(images), torch.from_numpy(labels))

    def dataset(data_root: str = "data") -> Dataset:
        generator = np.random.default_rng(0)
        return Dataset(
            random_split(generator, count),
            random_split(generator, 1000),
            classes=[str(label) for label in range(classes)],
            in_channels=channels,
            image_size=size,
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
            crop_padding=4 * (channels == 3),
            flip=channels == 3,
        )

    dataset.__name__ = real.__name__
    setattr(datasets, name, dataset)
    LISTS.pop(name, None)  # no files whose content a run would write down


def peak_memory(device: torch.device) -> float:
    """The most memory that was held so far, in MiB: of the GPU, or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def flops_per_image(run: Experiment) -> float:
    """Of forward and backward pass, a multiplication and an addition counted as two."""
    batch = next(iter(run.loaders.train))
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(run.model(batch.input), batch.target).backward()
    return counter.get_total_flops() / len(batch.target)


def ceiling(device: torch.device, autocast, size: int) -> float:
    """The most operations per second that a product of two square matrices reaches."""
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    # as convolutions have it in fp32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    with autocast():
        if torch.is_autocast_enabled(device.type):
            left, right = left.bfloat16(), right.bfloat16()
        spent = [seconds_of(device, lambda: left @ right) for _ in range(12)]
    return 2 * size**3 / min(spent)


def circumstances(config: dict) -> dict:
    """What a measurement depends on, as columns of its table."""
    return {
        **{key: config[key] for key in ("batch_size", "precision", "compile", "channels_last")},
        "tf32": torch.backends.cudnn.allow_tf32,
        "model": config["model"]["name"],
        "device": device_name(config["device"]),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def prepare(arguments, directory: str) -> tuple[Experiment, Dataset]:
    """A run on the dataset, or on random images of its form."""
    overrides = [f"run_dir={directory}/run", "epochs=1000", *arguments.options]
    config = load(arguments.params, overrides, SCHEMAS)
    name = config["dataset"]["name"]
    if arguments.synthetic:
        make_synthetic(name, arguments.synthetic)
        config["dataset"] = {"name": name}
    run = Experiment(config, RunDirectory(config))
    run.resume()
    return run, run.data


def ways_of_training(run: Experiment, data: Dataset, steps: int, precision: str | None) -> dict:
    """A function for each of WAYS and OTHERS that measures its images per second."""
    config = run.config
    _, autocast = choose_device(
        config["device"],
        precision=precision or config["precision"],
        threads=config["threads"],
        deterministic=config["deterministic"],
    )
    method = run.objective.loss
    dense = UsualDiscrimLoss(method, run.device) if isinstance(method, DiscrimLoss) else method
    alone, workers = (
        torch.utils.data.DataLoader(
            OneByOne(data), batch_size=config["batch_size"], shuffle=True, num_workers=number
        )
        for number in (0, os.cpu_count())
    )
    return {
        "bare": lambda: steps_alone(run, [next(iter(run.loaders.train))] * steps, plain_loss),
        "loaded": lambda: steps_alone(run, run.loaders.train, plain_loss),
        "unrecorded": lambda: steps_alone(run, run.loaders.train, run.objective),
        "ours": lambda: ours(run),
        "usual": lambda: usual(run, alone, steps, dense, autocast),
        "workers": lambda: usual(run, workers, steps, dense, autocast),
        "plain": lambda: usual(run, alone, steps, Plain(cross_entropy), autocast),
        "lightning": lambda: lightning(run, alone, steps, method),
    }


def measure(arguments) -> tuple[pd.DataFrame, dict]:
    """A row per round, and what the measurement depends on."""
    rows, peak = [], {}
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(None):
        run, data = prepare(arguments, directory)
        ways = ways_of_training(run, data, arguments.steps, arguments.usual_precision)
        for number in range(arguments.rounds + 1):
            speeds = {}
            for way in arguments.only:
                speeds[way] = ways[way]()
                if number == 0 and way == "ours":  # before the other loops take theirs
                    peak = {"peak_mib": round(peak_memory(run.device))}
            if number:  # the first warms up, and compiles
                rows.append(speeds)
        flops = flops_per_image(run)
        most = ceiling(run.device, run.autocast, 8192 if run.device.type == "cuda" else 2048)
    table = pd.DataFrame(rows)
    if "ours" in table:
        for way in table.columns.drop("ours"):
            table[f"ours/{way}"] = table["ours"] / table[way]
        table["utilisation"] = table["ours"] * flops / most
    return table, {
        "params": arguments.params,
        "N": len(data.train),
        "mflops_per_image": round(flops / 1e6, 3),
        "ceiling_tflops": round(most / 1e12, 4),
        **circumstances(run.config),
        **peak,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("params", help="a params file of digits, mnist or a CIFAR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=469, help="of bare, and at most of the loops")
    parser.add_argument(
        "--synthetic", type=int, metavar="N", help="random images instead of the dataset's"
    )
    parser.add_argument(
        "--usual-precision", choices=("fp32", "bf16"), help="of the plain loops; default: as ours"
    )
    parser.add_argument("--only", nargs="+", default=WAYS, choices=(*WAYS, *OTHERS))
    parser.add_argument("--out", type=Path, help="a CSV file that the rounds are appended to")
    parser.add_argument("options", nargs="*", help="overrides, e.g. data_root=/data threads=2")
    arguments = parser.parse_intermixed_args()
    table, where = measure(arguments)
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(table.agg(["min", "median", "max"]).round(2).to_string())
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        table = table.round(4).assign(**where)
        before = [pd.read_csv(arguments.out)] if arguments.out.exists() else []
        with atomic_write(arguments.out) as file:
            pd.concat([*before, table]).to_csv(file, index=False)
