"""MNIST, from torchvision's files."""

from pathlib import Path

import torchvision

from datasets.base import Dataset, Split, missing


def mnist(data_root: str = "data") -> Dataset:
    """60,000 training and 10,000 test digits of 28x28 pixels; no augmentation (LeCun et al. 1998).

    Raises FileNotFoundError where the files are neither under ``data_root`` nor to be downloaded.
    """
    root = Path(data_root)
    splits = []
    for train in (True, False):
        try:
            source = torchvision.datasets.MNIST(root, train=train, download=not _present(root))
        except (RuntimeError, OSError, ValueError) as error:
            layout = "MNIST/raw/ with {train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte"
            raise missing("MNIST", root, layout) from error
        splits.append(Split(source.data.unsqueeze(1), source.targets))
    return Dataset(*splits, classes=[str(digit) for digit in range(10)], in_channels=1, image_size=28,
                   mean=(0.1307,), std=(0.3081,))


def _present(root):
    return (root / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()
