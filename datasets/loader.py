"""Loaders: a split in memory, or image files read by workers, as batches on the training device.

Which samples make up batch b of epoch e, and how each is cropped and mirrored, is a function of (seed, e, b) alone. So a
run can be resumed in the middle of an epoch, and does not depend on the device or on the number of workers.
"""

import signal
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

from datasets.base import Batch, Dataset
from utils.seed import derive

EVALUATION_BATCH = 1000  # of images in memory, where no gradient is kept
ORDER = 1  # sets the random numbers of order and augmentation apart from those of the model


def batch_slices(count: int, size: int) -> list[slice]:
    """Which part of the order each batch takes; a last one of one sample, too little for a BatchNorm, joins the one before."""
    starts = list(range(0, count, size))
    if size > 1 and len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]


class MemoryLoader:
    """Batches of images that lie on the device as uint8: gathered, augmented and normalised there, without workers.

    ``rows`` are the positions in the split to use, ``targets`` their labels (of the whole split). With ``shuffle`` there
    is a new order, and with crop_padding or flip a new crop and mirroring for every sample, each epoch.
    """

    def __init__(self, images: Tensor, targets: Tensor, rows: Tensor, *, batch_size: int, device: torch.device | str,
                 mean: tuple[float, ...], std: tuple[float, ...], shuffle: bool = False, seed: int = 0,
                 crop_padding: int = 0, flip: bool = False):
        self.size, self.padding, self.flip = tuple(images.shape[-2:]), crop_padding, flip
        self.images = torch.nn.functional.pad(images.to(device), [crop_padding] * 4) if crop_padding else images.to(device)
        self.targets, self.rows, self.parts = targets.to(device), rows, batch_slices(len(rows), batch_size)
        self.device, self.shuffle, self.seed = device, shuffle, seed
        self.scale, self.shift = (part.to(device) for part in _normalisation(mean, std))
        self.set_epoch(0)

    def __len__(self):
        return len(self.parts)

    def set_epoch(self, epoch: int, first_batch: int = 0):
        """The order and augmentation of ``epoch``, from its batch ``first_batch`` on."""
        self.first_batch = first_batch
        rows, count = self.rows, len(self.rows)
        generator = torch.Generator().manual_seed(derive(self.seed, epoch, ORDER))
        if self.shuffle:
            rows = rows[torch.randperm(count, generator=generator)]
        self.order = rows.to(self.device)
        self.top_left = self.mirrored = None
        if self.padding:
            self.top_left = torch.randint(2 * self.padding + 1, (count, 2), generator=generator).to(self.device)
        if self.flip:
            self.mirrored = (torch.rand(count, generator=generator) < 0.5).to(self.device)

    def rows_of(self, batch: int) -> list[int]:
        """Positions in the split of the samples in a batch of the present epoch."""
        return self.order[self.parts[batch]].tolist()

    def __iter__(self):
        for part in self.parts[self.first_batch:]:
            index = self.order[part]
            if self.top_left is None and self.mirrored is None:
                images = self.images.index_select(0, index)
            else:
                images = crop_and_flip(self.images, index, self.size,
                                       top_left=None if self.top_left is None else self.top_left[part],
                                       mirrored=None if self.mirrored is None else self.mirrored[part])
            yield Batch((images * self.scale).add_(self.shift), self.targets[index], index)


def crop_and_flip(images: Tensor, index: Tensor, size: tuple[int, int], *, top_left: Tensor | None = None,
                  mirrored: Tensor | None = None) -> Tensor:
    """images[index], each cropped to ``size`` (height, width) at its own corner [B, 2], those marked [B] mirrored."""
    rows = torch.arange(size[0], device=images.device).expand(len(index), -1)
    columns = torch.arange(size[1], device=images.device).expand(len(index), -1)
    if mirrored is not None:
        columns = torch.where(mirrored.unsqueeze(1), size[1] - 1 - columns, columns)
    if top_left is not None:
        rows, columns = rows + top_left[:, :1], columns + top_left[:, 1:]
    channels = torch.arange(images.shape[1], device=images.device)
    return images[index[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


class FileLoader:
    """Batches of image files, decoded and augmented by worker processes and normalised on the device.

    Each sample draws its augmentation from a generator of its own, seeded with (seed, epoch, sample).
    """

    def __init__(self, paths: list[str], targets: Tensor, rows: Tensor, *, batch_size: int, device: torch.device | str,
                 mean: tuple[float, ...], std: tuple[float, ...], image_size: int, num_workers: int,
                 shuffle: bool = False, seed: int = 0):
        self.files = _Files(paths, image_size, augment=shuffle)
        self.targets, self.rows, self.parts = targets.to(device), rows, batch_slices(len(rows), batch_size)
        self.device, self.shuffle, self.seed = device, shuffle, seed
        self.num_workers = num_workers
        self.scale, self.shift = (part.to(device) for part in _normalisation(mean, std))
        self.set_epoch(0)

    def __len__(self):
        return len(self.parts)

    def set_epoch(self, epoch: int, first_batch: int = 0):
        """The order and augmentation of ``epoch``, from its batch ``first_batch`` on."""
        order = self.rows
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive(self.seed, epoch, ORDER))
            order = order[torch.randperm(len(order), generator=generator)]
        samples = [(row, derive(self.seed, epoch, ORDER, row)) for row in order.tolist()]
        self.batches = [samples[part] for part in self.parts]
        self.first_batch = first_batch

    def rows_of(self, batch: int) -> list[int]:
        """Positions in the split of the samples in a batch of the present epoch."""
        return [row for row, _ in self.batches[batch]]

    def __iter__(self):
        loader = DataLoader(self.files, batch_sampler=self.batches[self.first_batch:], num_workers=self.num_workers,
                            pin_memory=torch.device(self.device).type == "cuda", generator=torch.Generator(),
                            worker_init_fn=_leave_signals_to_the_main_process)
        try:
            for images, index in loader:
                images, index = (part.to(self.device, non_blocking=True) for part in (images, index))
                yield Batch((images * self.scale).add_(self.shift), self.targets[index], index)
        except OSError as error:  # a worker's comes with its traceback, of which the last line says it
            raise OSError(str(error).strip().splitlines()[-1].removeprefix("OSError: ")) from None


def _leave_signals_to_the_main_process(worker):
    """A cluster signals every process of a job; a worker that died of it would keep the main one from saving.

    A second SIGTERM ends a worker: that is how the main process gets rid of one that does not end by itself.
    """
    def first_sigterm(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, first_sigterm)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Files(torch.utils.data.Dataset):
    def __init__(self, paths, image_size, augment):
        self.paths = paths
        self.transform = v2.Compose(
            [v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()] if augment else
            [v2.Resize(round(image_size * 256 / 224), antialias=True), v2.CenterCrop(image_size)])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, sample):
        row, seed = sample
        try:
            image = pil_to_tensor(default_loader(self.paths[row]))  # torchvision.io's decoder crashes on a damaged PNG
        except (OSError, SyntaxError, ValueError) as error:
            raise OSError(f"{self.paths[row]} cannot be read as an image: mend or remove it ({error})") from None
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)  # of the CPU alone
            return self.transform(image), row


@dataclass
class Loaders:
    """Training: shuffled and augmented. Training samples as they are, test, and a held-out part: for evaluation."""

    train: MemoryLoader | FileLoader
    train_plain: MemoryLoader | FileLoader
    test: MemoryLoader | FileLoader
    validation: MemoryLoader | FileLoader | None


def make_loaders(dataset: Dataset, given: np.ndarray, *, batch_size: int, device: torch.device | str, seed: int,
                 validation_fraction: float = 0.0) -> Loaders:
    """Loaders of a dataset whose training labels are ``given``; a part of these, noise and all, may be held out.

    The held-out part is drawn from ``seed``, stratified by given label. Its samples keep their index and are not trained on.
    """
    rows, held_out = np.arange(len(given)), None
    if validation_fraction:
        try:
            rows, held_out = train_test_split(rows, test_size=validation_fraction, random_state=seed, stratify=given)
        except ValueError as error:
            raise ValueError(f"validation.fraction={validation_fraction} cannot be held out by class: {error}") from None
    given = torch.from_numpy(given)

    def loader(split, targets, rows, train=False):
        size = batch_size if train or isinstance(split.images, list) else EVALUATION_BATCH
        common = {"batch_size": size, "device": device, "mean": dataset.mean, "std": dataset.std,
                  "shuffle": train, "seed": seed}
        if isinstance(split.images, list):
            return FileLoader(split.images, targets, torch.as_tensor(rows), image_size=dataset.image_size,
                              num_workers=dataset.num_workers, **common)
        augment = {"crop_padding": dataset.crop_padding, "flip": dataset.flip} if train else {}
        return MemoryLoader(split.images, targets, torch.as_tensor(rows), **common, **augment)

    return Loaders(train=loader(dataset.train, given, rows, train=True), train_plain=loader(dataset.train, given, rows),
                   test=loader(dataset.test, dataset.test.targets, np.arange(len(dataset.test))),
                   validation=None if held_out is None else loader(dataset.train, given, held_out))


def _normalisation(mean, std):
    """(scale, shift) with which pixel * scale + shift is (pixel / 255 - mean) / std."""
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (mean, std))
    return 1 / (255 * std), -mean / std
