"""The published numbers in results/published.csv, and which a configuration can be held against.

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

from utils.epoch_rules import RULES
from utils.errors import UserError
from utils.metrics import METRICS
from utils.params_file import flatten

PATH = Path(__file__).parents[2] / "results/published.csv"
NOT_STATED = "not stated"
# with which of our rules a number of a rule is compared
COMPARED = {rule: (rule,) for rule in RULES} | {NOT_STATED: ("last", "best")}
LACKING = {  # by a key or section of the configuration, what no experiment had that is silent on it
    "trusted.count": "no trusted samples",
    "init_from": "no network to begin with",
    "targets": "the labels as given",
    "features": "no features",
    "chunk_steps": "whole passes for epochs",
    "dataset.keep": "all samples of each class",
    "dataset.test_per_class": "all test samples",
    "validation.fraction": "no part held out",
    "validation.folds": "no part held out",
}
NUMBERS = ("fraction", "value", "std", "n")
NEEDED = ["dataset", "noise", "method", "model", "rule", "convention", "paper", "confidence"]
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


def load(path: Path = PATH) -> pd.DataFrame:
    """All of them, in the order of preference.

    Raises:
        UserError: lines are not as the columns say; the message names them.
    """
    try:
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if tuple(table) != COLUMNS:
        raise UserError(
            f"{path} must have the columns {', '.join(COLUMNS)}, got {', '.join(table)}"
        )
    for name in NUMBERS:
        given = table[name].where(table[name] != "")
        table[name] = pd.to_numeric(given, errors="coerce").astype(float)
    wrong = (
        ~table.fraction.between(0, 1)
        | table.value.isna()
        | ~table.metric.isin(METRICS)
        | (table[NEEDED] == "").any(axis=1)
        | ~table.source.str.match(r"https://\S+")
    )
    if wrong.any():
        lines = ", ".join(str(line + 2) for line in table.index[wrong])
        raise UserError(f"{path}: lines {lines} are not as its columns say")
    return table


def matches(numbers: pd.DataFrame, cell: dict, config: dict) -> list[tuple[pd.Series, list[str]]]:
    """The numbers for dataset, noise, fraction, method and metric, each with what differs there.

    Those that differ least come first; of these the ones that state their rule, then those that say
    most of their parameters, then those of most seeds, then the order of the file.
    """
    if ":" in cell["noise"]:  # labels as they are: no fraction was asked for
        same = numbers.noise == cell["noise"]
    else:
        same = (numbers.noise == cell["noise"]) | (cell["fraction"] == 0)
        same &= (numbers.fraction - cell["fraction"]).abs() < 1e-6
    for name in ("dataset", "method", "metric"):
        same &= numbers[name] == cell[name]
    flat = flatten(config)
    pairs = [(number, _differences(number, flat)) for _, number in numbers[same].iterrows()]
    return sorted(pairs, key=_distance)


def _distance(pair):
    number, different = pair
    seeds = 0 if pd.isna(number.n) else number.n
    return len(different), number["rule"] == NOT_STATED, -number.parameters.count("="), -seeds


def in_words(number: pd.Series) -> str:
    """A number with its rule, seeds and selection: "95.80 (best; n = 1; best of 30 trials)"."""
    seeds = "" if pd.isna(number.n) else f"n = {number.n:g}"
    return (
        f"{number.value:.2f} ({'; '.join(filter(None, [number['rule'], seeds, number.selected]))})"
    )


def _differences(number: pd.Series, flat: dict) -> list[str]:
    different = [] if number.model == flat["model.name"] else [f"network {number.model}"]
    if NOT_STATED in number.convention:
        different.append("a noise whose convention is not stated")
    if "epochs=" not in number.parameters:
        different.append("a protocol that is not known here")
    for key, text in LACKING.items():
        set_here = any(value for name, value in flat.items() if f"{name}.".startswith(f"{key}."))
        stated = key in number.parameters or (number["rule"] == "validated" and "held out" in text)
        if set_here and not stated:
            different.append(text)
    for text in filter(None, number.parameters.split("; ")):
        key, _, value = text.partition("=")
        here = flat.get(key)
        if value == "unset":
            same, value = here is None, "its default"
        else:
            same = here is not None and here == yaml.safe_load(value)
        if not same:
            different.append(f"{key}={value}")
    return different


def is_sample(number: pd.Series) -> bool:
    """Whether a number is the mean of a sample of known spread, which nothing was selected from."""
    return number.selected == "" and not pd.isna(number["std"]) and not pd.isna(number.n)
