"""Task losses: the loss of each sample, unreduced. Every method wraps one of these.

Each is called as ``task_loss(output, target) -> losses [B]``, and computes in float32 if the output
is in half precision.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.build import unknown
from utils.errors import UserError


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits [B, C] with class numbers [B], or with probabilities [B, C]."""
    output = full_precision(output)
    if target.is_floating_point():
        target = target.to(output.dtype)
    return F.cross_entropy(output, target, reduction="none")


def smooth_l1(output: Tensor, target: Tensor) -> Tensor:
    """0.5 d^2 where |d| < 1, |d| - 0.5 elsewhere, for predictions [B] or [B, 1] and targets [B]."""
    return F.smooth_l1_loss(*_regression(output, target), reduction="none")


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of predictions [B] or [B, 1] and targets [B]."""
    return F.mse_loss(*_regression(output, target), reduction="none")


TASK_LOSSES = {
    "classification": {"cross_entropy": cross_entropy},
    "regression": {"smooth_l1": smooth_l1, "mse": mse},
}


def get_task_loss(task: str, name: str, dataset_task: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The task loss of that name.

    Raises UserError if the task has none of that name, or the dataset is for another task.
    """
    if task != dataset_task:
        raise UserError(
            f"task={task}, but the targets of this dataset are for {dataset_task}: set "
            f"task={dataset_task} and task_loss to one of {', '.join(TASK_LOSSES[dataset_task])}"
        )
    if name not in TASK_LOSSES[task]:
        raise UserError(unknown("task_loss", name, TASK_LOSSES[task], f" for {task}"))
    return TASK_LOSSES[task][name]


def full_precision(output: Tensor) -> Tensor:
    """The same in float32, if it is in half precision."""
    return output.float() if output.dtype.itemsize < 4 else output


def one_hot(labels: Tensor, num_outputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Distributions [B, C] of classes [B]; unlike that of PyTorch, it does not read the labels."""
    zeros = torch.zeros(*labels.shape, num_outputs, dtype=dtype, device=labels.device)
    return zeros.scatter_(-1, labels.unsqueeze(-1), 1)


def _regression(output, target):
    output = full_precision(output)
    if output.ndim == 2 and output.shape[1] == 1:
        output = output.squeeze(1)  # [B, 1] and [B] would broadcast to [B, B] in silence
    if output.shape != target.shape:
        raise UserError(
            f"a regression output must be [B] or [B, 1] like its target {list(target.shape)}, "
            f"got {list(output.shape)}"
        )
    return output, target.to(output.dtype)
