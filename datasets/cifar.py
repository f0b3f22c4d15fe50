"""CIFAR-10 and CIFAR-100, from torchvision's files."""

from pathlib import Path
from typing import Literal

import torch

from datasets.base import Dataset, Split, from_torchvision
from utils.errors import UserError


def cifar10(
    data_root: str = "data",
    augment: bool = True,
    padding_mode: Literal["zeros", "reflect"] = "zeros",
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465),
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010),
) -> Dataset:
    """50,000 training and 10,000 test images of 32x32 pixels in 10 classes (Krizhevsky 2009).

    Mean and std are those of the DiscrimLoss and data-parameters code.

    Args:
        augment: random crops of the image padded by 4 pixels, and mirroring.

    Raises FileNotFoundError if the files are neither under ``data_root`` nor to be downloaded.
    """
    return _cifar("CIFAR10", data_root, augment, padding_mode, mean, std)


def cifar100(
    data_root: str = "data",
    augment: bool = True,
    padding_mode: Literal["zeros", "reflect"] = "zeros",
    mean: tuple[float, ...] = (0.507, 0.487, 0.441),
    std: tuple[float, ...] = (0.267, 0.256, 0.276),
) -> Dataset:
    """As cifar10, with 100 classes of 500 training images; mean and std of the DiscrimLoss code."""
    return _cifar("CIFAR100", data_root, augment, padding_mode, mean, std)


def _cifar(name, data_root, augment, padding_mode, mean, std):
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(
            f"mean and std must be three numbers each, std greater than 0, got {mean} and {std}"
        )
    import torchvision  # takes seconds: only if it is used

    source = getattr(torchvision.datasets, name)
    files = ", ".join(name for name, _ in source.train_list + source.test_list)
    parts = from_torchvision(
        source, Path(data_root), source.base_folder, f"{files} and {source.meta['filename']}"
    )
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
    train, test = (
        Split(inputs, torch.tensor(part.targets))
        for inputs, part in zip(images, parts, strict=True)
    )
    return Dataset(
        train,
        test,
        classes=parts[0].classes,
        in_channels=3,
        image_size=32,
        mean=tuple(mean),
        std=tuple(std),
        crop_padding=4 if augment else 0,
        padding_mode=padding_mode,
        flip=augment,
    )
