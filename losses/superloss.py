"""SuperLoss: a closed-form confidence per sample from its loss alone (Castells et al., NeurIPS 2020)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from losses.base import SampleLoss
from losses.task import cross_entropy


class SuperLoss(SampleLoss):
    """(l_i - tau) sigma_i + lam (ln sigma_i)^2, at the confidence sigma_i that minimises it.

    sigma_i = exp(-W(max(-2/e, (l_i - tau) / lam) / 2)), W the principal branch of the Lambert function: 1 at l = tau,
    growing to e for smaller losses and falling towards 0 for larger ones. It is held constant in the backward pass,
    which changes nothing (sigma minimises the expression, so its derivative there is 0) but keeps the infinite slope of
    W at -1/e out of the gradient: d loss_i / d l_i = sigma_i.

    Losses may be negative. Works for classification and regression.

    Args:
        task_loss: ``(output, target) -> losses [B]``.
        tau: what separates easy from hard: a number; "ema", 0.9 old + 0.1 new of the batches' mean loss, started at the
            first; or None for ln(num_outputs), the loss of a uniform guess, as the paper for classification.
        lam: strength of the regularisation, > 0. Large: every sigma near 1.
        num_outputs: number of classes C; only read where tau is None.

    State: with tau="ema" the average and whether it has begun; nothing per sample.

    Deviations from public implementations: W is computed on the loss's own device, in float64; the loss is a vector and
    its mean is left to the caller; the "ema" moves in training mode only.

    Raises:
        ValueError: lam <= 0, an unknown tau, or tau=None without a number of classes.
    """

    def __init__(self, task_loss: Callable, *, tau: Literal["ema"] | float | None = None, lam: float = 1.0,
                 num_outputs: int | None = None):
        super().__init__(task_loss)
        if lam <= 0:
            raise ValueError(f"lam must be greater than 0, got {lam}")
        if isinstance(tau, str) and tau != "ema":
            raise ValueError(f'tau must be a number, "ema" or None, got "{tau}"')
        if tau is None:
            if task_loss is not cross_entropy or not num_outputs or num_outputs < 2:
                raise ValueError('tau=None means ln(num_outputs) and needs a classification task; give a number or "ema"')
            tau = math.log(num_outputs)
        self.lam, self.moving = lam, tau == "ema"
        self.register_buffer("tau", torch.tensor(0.0 if self.moving else float(tau), dtype=torch.float64))
        self.register_buffer("started", torch.tensor(not self.moving))

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        losses = self.task_loss(output, target)
        detached = losses.detach().double()
        if self.moving and self.training:
            mean = detached.mean()
            self.tau.copy_(torch.where(self.started, 0.9 * self.tau + 0.1 * mean, mean))
            self.started.fill_(True)
        sigma = confidence((detached - self.tau) / self.lam)
        penalty = self.lam * sigma.log().square()
        return (losses - self.tau.to(losses.dtype)) * sigma.to(losses.dtype) + penalty.to(losses.dtype)


def confidence(excess: Tensor) -> Tensor:
    """sigma = exp(-W(max(-2/e, excess) / 2)), in (0, e], for excess = (l - tau) / lam in float64."""
    return torch.exp(-lambert_w((0.5 * excess).clamp_min(-math.exp(-1))))


def lambert_w(z: Tensor) -> Tensor:
    """Principal branch of the Lambert W function, w e^w = z, for float64 z >= -1/e (below: taken as -1/e).

    Halley's iteration, a fixed number of steps, from the series around the branch point -1/e or, away from it, from
    Winitzki's approximation (in Corless et al., "On the Lambert W function", 1996: series 4.22, iteration 5.9). Within
    1e-7 of w = -1, where Halley divides by nearly 0, the series is already exact to float64.
    """
    p = torch.sqrt((2 * (math.e * z + 1)).clamp_min(0))
    near = -1 + p - p**2 / 3 + 11 * p**3 / 72 - 43 * p**4 / 540
    log = torch.log1p(z.clamp_min(-0.3))
    far = log * (1 - torch.log1p(log) / (2 + log))
    w = torch.where(z < -0.25, near, far)
    for _ in range(4):
        error = w * torch.exp(w) - z
        slope = torch.exp(w) * (w + 1)
        step = error / (slope - (w + 2) * error / (2 * w + 2))
        w = w - torch.where((w + 1).abs() < 1e-7, 0.0, step)
    return w
