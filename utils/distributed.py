"""Several processes on one run, as torchrun starts them.

What one batch needs is in losses.distributed, and can be imported from here too. A run with two
processes equals the run with one, up to rounding; ``batch_size`` is that of all together.

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
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from losses.distributed import (
    RANK_VARIABLES,
    all_gather_objects,
    batch_norm_of_all,
    broadcast,
    gather,
    is_distributed,
    main_process_only,
    rank,
    rank_slice,
    world_size,
)
from utils.errors import UserError

__all__ = [
    "OtherProcessFailed",
    "all_gather_objects",
    "barrier",
    "broadcast",
    "data_parallel",
    "end_process",
    "fail_together",
    "gather",
    "is_distributed",
    "local_main_first",
    "main_process_only",
    "process_group",
    "rank",
    "rank_seed",
    "rank_slice",
    "world_size",
]

# Where the processes meet, as torchrun tells each.
MASTER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")
# One process may have to download, decode or draw while the others wait.
TIMEOUT = datetime.timedelta(hours=1)


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


def rank_seed() -> tuple[int, ...]:
    """What to add to a seed so that processes draw different numbers for different samples.

    () in the first process, a number in the others.
    """
    return (1000 + rank(),) if rank() else ()  # the loaders use small numbers for their streams


def barrier():
    """Wait here for all processes."""
    all_gather_objects(None)


def data_parallel(model: nn.Module, device: torch.device, compiled: bool = False) -> nn.Module:
    """The same parameters as a model whose gradients and BatchNorms are those of whole batches."""
    if is_distributed():
        model = _distribute(model, device)
    return torch.compile(model) if compiled else model


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
            module.forward = functools.partial(batch_norm_of_all, module)
    return model
