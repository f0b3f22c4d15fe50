"""Gradient Rescaling: state the gradient of a sample instead of its loss (Wang et al., 2019)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .base import SampleLoss, check_classification
from .errors import UserError, check_interval


class GradientRescaling(SampleLoss):
    """Each sample's gradient gets a norm that depends on p, the probability of its given label.

    The gradient of cross-entropy with respect to the logits is p_vector - onehot, whose L1 norm is
    2 (1 - p). Its direction is kept, and its norm is replaced by the *emphasis density* w(p)
    (Gradient Rescaling, arXiv 1905.11233; later called Derivative Manipulation):

        variant       w(p)                         largest at        equals
        power         exp(beta p^lam (1 - p))      lam / (lam + 1)   IMAE with T = beta at lam = 1
        exponential   exp(beta (1 - p))            0 if beta > 0     power with lam = 0
        normal        exp(-beta p (p - 2 lam))     lam
        beta          p^(beta-1) (1 - p)^(lam-1)

    Up to a constant, the beta density with (beta, lam) = (1, 2) is cross-entropy, with (2, 2) MAE,
    with (2, 3) MSE, and with (q+1, 2) GCE.

    With ``normalise="batch"``, as in the authors' code, the norms of a batch sum to 1, whatever its
    size and the stage of training. With "none", sample i has norm w(p_i) / B, so that a learning
    rate means the same as it does for a mean loss.

    The value of the returned losses is the task loss: the power, exponential and normal densities
    are not the derivative of any finite loss. Their *gradient* is what the table says.

    Classification only; no state.

    Args:
        task_loss: cross_entropy.
        beta, lam: as in the table; lam >= 0, and both >= 1 for the beta density, which is unbounded
            below that. A beta below 0, as the paper has for noisy texts, makes what is largest in
            the table the smallest.
        variant, normalise: as above.

    Deviations from the authors' PyTorch code (ProSelfLC-AT):
        1. The gradient is written as w/2 (q - onehot), with the softmax over the *other* classes,
           q_j = p_j / (1 - p). It is the same gradient without the cancellation in 1 - p, by which
           the code's float32 rows have norms of 0.7 to 14 for logits 17 to 21 apart, and of nearly
           0 from 25 on.
        2. So the 1e-8 that the code adds here and there are not needed, and left out.

    Raises:
        UserError: a regression task loss, an unknown variant or normalise, or a density without
            bound.
    """

    def __init__(
        self,
        task_loss: Callable,
        *,
        beta: float,
        lam: float,
        variant: Literal["power", "exponential", "normal", "beta"] = "power",
        normalise: Literal["batch", "none"] = "batch",
    ):
        super().__init__(task_loss)
        check_classification("GradientRescaling", task_loss)
        if variant not in ("power", "exponential", "normal", "beta"):
            raise UserError(
                f'variant must be "power", "exponential", "normal" or "beta", got "{variant}"'
            )
        if normalise not in ("batch", "none"):
            raise UserError(f'normalise must be "batch" or "none", got "{normalise}"')
        check_interval("beta", beta, "(-inf, inf)")
        check_interval("lam", lam, "[0, inf)")
        if variant == "beta" and min(beta, lam) < 1:
            raise UserError(
                f"the beta density is bounded only for beta >= 1 and lam >= 1, got {beta} and {lam}"
            )
        self.beta, self.lam, self.variant, self.normalise = beta, lam, variant, normalise

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        losses = self.task_loss(output, target)
        log_p = -losses.detach()
        logits = output.detach().to(losses.dtype)
        others = logits.scatter(1, target.unsqueeze(1), -math.inf)
        rest = (others.logsumexp(1) - logits.logsumexp(1)).exp()  # 1 - p, without cancellation
        weight = emphasis(log_p, rest, self.beta, self.lam, self.variant)
        if self.normalise == "batch":
            weight = len(weight) * weight / weight.sum().clamp_min(1e-12)
        direction = others.softmax(1).scatter(1, target.unsqueeze(1), -1.0)
        # Linear in the logits, so its gradient is the factor before them; its value is taken off.
        carrier = (0.5 * weight.unsqueeze(1) * direction * output).sum(1)
        return losses.detach() + carrier - carrier.detach()


def emphasis(log_p: Tensor, rest: Tensor, beta: float, lam: float, variant: str) -> Tensor:
    """The emphasis density w(p), from log p and rest = 1 - p, both of them exact near p = 1."""
    p = log_p.exp()
    if variant == "power":
        return torch.exp(beta * p**lam * rest)
    if variant == "exponential":
        return torch.exp(beta * rest)
    if variant == "normal":
        return torch.exp(-beta * p * (p - 2 * lam))
    return torch.exp((beta - 1) * log_p) * rest ** (lam - 1)
