"""The optimisers that a params file may name: those of torch.optim that need no closure and no sparse gradients."""

import sys

from torch.nn.utils import clip_grad_norm_
from torch.optim import ASGD, SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

from utils.build import build

__all__ = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "ASGD"]

FUSED = ("SGD", "Adam", "AdamW")  # which have a kernel that steps all parameters at once, on GPUs and CPUs


def make(spec: dict, parameters):
    """The optimiser of a params file's section, in the fused form where there is one and the section asks for no other."""
    if spec["name"] in FUSED and spec.get("fused") is None and not spec.get("foreach") and not spec.get("differentiable"):
        spec = spec | {"fused": True}
    return build(sys.modules[__name__], spec, params=parameters)


def step(optimizer, clip_norm: float | None):
    """Step the optimiser; where there is a ``clip_norm``, with gradients scaled down to that norm of all of them together."""
    if clip_norm is not None:
        clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], clip_norm)
    optimizer.step()
