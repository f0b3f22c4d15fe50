"""The optimisers that a params file may name.

They are those of torch.optim that need no closure and no sparse gradients.
"""

import sys

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import ASGD, SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

from utils.build import AT_LEAST_0, FRACTION, Must, build

__all__ = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "ASGD"]

MOMENTUM = Must("lie in [0, 1)", lambda value: 0 <= value < 1)
# of the arguments of PyTorch's own, which lets most of these be anything
RANGES = {
    "lr": [AT_LEAST_0],
    "weight_decay": [AT_LEAST_0],
    "momentum": [MOMENTUM],
    "dampening": [FRACTION],
    "betas": [
        Must(
            "be two numbers in [0, 1)",
            lambda pair: len(pair) == 2 and all(0 <= beta < 1 for beta in pair),
        )
    ],
    "eps": [AT_LEAST_0],
    "momentum_decay": [AT_LEAST_0],
    "lr_decay": [AT_LEAST_0],
    "initial_accumulator_value": [AT_LEAST_0],
    "alpha": [FRACTION],
    "lambd": [AT_LEAST_0],
    "t0": [AT_LEAST_0],
}
FUSED = ("SGD", "Adam", "AdamW")  # a kernel steps all parameters at once, on GPUs and CPUs


def own_parameters(objective: torch.nn.Module, model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters of a method that are to be trained and are none of the model's."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    in_model = {id(parameter) for parameter in model.parameters()}
    return [parameter for parameter in trained if id(parameter) not in in_model]


def make(spec: dict, parameters, own=(), own_lr: float | None = None) -> torch.optim.Optimizer:
    """The optimiser that a section of a params file describes.

    It is fused if there is such a form and the section asks for no other. The fused form assumes
    that the state of a parameter lies in memory as the parameter does, and that either all
    parameters have a state or none has. Both are ensured here, also if a parameter gets its first
    gradient late, and if a checkpoint was saved with another value of channels_last.

    Args:
        parameters: of the model.
        own: parameters of the method, which become a second group.
        own_lr: learning rate of that group; None for that of the model.
    """
    groups = parameters
    if own:
        rate = {} if own_lr is None else {"lr": own_lr}
        groups = [{"params": list(parameters)}, {"params": list(own), **rate}]
    fused = spec["name"] in FUSED and spec.get("fused") is None and spec.get("foreach") is None
    if not fused or spec.get("differentiable") or spec.get("dampening"):
        return build(sys.modules[__name__], spec, params=groups)
    optimizer = build(sys.modules[__name__], spec | {"fused": True}, params=groups)
    if spec.get("momentum"):
        for parameter in all_parameters(optimizer):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    optimizer.register_load_state_dict_post_hook(_lay_out_as_parameters)
    return optimizer


def all_parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """The parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _lay_out_as_parameters(optimizer):
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def step(optimizer: torch.optim.Optimizer, clip_norm: float | None):
    """Step the optimiser; before that, if ``clip_norm`` is given, scale gradients down to it.

    The norm is that of all gradients together, also if there are several networks.
    """
    if clip_norm is not None:
        clip_grad_norm_(all_parameters(optimizer), clip_norm)
    optimizer.step()
