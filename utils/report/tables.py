"""Finished runs as tables: every epoch rule side by side, and beside them the published number."""

import argparse
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from utils.epoch_rules import RULES
from utils.errors import UserError
from utils.report import published
from utils.report.collect import CELL, Runs
from utils.report.statistics import ALPHA, compare, half_interval, ranks, reversals

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
)
LISTED = 8  # methods: the order of more is that of the table
NAMED = 3  # pairs of methods: of more, only those whose order surely depends on the rule
TABLE = ["dataset", "noise", "metric"]  # what the rows of one table share
MARGINS = {"accuracy": 0.5, "mae": "5%"}
METRIC_NAMES = {"accuracy": "accuracy (%)", "mae": "MAE"}
HARD_COLUMNS = {
    "auroc": "AUROC",
    "hard_vs_incorrect_auroc": "AUROC, large losses",
    "average_precision": "average precision",
    "mass_incorrect": "gradient of incorrect",
    "memorised_fraction": "memorised",
    "hard_test": "hard test samples",
}
NO_HARDNESS = (
    "Which test samples are hard is not known: that takes a finished run of Plain on the same dataset with the same "
    "network without noise among those that are read, e.g. main.py params/<dataset>/plain.yaml noise.kind=none"
)


def choose(runs: Runs, name: str | None, condition: str | None = None) -> Runs:
    """The runs of one table: those of a dataset, or, for "rsl", all on the data and noise on which
    samples were selected; of those, the ones for which a condition holds.

    Raises ValueError, naming the tables there are, where it has none.
    """
    if name is None or runs.table.empty:
        return replace(runs, table=where(runs.table, condition))
    table = runs.table
    selecting = table.method.str.contains(r"^(?:RSL|small-loss)")
    noises = table[["dataset", "noise", "fraction"]].apply(tuple, axis=1)
    chosen = noises.isin(noises[selecting]) if name == "rsl" else table.dataset == name
    if not chosen.any():
        tables = [*dict.fromkeys(table.dataset), *(["rsl"] if selecting.any() else [])]
        raise UserError(
            f"there is no finished run for the table {name!r}; there are some for {', '.join(tables)}"
        )
    return replace(runs, table=where(table[chosen], condition))


def where(table: pd.DataFrame, condition: str | None) -> pd.DataFrame:
    """The rows for which a condition on columns holds, as pandas' ``eval`` reads it.

    Raises ValueError where it cannot be read, or no row is left.
    """
    if condition is None or table.empty:
        return table
    try:
        mask = table.eval(condition)
    except Exception as error:  # whatever a text in the place of an expression may raise
        raise UserError(
            f"--where {condition!r}: {error}; the columns are {', '.join(table)}"
        ) from error
    if not isinstance(mask, pd.Series) or mask.dtype != bool:
        raise UserError(
            f"--where {condition!r} is no condition; one is \"fraction == 0.4 and method != 'GCE'\""
        )
    if not mask.any():
        raise UserError(f"--where {condition!r}: there is no such row")
    return table[mask]


def compare_all(runs: Runs, numbers: pd.DataFrame, margins: dict[str, float | str]) -> pd.DataFrame:
    """A row per cell and rule, with the columns COLUMNS: a cell is what differs in nothing but the
    seed.

    Empty cells where a rule has no number, there is none to compare with, or the published one is
    of another rule.
    """
    rows = []
    for (dataset, noise, fraction, config), runs_of in runs.table.groupby(CELL, sort=False):
        first = runs_of.iloc[0]
        cell = {
            "dataset": dataset,
            "noise": noise,
            "fraction": fraction,
            "method": first.method,
            "metric": first.metric,
        }
        found = published.matches(numbers, cell, runs.configs[config])
        sign = 1 if first.metric == "accuracy" else -1
        shared = cell | {
            "method": first.label,
            "config": config,
            "gap": sign * (runs_of.best - runs_of["last"]).mean(),
            "realised": runs_of.realised.astype(float).mean(),
            **_cost(runs_of),
        }
        for rule in RULES:
            values = runs_of[rule].dropna().astype(float).tolist()
            if values:
                rows.append(
                    shared
                    | {
                        "rule": rule,
                        "n": len(values),
                        "mean": np.mean(values),
                        "std": np.std(values, ddof=1) if len(values) > 1 else np.nan,
                    }
                    | _verdict(rule, values, found, margins[first.metric])
                )
    table = pd.DataFrame(rows, columns=COLUMNS)
    for _, group in table.groupby([*TABLE, "fraction", "rule"], sort=False):
        places = ranks(
            dict(zip(group.index, group["mean"], strict=True)), group.metric.iloc[0] == "accuracy"
        )
        table.loc[group.index, "rank"] = [places[index] for index in group.index]
    return table


def _cost(runs_of: pd.DataFrame) -> dict:
    """The hours of training of all runs together.

    "device": what they are hours of, "" where that is not known or differs.
    """
    hours, devices = runs_of.seconds * runs_of.processes / 3600, set(runs_of.device)
    if len(devices) > 1 or not all(isinstance(name, str) for name in devices):
        return {"hours": hours.sum(), "device": ""}
    if devices != {"cpu"}:
        return {"hours": hours.sum(), "device": "GPU"}
    if runs_of.threads.isna().any():
        return {"hours": hours.sum(), "device": ""}
    return {"hours": (hours * runs_of.threads.astype(float)).sum(), "device": "CPU"}


def _verdict(rule, values, found, margin) -> dict:
    """What there is to say of the first published number of this rule, or of none that is stated.

    Alike ones are preferred.
    """
    alike = [pair for pair in found if not pair[1]] or found[:1]
    for row, different in alike:
        shown = {
            "published": row.value,
            "published_rule": row["rule"],
            "source": f"{row.paper}; {row.source}",
            "convention": row.convention,
            "selected": row.selected,
            "confidence": row.confidence,
        }
        if rule not in published.COMPARED.get(row["rule"], ()):
            continue
        if different:
            return shown | {"verdict": f"not compared: there {', '.join(different)}"}
        margin = absolute(margin, row.value)
        sampled = row.selected == "" and not np.isnan(row["std"]) and not np.isnan(row.n)
        said = compare(values, row.value, margin, *((row["std"], int(row.n)) if sampled else ()))
        return shown | {
            "difference": said.difference,
            "low": said.low,
            "high": said.high,
            "verdict": said.verdict,
            "margin": margin,
        }
    return {}


def absolute(margin: float | str, value: float) -> float:
    """A margin in units of the metric: "5%" is of the published value."""
    return abs(value) * float(margin[:-1]) / 100 if isinstance(margin, str) else margin


def parse_margin(text: str) -> tuple[str, float | str]:
    """ "accuracy=0.5" (points) or "mae=5%" (of the published value)."""
    found = re.fullmatch(r"(accuracy|mae)=(\d*\.?\d+)(%?)", text)
    if not found or float(found[2]) == 0:
        raise argparse.ArgumentTypeError(
            f"a margin is written accuracy=0.5 or mae=5%, got {text!r}"
        )
    return found[1], found[2] + found[3] if found[3] else float(found[2])


def wide(table: pd.DataFrame, whole: bool = False, against: str | None = None) -> pd.DataFrame:
    """A row per cell, as it is shown: the rules side by side, the gap, and the published number.
    Best ``last`` first.

    Columns that say nothing here are left out, unless the ``whole`` is asked for. With a method to
    hold the others ``against``, the difference of ``last`` to it at the same noise, and its
    interval of confidence (Welch).
    """
    base = table[(table.method == against) & (table["rule"] == "last")].set_index("fraction")
    rows = []
    for _, cell in table.groupby(["fraction", "config"], sort=True):
        of, first = cell.set_index("rule"), cell.iloc[0]
        shown = {
            rule: spread(of["mean"][rule], of["std"][rule]) if rule in of.index else "-"
            for rule in RULES
        }
        compared = cell[cell.published.notna()]
        beside = {} if against is None else {f"last, to {against}": "-"}
        if first.fraction in base.index and first.method != against and "last" in of.index:
            beside = {f"last, to {against}": to(of.loc["last"], base.loc[first.fraction])}
        row = {
            "fraction": f"{first.fraction:g}",
            "method": first.method,
            "n": str(cell.n.max()),
            **shown,
            "gap": f"{first.gap:.2f}".replace("-0.00", "0.00"),
            **beside,
            "published": "-",
            "difference": "-",
            "verdict": "-",
        }
        if len(compared):
            row["published"] = "; ".join(
                dict.fromkeys(
                    f"{value:.2f} ({rule})"
                    for value, rule in zip(compared.published, compared.published_rule, strict=True)
                )
            )
            row["verdict"] = _joined(compared["rule"], compared.verdict)
            row["difference"] = _joined(compared["rule"], compared.apply(interval, axis=1))
        row["wrong labels"] = (
            "unknown" if np.isnan(first.realised) else f"{100 * first.realised:.1f} %"
        )
        row[f"{first.device}-hours" if first.device else "hours"] = f"{first.hours:.2f}"
        rows.append((first.fraction, of["rank"].get("last", np.inf), row))
    shown = pd.DataFrame([row for *_, row in sorted(rows, key=lambda entry: entry[:2])]).fillna("-")
    if whole:
        return shown
    sparse = {"validated", f"last, to {against}", "published", "difference", "verdict"}
    return shown[[name for name in shown if name not in sparse or (shown[name] != "-").any()]]


def to(own: pd.Series, other: pd.Series) -> str:
    """The difference of two means, each of ``n`` seeds with a ``std``, and where both are known its
    interval.
    """
    difference, half = own["mean"] - other["mean"], np.nan
    if min(own.n, other.n) > 1:
        half = half_interval(own["std"], own.n, other["std"], other.n)
    return interval(
        pd.Series({"difference": difference, "low": difference - half, "high": difference + half})
    )


def grid(table: pd.DataFrame, rule: str) -> pd.DataFrame:
    """A row per method, a column per noise fraction: mean +- standard deviation (n seeds) under one
    rule, "-" where none.

    Methods by their place at the fraction at which most were run.
    """
    of = table[table["rule"] == rule]
    most = of.groupby("fraction").method.nunique().idxmax()
    places = of[of.fraction == most].set_index("method")["rank"].to_dict()
    rows, fractions = [], sorted(set(of.fraction))
    for method in sorted(dict.fromkeys(table.method), key=lambda name: places.get(name, np.inf)):
        cells = {
            cell.fraction: f"{spread(cell['mean'], cell['std'])} ({cell.n})"
            for _, cell in of[of.method == method].iterrows()
        }
        rows.append(
            {"method": method}
            | {f"{100 * fraction:g} %": cells.get(fraction, "-") for fraction in fractions}
        )
    return pd.DataFrame(rows)


def _joined(rules, texts) -> str:
    """ "last: below; best: reproduced", or the text alone where it is the same for all rules."""
    several = len(set(texts)) > 1
    return (
        "; ".join(f"{rule}: {text}" for rule, text in zip(rules, texts, strict=True))
        if several
        else next(iter(texts))
    )


def spread(mean: float, std: float, digits: int = 2) -> str:
    """ "98.45 +- 0.12", or the number alone where there is one seed."""
    return (
        "-"
        if np.isnan(mean)
        else f"{mean:.{digits}f}" + ("" if np.isnan(std) else f" +- {std:.{digits}f}")
    )


def interval(row: pd.Series) -> str:
    """The difference with its interval of confidence, as far as there is one."""
    if np.isnan(row.difference):
        return "-"
    difference, low, high = (
        f"{round(value, 2) + 0:+.2f}" for value in (row.difference, row.low, row.high)
    )  # no -0.00
    return difference + ("" if np.isnan(row.low) else f" [{low}, {high}]")


def order_notes(table: pd.DataFrame) -> list[str]:
    """The methods by rank under each rule, at each noise fraction, and the pairs whose order
    changes with the rule.
    """
    notes = []
    for fraction, group in table.groupby("fraction"):
        means = {
            rule: dict(zip(part.method, part["mean"], strict=True))
            for rule, part in group.groupby("rule", sort=False)
        }
        if group.method.nunique() < 2:
            continue
        higher = group.metric.iloc[0] == "accuracy"
        orders = {}
        for rule, of in means.items():
            places = ranks(of, higher)
            orders.setdefault(" > ".join(sorted(places, key=places.get)), []).append(rule)
        said = (f"by {', '.join(rules)}: {order}" for order, rules in orders.items())
        if group.method.nunique() <= LISTED:
            notes.append(f"Order at {fraction:g} {'; '.join(said)}")
        changed = []
        for one, two, rule, other in reversals(means, higher):
            doubt = _doubt(group, one, two, (rule, other))
            changed.append(
                (
                    doubt,
                    f"{one} before {two} by {rule} ({means[rule][one]:.2f}, {means[rule][two]:.2f}), after it "
                    f"by {other} ({means[other][one]:.2f}, {means[other][two]:.2f}){doubt}",
                )
            )
        told = [text for doubt, text in changed if not doubt or len(changed) <= NAMED]
        if len(told) < len(changed):
            told.append(
                f"{len(changed) - len(told)} pairs, within the spread of the seeds or of too few"
            )
        notes += [f"Depends on the rule at {fraction:g}: {'; '.join(told)}"] if told else []
    return notes


def _doubt(group, one, two, rules) -> str:
    """ "" where the two methods differ under both rules by more than their seeds let expect (Welch,
    as the verdicts).
    """
    found = group.set_index(["rule", "method"])
    for rule in rules:
        first, second = found.loc[(rule, one)], found.loc[(rule, two)]
        if min(first.n, second.n) < 2:
            return ", of too few seeds"
        if abs(first["mean"] - second["mean"]) <= half_interval(
            first["std"], first.n, second["std"], second.n
        ):
            return ", within the spread of the seeds"
    return ""


def hard_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row per cell of ``Runs.measured``: how far hard and incorrect samples are told apart;
    README defines the columns.

    The last column is the hash of its configuration.
    """
    rows = []
    for (_, _, fraction, config), cell in table.groupby(CELL, sort=False):
        row = {"fraction": f"{fraction:g}", "method": cell.label.iloc[0], "n": str(len(cell))}
        for key, name in HARD_COLUMNS.items():
            values = cell[key].dropna().astype(float) if key in cell else pd.Series(dtype=float)
            percent = key in ("mass_incorrect", "memorised_fraction")
            factor, digits = (
                100 if percent else 1,
                4 if "auroc" in key else 3 if "precision" in key else 1,
            )
            row[name] = (
                "-"
                if values.empty
                else spread(factor * values.mean(), factor * values.std(), digits) + " %" * percent
            )
        rows.append((fraction, row | {"config": config}))
    return pd.DataFrame([row for _, row in sorted(rows, key=lambda entry: entry[0])])


def render(table: pd.DataFrame, form: str) -> str:
    """A table of texts as text, markdown, latex (with booktabs) or csv."""
    if form == "csv":
        return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    if form == "text":
        return table.to_string(index=False) + "\n"
    if form == "markdown":
        lines = [list(table), ["---"] * len(table.columns), *table.to_numpy().tolist()]
        return "".join(
            "| " + " | ".join(str(value).replace("|", "\\|") for value in line) + " |\n"
            for line in lines
        )
    lines = [
        " & ".join(_tex(value) for value in line) + r" \\"
        for line in [list(table), *table.to_numpy().tolist()]
    ]
    lines.insert(1, r"\midrule")
    return (
        "\n".join(
            [
                rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}",
                r"\toprule",
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
            ]
        )
        + "\n"
    )


def _tex(text) -> str:
    """A text as LaTeX prints it.

    A leading bracket would be taken for an argument of the line before.
    """
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "+-": r"$\pm$",
        ">": "$>$",
    }
    escaped = re.sub(
        r"\+-|[\\~^&%$#_{}>]", lambda found: special.get(found[0], f"\\{found[0]}"), str(text)
    )
    return "{}" + escaped if escaped.startswith("[") else escaped


def tables(
    runs: Runs,
    form: str,
    margins: dict,
    hard: bool = False,
    grid_of: str | None = None,
    against: str | None = None,
) -> str:
    """Everything that is printed of some runs."""
    if hard:
        said = [
            (
                dataset,
                noise,
                hard_table(part).drop(columns="config"),
                [] if part.hard_test.notna().any() else [NO_HARDNESS],
            )
            for (dataset, noise, _), part in runs.measured.groupby(TABLE, sort=False)
        ]
    else:
        table = compare_all(runs, published.load(), margins)
        if form == "csv":
            return render(table, form)
        if against is not None and against not in set(table.method):
            raise UserError(
                f"--against {against!r}: there are {'; '.join(dict.fromkeys(table.method))}"
            )
        said = []
        for (dataset, noise, metric), part in table.groupby(TABLE, sort=False):
            title = f"{dataset}, {METRIC_NAMES[metric]}"
            if not grid_of:
                said.append(
                    (title, noise, wide(part, against=against), order_notes(part) + _sources(part))
                )
            elif (part["rule"] == grid_of).any():
                said.append((f"{title}, {grid_of}", noise, grid(part, grid_of), []))
        if grid_of and not said:
            raise UserError(f"--grid {grid_of}: no run has it")
    if form == "csv":
        return render(
            pd.concat(
                [part.assign(dataset=dataset, noise=noise) for dataset, noise, part, _ in said]
            ),
            form,
        )
    blocks = []
    for dataset, noise, part, notes in said:
        title = f"{dataset}, noise {noise}, mean +- standard deviation over n seeds (ddof 1)"
        if form == "latex":
            blocks.append(
                "\n".join(
                    [
                        r"\begin{table}",
                        rf"\caption{{{_tex(title)}}}",
                        render(part, form) + r"\end{table}",
                        *(f"% {note}" for note in notes),
                    ]
                )
                + "\n"
            )
        elif form == "markdown":
            blocks.append(
                f"{title}:\n\n{render(part, form)}"
                + "".join(f"\n* {note}" for note in notes)
                + "\n" * bool(notes)
            )
        else:
            blocks.append(f"{title}\n{render(part, form)}" + "".join(f"{note}\n" for note in notes))
    return "\n".join(blocks)


def _sources(part: pd.DataFrame) -> list[str]:
    """Where the published numbers are from, and what the verdicts mean."""
    compared = part[part.published.notna()]
    said = (
        compared[["source", "convention", "selected", "confidence"]]
        .drop_duplicates()
        .itertuples(index=False)
    )
    notes = [
        f"Published: {source}; noise: {convention}; {f'{selected}; ' if selected else ''}{confidence}"
        for source, convention, selected, confidence in said
    ]
    margins = sorted(set(compared.margin.dropna()))
    if margins:
        notes.append(
            f"Verdicts: TOST at {100 * ALPHA:g} %, margin {margins[0]:.3g}"
            + (f" to {margins[-1]:.3g}" if len(margins) > 1 else "")
            + f"; in brackets the {100 - 200 * ALPHA:g} % interval of the difference"
        )
    return notes


def summarise(
    path: Path,
    by: list[str],
    columns: list[str],
    median: bool = False,
    condition: str | None = None,
) -> pd.DataFrame:
    """Columns of any CSV file over the rows that agree in ``by``: mean +- standard deviation (ddof
    1), or median [low, high].

    ``columns``: "name" or "name:digits".

    Raises ValueError naming a column that is not there.
    """
    if not by or not columns:
        raise UserError("--summary needs --by and --columns")
    table = where(pd.read_csv(path), condition)
    wanted = [
        (name, int(digits or 2)) for name, _, digits in (text.partition(":") for text in columns)
    ]
    missing = [name for name in [*by, *(name for name, _ in wanted)] if name not in table]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table)}")
    rows = []
    for values, group in table.groupby(by, sort=False, dropna=False):
        row = dict(zip(by, map(str, values), strict=True)) | {"n": str(len(group))}
        for name, digits in wanted:
            values = group[name]
            row[name] = spread(values.mean(), values.std(), digits)
            if median and values.count() > 1:
                row[name] = (
                    f"{values.median():.{digits}f} [{values.min():.{digits}f}, {values.max():.{digits}f}]"
                )
        rows.append(row)
    return pd.DataFrame(rows)


def left_out(runs: Runs) -> str:
    """What was not counted, and why, in lines; the last one says how many were."""
    lines = [f"not finished, not counted: {path} ({why})" for path, why in runs.unfinished.items()]
    lines += [f"skipped: {path} ({why})" for path, why in runs.skipped.items()]
    more = [f"... and {len(lines) - 20} more"] if len(lines) > 20 else []
    counts = f"{len(runs.table)} finished runs, {len(runs.unfinished)} not finished, {len(runs.skipped)} skipped\n"
    return "".join(f"{line}\n" for line in lines[:20] + more) + counts
