"""Batches of inputs that lie on the training device: no files, no workers."""

import torch
from torch import Tensor

from datasets.base import Batch
from datasets.images import normalisation
from datasets.streams import ORDER, Draw, batch_slices
from utils.distributed import rank_slice
from utils.seed import derive


class MemoryLoader:
    """Batches of inputs on the device: uint8 images, gathered, augmented and normalised there.

    Which samples make up a batch, and how each is cropped and mirrored, is a function of (seed,
    epoch, number of the batch) alone.

    Args:
        inputs: [N, ...]. Images have a margin of ``crop_padding`` pixels on each side.
        targets: [N, ...], of all inputs.
        rows: positions in the inputs to use.
        mean, std: per channel; without them inputs are no images, and are yielded as they are.
        draw: makes the order of an epoch out of a generator; without it, it is that of ``rows``.
        crop_padding, flip: with either, every sample is cropped and mirrored anew each epoch.
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
        draw: Draw | None = None,
        seed: int = 0,
        crop_padding: int = 0,
        flip: bool = False,
    ):
        self.size = tuple(length - 2 * crop_padding for length in inputs.shape[-2:])
        self.inputs, self.targets = inputs.to(device), targets.to(device)
        self.rows, self.batch_size, self.device = rows, batch_size, device
        self.draw, self.seed = draw, seed
        self.padding, self.flip = crop_padding, flip
        self.normalisation = (
            [part.to(device) for part in normalisation(mean, std)] if mean else None
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
            top_left = torch.randint(2 * self.padding + 1, (count, 2), generator=generator)
            self.top_left = top_left.to(self.device)
        if self.flip:
            self.mirrored = (torch.rand(count, generator=generator) < 0.5).to(self.device)

    def rows_of(self, batch: int) -> list[int]:
        """Positions in the split of the samples in a batch of the present epoch."""
        return self.order[self.parts[batch]].tolist()

    def __iter__(self):
        for part in self.parts[self.first_batch :]:
            share = rank_slice(part)
            index = self.order[share]
            yield Batch(self._inputs(index, share), self.targets[index], index)

    def _inputs(self, index, share):
        if self.top_left is None and self.mirrored is None:
            inputs = self.inputs.index_select(0, index)
        else:
            inputs = crop_and_flip(
                self.inputs,
                index,
                self.size,
                top_left=None if self.top_left is None else self.top_left[share],
                mirrored=None if self.mirrored is None else self.mirrored[share],
            )
        if self.normalisation is None:
            return inputs
        scale, shift = self.normalisation
        # on a CPU half the time of inputs * scale, which mixes types
        return inputs.float().mul_(scale).add_(shift)


def pad(images: Tensor, margin: int, mode: str) -> Tensor:
    """Images [N, C, H, W] with a margin on each side.

    Of zeros, or ("reflect") mirrored at the edge, which is not repeated.
    """
    if mode == "zeros" or margin == 0:
        return torch.nn.functional.pad(images, [margin] * 4)
    rows, columns = (_reflected(length, margin).to(images.device) for length in images.shape[-2:])
    return images[:, :, rows][:, :, :, columns]


def _reflected(length, margin):
    """Positions [margin + length + margin], mirrored at 0 and at length - 1."""
    last = length - 1
    return last - (last - torch.arange(-margin, length + margin).abs()).abs()


def crop_and_flip(
    images: Tensor,
    index: Tensor,
    size: tuple[int, int],
    *,
    top_left: Tensor | None = None,
    mirrored: Tensor | None = None,
) -> Tensor:
    """images[index], each cropped to ``size`` at a corner of its own, and some mirrored.

    Args:
        size: height and width.
        top_left: the corners [B, 2].
        mirrored: which of them [B].
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
