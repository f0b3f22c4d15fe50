"""SELFIE: small losses, and labels that the network has long agreed on (Song et al., ICML 2019)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .base import SampleLoss, check_classification, check_index
from .errors import UserError
from .task import full_precision


class SELFIE(SampleLoss):
    """Drops samples that are neither clean nor *refurbishable*, and relabels refurbishable ones.

    Every sample has a queue of the last q classes that the network predicted for it, its *votes*.
    For a batch of B samples with outputs z, in this order (the authors' code is
    github.com/kaist-dmlab/SELFIE):

        l_i   = cross-entropy of z_i and the given label
        K     = the ceil(B (1 - tau)) samples with the smallest l_i, which count as clean
        P_ic  = the share of class c among the votes of sample i
        u_i   = -sum_c P_ic log P_ic / log C, in [0, 1]
        c_i  <- argmax_c P_ic if u_i <= eps: sample i is refurbished
        S     = K and all samples that have a c_i, be it an old one
        loss  = mean over S of the cross-entropy of z_i and c_i, or the given label if there is none

    Then argmax_c z_ic takes the place of the oldest vote, so it has no part in its own u_i. In the
    first ``warm_up`` epochs S is the whole batch and no c_i is set. With eps = 0.05 and q = 15 only
    unanimous votes refurbish a label, unless there are more than 134 classes.

    A *restart* is a further run with a fresh network and ``targets=<run>/labels.npz``: it begins
    with the c_i of the run before.

    Classification only.

    Args:
        task_loss: cross_entropy.
        num_samples: N, the size of the training set that ``index`` counts in.
        num_outputs: C.
        given: the given labels [N].
        noise_rate: what part of them is wrong, or None; used if ``tau`` is None.
        epochs: of the whole training, if it is known: more than ``warm_up``.
        tau: the assumed noise rate, in [0, 1); 0 keeps all samples.
        warm_up: a number of epochs, at least q, because before that no queue is full.
        q: how many votes are kept.
        eps: the largest uncertainty of a refurbishable sample. Below 0 no sample is refurbishable,
            and only the selection by small losses remains.
        reuse: whether a sample with a c_i is still used when its votes no longer agree. The
            authors' code does so; a comment in it says that this costs 0.3 points.

    State: votes, number of votes, c_i, given label and last loss: 2 * q + 24 bytes per sample.

    Deviations from the authors' code:

    1. One forward pass instead of two. They choose by a first pass over the batch and train by a
       second one over S alone, so that BatchNorm normalises by S.
    2. An epoch visits every sample once. They draw each batch from all samples, so that an epoch
       misses 37 % of them.
    3. A queue that is not full refurbishes nothing. Theirs begin full of votes for class 0.
    4. 1e-6 is taken off B (1 - tau) before it is rounded up, so that 10 (1 - 0.7) gives 3 although
       it is 3.0000000000000004.
    5. A restart knows a c_i only if it differs from the given label, because labels.npz holds
       nothing but labels. It does not reuse the others until their votes agree again.
    6. The tau of a restart is that of the first run, unless ``loss.tau`` is set. Theirs falls to
       min(tau, 1 - number of c_i / N).

    Raises:
        UserError: a regression task loss, an argument out of range, or no noise rate.
        IndexError: on the CPU, an index outside [0, num_samples).
    """

    drops_samples = True
    follows_epochs = True

    def __init__(
        self,
        task_loss: Callable,
        num_samples: int,
        num_outputs: int,
        given: Tensor,
        noise_rate: float | None,
        epochs: int | None = None,
        *,
        tau: float | None = None,
        warm_up: int = 25,
        q: int = 15,
        eps: float = 0.05,
        reuse: bool = True,
    ):
        super().__init__(task_loss)
        check_classification("SELFIE", task_loss)
        tau = noise_rate if tau is None else tau
        if tau is None:
            raise UserError(
                "SELFIE needs the noise rate, which is not known of these labels: set loss.tau to "
                "an estimate of it, e.g. 0.2"
            )
        if not 0 <= tau < 1:
            raise UserError(f"tau, the noise rate, must lie in [0, 1), got {tau}: set loss.tau")
        if q < 1:
            raise UserError(f"q, the number of votes, must be at least 1, got {q}")
        if warm_up < q:
            raise UserError(
                f"warm_up must be at least q, since a sample has a vote an epoch and needs q of "
                f"them, got warm_up={warm_up} and q={q}: raise warm_up or lower q"
            )
        if epochs is not None and warm_up >= epochs:
            raise UserError(
                f"warm_up must be less than {epochs}, the epochs of the training, or nothing is "
                f"ever selected, got {warm_up}"
            )
        if not -math.inf < eps <= 1:
            raise UserError(
                f"eps bounds an uncertainty in [0, 1] and must be a number up to 1, got {eps}"
            )
        self.num_samples, self.num_outputs, self.tau = num_samples, num_outputs, tau
        self.warm_up, self.q, self.eps, self.reuse = warm_up, q, eps, reuse
        small = torch.int16 if num_outputs <= 2**15 else torch.int32
        self.register_buffer("votes", torch.zeros(num_samples, q, dtype=small))
        self.register_buffer("num_votes", torch.zeros(num_samples, dtype=torch.int32))
        self.register_buffer("corrected", torch.full((num_samples,), -1))  # -1: has no c_i
        self.register_buffer("given", given.to(torch.int64, copy=True))
        self.register_buffer("last_loss", torch.zeros(num_samples))

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        check_index(self, index, target, self.num_samples)
        output = full_precision(output)
        kept = (self.given, self.corrected, self.num_votes)
        given, corrected, number = (state.index_select(0, index) for state in kept)
        # a target that differs from the given label is a correction of an earlier run
        corrected = torch.where((corrected < 0) & (target != given), target, corrected)
        given_loss = self.task_loss(output.detach(), given)
        selecting = self.epoch >= self.warm_up
        if selecting:
            uncertainty, agreed = vote(self.votes.index_select(0, index).long(), self.num_outputs)
            certain = (uncertainty <= self.eps) & (number >= self.q)
            corrected = torch.where(certain, agreed, corrected)
        refurbished = corrected >= 0
        losses = self.task_loss(output, torch.where(refurbished, corrected, given))
        if selecting:
            selected = (refurbished if self.reuse else certain) | self._clean(given_loss)
            losses = torch.where(selected, losses, 0) / selected.mean(dtype=losses.dtype)
        if self.training:
            newest = output.detach().argmax(1).to(self.votes.dtype)
            oldest = index * self.q + number % self.q
            self.votes.view(-1).index_copy_(0, oldest, newest)
            self.num_votes.index_copy_(0, index, number + 1)
            self.corrected.index_copy_(0, index, corrected)
            self.last_loss.index_copy_(0, index, given_loss.to(self.last_loss.dtype))
        return losses

    def _clean(self, losses):
        """Mask [B] of the ceil(B (1 - tau)) smallest losses; of equal ones, the first."""
        count = max(1, math.ceil(len(losses) * (1 - self.tau) - 1e-6))
        chosen = losses.argsort(stable=True)[:count]
        return torch.zeros_like(losses, dtype=torch.bool).index_fill_(0, chosen, True)

    def labels(self) -> Tensor:
        """The corrected labels [N], and the given ones where there is no correction."""
        return torch.where(self.corrected >= 0, self.corrected, self.given)

    def sample_score(self) -> Tensor:
        """1[corrected to another label] + 1 - p, [N]; p of the given label when last drawn."""
        changed = (self.corrected >= 0) & (self.corrected != self.given)
        return changed.float() - torch.expm1(-self.last_loss)


def vote(votes: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
    """The entropy of votes [B, q] divided by log C, [B], and their most frequent class, [B].

    Of equally frequent classes it is the smallest. Votes are int64.
    """
    counts = torch.zeros(len(votes), num_outputs, device=votes.device)
    counts.scatter_add_(1, votes, torch.ones(votes.shape, device=votes.device))
    share = counts / votes.shape[1]
    entropy = torch.special.entr(share).sum(1)
    return entropy / math.log(num_outputs), counts.argmax(1)
