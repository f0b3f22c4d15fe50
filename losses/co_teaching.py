"""Co-teaching.

Two networks, each trained on the samples with small losses under the other (Han et al., NeurIPS
2018).
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from .small_loss import ForgetRate, exchange
from .two_networks import TwoNetworks


class CoTeaching(TwoNetworks):
    """Each of two networks learns from the samples that the other one has the smallest losses on.

    Networks fit correct labels first, so a small loss is a sign of a correct label; and two that
    began apart filter out each other's mistakes. For each batch (arXiv 1804.06872):

        l1, l2   cross-entropy under either network, [B]
        n      = int((1 - F) B), at least 1
        S1, S2 = the n smallest of l1, of l2; ties by the position in the batch; no gradient
        loss   = mean of l1 over S2 + mean of l2 over S1

    The networks share nothing, so one backward pass gives each the gradient of its own part. The
    forget rate F rises from 0 to tau over the first epochs, before the networks begin to fit the
    wrong labels: see ``losses.small_loss.ForgetRate``. What is evaluated is network 0, or with
    ``evaluate_networks: mean`` the mean of both.

    Classification only.

    Args:
        task_loss: cross_entropy.
        num_samples: N, the size of the training set that ``batch.index`` counts in.
        noise_rate: which part of the labels is wrong; None if that is not known.
        model: of two networks; only looked at.
        forget_rate: tau, in [0, 1). None: the noise rate.
        forget_rate_scale: multiplies tau. Leaving out more than is wrong, 1.25, is far better on
            MNIST in the paper's Table 8.
        schedule: how F rises. "code": as the authors' code; "paper": as the paper's R(T).
        num_gradual: T_k, the epochs in which F rises.
        exponent: c.
        epoch_offset: epochs that the schedule is ahead. 1: as the authors' code, whose loop begins
            at 1, so that F is never 0.

    State: the last mean loss of both networks, 4 bytes per sample, for ``sample_score`` alone.

    Deviations from the authors' code (github.com/bhanML/Co-teaching): 1. It divides the mean by n
    once more, which Adam hardly notices and SGD does, by a factor near 100; here it is the mean, as
    in the paper. 2. At least one sample is kept. 3. One optimiser steps both networks: the same,
    but with ``clip_norm`` the norm is that of both together. 4. Its MNIST epochs end after 401
    batches; ours do not.

    Raises:
        UserError: a task loss other than cross-entropy; no known rate; an argument out of range;
            two networks that share parameters; a model that does not return [B, 2, C].
        IndexError: on the CPU, an index outside [0, num_samples).
    """

    follows_epochs = True

    def __init__(
        self,
        task_loss: Callable,
        num_samples: int,
        noise_rate: float | None,
        model: nn.Module,
        *,
        forget_rate: float | None = None,
        forget_rate_scale: float = 1.0,
        schedule: Literal["code", "paper"] = "code",
        num_gradual: int = 10,
        exponent: float = 1.0,
        epoch_offset: int = 0,
    ):
        super().__init__(task_loss, num_samples, model)
        self.forget_rate = ForgetRate(
            noise_rate,
            forget_rate,
            forget_rate_scale=forget_rate_scale,
            schedule=schedule,
            num_gradual=num_gradual,
            exponent=exponent,
            epoch_offset=epoch_offset,
        )

    def forward(self, model: nn.Module, batch) -> Tensor:
        outputs, target, index = self.run_both(model, batch)
        first, second = (self.task_loss(output, target) for output in outputs)
        self.remember((first + second) / 2, index)
        count = self.forget_rate.num_kept(self.epoch, len(target))
        return sum(exchange(first, second, count))
