"""The report as one HTML page that needs nothing else; page.html is its layout.

Sortable tables, filters, pictures, and every configuration.
"""

import base64
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
import pandas as pd
import yaml

from utils.epoch_rules import RULES
from utils.files import atomic_write
from utils.report import figures, published
from utils.report.collect import Results, left_out
from utils.report.comparison import cell_of, compare_all
from utils.report.identity import CELL, TABLE
from utils.report.tables import hard_table, order_notes, side_by_side, spread

FILTERS = ("dataset", "noise", "method")
Rows = list[tuple[dict[str, str], list["Cell"]]]  # by what a row is filtered, and its cells
MEANINGS = {  # of columns
    "fraction": "the noise rate that was asked for",
    "n": "how many seeds",
    "last": "test metric of the last epoch: what you would get",
    "mean_last_5": "mean of the last five epochs",
    "mean_last_10": "mean of the last ten epochs",
    "best": "best epoch, chosen on the test set itself, which flatters",
    "validated": "the epoch that is best on held-out labels, which may be wrong as well",
    "gap": "by how much best is better than last",
    "published": "the published number, and its rule for the epoch",
    "difference": "ours less the published number, and its 90 % interval",
    "verdict": "reproduced: the difference is shown to lie within the margin, 0.5 points of "
    "accuracy or 5 % of an error unless another was asked for; above, below: it is not, and not 0; "
    "too few seeds to tell: else",
    "wrong labels": "the noise rate that came out",
    "hours": "of training, all seeds together",
    "AUROC": "probability that the method's score ranks an incorrectly labelled training sample "
    "above a correctly labelled one",
    "AUROC, large losses": "the same among the half of the samples with the largest losses, where "
    "hard and incorrect ones meet",
    "average precision": "area under precision against recall of finding incorrect samples",
    "gradient of incorrect": "the part of the gradient that incorrect labels have: their weight in "
    "what the network is told",
    "memorised": "the part of the incorrect samples that the network predicts as the wrong label",
    "hard test samples": "test metric on the tenth of the test samples that is hardest for a "
    "network trained on clean labels",
    "best epoch": "counted from 0",
    "where": "directory of the run, or of its log",
    "value": "as published, with its standard deviation if there is one",
    "rule": "which epoch was published",
    "selected": "what it was chosen among: seeds, trials",
    "convention of the noise": "how the labels were changed there",
    "different there": "in what else the published experiment differs",
    "confidence": "how the number was read",
}
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)


class Cell(NamedTuple):
    """``value``: by which its column is sorted; ``more``: what follows the link; ``kind``: CSS."""

    text: object
    value: object = ""
    link: str = ""
    kind: str = ""
    more: str = ""


class Head(NamedTuple):
    name: str
    is_text: bool


class Table(NamedTuple):
    """The rows of one dataset and kind of noise, ``values``."""

    values: dict[str, str]
    heads: list[Head]
    rows: Rows


def _tables(names: list[str], rows: Rows) -> list[Table]:
    """A table for each dataset and noise, without the columns that are empty in it."""
    groups = {}
    for values, cells in rows:
        groups.setdefault((values["dataset"], values["noise"]), []).append((values, cells))
    tables = []
    for (dataset, noise), own in groups.items():
        kept = [
            position
            for position in range(len(names))
            if any(cells[position].text not in ("", "-") for _, cells in own)
        ]
        heads = [Head(names[position], "text" in own[0][1][position].kind) for position in kept]
        own = [(values, [cells[position] for position in kept]) for values, cells in own]
        tables.append(Table({"dataset": dataset, "noise": noise}, heads, own))
    return tables


def _names(tables: list[Table]) -> list[str]:
    """The columns of these tables that do not speak for themselves."""
    found = dict.fromkeys(head.name for table in tables for head in table.heads)
    return [name for name in found if name in MEANINGS]


def write(results: Results, path: Path, margins: dict[str, float | str] | None = None):
    """Write the page of these runs, as a whole or not at all; ``margins``: see ``compare_all``."""
    numbers = published.load()
    table, runs = compare_all(results, numbers, margins), results.table
    columns = zip(FILTERS, (runs.dataset, runs.noise, runs.label), strict=True)
    filters = {name: list(dict.fromkeys(column)) for name, column in columns}
    text = ENVIRONMENT.get_template("page.html").render(
        filters={name: values for name, values in filters.items() if len(values) > 1},
        results=_results(table),
        orders=_orders(table),
        hard=_hard(results),
        pictures=_pictures(results),
        numbers=_numbers(results, numbers),
        runs=_runs(runs),
        configurations=_configurations(results),
        left_out=left_out(results),
        meanings=defaultdict(str, MEANINGS),
        names=_names,
    )
    with atomic_write(path) as file:
        file.write(text)


def _linked(text, value, config: str, kind: str = "") -> Cell:
    """A cell that leads to a configuration, if it says anything; a value of NaN is sorted last."""
    known = value is not None and not (isinstance(value, float) and np.isnan(value))
    link = f"#config-{config}" if text not in ("", "-") else ""
    unbroken = str(text).replace(" +- ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    return Cell(unbroken, value if known else "", link, kind)


def _text(text, kind: str = "text") -> Cell:
    return Cell(text, text, kind=kind)


def _first_cells(dataset, noise, method) -> tuple[dict[str, str], list[Cell]]:
    values = dict(zip(FILTERS, (dataset, noise, method), strict=True))
    return values, [_text(method, "text method")]


def _results(table: pd.DataFrame) -> list[Table]:
    heads = ["method", "fraction", "n", *RULES, "gap", "published", "difference", "verdict"]
    rows = []
    for (*_, config), cell in table.groupby(CELL, sort=False):
        by_rule, first = cell.set_index("rule"), cell.iloc[0]
        values, cells = _first_cells(first.dataset, first.noise, first.method)
        cells.append(_linked(f"{first.fraction:g}", first.fraction, config))
        cells.append(_linked(cell.n.max(), cell.n.max(), config))
        shown = side_by_side(cell, whole=True).iloc[0]
        for rule in RULES:
            text, mean = "-", None
            if rule in by_rule.index:
                mean, rank = by_rule.loc[rule, ["mean", "rank"]]
                text = f"{shown[rule]} (#{int(rank)})"
            cells.append(_linked(text, mean, config))
        cells.append(_linked(shown["gap"], first.gap, config))
        cells += _compared(cell, shown, config)
        hours = "-"
        if not np.isnan(first.hours):
            hours = f"{first.hours:.2f}{f' ({first.device})' if first.device else ''}"
        cells.append(_linked(shown["wrong labels"], first.realised, config))
        cells.append(_linked(hours, first.hours, config))
        rows.append((values, cells))
    return _tables([*heads, "wrong labels", "hours"], rows)


def _compared(cell: pd.DataFrame, shown: pd.Series, config: str) -> list[Cell]:
    """The published number, the difference and the verdict; sorted by those of the first rule."""
    compared = cell[cell.published.notna()]
    if compared.empty:
        return [Cell("-"), Cell("-"), _text("-")]
    first = compared.iloc[0]
    return [
        _linked(shown["published"], first.published, config, "long"),
        _linked(shown["difference"], first.difference, config, "long"),
        Cell(shown["verdict"], first.verdict, kind=f"text long {first.verdict.split()[0]}"),
    ]


def _orders(table: pd.DataFrame) -> list[tuple[dict[str, str], str]]:
    notes = []
    for (dataset, noise, _), rows in table.groupby(TABLE, sort=False):
        notes += [({"dataset": dataset, "noise": noise}, note) for note in order_notes(rows)]
    return notes


def _hard(results: Results) -> list[Table]:
    rows, columns = [], []
    for (dataset, noise, _), part in results.measured.groupby(TABLE, sort=False):
        table = hard_table(part)
        columns = ["fraction", "n", *table.columns[3:-1]]
        for row in table.to_dict("records"):
            values, cells = _first_cells(dataset, noise, row["method"])
            for name in columns:
                number = row[name].split()[0] if row[name] != "-" else ""
                cells.append(_linked(row[name], number, row["config"]))
            rows.append((values, cells))
    return _tables(["method", *columns], rows)


def _pictures(results: Results) -> list[tuple[dict[str, str], str, str]]:
    """Each with what it is filtered by, its title, and the .png in base64."""
    with tempfile.TemporaryDirectory() as folder:
        return [
            (
                {"dataset": picture.dataset, "noise": picture.noise},
                picture.title,
                base64.b64encode(picture.path.read_bytes()).decode(),
            )
            for picture in figures.draw(results, Path(folder), forms=("png",))
        ]


def _numbers(results: Results, numbers: pd.DataFrame) -> list[Table]:
    heads = ["method", "fraction", "value", "n", "rule", "selected", "convention of the noise"]
    rows = []
    for (dataset, noise, fraction, config), runs in results.table.groupby(CELL, sort=False):
        matches = published.matches(numbers, cell_of(runs), results.configs[config])
        for number, different in matches:
            address, _, where = number.source.partition(" ")
            seeds = "" if np.isnan(number.n) else int(number.n)
            values, cells = _first_cells(dataset, noise, runs.label.iloc[0])
            cells += [
                _linked(f"{fraction:g}", fraction, config),
                _linked(spread(number.value, number["std"]), number.value, config),
                _linked(seeds, seeds, config),
                _text(number["rule"]),
                _text(number.selected, "text long"),
                _text(number.convention, "text long"),
                _text(", ".join(different), "text long"),
                Cell(number.paper, number.paper, address, "text long", f" {where}"),
                _text(number.confidence),
            ]
            rows.append((values, cells))
    return _tables([*heads, "different there", "source", "confidence"], rows)


def _runs(table: pd.DataFrame) -> list[Table]:
    heads = ["method", "fraction", "seed", *RULES, "best epoch", "where"]
    rows = []
    for run in table.to_dict("records"):
        config, epoch = run["config"], run["best_epoch"]
        values, cells = _first_cells(run["dataset"], run["noise"], run["label"])
        cells.append(_linked(f"{run['fraction']:g}", run["fraction"], config))
        cells.append(_linked(run["seed"], run["seed"], config))
        for rule in RULES:
            text = "-" if pd.isna(run[rule]) else f"{run[rule]:.2f}"
            cells.append(_linked(text, run[rule], config))
        cells.append(_linked("-" if pd.isna(epoch) else int(epoch), epoch, config))
        rows.append((values, [*cells, _text(run["path"], "text path")]))
    return _tables(heads, rows)


def _configurations(results: Results) -> list[tuple[str, str, str]]:
    """Hash, name, and the configuration as YAML."""
    return [
        (
            run.config,
            f"{run.dataset}, {run.noise} {run.fraction:g}, {run.label}",
            yaml.safe_dump(results.configs[run.config], sort_keys=False),
        )
        for run in results.table.drop_duplicates("config").itertuples()
    ]
