"""A folder of the user's own images, one sub-folder a class."""

from pathlib import Path

import torch
from torchvision.datasets import ImageFolder

from datasets.base import Dataset, Split


def folder(data_root: str = "data", image_size: int = 224, num_workers: int = 2) -> Dataset:
    """``data_root/train/<class>/*`` and ``data_root/test/<class>/*``, in any format that torchvision's ImageFolder reads.

    Training images are cropped at random and mirrored, test images resized to 256/224 of ``image_size`` and cropped in
    the centre; both are normalised with the ImageNet statistics. Its labels are taken as they are, noisy perhaps, so
    nothing is reported that needs true ones, unless noise is injected on top: then the folder's labels count as true.

    Raises:
        FileNotFoundError: train/ or test/ is missing, or a class folder holds no image.
        ValueError: train/ and test/ have different classes; image_size or num_workers out of range.
    """
    if image_size < 8 or num_workers < 0:
        raise ValueError(f"folder needs image_size >= 8 and num_workers >= 0, got {image_size} and {num_workers}")
    parts = {}
    for part in ("train", "test"):
        path = Path(data_root) / part
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a folder: the dataset 'folder' reads data_root/train/<class>/<image> and "
                                    f"data_root/test/<class>/<image>; set data_root=<your folder>")
        parts[part] = ImageFolder(str(path))
    train, test = parts["train"], parts["test"]
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"train/ and test/ must hold the same class folders; only in one of them: {', '.join(differing)}")
    splits = [Split([path for path, _ in part.samples], torch.tensor(part.targets)) for part in (train, test)]
    return Dataset(*splits, classes=train.classes, in_channels=3, image_size=image_size, mean=(0.485, 0.456, 0.406),
                   std=(0.229, 0.224, 0.225), trusted=False, num_workers=num_workers)
