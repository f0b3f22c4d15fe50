"""Learning to reweight: weights that a step on trusted samples asks for (Ren et al., ICML 2018)."""

import contextlib
import sys
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from .base import Objective, check_index, unreduced
from .distributed import (
    gather,
    main_process_only,
    mean_over_processes,
    synchronised_batch_norm,
    unwrap,
)
from .errors import UserError, check_interval

SCORE_DECAY = 0.9


class LearningToReweight(Objective):
    """sum_b w_b l_b, where w_b says whether learning sample b helps on the trusted samples.

    A step has B samples with their given labels and a batch of trusted ones (arXiv 1803.09050; the
    authors' code is github.com/uber-research/learning-to-reweight-examples):

        g   = gradient of the mean loss of the trusted samples, and of its decay, at theta
        u_b = <gradient of l_b, g>
        w_b = max(u_b, 0) / sum_j max(u_j, 0)      all 0 if none is positive

    This is the look-ahead step of the paper: minus u_b is the derivative, at 0, of the trusted loss
    after a step of gradient descent on sum_b eps_b l_b, for eps_b. The size of that step cancels.
    The w_b carry no gradient.

    The step of a sample that counts is that of a mean times B w_b, which may be as much as B. So
    the learning rate has to be smaller than that of cross-entropy, or clip_norm set. With a handful
    of trusted samples that the network knows by heart, g is rounding noise, and so are the weights.

    Three passes: a forward and backward pass of the trusted samples; u_b, in one pass; and the
    forward and backward pass of the weighted loss, which alone moves the running statistics of a
    BatchNorm. The others use the statistics of their own batch. Each draws dropout masks anew, as
    in the authors' code.

    Args:
        task_loss: any.
        num_samples: N, the size of the training set that ``batch.index`` counts in.
        trusted_batch_size: how many trusted samples a step takes; the authors take 100 of 100 to
            1,000 on CIFAR-10, and all 10 on MNIST.
        meta: how u is computed. "forward": the derivative of all l_b in the direction g, by
            forward-mode differentiation. "backward": by differentiating twice, which takes longer
            and is the fallback for models with an operator without the former.
        trusted_decay: the trusted loss has trusted_decay / 2 times the squares of all parameters
            but biases and scales added. 0 fits a weight decay of the optimiser; the authors' code
            for CIFAR has its 2e-4 here.

    State: a moving average of B w_b for ``sample_score`` alone, 4 bytes per sample.

    Confirmed against traces of the authors' code: u, w, the loss and its gradients, with and
    without the decay, and that their explicit look-ahead on MNIST gives the same. Deviations: 1.
    Their trusted samples on CIFAR are a random part, in which a class may be missing;
    ``trusted.per_class`` decides that here. 2. The score is our choice.

    Raises:
        UserError: an argument out of range, or a batch without trusted samples.
        IndexError: on the CPU, an index outside [0, num_samples).
    """

    def __init__(
        self,
        task_loss: Callable,
        num_samples: int,
        *,
        trusted_batch_size: int = 100,
        meta: Literal["forward", "backward"] = "forward",
        trusted_decay: float = 0.0,
    ):
        super().__init__()
        check_interval("trusted_batch_size", trusted_batch_size, "[1, inf)")
        check_interval("trusted_decay", trusted_decay, "[0, inf)")
        if meta not in ("forward", "backward"):
            raise UserError(f'meta must be "forward" or "backward", got {meta!r}')
        self.task_loss, self.num_samples = unreduced(task_loss), num_samples
        self.trusted_batch_size, self.trusted_decay = trusted_batch_size, trusted_decay
        self.meta = meta
        if meta == "forward":
            load_forward_mode()
        self.register_buffer("average", torch.ones(num_samples))

    def forward(self, model: nn.Module, batch) -> Tensor:
        if batch.extra is None:
            raise UserError("LearningToReweight needs trusted samples in batch.extra, got none")
        weights = self.weights(model, batch)
        output, target, index = gather(model(batch.input), batch.target, batch.index)
        check_index(self, index, target, self.num_samples)
        if output.requires_grad:
            output.retain_grad()
        self.scored = output, target, index
        if self.training:
            newest = len(weights) * weights.to(self.average.dtype)
            average = torch.lerp(newest, self.average[index], SCORE_DECAY)
            self.average.index_copy_(0, index, average)
        return (weights * self.task_loss(output, target)).sum()

    def weights(self, model: nn.Module, batch) -> Tensor:
        """w of the whole batch, [B]: not negative, and of sum 1 or 0."""
        (alignment,) = gather(self.alignment(model, batch))
        positive = alignment.clamp_min(0)
        total = positive.sum()
        return positive / torch.where(total > 0, total, 1)

    def alignment(self, model: nn.Module, batch) -> Tensor:
        """u of this process's share of the batch, [b]."""
        network = unwrap(model)
        with batch_statistics_alone(network), no_fused_kernels(batch.input.device.type):
            direction = self.trusted_gradient(network, batch.extra)
            if self.meta == "forward":
                try:
                    return self._forward_mode(network, batch, direction)
                except (NotImplementedError, RuntimeError) as error:
                    if not lacks_forward_mode(error):
                        raise
                    self.meta = "backward"
                    say_fallback(error)
            return self._backward_mode(network, batch, direction)

    def trusted_gradient(self, network: nn.Module, trusted) -> dict[str, Tensor]:
        """g, by the name of the parameter: over the trusted samples of all processes."""
        parameters = trained(network)
        with torch.enable_grad():
            loss = self.task_loss(network(trusted.input), trusted.target).mean()
        gradients = torch.autograd.grad(loss, parameters.values(), materialize_grads=True)
        gradients = dict(zip(parameters, mean_over_processes(*gradients), strict=True))
        if self.trusted_decay:
            for name, parameter in parameters.items():
                if parameter.ndim > 1:
                    gradients[name] = gradients[name] + self.trusted_decay * parameter.detach()
        return gradients

    def _forward_mode(self, network, batch, direction):
        # like torch.func.jvp, but 10 % faster on a small network
        with torch.no_grad(), forward_ad.dual_level():
            parameters = {
                name: forward_ad.make_dual(parameter.detach(), direction[name])
                for name, parameter in trained(network).items()
            }
            output = functional_call(network, parameters, batch.input)
            losses, tangent = forward_ad.unpack_dual(self.task_loss(output, batch.target))
            return torch.zeros_like(losses) if tangent is None else tangent

    def _backward_mode(self, network, batch, direction):
        parameters = trained(network)
        with torch.enable_grad():
            losses = self.task_loss(network(batch.input), batch.target)
            eps = torch.zeros_like(losses, requires_grad=True)
            gradients = torch.autograd.grad(
                (eps * losses).sum(), parameters.values(), create_graph=True, materialize_grads=True
            )
            product = sum(
                (gradient * direction[name]).sum()
                for name, gradient in zip(parameters, gradients, strict=True)
            )
        return torch.autograd.grad(product, eps, materialize_grads=True)[0]

    def sample_score(self) -> Tensor:
        """Minus the moving average of B w_b, [N]; -1 of a sample that was never drawn."""
        return -self.average


def trained(network: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient, by name."""
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


@contextlib.contextmanager
def batch_statistics_alone(network: nn.Module):
    """While entered, passes in training mode leave running statistics as they are."""
    norms = [
        module for module in network.modules() if getattr(module, "track_running_stats", False)
    ]
    try:
        with synchronised_batch_norm(network):
            for norm in norms:
                norm.track_running_stats = not norm.training
            yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextlib.contextmanager
def no_fused_kernels(device_type: str):
    """While entered, attention can be differentiated twice, and forwards.

    What autocast has cast is not kept for the pass that follows, which needs its gradients.
    """
    enabled = torch.is_autocast_enabled(device_type)
    autocast = torch.autocast(device_type, enabled=enabled, cache_enabled=False)
    with sdpa_kernel(SDPBackend.MATH), autocast:
        yield


def load_forward_mode():
    """Let PyTorch load what it needs, without its warning of a function that it has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(()), torch.ones(()))


def lacks_forward_mode(error: Exception) -> bool:
    """Whether this is what PyTorch raises for an operator without forward-mode differentiation."""
    signs = ("forward AD", "forward-mode", "forward mode", "setup_context", "jvp")
    return isinstance(error, NotImplementedError) or any(sign in str(error) for sign in signs)


@main_process_only
def say_fallback(error: Exception):
    """Say once why u is computed by differentiating twice."""
    reason = str(error).splitlines()[0]
    print(
        f"note: LearningToReweight goes on with meta=backward, because this model has no "
        f"forward-mode derivative ({reason})",
        file=sys.stderr,
    )
