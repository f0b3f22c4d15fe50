"""What the network says of a part of the data, and how good that is."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from utils.distributed import gather
from utils.errors import UserError
from utils.metrics import Metric


def further_metrics(output: Tensor, target: Tensor, metric: Metric) -> dict[str, float]:
    """What is reported besides the mean of ``metric``.

    For a regression: rmse and r2, which is NaN if all targets are equal. For more than 10 classes:
    top5, in percent.
    """
    if metric.name == "mae":
        output, target = output.flatten().double(), target.double()
        squares = (output - target).square().mean()
        spread = (target - target.mean()).square().mean()
        return {
            "rmse": float(squares.sqrt()),
            "r2": float(1 - squares / spread) if spread > 0 else math.nan,
        }
    if output.shape[1] > 10:
        among_five = (output.topk(5).indices == target.unsqueeze(1)).any(1)
        return {"top5": float(100 * among_five.double().mean())}
    return {}


@torch.no_grad()
def check_fit(
    model: nn.Module, task_loss: Callable, inputs: Tensor, targets: Tensor, device: torch.device
):
    """Raise UserError if the model cannot take the inputs, or its outputs do not fit targets."""
    try:
        task_loss(model.eval()(inputs.to(device)), targets.to(device))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise UserError(
            f"the model does not fit the dataset, with inputs of {list(inputs.shape[1:])}, "
            f"{inputs.dtype}: {error}"
        ) from None


@torch.no_grad()
def predict(model: nn.Module, loader, autocast) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of the model in evaluation mode, targets and indices, of a whole loader, on the CPU.

    Several processes share the work, and each gets all of it, in an order that depends on their
    number.

    Raises FloatingPointError if outputs are not finite.
    """
    model.eval()
    parts = []
    for batch in loader:
        with autocast():
            output = model(batch.input)
        parts.append((output.float(), batch.target, batch.index))
    output, target, index = gather(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))
    if not output.isfinite().all():
        raise FloatingPointError(
            "the model's outputs are not finite any more. The last good checkpoint is untouched. "
            "Lower optimizer.lr or the method's own rates"
        )
    return output, target, index


def evaluate(model: nn.Module, loaders: dict, metric: Metric, autocast) -> dict[str, float]:
    """The mean of the metric for each loader, ``<name>_metric``, and its ``further_metrics``."""
    row = {}
    for name, loader in loaders.items():
        output, target, _ = predict(model, loader, autocast)
        row[f"{name}_metric"] = float(metric.compute(output, target).double().mean())
        further = further_metrics(output, target, metric)
        row |= {f"{name}_{key}": value for key, value in further.items()}
    return row


def prediction_table(
    output: Tensor, target: Tensor, index: Tensor, task_loss: Callable
) -> dict[str, np.ndarray]:
    """A row per sample, by index: index, target, loss, and predicted: a class or a number."""
    order = index.argsort()
    output, target = output[order], target[order]
    predicted = output.argmax(1) if output.ndim == 2 and output.shape[1] > 1 else output.flatten()
    return {
        "index": index[order].numpy(),
        "target": target.numpy(),
        "loss": task_loss(output, target).numpy(),
        "predicted": predicted.numpy(),
    }
