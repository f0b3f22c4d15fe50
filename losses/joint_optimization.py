"""Joint Optimization: learn network and labels in turns (Tanaka et al., CVPR 2018)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Predict, SampleLoss, check_classification, check_index
from .errors import UserError
from .task import full_precision


class JointOptimization(SampleLoss):
    """L_c + alpha L_p + beta L_e, with targets that the network's own predictions replace.

    A batch of B samples has the probabilities s_b = softmax(z_b), their mean s, and the targets
    y_b, which are distributions. With a prior p over the classes (arXiv 1803.11364; the authors'
    code is github.com/DaikiTanaka-UT/JointOptimization):

        L_c = -1/B sum_b sum_c y_bc log s_bc    the network learns the targets
        L_p = -sum_c p_c log s_c                it predicts all classes, as often as the prior says
        L_e = -1/B sum_b sum_c s_bc log s_bc    its predictions are certain, and so the next targets

    After each epoch from the ``begin``-th on, the target of every sample becomes the mean of its
    last ``window`` predictions, made in training mode, before the step. This is the authors' first
    step. The second is a run of ``Plain`` with a fresh network and ``targets=<run>/labels.npz``.

    L_p belongs to the batch: the loss of a sample is its own L_c and L_e and the L_p of all. It
    needs batches that are large compared with the number of classes.

    Classification only.

    Args:
        task_loss: cross_entropy.
        num_samples: N, the size of the training set that ``index`` counts in.
        num_outputs: C.
        given: the given labels [N]; a sample that is never drawn keeps its own.
        epochs: of the whole training, if it is known: at least ``begin``.
        alpha, beta: as above, at least 0.
        begin: after which epoch, counted from 1, targets are first replaced; at least ``window``.
        window: how many predictions are averaged.
        hard: replace a target by the most probable class instead of the distribution.
        prior: p, a probability for each class; None for 1/C each.

    State: a ring of ``window`` = W predictions of each sample, its soft target, its number of
    predictions and its given label: 4 * C * (W + 1) + 12 bytes per sample, which makes 23 MB for
    CIFAR-10 and 221 MB for CIFAR-100, on the device and in each checkpoint; and whether targets
    have been replaced.

    Deviations:

    1. L_p is that of the authors' code. The paper has the Kullback-Leibler divergence of p and s,
       which is smaller by the entropy of p and has the same gradient.
    2. ``hard`` is in the paper and not in the code.
    3. The ring counts the predictions of each sample, not the epochs. This is the same if every
       epoch visits every sample.
    4. The authors' batches run over into the next epoch, so that up to 127 samples are predicted
       twice in an epoch.
    5. The authors' code accepts begin < window, and then averages empty places of the ring.

    Raises:
        UserError: a regression task loss, or an argument out of range.
        IndexError: on the CPU, an index outside [0, num_samples).
    """

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
        alpha: float = 1.0,
        beta: float = 0.5,
        begin: int = 70,
        window: int = 10,
        hard: bool = False,
        prior: list[float] | None = None,
    ):
        super().__init__(task_loss)
        check_classification("JointOptimization", task_loss)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value < math.inf:
                raise UserError(f"{name} is the weight of a loss and must be >= 0, got {value}")
        if window < 1:
            raise UserError(f"window must be at least 1 prediction, got {window}")
        if begin < window:
            raise UserError(
                f"begin must be at least window, because an epoch adds one prediction and window "
                f"of them are averaged, got begin={begin} and window={window}: raise begin or "
                "lower window"
            )
        if epochs is not None and begin > epochs:
            raise UserError(
                f"begin must be at most {epochs}, the epochs of the training, or no target is ever "
                f"replaced, got {begin}"
            )
        prior = [1 / num_outputs] * num_outputs if prior is None else prior
        if len(prior) != num_outputs:
            raise UserError(
                f"prior must have a number for each of the {num_outputs} classes, got {len(prior)}"
            )
        if not (all(0 <= part <= 1 for part in prior) and abs(sum(prior) - 1) < 1e-4):
            raise UserError(f"prior must hold probabilities that sum to 1, got {prior}")
        self.num_samples, self.num_outputs = num_samples, num_outputs
        self.alpha, self.beta = alpha, beta
        self.begin, self.window, self.hard = begin, window, hard
        self.register_buffer("prior", torch.tensor(prior, dtype=torch.float32))
        self.register_buffer("given", given.to(torch.int64, copy=True))
        self.register_buffer("soft_target", F.one_hot(self.given, num_outputs).float())
        self.register_buffer("ring", torch.zeros(num_samples, window, num_outputs))
        self.register_buffer("num_predictions", torch.zeros(num_samples, dtype=torch.int32))
        self.register_buffer("replaced", torch.tensor(False))

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        check_index(self, index, target, self.num_samples)
        output = full_precision(output)
        if self.epoch >= self.begin:
            target = self.soft_target.index_select(0, index).to(output.dtype)
        match = self.task_loss(output, target)
        log_p = output.log_softmax(1)
        p = log_p.exp()
        if self.training:
            self._remember(p.detach(), index)
        entropy = -(p * log_p).sum(1)
        return match + self.alpha * imbalance(log_p, self.prior) + self.beta * entropy

    def _remember(self, prediction, index):
        number = self.num_predictions.index_select(0, index)
        oldest = index * self.window + number % self.window
        self.ring.view(-1, self.num_outputs).index_copy_(0, oldest, prediction.to(self.ring.dtype))
        self.num_predictions.index_copy_(0, index, number + 1)

    @torch.no_grad()
    def end_epoch(self, predict: Predict):
        if self.epoch + 1 < self.begin:
            return
        mean = self._mean_prediction()
        if self.hard:
            mean = F.one_hot(mean.argmax(1), self.num_outputs).float()
        predicted = (self.num_predictions > 0).unsqueeze(1)
        self.soft_target.copy_(torch.where(predicted, mean, self.soft_target))
        self.replaced.fill_(True)

    def _mean_prediction(self):
        """The mean of the predictions in the ring [N, C]; 0 if there is none."""
        count = self.num_predictions.clamp(1, self.window).unsqueeze(1)
        return self.ring.sum(1) / count

    def labels(self) -> Tensor | None:
        """The targets [N, C], or [N] if ``hard``; None before they are replaced."""
        if not self.replaced:
            return None
        return self.soft_target.argmax(1) if self.hard else self.soft_target

    def sample_score(self) -> Tensor:
        """-log of the mean probability of the given label, [N]; 0 if never drawn."""
        own = self._mean_prediction().gather(1, self.given.unsqueeze(1)).squeeze(1)
        return -torch.where(self.num_predictions > 0, own, 1).clamp_min(1e-38).log()


def imbalance(log_p: Tensor, prior: Tensor) -> Tensor:
    """L_p of log-probabilities [B, C] and a prior [C], a scalar."""
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))
    return -(prior * log_mean).sum()
