"""A conditional random field over given and true labels (Vahdat, NeurIPS 2017)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.base import check_index
from losses.task import one_hot
from losses.trusted_pairs import TrustedPairs
from utils.build import check_interval


class NoisyCleanCRF(TrustedPairs):
    """log p(y, t | x) of trusted samples, and a bound on log p(y | x) of the others.

    x is a sample, y its given label, t its true one, h are K hidden bits (arXiv 1706.00038):

        p(y, t, h | x)  is proportional to  exp(a_t + b_y + W_ty + c'h + h'V_y)

    a are the outputs of the network, b is linear in the features that its last layer gets. All sums
    are exact, over C^2 states. The loss of a trusted sample is -log p(y, t | x); that of another is

        -max over q of  log p(y | x) - KL(q || p(t | x, y)) - alpha KL(q || p_aux(t | y))

    where q is proportional to (p p_aux^alpha)^(1 / (1 + alpha)). p_aux is what the trusted samples
    show: (n_ty + 1) / (n_y + C). alpha falls linearly over the epochs. If it is large, the network
    learns p_aux; at 0, this is expectation maximisation. The loss is the mean over all samples.

    What is evaluated is p(t | x), in which y is summed out. The network that the run leaves gives a
    alone.

    Args:
        task_loss: cross_entropy.
        num_outputs, given, trusted_labels, model, trusted_batch_size: as of TrustedPairs.
        epochs: of the whole training.
        hidden: K.
        first_alpha, last_alpha: alpha in the first and in the last epoch.

    State: b, W, c and V; p_aux; of each sample its given label and q, 4 * C + 8 bytes per sample.

    Confirmed, by the abstract: an undirected model of given and true labels, tractable inference
    over true ones, auxiliary information as a regulariser. From memory: the energy, and alpha from
    40 to 5. Our choice: exact sums over classes instead of sampling, p_aux from counts instead of a
    restricted Boltzmann machine, W begins as the logarithm of what the trusted samples show.

    Raises:
        UserError: as TrustedPairs; an argument out of range; a batch without trusted samples.
        IndexError: on the CPU, an index outside [0, N).
    """

    def __init__(
        self,
        task_loss: Callable,
        num_outputs: int,
        given: Tensor,
        trusted_labels: Tensor | None,
        model: nn.Module,
        epochs: int,
        *,
        trusted_batch_size: int = 14,
        hidden: int = 0,
        first_alpha: float = 40.0,
        last_alpha: float = 5.0,
    ):
        super().__init__(task_loss, num_outputs, given, trusted_labels, model, trusted_batch_size)
        for name, value in (
            ("hidden", hidden),
            ("first_alpha", first_alpha),
            ("last_alpha", last_alpha),
        ):
            check_interval(name, value, "[0, inf)" if name != "hidden" else "[0, 10000]")
        self.first_alpha, self.last_alpha = first_alpha, last_alpha
        self.epoch, self.epochs = 0, epochs
        known = trusted_labels >= 0
        counts = torch.zeros(num_outputs, num_outputs)  # [given, true]
        counts.index_put_((given[known], trusted_labels[known]), torch.ones(()), accumulate=True)
        auxiliary = (counts + 1) / (counts.sum(1, keepdim=True) + num_outputs)
        shown = (counts.t() + 1) / (counts.sum(0).unsqueeze(1) + num_outputs)
        self.b = nn.Linear(self.num_features, num_outputs)
        self.W = nn.Parameter(shown.log())  # [true, given]
        self.c = nn.Parameter(torch.zeros(hidden))
        self.V = nn.Parameter(0.1 * torch.randn(hidden, num_outputs))
        self.register_buffer("log_auxiliary", auxiliary.log())
        self.register_buffer("q", one_hot(self.given, num_outputs))

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def alpha(self) -> float:
        """alpha of the present epoch."""
        progress = self.epoch / max(self.epochs - 1, 1)
        return self.first_alpha + progress * (self.last_alpha - self.first_alpha)

    def scores(self, output: Tensor, features: Tensor) -> Tensor:
        """log p(y, t | x) up to a constant, [B, C, C]: of each true and each given label."""
        return joint_scores(output, self.b(features).float(), self.W, self.c, self.V)

    def forward(self, model: nn.Module, batch) -> Tensor:
        noisy, trusted = self.run_both(model, batch)
        check_index(noisy[3], noisy[2], len(self.given))
        scores = self.scores(*noisy[:2])
        unverified, q = bound(scores, noisy[2], self.log_auxiliary, self.alpha())
        verified = joint_losses(self.scores(*trusted[:2]), self.given[trusted[3]], trusted[2])
        if self.training:
            self.q.index_copy_(0, noisy[3], q.detach().to(self.q.dtype))
            certain = one_hot(trusted[2], self.num_outputs, self.q.dtype)
            self.q.index_copy_(0, trusted[3], certain)
        return torch.cat([unverified, verified]).mean()

    def evaluated(self, model: nn.Module) -> nn.Module:
        return Marginal(model, self)

    def labels(self) -> Tensor:
        """q [N, C], as it was when each sample was last drawn."""
        return self.q

    def sample_score(self) -> Tensor:
        """-log of q of the given label, [N]; 0 if never drawn."""
        own = self.q.gather(1, self.given.unsqueeze(1)).squeeze(1)
        return -own.clamp_min(1e-38).log()


class Marginal(nn.Module):
    """log p(t | x) [B, C] of a network and the random field that was trained with it."""

    def __init__(self, model: nn.Module, field: NoisyCleanCRF):
        super().__init__()
        self.model, self.field = model, [field]  # in a list: its mode is not changed with this one

    def state_dict(self, *arguments, **options):
        """That of the network: what is exported is the network alone."""
        return self.model.state_dict(*arguments, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        (field,) = self.field
        output = self.model(inputs).float()
        return field.scores(output, field.kept.pop().float()).logsumexp(2).log_softmax(1)


def joint_scores(a: Tensor, b: Tensor, W: Tensor, c: Tensor, V: Tensor) -> Tensor:
    """log p(y, t | x) up to a constant, [B, C, C], with the hidden bits summed out.

    Args:
        a: of true labels [B, C].
        b: of given labels [B, C].
        W: [true, given].
        c: [K]; V: [K, given].
    """
    given = b + F.softplus(c.unsqueeze(1) + V).sum(0)
    return a.unsqueeze(2) + given.unsqueeze(1) + W


def joint_losses(scores: Tensor, given: Tensor, true: Tensor) -> Tensor:
    """-log p(y, t | x) [B] of pairs of labels [B]."""
    flat = scores.flatten(1)
    chosen = flat.gather(1, (true * scores.shape[2] + given).unsqueeze(1)).squeeze(1)
    return flat.logsumexp(1) - chosen


def bound(
    scores: Tensor, given: Tensor, log_auxiliary: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """Losses [B] of samples whose true label is not known, and q [B, C].

    Args:
        log_auxiliary: log p_aux [given, true].
    """
    own = scores.gather(2, given.view(-1, 1, 1).expand(-1, scores.shape[1], 1)).squeeze(2)
    log_evidence = own.logsumexp(1) - scores.flatten(1).logsumexp(1)
    mixed = (own.log_softmax(1) + alpha * log_auxiliary[given]) / (1 + alpha)
    return -(log_evidence + (1 + alpha) * mixed.logsumexp(1)), mixed.softmax(1)
