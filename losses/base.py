"""The two nouns of this project: a SampleLoss scores samples, an Objective runs the model."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from losses.task import cross_entropy
from utils.distributed import gather
from utils.errors import UserError


class SampleLoss(nn.Module):
    """Scores every sample: ``forward(output, target, index) -> losses [B]``; the mean is what
    training minimises.

    Per-sample state is like the statistics of a BatchNorm: buffers that ``forward`` updates in
    training mode, leaves alone in evaluation mode, and ``state_dict`` carries. ``index [B]`` says
    which training samples these are, each in [0, num_samples) and, as in any epoch without
    replacement, at most once in a batch.
    """

    def __init__(self, task_loss: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.task_loss = task_loss
        self.epoch = 0

    def set_epoch(self, epoch: int):
        """Call at the start of every epoch, counted from 0, as with DistributedSampler.set_epoch."""
        self.epoch = epoch

    def sample_score(self) -> Tensor | None:
        """How suspicious each training sample is, [N].

        Larger means more probably incorrect. None: keeps no score.
        """
        return None


class Objective(nn.Module):
    """The number to minimise: ``forward(model, batch) -> scalar``. Only for methods that must run
    the model themselves.

    ``scored`` is what the model said of the last batch, with its gradient retained, and the targets
    and indices; None where there is no such thing. ``batch.input`` and ``extra`` may be this
    process's share: losses are computed over ``gather``. ``unlabelled`` is what it asks of the
    loader besides labelled batches: {} nothing; {"num_views": K, "steps_per_epoch": n} that each of
    n batches an epoch has as its ``extra`` [K, B, ...] K augmented views of B samples that a
    selection left out.
    """

    scored: tuple[Tensor, Tensor, Tensor] | None = None
    unlabelled: Mapping[str, int] = MappingProxyType({})

    def set_epoch(self, epoch: int):
        """Call at the start of every epoch, counted from 0."""

    def after_step(self, model: nn.Module):
        """Call after every step of the optimiser."""

    def evaluated(self, model: nn.Module) -> nn.Module:
        """What is to be evaluated for ``model``.

        Itself, or e.g. an average of its parameters over the steps.
        """
        return model

    def sample_score(self) -> Tensor | None:
        """As SampleLoss.sample_score."""
        return None


class Supervised(Objective):
    """Any SampleLoss as an Objective.

    Run the model on the batch, score its samples, take the mean.
    """

    def __init__(self, loss: SampleLoss):
        super().__init__()
        self.loss = loss

    def forward(self, model: nn.Module, batch) -> Tensor:
        self.scored = gather(model(batch.input), batch.target, batch.index)
        if self.scored[0].requires_grad:
            self.scored[
                0
            ].retain_grad()  # what the method asks of each sample, for the record of a run
        return self.loss(*self.scored).mean()

    def set_epoch(self, epoch: int):
        self.loss.set_epoch(epoch)

    def sample_score(self) -> Tensor | None:
        return self.loss.sample_score()


def as_objective(method: SampleLoss | Objective) -> Objective:
    """A method as what the training loop calls: an objective as it is, a loss in Supervised."""
    return method if isinstance(method, Objective) else Supervised(method)


def check_classification(name: str, task_loss: Callable):
    """Raise ValueError where a method that needs class probabilities is given a regression task
    loss.
    """
    if task_loss is not cross_entropy:
        raise UserError(
            f"{name} works on class probabilities and needs task_loss cross_entropy, got "
            f"{getattr(task_loss, '__name__', task_loss)}; for regression use Plain, SuperLoss or DiscrimLoss"
        )


def check_index(index: Tensor, target: Tensor, num_samples: int):
    """Raise for an index that does not number the samples of this batch.

    The range is looked at on the CPU only: on a GPU the look would stall every step.

    Raises:
        ValueError: index and target differ in shape.
        IndexError: an index outside [0, num_samples); a negative one would otherwise update another
            sample in silence.
    """
    if index.shape != target.shape:
        raise UserError(
            f"index must hold one training-set position per target: {list(target.shape)}, got {list(index.shape)}"
        )
    if index.device.type == "cpu" and index.numel():
        low, high = (int(bound) for bound in index.aminmax())
        if low < 0 or high >= num_samples:
            raise IndexError(
                f"index must lie in [0, {num_samples}), got {low if low < 0 else high}: is num_samples the "
                f"size of the whole training set, and index the position in it?"
            )
