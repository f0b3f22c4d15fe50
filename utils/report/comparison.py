"""Every rule for the epoch beside the published number, with a verdict: a row per cell and rule."""

import numpy as np
import pandas as pd

from utils.epoch_rules import RULES
from utils.metrics import METRICS, Metric
from utils.report import published
from utils.report.collect import Results
from utils.report.identity import CELL, TABLE, different_data
from utils.report.run_files import LEARNED
from utils.report.statistics import compare, difference_of_means, ranks

COLUMNS = (
    "dataset",
    "noise",
    "fraction",
    "method",
    "rule",
    "n",
    "mean",
    "std",
    "published",
    "published_rule",
    "source",
    "difference",
    "verdict",
    "low",
    "high",
    "rank",
    "gap",
    "realised",
    "hours",
    "device",
    "metric",
    "margin",
    "config",
    "convention",
    "selected",
    "confidence",
    "also_published",
    "learned_nothing",
)


def compare_all(
    results: Results, numbers: pd.DataFrame, margins: dict[str, float | str] | None = None
) -> pd.DataFrame:
    """A row per cell and rule; a cell is what differs only in the seed.

    The columns are COLUMNS, ``by_seed``, the values themselves, and ``further``, the sources of
    the numbers in ``also_published``.

    Cells of it are empty if a rule has no number, there is none to compare with, or the published
    one is of another rule. ``margins``: by the name of a metric, instead of its own.
    """
    rows, data = [], different_data(results.table, results.configs)
    for (*_, config), runs in results.table.groupby(CELL, sort=False):
        metric = METRICS[runs.metric.iloc[0]]
        margin = (margins or {}).get(metric.name, metric.margin)
        alike = published.matches(numbers, cell_of(runs), results.configs[config])
        shared = _shared(runs, metric)
        for rule in RULES:
            by_seed = _by_seed(runs, rule, data)
            values = list(by_seed.values())
            if values:
                spread = np.std(values, ddof=1) if len(values) > 1 else np.nan
                row = {"rule": rule, "n": len(values), "mean": np.mean(values), "std": spread}
                row |= {"by_seed": by_seed} | _verdict(rule, values, alike, margin)
                rows.append(shared | row)
    table = pd.DataFrame(rows, columns=[*COLUMNS, "by_seed", "further"])
    for (*_, metric, _, _), group in table.groupby([*TABLE, "fraction", "rule"], sort=False):
        means = dict(zip(group.index, group["mean"], strict=True))
        order = ranks(means, METRICS[metric].higher_is_better)
        table.loc[group.index, "rank"] = [order[index] for index in group.index]
    return table


def _by_seed(runs: pd.DataFrame, rule: str, data: dict[str, str | None]) -> dict[tuple, float]:
    """(seed, data) -> value, as far as it is known: the same seed on other data is no pair.

    ``data``: as from ``different_data``.
    """
    known = runs[runs[rule].notna()]
    pairs = zip(known.seed, known.config.map(data), strict=True)
    return dict(zip(pairs, known[rule].astype(float), strict=True))


def differences(results: Results, rule: str, against: str) -> pd.DataFrame:
    """How far the methods are from one of them at the same noise, by one rule for the epoch.

    A row per dataset, metric, method and noise at which both were run: the difference of the means
    and its interval, low to high, and by which test (see ``difference_of_means``). The methods
    stand in the order of their mean difference, the best first, which is no ranking where they
    were run under different noises.

    ``against``: a label of the table.
    """
    runs, rows = results.table, []
    data = different_data(runs, results.configs)
    for key, group in runs[runs[rule].notna()].groupby([*TABLE, "fraction"], sort=False):
        _, noise, _, fraction = key
        by_label = {
            label: _by_seed(own, rule, data) for label, own in group.groupby("label", sort=False)
        }
        base = by_label.pop(against, None)
        for label, by_seed in by_label.items() if base else ():
            difference, half, test = difference_of_means(by_seed, base)
            span = (difference, difference - half, difference + half, test)
            rows.append((*key, condition_of(noise, fraction), label, *span))
    numbers = ["difference", "low", "high", "test"]
    shown = pd.DataFrame(rows, columns=[*TABLE, "fraction", "condition", "method", *numbers])
    gain = shown.difference * shown.metric.map(lambda name: METRICS[name].sign)
    mean = gain.groupby([shown.dataset, shown.metric, shown.method]).transform("mean")
    shown = shown.assign(mean=-mean).sort_values(["dataset", "metric", "mean"], kind="stable")
    return shown.drop(columns="mean").reset_index(drop=True)


def conditions(found: pd.DataFrame) -> list[str]:
    """The noises of ``differences``, in words and in order."""
    return list(found.sort_values(["noise", "fraction"]).condition.unique())


def condition_of(noise: str, fraction: float) -> str:
    """What noise, in words: "permute 40 %"; labels that people gave, or of a file, have no rate."""
    if noise == "none" or noise.startswith(("human:", "file:")):
        return noise
    return f"{noise} {100 * fraction:g} %"


def cell_of(runs: pd.DataFrame) -> dict:
    """By what the published numbers of a cell are looked up, from its runs."""
    return runs.iloc[0][["dataset", "noise", "fraction", "method", "metric"]].to_dict()


def _shared(runs: pd.DataFrame, metric: Metric) -> dict:
    """What the rows of all rules have in common."""
    return cell_of(runs) | {
        "method": runs.label.iloc[0],
        "config": runs.config.iloc[0],
        "gap": metric.sign * (runs.best - runs["last"]).mean(),
        "realised": runs.realised.astype(float).mean(),
        "learned_nothing": int((runs[LEARNED].astype(float) == 0).sum()),
        **_cost(runs),
    }


def _cost(runs: pd.DataFrame) -> dict:
    """The hours of training of all runs together, and of what device they are.

    The device is "" if that is not known, or not the same for all; the hours are NaN if those of
    one run are not known.
    """
    hours, devices = runs.seconds * runs.processes / 3600, set(runs.device)
    total = hours.sum(skipna=False)
    if len(devices) > 1 or not all(isinstance(name, str) for name in devices):
        return {"hours": total, "device": ""}
    if devices != {"cpu"}:
        return {"hours": total, "device": "GPU"}
    if runs.threads.isna().any():
        return {"hours": total, "device": ""}
    return {"hours": (hours * runs.threads.astype(float)).sum(skipna=False), "device": "CPU"}


def _verdict(rule: str, values: list[float], matches: list[tuple], margin: float | str) -> dict:
    """What the first published number of this rule, or of an unknown one, says of these values.

    Numbers of the same protocol are preferred; without any, the most alike one is shown alone.
    ``also_published``: the further numbers of the same protocol that this rule is held against,
    each with how it was chosen, the difference to it and its own verdict.
    """
    same = [(number, different) for number, different in matches if not different]
    comparable = [
        (number, different)
        for number, different in same or matches[:1]
        if rule in published.COMPARED.get(number["rule"], ())
    ]
    for number, different in comparable[:1]:
        row = {
            "published": number.value,
            "published_rule": number["rule"],
            "also_published": "",
            "further": [],
            **_source(number),
        }
        if different:
            return row | {"verdict": f"not compared: there {', '.join(different)}"}
        also = []
        for other, _ in comparable[1:]:
            difference, _, _, verdict = _compared(values, other, margin)
            also.append(f"{published.in_words(other)}: {difference:+.2f}, {verdict}")
        difference, low, high, verdict = _compared(values, number, margin)
        row["also_published"] = "; ".join(dict.fromkeys(also))
        row["further"] = [_source(other) for other, _ in comparable[1:]]
        row |= {"difference": difference, "low": low, "high": high, "verdict": verdict}
        return row | {"margin": absolute(margin, number.value)}
    return {}


def _source(number: pd.Series) -> dict[str, str]:
    """Where a published number is from, and how it was made and read."""
    return {
        "source": f"{number.paper}; {number.source}",
        "convention": number.convention,
        "selected": number.selected,
        "confidence": number.confidence,
    }


def _compared(
    values: list[float], number: pd.Series, margin: float | str
) -> tuple[float, float, float, str]:
    """The difference to a published number, its interval, low and high, and the verdict."""
    sample = (number["std"], int(number.n)) if published.is_sample(number) else ()
    return compare(values, number.value, absolute(margin, number.value), *sample)


def absolute(margin: float | str, value: float) -> float:
    """A margin in units of the metric: "5%" is of the published value."""
    return abs(value) * float(margin[:-1]) / 100 if isinstance(margin, str) else margin
