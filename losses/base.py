"""The two nouns of this project: a SampleLoss scores samples, an Objective runs the model."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from .distributed import gather
from .errors import UserError
from .task import cross_entropy

Predict = Callable[[], tuple[Tensor, Tensor, Tensor]]


class SampleLoss(nn.Module):
    """Scores every sample: ``forward(output, target, index) -> losses [B]``, to be averaged.

    Per-sample state is like the statistics of a BatchNorm: buffers that ``forward`` updates in
    training mode and leaves alone in evaluation mode, and that ``state_dict`` carries. ``index``
    [B] says which training samples these are: each lies in [0, num_samples) and, as in any epoch
    without replacement, occurs at most once in a batch. Everything is computed over the batch that
    is given. If there are several processes that is the whole one, so the state is equal in all.

    Class attributes:
        drops_samples: some samples may get no loss at all, and so no gradient.
        takes_soft_targets: ``target`` may also be a distribution per sample, [B, C].
        needs_soft_targets: ``target`` is to be one, of another run.
        follows_epochs: it does something else in later epochs, so ``set_epoch`` must be called.
    """

    drops_samples = False
    takes_soft_targets = False
    needs_soft_targets = False
    follows_epochs = False
    epoch = 0
    num_drawn = 0  # samples in training mode in epoch 0, since set_epoch

    def __init__(self, task_loss: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.task_loss = unreduced(task_loss)

    def _replicate_for_data_parallel(self):
        if next(self.buffers(), None) is None:
            return super()._replicate_for_data_parallel()
        raise UserError(
            f"nn.DataParallel runs {type(self).__name__} on copies, whose state is lost after each "
            "step: start a process for each GPU with torchrun, or use one GPU, with "
            "CUDA_VISIBLE_DEVICES=0"
        )

    def set_epoch(self, epoch: int):
        """Call at the start of every epoch, counted from 0, like DistributedSampler.set_epoch.

        If a run is resumed in the middle of an epoch, it is called again for that epoch. So it only
        notes where training stands; what must happen exactly once belongs in ``end_epoch``.
        """
        self.epoch, self.num_drawn = epoch, 0

    def end_epoch(self, predict: Predict):
        """Call once after every epoch, before anything is saved: the place to change state.

        Args:
            predict: returns (outputs, targets, indices) of all training samples, in evaluation
                mode, on the CPU, in any order. Each call costs a pass over the data.
        """

    def labels(self) -> Tensor | None:
        """The labels the method would rather train on: classes [N], or distributions [N, C].

        None if it leaves the given labels as they are.
        """
        return None

    def sample_score(self) -> Tensor | None:
        """How suspicious each training sample is, [N]: larger means more probably incorrect.

        None if the method keeps no score.
        """
        return None


class Objective(nn.Module):
    """The number to minimise: ``forward(model, batch) -> scalar``.

    Only for methods that must run the model themselves; any SampleLoss becomes one in Supervised.
    ``batch.input`` and ``batch.extra`` may be this process's share: losses are computed over
    ``gather``. Parameters of the objective that require a gradient are trained with the model's, in
    a group of their own; compute their gradient from gathered tensors, so that it is equal in all
    processes.

    Class attributes:
        networks: how many networks of the configured kind the method trains. With 2 the model
            returns [B, 2, C] in training mode and [B, C] in evaluation mode.
        unlabelled: what it asks of the loader besides labelled batches: {} for nothing, or
            {"num_views": K, "steps_per_epoch": n}: an epoch has n batches, each with a Batch as its
            ``extra`` whose input [K, B, ...] is K augmented views of samples that a selection has
            left out.
        trusted_batch_size: how many samples with true labels each batch carries as its ``extra``.
        takes_soft_targets, needs_soft_targets, follows_epochs: as in SampleLoss.

    Attributes:
        scored: outputs of the last batch, with their gradient retained, targets and indices; None
            if the objective does not show what the model says of each sample.
    """

    networks = 1
    unlabelled: Mapping[str, int] = MappingProxyType({})
    trusted_batch_size = 0
    takes_soft_targets = False
    needs_soft_targets = False
    follows_epochs = False
    scored: tuple[Tensor, Tensor, Tensor] | None = None
    epoch = 0
    num_drawn = 0  # samples in training mode in epoch 0, since set_epoch

    def __getstate__(self):
        return self.__dict__ | {"scored": None}  # which is of a step, and cannot be copied

    def set_epoch(self, epoch: int):
        """As SampleLoss.set_epoch: may be called twice for the same epoch, and changes no state."""
        self.epoch, self.num_drawn = epoch, 0

    def after_step(self, model: nn.Module):
        """Call after every step of the optimiser."""

    def end_epoch(self, predict: Predict):
        """As SampleLoss.end_epoch."""

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The model to evaluate: the one that is trained, or e.g. its average over the steps."""
        return model

    def labels(self) -> Tensor | None:
        """As SampleLoss.labels."""
        return None

    def sample_score(self) -> Tensor | None:
        """As SampleLoss.sample_score."""
        return None


class Supervised(Objective):
    """Any SampleLoss as an Objective: run the model, score its samples, take the mean."""

    def __init__(self, loss: SampleLoss):
        super().__init__()
        self.loss = loss
        self.takes_soft_targets = loss.takes_soft_targets
        self.needs_soft_targets = loss.needs_soft_targets

    def forward(self, model: nn.Module, batch) -> Tensor:
        self.scored = gather(model(batch.input), batch.target, batch.index)
        if self.scored[0].requires_grad:
            self.scored[0].retain_grad()  # it is recorded how hard each sample pulls
        return self.loss(*self.scored).mean()

    def set_epoch(self, epoch: int):
        self.loss.set_epoch(epoch)

    def end_epoch(self, predict: Predict):
        self.loss.end_epoch(predict)

    def labels(self) -> Tensor | None:
        return self.loss.labels()

    def sample_score(self) -> Tensor | None:
        return self.loss.sample_score()


def as_objective(method: SampleLoss | Objective) -> Objective:
    """A method as what the training loop calls: an objective as it is, a loss in Supervised."""
    return method if isinstance(method, Objective) else Supervised(method)


def check_classification(name: str, task_loss: Callable):
    """Raise UserError if a method that needs class probabilities is given another loss."""
    if task_loss is not cross_entropy:
        raise UserError(
            f"{name} works on class probabilities and needs task_loss cross_entropy, that of "
            f"{cross_entropy.__module__}, got {_described(task_loss)}; for regression use Plain, "
            "SuperLoss, DiscrimLoss or, with trusted samples, LearningToReweight"
        )


def unreduced(task_loss: Callable) -> Callable:
    """A task loss, which returns one number for each sample, or raises UserError.

    PyTorch's return one for a batch by default. Of one that takes none of a few small inputs, as it
    has weights for its classes, what it returns is checked in each batch.
    """
    shapes = []
    row, table = torch.zeros(2), torch.zeros(2, 2)  # targets: classes, numbers, vectors
    for output, target in ((table, row.long()), (row, row), (table, table)):
        # of a task of the other kind it may raise, or warn, whatever it likes
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            shapes.append(task_loss(output, target).shape)
    if torch.Size() in shapes and torch.Size([2]) not in shapes:
        raise UserError(_reduced(task_loss))
    return task_loss if shapes else _CheckedInEachBatch(task_loss)


class _CheckedInEachBatch(nn.Module):
    def __init__(self, task_loss):
        super().__init__()
        self.task_loss = task_loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        losses = self.task_loss(output, target)
        if losses.shape != target.shape[:1]:
            raise UserError(_reduced(self.task_loss))
        return losses


def _reduced(task_loss):
    return (
        "the task loss must return one loss for each sample, [B], and "
        f"{_described(task_loss)} does not: pass cross_entropy of "
        f"{cross_entropy.__module__}, or one with reduction='none'"
    )


def _described(task_loss):
    """With its module, since PyTorch's has the same name as ours."""
    name = getattr(task_loss, "__qualname__", None)
    return f"{task_loss.__module__}.{name}" if name else repr(task_loss)


def check_index(method: nn.Module, index: Tensor, target: Tensor, num_samples: int):
    """Raise for an index that does not number the samples of this batch.

    Values are checked on the CPU only, and not in compiled code: on a GPU the check would stall
    every step, and each batch would be compiled anew. On any device it warns if epoch 0 has drawn
    more than all samples.

    Raises:
        UserError: index is not [B] of int64, or differs from the target in its number of samples;
            in training mode, an index that occurs twice.
        IndexError: an index outside [0, num_samples); a negative one would otherwise update another
            sample in silence.
    """
    if index.shape != target.shape[:1]:
        raise UserError(
            "index must hold one training-set position per target: "
            f"{list(target.shape[:1])}, got {list(index.shape)}"
        )
    if index.dim() != 1 or index.dtype != torch.int64:
        raise UserError(f"index must be [B], of int64, got {list(index.shape)}, of {index.dtype}")
    if index.is_cpu and index.numel() and not torch.compiler.is_compiling():
        drawn = index.tolist()  # Python looks at 128 numbers faster than operations on tensors do
        low, high = min(drawn), max(drawn)
        if low < 0 or high >= num_samples:
            raise IndexError(
                f"index must lie in [0, {num_samples}), got {low if low < 0 else high}: is "
                "num_samples the size of the whole training set, and index the position in it?"
            )
        if method.training and len(set(drawn)) < len(drawn):
            again = Counter(drawn).most_common(1)[0][0]
            raise UserError(
                f"index must hold each sample at most once, got {again} "
                "twice: draw without replacement; with a DistributedSampler, which repeats samples "
                "to fill the last batch, set drop_last=True"
            )
    if method.training and method.follows_epochs and not torch.compiler.is_compiling():
        _notice_second_pass(method, len(index), num_samples)


def _notice_second_pass(method, count, num_samples):
    """Warn, once, if set_epoch was forgotten: a second pass over the samples is still epoch 0.

    Samples are counted, which needs no look at the device. A sampler that fills its last batch
    draws a few more than there are, so it is the second batch of a second pass that is noticed.
    """
    if method.epoch:
        return
    before, method.num_drawn = method.num_drawn, method.num_drawn + count
    if num_samples < before <= num_samples + count:
        warnings.warn(
            f"{type(method).__name__} has drawn more than its {num_samples} samples in epoch 0: "
            "call set_epoch(epoch) at the start of each epoch, counted from 0",
            stacklevel=2,
        )
