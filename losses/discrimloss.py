"""DiscrimLoss: distrust hard samples, later only those that stay hard (Wu et al., 2023)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .base import SampleLoss, check_index
from .errors import UserError, check_interval
from .per_sample import PerSampleParameter


class DiscrimLoss(SampleLoss):
    """(average_i - gamma k) / sigma_i: samples whose average loss stays above gamma k lose weight.

    For each sample it keeps a moving average of the loss and a learnable scale sigma. If the
    average is below the threshold gamma k, the sample is *easy*: gradient descent shrinks its
    sigma, and its weight 1/sigma grows. If it is above, the sample is *hard* or *incorrect*, and
    its sigma grows. The factor gamma rises around epoch q. By then the loss of hard samples has
    fallen, so they get their weight back, and incorrect samples do not.

    For each batch, in this order (Wu et al., IEEE TMM, doi 10.1109/TMM.2023.3290477, as in the
    authors' code):

        l_i     = task_loss(output_i, target_i)
        m_i    <- beta m_i + (1 - beta) l_i        history; only the new l_i has a gradient
        L_i     = m_i / (1 - beta^(epoch + 1))     bias correction
        k      <- rho k + (1 - rho) mean(L)        threshold; set by the first batch; no gradient
        gamma   = 1 + a + a tanh(p (epoch - q))    rises from 1 to 1 + 2a
        loss_i  = suppression(epoch) (L_i - gamma k) / sigma_i

    and then one step of SGD with momentum on log sigma_i, in closed form: the derivative of
    mean(loss) by log sigma_i is -loss_i / B, to which sigma_decay * log sigma_i is added. The step
    is taken inside ``forward``, in training mode, so no second optimiser is needed.

    Losses may be negative. Works for classification and regression.

    Args:
        task_loss: ``(output, target) -> losses [B]``, one of losses.task.
        num_samples: N, the size of the training set that ``index`` counts in.
        a, p, q: height, steepness and epoch of the rise of gamma. ``a=0``: gamma is 1.
        beta: decay of the per-sample average. 0: no history, each loss stands for itself.
        rho: decay of the "ema" threshold.
        threshold: k. "ema" over batches; "mean" of all losses seen since the start; or a fixed
            number.
        suppression: shape of the factor of the first epochs, see ``suppression_factor``.
        suppression_epochs: S, how many epochs that factor covers. 0: none.
        sigma_lr, sigma_momentum: of the SGD on log sigma; never scheduled.
        sigma_decay: weight decay of log sigma. As in the authors' code it is summed over the batch,
            not averaged.
        log_sigma_low, log_sigma_high: bounds of log sigma, which starts at 0.
        bias_correction: "epoch", as the authors do, is right if every epoch visits every sample;
            "visits" counts.

    State: history, log sigma and its velocity: 12 bytes per sample, or 16 with
    ``bias_correction="visits"``.

    Ablations of the paper are values of arguments: ``beta=0`` is "without EA" (the moving average),
    ``suppression_epochs=0`` "without ES", ``threshold="mean"`` is GAK, ``threshold=math.log(C)`` a
    fixed k, and ``a=0`` in addition a fixed k without gamma.

    Deviations from the authors' code (github.com/tangminji/DiscrimLoss):
        1. History, threshold and sigma are in ``state_dict``.
        2. Only the drawn entries are stepped, which is equivalent.
        3. Evaluation mode updates nothing.

    Deviation from the paper: the lower bounds that the authors' search found apply to *log* sigma
    (0.05 to 0.7). So with their hyper-parameters sigma never falls below 1 after the first step,
    and no sample is weighted up.

    Raises:
        UserError: an argument outside its range.
        IndexError: on the CPU, an index outside [0, num_samples).
    """

    takes_soft_targets = True
    follows_epochs = True

    def __init__(
        self,
        task_loss: Callable,
        num_samples: int,
        *,
        a: float = 0.2,
        p: float = 1.5,
        q: float = 50.0,
        beta: float = 0.9,
        rho: float = 0.9,
        threshold: Literal["ema", "mean"] | float = "ema",
        suppression: Literal["linear", "sin", "exp", "piecewise"] = "linear",
        suppression_epochs: float = 3,
        sigma_lr: float = 0.1,
        sigma_momentum: float = 0.9,
        sigma_decay: float = 0.0,
        log_sigma_low: float = math.log(1 / 20),
        log_sigma_high: float = math.log(20),
        bias_correction: Literal["epoch", "visits"] = "epoch",
    ):
        super().__init__(task_loss)
        for name, value in (("beta", beta), ("rho", rho)):  # decays of moving averages
            check_interval(name, value, "[0, 1)")
        for name, value in (
            ("a", a),
            ("p", p),
            ("q", q),
            ("suppression_epochs", suppression_epochs),
            ("sigma_decay", sigma_decay),
        ):
            check_interval(name, value, "[0, inf)")
        if not isinstance(threshold, str):
            check_interval("threshold", threshold, "(-inf, inf)")
        elif threshold not in ("ema", "mean"):
            raise UserError(f'threshold must be "ema", "mean" or a number, got "{threshold}"')
        if bias_correction not in ("epoch", "visits"):
            raise UserError(f'bias_correction must be "epoch" or "visits", got "{bias_correction}"')
        suppression_factor(suppression, 0, suppression_epochs)  # raises for an unknown shape
        self.num_samples = num_samples
        self.a, self.p, self.q, self.beta, self.rho = a, p, q, beta, rho
        self.threshold_rule, self.bias_correction = threshold, bias_correction
        self.suppression, self.suppression_epochs = suppression, suppression_epochs
        self.sigma_decay = sigma_decay
        self.log_sigma = PerSampleParameter(
            num_samples,
            init=0.0,
            lr=sigma_lr,
            momentum=sigma_momentum,
            low=log_sigma_low,
            high=log_sigma_high,
        )
        self.register_buffer("history", torch.zeros(num_samples))
        start = 0.0 if isinstance(threshold, str) else float(threshold)
        self.register_buffer("threshold", torch.tensor(start))
        # losses in the threshold: counted beyond the first batch only if it is a "mean"
        self.register_buffer("num_seen", torch.tensor(0, dtype=torch.int64))
        self._unset = True  # whether num_seen is 0, known without a look at the device
        if bias_correction == "visits":
            self.register_buffer("visits", torch.zeros(num_samples, dtype=torch.int32))

    def _load_from_state_dict(self, state, prefix, *arguments):
        super()._load_from_state_dict(state, prefix, *arguments)
        self._unset = not int(self.num_seen)

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        check_index(self, index, target, self.num_samples)
        losses = self.task_loss(output, target)
        with torch.no_grad():
            average, share = self._average(losses, index)
            if self.training:
                self._update_threshold(average)
            gamma = self.a * math.tanh(self.p * (self.epoch - self.q)) + self.a + 1
            own = self.log_sigma(index)  # in float32, as its step wants it
            log_sigma = own.to(losses.dtype)
            weight = log_sigma.neg().exp_()
            factor = suppression_factor(self.suppression, self.epoch, self.suppression_epochs)
            if factor != 1:
                weight *= factor
            value = weight * torch.sub(average, self.threshold, alpha=gamma)
            if self.training:
                grad = value * (-1 / len(value))
                if self.sigma_decay:
                    grad = grad + self.sigma_decay * log_sigma
                self.log_sigma.step(index, grad, own)
        # This adds 0, and the gradient: in the average, only the new loss has one.
        return torch.addcmul(value, weight * share, losses - losses.detach())

    def _average(self, losses, index):
        """Bias-corrected average of each sample's losses, and the share of the new one in it."""
        if self.bias_correction == "visits":
            visits = self.visits[index] + 1
            correction = 1 - self.beta**visits
        else:
            correction = 1 - self.beta ** (self.epoch + 1)
        history = self.history.index_select(0, index).to(losses.dtype)
        average = torch.lerp(losses, history, self.beta)
        if self.training:
            self.history.index_copy_(0, index, average.to(self.history.dtype))
            if self.bias_correction == "visits":
                self.visits[index] = visits
        return average / correction, (1 - self.beta) / correction

    def _update_threshold(self, average):
        if not isinstance(self.threshold_rule, str):
            return
        mean = average.mean().to(self.threshold.dtype)
        if self.threshold_rule == "mean":
            self.threshold.lerp_(mean, len(average) / (self.num_seen + len(average)).to(mean.dtype))
        elif self._unset:
            self.threshold.copy_(mean)
        else:
            self.threshold.lerp_(mean, 1 - self.rho)
        if self._unset or self.threshold_rule == "mean":
            self.num_seen += len(average)
        self._unset = False

    def sample_score(self) -> Tensor:
        """log sigma + average loss, [N]: the second ranks the many samples at a bound of sigma."""
        return self.log_sigma.value + self.history


def suppression_factor(shape: str, epoch: int, suppression_epochs: float) -> float:
    """Factor of the loss at epoch e in the first S = ``suppression_epochs``; then 1.

        linear       (e + 1) / 10
        sin          S/10 sin(pi/2 (e + 1) / S)
        exp          S/10 exp(e + 1 - S)
        piecewise    0.2

    As in the authors' code every shape jumps at epoch S, e.g. linear from S/10 to 1, and all but
    piecewise rise above 1 if S is more than 10. The factor cancels what bias correction adds to the
    gradients of the first epochs.

    Raises UserError for an unknown shape.
    """
    shapes = {
        "linear": lambda e, s: (e + 1) / 10,
        "sin": lambda e, s: s / 10 * math.sin(math.pi / 2 * (e + 1) / s),
        "exp": lambda e, s: s / 10 * math.exp(e + 1 - s),
        "piecewise": lambda e, s: 0.2,
    }
    if shape not in shapes:
        raise UserError(f"suppression must be one of {', '.join(shapes)}, got {shape!r}")
    return shapes[shape](epoch, suppression_epochs) if epoch < suppression_epochs else 1.0
