"""The smallest methods that use each door of losses.base; every suite of methods runs them too.

None is a method of a paper. While ``registered()`` is entered, configurations may name them.
"""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import losses
from losses.base import Objective, SampleLoss
from losses.task import full_precision
from utils.distributed import gather


class ToyTwoNetworks(Objective):
    """Each of two networks learns the half of the batch on which the other one's loss is small."""

    networks = 2

    def __init__(self, task_loss: Callable, num_samples: int):
        super().__init__()
        self.task_loss = task_loss
        self.register_buffer("last_loss", torch.zeros(num_samples))

    def forward(self, model, batch):
        outputs, target, index = gather(model(batch.input), batch.target, batch.index)
        first, second = outputs.unbind(1)
        if first.requires_grad:
            first.retain_grad()
        self.scored = first, target, index
        own = [self.task_loss(output, target) for output in (first, second)]
        if self.training:
            self.last_loss[index] = (own[0] + own[1]).detach().float() / 2
        half = max(1, len(target) // 2)
        easiest = [values.detach().argsort(stable=True)[:half] for values in own]
        return own[0][easiest[1]].mean() + own[1][easiest[0]].mean()

    def sample_score(self):
        return self.last_loss


class ToyTrusted(Objective):
    """The mean loss of the batch plus that of a batch of trusted samples."""

    def __init__(self, task_loss: Callable, *, trusted_batch_size: int = 8):
        super().__init__()
        self.task_loss, self.trusted_batch_size = task_loss, trusted_batch_size

    def forward(self, model, batch):
        output, target, index = gather(model(batch.input), batch.target, batch.index)
        if output.requires_grad:
            output.retain_grad()
        self.scored = output, target, index
        trusted = gather(model(batch.extra.input), batch.extra.target)
        return self.task_loss(output, target).mean() + self.task_loss(*trusted).mean()


class ToyRelabelling(SampleLoss):
    """After each epoch, soft targets move half of the way to what the network predicts.

    The constructor asks for every fact that it may ask for.
    """

    def __init__(
        self,
        task_loss: Callable,
        num_samples: int,
        num_outputs: int,
        given: Tensor,
        noise_rate: float | None,
        epochs: int,
        steps_per_epoch: float,
        *,
        momentum: float = 0.5,
    ):
        super().__init__(task_loss)
        assert given.shape == (num_samples,)
        assert 0 <= noise_rate <= 1
        assert epochs > 0
        assert steps_per_epoch > 0
        self.momentum = momentum
        self.register_buffer("soft_target", F.one_hot(given, num_outputs).float())
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, output, target, index):
        return self.task_loss(output, self.soft_target[index])

    def end_epoch(self, predict):
        output, _, index = predict()
        predicted = output.softmax(1).to(self.soft_target.device)
        index = index.to(self.soft_target.device)
        self.soft_target[index] = torch.lerp(predicted, self.soft_target[index], self.momentum)
        self.calls += 1

    def labels(self):
        return self.soft_target


class ToyOwnParameters(SampleLoss):
    """The task loss of logits that parameters of the method scale and shift."""

    def __init__(self, task_loss: Callable, num_outputs: int):
        super().__init__(task_loss)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.shift = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, output, target, index):
        output = full_precision(output)
        return self.task_loss(output * self.log_scale.exp() + self.shift, target)


class ToyDropping(SampleLoss):
    """Only the half of the batch with the smaller losses counts."""

    drops_samples = True

    def forward(self, output, target, index):
        values = self.task_loss(output, target)
        half = max(1, len(values) // 2)
        easiest = values.detach().argsort()[:half]
        kept = torch.zeros_like(values).index_fill_(0, easiest, 1)
        return values * kept * (len(values) / kept.sum())


TOYS = (ToyTwoNetworks, ToyTrusted, ToyRelabelling, ToyOwnParameters, ToyDropping)
# The real methods and these, in a form that utils.build takes for a package.
ALL = SimpleNamespace(
    **{name: getattr(losses, name) for name in losses.__all__},
    **{toy.__name__: toy for toy in TOYS},
    __all__=[*losses.__all__, *(toy.__name__ for toy in TOYS)],
)


@contextlib.contextmanager
def registered():
    """While entered, the package ``losses`` has these methods too."""
    names = losses.__all__
    for toy in TOYS:
        setattr(losses, toy.__name__, toy)
    losses.__all__ = ALL.__all__
    try:
        yield
    finally:
        losses.__all__ = names
        for toy in TOYS:
            delattr(losses, toy.__name__)
