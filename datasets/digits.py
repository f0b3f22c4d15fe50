"""The 8x8 handwritten digits that scikit-learn carries: real data that needs no download."""

from typing import Annotated

import torch

from datasets.base import Dataset, Split
from datasets.imbalance import keep_classes
from utils.build import AT_LEAST_1


def digits(
    crop_padding: int = 0,
    keep: dict[str, int] | None = None,
    test_per_class: Annotated[int | None, AT_LEAST_1] = None,
    seed: int = 0,
) -> Dataset:
    """1,797 grey digits of 8x8 pixels in 10 classes: 1,297 to train, 500 to test.

    The split is fixed and stratified by class. Source: UCI Optical Recognition of Handwritten
    Digits (its test part), as shipped by scikit-learn.

    Args:
        crop_padding: 1 crops the training images at random out of a margin of one pixel on each
            side; 0 leaves them.
        keep, test_per_class: classes and how many samples of each, as datasets.imbalance says.
        seed: of the draw of these.
    """
    # these take a second to import: only if the digits are used
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = (torch.from_numpy(source.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    targets = torch.from_numpy(source.target).long()
    train, test = train_test_split(
        range(len(targets)), test_size=500, stratify=source.target, random_state=0
    )
    dataset = Dataset(
        Split(images[train], targets[train]),
        Split(images[test], targets[test]),
        classes=[str(digit) for digit in range(10)],
        in_channels=1,
        image_size=8,
        mean=(0.3053,),
        std=(0.3758,),
        crop_padding=crop_padding,
    )
    return keep_classes(dataset, keep, test_per_class, seed)
