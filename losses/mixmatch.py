"""MixMatch.

Trusted samples with their labels, all others without (Berthelot et al., NeurIPS 2019).
"""

import copy
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.base import Objective, check_classification
from utils.distributed import broadcast, gather, rank_slice
from utils.errors import UserError


class MixMatch(Objective):
    """The objective of Weighted MixMatch: L_x + w_u L_u on mixtures of labelled and unlabelled
    samples.

    For a labelled batch x and K views u_1..u_K of an unlabelled one, each of B samples (arXiv
    1905.02249, with small-loss selection arXiv 2106.09291, "RSL_WM"; their code,
    github.com/guixianjin/RSL):

    1. Guess: q is the mean of softmax(f(u_k)) over the views, sharpened to q^(1/T) / sum q^(1/T).
       No gradient; the model is in training mode, so a BatchNorm normalises by each batch and moves
       its running statistics.
    2. Mix: of X = [x; u_1; ..; u_K] and Y = [one-hot labels; q; ..; q], lambda X + (1 - lambda)
       X_pi and the same of Y, with one permutation pi and one lambda ~ Beta(alpha, alpha), folded
       to [1/2, 1], a step.
    3. Run the model on 1 + K batches that are interleaved, so that each has samples of all kinds
       for BatchNorm.
    4. L_x: cross-entropy with the mixed labels on the first B. L_u: mean squared difference of
       softmax and mixed guess, over K B C numbers. w_u rises linearly from 0 at the first step to
       ``unlabelled_weight`` after ``ramp_epochs``.
    5. After the step of the optimiser, the average moves, and then all parameters shrink by
       ``parameter_decay``.

    The weights of the samples are in how often the loader draws them, not in the loss. What is
    evaluated is the average of the parameters, with the model's own buffers (running statistics).

    Args:
        model: to be trained; what an average of is kept.
        epochs: of the whole training.
        num_views: K.
        epoch_steps: what an epoch is, since there is no natural one.
        temperature: T; 1 leaves the guess as it is, towards 0 it becomes one-hot.
        alpha: of the Beta distribution.
        unlabelled_weight: the largest w_u.
        ramp_epochs: None for all ``epochs``; 0 for no ramp.
        ema_decay: of the average, per step.
        parameter_decay: what each step takes off every parameter, BatchNorm's and biases too; the
            authors' 0.02 times their learning rate, 0.002. It does not follow the learning rate.

    State: the average, a copy of the model; and the number of steps.

    Raises:
        ValueError: a task loss other than cross-entropy; an argument out of range; a batch without
            its views.
    """

    def __init__(
        self,
        task_loss: Callable,
        model: nn.Module,
        epochs: int,
        *,
        num_views: int = 2,
        epoch_steps: int = 1024,
        temperature: float = 0.5,
        alpha: float = 0.75,
        unlabelled_weight: float = 75.0,
        ramp_epochs: float | None = None,
        ema_decay: float = 0.999,
        parameter_decay: float = 4e-5,
    ):
        super().__init__()
        check_classification("MixMatch", task_loss)
        for name, value, fits in (
            ("num_views", num_views, num_views >= 1),
            ("temperature", temperature, temperature > 0),
            ("epoch_steps", epoch_steps, epoch_steps >= 1),
            ("alpha", alpha, alpha > 0),
            ("unlabelled_weight", unlabelled_weight, unlabelled_weight >= 0),
            ("ramp_epochs", ramp_epochs, ramp_epochs is None or ramp_epochs >= 0),
            ("ema_decay", ema_decay, 0 <= ema_decay < 1),
            ("parameter_decay", parameter_decay, 0 <= parameter_decay < 1),
        ):
            if not fits:
                raise UserError(f"{name}={value} is out of range")
        self.num_views, self.unlabelled = (
            num_views,
            {"num_views": num_views, "steps_per_epoch": epoch_steps},
        )
        self.temperature, self.alpha = temperature, alpha
        self.unlabelled_weight = unlabelled_weight
        self.ramp_steps = (epochs if ramp_epochs is None else ramp_epochs) * epoch_steps
        self.ema_decay, self.parameter_decay = ema_decay, parameter_decay
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, model: nn.Module, batch) -> Tensor:
        views = None if batch.extra is None else batch.extra.input
        expected = [self.num_views, *batch.input.shape]
        if views is None or list(views.shape) != expected:
            got = None if views is None else list(views.shape)
            raise UserError(
                f"MixMatch needs {self.num_views} views of as many unlabelled samples in "
                f"batch.extra: {expected}, got {got}"
            )
        images, target, guess, *views = gather(
            batch.input, batch.target, self.guess(model, views), *views
        )
        size, num_outputs = guess.shape
        inputs = torch.cat([images, *views])
        targets = torch.cat(
            [F.one_hot(target, num_outputs).to(guess.dtype), guess.repeat(self.num_views, 1)]
        )
        inputs, targets = self.mix(inputs, targets)

        chunks = interleave(list(inputs.split(size)))
        own = rank_slice(slice(0, size))
        labelled, *unlabelled = interleave(
            list(gather(*(model(chunk[own]).float() for chunk in chunks)))
        )
        labelled_loss = -(targets[:size] * F.log_softmax(labelled, 1)).sum(1).mean()
        unlabelled_loss = F.mse_loss(torch.cat(unlabelled).softmax(1), targets[size:])
        loss = labelled_loss + self.weight() * unlabelled_loss
        if self.training:
            self.steps += 1
        return loss

    @torch.no_grad()
    def guess(self, model: nn.Module, views: Tensor) -> Tensor:
        """The sharpened mean prediction [B, C] for views [K, B, ...] of the same samples."""
        mean = torch.stack([model(view).float().softmax(1) for view in views]).mean(0)
        # or some versions of torch use its weights, which know of no gradient, in the next pass
        torch.clear_autocast_cache()
        return (mean.log() / self.temperature).softmax(1)

    def mix(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup (Zhang et al.

        2018) of a batch with a permutation of itself; each keeps at least half of its own.
        """
        part = torch.distributions.Beta(
            self.alpha, self.alpha
        ).sample()  # on the CPU: nothing waits for the device
        part = float(broadcast(part))
        part = max(part, 1 - part)
        other = broadcast(torch.randperm(len(inputs))).to(inputs.device, non_blocking=True)
        return part * inputs + (1 - part) * inputs[other], part * targets + (1 - part) * targets[
            other
        ]

    def weight(self) -> Tensor:
        """w_u at the present step."""
        ramp = (
            (self.steps / self.ramp_steps).clamp(max=1)
            if self.ramp_steps
            else torch.ones_like(self.steps)
        )
        return self.unlabelled_weight * ramp

    @torch.no_grad()
    def after_step(self, model: nn.Module):
        parameters = list(model.parameters())
        torch._foreach_lerp_(list(self.average.parameters()), parameters, 1 - self.ema_decay)
        torch._foreach_mul_(parameters, 1 - self.parameter_decay)

    @torch.no_grad()
    def evaluated(self, model: nn.Module) -> nn.Module:
        for own, its in zip(self.average.buffers(), model.buffers(), strict=True):
            own.copy_(its)
        return self.average


def interleave(chunks: list[Tensor]) -> list[Tensor]:
    """Swap the i-th of n slices of chunk 0 with that of chunk i, for n chunks [B, ...]; done twice,
    nothing has changed.

    The slices begin at floor(i B / n).
    """
    size, number = len(chunks[0]), len(chunks)
    edges = [i * size // number for i in range(number + 1)]
    slices = [[chunk[start:end] for start, end in itertools.pairwise(edges)] for chunk in chunks]
    for i in range(1, number):
        slices[0][i], slices[i][i] = slices[i][i], slices[0][i]
    return [torch.cat(parts) for parts in slices]
