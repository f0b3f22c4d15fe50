"""Co-teaching+.

Co-teaching on the samples that the two networks disagree about (Yu et al., ICML 2019).
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from .errors import UserError
from .small_loss import ForgetRate, exchange, smallest_among
from .two_networks import TwoNetworks, disagree


class CoTeachingPlus(TwoNetworks):
    """Where two networks disagree, each learns from what the other has the smallest losses on.

    Under Co-teaching the two networks become alike, and then neither filters out the other's
    mistakes; samples that they disagree about keep them apart. For each batch, after
    ``warmup_epochs`` of plain Co-teaching (arXiv 1901.04215):

        l1, l2   cross-entropy under either network, [B]
        D      = the samples for which the networks predict different classes
        n      = int((1 - F) |D|), at least 1
        S1, S2 = the n samples of D with the smallest l1, with the smallest l2; no gradient
        loss   = mean of l1 over S2 + mean of l2 over S1

    A batch without disagreement has loss 0 and no gradient; weight decay and momentum still move
    the networks. Two networks that come to predict the same for all samples, or begin equal, would
    stay so, unless ``agreement_epochs`` gives such batches a loss. F is that of
    Co-teaching, see ``losses.small_loss.ForgetRate``.

    Classification only.

    Args:
        task_loss: cross_entropy.
        num_samples: N, the size of the training set that ``batch.index`` counts in.
        noise_rate: which part of the labels is wrong; None if that is not known.
        model: of two networks; only looked at.
        warmup_epochs: of plain Co-teaching. In the authors' code 0 on MNIST, 20 on CIFAR-10, 5 on
            CIFAR-100.
        double_softmax: after the warm-up, take for l1, l2 the cross-entropy of the class
            *probabilities* as if they were logits, which is what the authors' code does: a bounded
            loss, between log(1 + (C - 1)/e) and log(e + C - 1).
        agreement_epochs: in so many first epochs a batch without disagreement is learned as a
            whole: the mean of l1 + l2 over it.
        forget_rate, forget_rate_scale, schedule, num_gradual, exponent, epoch_offset: as those of
            CoTeaching. The paper has c = 1.

    State: the last mean loss of both networks, 4 bytes per sample, for ``sample_score`` alone.

    Deviations from the authors' code (github.com/xingruiyu/coteaching_plus; read, not run): 1.
    Cross-entropy of the logits, as in the paper, unless ``double_softmax``. 2. If int() leaves none
    of D, the code takes all of D; here it is one. 3. Without disagreement the code takes the mean
    loss over the whole batch as long as epoch times step of the epoch is below 5,000, which of 468
    batches are the first 10 epochs, most of the eleventh, and the first batches of later ones; here
    whole epochs, none by default. 4. It divides the mean by n once more, where there is
    disagreement. 5. If sample 0 of the training set is in D, the code leaves out the last sample of
    D. 6. Its loop begins with epoch 1, see ``epoch_offset``.

    Not confirmed: the step is from the abstract and the code; the text of the paper was not read.
    So whether the paper has a warm-up, what it does without disagreement, and its second schedule,
    by which F rises slowly beyond tau (a comment of the code has linspace(tau, 2 tau)), which is
    not here.

    Raises:
        UserError: as CoTeaching, or a negative number of epochs.
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
        warmup_epochs: int = 0,
        double_softmax: bool = False,
        agreement_epochs: int = 0,
        forget_rate: float | None = None,
        forget_rate_scale: float = 1.0,
        schedule: Literal["code", "paper"] = "code",
        num_gradual: int = 10,
        exponent: float = 1.0,
        epoch_offset: int = 0,
    ):
        super().__init__(task_loss, num_samples, model)
        if warmup_epochs < 0:
            raise UserError(f"warmup_epochs must be at least 0, got {warmup_epochs}")
        if agreement_epochs < 0:
            raise UserError(f"agreement_epochs must be at least 0, got {agreement_epochs}")
        self.warmup_epochs, self.agreement_epochs = warmup_epochs, agreement_epochs
        self.double_softmax = double_softmax
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
        if self.epoch < self.warmup_epochs:
            count = self.forget_rate.num_kept(self.epoch, len(target))
            return sum(exchange(first, second, count))
        apart = disagree(*outputs)
        if self.double_softmax:
            first, second = (
                self.task_loss(output.to(first.dtype).softmax(1), target) for output in outputs
            )
        # in float64, as Python would compute int((1 - F) |D|)
        share = (1 - self.forget_rate.at(self.epoch)) * apart.sum().double()
        count = share.floor().clamp(min=1)
        of_first, of_second = (smallest_among(losses, apart, count) for losses in (first, second))
        total = first.where(of_second, 0).sum() + second.where(of_first, 0).sum()
        total = total / count.to(total.dtype)
        if self.epoch >= self.agreement_epochs:
            return total
        return total.where(apart.any(), (first + second).mean())
