"""Rules, verdicts and ranks, checked against scipy and statsmodels, and by hand."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from utils.epoch_rules import apply_rules
from utils.report.statistics import (
    ALPHA,
    TOO_FEW,
    compare,
    difference_of_means,
    ranks,
    reversals,
)

SEEDS = {
    "near": [98.61, 98.70, 98.66, 98.59, 98.72],
    "above": [99.4, 99.5, 99.6, 99.3, 99.5],
    "below": [97.1, 97.3, 97.2],
    "spread": [97.0, 99.5, 98.9],
}


def test_epochs_by_rule_if_higher_is_better():
    values, validation = [50.0, 90, 60, 90, 70, 80, 85], [10.0, 20, 30, 30, 25, 5, 1]
    assert apply_rules(values, validation, True) == {
        "last": 85,
        "mean_last_5": 77,
        "mean_last_10": 75,
        "best": 90,
        "best_epoch": 1,
        "validated": 60,
    }
    assert apply_rules(values, None, True)["validated"] is None
    assert apply_rules([40.0, 20], None, True)["mean_last_5"] == 30  # of fewer than five, all
    assert apply_rules([40.0, *range(10)], None, True)["mean_last_10"] == 4.5


def test_epochs_by_rule_if_lower_is_better():
    assert apply_rules([5.0, 2, 3, 2, 6, 7], [9.0, 8, 1, 7, 1, 6], False) == {
        "last": 7,
        "mean_last_5": 4,
        "mean_last_10": 25 / 6,
        "best": 2,
        "best_epoch": 1,
        "validated": 3,
    }


def test_another_metric_is_reported_at_the_epochs_of_the_first():
    assert apply_rules([50.0, 90, 60], [1.0, 2, 3], True, values=[7.0, 8, 9]) == {
        "last": 9,
        "mean_last_5": 8,
        "mean_last_10": 8,
        "best": 8,
        "best_epoch": 1,
        "validated": 9,
    }
    # NaN, for which JSON has no word
    assert apply_rules([50.0, 90], None, True, values=[7.0, math.nan])["best"] is None


def test_an_epoch_without_a_number_is_never_the_best():
    assert apply_rules([math.nan, 5.0, 2, math.nan], [1.0, math.nan, 3, 2], False) == {
        "last": None,
        "mean_last_5": None,
        "mean_last_10": None,
        "best": 2,
        "best_epoch": 2,
        "validated": None,
    }
    assert apply_rules([50.0, math.nan], None, True)["best"] == 50
    assert apply_rules([math.nan] * 2, None, True)["best"] is None


@pytest.mark.parametrize("validation", [None, []])
def test_before_the_first_epoch_no_rule_says_anything(validation):
    assert apply_rules([], validation, True) == dict.fromkeys(
        ("last", "mean_last_5", "mean_last_10", "best", "best_epoch", "validated")
    )


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("margin", [0.05, 0.2, 0.5, 2.0])
def test_tost_against_an_exact_number_is_that_of_statsmodels(name, margin):
    values, published = SEEDS[name], 98.64
    result = compare(values, published, margin)
    p_value, *_ = DescrStatsW(values).ttost_mean(published - margin, published + margin)
    assert (result.verdict == "reproduced") == (p_value < ALPHA)
    low, high = stats.ttest_1samp(values, published).confidence_interval(1 - 2 * ALPHA)
    assert (result.low, result.high) == pytest.approx((low - published, high - published))
    assert result.difference == pytest.approx(np.mean(values) - published)
    if result.verdict != "reproduced":  # else what a two-sided test says at the same level
        differs = stats.ttest_1samp(values, published).pvalue < 2 * ALPHA
        side = "above" if result.difference > 0 else "below"
        assert result.verdict == (side if differs else TOO_FEW)


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("margin", [0.2, 0.5, 2.0])
def test_tost_against_a_sampled_number_is_welchs(name, margin):
    values, other = SEEDS[name], [98.2, 98.7, 98.4, 98.9]
    result = compare(values, np.mean(other), margin, np.std(other, ddof=1), len(other))
    both = CompareMeans(DescrStatsW(values), DescrStatsW(other))
    p_value, *_ = both.ttost_ind(-margin, margin, usevar="unequal")
    assert (result.verdict == "reproduced") == (p_value < ALPHA)
    interval = both.tconfint_diff(2 * ALPHA, usevar="unequal")
    assert (result.low, result.high) == pytest.approx(interval)


def test_verdicts_by_hand():
    result = compare([98.0, 98.2], 98.1, 2.0)
    assert result.verdict == TOO_FEW  # of two seeds, whatever they say
    assert result.high == pytest.approx(0.1 * 6.3138, rel=1e-4)
    # the interval is 0 +- 0.0577 * 2.92
    assert compare([98.0, 98.2, 98.1], 98.1, 0.2).verdict == "reproduced"
    assert compare([98.0, 98.2, 98.1], 98.1, 0.1).verdict == TOO_FEW
    assert compare([99.0, 99.1, 99.2], 98.1, 0.5).verdict == "above"
    assert compare([5.0, 5.1, 5.2], 9, 0.5).verdict == "below"
    result = compare([98.5], 98.1, 0.5)
    assert result.verdict == TOO_FEW and math.isnan(result.low)
    assert result.difference == pytest.approx(0.4)
    assert compare([98.0] * 3, 98.0, 0.1) == (0, 0, 0, "reproduced")  # nothing varies
    assert compare([98.0] * 3, 97.0, 0.1).verdict == "above"
    # not zero, and within the margin
    assert compare([98.2, 98.21, 98.22], 98.1, 0.5).verdict == "reproduced"


@pytest.mark.parametrize(("values", "margin"), [([], 0.5), ([98.0], 0.0), ([98.0], -1)])
def test_nothing_to_compare_is_an_error(values, margin):
    with pytest.raises(ValueError, match="at least one value and a margin"):
        compare(values, 98, margin)


def test_ranks():
    means = {"a": 97.0, "b": 98.0, "c": 98.0, "d": math.nan, "e": 96.0}
    assert ranks(means, True) == {"a": 3, "b": 1, "c": 1, "e": 4}
    assert ranks(means, False) == {"a": 2, "b": 3, "c": 3, "e": 1}


def test_the_pairs_whose_order_changes_with_the_rule():
    means = {
        "last": {"plain": 69, "gce": 95, "discrim": 94, "super": 68},
        "mean_last_5": {"plain": 68, "gce": 94, "discrim": 95, "super": 67},
        "best": {"plain": 94, "gce": 96, "discrim": 97, "super": 95},
    }
    assert reversals(means, True) == [
        ("plain", "super", "last", "best"),
        ("gce", "discrim", "last", "mean_last_5"),
    ]
    assert reversals(means, False) == [
        ("super", "plain", "last", "best"),
        ("discrim", "gce", "last", "mean_last_5"),
    ]
    tie = {"last": {"a": 1.0, "b": 1.0}, "best": {"a": 2.0, "b": 1.0}, "validated": {"b": 1.0}}
    assert reversals(tie, True) == []


def test_runs_of_the_same_seeds_are_compared_in_pairs():
    own, other = [98.6, 98.9, 98.7, 98.1], [98.3, 98.6, 98.5, 97.7]
    difference, half, test = difference_of_means(
        dict(enumerate(own)), dict(reversed(list(enumerate(other))))
    )
    low, high = stats.ttest_rel(own, other).confidence_interval(1 - 2 * ALPHA)
    assert test == "paired" and difference == pytest.approx(0.3)
    assert (difference - half, difference + half) == pytest.approx((low, high))
    # other seeds, or one more: there are no pairs of all
    for shift, values in ((1, other), (0, other[:3])):
        seeds = {seed + shift: value for seed, value in enumerate(values)}
        difference, half, test = difference_of_means(dict(enumerate(own)), seeds)
        welch = stats.ttest_ind(own, values, equal_var=False).confidence_interval(1 - 2 * ALPHA)
        assert test == "Welch"
        assert (difference - half, difference + half) == pytest.approx(welch)
    difference, half, test = difference_of_means({1: 98.0}, {1: 97.0})
    assert (difference, test) == (1.0, "") and math.isnan(half)
