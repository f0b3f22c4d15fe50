"""Data Parameters: a learnable temperature per sample or class (Saxena et al., NeurIPS 2019)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .base import SampleLoss, check_classification, check_index
from .errors import UserError, check_interval
from .per_sample import PerSampleParameter


class DataParameters(SampleLoss):
    """Cross-entropy of logits that are divided by the temperature of a sample, its class, or both.

    temperature_i = exp(s_i) + exp(s_class(i)), or one of the two; the class is the given one. A
    sample that the network cannot fit raises its temperature, which flattens its gradient.

    The logarithms of the temperatures are trained inside ``forward``, in training mode: by SGD with
    momentum, along the gradient of the batch's mean loss. If a class occurs several times in a
    batch, its gradients, and its decay once for each occurrence, are summed into one step.

    Classification only. Predictions use the logits as they are.

    Args:
        task_loss: cross_entropy.
        num_samples: N, the size of the training set that ``index`` counts in.
        num_outputs: number of classes C.
        level: "instance", "class" or "both".
        instance_lr, class_lr: learning rates of the log temperatures, never scheduled.
        instance_init, class_init: initial temperatures, not their logarithms.
        instance_decay, class_decay: weight decay of the log temperatures, summed over the batch as
            in the authors' code.
        momentum: of the steps of both.
        low, high: bounds of the log temperatures, enforced after every step.

    State: log temperature and velocity: 8 bytes per sample and 8 per class.

    Deviations from github.com/apple/ml-data-parameters:
        1. Only the drawn entries are stepped, which is equivalent.

    Raises:
        UserError: a regression task loss, or an argument outside its range.
        IndexError: on the CPU, an index outside [0, num_samples).
    """

    def __init__(
        self,
        task_loss: Callable,
        num_samples: int,
        num_outputs: int,
        *,
        level: Literal["instance", "class", "both"] = "instance",
        instance_lr: float = 0.2,
        instance_init: float = 1.0,
        instance_decay: float = 0.0,
        class_lr: float = 0.1,
        class_init: float = 1.0,
        class_decay: float = 0.0,
        momentum: float = 0.9,
        low: float = math.log(1 / 20),
        high: float = math.log(20),
    ):
        super().__init__(task_loss)
        check_classification("DataParameters", task_loss)
        if level not in ("instance", "class", "both"):
            raise UserError(f'level must be "instance", "class" or "both", got "{level}"')
        for name, value in (("instance_init", instance_init), ("class_init", class_init)):
            check_interval(name, value, "(0, inf)")
        for name, value in (
            ("instance_lr", instance_lr),
            ("instance_decay", instance_decay),
            ("class_lr", class_lr),
            ("class_decay", class_decay),
        ):
            check_interval(name, value, "[0, inf)")
        self.num_samples = num_samples
        self.instance_decay, self.class_decay = instance_decay, class_decay
        self.instance = self.classes = None
        if level != "class":
            self.instance = PerSampleParameter(
                num_samples,
                init=math.log(instance_init),
                lr=instance_lr,
                momentum=momentum,
                low=low,
                high=high,
            )
        if level != "instance":
            self.classes = PerSampleParameter(
                num_outputs,
                init=math.log(class_init),
                lr=class_lr,
                momentum=momentum,
                low=low,
                high=high,
            )

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        check_index(self, index, target, self.num_samples)
        instance = None if self.instance is None else self.instance(index)
        classes = None if self.classes is None else self.classes(target)
        temperature = sum(s.exp() for s in (instance, classes) if s is not None)
        scaled = output / temperature.unsqueeze(1)
        if self.training:
            self._step(scaled.detach(), temperature, target, index, instance, classes)
        return self.task_loss(scaled, target)

    @torch.no_grad()
    def _step(self, scaled, temperature, target, index, instance, classes):
        """Step the log temperatures.

        The derivative of the mean loss by a temperature is (z_y - E z) / (B temperature), where z
        are the scaled logits.
        """
        expected = (scaled.softmax(1) * scaled).sum(1)
        given = scaled.gather(1, target.unsqueeze(1)).squeeze(1)
        grad = (given - expected) / (len(scaled) * temperature)
        if instance is not None:
            self.instance.step(
                index, grad * instance.exp() + self.instance_decay * instance, instance
            )
        if classes is not None:
            total = torch.zeros_like(self.classes.value)
            per_sample = grad * classes.exp() + self.class_decay * classes
            total.index_add_(0, target, per_sample.to(total.dtype))
            self.classes.step(torch.arange(len(total), device=total.device), total)

    def sample_score(self) -> Tensor | None:
        """Log temperature of each sample, [N]; None if only classes have one."""
        return None if self.instance is None else self.instance.value.clone()
