"""WebVision 1.0: photographs that Google found for the 1,000 classes of ImageNet."""

from collections import Counter
from pathlib import Path

import torch

from datasets.base import IMAGENET, Dataset, Split, cache_folder, check_files, read_lines
from datasets.scan import is_hidden
from utils.errors import UserError


def webvision(
    data_root: str = "data",
    num_classes: int = 50,
    image_size: int = 224,
    num_workers: int = 8,
    crop_scale: float = 0.08,
    cache: bool = False,
) -> Dataset:
    """Mini-WebVision (Jiang et al., ICML 2018): Google's images of the first 50 classes.

    About 66,000 images to train and 2,500 to test. Reads the release in ``data_root``/webvision:
    ``info/train_filelist_google.txt`` and ``info/val_filelist.txt``, a path and a label a line, the
    latter's from ``val_images_256/``; and ``info/synsets.txt``, which names the classes. The
    validation images of ImageNet of the same classes, ``data_root``/imagenet/val/<synset>/*, are a
    second test part, "imagenet", if that folder exists. Images are treated as those of ``folder``.

    Args:
        num_classes: 50; 1000 is all of WebVision's Google part.
        cache: as for ``folder``.

    Raises:
        FileNotFoundError: a list, or a class of ImageNet, that is not there.
        UserError: a line without a label; fewer classes than asked for; an argument out of range.
    """
    check_files(image_size, num_workers, crop_scale)
    if num_classes < 2:
        raise UserError(f"num_classes must be at least 2, got {num_classes}")
    folder = Path(data_root, "webvision")
    lines = _read(folder / "info/synsets.txt")
    synsets = [line.split(maxsplit=1) for line in lines if line.strip()][:num_classes]
    if len(synsets) < num_classes:
        raise UserError(
            f"{folder}/info/synsets.txt names {len(synsets)} classes, fewer than "
            f"num_classes={num_classes}"
        )
    train = read(folder / "info/train_filelist_google.txt", folder, num_classes)
    test = read(folder / "info/val_filelist.txt", folder / "val_images_256", num_classes)
    imagenet = Path(data_root, "imagenet/val")
    more = {}
    if imagenet.is_dir():
        more["imagenet"] = _imagenet(imagenet, [synset[0] for synset in synsets])
    return Dataset(
        train,
        test,
        classes=_names(synsets),
        in_channels=3,
        image_size=image_size,
        **IMAGENET,
        flip=True,
        crop_scale=crop_scale,
        trusted=False,
        num_workers=num_workers,
        more_tests=more,
        cache=cache_folder(data_root, cache),
        note="" if more else f"no ImageNet images in {imagenet}",
    )


def _names(synsets):
    """The first word for each synset, with its number where another one has the same word."""
    words = [synset[-1].split(",")[0] for synset in synsets]
    count = Counter(words)
    return [
        f"{word} ({synset[0]})" if count[word] > 1 else word
        for word, synset in zip(words, synsets, strict=True)
    ]


def read(path: Path, folder: Path, num_classes: int) -> Split:
    """The images of a list, those of the first classes; raises as ``webvision``."""
    paths, targets = [], []
    for number, line in enumerate(_read(path), start=1):
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal():
            raise UserError(
                f"{path}, line {number}: a path and a label were expected, got {line!r}"
            )
        if int(label) < num_classes:
            paths.append(str(folder / name))
            targets.append(int(label))
    if len(set(targets)) < num_classes:
        raise UserError(
            f"{path} has images of {len(set(targets))} of the first {num_classes} classes"
        )
    return Split(paths, torch.tensor(targets))


def _imagenet(folder, synsets):
    paths, targets, missing = [], [], []
    for label, synset in enumerate(synsets):
        files = sorted(path for path in (folder / synset).glob("*.*") if not is_hidden(path.name))
        if not files:
            missing.append(synset)
        paths += [str(path) for path in files]
        targets += [label] * len(files)
    if missing:
        raise FileNotFoundError(
            f"{folder} has no images of {', '.join(missing[:5])}: its layout must be "
            f"<synset>/<image>"
        )
    return Split(paths, torch.tensor(targets))


def _read(path):
    return read_lines(
        path,
        "it comes with WebVision 1.0 (data.vision.ee.ethz.ch/cvl/webvision); set "
        "data_root=<folder with webvision/>",
    )
