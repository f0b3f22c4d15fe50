"""How a weight or a rate rises over the first epochs."""

import math


def ramp_up(epoch: int, length: int) -> float:
    """exp(-5 (1 - epoch / length)^2), from 0.0067 at epoch 0; 1 from epoch ``length`` on."""
    return math.exp(-5 * (1 - epoch / length) ** 2) if epoch < length else 1.0
