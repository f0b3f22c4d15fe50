"""Generalised cross-entropy, also truncated (Zhang and Sabuncu, NeurIPS 2018)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .base import Predict, SampleLoss, check_classification, check_index
from .errors import UserError, check_interval


class GCE(SampleLoss):
    """(1 - p^q) / q, with p the probability of the given label: the L_q loss of arXiv 1805.07836.

    Its gradient is p^q times that of cross-entropy: a label that the network finds improbable pulls
    less. q -> 0 is cross-entropy, q = 1 the mean absolute error 1 - p. It is computed from log p,
    and so exact for small q and small p.

    With ``k`` it is the truncated loss of the same paper, which prunes samples:

        loss_i = w_i (L_q(p_i) - L_q(k))                     mean over the whole batch, w_i = 0 too
        w_i   <- 1 if p_i > k, else 0                        for all samples, at a refresh

    A refresh looks at the network, in evaluation mode, at the end of an epoch. It comes before the
    epochs e = ``prune_from`` and later, counted from 1, that are multiples of ``prune_every``.
    Until the first one w_i = 1. A pruned sample may return. Between refreshes nothing is truncated:
    a sample with w_i = 1 keeps its gradient if p_i falls below k. L_q(k) is a constant, which only
    moves the reported loss.

    Classification only.

    Args:
        task_loss: cross_entropy.
        num_samples: N; needed if samples are pruned.
        epochs: of the whole training, if it is known: one of them must begin with a refresh.
        q: in (0, 1]; the paper uses 0.7.
        k: in (0, 1): a label with a probability of at most k is pruned; the paper uses 0.5. None:
            nothing is pruned.
        prune_from: the first epoch, counted from 1, that may be preceded by a refresh. The authors
            of the code below take that of the first drop of the learning rate: 40 of 120 on
            CIFAR-10, 80 of 150 on CIFAR-100.
        prune_every: epochs from a refresh to the next.

    State: none; with ``k`` -log p of each sample at the last refresh, 4 bytes each.

    Deviations of the truncated loss from public code (github.com/AlanChou/Truncated-Loss; the
    authors of the paper published none): 1. That prunes by the network with the best accuracy so
    far on the *test* set; here by the present one, never by one that was chosen by held-out labels.
    2. There an epoch that begins with a refresh trains nothing, as the optimiser keeps the
    parameters of another copy of the network; here it trains. 3. There p is that of augmented
    images, here not. 4. A refresh that would prune every sample changes nothing, since a network
    without any gradient would never get a sample back. The paper sums over the batch, code and this
    class average.

    Raises:
        UserError: a regression task loss, an argument outside its range, k without num_samples.
        IndexError: with k, on the CPU, an index outside [0, num_samples).
    """

    follows_epochs = True

    def __init__(
        self,
        task_loss: Callable,
        num_samples: int | None = None,
        epochs: int | None = None,
        *,
        q: float = 0.7,
        k: float | None = None,
        prune_from: int = 40,
        prune_every: int = 10,
    ):
        super().__init__(task_loss)
        check_classification("GCE", task_loss)
        if not 0 < q <= 1:
            raise UserError(f"q must lie in (0, 1], got {q}")
        for name, value in (("prune_from", prune_from), ("prune_every", prune_every)):
            check_interval(name, value, "[1, inf)")  # epochs
        self.q, self.k = q, k
        if k is None:
            return
        if not 0 < k < 1:
            raise UserError(f"k must lie in (0, 1), or be None to prune nothing, got {k}")
        if num_samples is None:
            raise UserError("k prunes samples of a training set, and needs num_samples, its size")
        self.drops_samples = True
        self.num_samples, self.prune_from, self.prune_every = num_samples, prune_from, prune_every
        if epochs is not None and not any(map(self.begins_with_a_refresh, range(2, epochs + 1))):
            raise UserError(
                f"with prune_from={prune_from} and prune_every={prune_every} none of the {epochs} "
                "epochs begins with a refresh, and nothing would be pruned: lower them"
            )
        self.register_buffer("pruning_loss", torch.zeros(num_samples))

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        losses = -torch.expm1(-self.q * self.task_loss(output, target)) / self.q
        if self.k is None:
            return losses
        check_index(self, index, target, self.num_samples)
        largest = -math.expm1(self.q * math.log(self.k)) / self.q  # L_q(k)
        return (losses - largest) * self.kept(self.pruning_loss[index]).to(losses.dtype)

    def end_epoch(self, predict: Predict):
        if self.k is None or not self.begins_with_a_refresh(self.epoch + 2):
            return
        output, target, index = predict()
        losses = self.task_loss(output, target).float()
        if self.kept(losses).any():
            device = self.pruning_loss.device
            self.pruning_loss.index_copy_(0, index.to(device), losses.to(device))

    def begins_with_a_refresh(self, number: int) -> bool:
        """Whether the epoch of that number does, counted from 1 and at least 2."""
        return number >= self.prune_from and number % self.prune_every == 0

    def kept(self, losses: Tensor) -> Tensor:
        """Whether p > k, from -log p: exact also for a small k."""
        return losses < -math.log(self.k)

    def sample_score(self) -> Tensor | None:
        """-log p at the last refresh, [N]: None before it, and if nothing is pruned."""
        refreshed = self.k is not None and self.pruning_loss.any()
        return self.pruning_loss if refreshed else None
