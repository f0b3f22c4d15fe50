"""What the network says of a part of the data, and how good that is."""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from utils.distributed import gather
from utils.errors import UserError
from utils.metrics import Metric


@torch.no_grad()
def check_batch_of_one(model: nn.Module, inputs: Tensor, device: torch.device):
    """Raise UserError if the model cannot be trained on a batch of one sample.

    Neither the model nor the random numbers change.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            copy.deepcopy(model).train()(inputs[:1].to(device))
        except ValueError as error:  # of a BatchNorm
            raise UserError(
                f"some batches hold one sample, and this model cannot be trained on one ({error}): "
                f"raise batch_size, or trusted_batch_size of the method"
            ) from None


Keep = Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # of the outputs and targets of a batch


def further_metrics(output: Tensor, target: Tensor) -> dict[str, float]:
    """Of a regression besides the MAE: rmse, and r2, which is NaN if all targets are equal."""
    output, target = output.flatten().double(), target.double()
    squares = (output - target).square().mean()
    spread = (target - target.mean()).square().mean()
    return {
        "rmse": float(squares.sqrt()),
        "r2": float(1 - squares / spread) if spread > 0 else math.nan,
    }


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


def everything(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [B, C] and targets [B], as they are."""
    return output, target


@torch.no_grad()
def predict(
    model: nn.Module, loader, autocast: Callable, keep: Keep = everything
) -> tuple[Tensor, ...]:
    """What is to be kept of each batch of a whole loader, and the indices, on the CPU.

    By default that is the outputs of the model in evaluation mode, and the targets: of many classes
    more than the memory may hold. Several processes share the work, and each gets all of it, in an
    order that depends on their number.

    Args:
        keep: gets them on the CPU, outputs in float32; returns tensors [B, ...].

    Raises FloatingPointError if outputs are not finite.
    """
    model.eval()
    parts = []
    for batch in loader:
        with autocast():
            output = model(batch.input)
        output, target = output.float().cpu(), batch.target.cpu()
        finite = output.isfinite().view(len(output), math.prod(output.shape[1:])).all(1)
        parts.append((*keep(output, target), batch.index.cpu(), finite))
    *kept, finite = gather(*(torch.cat(part) for part in zip(*parts, strict=True)))
    if not finite.all():
        raise FloatingPointError(
            "the model's outputs are not finite any more. The last good checkpoint is untouched. "
            "Lower optimizer.lr or the method's own rates"
        )
    return tuple(kept)


def evaluate(model: nn.Module, loaders: dict, metric: Metric, autocast) -> dict[str, float]:
    """The mean of the metric for each loader, ``<name>_metric``, and what is reported besides.

    Of a regression ``further_metrics``, of more than 10 classes top5, in percent.
    """

    def keep(output, target):
        values = metric.compute(output, target)
        if metric.name == "mae":
            return values, output.flatten(), target
        if output.shape[1] > 10:
            return values, (output.topk(5).indices == target.unsqueeze(1)).any(1)
        return (values,)

    row = {}
    for name, loader in loaders.items():
        values, *more, _ = predict(model, loader, autocast, keep)
        row[f"{name}_metric"] = float(values.double().mean())
        if metric.name == "mae":
            further = further_metrics(*more)
            row |= {f"{name}_{key}": value for key, value in further.items()}
        elif more:
            row[f"{name}_top5"] = float(100 * more[0].double().mean())
    return row


def in_a_table(task_loss: Callable, whole: bool = False) -> Keep:
    """Keeps of each sample what ``prediction_table`` has a column for.

    ``whole``: also the probabilities of all classes.
    """

    def keep(output, target):
        if output.ndim == 1 or output.shape[1] == 1:
            return target, task_loss(output, target), output.flatten()
        predicted, probabilities = output.argmax(1), output.softmax(1)
        own, first = (
            probabilities.gather(1, label.unsqueeze(1)).squeeze(1) for label in (target, predicted)
        )
        second, other = probabilities.scatter(1, predicted.unsqueeze(1), -1).max(1)
        kept = target, task_loss(output, target), predicted, own, first, other, second
        return (*kept, probabilities) if whole else kept

    return keep


COLUMNS = (  # of a prediction_table; in a regression the first three
    "target",
    "loss",
    "predicted",  # the most probable class, or the number
    "given_probability",
    "predicted_probability",
    "second",  # the class that comes next
    "second_probability",
    "probabilities",  # of all classes
)


def prediction_table(*kept: Tensor) -> dict[str, np.ndarray]:
    """A row per sample, by index, of what ``predict`` has kept ``in_a_table``.

    Args:
        kept: a tensor per column, and the index.
    """
    *columns, index = kept
    order = index.argsort()
    named = zip(COLUMNS, columns, strict=False)
    return {"index": index[order].numpy()} | {name: part[order].numpy() for name, part in named}
