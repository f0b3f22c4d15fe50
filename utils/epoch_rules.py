"""The rules by which papers choose the epoch whose test metric they report.

A rule is a function ``(test, validation, higher_is_better) -> epochs``, over whose values the mean
is taken, or None if it does not apply. To add a rule is to write that function and to name it in
``RULES``: reports compute it from the epochs of every run, old ones included.
"""

import math
from collections.abc import Sequence

import numpy as np


def last(test, validation, higher_is_better) -> Sequence[int]:
    """The last epoch: the rule that needs no choice."""
    return [len(test) - 1]


def mean_last_5(test, validation, higher_is_better) -> Sequence[int]:
    """The last five epochs, or all if there are fewer."""
    return range(max(0, len(test) - 5), len(test))


def mean_last_10(test, validation, higher_is_better) -> Sequence[int]:
    """The last ten epochs, or all if there are fewer: the rule of Co-teaching and JoCoR."""
    return range(max(0, len(test) - 10), len(test))


def best(test, validation, higher_is_better) -> Sequence[int]:
    """The epoch that is best on the test set itself, which flatters."""
    return [_first_best(test, higher_is_better)]


def validated(test, validation, higher_is_better) -> Sequence[int] | None:
    """The epoch that is best on a held-out part of the training set; None without such a part."""
    return None if validation is None else [_first_best(validation, higher_is_better)]


RULES = {rule.__name__: rule for rule in (last, mean_last_5, mean_last_10, best, validated)}


def apply_rules(
    test: Sequence[float],
    validation: Sequence[float] | None,
    higher_is_better: bool,
    values: Sequence[float] | None = None,
) -> dict[str, float | int | None]:
    """The test metric under every rule, and the ``best_epoch``; all None before the first epoch.

    Args:
        test, validation: a number per epoch; ``validation`` is None if nothing was held out.
        values: report these numbers instead, at the epochs that are chosen by the other two.

    A number that is NaN becomes None.
    """
    if not test:
        return dict.fromkeys((*RULES, "best_epoch"))
    shown = np.asarray(test if values is None else values, float)
    found = {}
    for name, rule in RULES.items():
        epochs = rule(test, validation, higher_is_better)
        mean = math.nan if epochs is None else float(np.mean(shown[list(epochs)]))
        found[name] = None if math.isnan(mean) else mean
    return found | {"best_epoch": _first_best(test, higher_is_better)}


def _first_best(values, higher_is_better):
    """The first position of the best value; NaN is worse than any."""
    values = np.asarray(values, float)
    signed = values if higher_is_better else -values
    return int(np.argmax(np.nan_to_num(signed, nan=-np.inf)))
