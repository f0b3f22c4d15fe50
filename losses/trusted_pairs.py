"""What the methods share that learn from samples with a given and a true label.

Which these are, the features that a network's last layer gets, and one pass over both streams.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from losses.base import Objective, check_classification
from losses.task import full_precision
from utils.build import check_interval
from utils.distributed import gather
from utils.errors import UserError


class TrustedPairs(Objective):
    """A method that trains on noisy samples and, in each step, on trusted ones with both labels.

    Args:
        task_loss: cross_entropy.
        num_outputs: C.
        given: given labels [N].
        trusted_labels: [N], true labels of the trusted samples, -1 of others; None if the trusted
            samples are none of these.
        model: ends in a linear layer of C outputs.
        trusted_batch_size: how many trusted samples a step takes.

    Raises UserError for another task loss, samples without both labels, a model that ends
    otherwise, and an argument out of range.
    """

    def __init__(
        self,
        task_loss: Callable,
        num_outputs: int,
        given: Tensor,
        trusted_labels: Tensor | None,
        model: nn.Module,
        trusted_batch_size: int,
    ):
        super().__init__()
        check_classification(type(self).__name__, task_loss)
        check_interval("trusted_batch_size", trusted_batch_size, "[1, inf)")
        check_pairs(type(self).__name__, trusted_labels)
        self.task_loss, self.num_outputs = task_loss, num_outputs
        self.trusted_batch_size = trusted_batch_size
        head = find_head(type(self).__name__, model, num_outputs)
        self.num_features, self.kept = head.in_features, keep_inputs(head)
        self.register_buffer("given", given.to(torch.int64, copy=True))

    def run_both(self, model: nn.Module, batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Outputs, features, labels and indices of the whole noisy and the whole trusted batch.

        Labels are the given and the true ones. Outputs and features are float32, and those of the
        noisy batch are remembered as what the method says of each sample.
        """
        if batch.extra is None:
            raise UserError(f"{type(self).__name__} needs trusted samples in batch.extra, got none")
        size = len(batch.input)
        output = model(torch.cat([batch.input, batch.extra.input]))
        output, features = full_precision(output), full_precision(self.kept.pop())
        noisy = gather(output[:size], features[:size], batch.target, batch.index)
        trusted = gather(output[size:], features[size:], batch.extra.target, batch.extra.index)
        if noisy[0].requires_grad:
            noisy[0].retain_grad()
        self.scored = noisy[0], *noisy[2:]
        return noisy, trusted


def check_pairs(method: str, trusted_labels: Tensor | None):
    """Raise UserError if there are no samples of which both labels are known."""
    if trusted_labels is None:
        raise UserError(
            f"{method} needs trusted samples of which the given label is known too, and those of "
            f"this dataset are a part of their own: use LearningToReweight"
        )


def find_head(method: str, model: nn.Module, num_outputs: int) -> nn.Linear:
    """The last linear layer of a model. Raises UserError if it does not give the outputs."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers or layers[-1].out_features != num_outputs:
        raise UserError(
            f"{method} needs the features that a last linear layer with {num_outputs} outputs "
            f"gets, and this model has no such layer: choose another model"
        )
    return layers[-1]


def keep_inputs(layer: nn.Module) -> list[Tensor]:
    """A list of what the layer was last given: one tensor [B, F], until it is taken out."""
    kept = []

    def keep(module, inputs):
        kept[:] = inputs  # a function, not a method: whoever copies the model copies no more

    layer.register_forward_pre_hook(keep)
    return kept
