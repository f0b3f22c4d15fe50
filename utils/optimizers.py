"""The optimisers that a params file may name.

Those of torch.optim that need no closure and no sparse gradients.
"""

import sys

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import ASGD, SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

from utils.build import build

__all__ = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "ASGD"]

FUSED = (
    "SGD",
    "Adam",
    "AdamW",
)  # which have a kernel that steps all parameters at once, on GPUs and CPUs


def make(spec: dict, parameters) -> torch.optim.Optimizer:
    """The optimiser of a params file's section, in the fused form where there is one and the
    section asks for no other.

    The fused form takes it for granted that a parameter's state lies in memory as the parameter
    does, and is there for all parameters or for none. Here it does, and is: also for a parameter
    that gets its first gradient late, and after a checkpoint is loaded that was saved with another
    value of channels_last.
    """
    fused = spec["name"] in FUSED and spec.get("fused") is None and spec.get("foreach") is None
    if not fused or spec.get("differentiable") or spec.get("dampening"):
        return build(sys.modules[__name__], spec, params=parameters)
    optimizer = build(sys.modules[__name__], spec | {"fused": True}, params=parameters)
    if spec.get("momentum"):
        for parameter in (
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    optimizer.register_load_state_dict_post_hook(_lay_out_as_parameters)
    return optimizer


def _lay_out_as_parameters(optimizer):
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def step(optimizer, clip_norm: float | None):
    """Step the optimiser.

    Where there is a ``clip_norm``, with gradients scaled down to that norm of all of them together.
    """
    if clip_norm is not None:
        clip_grad_norm_(
            [parameter for group in optimizer.param_groups for parameter in group["params"]],
            clip_norm,
        )
    optimizer.step()
