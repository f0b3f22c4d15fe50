"""All loaders of a run: of the samples to train on, to evaluate on and to record.

Which samples make up batch b of epoch e, and how each is cropped and mirrored, is a function of
(seed, e, b) alone. So a run can be resumed in the middle of an epoch, and does not depend on the
device or on the number of workers.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from datasets.base import Dataset, Split
from datasets.files import FileLoader
from datasets.images import decode_all, pack, shorter_side
from datasets.memory import MemoryLoader, pad
from datasets.noise import Noise
from datasets.selection import Selection
from datasets.splits import Parts
from datasets.streams import (
    RECORDING,
    TEST,
    TRUSTED,
    UNLABELLED,
    Chunks,
    Draw,
    Loader,
    PairedLoader,
    batch_slices,
    repeated_passes,
    several_views,
    shuffled,
    weighted,
)
from utils.distributed import all_gather_objects, local_main_first, world_size
from utils.errors import UserError
from utils.seed import derive

EVALUATION_BATCH = 1000  # of images in memory, where no gradient is kept


@dataclass
class Loaders:
    """The loaders of a run."""

    train: Loader  # shuffled and augmented; the selected samples if there is a selection
    train_plain: MemoryLoader | FileLoader  # all training samples as they are
    evaluation: dict[str, MemoryLoader | FileLoader]  # "test", perhaps "validation", and others
    held_out: MemoryLoader | FileLoader | None = None  # what is validated on, with given labels
    recording: MemoryLoader | FileLoader | None = None  # all training samples
    steps_per_pass: int = 1  # batches that go once over the training samples
    unreadable: dict[str, str] = field(default_factory=dict)  # files left out, path: reason
    file_loaders: list[FileLoader] = field(default_factory=list)  # those that look for such

    def set_epoch(self, epoch: int, first_batch: int):
        """Train from batch ``first_batch`` of ``epoch`` on, then evaluate and record it."""
        for loader in (self.evaluation["test"], self.recording):
            if loader:
                loader.set_epoch(epoch)
        self.train.set_epoch(epoch, first_batch)

    def exchange_unreadable(self):
        """Let every process know which images the others could not read.

        Raises OSError in all of them if there are too many.
        """
        for unreadable in all_gather_objects(self.unreadable):
            self.unreadable.update(unreadable)
        for loader in self.file_loaders:
            loader.missing = set().union(*all_gather_objects(loader.missing))
            loader.check()


class Source:
    """The inputs of a split, for several loaders: on the device, or image files."""

    def __init__(self, dataset: Dataset, split: Split, device, unreadable: dict[str, str]):
        self.dataset, self.split = dataset, split
        self.device, self.unreadable = device, unreadable
        if isinstance(split.inputs, Tensor):
            self.inputs = split.inputs.to(device)
        elif dataset.cache:
            shorter = shorter_side(dataset.image_size)
            self.inputs = local_main_first(pack, split.inputs, shorter, dataset.cache)
        else:
            self.inputs = decode_all(split.inputs, dataset.memory_limit)

    @functools.cached_property
    def padded(self) -> Tensor:
        """Images in memory with the margin that is cropped at random."""
        margin = self.dataset.crop_padding
        return pad(self.inputs, margin, self.dataset.padding_mode) if margin else self.inputs

    def loader(
        self,
        targets: Tensor | None = None,
        rows: Tensor | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        draw: Draw | None = None,
        augment: bool = False,
    ) -> MemoryLoader | FileLoader:
        """A loader of these rows, or all, with these targets [N, ...] or those of the split."""
        dataset = self.dataset
        targets = self.split.targets if targets is None else targets
        rows = torch.arange(len(self.split)) if rows is None else rows
        common = {
            "batch_size": batch_size,
            "device": self.device,
            "mean": dataset.mean,
            "std": dataset.std,
            "draw": draw,
            "seed": seed,
        }
        if not isinstance(self.inputs, Tensor):
            return FileLoader(
                self.inputs,
                targets,
                rows,
                image_size=dataset.image_size,
                num_workers=dataset.num_workers,
                augment=augment,
                crop_scale=dataset.crop_scale,
                flip=dataset.flip,
                unreadable=self.unreadable,
                **common,
            )
        if not augment:
            return MemoryLoader(self.inputs, targets, rows, **common)
        margins = {"crop_padding": dataset.crop_padding, "flip": dataset.flip}
        return MemoryLoader(self.padded, targets, rows, **margins, **common)


def make_loaders(
    dataset: Dataset,
    noise: Noise,
    parts: Parts,
    selection: Selection | None = None,
    *,
    batch_size: int,
    device: torch.device | str,
    seed: int,
    targets: Tensor | None = None,
    unlabelled: Mapping[str, int] = MappingProxyType({}),
    trusted_batch_size: int = 0,
    chunk_steps: int | None = None,
    record_losses: bool = False,
    augment_recording: bool = True,
) -> Loaders:
    """All loaders of a run on a dataset with these labels.

    Args:
        parts: what to train and to validate on; the dataset's own validation part is used if
            nothing is held out.
        selection: what to train on instead of all of it.
        batch_size: of all processes together, as ``trusted_batch_size`` is.
        targets: [N], or soft [N, C], what the training loader yields instead of the given labels.
        unlabelled: {}, or ``num_views`` and ``steps_per_epoch``: each of so many batches an epoch
            has as its ``extra`` so many views of as many samples that are not selected. Selected
            samples are then drawn with replacement, by weight.
        trusted_batch_size: 0, or so many samples with their true labels are the ``extra`` of each
            training batch, of ``parts.trusted`` or of the dataset's verified part.
        chunk_steps: batches of an epoch, if it is not a pass over the samples.
        record_losses: whether there is a loader to record losses with, and
        augment_recording: whether it augments as the training loader does.

    Raises:
        UserError: ``unlabelled`` without a selection, with one that leaves less than a batch, or
            with chunk_steps; no trusted samples, or less than a batch; both kinds; batches that
            several processes cannot share; targets of other samples; trusted samples that this
            method cannot train on so.
    """
    check_request(batch_size, unlabelled, trusted_batch_size, chunk_steps)
    if targets is not None and len(targets) != len(noise.given):
        raise UserError(
            f"targets must be [N] or [N, C] with N = {len(noise.given)}, got {list(targets.shape)}"
        )
    unreadable = dict(dataset.unreadable)
    source = Source(dataset, dataset.train, device, unreadable)
    given, rows = torch.from_numpy(noise.given), torch.from_numpy(parts.rows)
    targets = learned_targets(noise, parts, targets)
    check_trained(parts, selection, unlabelled, trusted_batch_size)
    second = None
    if unlabelled:
        first, second = labelled_and_unlabelled(
            source, targets, rows, selection, batch_size=batch_size, seed=seed, **unlabelled
        )
    else:
        drawn = training_rows(parts, selection)
        first = labelled(source, targets, drawn, batch_size=batch_size, seed=seed)
    if trusted_batch_size:
        second = trusted(
            source, noise, parts, batch_size=trusted_batch_size, steps=len(first), seed=seed
        )
    train = first
    if second is not None:
        train = PairedLoader(first, second, unlabelled.get("num_views", 0))
    if chunk_steps:
        train = Chunks(train, chunk_steps)

    images_in_memory = dataset.is_images and isinstance(dataset.train.inputs, Tensor)
    plain_size = EVALUATION_BATCH if images_in_memory else batch_size
    evaluation = evaluation_loaders(dataset, source, parts, batch_size=plain_size, seed=seed)
    plain, held_out, recording = source.loader(given, rows, batch_size=plain_size), None, None
    if len(parts.held_out):
        held_out = source.loader(given, torch.from_numpy(parts.held_out), batch_size=plain_size)
    if record_losses:
        seed, augment = derive(seed, RECORDING), augment_recording
        recording = source.loader(given, rows, batch_size=plain_size, seed=seed, augment=augment)
    loaders = [first, second, *evaluation.values(), held_out, recording, plain]
    return Loaders(
        train,
        plain,
        evaluation,
        held_out,
        recording,
        steps_per_pass=len(first),
        unreadable=unreadable,
        file_loaders=[loader for loader in loaders if isinstance(loader, FileLoader)],
    )


def check_request(
    batch_size: int,
    unlabelled: Mapping[str, int],
    trusted_batch_size: int,
    chunk_steps: int | None,
):
    """Raise UserError if there cannot be such batches, whatever the dataset."""
    for name, size in (("batch_size", batch_size), ("trusted_batch_size", trusted_batch_size)):
        if size % world_size():
            raise UserError(
                f"{name}={size} is that of all {world_size()} processes together, and cannot be "
                f"divided among them: make it a multiple of their number"
            )
    if unlabelled and trusted_batch_size:
        raise UserError(
            "this loss asks for unlabelled samples and for trusted ones, and a batch has one "
            "second stream only"
        )
    if unlabelled and chunk_steps:
        raise UserError(
            "this loss draws as many batches as it wants, so there is no pass to divide: set "
            "chunk_steps=null"
        )


def training_rows(parts: Parts, selection: Selection | None) -> Tensor:
    """Positions of the samples that an epoch of labelled batches has."""
    if selection is None:
        return torch.from_numpy(parts.drawn)
    return torch.from_numpy(np.concatenate([selection.index, parts.corrected]))


def learned_targets(noise: Noise, parts: Parts, targets: Tensor | None = None) -> Tensor:
    """Targets [N] or [N, C] that are trained on: the given labels, or those in their place.

    Those of the trusted samples that are trained on are the true ones, unless their given labels
    are to be.
    """
    targets = torch.from_numpy(noise.given) if targets is None else targets
    rows = torch.from_numpy(parts.corrected)
    if len(rows) == 0:
        return targets
    true = torch.from_numpy(noise.true)[rows]
    if targets.ndim == 2:
        true = torch.nn.functional.one_hot(true, targets.shape[1])
    return targets.index_copy(0, rows, true.to(targets.dtype))


def check_trained(
    parts: Parts,
    selection: Selection | None,
    unlabelled: Mapping[str, int],
    trusted_batch_size: int,
):
    """Raise UserError if a method cannot train on trusted samples in the way that is asked for."""
    if not parts.train:
        return
    if trusted_batch_size or unlabelled:
        own = "has trusted samples" if trusted_batch_size else "draws batches of its own"
        raise UserError(
            f"trusted.train is for methods that use trusted samples as any others, and this one "
            f"{own}: set trusted.train=false"
        )
    if parts.train == "only" and selection is not None:
        raise UserError(
            "trusted.train=only leaves nothing to select from: remove dataset.selection, or set "
            "trusted.train=true"
        )


def labelled(
    source: Source, targets: Tensor, rows: Tensor, *, batch_size: int, seed: int
) -> MemoryLoader | FileLoader:
    """All of the rows, in a new order each epoch.

    Raises UserError if the last batch has less than a sample for each process.
    """
    last = batch_slices(len(rows), batch_size)[-1]
    if last.stop - last.start < world_size():
        raise UserError(
            f"the last batch of an epoch has {last.stop - last.start} samples, fewer than the "
            f"{world_size()} processes: use fewer processes or another batch_size"
        )
    draw = shuffled(rows)
    return source.loader(targets, rows, batch_size=batch_size, seed=seed, draw=draw, augment=True)


def labelled_and_unlabelled(
    source: Source,
    targets: Tensor,
    rows: Tensor,
    selection: Selection | None,
    *,
    batch_size: int,
    seed: int,
    num_views: int,
    steps_per_epoch: int,
) -> tuple[MemoryLoader | FileLoader, MemoryLoader | FileLoader]:
    """The selected samples, drawn by weight; and views of the other rows.

    Raises UserError if there is no selection, or one that leaves less than a batch.
    """
    if selection is None:
        raise UserError(
            "this loss needs unlabelled samples, those that a selection leaves out: set "
            "dataset.selection.history=<run>/losses.npy"
        )
    chosen, weight = torch.from_numpy(selection.index), torch.from_numpy(selection.weight)
    rest = rows[~torch.isin(rows, chosen)]
    views = several_views(rest, batch_size=batch_size, steps=steps_per_epoch, num_views=num_views)
    first = source.loader(
        targets,
        chosen,
        batch_size=batch_size,
        seed=seed,
        draw=weighted(chosen, weight, steps_per_epoch * batch_size),
        augment=True,
    )
    second = source.loader(
        targets,
        rest,
        batch_size=num_views * batch_size,
        seed=derive(seed, UNLABELLED),
        draw=views,
        augment=True,
    )
    return first, second


def trusted(
    source: Source, noise: Noise, parts: Parts, *, batch_size: int, steps: int, seed: int
) -> MemoryLoader | FileLoader:
    """Full batches of the trusted samples, augmented, with their true labels.

    Raises UserError if there are none, or less than a batch.
    """
    rows, targets, verified = torch.from_numpy(parts.trusted), noise.true, source.dataset.verified
    if verified is not None:
        source = Source(source.dataset, verified, source.device, source.unreadable)
        targets = verified.targets
        rows = rows if len(rows) else torch.arange(len(verified))
    if len(rows) == 0:
        raise UserError(
            "this loss needs trusted samples, whose labels are known to be right: set "
            "trusted.count to how many"
        )
    return source.loader(
        torch.as_tensor(targets),
        rows,
        batch_size=batch_size,
        seed=derive(seed, TRUSTED),
        draw=repeated_passes(rows, batch_size=batch_size, steps=steps),
        augment=True,
    )


def evaluation_loaders(
    dataset: Dataset, source: Source, parts: Parts, *, batch_size: int, seed: int
) -> dict[str, MemoryLoader | FileLoader]:
    """Loaders of the parts to evaluate after an epoch, by name.

    Without a test part, what is held out is called "test". Raises UserError if there is neither.
    """

    def source_of(split):
        return Source(dataset, split, source.device, source.unreadable)

    loaders = {}
    if len(dataset.test):
        test, seed = source_of(dataset.test), derive(seed, TEST)
        augment = dataset.augment_test
        loaders["test"] = test.loader(batch_size=batch_size, seed=seed, augment=augment)
    if len(parts.held_out):
        labels, held_out = torch.from_numpy(parts.labels), torch.from_numpy(parts.held_out)
        name = "validation" if loaders else "test"
        loaders[name] = source.loader(labels, held_out, batch_size=batch_size)
    elif dataset.validation:
        loaders["validation"] = source_of(dataset.validation).loader(batch_size=batch_size)
    if "test" not in loaders:
        raise UserError(
            "there is no test part: set dataset.test_fraction, or have a part of the samples held "
            "out that stands for it, with validation.folds or validation.fraction"
        )
    for name, split in dataset.more_tests.items():
        loaders[name] = source_of(split).loader(batch_size=batch_size)
    return loaders
