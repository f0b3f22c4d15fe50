"""Where and in which precision a run computes."""

import contextlib
from collections.abc import Callable

import torch


def choose_device(name: str, precision: str = "fp32", threads: int | None = None) -> tuple[torch.device, Callable]:
    """The device called ``name`` ("auto": a GPU if there is one), and what to open around each forward pass on it.

    That is nothing for "fp32", and autocast to bfloat16 for "bf16", which needs no gradient scaler. ``threads``: of the
    CPU (None: PyTorch's choice). Raises ValueError where the GPU that is asked for is not there.
    """
    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here; use device=auto or cpu")
    if precision == "fp32":
        return device, contextlib.nullcontext
    return device, lambda: torch.autocast(device.type, torch.bfloat16)
