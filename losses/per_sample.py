"""A learnable number per sample whose training costs O(batch), however many samples there are."""

import torch
from torch import Tensor, nn

from .errors import UserError, check_interval


class PerSampleParameter(nn.Module):
    """N learnable scalars with SGD, momentum and bounds built in; only drawn entries move.

    Equals the "SparseSGD, then clamp all N" of the data-parameters and DiscrimLoss code, bit for
    bit. An entry whose gradient is exactly 0 keeps its value and its momentum, so momentum advances
    once per visit. The whole table is clamped after the first step, which moves entries that have
    not been drawn yet from ``init`` into the bounds. From then on every entry is within the bounds,
    and it is enough to clamp the drawn ones.

    State: ``value [N]`` and ``velocity [N]``, float32: 8 bytes per sample.

    Raises UserError if an argument is outside its range.
    """

    def __init__(
        self, num_samples: int, *, init: float, lr: float, momentum: float, low: float, high: float
    ):
        super().__init__()
        if num_samples < 1:
            raise UserError(f"num_samples must be at least 1, got {num_samples}")
        check_interval("the learning rate of a per-sample parameter", lr, "[0, inf)")
        check_interval("the momentum of a per-sample parameter", momentum, "[0, 1)")
        if not low < high:  # nor if one is NaN
            raise UserError(
                f"the lower bound of a per-sample parameter must be below the upper one, got {low} "
                f">= {high}"
            )
        self.lr, self.momentum, self.low, self.high = lr, momentum, low, high
        self.register_buffer("value", torch.full((num_samples,), init, dtype=torch.float32))
        self.register_buffer("velocity", torch.zeros(num_samples))
        # No state: to clamp a table that is within its bounds already changes nothing.
        self._all_within_bounds = False

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)
        self._all_within_bounds = False

    def forward(self, index: Tensor) -> Tensor:
        """Values [B] of the samples ``index [B]``."""
        return self.value.index_select(0, index)  # on a CPU in half the time of [index]

    @torch.no_grad()
    def step(self, index: Tensor, grad: Tensor, value: Tensor | None = None):
        """One SGD step of the entries ``index [B]``, each at most once, along ``grad [B]``.

        ``value [B]``: what ``forward`` has returned for them, unchanged, to save looking again.
        """
        value = self(index) if value is None else value
        velocity = self.velocity.index_select(0, index)
        grad = grad.to(self.velocity.dtype)
        moved = grad != 0
        velocity = torch.where(moved, self.momentum * velocity + grad, velocity)
        stepped = value.sub(velocity, alpha=self.lr).clamp_(self.low, self.high)
        value = torch.where(moved, stepped, value)
        self.velocity.index_copy_(0, index, velocity)
        self.value.index_copy_(0, index, value)
        if not self._all_within_bounds:
            self.value.clamp_(self.low, self.high)
            self._all_within_bounds = True
