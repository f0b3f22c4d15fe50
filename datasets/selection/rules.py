"""Which samples a small loss vouches for: pure functions of recorded losses and labels.

Gui, Wang and Tian, "Towards Understanding Deep Learning from Noisy Labels with Small-Loss
Criterion", IJCAI 2021 (arXiv 2106.09291), and their code (github.com/guixianjin/RSL). The network
learns the majority of a class first, so within each given label, or in regression among all, a
sample with a smaller loss is more probably correct. RSL averages the loss over the epochs
(``mean``); the vanilla criterion takes that of one epoch (``epoch:<e>``).

Deviations from the authors' code: losses come from log-softmax in float32, where theirs take the
logarithm of a softmax, which is infinite from a gap of 104 on; ties are broken by position; counts
are exact unless ``counts="authors"``.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np

from datasets.noise import Noise
from datasets.noise_kinds import CIFAR10_MAP
from utils.detection import flag
from utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

KAPPA = -math.log(0.7)
# with probability r, any label: r (C - 1) / C are wrong
INCLUSIVE = ("symmetric_inclusive", "uniform", "permute", "label_permutation")
EXCLUSIVE = (  # r are wrong, in every class
    "symmetric",
    "symmetric_coteaching",
    "pair",
    "pair_coteaching",
    "pairwise",
    "none",
)


@dataclass
class Selection:
    """Trusted samples, class by class, each from the smallest loss on."""

    index: np.ndarray  # [K], positions in the training set
    weight: np.ndarray  # [K], in [exp(-kappa), 1]
    mean_loss: np.ndarray | None = None  # [N], what was ranked; NaN for held-out samples
    report: dict = field(default_factory=dict)  # for summary.json


def kept_proportion(noise_rate: float, beta: float = 0.2) -> float:
    """max(1 - (1 + beta) eta, (1 - beta) (1 - eta)) of a class of which eta are wrong.

    The first up to eta = 1/2. beta > 0 keeps less than the clean part, 1 - eta. Given Fractions, it
    is exact.

    Raises:
        UserError: noise_rate outside [0, 1), beta outside [0, 1).
    """
    if not 0 <= noise_rate < 1:
        raise UserError(f"the noise rate must lie in [0, 1), got {noise_rate}")
    if not 0 <= beta < 1:
        raise UserError(f"beta must lie in [0, 1), got {beta}")
    return max(1 - (1 + beta) * noise_rate, (1 - beta) * (1 - noise_rate))


def num_kept(
    kind: str,
    noise_rate: float | Sequence[float],
    class_sizes: Sequence[int],
    *,
    beta: float = 0.2,
    gamma_index: int = 1,
    counts: Literal["exact", "authors"] = "exact",
) -> np.ndarray:
    """How many samples of each given label to keep, [C].

    Args:
        kind: of the noise, as in datasets.noise (or the paper's "uniform" and "pairwise"). It says
            what part of each given label is wrong. "structured" (the CIFAR-10 map on balanced
            classes) and a ``noise_rate`` per class are *balanced* besides: with a_i = size x
            proportion, min(gamma min a, a_i) are kept, so that no class dominates.
        noise_rate: the kind's parameter r in [0, 1); or [C], the part of each given label that is
            wrong.
        class_sizes: [C]; uniform and pairwise noise: samples of each *true* class, as in the paper,
            of which (1 - eta) keep their label; otherwise: samples of each *given* label.
        gamma_index: picks gamma from 1, (1 + g) / 2 and g, where g = max a / min a.
        counts: "exact" arithmetic, rounded down; or "authors", whose floating-point numbers end one
            lower at times: of 4,500 at uniform noise 0.3, 3041 for 3042, and at 0.9, 683 for 684.

    Raises:
        UserError: a rate outside [0, 1), an unknown kind, a class that is left empty.
    """
    sizes, num_classes = [int(size) for size in class_sizes], len(class_sizes)
    number = _fraction if counts == "exact" else float
    beta = number(beta)
    if gamma_index not in (0, 1, 2):
        raise UserError(f"gamma_index must be 0, 1 or 2, got {gamma_index}")
    if np.ndim(noise_rate) == 0:
        kept_proportion(noise_rate)  # raises if it is out of range
        rate = number(noise_rate)
        if kind in (*INCLUSIVE, *EXCLUSIVE):
            wrong = rate * (1 - number(1) / num_classes) if kind in INCLUSIVE else rate
            return no_class_empty([int(size * kept_proportion(wrong, beta)) for size in sizes])
        rates = _structured_rates(kind, rate, num_classes)
    else:
        rates = [number(rate) for rate in noise_rate]
        if len(rates) != num_classes:
            raise UserError(
                f"noise_rate must be one number or one for each of the {num_classes} classes, got "
                f"{len(rates)}"
            )
    clean = [size * kept_proportion(rate, beta) for size, rate in zip(sizes, rates, strict=True)]
    no_class_empty([int(count) for count in clean])
    return no_class_empty(_balanced(clean, gamma_index, exact=counts == "exact"))


def _structured_rates(kind, rate, num_classes):
    """What part of each given label is wrong under structured noise, [C]."""
    if kind != "structured" or num_classes != 10:
        raise UserError(
            f"what part of each label noise of kind {kind!r} makes wrong among {num_classes} "
            f"classes is not known from its rate: give a rate per class, [C]"
        )
    sources, destinations = CIFAR10_MAP.keys(), CIFAR10_MAP.values()
    rates = []
    for label in range(10):
        if label not in destinations:
            rates.append(0)
        else:  # it gets r n samples, and loses as many if it moves itself
            rates.append(rate if label in sources else rate / (1 + rate))
    return rates


def _balanced(clean, gamma_index, exact):
    """How many of each class are kept if the largest are cut down to gamma times the smallest."""
    # the authors divide by 0.1, the size of their validation split, and multiply again
    scaled = clean if exact else [count / 0.1 for count in clean]
    largest = max(scaled) / min(scaled)
    limit = [1, (1 + largest) / 2, largest][gamma_index] * min(scaled)
    return [int(min(limit if exact else 0.1 * limit, count)) for count in clean]


def select(
    mean_losses: np.ndarray, targets: np.ndarray, num_kept: Sequence[int], kappa: float = KAPPA
) -> Selection:
    """The num_kept[c] smallest losses of each given label c, all of a label that has fewer.

    Weights are exp(-kappa t), with t the loss scaled to [0, 1] by the smallest and largest of *all*
    samples of its label.

    Args:
        mean_losses: [N], finite.
        targets: [N], given labels in [0, C).
        num_kept: [C].

    Raises:
        UserError: shapes that do not match, a loss that is not finite, kappa < 0, a class that is
            left empty.
    """
    mean_losses, targets = np.asarray(mean_losses, dtype=np.float64), np.asarray(targets)
    if mean_losses.ndim != 1 or mean_losses.shape != targets.shape:
        raise UserError(
            f"mean_losses and targets must be [N] both, got {list(mean_losses.shape)} and "
            f"{list(targets.shape)}"
        )
    if not np.isfinite(mean_losses).all():
        raise UserError(
            f"{(~np.isfinite(mean_losses)).sum()} of {len(mean_losses)} losses are not finite"
        )
    if kappa < 0:
        raise UserError(f"kappa must be at least 0, got {kappa}")
    order = np.argsort(mean_losses, kind="stable")
    order = order[np.argsort(targets[order], kind="stable")]  # class by class
    ends = np.searchsorted(targets[order], np.arange(len(num_kept) + 1))
    index, weight = [], []
    for label, count in enumerate(num_kept):
        members = order[ends[label] : ends[label + 1]]
        if min(len(members), count) < 1:
            raise EmptyClasses(
                f"class {{}} is left empty: {len(members)} samples have this label, {count} are to "
                f"be kept",
                [label],
            )
        low, high = mean_losses[members[0]], mean_losses[members[-1]]
        kept = members[:count]
        index.append(kept)
        spread = high - low if high > low else 1
        weight.append(np.exp(-kappa * (mean_losses[kept] - low) / spread))
    return Selection(np.concatenate(index), np.concatenate(weight))


def rank_losses(history: np.ndarray, criterion: str) -> np.ndarray:
    """One number a sample, [N], out of its recorded losses [E, N].

    Args:
        criterion: "mean", over all epochs; "mean:<k>", over the first k; "epoch:<e>", the loss of
            that epoch, from 0.

    Raises:
        UserError: an unknown criterion, or epochs beyond the recorded ones.
    """
    name, _, number = criterion.partition(":")
    if criterion != "mean" and (name not in ("mean", "epoch") or not number.isdecimal()):
        raise UserError(f"criterion must be mean, mean:<k> or epoch:<e>, got {criterion!r}")
    total = len(history)
    start = int(number) if name == "epoch" else 0
    stop = start + 1 if name == "epoch" else int(number or total)
    if not start < stop <= total:
        raise UserError(
            f"criterion {criterion} asks for epochs that are not among the {total} recorded ones"
        )
    return np.mean(history[start:stop], axis=0, dtype=np.float64)


def how_many(
    ranked: np.ndarray,
    noise: Noise,
    rows: np.ndarray,
    *,
    noise_rate: float | str | None = None,
    keep_fraction: float | None = None,
    beta: float = 0.2,
    gamma_index: int = 1,
    counts: str = "exact",
) -> tuple[np.ndarray, float | list[float] | None, str]:
    """How many samples to keep of each given label [C]; what part is wrong; how that is known.

    Args:
        ranked: the ranked losses of ``rows``, for an estimate. The others as for
            ``make_selection``, whose errors are these.
    """
    num_groups = noise.num_classes or 1
    given_sizes = np.bincount(noise.groups[rows], minlength=num_groups)
    options = {"beta": beta, "gamma_index": gamma_index, "counts": counts}
    if keep_fraction is not None:
        if noise_rate is not None:
            raise UserError(
                "keep_fraction says how many are kept, and so does noise_rate: give one of them"
            )
        if not 0 < keep_fraction <= 1:
            raise UserError(f"keep_fraction must lie in (0, 1], got {keep_fraction}")
        kept = [int(_fraction(keep_fraction) * int(size)) for size in given_sizes]
        return no_class_empty(kept), None, "not used"
    if noise_rate is not None:
        estimated = noise_rate == "estimate"
        rate = estimate_noise_rate(ranked) if estimated else noise_rate
        kept = num_kept("symmetric", rate, given_sizes, **options)
        return kept, rate, "estimated" if estimated else "given"
    if noise.corrupted is None:
        raise UserError(
            "noise_rate=null means that of the injected noise, and here the true labels are not "
            'known: set dataset.selection.noise_rate to a number or to "estimate", or set '
            "dataset.selection.keep_fraction"
        )
    came_noisy = noise.kind == "none" and noise.corrupted.any()
    if noise.kind in (*INCLUSIVE, *EXCLUSIVE) and noise.num_classes and not came_noisy:
        rate = noise.fraction * (1 - 1 / num_groups) if noise.kind in INCLUSIVE else noise.fraction
        true_sizes = np.bincount(noise.true[rows], minlength=num_groups)
        return num_kept(noise.kind, noise.fraction, true_sizes, **options), rate, "oracle"
    if noise.kind == "structured":
        kept = num_kept(noise.kind, noise.fraction, given_sizes, **options)
        return kept, noise.fraction, "oracle"
    # there is no formula: count
    wrong = np.bincount(noise.groups[rows][noise.corrupted[rows]], minlength=num_groups)
    rates = [
        Fraction(int(part), max(int(size), 1))
        for part, size in zip(wrong, given_sizes, strict=True)
    ]
    kept = num_kept(noise.kind, rates, given_sizes, **options)
    return kept, [float(rate) for rate in rates], "oracle"


def estimate_noise_rate(mean_losses: np.ndarray) -> float:
    """What part of the samples [N] belongs to the upper of two Gaussians.

    They are fitted to the logarithm of the mean losses, of which the lowest and highest 2.5 % are
    clipped before: losses have a long tail, which would get a Gaussian of its own. There are always
    two groups, so that clean labels are not recognised as clean; look at the figure of ``python -m
    datasets.selection`` if the truth is known, or else at samples.png, before trusting it.
    """
    logarithm = np.log(np.maximum(mean_losses, 1e-12))
    return float(flag(logarithm.clip(*np.percentile(logarithm, [2.5, 97.5]))).mean())


def quality(index: np.ndarray, rows: np.ndarray, noise: Noise) -> dict:
    """Precision and recall of a selection, overall and per given label [C].

    Precision: how many of the selected labels are correct; recall: how many of the correct ones are
    selected. None if there is none to count.
    """
    correct, num_groups = ~noise.corrupted, noise.num_classes or 1
    selected, right, hits = (
        np.bincount(noise.groups[part], minlength=num_groups)
        for part in (index, rows[correct[rows]], index[correct[index]])
    )
    return {
        "precision": hits.sum() / selected.sum(),
        "recall": hits.sum() / max(right.sum(), 1),
        "precision_per_class": _ratios(hits, selected),
        "recall_per_class": _ratios(hits, right),
    }


def _ratios(parts, wholes):
    return [part / whole if whole else None for part, whole in zip(parts, wholes, strict=True)]


def compare(
    history: np.ndarray, noise: Noise, rows: np.ndarray, kept: Sequence[int]
) -> "pd.DataFrame":
    """What the two criteria select after each epoch.

    A row for ``epoch:<e>`` (vanilla) and one for ``mean:<e + 1>`` (RSL).

    Args:
        kept: how many of each given label, [C].
    """
    import pandas as pd

    groups, total, table = noise.groups[rows], np.zeros(len(rows)), []
    for epoch, losses in enumerate(history):
        total += losses[rows]
        for rule, number, ranked in (
            ("epoch", epoch, losses[rows]),
            ("mean", epoch + 1, total / (epoch + 1)),
        ):
            index = rows[select(ranked, groups, kept).index]
            row = {"criterion": f"{rule}:{number}", "rule": rule, "epoch": epoch}
            table.append(row | quality(index, rows, noise))
    return pd.DataFrame(table)


def _fraction(number):
    """0.3 as 3/10, which a float only comes near."""
    return number if isinstance(number, Fraction) else Fraction(repr(float(number)))


class EmptyClasses(UserError):
    """Classes of which nothing would be kept.

    Args:
        text: the message, {} in it for the classes.
        labels: their numbers, or names.
    """

    def __init__(self, text: str, labels: Sequence[int | str]):
        super().__init__(text.format(", ".join(map(str, labels[:10]))))
        self.text, self.labels = text, labels


@contextlib.contextmanager
def with_names(classes: Sequence[str]):
    """Let errors about empty classes name them."""
    try:
        yield
    except EmptyClasses as error:
        labels = [classes[label] for label in error.labels] if classes else error.labels
        raise EmptyClasses(error.text, labels) from None


def no_class_empty(counts):
    empty = [label for label, count in enumerate(counts) if count < 1]
    if empty:
        text = "nothing would be kept of class {}: keep more, or merge small classes"
        raise EmptyClasses(text, empty)
    return np.asarray(counts, dtype=np.int64)
