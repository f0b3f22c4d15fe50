"""What a dataset is made of, and what a batch of it looks like."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from sklearn.model_selection import train_test_split
from torch import Tensor


class Batch(NamedTuple):
    """What the loop sees. ``index [B]`` are positions in the whole training set; ``extra`` is a method's second stream."""

    input: Tensor
    target: Tensor
    index: Tensor
    extra: object = None


@dataclass
class Split:
    """Training or test part: uint8 images [N, C, H, W] in memory or the paths of N image files, and targets [N]."""

    images: Tensor | list[str]
    targets: Tensor

    def __len__(self):
        return len(self.targets)


@dataclass
class Dataset:
    """A dataset with everything that a loader needs to know about it.

    ``mean`` and ``std`` are per channel, of pixels in [0, 1]. Training images in memory are cropped at random after
    padding by ``crop_padding`` pixels, of zeros or ("reflect") of the image mirrored at its edge, and mirrored with
    probability 1/2 if ``flip``; of image files a part of at least ``crop_scale`` of the area is cropped and resized.
    ``trusted``: the labels that come with it are taken for true, so that injected noise can be told from them. ``true``:
    the true labels of the training part, where it comes with both.
    """

    train: Split
    test: Split
    classes: list[str]
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    flip: bool = False
    crop_scale: float = 0.08
    trusted: bool = True
    true: Tensor | None = None
    num_workers: int = 0


def from_torchvision(source: type, root: Path, folder: str, files: str) -> list:
    """Training and test part of a torchvision dataset, downloaded if its folder is not there and a network exists.

    Raises FileNotFoundError, saying which files to put where, if they can neither be read nor downloaded. A folder that
    holds something is never written to.
    """
    download = not any((root / folder).glob("*"))
    try:
        return [source(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, ValueError, OSError) as error:  # missing, damaged, empty, or offline
        reason = "was not found, and could not be downloaded" if download else "is damaged or incomplete"
        raise FileNotFoundError(f"{source.__name__} under data_root={root} {reason}. Put there: {folder}/ with {files}; or "
                                f"name the folder that has it with data_root=<folder>") from error


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def split_off(targets: Tensor, fraction: float) -> tuple[list[int], list[int]]:
    """Positions [N] of a training and of a test part, always the same ones, stratified by target.

    Raises ValueError where a class is too small for it.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction must lie in (0, 1), got {fraction}")
    try:
        train, test = train_test_split(range(len(targets)), test_size=fraction, stratify=targets, random_state=0)
    except ValueError as error:
        raise ValueError(f"a test part of {fraction} cannot be split off class by class: {error}") from None
    return sorted(train), sorted(test)


def check_files(image_size: int, num_workers: int, crop_scale: float):
    """Raise ValueError for arguments that no dataset of image files can have."""
    if image_size < 8 or num_workers < 0 or not 0 < crop_scale <= 1:
        raise ValueError(f"image_size must be at least 8, num_workers at least 0 and crop_scale in (0, 1], got {image_size}, "
                         f"{num_workers} and {crop_scale}")
