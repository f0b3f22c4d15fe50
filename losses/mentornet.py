"""MentorNet: small-loss samples weigh more, by a curriculum (Jiang et al., ICML 2018).

By a rule that changes in the course of training, which needs no clean data, or by a network that
has learned from trusted samples which losses those of right labels are.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .base import SampleLoss, check_classification, check_index
from .errors import UserError

CURRICULA = ("predefined", "self_paced", "spcl_linear", "hard", "focal", "learned")
SCORE_DECAY = 0.9


class MentorNet(SampleLoss):
    """v_i l_i, with a weight v_i from the loss l_i and a moving percentile m of the batches.

    For each batch of B samples, in this order (arXiv 1712.05055, as in the authors' code):

        l_i = cross-entropy of the given label
        m  <- decay m + (1 - decay) P          P: the percentile of the l_i; m begins at 0
        v_i = curriculum(l_i, m, percent)      in [0, 1], carries no gradient
        v_i = 0                                except for int(B (1 - rate)) samples, drawn at random

    and the loss is the mean of v_i l_i over all B. P is one of the losses, by the nearest rank: the
    one at position round((B - 1)(1 - percentile)) from the largest, where halves are rounded to the
    even number. ``percent`` is floor(100 t / T) of all T steps, at most 99. The curricula:

        predefined   1 up to 18 percent; then 1 if l <= m, else 0; from 90 percent on spcl_linear
        self_paced   1 if l <= m, else 0 (Kumar et al. 2010)
        spcl_linear  1 - (l - m) / gamma, within [0, 1] (Jiang et al. 2015)
        hard         1 if l >= m, else 0: hard example mining
        focal        (1 - e^-l)^2 (Lin et al. 2017)
        learned      the output of a network, from l, l - m and the percent

    "predefined" is the paper's MentorNet PD, "learned" its DD: utils.mentor fits the network to
    the losses that another run has recorded. Classification only.

    Args:
        task_loss: cross_entropy.
        num_samples: N.
        noise_rate: of the labels that are trained on; used if percentile is None.
        epochs, steps_per_epoch: T is their product, rounded.
        curriculum: what the weights follow, see above.
        percentile: in [0, 1], about the share of correct labels; None for 1 - noise_rate. The
            authors give 0.75 for noise rates of 0.2 and 0.4 and 0.5 for 0.8, under a misspelt name
            that TensorFlow 1 ignores: what they ran was most likely 0.7.
        decay: of m, in [0, 1).
        burn_in: v_i = 1 while percent < burn_in - 1, before the random draw.
        fixed_after_burn_in: the progress that curriculum and dropout see stays at burn_in percent
            from there on, as in the authors' commands for DD.
        mentor: file of the network, for "learned".
        gamma: width of the linear part, > 0.
        example_dropout: pairs of a rate in [0, 1) and how many percent of the training it holds
            for, together 100. Empty: no sample is dropped. The authors' commands give
            [[0.5, 17], [0.05, 83]] for PD and [[0.5, 17], [0.05, 78], [0.9, 5]] for DD, whose last
            stage never comes.

    State: m; the number of steps; the seed of the draws; the mentor; and for the score a moving
    average of l_i - m, 4 bytes per sample.

    Deviations from the authors' code (github.com/google/mentornet): 1. They train a small network
    to imitate a predefined curriculum and weigh by that; here the curriculum is computed. The
    learned mentor is of another architecture, and fitted in another way: see utils.mentor. 2.
    Their ResNet's L2 term is multiplied by the mean weight of the batch; weight decay here is the
    optimiser's. 3. The draws follow from one seed and the step, and are the same after a resumption
    and in any number of processes. 4. Evaluation mode updates and drops nothing.

    Raises:
        UserError: a regression task loss, an argument outside its range, no percentile where the
            noise rate is not known; no mentor for "learned", one for another curriculum, or a
            file that holds none.
        IndexError: on the CPU, an index outside [0, num_samples).
    """

    drops_samples = True

    def __init__(
        self,
        task_loss: Callable,
        num_samples: int,
        noise_rate: float | None,
        epochs: int,
        steps_per_epoch: float,
        *,
        curriculum: Literal[
            "predefined", "self_paced", "spcl_linear", "hard", "focal", "learned"
        ] = "predefined",
        percentile: float | None = None,
        decay: float = 0.5,
        burn_in: int = 0,
        fixed_after_burn_in: bool = False,
        mentor: str | None = None,
        gamma: float = 1.0,
        example_dropout: tuple[tuple[float, ...], ...] = (),
    ):
        super().__init__(task_loss)
        check_classification("MentorNet", task_loss)
        if curriculum not in CURRICULA:
            raise UserError(f"curriculum must be one of {', '.join(CURRICULA)}, got {curriculum!r}")
        if percentile is None and noise_rate is None:
            raise UserError(
                "the noise rate is not known here: set loss.percentile to about the share of "
                "correct labels, in [0, 1]"
            )
        if (curriculum == "learned") != (mentor is not None):
            raise UserError(
                f"loss.mentor=<file> and loss.curriculum=learned go together: the file comes from "
                f"python -m utils.mentor, got curriculum={curriculum} and mentor={mentor}"
            )
        percentile = 1 - noise_rate if percentile is None else percentile
        for name, value, low, high, fits in (
            ("percentile", percentile, 0, "1]", 0 <= percentile <= 1),
            ("decay", decay, 0, "1)", 0 <= decay < 1),
            ("burn_in", burn_in, 0, "100]", 0 <= burn_in <= 100),
        ):
            if not fits:
                raise UserError(f"{name} must lie in [{low}, {high}, got {value}")
        if not 0 < gamma < float("inf"):
            raise UserError(f"gamma must be a finite number greater than 0, got {gamma}")
        self.curriculum, self.percentile, self.decay = curriculum, percentile, decay
        self.burn_in, self.gamma = burn_in, gamma
        self.fixed_after_burn_in = fixed_after_burn_in
        self.mentor = None
        if mentor is not None:
            from .mentor import read_mentor

            self.mentor = read_mentor(mentor)
        self.dropout_rates = rate_by_percent(example_dropout)
        self.num_samples, self.num_steps = num_samples, max(round(epochs * steps_per_epoch), 1)
        self.register_buffer("m", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        seed = torch.randint(2**62, ()) if any(self.dropout_rates) else torch.tensor(0)
        self.register_buffer("seed", seed)
        self.register_buffer("score", torch.zeros(num_samples))
        self._step, self._seed = 0, int(seed)  # the same, known without a look at the device

    def _load_from_state_dict(self, state, prefix, *arguments):
        super()._load_from_state_dict(state, prefix, *arguments)
        self._step, self._seed = int(self.steps), int(self.seed)

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        check_index(self, index, target, self.num_samples)
        losses = self.task_loss(output, target)
        with torch.no_grad():
            detached = losses.detach()
            if self.training:
                newest = nearest_percentile(detached, self.percentile).to(self.m.dtype)
                self.m.lerp_(newest, 1 - self.decay)
            excess = detached - self.m
            weights = self.weights(detached, excess)
            if self.training:
                spared = self._spared(len(losses))
                if spared is not None:
                    weights = weights * spared.to(weights, non_blocking=True)
                self._update(index, excess)
        return losses * weights

    def percent(self) -> int:
        """How much of the training counts as behind, in whole percent: 0 to 99."""
        last = min(self.burn_in, 99) if self.fixed_after_burn_in else 99
        return min(100 * self._step // self.num_steps, last)

    def weights(self, losses: Tensor, excess: Tensor) -> Tensor:
        """v [B] at the present step, without the random draw."""
        percent = self.percent()
        if percent < self.burn_in - 1:
            return torch.ones_like(losses)
        if self.mentor is not None:
            return self.mentor.weights(losses, excess, percent)
        return curriculum_weights(self.curriculum, losses, excess, percent, self.gamma)

    def num_spared(self, size: int) -> int:
        """How many samples of a batch the example dropout leaves at the present step."""
        return int(size * (1 - self.dropout_rates[self.percent()]))

    def _spared(self, size):
        """1 for the samples that keep their weight and 0 for the others, [B]; None: all keep it."""
        count = self.num_spared(size)
        if count == size:
            return None
        generator = torch.Generator().manual_seed(self._seed + self._step)
        chosen = torch.randperm(size, generator=generator)[:count]
        return torch.zeros(size).index_fill_(0, chosen, 1)

    def _update(self, index, excess):
        average = torch.lerp(excess.to(self.score.dtype), self.score[index], SCORE_DECAY)
        self.score.index_copy_(0, index, average)
        self.steps += 1
        self._step += 1

    def sample_score(self) -> Tensor:
        """The moving average of l - m, [N]."""
        return self.score


def curriculum_weights(
    curriculum: str, losses: Tensor, excess: Tensor, percent: int, gamma: float = 1.0
) -> Tensor:
    """v [B] from losses [B], how far they exceed m, [B], and the progress in percent."""
    if curriculum == "predefined":
        if percent <= 18:
            return torch.ones_like(losses)
        curriculum = "self_paced" if percent < 90 else "spcl_linear"
    if curriculum == "self_paced":
        return (excess <= 0).to(losses.dtype)
    if curriculum == "spcl_linear":
        return (1 - excess / gamma).clamp(0, 1)
    if curriculum == "hard":
        return (excess >= 0).to(losses.dtype)
    return torch.expm1(-losses).square()


def nearest_percentile(losses: Tensor, percentile: float) -> Tensor:
    """The one of the losses [B] that is nearest to this percentile, in [0, 1], by its rank."""
    position = (len(losses) - 1) * (1 - percentile)
    position = round(round(position, 9))  # the inner one: 15 (1 - 0.7) is 4.500000000000001
    return losses.sort(descending=True).values[position]


def rate_by_percent(stages: tuple[tuple[float, ...], ...]) -> list[float]:
    """The rate of each of 100 percent, from pairs of a rate and how many percent it holds for."""
    if not stages:
        return [0.0] * 100
    rates = []
    for stage in stages:
        if len(stage) != 2 or not 0 <= stage[0] < 1 or not 0 < stage[1] <= 100 or stage[1] % 1:
            raise UserError(
                "example_dropout holds pairs of a rate in [0, 1) and a whole number of percent, as "
                f"[[0.5, 17], [0.05, 83]], got {list(stage)}"
            )
        rates += [float(stage[0])] * int(stage[1])
    if len(rates) != 100:
        raise UserError(f"the percents of example_dropout must sum to 100, got {len(rates)}")
    return rates
