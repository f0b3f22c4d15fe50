"""One batch shared by several processes: the methods compute over the whole of it.

Each process runs the model on its share of every batch, and ``gather`` gives all of them the
outputs for the whole batch. From there on all compute the same: the loss over the whole batch, and
what a method keeps of each sample. So none of that needs to know of processes.

Processes are those that torchrun has started, or those of the process group that PyTorch has been
given. In a process that is alone each of these functions does nothing.
"""

import contextlib
import functools
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# What torchrun tells each process about itself.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def rank() -> int:
    """The number of this process, from 0; known before the process group exists."""
    if _initialised():
        return dist.get_rank()
    return int(os.environ["RANK"]) if is_distributed() else 0


def world_size() -> int:
    """How many processes there are."""
    if _initialised():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if is_distributed() else 1


def is_distributed() -> bool:
    """Whether this process is one of several."""
    if _initialised():
        return dist.get_world_size() > 1
    complete = all(os.environ.get(name, "").isdigit() for name in RANK_VARIABLES)
    return complete and int(os.environ["WORLD_SIZE"]) > 1


def _initialised():
    return dist.is_available() and dist.is_initialized()


def main_process_only(method: Callable) -> Callable:
    """Decorator for what the first process does for all, e.g. writing a file; others get None."""

    @functools.wraps(method)
    def in_first_process(*arguments, **options):
        return method(*arguments, **options) if rank() == 0 else None

    return in_first_process


def rank_slice(part: slice) -> slice:
    """The positions in ``part`` of this process: every n-th of n processes, from its rank on."""
    return slice(part.start + rank(), part.stop, world_size())


def gather(*shares: Tensor) -> tuple[Tensor, ...]:
    """For each tensor, the shares [b, ...] of all processes as one tensor [B, ...].

    They are in the order of the batch; if they are not those of ``rank_slice``, because a file
    could not be read, one process's samples follow the other's. The gradient flows back into this
    process's share, times the number of processes, by which DistributedDataParallel divides.
    """
    if not is_distributed():
        return shares
    sizes = all_gather_objects(len(shares[0]))
    return tuple(_Gather.apply(tensor, sizes) for tensor in shares)


def mean_over_processes(*tensors: Tensor) -> tuple[Tensor, ...]:
    """For each tensor, the mean of those of all processes; in one exchange, without a gradient."""
    if not is_distributed():
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.div_(world_size()).split([tensor.numel() for tensor in tensors])
    return tuple(part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, sizes):
        ctx.sizes = sizes
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        whole = tensor.new_empty(sum(sizes), *tensor.shape[1:])
        for sender, part in enumerate(parts):
            whole[_rows_of(sender, sizes)] = part[: sizes[sender]]
        return whole

    @staticmethod
    def backward(ctx, grad):
        return grad[_rows_of(rank(), ctx.sizes)] * world_size(), None


def _rows_of(sender, sizes):
    """The rows of one process in the whole batch; ``sizes`` are the lengths of all shares."""
    total, count = sum(sizes), len(sizes)
    if sizes == [len(range(start, total, count)) for start in range(count)]:
        return slice(sender, total, count)
    return slice(sum(sizes[:sender]), sum(sizes[: sender + 1]))


def all_gather_objects(value) -> list:
    """The value of every process, by rank; processes wait for one another here.

    ``value`` is anything that pickles; whole numbers are the fastest.
    """
    if not is_distributed():
        return [value]
    if isinstance(value, int):
        own = torch.tensor([value], dtype=torch.int64, device=_exchange_device())
        values = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(values, own)
        return [int(number) for number in values]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(tensor: Tensor) -> Tensor:
    """The tensor of the first process, in all of them: for what is drawn at random per batch."""
    if not is_distributed():
        return tensor
    exchanged = tensor.to(_exchange_device()) if tensor.is_cpu else tensor
    dist.broadcast(exchanged, 0)
    return exchanged.to(tensor.device)


def _exchange_device():
    """Where small tensors are exchanged: on the CPU, unless the group is of GPUs alone."""
    if "cpu" in dist.get_backend_config():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())  # of a group that others have made


def unwrap(model: nn.Module) -> nn.Module:
    """The model that ``data_parallel`` was given: not compiled, nor shared between processes."""
    model = getattr(model, "_orig_mod", model)
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextlib.contextmanager
def synchronised_batch_norm(model: nn.Module):
    """While entered, each SyncBatchNorm computes in a way that can be differentiated repeatedly."""
    norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    for norm in norms:
        norm.forward = functools.partial(batch_norm_of_all, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def batch_norm_of_all(norm: nn.Module, inputs: Tensor) -> Tensor:
    """What a BatchNorm computes, from the whole batch of all processes."""
    if not norm.training:
        return type(norm).forward(norm, inputs)
    images = inputs.float() if inputs.dtype.itemsize < 4 else inputs
    dims, shape = [0, *range(2, images.ndim)], [1, -1] + [1] * (images.ndim - 2)
    count = sum(all_gather_objects(images.numel() // images.shape[1]))
    mean = _Sum.apply(images.sum(dims)) / count
    centred = images - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(dims)) / count
    if norm.track_running_stats:
        norm.num_batches_tracked += 1
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        with torch.no_grad():
            norm.running_mean.lerp_(mean, momentum)
            norm.running_var.lerp_(variance * (count / (count - 1)), momentum)
    scaled = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        scaled = torch.addcmul(norm.bias.view(shape), scaled, norm.weight.view(shape))
    return scaled.to(inputs.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, each of which computes a part of the final loss."""

    @staticmethod
    def forward(tensor):
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx, inputs, output):
        """There is nothing to remember."""

    backward = staticmethod(lambda ctx, grad: _Sum.apply(grad))
    jvp = staticmethod(lambda ctx, tangent: _Sum.apply(tangent))
