"""Several processes on one run, as torchrun starts them: each computes its share of every batch,
and all know the same.

The model runs on the share, and ``gather`` gives every process the outputs for the whole batch.
From there on all compute alike: the loss over the whole batch, what it keeps of each sample, the
record of the run. So none of that knows of processes, and a run with two is the run with one, to
rounding: ``batch_size`` is that of all together.

In a process that is alone each function here does nothing.
"""

import contextlib
import datetime
import functools
import inspect
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError

RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
)  # what torchrun tells each process about itself,
MASTER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")  # and where they meet
TIMEOUT = datetime.timedelta(
    hours=1
)  # one may have to download, decode or draw while the others wait


def rank() -> int:
    """Which of the processes this is, from 0; also before they have met."""
    return int(os.environ["RANK"]) if is_distributed() else 0


def world_size() -> int:
    """How many there are."""
    return int(os.environ["WORLD_SIZE"]) if is_distributed() else 1


def is_distributed() -> bool:
    """Whether this process was started as one of several."""
    return (
        all(os.environ.get(name, "").isdigit() for name in RANK_VARIABLES)
        and int(os.environ["WORLD_SIZE"]) > 1
    )


@contextlib.contextmanager
def process_group():
    """While entered, this process and the others that torchrun has started can exchange tensors.

    Raises:
        ValueError: some of torchrun's variables are set and others are not.
        OSError: the others cannot be reached.
    """
    wrong = [name for name in RANK_VARIABLES if not os.environ.get(name, "").isdigit()]
    missing = [name for name in MASTER_VARIABLES if not os.environ.get(name)]
    if len(wrong) == len(RANK_VARIABLES):
        yield
        return
    if wrong or (is_distributed() and missing):
        present = [name for name in (*RANK_VARIABLES, *MASTER_VARIABLES) if name in os.environ]
        raise UserError(
            f"{', '.join(present)} are set as for one of several processes, but not "
            f"{', '.join(wrong + missing)}: start them with torchrun, or unset these variables"
        )
    if not is_distributed() or dist.is_initialized():
        yield
        return
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT
        )
    except dist.DistError as error:
        raise OSError(
            f"the other processes cannot be met at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: "
            f"{error}"
        ) from None
    yield
    dist.destroy_process_group()  # not after an error: the others may never come to it


def main_process_only(method: Callable) -> Callable:
    """Decorates what the first process does for all, e.g.

    Write a file; the others skip it and get None.
    """

    @functools.wraps(method)
    def only_there(*arguments, **options):
        return method(*arguments, **options) if rank() == 0 else None

    return only_there


def local_main_first(function: Callable, *arguments, **options):
    """Call it in the first process of each machine, and then in the others.

    It may have to download a file for them.
    """
    first = not is_distributed() or int(os.environ["LOCAL_RANK"]) == 0
    if not first:
        barrier()
    try:
        return function(*arguments, **options)
    finally:
        if first:
            barrier()


class OtherProcessFailed(SystemExit):
    """Ends this process in silence: another one says what is wrong."""

    def __init__(self, reason: str):
        super().__init__(2)
        self.reason = reason

    def __str__(self):
        return self.reason


@contextlib.contextmanager
def fail_together():
    """Where this fails in one process, it fails in all: with its own error there, with
    OtherProcessFailed in the others.

    What is done in it must not exchange anything with other processes, but in ``local_main_first`` and in
    another ``fail_together``.
    """
    failure = None
    try:
        yield
    except (Exception, OtherProcessFailed) as error:
        failure = error
    failures = all_gather_objects(failure and repr(failure))
    if failure is not None and (rank() == 0 or repr(failure) != failures[0]):
        raise failure
    if any(failures):  # the same everywhere, e.g. a wrong configuration, is said once
        raise OtherProcessFailed(next(filter(None, failures)))


def rank_slice(part: slice) -> slice:
    """Which places in that part of an order are this process's.

    Every n-th of n processes, from its rank on.
    """
    return slice(part.start + rank(), part.stop, world_size())


def rank_seed() -> tuple[int, ...]:
    """() in the first process, a number in others.

    Sets their random numbers apart where those belong to a sample.
    """
    return (1000 + rank(),) if rank() else ()  # small numbers are the streams of the loaders


def gather(*shares: Tensor) -> tuple[Tensor, ...]:
    """Of each tensor [b, ...], all processes' shares as one [B, ...], in the order of the batch.

    The gradient of each flows back into this process's share, times the number of processes:
    DistributedDataParallel divides by it. Where shares are not those of ``rank_slice``, because a file
    could not be read, they follow one another.
    """
    if not is_distributed():
        return shares
    sizes = all_gather_objects(len(shares[0]))
    return tuple(_Gather.apply(tensor, sizes) for tensor in shares)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, sizes):
        ctx.sizes = sizes
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        whole = tensor.new_empty(sum(sizes), *tensor.shape[1:])
        for one, part in enumerate(parts):
            whole[_places(sizes, one)] = part[: sizes[one]]
        return whole

    @staticmethod
    def backward(ctx, grad):
        return grad[_places(ctx.sizes, rank())] * world_size(), None


def _places(sizes, one):
    """Where in the whole the share of process ``one`` belongs."""
    total, number = sum(sizes), len(sizes)
    if sizes == [len(range(start, total, number)) for start in range(number)]:
        return slice(one, total, number)
    return slice(sum(sizes[:one]), sum(sizes[: one + 1]))


def all_gather_objects(value) -> list:
    """The ``value``, a number or anything that pickles, of every process, by rank.

    They wait for one another here.
    """
    if not is_distributed():
        return [value]
    if isinstance(value, int):
        values = [torch.empty(1, dtype=torch.int64) for _ in range(world_size())]
        dist.all_gather(values, torch.tensor([value], dtype=torch.int64))
        return [int(number) for number in values]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier():
    """Wait here for all processes."""
    all_gather_objects(None)


def broadcast(tensor: Tensor) -> Tensor:
    """The first process's ``tensor``, in all of them.

    What is drawn at random for the whole batch.
    """
    if is_distributed():
        dist.broadcast(tensor, 0)
    return tensor


def data_parallel(model: nn.Module, device: torch.device, compiled: bool = False) -> nn.Module:
    """The model as one whose gradients and BatchNorm statistics are those of the whole batch.

    It shares its parameters.
    """
    if is_distributed():
        convert = (
            nn.SyncBatchNorm.convert_sync_batchnorm
            if device.type == "cuda"
            else _synchronise_batch_norm
        )
        renamed = (
            "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        )  # by PyTorch 2.15 or before
        equal_already = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        model = DistributedDataParallel(
            convert(model), device_ids=[device] if device.type == "cuda" else None, **equal_already
        )
    return torch.compile(model) if compiled else model


def _synchronise_batch_norm(model):
    """Let every BatchNorm normalise by the whole batch on a CPU, for which PyTorch has no such
    layer.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = functools.partial(_batch_norm, module)
    return model


def _batch_norm(norm, given):
    if not norm.training:
        return type(norm).forward(norm, given)
    images = given.float() if given.dtype.itemsize < 4 else given
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
    return scaled.to(given.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, of which each holds a part of the final loss."""

    @staticmethod
    def forward(ctx, tensor):
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    backward = staticmethod(lambda ctx, grad: _Sum.apply(grad))
