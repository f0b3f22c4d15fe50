"""What a dataset is made of, and what a batch of it looks like."""

import contextlib
import fcntl
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.distributed import main_process_only
from utils.errors import UserError
from utils.escapes import printable


class Batch(NamedTuple):
    """Samples on the training device, as the training loop and the methods get them."""

    input: Tensor  # [B, ...]; views of unlabelled samples: [num_views, B, ...]
    target: Tensor | None  # [B], or soft [B, C]; None: unlabelled
    index: Tensor  # [B], positions in the training set, or in a dataset's verified part
    extra: "Batch | None" = None  # of the second stream, if the method asks for one


@dataclass
class Split:
    """A part of a dataset."""

    # uint8 images [N, C, H, W], or the paths of N image files, or what a model takes, e.g. tokens
    inputs: Tensor | list[str]
    targets: Tensor  # [N], classes (int64), or in regression numbers to predict (float32)
    texts: list[str] | None = None  # the inputs in words, if they are words
    images: Tensor | list[str] | None = None  # what the inputs are features of, if they are that
    given: Tensor | None = None  # [N], the labels that were given, if the targets are the true ones

    @property
    def source(self) -> Tensor | list[str]:
        """The images or paths that the inputs were made of, or the inputs themselves."""
        return self.inputs if self.images is None else self.images

    def __len__(self):
        return len(self.targets)


@dataclass
class Dataset:
    """A dataset with everything that a loader needs to know about it."""

    train: Split
    test: Split
    classes: list[str]  # their names; none in regression
    in_channels: int = 0  # of images
    image_size: int = 0  # height and width that a model gets
    mean: tuple[float, ...] = ()  # per channel, of pixels in [0, 1]; () if inputs are no images
    std: tuple[float, ...] = ()
    crop_padding: int = 0  # training images in memory are padded by so much, and cropped at random
    padding_mode: Literal["zeros", "reflect"] = "zeros"  # "reflect": mirrored at the edge
    flip: bool = False  # training images are mirrored with probability 1/2
    # of training image files, at least this part of the area is cropped and resized; None: a square
    # of the resized image is cropped
    crop_scale: float | None = 0.08
    augment_test: bool = False  # test image files are augmented too, else cropped in the centre
    trusted: bool = True  # its labels count as true, so that injected noise can be told from them
    true: Tensor | None = None  # [N], true labels of the training part, if it comes with both
    original: list[int] | None = None  # [N], the first copy of each training sample, if known
    num_workers: int = 0  # that read image files
    validation: Split | None = None  # a part to choose the epoch on
    verified: Split | None = None  # more training samples, whose labels people have checked
    more_tests: dict[str, Split] = field(default_factory=dict)  # other test parts, by name
    memory_limit: int = 0  # image files of a part are kept decoded if they take no more bytes
    cache: Path | None = None  # a folder to keep image files in, resized once and packed
    features_size: int = 0  # height and width of the images that inputs are features of, if any
    unreadable: dict[str, str] = field(default_factory=dict)  # files left out here, path: reason
    made_split: bool = False  # files were split into train and test here: a run writes down how
    doubtful_test: bool = False  # the labels of the test part are as doubtful as the others
    root: Path | None = None  # what the user's own table names its image files relative to
    note: str = ""  # what else there is to say

    def __post_init__(self):
        if len(self.classes) == 1:
            raise UserError(
                f"there is one class, {self.classes[0]!r}, and it takes two to tell one from the "
                f"other: add images or rows of another class"
            )

    @property
    def task(self) -> str:
        return "classification" if self.classes else "regression"

    @property
    def num_outputs(self) -> int:
        """How many numbers a model gives for each sample."""
        return len(self.classes) or 1

    @property
    def is_images(self) -> bool:
        return bool(self.mean)

    @property
    def shows_images(self) -> bool:
        """Whether its samples are images, if only features of them are the inputs."""
        return self.is_images or self.train.images is not None

    def name(self, path: str) -> str:
        """A path as the user's own table has it, relative to ``root`` if it is in there."""
        inside = f"{self.root}{os.sep}" if self.root else ""
        return path.removeprefix(inside)

    def example(self, count: int = 2) -> Tensor:
        """Inputs [count, ...] of the shape that a model gets."""
        if self.is_images:
            return torch.zeros(count, self.in_channels, self.image_size, self.image_size)
        return self.train.inputs[:count]

    def __str__(self):
        parts = {
            "training": self.train,
            "verified": self.verified,
            "validation": self.validation,
            "test": self.test,
            **self.more_tests,
        }
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in parts.items() if part)
        classes = f" in {len(self.classes)} classes" if self.classes else ""
        return f"{sizes} samples{classes}" + (f"; {self.note}" if self.note else "")


def from_torchvision(source: type, root: Path, folder: str, files: str) -> list:
    """Training and test part of a torchvision dataset, downloaded if its folder is not there.

    A folder that holds something is never written to. Of several processes that find none, one
    downloads; what is there then is whole.

    Raises FileNotFoundError, saying which files to put where, if they can neither be read nor
    downloaded.
    """
    download = not any((root / folder).glob("*"))
    try:
        if download:
            _download(source, root, folder)
        return [source(root, train=train) for train in (True, False)]
    except (RuntimeError, ValueError, OSError) as error:  # missing, damaged, empty, or offline
        reason = "is damaged or incomplete"
        if download:
            reason = "was not found, and could not be downloaded"
        raise FileNotFoundError(
            f"{source.__name__} under data_root={root} {reason}. Put there: {folder}/ with "
            f"{files}; or name the folder that has it with data_root=<folder>"
        ) from error


def _download(source, root, folder):
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f".lock-{source.__name__}", "w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if any((root / folder).glob("*")):  # another process was faster
            return
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as made:
            archive = root / getattr(source, "filename", folder)
            if archive.is_file():  # downloaded before, and not unpacked
                Path(made, archive.name).symlink_to(archive.resolve())
            for train in (True, False):
                source(made, train=train, download=True)
            (root / folder).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(made, folder), root / folder)


@main_process_only
def warn(message: str):
    """Say in a line what is strange about the data and no error."""
    print(f"warning: {printable(message)}", file=sys.stderr)


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def split_off(
    targets: Tensor, fraction: float, original: Sequence[int], classes: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Positions [N] of a training and of a test part, always the same, stratified by class.

    Targets that are numbers are not stratified. Copies are on the side of their originals.

    Args:
        fraction: 0 leaves the test part empty.
        original: [N], the position of the first copy of each sample, as of datasets.copies.
        classes: names.

    Raises UserError if a class is too small for it.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    if not 0 <= fraction < 1:
        raise UserError(f"test_fraction must lie in [0, 1), got {fraction}")
    if fraction == 0:
        return list(range(len(targets))), []
    rows = [row for row, first in enumerate(original) if row == first]
    strata = None if targets.is_floating_point() else targets[rows]
    try:
        _, test = train_test_split(rows, test_size=fraction, stratify=strata, random_state=0)
    except ValueError as error:
        reason = too_rare(strata, classes) or error
        raise UserError(
            f"a test part of {fraction} cannot be split off class by class: {reason}; add more of "
            f"these, or give a test part of your own"
        ) from None
    test = set(test)
    return (
        [row for row, first in enumerate(original) if first not in test],
        [row for row, first in enumerate(original) if first in test],
    )


def too_rare(labels: Tensor | np.ndarray | None, classes: Iterable[str | int]) -> str:
    """Which classes are too small to be in two parts, in words; "" if none is, or without labels.

    Args:
        labels: without those of copies.
        classes: names.
    """
    counts = np.bincount([] if labels is None else labels, minlength=1)
    rare = [str(name) for name, count in zip(classes, counts, strict=False) if count == 1]
    if not rare:
        return ""
    more = f" and {len(rare) - 10} more" if len(rare) > 10 else ""
    return f"without copies, only one sample has the label {', '.join(rare[:10])}{more}"


def read_lines(path: Path, missing: str) -> list[str]:
    """The lines of a text file.

    Raises FileNotFoundError with the advice ``missing``, or UserError if it is no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} was not found: {missing}")
    try:
        return path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as text ({error})") from None


def cache_folder(data_root: str, wanted: bool) -> Path | None:
    """Where packed images are kept, if they are."""
    return Path(data_root, "cache") if wanted else None


def check_files(image_size: int, num_workers: int, crop_scale: float):
    """Raise UserError for arguments that no dataset of image files can have."""
    if image_size < 8 or num_workers < 0 or not 0 < crop_scale <= 1:
        raise UserError(
            f"image_size must be at least 8, num_workers at least 0 and crop_scale in (0, 1], got "
            f"{image_size}, {num_workers} and {crop_scale}"
        )
