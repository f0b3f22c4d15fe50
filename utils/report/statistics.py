"""Verdicts on published numbers, the order of methods, and where it depends on the rule."""

import itertools
import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes ten times as long to import

ALPHA = 0.05  # of each of the two one-sided tests: the interval is one of 1 - 2 ALPHA
INTERVAL = f"{100 - 200 * ALPHA:g} % interval"
ENOUGH = 3  # seeds: two may agree by chance, to the last digit
TOO_FEW = "too few seeds to tell"


class Comparison(NamedTuple):
    """Reproduced minus published: the means, the interval of confidence 1 - 2 ALPHA, a verdict."""

    difference: float
    low: float
    high: float
    verdict: str


def compare(
    values: list[float],
    published: float,
    margin: float,
    std: float | None = None,
    n: int | None = None,
) -> Comparison:
    """Hold the runs of some seeds against a published number.

    Two one-sided t tests (TOST): "reproduced" if both reject that the difference is ``margin`` or
    more, up or down, at ALPHA. Otherwise "above" or "below" if the difference is not zero (0
    outside the interval), else "too few seeds to tell", as with fewer than three. A difference may
    be both other than zero and within the margin: that is reproduced.

    The published number is taken as exact, or, if its own ``std`` (ddof 1) and ``n`` > 1 are given,
    as the mean of a sample: Welch's degrees of freedom.

    Raises:
        ValueError: there are no values, or the margin is not positive.
    """
    if not len(values) or not margin > 0:
        raise ValueError(
            "compare needs at least one value and a margin greater than 0, "
            f"got {values} and {margin}"
        )
    difference = float(np.mean(values) - published)
    if len(values) < 2:
        return Comparison(difference, math.nan, math.nan, TOO_FEW)
    half = half_interval(float(np.std(values, ddof=1)), len(values), std, n)
    low, high = difference - half, difference + half
    if len(values) < ENOUGH:
        verdict = TOO_FEW
    elif -margin < low and high < margin:
        verdict = "reproduced"
    else:
        verdict = "above" if low > 0 else "below" if high < 0 else TOO_FEW
    return Comparison(difference, low, high, verdict)


def half_interval(
    std: float, n: int, other_std: float | None = None, other_n: int | None = None
) -> float:
    """Half the interval of confidence 1 - 2 ALPHA of the difference of two means (Welch).

    The other mean counts as exact if its standard deviation (ddof 1) is not known, or its n is not
    above 1.
    """
    own, other = std**2 / n, 0.0
    if other_std is not None and other_n is not None and other_n > 1:
        other = other_std**2 / other_n
    variance = own + other
    if variance == 0:
        return 0.0
    own, other = own / variance, other / variance  # shares, whose squares do not underflow
    freedom = 1 / (own**2 / (n - 1) + (other**2 / (other_n - 1) if other else 0))
    return float(stdtrit(freedom, 1 - ALPHA)) * math.sqrt(variance)


def difference_of_means(
    own: Mapping[Hashable, float], other: Mapping[Hashable, float]
) -> tuple[float, float, str]:
    """The difference of two means, half its interval of confidence 1 - 2 ALPHA, and the test.

    Runs of one seed share their labels, initial parameters and order of samples. If both have the
    same seeds, the interval is that of the differences by seed ("paired"), else Welch's. It is NaN,
    and the test "", if one of them has a single seed.

    ``own``, ``other``: seed, or what else makes a pair, -> value.
    """
    mine, theirs = np.array(list(own.values())), np.array(list(other.values()))
    difference = float(mine.mean() - theirs.mean())
    if min(len(mine), len(theirs)) < 2:
        return difference, math.nan, ""
    if set(own) == set(other):
        by_seed = [own[seed] - other[seed] for seed in own]
        return difference, half_interval(float(np.std(by_seed, ddof=1)), len(by_seed)), "paired"
    stds = [float(np.std(values, ddof=1)) for values in (mine, theirs)]
    return difference, half_interval(stds[0], len(mine), stds[1], len(theirs)), "Welch"


def ranks(means: Mapping[str, float], higher_is_better: bool) -> dict[str, int]:
    """Name -> rank, 1 the best.

    Equal means share the better rank. Names whose mean is NaN have none.
    """
    sign = 1 if higher_is_better else -1
    signed = {name: sign * value for name, value in means.items() if not math.isnan(value)}
    return {
        name: 1 + sum(other > value for other in signed.values()) for name, value in signed.items()
    }


def reversals(
    means: Mapping[str, Mapping[str, float]], higher_is_better: bool
) -> list[tuple[str, str, str, str]]:
    """The pairs whose order depends on the rule: (better, worse, rule, other rule), as by ``rule``.

    ``means``: rule -> name -> mean. Of each pair the first two rules, in their order, that
    contradict each other.
    """
    ranked = {rule: ranks(values, higher_is_better) for rule, values in means.items()}
    names = dict.fromkeys(itertools.chain.from_iterable(ranked.values()))
    pairs = []
    for first, second in itertools.combinations(names, 2):
        signs = [
            (rule, np.sign(rank[second] - rank[first]))
            for rule, rank in ranked.items()
            if first in rank and second in rank
        ]
        for (rule, sign), (other, opposite) in itertools.combinations(signs, 2):
            if sign * opposite < 0:
                ordered = (first, second) if sign > 0 else (second, first)
                pairs.append((*ordered, rule, other))
                break
    return pairs
