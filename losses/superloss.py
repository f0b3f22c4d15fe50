"""SuperLoss: a closed-form confidence per sample (Castells et al., NeurIPS 2020)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .base import SampleLoss
from .errors import UserError, check_interval
from .task import cross_entropy


class SuperLoss(SampleLoss):
    """(l_i - tau) sigma_i + lam (ln sigma_i)^2, at the confidence sigma_i that minimises it.

    sigma_i = exp(-W(max(-2/e, (l_i - tau) / lam) / 2)), with W the principal branch of the Lambert
    function: 1 at l = tau, growing to e for smaller losses and falling towards 0 for larger ones.

    sigma_i is held constant in the backward pass, so the gradient with respect to l_i is sigma_i.
    That changes nothing, since sigma minimises the expression and the derivative by it is 0 there,
    but it keeps the infinite slope of W at -1/e out of the gradient.

    Losses may be negative. Works for classification and regression.

    Args:
        task_loss: ``(output, target) -> losses [B]``.
        tau: the loss that separates easy from hard samples. A number; "ema", the moving average
            0.9 old + 0.1 new of the mean loss of batches, which begins with that of the first; or
            None for ln(num_outputs), the loss of a uniform guess, as in the paper's classification.
        lam: strength of the regularisation, > 0. If it is large, every sigma is near 1.
        num_outputs: number of classes C; only read if tau is None.

    State: with tau="ema", the average and whether it has begun; nothing per sample.

    Deviations from public implementations:
        1. W is computed on the device of the loss, in float64, from a table of polynomials; what
           follows from it, in the precision of the loss.
        2. The losses are returned as a vector, and their mean is left to the caller.
        3. The "ema" moves in training mode only.

    Raises:
        UserError: lam <= 0, an unknown tau, or tau=None without a number of classes.
    """

    takes_soft_targets = True

    def __init__(
        self,
        task_loss: Callable,
        *,
        tau: Literal["ema"] | float | None = None,
        lam: float = 1.0,
        num_outputs: int | None = None,
    ):
        super().__init__(task_loss)
        check_interval("lam", lam, "(0, inf)")
        if isinstance(tau, str) and tau != "ema":
            raise UserError(f'tau must be a number, "ema" or None, got "{tau}"')
        if isinstance(tau, (int, float)):
            check_interval("tau", tau, "(-inf, inf)")
        if tau is None:
            if task_loss is not cross_entropy or not num_outputs or num_outputs < 2:
                raise UserError(
                    "tau=None means ln(num_outputs) and needs num_outputs and task_loss "
                    f'cross_entropy, that of {cross_entropy.__module__}; give a number or "ema"'
                )
            tau = math.log(num_outputs)
        self.lam, self.moving = lam, tau == "ema"
        start = 0.0 if self.moving else float(tau)
        self.register_buffer("tau", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("started", torch.tensor(not self.moving))
        self.register_buffer("table", make_table(), persistent=False)

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        losses, tau = self.task_loss(output, target), self.tau
        if self.moving and self.training:
            mean = losses.detach().double().mean()
            tau.copy_(torch.where(self.started, 0.9 * tau + 0.1 * mean, mean))
            self.started.fill_(True)
        excess = losses - tau
        logs = log_confidence(excess.detach().double(), self.lam, self.table).to(losses.dtype)
        return torch.addcmul(logs.square().mul_(self.lam), excess, logs.exp_())


PER_UNIT, LAST, DEGREE = 64, 355, 3  # of the table


def log_confidence(excess: Tensor, lam: float, table: Tensor) -> Tensor:
    """ln sigma = -W(z) in (-inf, 1], with z = max(-2/e, excess / lam) / 2.

    w = W(z) >= -1 solves w e^w = z. It is smooth in u = ln(1 + p), p = sqrt(2 (e z + 1)), at the
    branch point z = -1/e too, where it is -1 + u + ...; from there to the largest float64, u goes
    from 0 to 355. So a polynomial of third degree for each 64th of u will do. The error is below
    1e-11, and 1e-8 within 1e-6 of the branch point, where z itself tells no more.

    Args:
        excess: l - tau, float64.
        table: of ``make_table``.
    """
    u = (excess * (math.e / lam)).add_(2).clamp_min_(0).sqrt_().log1p_().mul_(PER_UNIT)
    row = u.long().clamp_(0, len(table) - 1)  # of NaN, any: the result is NaN
    part = u.frac_()
    *lower, result = table[row].unbind(-1)
    for coefficient in reversed(lower):
        result = torch.addcmul(coefficient, result, part)
    return result


def make_table() -> Tensor:
    """Coefficients [R, 4], the constant first, of -W for each 64th of u."""
    nodes = torch.arange(DEGREE + 1, dtype=torch.float64)
    nodes = (1 - torch.cos((nodes + 0.5) * (math.pi / (DEGREE + 1)))) / 2  # Chebyshev's
    u = (torch.arange(LAST * PER_UNIT)[:, None] + nodes) / PER_UNIT
    logs = _solve((u.expm1().square() / 2 - 1) / math.e).log()
    powers = nodes[:, None] ** torch.arange(DEGREE + 1)
    return torch.linalg.solve(powers, logs.T).T.contiguous()


def _solve(z: Tensor) -> Tensor:
    """sigma = exp(-W(z)), the root of ln sigma + z sigma = 0.

    The starting point is Winitzki's approximation ("Uniform approximations for transcendental
    functions", 2003), with the constant that makes W exactly -1 at the branch point. From there two
    steps of fourth order are taken (Fritsch, Shafer and Crowley, "Algorithm 443", CACM 1973),
    written for sigma so that nothing is divided by z = 0. After one step the relative error would
    be 3e-8.
    """
    p = (2 * math.e * z + 2).clamp_min(0).sqrt()
    log = torch.log1p(0.8842 * p)
    double_log = torch.log1p(0.9294 * torch.log1p(0.5106 * p))
    sigma = ((double_log - 2 * log + (1 + 0.5 / 2.344)) / (1 + 0.5 / (log + 2.344))).exp()
    for _ in range(2):
        w = z * sigma
        error = -(sigma.log() + w)
        slope = (w + 1).clamp_min(1e-7)  # 0 at the branch point, where the error is 0 too
        curved = 2 * slope * torch.add(slope, error, alpha=2 / 3)
        sigma = sigma * (1 + error / slope * (curved - error) / (curved - 2 * error))
    return sigma


def confidence(excess: Tensor) -> Tensor:
    """sigma = exp(-W(z)), in (0, e], of excess = (l - tau) / lam in float64; for tests."""
    return log_confidence(excess, 1.0, make_table().to(excess.device)).exp()
