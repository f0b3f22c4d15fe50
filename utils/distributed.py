"""Several processes on one run, as torchrun starts them.

Each process runs the model on its share of every batch, and ``gather`` gives all of them the
outputs for the whole batch. From there on all compute the same: the loss over the whole batch, what
it keeps of each sample, the record of the run. So none of that needs to know of processes, and a
run with two processes equals the run with one, up to rounding; ``batch_size`` is that of all
together.

In a process that is alone each of these functions does nothing.
"""

import contextlib
import datetime
import functools
import inspect
import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError

# What torchrun tells each process about itself, and where the processes meet.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
MASTER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")
# One process may have to download, decode or draw while the others wait.
TIMEOUT = datetime.timedelta(hours=1)


def rank() -> int:
    """The number of this process, from 0; known before the process group exists."""
    return int(os.environ["RANK"]) if is_distributed() else 0


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if is_distributed() else 1


def is_distributed() -> bool:
    """Whether this process was started as one of several."""
    complete = all(os.environ.get(name, "").isdigit() for name in RANK_VARIABLES)
    return complete and int(os.environ["WORLD_SIZE"]) > 1


@contextlib.contextmanager
def process_group():
    """While entered, the processes that torchrun has started can exchange tensors.

    Raises:
        UserError: some of torchrun's variables are set and others are not.
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
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except dist.DistError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise OSError(f"the other processes cannot be met at {address}: {error}") from None
    yield
    barrier()  # torchrun ends the others soon after the first that ends
    dist.destroy_process_group()  # not after an error: the others might never get here


def end_process(code: int):
    """End this process with an exit code.

    One of several ends without the destructors of C++: at exit, threads of gloo that are still
    running may abort it ("terminate called without an active exception"), and torchrun would take
    that for a failure.
    """
    if is_distributed():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main_process_only(method: Callable) -> Callable:
    """Decorator for what the first process does for all, e.g. writing a file; others get None."""

    @functools.wraps(method)
    def in_first_process(*arguments, **options):
        return method(*arguments, **options) if rank() == 0 else None

    return in_first_process


def local_main_first(function: Callable, *arguments, **options):
    """Call a function in the first process of each machine, and then in the others.

    For what may have to download a file: the others then use the same one.
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
    """Ends this process in silence, since another one says what is wrong."""

    def __init__(self, reason: str):
        super().__init__(2)
        self.reason = reason

    def __str__(self):
        return self.reason


@contextlib.contextmanager
def fail_together():
    """If the block fails in one process, it fails in all of them.

    A process that failed raises its own error, the others OtherProcessFailed. If all have failed in
    the same way, e.g. because of a wrong configuration, the first alone says so. Inside the block
    processes may exchange data only within ``local_main_first`` and another ``fail_together``.
    """
    failure = None
    try:
        yield
    except (Exception, OtherProcessFailed) as error:
        failure = error
    failures = all_gather_objects(failure and repr(failure))
    if failure is not None and (rank() == 0 or repr(failure) != failures[0]):
        raise failure
    if any(failures):
        raise OtherProcessFailed(next(filter(None, failures)))


def rank_slice(part: slice) -> slice:
    """The positions in ``part`` of this process: every n-th of n processes, from its rank on."""
    return slice(part.start + rank(), part.stop, world_size())


def rank_seed() -> tuple[int, ...]:
    """What to add to a seed so that processes draw different numbers for different samples.

    () in the first process, a number in the others.
    """
    return (1000 + rank(),) if rank() else ()  # the loaders use small numbers for their streams


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
    """The tensor of the first process, in all of them: for what is drawn at random per batch."""
    if is_distributed():
        dist.broadcast(tensor, 0)
    return tensor


def data_parallel(model: nn.Module, device: torch.device, compiled: bool = False) -> nn.Module:
    """The same parameters as a model whose gradients and BatchNorms are those of whole batches."""
    if is_distributed():
        model = _distribute(model, device)
    return torch.compile(model) if compiled else model


def unwrap(model: nn.Module) -> nn.Module:
    """The model that ``data_parallel`` was given: not compiled, nor shared between processes."""
    model = getattr(model, "_orig_mod", model)
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextlib.contextmanager
def synchronised_batch_norm(model: nn.Module):
    """While entered, each SyncBatchNorm computes in a way that can be differentiated repeatedly."""
    norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    for norm in norms:
        norm.forward = functools.partial(_batch_norm, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _distribute(model, device):
    # Buffers are equal already, and need not be sent; newer PyTorch has renamed the argument.
    name = "forward_sync_buffers"
    if name not in inspect.signature(DistributedDataParallel).parameters:
        name = "broadcast_buffers"
    options = {name: False}
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[device], **options)
    return DistributedDataParallel(_synchronise_batch_norm(model), **options)


def _synchronise_batch_norm(model):
    """Let each BatchNorm use the whole batch on a CPU, for which PyTorch has no such layer."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = functools.partial(_batch_norm, module)
    return model


def _batch_norm(norm, inputs):
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
