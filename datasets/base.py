"""What a dataset is made of, and what a batch of it looks like."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from utils.errors import UserError


class Batch(NamedTuple):
    """Samples on the training device, as the training loop and the methods get them."""

    input: Tensor  # [B, ...]; views of unlabelled samples: [num_views, B, ...]
    target: Tensor | None  # [B], or soft [B, C]; None: unlabelled
    index: Tensor  # [B], positions in the training set, or in a dataset's verified part
    extra: "Batch | None" = None  # of the second stream, if the method asks for one


@dataclass
class Split:
    """A part of a dataset: inputs, and targets [N]: class numbers (int64), or what a regression
    predicts (float32).

    Inputs are uint8 images [N, C, H, W] in memory, the paths of N image files, or, in memory,
    whatever a model takes, e.g. tokens [N, L]. ``texts`` are those inputs in words, where they are
    words.
    """

    inputs: Tensor | list[str]
    targets: Tensor
    texts: list[str] | None = None

    def __len__(self):
        return len(self.targets)


@dataclass
class Dataset:
    """A dataset with everything that a loader needs to know about it.

    ``classes`` are their names; there are none in regression. ``mean`` and ``std`` are per channel,
    of pixels in [0, 1]; inputs that are no images have none, and are handed over as they are.
    Training images in memory are cropped at random after padding by ``crop_padding`` pixels, of
    zeros or ("reflect") of the image mirrored at its edge, and mirrored with probability 1/2 if
    ``flip``; of image files a part of at least ``crop_scale`` of the area is cropped and resized,
    or (``crop_scale`` None) a square of the resized image. For evaluation image files are resized
    and cropped in the centre; or, of the test part, augmented as in training (``augment_test``).
    ``trusted``: the labels that come with it are taken for true, so that injected noise can be told
    from them. ``true``: the true labels of the training part, where it comes with both.
    ``verified``: training samples whose labels people have checked.
    ``validation``: a part to choose the epoch on, where it comes with one; ``more_tests``: other
    test parts, by name. ``memory_limit``: the image files of a part are decoded once and kept, if
    they take no more bytes. ``cache``: a folder to keep them in, resized once and packed.
    ``made_split``: files were split into training and test part here, which a run writes down.
    ``note``: what else there is to say.
    """

    train: Split
    test: Split
    classes: list[str]
    in_channels: int = 0
    image_size: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    crop_padding: int = 0
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    flip: bool = False
    crop_scale: float | None = 0.08
    augment_test: bool = False
    trusted: bool = True
    true: Tensor | None = None
    num_workers: int = 0
    validation: Split | None = None
    verified: Split | None = None
    more_tests: dict[str, Split] = field(default_factory=dict)
    memory_limit: int = 0
    cache: Path | None = None
    made_split: bool = False
    note: str = ""

    @property
    def task(self) -> str:
        return "classification" if self.classes else "regression"

    @property
    def num_outputs(self) -> int:
        """What a model must say of each sample: a number per class, or one."""
        return len(self.classes) or 1

    @property
    def is_images(self) -> bool:
        return bool(self.mean)

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
    """Training and test part of a torchvision dataset, downloaded if its folder is not there and a
    network exists.

    Raises FileNotFoundError, saying which files to put where, if they can neither be read nor
    downloaded. A folder that holds something is never written to.
    """
    download = not any((root / folder).glob("*"))
    try:
        return [source(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, ValueError, OSError) as error:  # missing, damaged, empty, or offline
        reason = (
            "was not found, and could not be downloaded" if download else "is damaged or incomplete"
        )
        raise FileNotFoundError(
            f"{source.__name__} under data_root={root} {reason}. Put there: {folder}/ with "
            f"{files}; or "
            f"name the folder that has it with data_root=<folder>"
        ) from error


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def split_off(targets: Tensor, fraction: float) -> tuple[list[int], list[int]]:
    """Positions [N] of a training and of a test part, always the same ones, stratified by target if
    those are classes.

    Raises ValueError where a class is too small for it.
    """
    if not 0 < fraction < 1:
        raise UserError(f"test_fraction must lie in (0, 1), got {fraction}")
    strata = None if targets.is_floating_point() else targets
    try:
        train, test = train_test_split(
            range(len(targets)), test_size=fraction, stratify=strata, random_state=0
        )
    except ValueError as error:
        raise UserError(
            f"a test part of {fraction} cannot be split off class by class: {error}"
        ) from None
    return sorted(train), sorted(test)


def cache_folder(data_root: str, wanted: bool) -> Path | None:
    """Where packed images are kept, if they are."""
    return Path(data_root, "cache") if wanted else None


def check_files(image_size: int, num_workers: int, crop_scale: float):
    """Raise ValueError for arguments that no dataset of image files can have."""
    if image_size < 8 or num_workers < 0 or not 0 < crop_scale <= 1:
        raise UserError(
            f"image_size must be at least 8, num_workers at least 0 and crop_scale in (0, 1], got "
            f"{image_size}, "
            f"{num_workers} and {crop_scale}"
        )
