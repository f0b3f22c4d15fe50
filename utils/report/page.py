"""The report as one HTML page that needs nothing else.

Sortable tables, filters, pictures, and every configuration.
"""

import base64
import tempfile
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from utils.epoch_rules import RULES
from utils.files import atomic_write
from utils.report import figures, published, tables
from utils.report.collect import Results, left_out
from utils.report.comparison import compare_all
from utils.report.identity import CELL, TABLE

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; margin: 0.5rem 0 1.5rem; }
th, td { padding: 0.25rem 0.45rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th { position: sticky; top: 0; background: #fff; cursor: pointer; border-bottom: 2px solid #888; }
th:hover, a:hover { color: #d55e00; }
th[aria-sort=ascending]::after { content: " \\25B2"; } th[aria-sort=descending]::after { content: " \\25BC"; }
td.text, th.text { text-align: left; } td.long { white-space: normal; min-width: 14rem; }
a { color: #0072b2; text-decoration: none; }
.reproduced { color: #00704f; font-weight: 600; } .above, .below { color: #b34e00; font-weight: 600; }
.scroll { overflow-x: auto; } img { max-width: 100%; } pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; }
figure { margin: 0 0 1.5rem; } figcaption { font-weight: 600; } details { margin: 0.2rem 0; } select { margin-right: 1rem; }
"""
SCRIPT = """
const filters = [...document.querySelectorAll('select[data-filter]')];
function filter() {
  for (const part of document.querySelectorAll('[data-dataset]'))
    part.hidden = filters.some(one => one.value && part.dataset[one.dataset.filter] !== undefined
                                      && part.dataset[one.dataset.filter] !== one.value);
}
filters.forEach(one => one.addEventListener('change', filter));
for (const head of document.querySelectorAll('th')) head.addEventListener('click', () => {
  const body = head.closest('table').tBodies[0], place = head.cellIndex;
  const down = head.getAttribute('aria-sort') === 'ascending';
  for (const other of head.parentNode.cells) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const value = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
  const compare = (a, b) => (a === '') - (b === '') || (down ? -1 : 1) * (
    a !== '' && b !== '' && !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b));
  [...body.rows].sort((a, b) => compare(value(a), value(b))).forEach(row => body.append(row));
});
function open_target() {
  const target = document.getElementById(location.hash.slice(1));
  if (target && target.tagName === 'DETAILS') { target.open = true; target.scrollIntoView(); }
}
addEventListener('hashchange', open_target);
open_target();
"""
FILTERS = ("dataset", "noise", "method")


def write(runs: Results, path: Path, margins: dict | None = None):
    """Write the page of these runs, as a whole or not at all."""
    numbers = published.load()
    table = compare_all(runs, numbers, margins)
    with tempfile.TemporaryDirectory() as folder:
        pictures = [
            (picture, base64.b64encode(picture.path.read_bytes()).decode())
            for picture in figures.draw(runs, Path(folder), forms=("png",))
        ]
    sections = [
        (
            "Results",
            "Mean +- standard deviation (ddof 1) over n seeds, under every rule for the epoch; beside it the published "
            "number under its own rule. Click a heading to sort, a number to see its configuration.",
            _results(table),
        ),
        ("What depends on the rule", "", _orders(table)),
        ("Hard against incorrect", "README defines the columns.", _hard(runs)),
        (
            "Pictures",
            "",
            "".join(
                f"<figure {_attributes(picture._asdict(), 'dataset', 'noise')}><figcaption>{escape(picture.dataset)}, "
                f'{escape(picture.noise)} {escape(picture.title)}</figcaption><img alt="{escape(picture.title)}" '
                f'src="data:image/png;base64,{data}"></figure>\n'
                for picture, data in pictures
            ),
        ),
        (
            "Published numbers",
            "All that are known for these cells, the most alike first.",
            _numbers(runs, numbers),
        ),
        ("Runs", "", _runs(runs)),
        (
            "Configurations",
            "",
            "".join(
                f'<details id="config-{name}"><summary>{name}: {escape(label)}</summary><pre>'
                f"{escape(yaml.safe_dump(runs.configs[name], sort_keys=False))}</pre></details>\n"
                for name, label in _named(runs.table).items()
            ),
        ),
        ("Not counted", "", f"<pre>{escape(left_out(runs))}</pre>"),
    ]
    choices = "".join(
        f'<label>{name} <select data-filter="{name}"><option value="">all</option>'
        + "".join(f"<option>{escape(value)}</option>" for value in dict.fromkeys(values))
        + "</select></label>"
        for name, values in zip(
            FILTERS, (runs.table.dataset, runs.table.noise, runs.table.label), strict=True
        )
    )
    body = "".join(
        f"<h2>{title}</h2>\n{f'<p>{text}</p>' if text else ''}\n{content}\n"
        for title, text, content in sections
        if content
    )
    with atomic_write(path) as file:
        file.write(
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Report</title>\n<style>{STYLE}</style>'
            f"</head><body>\n<h1>Training with noisy labels: report</h1>\n<p>{choices}</p>\n{body}"
            f"<script>{SCRIPT}</script></body></html>\n"
        )


def _attributes(row, *names):
    return " ".join(f'data-{name}="{escape(str(row[name]))}"' for name in names)


def _cell(shown, value=None, config=None, kind=""):
    """A cell of a table that is sorted by ``value`` and leads to a configuration."""
    inner = escape(str(shown))
    if config and shown != "-":
        inner = f'<a href="#config-{config}">{inner}</a>'
    known = value is not None and not (isinstance(value, float) and np.isnan(value))
    sorted_by = f' data-value="{escape(str(value)) if known else ""}"'
    return f'<td class="{kind}"{sorted_by}>{inner}</td>'


def _text(value, kind=""):
    return _cell(value, str(value), kind=f"text {kind}".strip())


def _table(heads: list[str], rows: list[tuple[str, list[str]]], texts: int) -> str:
    """Of rows (attributes, cells); the first ``texts`` heads are of columns of texts."""
    head = "".join(
        f'<th class="text">{escape(name)}</th>' if place < texts else f"<th>{escape(name)}</th>"
        for place, name in enumerate(heads)
    )
    body = "".join(f"<tr {attributes}>{''.join(cells)}</tr>\n" for attributes, cells in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
        if rows
        else ""
    )


def _results(table: pd.DataFrame) -> str:
    heads = [
        "dataset",
        "noise",
        "method",
        "fraction",
        "n",
        *RULES,
        "gap",
        "published",
        "difference",
        "verdict",
        "wrong labels",
        "hours",
    ]
    rows = []
    for config, cell in table.groupby("config", sort=False):
        of, first = cell.set_index("rule"), cell.iloc[0]
        compared = cell[cell.published.notna()]
        cells = [
            _text(first.dataset),
            _text(first.noise),
            _text(first.method),
            _cell(f"{first.fraction:g}", first.fraction, config),
            _cell(cell.n.max(), cell.n.max(), config),
        ]
        for rule in RULES:
            known = rule in of.index
            place = f" (#{int(of['rank'][rule])})" if known else ""
            cells.append(
                _cell(
                    tables.spread(of["mean"][rule], of["std"][rule]) + place if known else "-",
                    of["mean"][rule] if known else None,
                    config,
                )
            )
        one, shown = (
            compared.iloc[0] if len(compared) else None,
            tables.side_by_side(cell, whole=True).iloc[0],
        )
        cells.append(_cell(shown["gap"], first.gap, config))
        cells += (
            [_cell("-"), _cell("-"), _text("-")]
            if one is None
            else [
                _cell(shown["published"], one.published, config),
                _cell(shown["difference"], one.difference, config),
                _cell(shown["verdict"], one.verdict, kind=f"text long {one.verdict.split()[0]}"),
            ]
        )
        cells += [
            _cell(shown["wrong labels"], first.realised, config),
            _cell(
                f"{first.hours:.2f}{f' ({first.device})' if first.device else ''}",
                first.hours,
                config,
            ),
        ]
        rows.append((_attributes(first, *FILTERS), cells))
    return _table(heads, rows, 3)


def _orders(table: pd.DataFrame) -> str:
    items = []
    for (dataset, noise, _), part in table.groupby(TABLE, sort=False):
        items += [
            f'<li data-dataset="{escape(dataset)}" data-noise="{escape(noise)}">{escape(dataset)}, {escape(noise)}: '
            f"{escape(note)}</li>\n"
            for note in tables.order_notes(part)
        ]
    return f"<ul>\n{''.join(items)}</ul>" if items else ""


def _hard(runs: Results) -> str:
    rows, heads = [], []
    for (dataset, noise, _), part in runs.measured.groupby(TABLE, sort=False):
        part = tables.hard_table(part)
        heads = ["dataset", "noise", "method", "fraction", "n", *list(part)[3:-1]]
        for _, row in part.iterrows():
            row = {"dataset": dataset, "noise": noise, **row}
            cells = [_text(row[name]) for name in heads[:3]]
            cells += [_cell(row[name], _number(row[name]), row["config"]) for name in heads[3:]]
            rows.append((_attributes(row, *FILTERS), cells))
    return _table(heads, rows, 3)


def _number(text: str) -> str | None:
    return text.split()[0] if text != "-" else None


def _numbers(runs: Results, numbers: pd.DataFrame) -> str:
    rows = []
    for (dataset, noise, fraction, config), cell in runs.table.groupby(CELL, sort=False):
        first = cell.iloc[0]
        cell = {
            "dataset": dataset,
            "noise": noise,
            "fraction": fraction,
            "method": first.method,
            "metric": first.metric,
        }
        for row, different in published.matches(numbers, cell, runs.configs[config]):
            address, _, where = row.source.partition(" ")
            shown = cell | {"method": first.label}
            rows.append(
                (
                    _attributes(shown, *FILTERS),
                    [
                        _text(dataset),
                        _text(noise),
                        _text(first.label),
                        _cell(f"{fraction:g}", fraction, config),
                        _cell(tables.spread(row.value, row["std"]), row.value, config),
                        _cell("" if np.isnan(row.n) else int(row.n)),
                        _text(row["rule"]),
                        *(
                            _text(said, "long")
                            for said in (row.selected, row.convention, ", ".join(different))
                        ),
                        f'<td class="text long"><a href="{escape(address)}">{escape(row.paper)}</a> {escape(where)}</td>',
                        _text(row.confidence),
                    ],
                )
            )
    return _table(
        [
            "dataset",
            "noise",
            "method",
            "fraction",
            "value",
            "n",
            "rule",
            "selected",
            "convention of the noise",
            "different there",
            "source",
            "confidence",
        ],
        rows,
        3,
    )


def _runs(runs: Results) -> str:
    rows = []
    for _, row in runs.table.iterrows():
        shown = {"dataset": row.dataset, "noise": row.noise, "method": row.label}
        rows.append(
            (
                _attributes(shown, *FILTERS),
                [
                    _text(row.dataset),
                    _text(row.noise),
                    _text(row.label),
                    _cell(f"{row.fraction:g}", row.fraction, row.config),
                    _cell(row.seed, row.seed, row.config),
                    *(
                        _cell(
                            "-" if pd.isna(row[rule]) else f"{row[rule]:.2f}", row[rule], row.config
                        )
                        for rule in RULES
                    ),
                    _cell(
                        "-" if pd.isna(row.best_epoch) else int(row.best_epoch),
                        row.best_epoch,
                        row.config,
                    ),
                    _text(row.path),
                ],
            )
        )
    return _table(
        ["dataset", "noise", "method", "fraction", "seed", *RULES, "best epoch", "where"], rows, 3
    )


def _named(table: pd.DataFrame) -> dict[str, str]:
    """Hash -> what a configuration is called."""
    return {
        row.config: f"{row.dataset}, {row.noise} {row.fraction:g}, {row.label}"
        for row in table.drop_duplicates("config").itertuples()
    }
