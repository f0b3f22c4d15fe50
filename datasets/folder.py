"""A folder of the user's own images, one sub-folder a class."""

from collections import Counter
from pathlib import Path

import torch

from datasets.base import IMAGENET, Dataset, Split, cache_folder, check_files, split_off, warn
from datasets.copies import among, count_copies, find_copies
from datasets.scan import describe, is_hidden, scan
from utils.errors import UserError


def folder(
    data_root: str = "data",
    root: str | None = None,
    image_size: int = 224,
    num_workers: int = 2,
    test_fraction: float = 0.2,
    crop_scale: float = 0.08,
    flip: bool = True,
    cache: bool = False,
) -> Dataset:
    """``root/train/<class>/*`` and ``root/test/<class>/*``, also in folders within these.

    Or, if there is no train/, ``root/<class>/*``; if there is, other folders of ``root`` are not
    read, which a warning says. So it does of class folders without an image: they are left out.

    Training images are cropped at random and mirrored, test images resized to 256/224 of
    ``image_size`` and cropped in the centre; both are normalised with the ImageNet statistics. The
    folder's labels are taken as they are, noisy perhaps, so nothing is reported that needs true
    ones, unless noise is injected on top: then they count as true. Names that begin with a dot, and
    files that are no images, are left out and counted.

    Args:
        root: the folder; ``data_root`` unless given, which must have a train/.
        test_fraction: if there is no test/, this part of the training images is the test part, with
            labels as they are; copies of an image stay together. With 0 there is none, and
            ``validation`` must hold something out.
        crop_scale: the smallest part of the area that a training image is cropped to; 1 leaves
            almost everything.
        flip: whether training images are mirrored with probability 1/2.
        cache: keep all images, their shorter side resized to 256/224 of ``image_size``, in one file
            under ``data_root``/cache, and read them from there. What is evaluated is the same;
            training crops come from the resized images.

    Raises:
        FileNotFoundError: there are no class folders, or none of them holds an image.
        UserError: train/ and test/ have different classes; two class folders are one; an argument
            out of range.
    """
    check_files(image_size, num_workers, crop_scale)
    parts = find_parts(data_root, root)
    train, test = scan(parts["train"]), scan(parts["test"]) if "test" in parts else None
    for path, found in zip(parts.values(), (train, test), strict=False):
        if found.empty:
            names = ", ".join(found.empty[:10])
            warn(f"{path} has class folders without an image, which are left out: {names}")
    others = [name for name in _folders(root) if name not in parts] if root else []
    if others and parts["train"] != Path(root):
        names = ", ".join(others[:10])
        warn(f"{root} holds train/, which is read; its other folders are not: {names}")
    left_out = train.left_out + (test.left_out if test else Counter())
    paths, targets = train.paths, torch.tensor(train.targets)
    listed = [train] + [test] * (test is not None)
    names = [path for part in listed for path in part.paths]
    labels = [part.classes[target] for part in listed for target in part.targets]
    original = find_copies("images", names, labels, len(paths))
    notes = [describe(left_out)]
    if test is None:
        divided = split_off(targets, test_fraction, original, train.classes)
        train_part, test_part = (
            Split([paths[row] for row in rows], targets[rows]) for rows in divided
        )
        notes.append(count_copies(original))
        original = among(original, divided[0])
    elif train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        raise UserError(
            f"train/ and test/ must hold the same class folders; only in one of them: "
            f"{', '.join(differing[:10])}"
        )
    else:
        train_part = Split(paths, targets)
        test_part = Split(test.paths, torch.tensor(test.targets))
    return Dataset(
        train_part,
        test_part,
        classes=train.classes,
        in_channels=3,
        image_size=image_size,
        **IMAGENET,
        flip=flip,
        crop_scale=crop_scale,
        trusted=False,
        num_workers=num_workers,
        made_split=test is None,
        doubtful_test=True,
        root=Path(root or data_root),
        cache=cache_folder(data_root, cache),
        original=original,
        note="; ".join(filter(None, notes)),
    )


def find_parts(data_root: str, root: str | None) -> dict[str, Path]:
    """The folders of class folders: "train" and, if there is one, "test"; raises as ``folder``."""
    base = Path(root or data_root)
    parts = {part: base / part for part in ("train", "test") if (base / part).is_dir()}
    if "train" in parts:
        return parts
    if not parts and root is not None and base.is_dir() and _folders(base):
        return {"train": base}
    reads = (
        "the dataset 'folder' reads root/train/<class>/<image> and, if it is there, "
        "root/test/<class>/<image>, or, with neither of these folders, root/<class>/<image>"
    )
    if root is None:
        raise FileNotFoundError(
            f"{base / 'train'} is not a folder: {reads}; set dataset.root=<your folder>"
        )
    if not base.is_dir():
        raise FileNotFoundError(f"there is no folder {base}; {reads}")
    if parts:
        raise FileNotFoundError(f"{base} holds test/ without train/: {reads}")
    raise FileNotFoundError(
        f"{base} holds no folders of classes: {reads}. Is it one of the classes? Then set "
        f"dataset.root={base.resolve().parent}"
    )


def _folders(base):
    """The names of the folders in ``base`` that are not hidden."""
    entries = Path(base).iterdir()
    return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
