"""MixMatch: trusted samples with their labels, all others without (Berthelot et al., 2019)."""

import copy
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Objective, check_classification
from .distributed import broadcast, gather, rank_slice
from .errors import UserError, check_interval


class MixMatch(Objective):
    """Weighted MixMatch: L_x + w_u L_u on mixtures of labelled and unlabelled samples.

    MixMatch is arXiv 1905.02249 (NeurIPS 2019); the weights come with small-loss selection, arXiv
    2106.09291 ("RSL_WM", github.com/guixianjin/RSL). A step takes a labelled batch x, and K views
    u_1..u_K of an unlabelled one, each of B samples:

    1. Guess: q is the mean of softmax(f(u_k)) over the views, sharpened to q^(1/T) / sum q^(1/T).
       It has no gradient. The model is in training mode, so a BatchNorm normalises by each batch
       and moves its running statistics.
    2. Mix: X = [x; u_1; ..; u_K] becomes lambda X + (1 - lambda) X_pi, and Y = [one-hot labels; q;
       ..; q] likewise. Each step draws one permutation pi, and one lambda ~ Beta(alpha, alpha),
       which is folded to [1/2, 1].
    3. Run the model on 1 + K batches that are interleaved, so that for the sake of BatchNorm each
       has samples of all kinds.
    4. L_x is the cross-entropy with the mixed labels on the first B samples. L_u is the mean
       squared difference of softmax and mixed guess, over K B C numbers. w_u rises linearly from 0
       at the first step to ``unlabelled_weight`` after ``ramp_epochs``.
    5. After the step of the optimiser, the average moves, and then all parameters shrink by
       ``parameter_decay``.

    The weights of the samples lie in how often the loader draws them, not in the loss. What is
    evaluated is the average of the parameters, with the model's own buffers (running statistics).

    Args:
        task_loss: cross_entropy.
        model: to be trained, and averaged.
        epochs: of the whole training.
        num_views: K.
        epoch_steps: how many steps are called an epoch, since no pass over the data defines one.
        temperature: T. 1 leaves the guess as it is; towards 0 it becomes one-hot.
        alpha: of the Beta distribution.
        unlabelled_weight: the largest w_u.
        ramp_epochs: None for all ``epochs``; 0 for no ramp.
        ema_decay: of the average, per step.
        parameter_decay: the part of every parameter, BatchNorm's and biases too, that each step
            takes off. The default is the authors' 0.02 times their learning rate, 0.002; it does
            not follow the learning rate.

    State: the average, which is a copy of the model, and the number of steps.

    Raises:
        UserError: a task loss other than cross-entropy, an argument out of range, or a batch
            without its views.
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
        for name, value, interval in (
            ("num_views", num_views, "[1, inf)"),
            ("temperature", temperature, "(0, inf)"),
            ("epoch_steps", epoch_steps, "[1, inf)"),
            ("alpha", alpha, "(0, inf)"),
            ("unlabelled_weight", unlabelled_weight, "[0, inf)"),
            ("ramp_epochs", 0 if ramp_epochs is None else ramp_epochs, "[0, inf)"),
            ("ema_decay", ema_decay, "[0, 1)"),
            ("parameter_decay", parameter_decay, "[0, 1)"),
        ):
            check_interval(name, value, interval)
        self.num_views = num_views
        self.unlabelled = {"num_views": num_views, "steps_per_epoch": epoch_steps}
        self.temperature, self.alpha = temperature, alpha
        self.unlabelled_weight = unlabelled_weight
        self.ramp_steps = (epochs if ramp_epochs is None else ramp_epochs) * epoch_steps
        self.ema_decay, self.parameter_decay = ema_decay, parameter_decay
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, model: nn.Module, batch) -> Tensor:
        views = self._views_of(batch)
        guess = self.guess(model, views)
        inputs, target, guess, *views = gather(batch.input, batch.target, guess, *views)
        size, num_outputs = guess.shape
        labels = F.one_hot(target, num_outputs).to(guess.dtype)
        inputs = torch.cat([inputs, *views])
        targets = torch.cat([labels, guess.repeat(self.num_views, 1)])
        inputs, targets = self.mix(inputs, targets)

        share = rank_slice(slice(0, size))
        chunks = interleave(list(inputs.split(size)))
        outputs = gather(*(model(chunk[share]).float() for chunk in chunks))
        labelled, *unlabelled = interleave(list(outputs))
        labelled_loss = -(targets[:size] * F.log_softmax(labelled, 1)).sum(1).mean()
        unlabelled_loss = F.mse_loss(torch.cat(unlabelled).softmax(1), targets[size:])
        loss = labelled_loss + self.weight() * unlabelled_loss
        if self.training:
            self.steps += 1
        return loss

    def _views_of(self, batch):
        views = None if batch.extra is None else batch.extra.input
        expected = [self.num_views, *batch.input.shape]
        got = None if views is None else list(views.shape)
        if got != expected:
            raise UserError(
                f"MixMatch needs {self.num_views} views of as many unlabelled samples in "
                f"batch.extra: {expected}, got {got}"
            )
        return views

    @torch.no_grad()
    def guess(self, model: nn.Module, views: Tensor) -> Tensor:
        """The sharpened mean prediction [B, C] for views [K, B, ...] of the same samples."""
        mean = torch.stack([model(view).float().softmax(1) for view in views]).mean(0)
        # Else some versions of PyTorch use the cached weights, which have no gradient, in the next
        # pass.
        torch.clear_autocast_cache()
        return (mean.log() / self.temperature).softmax(1)

    def mix(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup with a permutation of the batch (Zhang et al. 2018); each keeps half or more."""
        # drawn on the CPU, so that nothing waits for the device
        drawn = torch.distributions.Beta(self.alpha, self.alpha).sample()
        part = float(broadcast(drawn))
        part = max(part, 1 - part)
        other = broadcast(torch.randperm(len(inputs))).to(inputs.device, non_blocking=True)
        mixed_inputs = part * inputs + (1 - part) * inputs[other]
        mixed_targets = part * targets + (1 - part) * targets[other]
        return mixed_inputs, mixed_targets

    def weight(self) -> Tensor:
        """w_u at the present step, a scalar."""
        if not self.ramp_steps:
            return self.unlabelled_weight * torch.ones_like(self.steps)
        return self.unlabelled_weight * (self.steps / self.ramp_steps).clamp(max=1)

    @torch.no_grad()
    def after_step(self, model: nn.Module):
        parameters = list(model.parameters())
        torch._foreach_lerp_(list(self.average.parameters()), parameters, 1 - self.ema_decay)
        torch._foreach_mul_(parameters, 1 - self.parameter_decay)

    @torch.no_grad()
    def evaluated(self, model: nn.Module) -> nn.Module:
        for averaged, current in zip(self.average.buffers(), model.buffers(), strict=True):
            averaged.copy_(current)
        return self.average


def interleave(chunks: list[Tensor]) -> list[Tensor]:
    """Swap slice i of chunk 0 with slice i of chunk i, for all i; done twice, it changes nothing.

    Each of the n chunks [B, ...] is cut into n slices, which begin at floor(i B / n).
    """
    size, count = len(chunks[0]), len(chunks)
    edges = [i * size // count for i in range(count + 1)]
    slices = [[chunk[start:end] for start, end in itertools.pairwise(edges)] for chunk in chunks]
    for i in range(1, count):
        slices[0][i], slices[i][i] = slices[i][i], slices[0][i]
    return [torch.cat(parts) for parts in slices]
