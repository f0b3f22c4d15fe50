"""How the network has got on with each sample, epoch by epoch, in sums that need no history."""

import numpy as np
import torch
from torch import Tensor


def margins(output: Tensor, target: Tensor) -> Tensor:
    """[B]: the logit of the target minus the largest of the other classes, of outputs [B, C].

    The target is a class number [B], or a distribution [B, C], of which the largest counts.
    """
    target = target.argmax(1) if target.ndim == 2 else target
    two = output.topk(2)
    other = torch.where(two.indices[:, 0] == target, two.values[:, 1], two.values[:, 0])
    return output.gather(1, target.unsqueeze(1)).squeeze(1) - other


class TrainingDynamics:
    """Running statistics of what was said of each sample when it was trained on.

    They are of the network in training mode, of the augmented sample, before the step that it is
    part of, and against the label that it is trained on. ``utils.scores`` says what they are for.

    State, per sample: 25 bytes.
    """

    def __init__(self, num_samples: int, device: torch.device | str):
        names = ("visits", "margin", "confidence", "squares", "correct", "forgotten")
        self.samples = {name: torch.zeros(num_samples, device=device) for name in names}
        self.samples["was_correct"] = torch.zeros(num_samples, dtype=torch.bool, device=device)

    @torch.no_grad()
    def update(self, output: Tensor, target: Tensor, index: Tensor):
        """Add a visit of each of these samples: outputs [B, C]."""
        target = target.argmax(1) if target.ndim == 2 else target
        margin = margins(output, target)
        confidence = output.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
        before = {name: values[index] for name, values in self.samples.items()}
        visits, correct = before["visits"] + 1, margin > 0
        mean = before["confidence"] + (confidence - before["confidence"]) / visits
        # Welford's sum: the mean of the squares minus that of the values squared would cancel
        squares = (confidence - before["confidence"]) * (confidence - mean)
        changed = {
            "visits": visits,
            "margin": before["margin"] + (margin - before["margin"]) / visits,
            "confidence": mean,
            "squares": before["squares"] + squares,
            "correct": before["correct"] + correct,
            "forgotten": before["forgotten"] + (before["was_correct"] & ~correct),
            "was_correct": correct,
        }
        for name, values in changed.items():
            self.samples[name][index] = values

    def scores(self) -> dict[str, np.ndarray]:
        """The scores of ``utils.scores`` that follow, [N] each; NaN of samples never trained on."""
        sums = {name: values.cpu().numpy() for name, values in self.samples.items()}
        visits = np.where(sums["visits"] > 0, sums["visits"], np.nan)
        confidence = np.where(sums["visits"] > 0, sums["confidence"], np.nan)
        variance = sums["squares"] / visits
        return {
            "aum": np.where(sums["visits"] > 0, sums["margin"], np.nan),
            "confidence": confidence,
            "variability": np.sqrt(variance),
            "correctness": sums["correct"] / visits,
            "aleatoric": confidence - confidence**2 - variance,  # mean of p (1 - p)
            "forgetting": np.where(sums["correct"] > 0, sums["forgotten"], visits),
        }
