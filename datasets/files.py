"""Batches of image files, which worker processes read."""

import multiprocessing
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from datasets.base import Batch
from datasets.images import Decoded, decode, middle, normalisation, shorter_side
from datasets.streams import ORDER, Draw, batch_slices
from utils.distributed import is_distributed, rank_slice
from utils.escapes import printable
from utils.seed import derive
from utils.workers import leave_signals_to_the_main_process, signals_held

MAX_UNREADABLE = 0.01  # of the image files of a part; of several, one may always be


class FileLoader:
    """Batches of image files, decoded and augmented by workers, normalised on the device.

    Each sample draws its augmentation from a generator of its own, seeded with (seed, epoch,
    position in the epoch's order). A file that cannot be decoded is left out of its batches.

    Args:
        paths: [N], or images that are decoded already.
        targets: [N, ...], of all paths.
        rows: positions in the paths to use.
        draw: makes the order of an epoch out of a generator; without it, it is that of ``rows``.
        crop_scale, flip: as in ``Dataset``.
        unreadable: where files that cannot be decoded are noted, path: reason.

    Raises OSError while iterated, if more than MAX_UNREADABLE of ``rows`` cannot be decoded, or all
    of a batch.
    """

    def __init__(
        self,
        paths: list[str] | Decoded,
        targets: Tensor,
        rows: Tensor,
        *,
        batch_size: int,
        device: torch.device | str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        image_size: int,
        num_workers: int,
        draw: Draw | None = None,
        seed: int = 0,
        augment: bool = False,
        crop_scale: float | None = 0.08,
        flip: bool = True,
        unreadable: dict[str, str] | None = None,
    ):
        self.files = _Files(paths, image_size, augment, crop_scale, flip)
        self.image_size, self.num_workers = image_size, num_workers
        self.targets, self.rows, self.batch_size = targets.to(device), rows, batch_size
        self.device, self.draw, self.seed = device, draw, seed
        self.missing: set[int] = set()
        self.unreadable = {} if unreadable is None else unreadable
        self.scale, self.shift = (part.to(device) for part in normalisation(mean, std))
        # Python 3.14's own way imports torch anew
        self.start_method = "fork" if num_workers and sys.platform == "linux" else None
        self.set_epoch(0)

    def __len__(self):
        return len(self.batches)

    def set_epoch(self, epoch: int, first_batch: int = 0):
        """The order and augmentation of ``epoch``, from its batch ``first_batch`` on."""
        generator = torch.Generator().manual_seed(derive(self.seed, epoch, ORDER))
        self.order = self.draw(generator) if self.draw else self.rows
        self.batches = batch_slices(len(self.order), self.batch_size)
        self.epoch, self.first_batch = epoch, first_batch

    def rows_of(self, batch: int) -> list[int]:
        """Positions in the split of the samples in a batch of the present epoch."""
        return self.order[self.batches[batch]].tolist()

    def _samples(self):
        """Of each batch this process's share: row and seed of each sample."""
        for number, batch in enumerate(self.batches[self.first_batch :], self.first_batch):
            placed = list(enumerate(self.rows_of(number), batch.start))
            yield [
                (row, derive(self.seed, self.epoch, ORDER, position))
                for position, row in placed[rank_slice(slice(0, len(placed)))]
            ]

    def __iter__(self):
        loader = DataLoader(
            self.files,
            batch_sampler=self._samples(),
            num_workers=self.num_workers,
            multiprocessing_context=self.start_method,
            pin_memory=torch.device(self.device).type == "cuda",
            generator=torch.Generator(),
            worker_init_fn=leave_signals_to_the_main_process,
            collate_fn=_collate,
        )
        for read in self._started(loader):
            if isinstance(read, OSError):
                raise read
            images, index, failed = read
            if failed:
                self._note(failed)
            if len(index) == 0 and not is_distributed():
                paths = ", ".join(self.files.paths[row] for row, _ in failed)
                raise OSError(f"no image of a whole batch can be read: {paths}")
            if len(index) == 0:  # of this process's share
                images = images.new_empty(0, 3, self.image_size, self.image_size)
            images = images.to(self.device, non_blocking=True)
            index = torch.tensor(index, dtype=torch.int64).to(self.device, non_blocking=True)
            inputs = images.float().mul_(self.scale).add_(self.shift)
            yield Batch(inputs, self.targets[index], index)

    def _started(self, loader):
        try:
            if self.num_workers:  # PyTorch would leave a traceback of its own besides
                multiprocessing.get_context(self.start_method).Event()
            with signals_held():
                return iter(loader)
        except OSError as error:  # no memory, no process, or no room for a semaphore
            raise OSError(
                f"the processes that read images cannot be started ({error}): lower "
                f"dataset.num_workers, or make room in memory and in /dev/shm"
            ) from None

    def _note(self, failed):
        for row, reason in failed:
            path = self.files.paths[row]
            if path not in self.unreadable:
                warning = f"{path} cannot be read as an image and is left out ({reason})"
                print(f"warning: {printable(warning)}", file=sys.stderr)
            self.unreadable[path] = reason
            self.missing.add(row)
        if not is_distributed():  # else where they meet
            self.check()

    def check(self):
        """Raise OSError if too many images are missing."""
        check_unreadable([self.files.paths[row] for row in sorted(self.missing)], len(self.rows))


def check_unreadable(missing: list[str], count: int):
    """Raise OSError if these paths of so many images that cannot be read are too many."""
    if len(missing) > max(count > 1, MAX_UNREADABLE * count):
        raise OSError(
            f"{len(missing)} of {count} image files cannot be read, more than "
            f"{MAX_UNREADABLE:.0%}: mend or remove {', '.join(missing[:10])}"
        )


class _Files(torch.utils.data.Dataset):
    """(image, row, None) of a sample (row, seed); (None, row, reason) if it cannot be decoded."""

    def __init__(self, paths, image_size, augment, crop_scale, flip):
        self.images = paths
        self.paths = paths.paths if isinstance(paths, Decoded) else paths
        self.transform = _transform(image_size, augment, crop_scale, flip)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, sample):
        row, seed = sample
        try:
            decoded = isinstance(self.images, Decoded)
            image = self.images[row] if decoded else decode(self.paths[row])
        except OSError as error:
            return None, row, str(error)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)  # of the CPU alone
            return self.transform(middle(image)), row, None


def evaluation_transform(image_size: int) -> Callable[[Tensor], Tensor]:
    """What is done to images that are evaluated: resized, and cropped in the centre."""
    from torchvision.transforms import v2  # takes seconds: only if images are read

    resize = v2.Resize(shorter_side(image_size), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(image_size)])


def _transform(image_size, augment, crop_scale, flip):
    from torchvision.transforms import v2

    if not augment:
        return evaluation_transform(image_size)
    resize = v2.Resize(shorter_side(image_size), antialias=True)
    if crop_scale is None:
        crop = [resize, v2.RandomCrop(image_size)]
    else:
        crop = [v2.RandomResizedCrop(image_size, (crop_scale, 1), antialias=True)]
    return v2.Compose([*crop, v2.RandomHorizontalFlip(0.5 if flip else 0)])


def _collate(samples):
    """Images [B, C, H, W], their rows, and (row, reason) of those that could not be read.

    Or, in a worker, an OSError if there is no memory to share them with the main process.
    """
    images = [image for image, _, reason in samples if reason is None]
    rows = [row for _, row, reason in samples if reason is None]
    failed = [(row, reason) for _, row, reason in samples if reason is not None]
    stacked = torch.stack(images) if images else torch.empty(0)
    if get_worker_info() is not None:
        try:  # else the queue does it, in a thread whose errors never reach the main process
            stacked.share_memory_()
        except (RuntimeError, OSError) as error:
            reason = str(error).split("\n")[0]
            return OSError(
                f"a process that reads images has no shared memory for a batch ({reason}): make "
                f"room in /dev/shm (docker: --shm-size), or lower dataset.num_workers or batch_size"
            )
    return stacked, rows, failed
