"""A network that cleans the labels for the classifier beside it (Veit et al., CVPR 2017)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.base import check_index
from losses.task import full_precision, one_hot
from losses.trusted_pairs import TrustedPairs
from utils.build import check_interval

HIDDEN = 128


class LabelCleaning(TrustedPairs):
    """A classifier that learns cleaned labels, and a cleaner that learns from trusted samples.

    A step has noisy samples, with labels y, and trusted ones, with labels y and v. Of both, f is
    what the last layer of the network gets (arXiv 1701.01619):

        c = clip(y + g(y, f), 0, 1)                       the cleaned labels, g a small network
        L_clean    = sum over trusted samples of |c - v|  summed over the classes
        L_classify = sum over noisy samples of cross-entropy(z, c / sum c)
                   + sum over trusted samples of cross-entropy(z, v)

    and the loss is clean_weight L_clean + L_classify, divided by the number of all these samples.
    L_classify has no gradient for c, or all labels would be cleaned away. If c is 0 for all
    classes, the sample has no loss.

    g embeds y and f in 32 numbers each (64 from 100 classes on), with one hidden layer of 128
    units on top. It begins as 0, so that c begins as y. Its learning rate is ``loss.lr``.

    Args:
        task_loss: cross_entropy.
        num_outputs, given, trusted_labels, model: as of TrustedPairs.
        trusted_batch_size: the paper has one trusted sample for nine others.
        clean_weight: of L_clean.
        warm_up: for so many epochs the labels stay as they are, and the network learns features.
            The paper's network is pretrained. Without features to go by, the cleaner drifts to
            where the clip has no gradient, and stays there; a high ``loss.lr`` leads there, too.

    State: the cleaner; of each sample its given label, its cleaned one and a score: 20 bytes per
    sample.

    Confirmed by notes on the paper, not by its text or by code: the clip, |c - v|, the weight 0.1,
    9 to 1, the missing gradient; the formulas are checked against traces of these. Our choice: the
    sizes of g; ``warm_up``; the form for one label a sample, where the paper has a sigmoid for each
    class (``cleaning_losses`` has both); the division by all samples; the score.

    Raises:
        UserError: as TrustedPairs; clean_weight out of range; a batch without trusted samples.
        IndexError: on the CPU, an index outside [0, N).
    """

    def __init__(
        self,
        task_loss: Callable,
        num_outputs: int,
        given: Tensor,
        trusted_labels: Tensor | None,
        model: nn.Module,
        *,
        trusted_batch_size: int = 14,
        clean_weight: float = 0.1,
        warm_up: int = 0,
    ):
        super().__init__(task_loss, num_outputs, given, trusted_labels, model, trusted_batch_size)
        check_interval("clean_weight", clean_weight, "[0, inf)")
        check_interval("warm_up", warm_up, "[0, inf)")
        self.clean_weight, self.warm_up, self.epoch = clean_weight, warm_up, 0
        self.cleaner = Cleaner(num_outputs, self.num_features)
        self.register_buffer("cleaned", self.given.clone())
        self.register_buffer("score", torch.zeros(len(self.given)))

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def forward(self, model: nn.Module, batch) -> Tensor:
        noisy, trusted = self.run_both(model, batch)
        check_index(noisy[3], noisy[2], len(self.given))
        output = torch.cat([noisy[0], trusted[0]])
        features = torch.cat([noisy[1], trusted[1]])
        given = torch.cat([noisy[2], self.given[trusted[3]]])
        true = torch.cat([noisy[2], trusted[2]])  # of noisy samples it is not looked at
        given, true = (one_hot(each, self.num_outputs, output.dtype) for each in (given, true))
        verified = torch.arange(len(output), device=output.device) >= len(noisy[0])
        residual = full_precision(self.cleaner(given, features))
        cleaned = clean(given, residual * (self.epoch >= self.warm_up))
        to_clean, to_classify, _ = cleaning_losses(output, cleaned, true, verified)
        if self.training:
            self._remember(cleaned.detach(), noisy, trusted)
        return (self.clean_weight * to_clean + to_classify).mean()

    def _remember(self, cleaned, noisy, trusted):
        own = cleaned[: len(noisy[0])]
        kept = own.gather(1, noisy[2].unsqueeze(1)).squeeze(1)
        self.score.index_copy_(0, noisy[3], (1 - kept).to(self.score.dtype))
        self.cleaned.index_copy_(0, noisy[3], own.argmax(1))
        self.cleaned.index_copy_(0, trusted[3], trusted[2])

    def labels(self) -> Tensor:
        """The cleaned labels [N], as they were when each sample was last drawn."""
        return self.cleaned

    def sample_score(self) -> Tensor:
        """How much of the given label was cleaned away, [N]; 0 if never drawn."""
        return self.score


class Cleaner(nn.Module):
    """g: what to add to labels [B, C] of samples with features [B, F]; 0 in the beginning."""

    def __init__(self, num_outputs: int, num_features: int):
        super().__init__()
        width = 32 if num_outputs < 100 else 64
        self.labels, self.features = (
            nn.Linear(num_outputs, width),
            nn.Linear(num_features, width),
        )
        self.hidden, self.residual = nn.Linear(2 * width, HIDDEN), nn.Linear(HIDDEN, num_outputs)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)

    def forward(self, labels: Tensor, features: Tensor) -> Tensor:
        embedded = torch.cat([self.labels(labels), self.features(features)], 1).relu()
        return self.residual(self.hidden(embedded).relu())


def clean(labels: Tensor, residual: Tensor) -> Tensor:
    """c [B, C]; at 0 and at 1 it has a gradient, without which a residual of 0 would never move."""
    changed = labels + residual
    inside = (changed >= 0) & (changed <= 1)  # the gradient of clamp is 0 at both ends
    return torch.where(inside, changed, changed.detach().clamp(0, 1))


def cleaning_losses(
    output: Tensor, cleaned: Tensor, true: Tensor, verified: Tensor, *, multi_label: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """L_clean and L_classify of each sample [B], and the classifier's targets [B, C].

    Args:
        output: logits [B, C].
        true: [B, C], looked at where ``verified`` [B].
        multi_label: a sigmoid for each class instead of a softmax.
    """
    known = verified.unsqueeze(1)
    to_clean = ((cleaned - true).abs() * known).sum(1)
    target = torch.where(known, true, cleaned.detach())
    if multi_label:
        losses = F.binary_cross_entropy_with_logits(output, target, reduction="none")
        return to_clean, losses.sum(1), target
    target = target / target.sum(1, keepdim=True).clamp_min(1e-8)
    return to_clean, F.cross_entropy(output, target, reduction="none"), target
