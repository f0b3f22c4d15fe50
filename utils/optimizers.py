"""The optimisers that a params file may name: those of torch.optim that need no closure and no sparse gradients."""

from torch.nn.utils import clip_grad_norm_
from torch.optim import ASGD, SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

__all__ = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "ASGD"]


def step(optimizer, clip_norm: float | None):
    """Step the optimiser; where there is a ``clip_norm``, with gradients scaled down to that norm of all of them together."""
    if clip_norm is not None:
        clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], clip_norm)
    optimizer.step()
