"""What the methods with two networks share: run both, and see where they disagree."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .base import Objective, check_classification, check_index
from .distributed import gather
from .errors import UserError


class TwoNetworks(Objective):
    """What the methods that train two networks of one kind have in common.

    State: the last loss of each sample, 4 bytes each, for ``sample_score`` alone.

    Args:
        task_loss: cross_entropy.
        num_samples: N, the size of the training set that ``batch.index`` counts in.
        model: of two networks; only looked at.

    Raises UserError for another task loss, and for two networks that share parameters.
    """

    networks = 2

    def __init__(self, task_loss: Callable, num_samples: int, model: nn.Module):
        super().__init__()
        check_classification(type(self).__name__, task_loss)
        check_networks(model)
        self.task_loss = task_loss
        self.register_buffer("last_loss", torch.zeros(num_samples))

    def run_both(self, model: nn.Module, batch) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Both networks' outputs for the whole batch, [B, C] each, with its targets and indices.

        The first output retains its gradient, for the record of what the method asks of each
        sample.

        Raises:
            UserError: the model does not return [B, 2, C].
            IndexError: on the CPU, an index outside [0, N).
        """
        outputs, target, index = gather(model(batch.input), batch.target, batch.index)
        if outputs.ndim != 3 or outputs.shape[1] != 2:
            raise UserError(
                f"a method with two networks needs outputs [B, 2, C], got {list(outputs.shape)}: "
                "give it a models.several.Several of two networks, in training mode"
            )
        check_index(self, index, target, len(self.last_loss))
        first, second = outputs.unbind(1)
        if first.requires_grad:
            first.retain_grad()
        self.scored = first, target, index
        return (first, second), target, index

    def remember(self, losses: Tensor, index: Tensor):
        """Note the losses [B] of these samples, in training mode."""
        if self.training:
            self.last_loss.index_copy_(0, index, losses.detach().to(self.last_loss.dtype))

    def sample_score(self) -> Tensor:
        """The loss of the sample when it was last drawn, [N]: of two, their mean."""
        return self.last_loss


def check_networks(model: nn.Module):
    """Raise UserError if the networks of a ``models.several.Several`` share parameters."""
    networks = getattr(model, "networks", None)
    if not isinstance(networks, nn.ModuleList):
        return  # a model of another kind: ``run_both`` looks at what it returns
    owned = [{id(parameter) for parameter in network.parameters()} for network in networks]
    shared = sum(len(own) for own in owned) - len(set().union(*owned))
    if shared:
        raise UserError(
            f"the two networks share {shared} parameters, so one would teach itself; build two "
            "that have all parameters of their own, as models.several.build_several does"
        )


def disagree(first: Tensor, second: Tensor) -> Tensor:
    """Where two networks predict different classes, a mask [B]."""
    return first.argmax(1) != second.argmax(1)
