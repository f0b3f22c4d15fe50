"""Trust few labels, then learn from all samples (Ding et al., WACV 2018; Laine and Aila, 2017)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Predict, SampleLoss, check_classification, check_index
from .errors import UserError
from .ramp import ramp_up
from .task import full_precision


class TwoStage(SampleLoss):
    """Cross-entropy on all labels; then on trusted ones, with consistency on all samples.

    The *ensemble* of a sample is the moving average of its predictions p = softmax(z), one per
    epoch: Z <- a Z + (1 - a) p, divided by its sum over the classes.

    Stage 1, the first ``select_epochs`` epochs, is cross-entropy. At its end K of the N samples are
    trusted: of each given label the ``share`` with the most certain ensembles, among the samples
    whose ensemble predicts this label.

    Stage 2, the epochs e = 0, 1, ... after that, is temporal ensembling (arXiv 1610.02242;
    github.com/smlaine2/tempens). The ensembles start anew, and change at the end of an epoch only:

        loss_i = 1[i trusted] cross-entropy(z_i, y_i) + w(e) mean_c (p_ic - ensemble_ic)^2
        w(e)   = max_weight K/N exp(-5 (1 - e / ramp_epochs)^2), and max_weight K/N after the ramp
        w(0)   = 0

    The labels that are not trusted have no part in stage 2.

    The stages can also be two runs, so that stage 2 has a fresh network. If ``select_epochs`` is
    the number of all epochs, labels.npz holds the trusted labels, and for the other samples the
    ensemble. The second run has ``targets=<run>/labels.npz`` and ``select_epochs=0``: of targets
    that are distributions, only those with a probability of 1 are trusted labels. With ordinary
    labels and ``select_epochs=0`` all labels are trusted: this is temporal ensembling alone, which
    Laine and Aila train on wrong labels with a max_weight of 300, or 3000 if half of them or more
    are wrong.

    Classification only.

    Args:
        task_loss: cross_entropy.
        num_samples: N, the size of the training set that ``index`` counts in.
        num_outputs: C.
        given: the given labels [N].
        epochs: of the whole training, if it is known: at least ``select_epochs``.
        select_epochs: of stage 1; few, before the network learns wrong labels by heart. 0: none.
        share: of each given label, in (0, 1].
        decay: a, in [0, 1).
        max_weight: of the consistency, at least 0. Laine and Aila use 30 for CIFAR-10, and 100 in
            their Pi model for CIFAR-100.
        ramp_epochs: over which w rises. The schedule ``RampUpAndDown`` goes with it.

    State: Z, last prediction, given label, whether trusted, and whether drawn in this epoch:
    8 * C + 10 bytes per sample; K/N, and the number of epochs of stage 2.

    What is ours. Only the abstract of the paper (arXiv 1802.02679) was available, and no code was
    published. The abstract says: first a small part of the samples is found whose labels are
    correct with a high probability, then all samples are learned from semi-supervised. So ours are:

    1. All of stage 1: the score, the agreement, ``share``, and that each label is ranked alone.
    2. That in a single run stage 2 goes on with the network of stage 1.
    3. Temporal ensembling as stage 2, with the constants of Laine and Aila.

    Deviations from the code of Laine and Aila:

    1. Z is divided by its sum, not by 1 - a^(e + 1). The two are equal if every epoch visits every
       sample; their code divides by the sum only if it does not.
    2. K/N is counted among the samples that have been drawn, and a sample has no consistency until
       it has an ensemble; both matter if an epoch does not visit every sample.

    Raises:
        UserError: a regression task loss, or an argument out of range.
        IndexError: on the CPU, an index outside [0, num_samples).
    """

    drops_samples = True
    takes_soft_targets = True
    follows_epochs = True

    def __init__(
        self,
        task_loss: Callable,
        num_samples: int,
        num_outputs: int,
        given: Tensor,
        epochs: int | None = None,
        *,
        select_epochs: int = 10,
        share: float = 0.25,
        decay: float = 0.6,
        max_weight: float = 30.0,
        ramp_epochs: int = 80,
    ):
        super().__init__(task_loss)
        check_classification("TwoStage", task_loss)
        for name, value, allowed, fits in (
            ("select_epochs", select_epochs, ">= 0", select_epochs >= 0),
            ("share", share, "in (0, 1]", 0 < share <= 1),
            ("decay", decay, "in [0, 1)", 0 <= decay < 1),
            ("max_weight", max_weight, ">= 0 and finite", 0 <= max_weight < math.inf),
            ("ramp_epochs", ramp_epochs, ">= 0", ramp_epochs >= 0),
        ):
            if not fits:
                raise UserError(f"{name} must be {allowed}, got {value}")
        if epochs is not None and select_epochs > epochs:
            raise UserError(
                f"select_epochs must be at most {epochs}, the epochs of the training, or no label "
                f"is ever trusted, got {select_epochs}"
            )
        self.num_samples, self.num_outputs = num_samples, num_outputs
        self.select_epochs, self.share = select_epochs, share
        self.decay, self.max_weight, self.ramp_epochs = decay, max_weight, ramp_epochs
        self.register_buffer("given", given.to(torch.int64, copy=True))
        self.register_buffer("average", torch.zeros(num_samples, num_outputs))
        self.register_buffer("latest", torch.zeros(num_samples, num_outputs))
        self.register_buffer("drawn", torch.zeros(num_samples, dtype=torch.bool))
        self.register_buffer("trusted", torch.full((num_samples,), select_epochs == 0))
        self.register_buffer("trusted_share", torch.ones(()))
        self.register_buffer("ensembled", torch.zeros((), dtype=torch.int64))

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        check_index(self, index, target, self.num_samples)
        output = full_precision(output)
        prediction = output.softmax(1)
        if self.training:
            self.latest.index_copy_(0, index, prediction.detach().to(self.latest.dtype))
            self.drawn.index_copy_(0, index, torch.ones_like(index, dtype=torch.bool))
        losses = self.task_loss(output, target)
        if self.epoch < self.select_epochs:
            return losses
        trusted = self.trusted[index]
        if target.is_floating_point():
            trusted = trusted & (target.amax(1) >= 1)
            if self.training:
                self.trusted.index_copy_(0, index, trusted)
        average = self.average[index]
        goal = normalised(average).to(prediction.dtype)
        apart = (prediction - goal).square().mean(1).masked_fill(average.sum(1) == 0, 0)
        return losses.masked_fill(~trusted, 0) + self.weight() * apart

    def weight(self) -> Tensor | float:
        """w in this epoch."""
        epoch = self.epoch - self.select_epochs
        if epoch <= 0:
            return 0.0
        return self.max_weight * ramp_up(epoch, self.ramp_epochs) * self.trusted_share

    @torch.no_grad()
    def end_epoch(self, predict: Predict):
        if self.epoch == self.select_epochs:
            self.average.zero_()  # the ensembles of stage 2 start without those of stage 1
        moved = self.decay * self.average + (1 - self.decay) * self.latest
        self.average.copy_(torch.where(self.drawn.unsqueeze(1), moved, self.average))
        self.drawn.fill_(False)
        if self.epoch + 1 == self.select_epochs:
            ensemble = normalised(self.average)
            self.trusted.copy_(most_confident(ensemble, self.given, self.share))
        elif self.epoch >= self.select_epochs:
            known = self._known()
            self.trusted_share.copy_((self.trusted & known).sum() / known.sum().clamp_min(1))
            self.ensembled += 1

    def _known(self):
        """Which samples have an ensemble [N]; those that are held out have none."""
        return self.average.sum(1) > 0

    def _ensemble(self):
        """The ensembles [N, C]; 1/C each where there is none."""
        known = self._known().unsqueeze(1)
        return torch.where(known, normalised(self.average), 1 / self.num_outputs)

    def labels(self) -> Tensor:
        """After stage 1, trusted labels and ensembles [N, C]; in stage 2, predicted classes [N]."""
        ensemble = self._ensemble()
        if self.ensembled > 0:
            return torch.where(self._known(), ensemble.argmax(1), self.given)
        # a hundredth is spread over all classes, so that no ensemble passes for a trusted label
        uncertain = torch.lerp(ensemble, torch.full_like(ensemble, 1 / self.num_outputs), 0.01)
        certain = F.one_hot(self.given, self.num_outputs).float()
        return torch.where(self.trusted.unsqueeze(1), certain, uncertain)

    def sample_score(self) -> Tensor:
        """-log of the probability of the given label in the ensemble, [N]."""
        own = self._ensemble().gather(1, self.given.unsqueeze(1)).squeeze(1)
        return -own.clamp_min(1e-38).log()


def normalised(average: Tensor) -> Tensor:
    """Moving averages [N, C] divided by their sums over the classes; 0 where there is none."""
    return average / (average.sum(1, keepdim=True) + 1e-8)


def most_confident(prediction: Tensor, given: Tensor, share: float) -> Tensor:
    """Mask [N] of the ``share`` of each given label whose prediction is most certain and agrees.

    The number is rounded down, but at least 1; fewer if the predictions of fewer samples agree.

    Args:
        prediction: [N, C]; 0 throughout if it is not known, and the sample does not count.
        given: [N].
    """
    own = prediction.gather(1, given.unsqueeze(1)).squeeze(1)
    agrees = (prediction.argmax(1) == given) & (own > 0)
    mask = torch.zeros_like(agrees)
    for label in range(prediction.shape[1]):
        number = int(((given == label) & (prediction.sum(1) > 0)).sum())
        members = ((given == label) & agrees).nonzero().squeeze(1)
        count = max(1, int(share * number + 1e-6))  # 0.29 * 100 is 28.999999999999996
        surest = members[own[members].argsort(descending=True, stable=True)]
        mask[surest[:count]] = True
    return mask
