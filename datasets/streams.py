"""In which order samples come: the draws of an epoch, a second stream beside it, chunks of it.

Every order is a function of (seed, epoch) alone.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from datasets.base import Batch
from utils.distributed import world_size
from utils.errors import UserError

# parts of seeds, which set the random numbers of the streams apart from one another
ORDER, RECORDING, UNLABELLED, TEST, TRUSTED = 1, 2, 3, 4, 5

Draw = Callable[[torch.Generator], Tensor]  # makes the order of an epoch


class Loader(Protocol):
    """Batches of samples on the training device."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def set_epoch(self, epoch: int, first_batch: int = 0):
        """The order and augmentation of ``epoch``, from its batch ``first_batch`` on."""

    def rows_of(self, batch: int) -> list[int]:
        """Positions in the split of the samples in a batch of the present epoch."""


def batch_slices(count: int, size: int) -> list[slice]:
    """Which part of the order each batch takes.

    A last one of one sample, too little for a BatchNorm, joins the one before.
    """
    starts = list(range(0, count, size))
    if size > 1 and len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]


def shuffled(rows: Tensor) -> Draw:
    """Draws a new order of all rows."""
    return lambda generator: rows[torch.randperm(len(rows), generator=generator)]


def weighted(rows: Tensor, weight: Tensor, count: int) -> Draw:
    """Draws ``count`` rows with replacement, each with probability proportional to its weight."""

    def draw(generator):
        return rows[torch.multinomial(weight, count, replacement=True, generator=generator)]

    return draw


def several_views(rows: Tensor, *, batch_size: int, steps: int, num_views: int) -> Draw:
    """Draws ``steps`` batches, each written ``num_views`` times.

    They come from one permutation of the rows after another, whose remainders are dropped.

    Raises:
        UserError: the rows do not fill a batch.
    """
    if len(rows) < batch_size:
        raise UserError(
            f"the selection leaves {len(rows)} samples unlabelled, fewer than a batch of "
            f"{batch_size}: lower batch_size, or keep fewer"
        )
    whole = len(rows) // batch_size * batch_size
    passes = -(-steps * batch_size // whole)

    def draw(generator):
        orders = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(passes)]
        order = torch.cat([order[:whole] for order in orders])[: steps * batch_size]
        return order.view(steps, 1, batch_size).expand(-1, num_views, -1).flatten()

    return draw


def repeated_passes(rows: Tensor, *, batch_size: int, steps: int) -> Draw:
    """Draws ``steps`` full batches from one permutation of the rows after another.

    No row occurs twice in a batch: if a permutation ends within one, the rows that this batch has
    already come last in the next permutation.

    Raises:
        UserError: the rows do not fill a batch.
    """
    if len(rows) < batch_size:
        raise UserError(
            f"there are {len(rows)} trusted samples, fewer than trusted_batch_size={batch_size}: "
            f"raise trusted.count, or lower trusted_batch_size"
        )
    passes = -(-steps * batch_size // len(rows))

    def draw(generator):
        orders, begun = [], rows[:0]
        for number in range(1, passes + 1):
            order = rows[torch.randperm(len(rows), generator=generator)]
            repeated = torch.isin(order, begun)
            orders.append(torch.cat([order[~repeated], order[repeated]]))
            begun = orders[-1][len(rows) - number * len(rows) % batch_size :]
        return torch.cat(orders)[: steps * batch_size]

    return draw


class PairedLoader:
    """The batches of one loader, each with a batch of a second one as its ``extra``.

    If ``num_views`` is not 0, the second loader draws each sample of a batch so many times, and
    ``extra`` holds unlabelled views of it: inputs [num_views, B, ...] and no targets.

    Raises OSError while iterated, if images that cannot be read leave a batch incomplete.
    """

    def __init__(self, first: Loader, second: Loader, num_views: int = 0):
        self.first, self.second, self.num_views = first, second, num_views
        self.rows_of = first.rows_of

    def __len__(self):
        return len(self.first)

    def set_epoch(self, epoch: int, first_batch: int = 0):
        self.first.set_epoch(epoch, first_batch)
        self.second.set_epoch(epoch, first_batch)

    def __iter__(self):
        share = self.second.batch_size // world_size()
        for batch, extra in zip(self.first, self.second, strict=True):
            count = self.num_views * len(batch.input) if self.num_views else share
            if len(extra.input) != count:
                unreadable = {**self.first.unreadable, **self.second.unreadable}
                raise OSError(
                    f"this method needs whole batches, and images cannot be read: mend or remove "
                    f"{', '.join(unreadable)}"
                )
            if self.num_views:
                views = extra.input.unflatten(0, (self.num_views, -1))
                extra = Batch(views, None, extra.index[: len(batch.index)])
            yield batch._replace(extra=extra)


def chunks_per_pass(batches: int, steps: int) -> int:
    """How many chunks of so many steps a pass has, the last of which may be shorter."""
    return -(-batches // steps)


class Chunks:
    """A loader whose epochs are ``steps`` batches of another one's.

    The last chunk of a pass may be shorter.
    """

    def __init__(self, loader: Loader, steps: int):
        self.loader, self.steps = loader, steps
        self.per_pass = chunks_per_pass(len(loader), steps)
        self.set_epoch(0)

    def set_epoch(self, epoch: int, first_batch: int = 0):
        """Chunk ``epoch``, counted over all passes, from its batch ``first_batch`` on."""
        self.start, self.first_batch = epoch % self.per_pass * self.steps, first_batch
        self.loader.set_epoch(epoch // self.per_pass, self.start + first_batch)

    def __len__(self):
        return min(self.steps, len(self.loader) - self.start)

    def rows_of(self, batch: int) -> list[int]:
        return self.loader.rows_of(self.start + batch)

    def __iter__(self):
        return itertools.islice(self.loader, len(self) - self.first_batch)
