"""The published numbers in results/published.csv, and which of them a configuration can be held
against.

Columns: ``dataset``, ``noise``, ``fraction``, ``method``, ``model`` and ``metric`` as here ("not
stated", or a network that is not here, stands for itself); ``parameters``: further keys of the
configuration, "a.b=c; ...", where "unset" means that the key is not given; ``rule``: of the epoch;
``value``, ``std``, ``n``: number of seeds; ``selected``: by what the number was chosen among more,
empty if by nothing; ``convention``: of the noise, in words; ``paper``; ``source``: an address, and
where to look there; ``confidence``: how the number was read.
"""

from pathlib import Path

import pandas as pd
import yaml

from utils.config import flatten
from utils.epoch_rules import RULES
from utils.errors import UserError

PATH = Path(__file__).parents[2] / "results/published.csv"
COLUMNS = (
    "dataset",
    "noise",
    "fraction",
    "method",
    "parameters",
    "model",
    "metric",
    "rule",
    "value",
    "std",
    "n",
    "selected",
    "convention",
    "paper",
    "source",
    "confidence",
)
NOT_STATED = "not stated"
COMPARED = {rule: (rule,) for rule in RULES} | {
    NOT_STATED: ("last", "best")
}  # with which of our rules


def load(path: Path = PATH) -> pd.DataFrame:
    """All of them, in the order of preference.

    Raises ValueError naming the lines that are not as the columns say.
    """
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    if tuple(table) != COLUMNS:
        raise UserError(
            f"{path} must have the columns {', '.join(COLUMNS)}, got {', '.join(table)}"
        )
    for name in ("fraction", "value", "std", "n"):
        table[name] = pd.to_numeric(table[name].where(table[name] != ""), errors="coerce").astype(
            float
        )
    needed = ["dataset", "noise", "method", "model", "rule", "convention", "paper", "confidence"]
    wrong = (
        ~table.fraction.between(0, 1)
        | table.value.isna()
        | ~table.metric.isin(["accuracy", "mae"])
        | (table[needed] == "").any(axis=1)
        | ~table.source.str.match(r"https://\S+")
    )
    if wrong.any():
        raise UserError(
            f"{path}: lines {', '.join(str(line + 2) for line in table.index[wrong])} are not as "
            f"its columns say"
        )
    return table


def matches(table: pd.DataFrame, cell: dict, config: dict) -> list[tuple[pd.Series, list[str]]]:
    """The published numbers for the dataset, noise, fraction and method of a cell, each with what
    is different there.

    Those that differ least come first, of these the ones that state their rule, and that say most
    of their parameters.
    """
    if ":" in cell["noise"]:  # labels as they are: no fraction was asked for
        kind = table.noise == cell["noise"]
    else:
        kind = ((table.noise == cell["noise"]) | (cell["fraction"] == 0)) & (
            (table.fraction - cell["fraction"]).abs() < 1e-6
        )
    same = (
        table[["dataset", "method", "metric"]]
        == [cell[key] for key in ("dataset", "method", "metric")]
    ).all(axis=1)
    found = table[kind & same]
    flat = flatten(config)
    listed = [(row, _differences(row, flat)) for _, row in found.iterrows()]
    return sorted(
        listed,
        key=lambda pair: (
            len(pair[1]),
            pair[0]["rule"] == NOT_STATED,
            -pair[0].parameters.count("="),
        ),
    )


def _differences(row: pd.Series, flat: dict) -> list[str]:
    different = [] if row.model == flat["model.name"] else [f"network {row.model}"]
    if NOT_STATED in row.convention:
        different.append("a noise whose convention is not stated")
    if "epochs=" not in row.parameters:
        different.append("a protocol that is not known here")
    for text in filter(None, row.parameters.split("; ")):
        key, _, value = text.partition("=")
        here = flat.get(key)
        same = (
            here is None if value == "unset" else here is not None and here == yaml.safe_load(value)
        )
        if not same:
            different.append(f"{key}={'its default' if value == 'unset' else value}")
    return different
