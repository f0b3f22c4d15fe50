"""Image files as uint8: decoded when asked for, kept decoded, or packed into one file."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.decoding import decode, read_size
from utils.files import atomic_write

MAX_RATIO = 32  # of the sides of an image: of a longer one the middle is taken


def normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """(scale, shift) with which pixel * scale + shift is (pixel / 255 - mean) / std."""
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (mean, std))
    return 1 / (255 * std), -mean / std


def shorter_side(image_size: int) -> int:
    """What the shorter side of an image is resized to before a square is cut out: 256 for 224."""
    return round(image_size * 256 / 224)


def middle(image: Tensor) -> Tensor:
    """An image [C, H, W] that is not longer than MAX_RATIO times its shorter side.

    Resized to a shorter side of 256, a scan line of 12,000 x 1 pixels would take gigabytes.
    """
    from torchvision.transforms.v2.functional import center_crop

    longest = MAX_RATIO * min(image.shape[1:])
    if max(image.shape[1:]) <= longest:
        return image
    return center_crop(image, [min(length, longest) for length in image.shape[1:]])


class Decoded:
    """Images as uint8, one after another in a tensor, or in a file, which worker processes share.

    Those of shape (0, 0) could not be decoded; they are tried again whenever they are asked for,
    and raise OSError.
    """

    def __init__(self, paths: list[str], shapes: np.ndarray, pixels: Tensor | Path):
        self.paths, self.shapes, self.pixels, self.map = paths, shapes, pixels, None
        self.ends = np.cumsum(3 * shapes.astype(np.int64).prod(1))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        height, width = self.shapes[row].tolist()
        if height == 0:
            return decode(self.paths[row])
        part = slice(self.ends[row] - 3 * height * width, self.ends[row])
        if isinstance(self.pixels, Tensor):
            return self.pixels[part].view(3, height, width)
        if self.map is None:  # which may be larger than the memory
            self.map = np.memmap(self.pixels, np.uint8, "r")
        return torch.from_numpy(self.map[part].copy()).view(3, height, width)

    def __getstate__(self):
        return self.__dict__ | {"map": None}  # each process maps the file for itself


def decode_all(paths: list[str], memory_limit: int) -> list[str] | Decoded:
    """The images decoded and kept in memory, if they take no more than ``memory_limit`` bytes.

    Else the paths as they are.
    """
    shapes, total = [], 0
    for path in paths if memory_limit else ():
        try:
            height, width = read_size(path)
        except OSError:
            height = width = 0
        shapes.append((height, width))
        total += 3 * height * width
        if total > memory_limit:
            break
    if not 0 < total <= memory_limit:
        return paths
    images = Decoded(paths, np.array(shapes), torch.empty(total, dtype=torch.uint8))
    unreadable = []
    for row, image in enumerate(decode_each(paths)):
        if image is None or image.numel() != 3 * images.shapes[row].prod():
            unreadable.append(row)  # at least now or before
        else:
            images.shapes[row] = image.shape[1:]  # of one that was turned, the other way round
            images[row].copy_(image)
    images.shapes[unreadable] = 0
    return images


def pack(paths: list[str], shorter: int, folder: Path) -> Decoded:
    """The images out of one memory-mapped file, which is made if ``folder`` holds none for them.

    Those whose shorter side is longer than ``shorter`` are resized to that. The file is named after
    the paths, sizes and times of change; other processes that want it wait while it is made. It
    holds all pixels, then the shapes [N, 2], int32.

    Raises OSError if it is damaged.
    """
    packed = folder / f"{_version(paths, shorter)}.images"
    if not packed.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with open(packed.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not packed.exists():
                _write(packed, paths, shorter)
    size = packed.stat().st_size
    shapes = np.fromfile(packed, np.int32, offset=max(0, size - 8 * len(paths)))
    shapes = shapes[: 2 * len(paths)].reshape(-1, 2)
    images = Decoded(paths, shapes, packed)
    if len(shapes) != len(paths) or size != images.ends[-1] + 8 * len(paths):
        raise OSError(f"{packed} is damaged: remove it")
    return images


def _version(paths, shorter):
    """What changes if one of the files does, or how they are decoded."""
    listing = hashlib.sha256(f"turned {shorter}\n".encode())
    for path in paths:
        try:
            status = os.stat(path)
            version = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            version = "missing"
        listing.update(f"{os.path.abspath(path)}\n{version}\n".encode(errors="surrogateescape"))
    return listing.hexdigest()[:16]


def _write(packed, paths, shorter):
    from torchvision.transforms.v2.functional import resize

    def shrunk(image):
        image = middle(image)
        return resize(image, [shorter]) if min(image.shape[1:]) > shorter else image

    shapes = np.zeros((len(paths), 2), np.int32)
    with atomic_write(packed, "wb") as file:
        for row, image in enumerate(decode_each(paths, shrunk, f"packing into {packed}")):
            if image is not None:
                shapes[row] = image.shape[1:]
                file.write(image.contiguous().numpy())
        file.write(shapes)


def decode_each(paths, then=lambda image: image, what="decoding") -> Iterator[Tensor | None]:
    """What ``then`` makes of each image, in order; None for one that cannot be decoded."""

    def decode_or_none(path):
        try:
            return then(decode(path))
        except OSError:
            return None

    with (
        ThreadPoolExecutor() as pool,  # the decoders work without the interpreter's lock
        tqdm(total=len(paths), desc=what, unit=" images", leave=False, disable=None) as bar,
    ):
        for first in range(0, len(paths), 1024):  # of which so many are held at once
            for image in pool.map(decode_or_none, paths[first : first + 1024]):
                yield image
                bar.update()
