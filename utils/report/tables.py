"""Tables of texts: methods under every rule, by noise fraction, hard against incorrect; and notes.

The tables are made from those of ``comparison.compare_all`` and ``collect.Results.measured``.
"""

import itertools

import numpy as np
import pandas as pd

from utils.epoch_rules import RULES
from utils.errors import UserError
from utils.metrics import METRICS
from utils.report import published
from utils.report.collect import Results
from utils.report.comparison import compare_all, condition_of, conditions, differences
from utils.report.identity import CELL, NOISE_RATE, TABLE
from utils.report.render import Block, render, render_blocks
from utils.report.statistics import ALPHA, INTERVAL, difference_of_means, ranks, reversals

LISTED = 8  # methods: the order of more is that of the table
NAMED = 3  # pairs of methods: of more, only those whose order surely depends on the rule
HARD_COLUMNS = {  # column of Results.measured: heading, digits, whether it is shown in percent
    "auroc": ("AUROC", 4, False),
    "hard_vs_incorrect_auroc": ("AUROC, large losses", 4, False),
    "average_precision": ("average precision", 3, False),
    "mass_incorrect": ("gradient of incorrect", 1, True),
    "memorised_fraction": ("memorised", 1, True),
    "hard_test": ("hard test samples", 1, False),
}
NO_HARDNESS = (
    "Which test samples are hard is not known: that takes a finished run of Plain on the same "
    "dataset with the same network without noise among those that are read, e.g. "
    "main.py params/<dataset>/plain.yaml noise.kind=none"
)


def tables(
    results: Results,
    form: str,
    *,
    margins: dict[str, float | str] | None = None,
    hard: bool = False,
    grid_rule: str | None = None,
    against: str | None = None,
) -> str:
    """Everything that is printed of some runs.

    ``margins``: see ``compare_all``; ``hard``: hard against incorrect samples; ``grid_rule``: a
    column per noise fraction, by this rule, or, as csv, the rows of that rule; ``against``: see
    ``side_by_side``, and with both a column per noise, of differences.
    """
    if hard:
        return render_blocks(_hard_blocks(results), form)
    if grid_rule and against and form != "csv":
        return render_blocks(_grids_against(results, grid_rule, against), form)
    numbers = published.load()
    if results.axis != NOISE_RATE:
        numbers = numbers[:0]  # which are of noise rates
    table = compare_all(results, numbers, margins)
    if form == "csv":
        table = table[table["rule"] == grid_rule] if grid_rule else table
        table = table.rename(columns={"fraction": results.axis.removeprefix("noise.")})
        return render(table.drop(columns=["by_seed", "further"]), form)
    blocks = []
    for (dataset, noise, metric), rows in table.groupby(TABLE, sort=False):
        title = f"{dataset}, {METRICS[metric].heading}"
        if grid_rule is None:
            notes = order_notes(rows) + source_notes(rows)
            blocks.append(Block(title, noise, side_by_side(rows, against=against), notes))
        elif (rows["rule"] == grid_rule).any():
            shown = grid(rows, grid_rule, results.axis)
            blocks.append(Block(f"{title}, {grid_rule}", noise, shown, []))
    if grid_rule is not None and not blocks:
        raise UserError(f"--grid {grid_rule}: no run has it")
    return render_blocks(blocks, form)


def side_by_side(
    table: pd.DataFrame, whole: bool = False, against: str | None = None
) -> pd.DataFrame:
    """A row per cell: the rules side by side, the gap, the published number; best ``last`` first.

    Columns that say nothing here are left out, unless the ``whole`` is wanted. If there is a method
    to hold the others ``against``, the difference of ``last`` to it at the same noise, and its
    interval of confidence, paired by seed if both have the same seeds.
    """
    bases = table[(table.method == against) & (table["rule"] == "last")].set_index("fraction")
    rows = []
    for (fraction, _), cell in table.groupby(["fraction", "config"], sort=True):
        rank = cell.set_index("rule")["rank"].get("last", np.inf)
        rows.append((fraction, rank, _row(cell, bases, against)))
    rows.sort(key=lambda entry: entry[:2])
    shown = pd.DataFrame([row for *_, row in rows]).fillna("-")
    if whole:
        return shown
    sparse = {"validated", f"last, to {against}", "published", "difference", "verdict"}
    return shown[[name for name in shown if name not in sparse or (shown[name] != "-").any()]]


def _row(cell: pd.DataFrame, bases: pd.DataFrame, against: str | None) -> dict[str, str]:
    by_rule, first = cell.set_index("rule"), cell.iloc[0]
    row = {"fraction": f"{first.fraction:g}", "method": first.method, "n": str(cell.n.max())}
    for rule in RULES:
        known = rule in by_rule.index
        row[rule] = "-"
        if known:
            row[rule] = spread(by_rule["mean"][rule], by_rule["std"][rule])
            row[rule] += of_fewer(by_rule["n"][rule], cell.n.max())
    row["gap"] = f"{first.gap:.2f}".replace("-0.00", "0.00")
    if against is not None:
        row[f"last, to {against}"] = "-"
        both = first.fraction in bases.index and "last" in by_rule.index
        if both and first.method != against:
            difference = _difference(by_rule.loc["last"], bases.loc[first.fraction])
            row[f"last, to {against}"] = difference
    row |= _published(cell[cell.published.notna()])
    wrong, hours = first.realised, first.hours
    row["wrong labels"] = "unknown" if np.isnan(wrong) else f"{100 * wrong:.1f} %"
    named = f"{first.device}-hours" if first.device else "hours"
    row[named] = "-" if np.isnan(hours) else f"{hours:.2f}"
    return row


def _published(compared: pd.DataFrame) -> dict[str, str]:
    """The published numbers of a cell, and what they say of it."""
    if compared.empty:
        return {"published": "-", "difference": "-", "verdict": "-"}
    numbers = zip(compared.published, compared.published_rule, strict=True)
    differences = list(map(interval, compared.difference, compared.low, compared.high))
    shown = [f"{value:.2f} ({rule})" for value, rule in numbers]
    shown += [f"also {text}" for text in compared.also_published if text]
    return {
        "published": "; ".join(dict.fromkeys(shown)),
        "difference": _joined(compared["rule"], differences),
        "verdict": _joined(compared["rule"], compared.verdict),
    }


def _joined(rules, texts) -> str:
    """ "last: below; best: reproduced", or the text alone if it is the same for all rules."""
    if len(set(texts)) == 1:
        return next(iter(texts))
    return "; ".join(f"{rule}: {text}" for rule, text in zip(rules, texts, strict=True))


def _difference(own: pd.Series, other: pd.Series) -> str:
    """The difference of the means of two rows; if known, its interval, and by which test."""
    difference, half, test = difference_of_means(own.by_seed, other.by_seed)
    return _shown(difference, difference - half, difference + half, test)


def _shown(difference: float, low: float, high: float, test: str) -> str:
    return f"{interval(difference, low, high)} {test}".rstrip()


def grid(table: pd.DataFrame, rule: str, axis: str = NOISE_RATE) -> pd.DataFrame:
    """A row per method, a column per noise fraction: mean +- standard deviation (n seeds), or "-".

    The methods are in the order of their ranks at the fraction at which most were run. ``axis``:
    the key of the configuration that stands in the column fraction.
    """
    chosen = table[table["rule"] == rule]
    most = chosen.groupby("fraction").method.nunique().idxmax()
    order = chosen[chosen.fraction == most].set_index("method")["rank"].to_dict()
    rows = []
    for method in sorted(dict.fromkeys(table.method), key=lambda name: order.get(name, np.inf)):
        cells = chosen[chosen.method == method].set_index("fraction")
        row = {"method": method}
        for fraction in sorted(set(chosen.fraction)):
            text = "-"
            if fraction in cells.index:
                cell = cells.loc[fraction]
                text = f"{spread(cell['mean'], cell['std'])} ({cell.n})"
            row[f"{100 * fraction:g} %" if axis == NOISE_RATE else f"{axis}={fraction:g}"] = text
        rows.append(row)
    return pd.DataFrame(rows)


def _grids_against(results: Results, rule: str, against: str) -> list[Block]:
    """A row per method, a column per noise: the difference to one of them, with its interval.

    Below the last one stands where that one was not run.
    """
    found = differences(results, rule, against)
    if found.empty:
        raise UserError(f"--grid {rule} --against {against}: nothing was run beside it")
    blocks = []
    for (dataset, metric), rows in found.groupby(["dataset", "metric"], sort=False):
        texts = map(_shown, rows.difference, rows.low, rows.high, rows.test)
        cells = rows.assign(text=list(texts)).groupby(["method", "condition"]).text.first()
        cells = cells.unstack().fillna("-")
        shown = cells.loc[rows.method.unique(), conditions(rows)].reset_index()
        title = f"{dataset}, {METRICS[metric].heading}, {rule} less that of {against}"
        blocks.append(Block(title, "", shown, [], f"in brackets the {INTERVAL}"))
    keys = ["dataset", "noise", "fraction"]
    known = set(found[keys].itertuples(index=False, name=None))
    run = dict.fromkeys(results.table[keys].itertuples(index=False, name=None))
    missing = [f"{key[0]}, {condition_of(*key[1:])}" for key in run if key not in known]
    if missing:
        blocks[-1].notes.append(f"Without {against}, and so not here: {'; '.join(missing)}")
    return blocks


def spread(mean: float, std: float, digits: int = 2) -> str:
    """ "98.45 +- 0.12", or the number alone if there is one seed, "-" if there is none."""
    if np.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if np.isnan(std) else f" +- {std:.{digits}f}")


def of_fewer(count: int, n: int) -> str:
    """ " (3)" after a number that is of three of ``n`` runs."""
    return f" ({count})" if 0 < count < n else ""


def interval(difference: float, low: float, high: float) -> str:
    """The difference with its interval of confidence, as far as there is one."""
    if np.isnan(difference):
        return "-"
    if np.isnan(low):
        return _signed(difference)
    return f"{_signed(difference)} [{_signed(low)}, {_signed(high)}]"


def _signed(value):
    return f"{round(value, 2) + 0:+.2f}"  # + 0: no -0.00


def order_notes(table: pd.DataFrame) -> list[str]:
    """Methods that learned nothing; the order under each rule, and the pairs that change in it."""
    notes = []
    unlearned = table[(table["rule"] == "last") & (table.learned_nothing > 0)]
    for row in unlearned.itertuples():
        notes.append(
            f"Learned nothing, by its training labels or the order of its suspects: {row.method} "
            f"at {row.fraction:g}, {row.learned_nothing} of {row.n} runs"
        )
    for fraction, rows in table.groupby("fraction"):
        if rows.method.nunique() < 2:
            continue
        higher_is_better = METRICS[rows.metric.iloc[0]].higher_is_better
        means = {
            rule: dict(zip(part.method, part["mean"], strict=True))
            for rule, part in rows.groupby("rule", sort=False)
        }
        if rows.method.nunique() <= LISTED:
            notes.append(f"Order at {fraction:g} {_orders(means, higher_is_better)}")
        changes = _changes(rows, means, higher_is_better)
        if changes:
            notes.append(f"Depends on the rule at {fraction:g}: {'; '.join(changes)}")
    return notes


def _orders(means, higher_is_better) -> str:
    """ "by last, mean_last_5: GCE > Plain; by best: Plain > GCE"; equal means: "GCE = Plain"."""
    rules_of_order = {}
    for rule, values in means.items():
        rank = ranks(values, higher_is_better)
        order = itertools.groupby(sorted(rank, key=rank.get), key=rank.get)
        names = " > ".join(" = ".join(equal) for _, equal in order)
        rules_of_order.setdefault(names, []).append(rule)
    return "; ".join(f"by {', '.join(rules)}: {order}" for order, rules in rules_of_order.items())


def _changes(rows, means, higher_is_better) -> list[str]:
    """The pairs of methods whose order depends on the rule, and how many are not worth a name."""
    pairs = reversals(means, higher_is_better)
    values = {(row.rule, row.method): row.by_seed for row in rows.itertuples()}
    texts = []
    for first, second, rule, other in pairs:
        doubt = _doubt(values, first, second, (rule, other))
        if not doubt or len(pairs) <= NAMED:
            before = f"{means[rule][first]:.2f}, {means[rule][second]:.2f}"
            after = f"{means[other][first]:.2f}, {means[other][second]:.2f}"
            texts.append(
                f"{first} before {second} by {rule} ({before}), "
                f"after it by {other} ({after}){doubt}"
            )
    unnamed = len(pairs) - len(texts)
    if unnamed:
        texts.append(f"{unnamed} pairs, within the spread of the seeds or of too few")
    return texts


def _doubt(values, first, second, rules) -> str:
    """ "" if the two differ under both rules by more than their seeds let expect.

    ``values``: (rule, method) -> by seed.
    """
    for rule in rules:
        own, other = values[rule, first], values[rule, second]
        if min(len(own), len(other)) < 2:
            return ", of too few seeds"
        difference, half, _ = difference_of_means(own, other)
        if abs(difference) <= half:
            return ", within the spread of the seeds"
    return ""


def source_notes(table: pd.DataFrame) -> list[str]:
    """Where the published numbers are from, and what the verdicts mean."""
    compared = table[table.published.notna()]
    keys = ["source", "convention", "selected", "confidence"]
    sources = [*compared[keys].to_dict("records"), *itertools.chain(*compared.further)]
    notes = []
    for source, convention, *rest in dict.fromkeys(tuple(source.values()) for source in sources):
        parts = (f"noise: {convention}", *rest)
        notes.append(f"Published: {source}; {'; '.join(part for part in parts if part)}")
    margins = sorted(set(compared.margin.dropna()))
    if margins:
        several = f" to {margins[-1]:.3g}" if len(margins) > 1 else ""
        notes.append(
            f"Verdicts: TOST at {100 * ALPHA:g} %, margin {margins[0]:.3g}{several}; "
            f"in brackets the {INTERVAL} of the difference"
        )
    if (compared.also_published != "").any():
        notes.append(
            "Of several published numbers of one cell, the columns difference and verdict are of "
            "the first: the one that states most of its parameters, and of these the one of most "
            "seeds; the others have theirs beside them"
        )
    return notes


def hard_table(measured: pd.DataFrame) -> pd.DataFrame:
    """A row per cell: how far hard and incorrect samples are told apart.

    docs/reports.md has the columns. The last column is the hash of its configuration.
    """
    rows = []
    for (_, _, fraction, config), cell in measured.groupby(CELL, sort=False):
        row = {"fraction": f"{fraction:g}", "method": cell.label.iloc[0], "n": str(len(cell))}
        for column, (heading, digits, percent) in HARD_COLUMNS.items():
            values, factor = cell[column].dropna().astype(float), 100 if percent else 1
            row[heading] = spread(factor * values.mean(), factor * values.std(), digits)
            if percent and not values.empty:
                row[heading] += " %"
            row[heading] += of_fewer(len(values), len(cell))
        rows.append((fraction, row | {"config": config}))
    return pd.DataFrame([row for _, row in sorted(rows, key=lambda entry: entry[0])])


def _hard_blocks(results):
    blocks = []
    for (dataset, noise, _), part in results.measured.groupby(TABLE, sort=False):
        notes = [] if part.hard_test.notna().any() else [NO_HARDNESS]
        blocks.append(Block(dataset, noise, hard_table(part).drop(columns="config"), notes))
    return blocks
