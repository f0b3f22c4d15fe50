"""JoCoR.

Two networks that learn the same samples and to agree about them (Wei et al., CVPR 2020).
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from .errors import check_interval
from .small_loss import ForgetRate, smallest
from .two_networks import TwoNetworks


class JoCoR(TwoNetworks):
    """Two networks with one loss: cross-entropy of both, and how far apart their predictions are.

    Different networks agree on correct labels sooner than on wrong ones, so samples with a small
    joint loss are probably correct, and both learn from the same ones. For each batch (arXiv
    2003.02752), with p1, p2 the class probabilities of either network:

        l_b  = (1 - lam) (CE1_b + CE2_b) + lam (KL(p1_b || p2_b) + KL(p2_b || p1_b))
        n    = int((1 - F) B), at least 1
        S    = the n smallest of l; ties by the position in the batch; no gradient
        loss = mean of l over S

    The divergence has its gradient in both networks. F is that of Co-teaching, see
    ``losses.small_loss.ForgetRate``.

    Classification only.

    Args:
        task_loss: cross_entropy.
        num_samples: N, the size of the training set that ``batch.index`` counts in.
        noise_rate: which part of the labels is wrong; None if that is not known.
        model: of two networks; only looked at.
        lam: weight of the agreement, in [0, 1); 0 leaves it out. The best depends on dataset, noise
            and network; the authors name 0.9 for CIFAR-10 (0.65 at 80 % noise), 0.85 for CIFAR-100,
            and 0.95 in an example for MNIST.
        forget_rate, forget_rate_scale, schedule, num_gradual, exponent, epoch_offset: as those of
            CoTeaching. The paper has c = 1.

    State: the last joint loss, 4 bytes per sample, for ``sample_score`` alone.

    Deviations from the authors' code (github.com/hongxin001/JoCoR; read, not run): 1. At least one
    sample is kept. 2. For asymmetric noise the code halves the nominal rate, since half of the
    classes keep their labels; here the noise rate is the realised one, which says the same. 3. Its
    loop begins with epoch 1, see ``epoch_offset``, and its epochs end after 401 batches.

    Not confirmed: the text of the paper was not read; the loss, the choice of samples and R(t) are
    as notes on it and the code have them. Its lambda for each setting beyond those named above.

    Raises:
        UserError: as CoTeaching, or ``lam`` outside [0, 1).
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
        lam: float = 0.9,
        forget_rate: float | None = None,
        forget_rate_scale: float = 1.0,
        schedule: Literal["code", "paper"] = "code",
        num_gradual: int = 10,
        exponent: float = 1.0,
        epoch_offset: int = 0,
    ):
        super().__init__(task_loss, num_samples, model)
        check_interval("lam", lam, "[0, 1)")
        self.lam = lam
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
        joint = self.joint_losses(*outputs, target)
        self.remember(joint, index)
        count = self.forget_rate.num_kept(self.epoch, len(target))
        return joint[smallest(joint, count)].mean()

    def joint_losses(self, first: Tensor, second: Tensor, target: Tensor) -> Tensor:
        """The joint loss of each sample, [B]."""
        entropy = self.task_loss(first, target) + self.task_loss(second, target)
        first, second = (output.to(entropy.dtype).log_softmax(1) for output in (first, second))
        # KL(p || q) + KL(q || p) = sum (p - q) (log p - log q)
        divergence = ((first.exp() - second.exp()) * (first - second)).sum(1)
        return (1 - self.lam) * entropy + self.lam * divergence
