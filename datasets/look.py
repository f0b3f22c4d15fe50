"""A glance at the images of a run, and what in them does not go together with its network."""

from collections.abc import Sequence
from statistics import median

import numpy as np

from datasets.base import Dataset
from utils.decoding import read_size

HEADERS = 200  # files that are opened, evenly spread
SMALL, LARGE = 64, 100  # pixels of the shorter side: small images end, and photographs begin
FEW = 5  # images of a class
IMAGES_PER_NETWORK = 10_000  # that are few for a network of so many parameters from scratch:
LARGE_NETWORK = 5_000_000


def median_side(paths: Sequence[str]) -> int:
    """The median of the shorter sides in pixels, by the headers of some files; 0 without any."""
    lengths = []
    for row in np.unique(np.linspace(0, len(paths) - 1, min(HEADERS, len(paths))).astype(int)):
        try:
            lengths.append(min(read_size(paths[row])))
        except OSError:
            continue
    return round(median(lengths)) if lengths else 0


def mismatches(dataset: Dataset, *, pretrained: bool, num_parameters: int) -> list[str]:
    """What about image files and network does not go together, a line each.

    Args:
        pretrained: whether the network starts from weights.
        num_parameters: of the network.
    """
    if not isinstance(dataset.train.source, list):
        return []
    lines, count, side = [], len(dataset.train), median_side(dataset.train.source)
    size = dataset.features_size or dataset.image_size
    name = f"images have {side} pixels (median of their shorter sides)"
    if not dataset.features_size and 0 < side <= SMALL and size >= 3 * side:
        lines.append(
            f"the {name}, and dataset.image_size={size} enlarges them for a network that is "
            f"trained on them: params/folder/small.yaml, or discrimloss.yaml there, fits small ones"
        )
    if side >= LARGE and size < LARGE / 2:
        key = "features.image_size" if dataset.features_size else "dataset.image_size"
        lines.append(
            f"the {name}, and {key}={size} leaves little of them: params/folder/discrimloss.yaml "
            f"and finetune.yaml look at photographs at 224"
        )
    from_scratch = not dataset.features_size and not pretrained
    if from_scratch and num_parameters >= LARGE_NETWORK and count < IMAGES_PER_NETWORK:
        lines.append(
            f"{count:,} images are few for a network of {num_parameters:,} parameters from "
            f"scratch: params/folder/discrimloss.yaml trains a small one on pretrained features"
        )
    if dataset.classes:
        sizes = np.bincount(dataset.train.targets.numpy(), minlength=len(dataset.classes))
        if np.median(sizes) < FEW:
            lines.append(
                f"half of the {len(dataset.classes):,} classes have fewer than {FEW} training "
                f"images, too few to learn which of them do not belong: join classes, or add images"
            )
    return lines
