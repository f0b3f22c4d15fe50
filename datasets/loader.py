"""Loaders: a split in memory, or image files read by workers, as batches on the training device.

Which samples make up batch b of epoch e, and how each is cropped and mirrored, is a function of (seed, e, b) alone. So a
run can be resumed in the middle of an epoch, and does not depend on the device or on the number of workers.
"""

import signal
from collections.abc import Callable
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
from datasets.noise import Noise
from datasets.selection import Selection
from utils.seed import derive

EVALUATION_BATCH = 1000  # of images in memory, where no gradient is kept
ORDER, RECORDING, UNLABELLED = 1, 2, 3  # set the random numbers of the streams apart from one another and the model's


def batch_slices(count: int, size: int) -> list[slice]:
    """Which part of the order each batch takes; a last one of one sample, too little for a BatchNorm, joins the one before."""
    starts = list(range(0, count, size))
    if size > 1 and len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]


def shuffled(rows: Tensor) -> Callable[[torch.Generator], Tensor]:
    """Draws a new order of all rows."""
    return lambda generator: rows[torch.randperm(len(rows), generator=generator)]


def weighted(rows: Tensor, weight: Tensor, count: int) -> Callable[[torch.Generator], Tensor]:
    """Draws ``count`` rows with replacement, each with probability proportional to its weight."""
    return lambda generator: rows[torch.multinomial(weight, count, replacement=True, generator=generator)]


def several_views(rows: Tensor, *, batch_size: int, steps: int, num_views: int) -> Callable[[torch.Generator], Tensor]:
    """Draws ``steps`` batches, each written ``num_views`` times: one permutation of the rows after another, remainders dropped.

    Raises ValueError where the rows do not fill a batch.
    """
    if len(rows) < batch_size:
        raise ValueError(f"the selection leaves {len(rows)} samples unlabelled, fewer than a batch of {batch_size}: lower "
                         f"batch_size, or keep fewer")
    whole = len(rows) // batch_size * batch_size

    def draw(generator):
        passes = -(-steps * batch_size // whole)
        order = torch.cat([rows[torch.randperm(len(rows), generator=generator)[:whole]] for _ in range(passes)])
        return order[:steps * batch_size].view(steps, 1, batch_size).expand(-1, num_views, -1).flatten()

    return draw


class MemoryLoader:
    """Batches of images that lie on the device as uint8: gathered, augmented and normalised there, without workers.

    ``rows`` are the positions in the split to use, ``targets`` the labels of the whole split. ``draw`` makes the order of
    an epoch out of a generator; without it, it is that of ``rows``. ``images`` have a margin of ``crop_padding`` pixels on
    each side: with it, or with flip, there is a new crop and mirroring for every sample each epoch.
    """

    def __init__(self, images: Tensor, targets: Tensor, rows: Tensor, *, batch_size: int, device: torch.device | str,
                 mean: tuple[float, ...], std: tuple[float, ...], draw: Callable[[torch.Generator], Tensor] | None = None,
                 seed: int = 0, crop_padding: int = 0, flip: bool = False):
        self.size = tuple(length - 2 * crop_padding for length in images.shape[-2:])
        self.images, self.targets, self.rows, self.batch_size = images.to(device), targets.to(device), rows, batch_size
        self.device, self.draw, self.seed, self.padding, self.flip = device, draw, seed, crop_padding, flip
        self.scale, self.shift = (part.to(device) for part in _normalisation(mean, std))
        self.set_epoch(0)

    def __len__(self):
        return len(self.parts)

    def set_epoch(self, epoch: int, first_batch: int = 0):
        """The order and augmentation of ``epoch``, from its batch ``first_batch`` on."""
        self.first_batch = first_batch
        generator = torch.Generator().manual_seed(derive(self.seed, epoch, ORDER))
        order = self.draw(generator) if self.draw else self.rows
        count = len(order)
        self.order, self.parts = order.to(self.device), batch_slices(count, self.batch_size)
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


def pad(images: Tensor, margin: int, mode: str) -> Tensor:
    """Images [N, C, H, W] with a margin on each side, of zeros, or ("reflect") mirrored at the edge, which is not repeated."""
    if mode == "zeros" or margin == 0:
        return torch.nn.functional.pad(images, [margin] * 4)
    rows, columns = ((length - 1 - (length - 1 - torch.arange(-margin, length + margin).abs()).abs()).to(images.device)
                     for length in images.shape[-2:])
    return images[:, :, rows][:, :, :, columns]


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

    Each draws its augmentation from a generator of its own, seeded with (seed, epoch, position in the epoch's order).
    """

    def __init__(self, paths: list[str], targets: Tensor, rows: Tensor, *, batch_size: int, device: torch.device | str,
                 mean: tuple[float, ...], std: tuple[float, ...], image_size: int, num_workers: int,
                 draw: Callable[[torch.Generator], Tensor] | None = None, seed: int = 0, augment: bool = False,
                 crop_scale: float = 0.08, flip: bool = True):
        self.files = _Files(paths, image_size, augment, crop_scale, flip)
        self.targets, self.rows, self.batch_size = targets.to(device), rows, batch_size
        self.device, self.draw, self.seed, self.num_workers = device, draw, seed, num_workers
        self.scale, self.shift = (part.to(device) for part in _normalisation(mean, std))
        self.set_epoch(0)

    def __len__(self):
        return len(self.batches)

    def set_epoch(self, epoch: int, first_batch: int = 0):
        """The order and augmentation of ``epoch``, from its batch ``first_batch`` on."""
        order = self.draw(torch.Generator().manual_seed(derive(self.seed, epoch, ORDER))) if self.draw else self.rows
        samples = [(row, derive(self.seed, epoch, ORDER, place)) for place, row in enumerate(order.tolist())]
        self.batches = [samples[part] for part in batch_slices(len(samples), self.batch_size)]
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
    def __init__(self, paths, image_size, augment, crop_scale, flip):
        self.paths = paths
        self.transform = v2.Compose(
            [v2.RandomResizedCrop(image_size, (crop_scale, 1), antialias=True),
             v2.RandomHorizontalFlip(0.5 if flip else 0)] if augment else
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


class PairedLoader:
    """The batches of one loader, each with the views [num_views, B, ...] of its batch of another one as ``extra``."""

    def __init__(self, labelled: MemoryLoader | FileLoader, unlabelled: MemoryLoader | FileLoader, num_views: int):
        self.labelled, self.unlabelled, self.num_views = labelled, unlabelled, num_views
        self.rows, self.rows_of = labelled.rows, labelled.rows_of

    def __len__(self):
        return len(self.labelled)

    def set_epoch(self, epoch: int, first_batch: int = 0):
        """As that of both loaders."""
        self.labelled.set_epoch(epoch, first_batch)
        self.unlabelled.set_epoch(epoch, first_batch)

    def __iter__(self):
        for batch, views in zip(self.labelled, self.unlabelled, strict=True):
            yield batch._replace(extra=views.input.unflatten(0, (self.num_views, -1)))


@dataclass
class Loaders:
    """Training: shuffled and augmented, of the selected samples where there is a selection.

    For evaluation: all training samples as they are, test, and a held-out part. For recording: all training samples.
    """

    train: MemoryLoader | FileLoader | PairedLoader
    train_plain: MemoryLoader | FileLoader
    test: MemoryLoader | FileLoader
    validation: MemoryLoader | FileLoader | None
    recording: MemoryLoader | FileLoader | None

    def set_epoch(self, epoch: int, first_batch: int):
        """Train from batch ``first_batch`` of ``epoch`` on, and then record it."""
        self.train.set_epoch(epoch, first_batch)
        if self.recording:
            self.recording.set_epoch(epoch)

    def evaluation(self) -> list[tuple[str, MemoryLoader | FileLoader]]:
        """The parts to evaluate after an epoch, with their names."""
        return [(name, loader) for name, loader in (("test", self.test), ("validation", self.validation)) if loader]


@dataclass
class Parts:
    """Positions in the training set to train on, and to validate on with labels [N]; the latter are not trained on."""

    rows: np.ndarray
    held_out: np.ndarray
    labels: np.ndarray


def hold_out(noise: Noise, *, fraction: float, clean: bool = False, seed: int) -> Parts:
    """Hold out a fraction of the training set, drawn from ``seed``, to validate on.

    It is looked at, and stratified, with its given labels, noise and all, or if ``clean`` with the true ones.

    Raises:
        ValueError: a class too small for it; ``clean`` where the truth is unknown.
    """
    rows, labels = np.arange(len(noise.given)), noise.true if clean else noise.given
    if not fraction:
        return Parts(rows, rows[:0], labels)
    if clean and noise.corrupted is None:
        raise ValueError("validation.clean=true needs true labels, and those of this dataset are not known")
    try:
        return Parts(*train_test_split(rows, test_size=fraction, random_state=seed, stratify=labels), labels)
    except ValueError as error:
        raise ValueError(f"validation.fraction={fraction} cannot be held out by class: {error}") from None


def make_loaders(dataset: Dataset, given: np.ndarray, parts: Parts, selection: Selection | None = None, *, batch_size: int,
                 device: torch.device | str, seed: int, num_views: int = 0, steps_per_epoch: int | None = None,
                 record: bool = False, augment_recording: bool = True) -> Loaders:
    """Loaders of a dataset whose training labels are ``given`` [N].

    Args:
        parts: what to train and to validate on.
        selection: what to train on instead of all of it.
        num_views: 0, or the number of differently augmented views of each unselected sample that a training batch carries
            as its ``extra``. Selected samples are then drawn with replacement, by weight.
        steps_per_epoch: batches of an epoch with such an ``extra``.
        record: whether there is a loader to record losses with, and
        augment_recording: whether it augments as the training loader does.

    Raises:
        ValueError: num_views without a selection, or with one that leaves less than a batch.
    """
    given, rows, held_out = (torch.from_numpy(array) for array in (given, parts.rows, parts.held_out))
    in_memory = not isinstance(dataset.train.images, list)
    images = padded = dataset.train.images
    if in_memory:
        images = images.to(device)
        padded = pad(images, dataset.crop_padding, dataset.padding_mode)

    def loader(images, targets, rows, draw=None, seed=seed, augment=False, size=batch_size):
        common = {"device": device, "mean": dataset.mean, "std": dataset.std, "draw": draw, "seed": seed}
        if not in_memory:
            return FileLoader(images, targets, rows, batch_size=size, image_size=dataset.image_size,
                              num_workers=dataset.num_workers, augment=augment, crop_scale=dataset.crop_scale,
                              flip=dataset.flip, **common)
        if augment:
            return MemoryLoader(padded, targets, rows, batch_size=size, crop_padding=dataset.crop_padding, flip=dataset.flip,
                                **common)
        return MemoryLoader(images, targets, rows, batch_size=size, **common)

    plain_size = EVALUATION_BATCH if in_memory else batch_size
    chosen = rows if selection is None else torch.from_numpy(selection.index)
    if num_views == 0:
        train = loader(images, given, chosen, shuffled(chosen), augment=True)
    elif selection is None:
        raise ValueError("this loss needs unlabelled samples, those that a selection leaves out: set "
                         "dataset.selection.history=<run>/losses.npy")
    else:
        rest = rows[~torch.isin(rows, chosen)]
        train = PairedLoader(
            loader(images, given, chosen, augment=True,
                   draw=weighted(chosen, torch.from_numpy(selection.weight), steps_per_epoch * batch_size)),
            loader(images, given, rest, augment=True, seed=derive(seed, UNLABELLED), size=num_views * batch_size,
                   draw=several_views(rest, batch_size=batch_size, steps=steps_per_epoch, num_views=num_views)), num_views)
    return Loaders(
        train=train, train_plain=loader(images, given, rows, size=plain_size),
        test=loader(dataset.test.images, dataset.test.targets, torch.arange(len(dataset.test)), size=plain_size),
        validation=loader(images, torch.from_numpy(parts.labels), held_out, size=plain_size) if len(held_out) else None,
        recording=loader(images, given, rows, seed=derive(seed, RECORDING), augment=augment_recording, size=plain_size)
        if record else None)


def _normalisation(mean, std):
    """(scale, shift) with which pixel * scale + shift is (pixel / 255 - mean) / std."""
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (mean, std))
    return 1 / (255 * std), -mean / std
