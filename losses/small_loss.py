"""Small-loss selection within a batch: how many samples are left out, and which are kept."""

import math
from typing import Literal

import torch
from torch import Tensor

from .errors import UserError, check_interval


class ForgetRate:
    """F(e), the part of a batch that is left out in epoch e: it rises from 0 to tau, and stays.

    With tau = ``forget_rate`` (or the noise rate) times ``forget_rate_scale``, T_k =
    ``num_gradual`` and c = ``exponent``, at e = epoch + ``epoch_offset``:

        "code"    F(e) = tau^c e / (T_k - 1) for e < T_k (0 if T_k = 1), tau from e = T_k on
        "paper"   F(e) = tau min((e + 1)^c / T_k, 1)

    At c = 1 they differ by one epoch at most. For other exponents the first one jumps at T_k: from
    tau^c to tau, for c < 1 downwards.

    Raises:
        UserError: no rate is known, or an argument is out of range.
    """

    def __init__(
        self,
        noise_rate: float | None,
        forget_rate: float | None,
        *,
        forget_rate_scale: float,
        schedule: Literal["code", "paper"],
        num_gradual: int,
        exponent: float,
        epoch_offset: int,
    ):
        if forget_rate is None and noise_rate is None:
            raise UserError(
                "which part of the labels is wrong is not known here: set loss.forget_rate to the "
                "part of each batch that is to be left out, in [0, 1)"
            )
        if forget_rate is not None:
            check_interval("forget_rate", forget_rate, "[0, 1)")
        rate = noise_rate if forget_rate is None else forget_rate
        self.tau = rate * forget_rate_scale
        if not 0 <= self.tau < 1:
            raise UserError(
                f"the forget rate {rate} times forget_rate_scale {forget_rate_scale} must lie in "
                "[0, 1)"
            )
        if schedule not in ("code", "paper"):
            raise UserError(f'schedule must be "code" or "paper", got {schedule!r}')
        if num_gradual < 1:
            raise UserError(f"num_gradual must be at least 1 epoch, got {num_gradual}")
        if not 0 < exponent < math.inf:
            raise UserError(f"exponent must be finite and greater than 0, got {exponent}")
        if epoch_offset < 0:
            raise UserError(f"epoch_offset must be at least 0, got {epoch_offset}")
        self.schedule, self.num_gradual = schedule, num_gradual
        self.exponent, self.epoch_offset = exponent, epoch_offset

    def at(self, epoch: int) -> float:
        """F of this epoch, counted from 0."""
        e = epoch + self.epoch_offset
        if self.schedule == "paper":
            # the same as (e + 1)^c >= T_k, without a power that overflows
            risen = self.exponent * math.log(e + 1) >= math.log(self.num_gradual)
            return self.tau * (1 if risen else (e + 1) ** self.exponent / self.num_gradual)
        if e >= self.num_gradual:
            return self.tau
        end, last = self.tau**self.exponent, self.num_gradual - 1
        # as numpy.linspace computes it: its rounding decides how many samples int() keeps
        return end if 0 < e == last else e * (end / max(last, 1))

    def num_kept(self, epoch: int, batch_size: int) -> int:
        """How many samples of a batch are kept: int((1 - F) B), and at least one."""
        return max(1, int((1 - self.at(epoch)) * batch_size))


def smallest(losses: Tensor, count: int) -> Tensor:
    """Positions [count] of the smallest of ``losses [B]``; of equal ones, those that come first."""
    return losses.detach().argsort(stable=True)[:count]


def smallest_among(losses: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """A mask [B] of the ``count`` smallest of those ``losses [B]`` that ``mask [B]`` admits.

    The count is a tensor, and so the host need not know how many are admitted.
    """
    order = losses.detach().masked_fill(~mask, math.inf).argsort(stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return mask & (rank < count)


def exchange(first: Tensor, second: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The losses of two networks, each the mean over the ``count`` samples that the other chooses.

    A network chooses those on which its own loss, ``first [B]`` or ``second [B]``, is smallest.
    """
    return first[smallest(second, count)].mean(), second[smallest(first, count)].mean()
