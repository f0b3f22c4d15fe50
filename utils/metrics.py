"""What a run is judged by: a number per sample, and how its mean is named, compared and shown.

Without PyTorch's import: reports read runs on machines that have none to spare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """[B], in percent: 100 if the largest logit of [B, C] is that of the target, else 0.

    The target is a class number [B], or a distribution [B, C], of which the largest counts.
    """
    classes = target if target.ndim == 1 else target.argmax(1)
    return 100.0 * (output.argmax(1) == classes)


def mae(output: Tensor, target: Tensor) -> Tensor:
    """[B]: |prediction - target|; its mean is the mean absolute error."""
    return (output.flatten() - target).abs()


@dataclass(frozen=True)
class Metric:
    """A metric, as everything that shows or compares it needs it.

    Args:
        name: in summary.json and in tables.
        unit: after its name in headings, e.g. "%"; "" if it has that of the target.
        higher_is_better: which of two values is the better one.
        margin: how far from a published number still counts as reproduced: in units of the metric,
            or as a text with % relative to that number.
        compute: ``(output, target) -> [B]``.
    """

    name: str
    unit: str
    higher_is_better: bool
    margin: float | str
    compute: Callable[[Tensor, Tensor], Tensor]

    @property
    def heading(self) -> str:
        """Its name with its unit: "accuracy (%)", "MAE"."""
        name = self.name.upper() if self.name == "mae" else self.name
        return f"{name} ({self.unit})" if self.unit else name

    @property
    def sign(self) -> int:
        """1 if higher is better, else -1: a difference times this is an improvement."""
        return 1 if self.higher_is_better else -1


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "%", True, 0.5, accuracy),
        Metric("mae", "", False, "5%", mae),
    )
}
METRIC_OF_TASK = {"classification": METRICS["accuracy"], "regression": METRICS["mae"]}
