"""UTKFace: photographs of faces, and how old they are."""

import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from datasets.base import IMAGENET, Dataset, Split, check_files
from datasets.scan import is_hidden
from utils.errors import UserError


def utkface(
    data_root: str = "data",
    image_size: int = 128,
    num_workers: int = 4,
    test_fraction: float = 0.1,
    split_seed: int = 10,
    crop_scale: float = 0.08,
    test_crop: Literal["centre", "authors"] = "centre",
    memory_limit: int = 2**32,
) -> Dataset:
    """Aligned and cropped faces (Zhang et al., CVPR 2017) and their age in years, 23,708 files.

    They lie in ``data_root``/UTKFace, or in folders there, and are called
    ``age_gender_race_date.jpg.chip.jpg``; files whose name does not begin with an age are left out
    and counted. The files, in order of their paths, are shuffled with ``split_seed``, and the first
    ``test_fraction`` is the test part: 21,337 and 2,371. The run says in split.csv which these are.
    Training images are cropped at random (``crop_scale`` as for ``folder``) and mirrored;
    normalised with the ImageNet statistics.

    Args:
        test_crop: "centre": test images are resized to 256/224 of ``image_size`` and cropped in the
            centre; "authors": they get the random augmentation of the training, new in each epoch,
            as in the code of the DiscrimLoss authors, whose split is not known.
        memory_limit: the decoded images of each part are kept if they take no more bytes; of
            200x200 pixels all take 2.8e9.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        UserError: two files of one name, copies perhaps; an argument out of range.
    """
    check_files(image_size, num_workers, crop_scale)
    if not 0 < test_fraction < 1 or memory_limit < 0:
        raise UserError(
            f"test_fraction must lie in (0, 1) and memory_limit be at least 0, got "
            f"{test_fraction} and {memory_limit}"
        )
    folder = Path(data_root, "UTKFace")
    files = image_files(folder)
    named = [path for path in files if age(path.name) is not None]
    if len(named) < 2:
        raise FileNotFoundError(
            f"there are no images with an age in their names, e.g. 26_1_0_20170116.jpg, in "
            f"{folder}: put the aligned and cropped faces of UTKFace there, or set "
            f"data_root=<folder with UTKFace/>"
        )
    if len({path.name for path in named}) < len(named):
        raise UserError(
            f"{folder} holds files of the same name in different folders, copies that would be "
            f"trained and tested on: leave one of each"
        )
    order = np.random.RandomState(split_seed).permutation(len(named))
    count = min(max(round(test_fraction * len(named)), 1), len(named) - 1)
    test, train = (_split([named[row] for row in rows]) for rows in (order[:count], order[count:]))
    skipped = len(files) - len(named)
    return Dataset(
        train,
        test,
        classes=[],
        in_channels=3,
        image_size=image_size,
        **IMAGENET,
        flip=True,
        crop_scale=crop_scale,
        augment_test=test_crop == "authors",
        num_workers=num_workers,
        memory_limit=memory_limit,
        made_split=True,
        note=f"{skipped} files without an age in their names left out" if skipped else "",
    )


def image_files(folder: Path) -> list[Path]:
    """Its images and those of the folders in it, in order of their paths."""
    suffixes = (".jpg", ".jpeg", ".png")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(map(is_hidden, path.relative_to(folder).parts))
    )


def _split(paths):
    ages = torch.tensor([age(path.name) for path in paths])
    return Split([str(path) for path in paths], ages)


def age(name: str) -> float | None:
    """The first field of a file's name, if that is an age in years, 0 to 120."""
    match = re.match(r"(\d{1,3})_", name)
    return float(match[1]) if match and int(match[1]) <= 120 else None
