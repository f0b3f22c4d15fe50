"""MNIST, from torchvision's files."""

from pathlib import Path
from typing import Annotated

from datasets.base import Dataset, Split, from_torchvision
from datasets.imbalance import keep_classes
from utils.build import AT_LEAST_1


def mnist(
    data_root: str = "data",
    crop_padding: int = 0,
    standardise: bool = True,
    keep: dict[str, int] | None = None,
    test_per_class: Annotated[int | None, AT_LEAST_1] = None,
    seed: int = 0,
) -> Dataset:
    """60,000 training and 10,000 test digits of 28x28 pixels (LeCun et al. 1998).

    Args:
        crop_padding: so many zeros are padded on each side before a random crop of the training
            images; 0 leaves them.
        standardise: subtract the mean of all training pixels and divide by their standard
            deviation; otherwise pixels lie in [0, 1].
        keep, test_per_class: classes and how many samples of each, as datasets.imbalance says.
        seed: of the draw of these.

    Raises FileNotFoundError if the files are neither under ``data_root`` nor to be downloaded.
    """
    import torchvision  # takes seconds: only if it is used

    files = "{train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte"
    parts = from_torchvision(torchvision.datasets.MNIST, Path(data_root), "MNIST/raw", files)
    splits = [Split(part.data.unsqueeze(1), part.targets) for part in parts]
    dataset = Dataset(
        *splits,
        classes=[str(digit) for digit in range(10)],
        in_channels=1,
        image_size=28,
        mean=(0.1307,) if standardise else (0.0,),
        std=(0.3081,) if standardise else (1.0,),
        crop_padding=crop_padding,
    )
    return keep_classes(dataset, keep, test_per_class, seed)
