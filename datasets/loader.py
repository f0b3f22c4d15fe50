"""Loaders: a part in memory, or image files read by workers, as batches on the training device.

Which samples make up batch b of epoch e, and how each is cropped and mirrored, is a function of
(seed, e, b) alone. So a run can be resumed in the middle of an epoch, and does not depend on the
device or on the number of workers.
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.base import Batch, Dataset, Split
from datasets.images import Decoded, decode, decode_all, pack
from datasets.noise import Noise
from datasets.selection import Selection
from utils.distributed import (
    all_gather_objects,
    is_distributed,
    local_main_first,
    rank_slice,
    world_size,
)
from utils.errors import UserError
from utils.seed import derive

EVALUATION_BATCH = 1000  # of images in memory, where no gradient is kept
MAX_UNREADABLE = 0.01  # of the image files of a part
ORDER, RECORDING, UNLABELLED, TEST = (
    1,
    2,
    3,
    4,
)  # set the random numbers of the streams apart from one another and the model's


def batch_slices(count: int, size: int) -> list[slice]:
    """Which part of the order each batch takes.

    A last one of one sample, too little for a BatchNorm, joins the one before.
    """
    starts = list(range(0, count, size))
    if size > 1 and len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]


def shuffled(rows: Tensor) -> Callable[[torch.Generator], Tensor]:
    """Draws a new order of all rows."""
    return lambda generator: rows[torch.randperm(len(rows), generator=generator)]


def weighted(rows: Tensor, weight: Tensor, count: int) -> Callable[[torch.Generator], Tensor]:
    """Draws ``count`` rows with replacement, each with probability proportional to its weight."""
    return lambda generator: rows[
        torch.multinomial(weight, count, replacement=True, generator=generator)
    ]


def several_views(
    rows: Tensor, *, batch_size: int, steps: int, num_views: int
) -> Callable[[torch.Generator], Tensor]:
    """Draws ``steps`` batches, each written ``num_views`` times: one permutation of the rows after
    another, remainders dropped.

    Raises ValueError where the rows do not fill a batch.
    """
    if len(rows) < batch_size:
        raise UserError(
            f"the selection leaves {len(rows)} samples unlabelled, fewer than a batch of {batch_size}: lower "
            f"batch_size, or keep fewer"
        )
    whole = len(rows) // batch_size * batch_size

    def draw(generator):
        passes = -(-steps * batch_size // whole)
        order = torch.cat(
            [rows[torch.randperm(len(rows), generator=generator)[:whole]] for _ in range(passes)]
        )
        return (
            order[: steps * batch_size]
            .view(steps, 1, batch_size)
            .expand(-1, num_views, -1)
            .flatten()
        )

    return draw


class MemoryLoader:
    """Batches of inputs that lie on the device: images as uint8, gathered, augmented and normalised
    there, without workers.

    ``rows`` are the positions in the part to use, ``targets`` the labels of all of it. ``draw``
    makes the order of an epoch out of a generator; without it, it is that of ``rows``. Images have
    a margin of ``crop_padding`` pixels on each side: with it, or with flip, there is a new crop and
    mirroring for every sample each epoch. Without a ``mean`` and ``std`` inputs are no images, and
    are yielded as they are.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        rows: Tensor,
        *,
        batch_size: int,
        device: torch.device | str,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        draw: Callable[[torch.Generator], Tensor] | None = None,
        seed: int = 0,
        crop_padding: int = 0,
        flip: bool = False,
    ):
        self.size = tuple(length - 2 * crop_padding for length in inputs.shape[-2:])
        self.inputs, self.targets, self.rows, self.batch_size = (
            inputs.to(device),
            targets.to(device),
            rows,
            batch_size,
        )
        self.device, self.draw, self.seed, self.padding, self.flip = (
            device,
            draw,
            seed,
            crop_padding,
            flip,
        )
        self.normalisation = (
            [part.to(device) for part in _normalisation(mean, std)] if mean else None
        )
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
            self.top_left = torch.randint(2 * self.padding + 1, (count, 2), generator=generator).to(
                self.device
            )
        if self.flip:
            self.mirrored = (torch.rand(count, generator=generator) < 0.5).to(self.device)

    def rows_of(self, batch: int) -> list[int]:
        """Positions in the split of the samples in a batch of the present epoch."""
        return self.order[self.parts[batch]].tolist()

    def __iter__(self):
        for part in map(rank_slice, self.parts[self.first_batch :]):
            index = self.order[part]
            if self.top_left is None and self.mirrored is None:
                inputs = self.inputs.index_select(0, index)
            else:
                inputs = crop_and_flip(
                    self.inputs,
                    index,
                    self.size,
                    top_left=None if self.top_left is None else self.top_left[part],
                    mirrored=None if self.mirrored is None else self.mirrored[part],
                )
            if self.normalisation:
                scale, shift = self.normalisation
                inputs = (
                    inputs.float().mul_(scale).add_(shift)
                )  # on a CPU half the time of inputs * scale, which mixes types
            yield Batch(inputs, self.targets[index], index)


def pad(images: Tensor, margin: int, mode: str) -> Tensor:
    """Images [N, C, H, W] with a margin on each side, of zeros, or ("reflect") mirrored at the
    edge, which is not repeated.
    """
    if mode == "zeros" or margin == 0:
        return torch.nn.functional.pad(images, [margin] * 4)
    rows, columns = (
        (length - 1 - (length - 1 - torch.arange(-margin, length + margin).abs()).abs()).to(
            images.device
        )
        for length in images.shape[-2:]
    )
    return images[:, :, rows][:, :, :, columns]


def crop_and_flip(
    images: Tensor,
    index: Tensor,
    size: tuple[int, int],
    *,
    top_left: Tensor | None = None,
    mirrored: Tensor | None = None,
) -> Tensor:
    """images[index], each cropped to ``size`` (height, width) at its own corner [B, 2], those
    marked [B] mirrored.
    """
    rows = torch.arange(size[0], device=images.device).expand(len(index), -1)
    columns = torch.arange(size[1], device=images.device).expand(len(index), -1)
    if mirrored is not None:
        columns = torch.where(mirrored.unsqueeze(1), size[1] - 1 - columns, columns)
    if top_left is not None:
        rows, columns = rows + top_left[:, :1], columns + top_left[:, 1:]
    channels = torch.arange(images.shape[1], device=images.device)
    return images[
        index[:, None, None, None],
        channels[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


class FileLoader:
    """Batches of image files, decoded and augmented by worker processes and normalised on the
    device.

    Each draws its augmentation from a generator of its own, seeded with (seed, epoch, position in
    the epoch's order). A file that cannot be decoded is left out of its batches and noted in
    ``unreadable``, path: reason. ``paths`` may be Decoded, which reads no files.

    Raises OSError while iterated where more than MAX_UNREADABLE of ``rows`` cannot be decoded, or
    all of a batch.
    """

    def __init__(
        self,
        paths: "list[str] | Decoded",
        targets: Tensor,
        rows: Tensor,
        *,
        batch_size: int,
        device: torch.device | str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        image_size: int,
        num_workers: int,
        draw: Callable[[torch.Generator], Tensor] | None = None,
        seed: int = 0,
        augment: bool = False,
        crop_scale: float | None = 0.08,
        flip: bool = True,
        unreadable: dict[str, str] | None = None,
    ):
        self.files, self.image_size = (
            _Files(paths, image_size, augment, crop_scale, flip),
            image_size,
        )
        self.targets, self.rows, self.missing, self.batch_size = (
            targets.to(device),
            rows,
            set(),
            batch_size,
        )
        self.device, self.draw, self.seed, self.num_workers = device, draw, seed, num_workers
        self.unreadable = {} if unreadable is None else unreadable
        self.scale, self.shift = (part.to(device) for part in _normalisation(mean, std))
        self.start = (
            "fork" if num_workers and sys.platform == "linux" else None
        )  # Python 3.14's own way imports torch anew
        self.set_epoch(0)

    def __len__(self):
        return len(self.batches)

    def set_epoch(self, epoch: int, first_batch: int = 0):
        """The order and augmentation of ``epoch``, from its batch ``first_batch`` on."""
        order = (
            self.draw(torch.Generator().manual_seed(derive(self.seed, epoch, ORDER)))
            if self.draw
            else self.rows
        )
        samples = [
            (row, derive(self.seed, epoch, ORDER, place))
            for place, row in enumerate(order.tolist())
        ]
        self.batches = [samples[part] for part in batch_slices(len(samples), self.batch_size)]
        self.first_batch = first_batch

    def rows_of(self, batch: int) -> list[int]:
        """Positions in the split of the samples in a batch of the present epoch."""
        return [row for row, _ in self.batches[batch]]

    def __iter__(self):
        shares = [
            batch[rank_slice(slice(0, len(batch)))] for batch in self.batches[self.first_batch :]
        ]
        loader = DataLoader(
            self.files,
            batch_sampler=shares,
            num_workers=self.num_workers,
            multiprocessing_context=self.start,
            pin_memory=torch.device(self.device).type == "cuda",
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_main_process,
            collate_fn=_collate,
        )
        for images, index, failed in loader:
            if failed:
                self._note(failed)
            if len(index) == 0 and not is_distributed():
                raise OSError(
                    f"no image of a whole batch can be read: {', '.join(self.files.paths[row] for row, _ in failed)}"
                )
            if len(index) == 0:  # of this process's share
                images = images.new_empty(0, 3, self.image_size, self.image_size)
            images, index = (part.to(self.device, non_blocking=True) for part in (images, index))
            yield Batch(
                images.float().mul_(self.scale).add_(self.shift), self.targets[index], index
            )

    def _note(self, failed):
        for row, reason in failed:
            path = self.files.paths[row]
            if path not in self.unreadable:
                print(
                    f"warning: {path} cannot be read as an image and is left out ({reason})",
                    file=sys.stderr,
                )
            self.unreadable[path] = reason
            self.missing.add(row)
        if not is_distributed():  # else where they meet
            self.check()

    def check(self):
        """Raise OSError where too many images are missing."""
        if len(self.missing) > MAX_UNREADABLE * len(self.rows):
            paths = ", ".join(self.files.paths[row] for row in sorted(self.missing)[:10])
            bad = f"{len(self.missing)} of {len(self.rows)} image files cannot be read"
            raise OSError(f"{bad}, more than {MAX_UNREADABLE:.0%}: mend or remove {paths}")


def _leave_signals_to_the_main_process(worker):
    """A cluster signals every process of a job; a worker that died of it would keep the main one
    from saving.

    A second SIGTERM ends a worker: that is how the main process gets rid of one that does not end
    by itself. But torchrun, which signals the whole group of a process once more, is not to reach
    it.
    """
    os.setpgid(0, 0)

    def first_sigterm(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, first_sigterm)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def shorter_side(image_size: int) -> int:
    """To what the shorter side of an image file is resized before a square of ``image_size`` is cut
    out: 256 for 224.
    """
    return round(image_size * 256 / 224)


class _Files(torch.utils.data.Dataset):
    def __init__(self, paths, image_size, augment, crop_scale, flip):
        from torchvision.transforms import v2

        self.images = paths
        self.paths = paths.paths if isinstance(paths, Decoded) else paths
        larger = v2.Resize(shorter_side(image_size), antialias=True)
        if not augment:
            self.transform = v2.Compose([larger, v2.CenterCrop(image_size)])
        else:
            crop = (
                [larger, v2.RandomCrop(image_size)]
                if crop_scale is None
                else [v2.RandomResizedCrop(image_size, (crop_scale, 1), antialias=True)]
            )
            self.transform = v2.Compose([*crop, v2.RandomHorizontalFlip(0.5 if flip else 0)])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, sample):
        row, seed = sample
        try:
            image = (
                self.images[row] if isinstance(self.images, Decoded) else decode(self.paths[row])
            )
        except OSError as error:
            return None, row, str(error)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)  # of the CPU alone
            return self.transform(image), row, None


def _collate(samples):
    """Images [B, C, H, W], their rows [B], and (row, reason) of those that could not be read."""
    images = [image for image, _, reason in samples if reason is None]
    rows = [row for _, row, reason in samples if reason is None]
    return (
        torch.stack(images) if images else torch.empty(0),
        torch.tensor(rows, dtype=torch.int64),
        [(row, reason) for _, row, reason in samples if reason is not None],
    )


class PairedLoader:
    """The batches of one loader, each with the views [num_views, B, ...] of its batch of another
    one as ``extra``.
    """

    def __init__(
        self,
        labelled: MemoryLoader | FileLoader,
        unlabelled: MemoryLoader | FileLoader,
        num_views: int,
    ):
        self.labelled, self.unlabelled, self.num_views = labelled, unlabelled, num_views
        self.rows_of = labelled.rows_of

    def __len__(self):
        return len(self.labelled)

    def set_epoch(self, epoch: int, first_batch: int = 0):
        """As that of both loaders."""
        self.labelled.set_epoch(epoch, first_batch)
        self.unlabelled.set_epoch(epoch, first_batch)

    def __iter__(self):
        for batch, views in zip(self.labelled, self.unlabelled, strict=True):
            if len(views.input) != self.num_views * len(batch.input):
                raise OSError(
                    f"this method needs whole batches, and images cannot be read: mend or remove "
                    f"{', '.join({**self.labelled.unreadable, **self.unlabelled.unreadable})}"
                )
            yield batch._replace(extra=views.input.unflatten(0, (self.num_views, -1)))


class Chunks:
    """A loader whose epochs are ``steps`` batches of another one's.

    The last chunk of a pass may be shorter.
    """

    def __init__(self, loader: MemoryLoader | FileLoader, steps: int):
        self.loader, self.steps, self.per_pass = loader, steps, -(-len(loader) // steps)
        self.set_epoch(0)

    def set_epoch(self, epoch: int, first_batch: int = 0):
        """Chunk ``epoch``, counted over all passes, from its batch ``first_batch`` on."""
        self.start, self.first_batch = epoch % self.per_pass * self.steps, first_batch
        self.loader.set_epoch(epoch // self.per_pass, self.start + first_batch)

    def __len__(self):
        return min(self.steps, len(self.loader) - self.start)

    def rows_of(self, batch: int) -> list[int]:
        """As that of the other loader."""
        return self.loader.rows_of(self.start + batch)

    def __iter__(self):
        return itertools.islice(self.loader, len(self) - self.first_batch)


@dataclass
class Loaders:
    """Training: shuffled and augmented, of the selected samples where there is a selection.

    For evaluation: all training samples as they are, and the parts to evaluate after an epoch, by
    name: "test", perhaps "validation", and others. For recording: all training samples.
    ``per_pass`` epochs, of ``steps_per_pass`` batches all together, go once over the training
    samples. ``unreadable``: image files that were left out, path: reason; ``of_files``: the loaders
    that look for such.
    """

    train: MemoryLoader | FileLoader | PairedLoader | Chunks
    train_plain: MemoryLoader | FileLoader
    evaluation: dict[str, MemoryLoader | FileLoader]
    recording: MemoryLoader | FileLoader | None = None
    per_pass: int = 1
    steps_per_pass: int = 1
    unreadable: dict[str, str] = field(default_factory=dict)
    of_files: list[FileLoader] = field(default_factory=list)

    def set_epoch(self, epoch: int, first_batch: int):
        """Train from batch ``first_batch`` of ``epoch`` on, then evaluate and record it."""
        for loader in (self.evaluation["test"], self.recording):
            if loader:
                loader.set_epoch(epoch)
        self.train.set_epoch(epoch, first_batch)

    def tell_unreadable(self):
        """Let every process know which images the others could not read.

        Raises OSError in all where they are too many.
        """
        for theirs in all_gather_objects(self.unreadable):
            self.unreadable.update(theirs)
        for loader in self.of_files:
            loader.missing = set().union(*all_gather_objects(loader.missing))
            loader.check()


@dataclass
class Parts:
    """Positions in the training set to train on, and to validate on with labels [N].

    The latter are not trained on.
    """

    rows: np.ndarray
    held_out: np.ndarray
    labels: np.ndarray


def hold_out(noise: Noise, *, fraction: float, clean: bool = False, seed: int) -> Parts:
    """Hold out a fraction of the training set, drawn from ``seed``, to validate on.

    It is looked at, and stratified, with its given labels, noise and all, or if ``clean`` with the
    true ones. Targets that are numbers are not stratified.

    Raises:
        ValueError: a class too small for it; ``clean`` where the truth is unknown.
    """
    rows, labels = np.arange(len(noise.given)), noise.true if clean else noise.given
    strata = labels if noise.num_classes else None
    if not fraction:
        return Parts(rows, rows[:0], labels)
    if clean and noise.corrupted is None:
        raise UserError(
            "validation.clean=true needs true labels, and those of this dataset are not known"
        )
    try:
        return Parts(
            *train_test_split(rows, test_size=fraction, random_state=seed, stratify=strata), labels
        )
    except ValueError as error:
        raise UserError(
            f"validation.fraction={fraction} cannot be held out by class: {error}"
        ) from None


def make_loaders(
    dataset: Dataset,
    given: np.ndarray,
    parts: Parts,
    selection: Selection | None = None,
    *,
    batch_size: int,
    device: torch.device | str,
    seed: int,
    num_views: int = 0,
    steps_per_epoch: int | None = None,
    chunk_steps: int | None = None,
    record_losses: bool = False,
    augment_recording: bool = True,
) -> Loaders:
    """Loaders of a dataset whose training labels are ``given`` [N].

    Args:
        parts: what to train and to validate on; the dataset's own validation part is used where
            nothing is held out.
        selection: what to train on instead of all of it.
        num_views: 0, or the number of differently augmented views of each unselected sample that a
            training batch carries as its ``extra``. Selected samples are then drawn with
            replacement, by weight.
        steps_per_epoch: batches of an epoch with such an ``extra``.
        chunk_steps: batches of an epoch, where it is not a pass over the samples.
        record_losses: whether there is a loader to record losses with, and
        augment_recording: whether it augments as the training loader does.

    Raises:
        ValueError: num_views without a selection, with one that leaves less than a batch, or with
            chunk_steps; batches that several processes cannot share.
    """
    if batch_size % world_size():
        raise UserError(
            f"batch_size={batch_size} is that of all {world_size()} processes together, and cannot be divided "
            f"among them: make it a multiple of their number"
        )
    given, rows, held_out = (
        torch.from_numpy(array) for array in (given, parts.rows, parts.held_out)
    )
    in_memory, unreadable, of_files = not isinstance(dataset.train.inputs, list), {}, []

    def files(paths):
        if dataset.cache:
            return local_main_first(pack, paths, shorter_side(dataset.image_size), dataset.cache)
        return decode_all(paths, dataset.memory_limit)

    if in_memory:
        images = padded = dataset.train.inputs.to(device)
        if dataset.crop_padding:
            padded = pad(images, dataset.crop_padding, dataset.padding_mode)
    else:
        images = files(dataset.train.inputs)

    def loader(images, targets, rows, draw=None, seed=seed, augment=False, size=batch_size):
        common = {
            "device": device,
            "mean": dataset.mean,
            "std": dataset.std,
            "draw": draw,
            "seed": seed,
        }
        if not in_memory:
            of_files.append(
                FileLoader(
                    images,
                    targets,
                    rows,
                    batch_size=size,
                    image_size=dataset.image_size,
                    num_workers=dataset.num_workers,
                    augment=augment,
                    crop_scale=dataset.crop_scale,
                    flip=dataset.flip,
                    unreadable=unreadable,
                    **common,
                )
            )
            return of_files[-1]
        if augment:
            return MemoryLoader(
                padded,
                targets,
                rows,
                batch_size=size,
                crop_padding=dataset.crop_padding,
                flip=dataset.flip,
                **common,
            )
        return MemoryLoader(images, targets, rows, batch_size=size, **common)

    def of(split: Split, **options):
        inputs = split.inputs if in_memory else files(split.inputs)
        return loader(inputs, split.targets, torch.arange(len(split)), size=plain_size, **options)

    plain_size = EVALUATION_BATCH if in_memory and dataset.is_images else batch_size
    chosen = rows if selection is None else torch.from_numpy(selection.index)
    if num_views and chunk_steps:
        raise UserError(
            "this loss draws as many batches as it wants, so there is no pass to divide: set chunk_steps=null"
        )
    if num_views == 0:
        last = batch_slices(len(chosen), batch_size)[-1]
        if last.stop - last.start < world_size():
            raise UserError(
                f"the last batch of an epoch has {last.stop - last.start} samples, fewer than the {world_size()} "
                f"processes: use fewer processes or another batch_size"
            )
        train = loader(images, given, chosen, shuffled(chosen), augment=True)
    elif selection is None:
        raise UserError(
            "this loss needs unlabelled samples, those that a selection leaves out: set "
            "dataset.selection.history=<run>/losses.npy"
        )
    else:
        rest = rows[~torch.isin(rows, chosen)]
        train = PairedLoader(
            loader(
                images,
                given,
                chosen,
                augment=True,
                draw=weighted(
                    chosen, torch.from_numpy(selection.weight), steps_per_epoch * batch_size
                ),
            ),
            loader(
                images,
                given,
                rest,
                augment=True,
                seed=derive(seed, UNLABELLED),
                size=num_views * batch_size,
                draw=several_views(
                    rest, batch_size=batch_size, steps=steps_per_epoch, num_views=num_views
                ),
            ),
            num_views,
        )
    evaluation = {"test": of(dataset.test, augment=dataset.augment_test, seed=derive(seed, TEST))}
    if len(held_out):
        evaluation["validation"] = loader(
            images, torch.from_numpy(parts.labels), held_out, size=plain_size
        )
    elif dataset.validation:
        evaluation["validation"] = of(dataset.validation)
    evaluation |= {name: of(split) for name, split in dataset.more_tests.items()}
    steps = len(train)
    if chunk_steps:
        train = Chunks(train, chunk_steps)
    recording = None
    if record_losses:
        recording = loader(
            images,
            given,
            rows,
            seed=derive(seed, RECORDING),
            augment=augment_recording,
            size=plain_size,
        )
    per_pass, plain = (
        train.per_pass if chunk_steps else 1,
        loader(images, given, rows, size=plain_size),
    )
    return Loaders(
        train,
        plain,
        evaluation,
        recording,
        per_pass=per_pass,
        steps_per_pass=steps,
        unreadable=unreadable,
        of_files=of_files,
    )


def _normalisation(mean, std):
    """(scale, shift) with which pixel * scale + shift is (pixel / 255 - mean) / std."""
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (mean, std))
    return 1 / (255 * std), -mean / std
