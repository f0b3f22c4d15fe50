"""Images per second out of JPEG files: this project's loader and torchvision's reference loader.

    python -m benchmarks.files threads=1 --out results/speed/files.csv
    python -m benchmarks.files dataset.root=<folder with train/<class>/*> --workers 0 8 16

ours       training batches as params/folder has them: decoded, a random part cropped and resized
           to 224x224, mirrored, bytes until they are normalised in batches on the device
cached     the same out of the packed file of dataset.cache=true, which is made first and timed
reference  ImageFolder with the transforms of torchvision's own training script
           (references/classification): the same crop and mirroring, on Pillow's images, each made
           a float tensor and normalised by the worker

The same files, workers and batch size, taking turns in one process. Without a folder: 2,000 files
of 500x375 pixels, as many in ImageNet have, made from scikit-learn's two photographs.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import datasets
from benchmarks.throughput import seconds_of
from datasets.base import IMAGENET, Dataset
from datasets.loader import make_loaders
from datasets.noise import inject
from datasets.splits import split_rows
from utils.device import choose_device, device_name
from utils.epoch_log import commit


def write_photographs(root: Path, count: int = 2000):
    """JPEG files of 500x375 pixels, parts of two photographs."""
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    random = np.random.default_rng(0)
    for number in range(count):
        width = int(random.integers(320, 560))
        height = width * 3 // 4
        left, top = random.integers(0, 640 - width + 1), random.integers(0, 427 - height + 1)
        part = photographs[number % 2].crop((left, top, left + width, top + height))
        split = "test" if number % 10 > 7 else "train"
        path = root / split / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def reference(root: Path, batch_size: int, workers: int) -> DataLoader:
    """As torchvision's training script makes it."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize(**IMAGENET),
        ]
    )
    return DataLoader(
        ImageFolder(root / "train", transform),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def training_loader(data: Dataset, batch_size: int, device: torch.device):
    """The loader of a run on all of the training part, whose labels are taken as they are."""
    noise = inject(
        data.train.targets,
        kind="none",
        fraction=0.0,
        seed=0,
        num_classes=len(data.classes),
        dataset="folder",
        trusted=False,
    )
    parts = split_rows(noise, validation={"fraction": 0.0}, seed=0)
    return make_loaders(data, noise, parts, batch_size=batch_size, device=device, seed=0).train


def images_per_second(batches, device: torch.device) -> float:
    """Of one epoch, on the device."""
    images = 0

    def work():
        nonlocal images
        for inputs, target, *_ in batches:
            inputs.to(device, non_blocking=True)
            target.to(device, non_blocking=True)
            images += len(inputs)

    seconds = seconds_of(device, work)
    return images / seconds


def measure(root: Path, cache: Path, workers: int, rounds: int, batch_size: int, device):
    """A row per round; and the dataset, and how many seconds it took to pack it in ``cache``."""
    loaders, seconds, rows = {}, {}, []
    for name in ("ours", "cached"):
        data = datasets.folder(str(cache), str(root), num_workers=workers, cache=name == "cached")
        start = time.perf_counter()
        loaders[name] = training_loader(data, batch_size, device)
        seconds[name] = time.perf_counter() - start
    loaders["reference"] = reference(root, batch_size, workers)
    for _ in range(rounds + 1):
        rows.append({name: images_per_second(loader, device) for name, loader in loaders.items()})
    table = pd.DataFrame(rows[1:])  # the first warms up
    for name in ("ours", "cached"):
        table[f"{name}/reference"] = table[name] / table["reference"]
    table.insert(0, "workers", workers)
    return table, data, seconds["cached"]


def describe_cache(data: Dataset, cache: Path, seconds: float) -> str:
    """How long it took to pack the images, and how large they are."""
    count = len(data.train) + len(data.test)
    size = sum(path.stat().st_size for path in (cache / "cache").glob("*.images"))
    return f"{count} images packed in {seconds:.1f} s, {size / count / 1024:.0f} KiB each"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0, os.cpu_count()])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "options", nargs="*", help="dataset.root=<folder>, device=cpu|cuda, threads=1"
    )
    arguments = parser.parse_intermixed_args()
    options = dict(option.split("=", 1) for option in arguments.options)
    threads = int(options.get("threads", 1))
    device, _ = choose_device(options.get("device", "auto"), threads=threads)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    tables = []
    with tempfile.TemporaryDirectory() as directory:
        root = Path(options.get("dataset.root", directory))
        if str(root) == directory:
            write_photographs(root)
        for workers in arguments.workers:
            table, data, seconds = measure(
                root, Path(directory), workers, arguments.rounds, arguments.batch_size, device
            )
            if not tables:
                print(describe_cache(data, Path(directory), seconds))
            tables.append(table)
            shown = table.drop(columns="workers").agg(["min", "median", "max"]).round(2)
            print(f"{workers} workers\n{shown.to_string()}")
    if arguments.out:
        where = {
            "images": len(data.train),
            "batch_size": arguments.batch_size,
            "device": device_name(device.type),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "commit": commit(),
        }
        pd.concat(tables).round(4).assign(**where).to_csv(arguments.out, index=False)
