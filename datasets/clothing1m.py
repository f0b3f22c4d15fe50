"""Clothing1M: a million photographs of clothes from shops, labelled by the words around them."""

import random
from pathlib import Path

import torch

from datasets.base import Dataset, Split, check_files, read_lines
from utils.errors import UserError

CLASSES = [
    "T-Shirt",
    "Shirt",
    "Knitwear",
    "Chiffon",
    "Sweater",
    "Hoodie",
    "Windbreaker",
    "Jacket",
    "Down Coat",
    "Suit",
    "Shawl",
    "Dress",
    "Vest",
    "Underwear",
]


def clothing1m(
    data_root: str = "data",
    seed: int = 1,
    per_class: int | None = 18_976,
    image_size: int = 224,
    num_workers: int = 8,
) -> Dataset:
    """Xiao et al., CVPR 2015: 1,000,000 images with noisy labels, of 14 classes, to train.

    14,313 to validate and 10,526 to test, both with clean labels; 47,570 with clean labels to train
    with are the verified part.

    Reads the release: ``noisy_train_key_list.txt``, ``clean_val_key_list.txt``,
    ``clean_test_key_list.txt`` and, if it is there, ``clean_train_key_list.txt``, with a path a
    line; ``noisy_label_kv.txt`` and ``clean_label_kv.txt`` with a path and a label; or lists whose
    lines have both. They lie in ``data_root``/clothing1m or in its annotations/, the images where
    the paths lead from there, with or without their first folder, images/. Training: the short side
    resized to 256, a square of 224 cropped at random, mirrored; evaluation: cropped in the centre.

    Args:
        per_class: train on so many images of each label, drawn as the DiscrimLoss authors do: all
            are shuffled with ``seed``, the run's, and taken until each label is full. 18,976 is the
            smallest one's number. None: on all.

    Raises:
        FileNotFoundError: a list that is not there.
        UserError: a line without a label; a label that has fewer than ``per_class``.
    """
    check_files(image_size, num_workers, 1.0)
    folder = Path(data_root, "clothing1m")
    lists = folder / "annotations" if (folder / "annotations").is_dir() else folder
    names = ["noisy_train", "clean_val", "clean_test"]
    if (lists / "clean_train_key_list.txt").is_file():
        names.append("clean_train")
    parts = {
        name: read(folder, lists, f"{name}_key_list.txt", f"{name.split('_')[0]}_label_kv.txt")
        for name in names
    }
    train = parts["noisy_train"]
    if per_class is not None:
        rows = balanced(train.targets.tolist(), per_class, seed)
        train = Split([train.inputs[row] for row in rows], train.targets[rows])
    return Dataset(
        train,
        parts["clean_test"],
        classes=CLASSES,
        in_channels=3,
        image_size=image_size,
        mean=(0.6959, 0.6537, 0.6371),
        std=(0.3113, 0.3192, 0.3214),
        flip=True,
        crop_scale=None,
        trusted=False,
        num_workers=num_workers,
        validation=parts["clean_val"],
        verified=parts.get("clean_train"),
    )


def balanced(labels: list[int], per_class: int, seed: int) -> list[int]:
    """Positions of ``per_class`` samples of each label, in the order of a shuffle of Python's.

    Raises UserError if a label has fewer.
    """
    order, taken, rows = list(range(len(labels))), [0] * len(CLASSES), []
    random.Random(seed).shuffle(order)
    for row in order:
        if taken[labels[row]] < per_class:
            taken[labels[row]] += 1
            rows.append(row)
    if min(taken) < per_class:
        smallest = CLASSES[taken.index(min(taken))]
        raise UserError(
            f"per_class={per_class}, but {smallest} has only {min(taken)} images: lower "
            f"dataset.per_class"
        )
    return rows


def read(folder: Path, lists: Path, keys: str, labels: str) -> Split:
    """The images of a list, with labels from its own lines or from another file.

    Raises as ``clothing1m``.
    """
    lines = _lines(lists / keys)
    by_path, paths, targets = {}, [], []
    if any(len(line) == 1 for _, line in lines):
        by_path = {line[0]: line[1] for _, line in _lines(lists / labels) if len(line) > 1}
    for number, (path, *label) in lines:
        label = label[0] if label else by_path.get(path)
        if label is None or not label.isdecimal() or int(label) >= len(CLASSES):
            raise UserError(
                f"{lists / keys}, line {number}: {path} has no label from 0 to 13, here or in "
                f"{labels}; got {label}"
            )
        paths.append(path)
        targets.append(int(label))
    without = not (folder / "images").is_dir()
    return Split(
        [str(folder / (path.removeprefix("images/") if without else path)) for path in paths],
        torch.tensor(targets),
    )


def _lines(path):
    missing = (
        "Clothing1M is to be asked for from its authors (github.com/Cysu/noisy_label); set "
        "data_root=<folder with clothing1m/>"
    )
    numbered = enumerate(read_lines(path, missing), start=1)
    lines = [(number, line.split()) for number, line in numbered if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty")
    return lines
