"""Where and in which precision a run computes."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Callable

import torch

from utils.distributed import fail_together, is_distributed
from utils.errors import UserError


def choose_device(
    name: str,
    precision: str = "fp32",
    threads: int | None = None,
    deterministic: bool = False,
) -> tuple[torch.device, Callable]:
    """The device called ``name``, and the context to open around each forward pass on it.

    With "bf16" that is autocast to bfloat16, which needs no gradient scaler; with "fp32" it does
    nothing. If several processes share a machine, each takes the GPU of its local rank. On a CPU,
    the allocator is told to keep memory that is freed.

    Args:
        name: "cpu", "cuda", "cuda:<number>", or "auto" for a GPU if there is one.
        precision: "fp32" or "bf16".
        threads: of the CPU; None leaves the choice to PyTorch.
        deterministic: on a GPU, only algorithms that give the same bits each time, where PyTorch
            has some, and a warning where it has none; slower. It holds for the whole process.

    Raises UserError if the GPU is not there.
    """
    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if is_distributed() and name.startswith("cuda"):
        if name != "cuda":
            raise UserError(
                f"device={name} is one GPU, and there are several processes: use device=cuda"
            )
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    with fail_together():  # the GPUs may suffice for some of the processes only
        if device.type == "cuda":
            _check_gpu(device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # set_device of 2.11 wants an index
        torch.cuda.set_device(device)
        # cuDNN tries its algorithms, since all batches but the last have one size, and takes the
        # fastest. Which one that is differs from run to run, and so do the last bits.
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at its first use
            torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        _keep_freed_memory()
    if precision == "fp32":
        return device, contextlib.nullcontext
    return device, lambda: torch.autocast(device.type, torch.bfloat16)


def _check_gpu(device):
    count = torch.cuda.device_count()
    if (device.index or 0) < count:
        return
    hint = "use device=auto or cpu"
    if is_distributed():
        hint = "start one process for each, or use device=cpu"
    raise UserError(f"device={device}: PyTorch sees {count} CUDA devices here; {hint}")


def device_name(name: str) -> str:
    """What computes if ``choose_device`` is given ``name``: "cpu", or the GPU's own name."""
    return "cpu" if name == "cpu" or not torch.cuda.is_available() else torch.cuda.get_device_name()


def _keep_freed_memory():
    """Let glibc keep the memory that a step frees for the next step.

    By default each large tensor is mapped, zeroed and unmapped anew. With LeNet, a batch of 128 and
    2 cores, this gives about 5 % more images per second.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, at its maximum
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
