"""What the methods with two networks share: run both, and see where they disagree."""

from torch import Tensor, nn

from losses.base import check_index
from utils.distributed import gather
from utils.errors import UserError


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


def run_both(
    model: nn.Module, batch, num_samples: int
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Both networks' outputs for the whole batch, [B, C] each, with its targets and indices.

    The first output retains its gradient, for the record of what the method asks of each sample.

    Raises:
        UserError: the model does not return [B, 2, C].
        IndexError: on the CPU, an index outside [0, num_samples).
    """
    outputs, target, index = gather(model(batch.input), batch.target, batch.index)
    if outputs.ndim != 3 or outputs.shape[1] != 2:
        raise UserError(
            f"a method with two networks needs outputs [B, 2, C], got {list(outputs.shape)}: give "
            "it a models.several.Several of two networks, in training mode"
        )
    check_index(index, target, num_samples)
    first, second = outputs.unbind(1)
    if first.requires_grad:
        first.retain_grad()
    return (first, second), target, index


def disagree(first: Tensor, second: Tensor) -> Tensor:
    """Where two networks predict different classes, a mask [B]."""
    return first.argmax(1) != second.argmax(1)
