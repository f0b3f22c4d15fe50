"""A part of a dataset: some classes, with as many training samples of each as are wanted."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from datasets.base import Dataset, Split
from utils.build import fits
from utils.errors import UserError


def keep_classes(
    dataset: Dataset, keep: dict[str, int] | None, test_per_class: int | None, seed: int
) -> Dataset:
    """The dataset with the classes in ``keep`` alone, in their order, numbered anew from 0.

    Args:
        dataset: in memory.
        keep: how many training samples of each class, drawn from the seed; None: all of all. The
            samples stay in their order.
        test_per_class: how many test samples of each class, the first ones; None: all.

    Raises UserError for a class that is not there, and for counts that it does not have.
    """
    if keep is None and test_per_class is None:
        return dataset
    generator = np.random.default_rng(seed)
    wanted = dict.fromkeys(dataset.classes)
    if keep is not None:
        wanted = check_counts({str(name): count for name, count in keep.items()}, dataset.classes)
    numbers = [number for number, name in enumerate(dataset.classes) if name in wanted]
    rows, test_rows = [], []
    for number in numbers:
        name = dataset.classes[number]
        members = np.flatnonzero(dataset.train.targets == number)
        count = len(members) if wanted[name] is None else wanted[name]
        check_available(f"dataset.keep.{name}={count}", count, len(members), "training")
        rows.append(generator.choice(members, count, replace=False))
        members = np.flatnonzero(dataset.test.targets == number)
        count = len(members) if test_per_class is None else test_per_class
        check_available(f"dataset.test_per_class={count}", count, len(members), f"test {name!r}")
        test_rows.append(members[:count])
    renumbered = torch.full((len(dataset.classes),), -1)
    renumbered[numbers] = torch.arange(len(numbers))
    return replace(
        dataset,
        train=_part(dataset.train, rows, renumbered),
        test=_part(dataset.test, test_rows, renumbered),
        classes=[dataset.classes[number] for number in numbers],
        note=", ".join(
            f"{len(chosen):,} of class {dataset.classes[number]}"
            for number, chosen in zip(numbers, rows, strict=True)
        )
        + " to train",
    )


def check_counts(keep: dict[str, int], classes: list[str]) -> dict[str, int]:
    """The counts; raises UserError if they are none, or of no class of the dataset."""
    strange = [name for name in keep if name not in classes]
    if strange:
        raise UserError(
            f"dataset.keep names the class {strange[0]!r}, and the dataset has "
            f"{', '.join(classes[:10])}{' ...' if len(classes) > 10 else ''}"
        )
    for name, count in keep.items():
        if not fits(count, int) or count < 1:
            raise UserError(
                f"dataset.keep.{name} must be how many training samples of that class to keep, at "
                f"least 1, got {count!r}; leave the class out to have none"
            )
    return keep


def check_available(what: str, count: int, available: int, part: str):
    """Raise UserError if there are not so many samples."""
    if count > available:
        raise UserError(f"{what} is more than the {available:,} {part} samples that there are")


def _part(split: Split, rows: list[np.ndarray], renumbered: Tensor) -> Split:
    chosen = torch.from_numpy(np.sort(np.concatenate(rows)))
    return Split(split.inputs[chosen], renumbered[split.targets[chosen]])
