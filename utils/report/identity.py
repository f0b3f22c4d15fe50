"""What a configuration is called: its hash, its dataset and method, and its label in tables."""

import collections
import hashlib
import json
import re
from pathlib import Path

import pandas as pd

from utils.config import DEFAULTS, EXECUTION, SECTIONS, flatten

KEY = ["config", "seed"]  # what identifies a run
CELL = ["dataset", "noise", "fraction", "config"]  # what runs share that differ only in their seed
TABLE = ["dataset", "noise", "metric"]  # what the rows of one table share
DEFAULT_KEYS = {
    key: value for key, value in flatten(DEFAULTS).items() if key.split(".")[0] not in SECTIONS
}
SEED_DIRECTORY = re.compile(r"seed\d+")
IN_A_LABEL = 4  # keys: a configuration that differs in more has its hash there


def without_execution(config: dict) -> dict:
    """A configuration without its seeds and without what says only where a run is executed."""
    dropped = {"seed", "noise.seed", *EXECUTION}

    def strip(section, prefix=""):
        kept = {}
        for key, value in section.items():
            if f"{prefix}{key}" in dropped:
                continue
            if isinstance(value, dict):
                value = strip(value, f"{prefix}{key}.")
            elif isinstance(value, str):
                value = shorten_path(value)
            kept[key] = value
        return kept

    return strip(config)


def shorten_path(value: str) -> str:
    """A path without what differs between machines and seeds; any other text as it is.

    Of a file of a run, <method>/<noise>/seed<k>/<file>, the last four parts without the k; of
    another full path, the last two.
    """
    parts = Path(value).parts
    same = ["seed" if SEED_DIRECTORY.fullmatch(part) else part for part in parts]
    if same != list(parts):
        return "/".join(same[-4:])
    return "/".join(parts[-2:]) if value.startswith("/") else value


def config_hash(config: dict) -> str:
    """Ten digits that all runs share which differ only in their seed and where they are executed.

    A top-level key with its default counts as absent, so that a key new in a later version changes
    no hash.
    """
    flat = {
        key: value
        for key, value in flatten(without_execution(config)).items()
        if key not in DEFAULT_KEYS or DEFAULT_KEYS[key] != value
    }
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:10]


def identity(config: dict) -> dict:
    """Dataset, noise, fraction, method and model, as tables name them.

    The fraction is 0 if the kind of noise reads none.
    """
    kind = config["noise"]["kind"]
    fraction = 0.0 if kind == "none" or ":" in kind else float(config["noise"]["fraction"])
    return {
        "dataset": dataset_name(config),
        "noise": kind,
        "fraction": fraction,
        "method": method_name(config),
        "model": config["model"]["name"],
    }


def dataset_name(config: dict) -> str:
    """The name of its section, with the file, folder or task if there are several."""
    section = config["dataset"]
    source = section.get("file") or section.get("root") or section.get("task")
    return section["name"] + (f"-{Path(source).stem}" if source else "")


def method_name(config: dict) -> str:
    """The name of its loss; on selected samples that of the selection, and the loss if not Plain.

    A selection is "RSL", or "small-loss" if the losses of one epoch select.
    """
    name, selection = config["loss"]["name"], config["dataset"].get("selection")
    if selection is None:
        return name
    by_one_epoch = str(selection.get("criterion", "mean")).startswith("epoch")
    selected = "small-loss" if by_one_epoch else "RSL"
    return selected if name == "Plain" else f"{selected} + {name}"


def labels(table: pd.DataFrame, configs: dict[str, dict]) -> pd.Series:
    """The method of each run, with the values in which its configuration differs from the usual.

    It may differ only if the method has several configurations at one noise fraction. A
    configuration that differs in more than four keys has its hash, and so have those that would be
    left with one label.
    """
    flat = {name: flatten(config) for name, config in configs.items()}
    for keys in flat.values():
        keys.pop("noise.fraction", None)
    suffixes = dict.fromkeys(flat, "")
    for _, group in table.groupby(["dataset", "noise", "method"], sort=False):
        cells = [list(dict.fromkeys(cell.config)) for _, cell in group.groupby("fraction")]
        suffixes |= _suffixes(_unusual_keys(cells, flat), flat)
        for names in cells:
            alike = collections.Counter(suffixes[name] for name in names)
            for name in names:
                suffixes[name] += f" [{name}]" if alike[suffixes[name]] > 1 else ""
    return table.method + table.config.map(suffixes)


def _unusual_keys(cells: list[list[str]], flat: dict[str, dict]) -> dict[str, list[str]]:
    """Configuration -> the keys in which it differs from what is usual at its noise fraction.

    Usual is what more than half of a cell have, or else more than half of all cells, if anything.
    ``cells``: the configurations of one method at each noise fraction.
    """
    unusual = {name: [] for names in cells for name in names}
    for names in cells:
        for key in dict.fromkeys(key for name in names for key in flat[name]):
            values = {name: repr(flat[name].get(key)) for name in unusual}
            here = [values[name] for name in names]
            if len(set(here)) > 1:
                usual = _majority(here) or _majority(list(values.values()))
                for name in names:
                    if values[name] != usual:
                        unusual[name].append(key)
    return unusual


def _suffixes(unusual: dict[str, list[str]], flat: dict[str, dict]) -> dict[str, str]:
    """Configuration -> what its label says of its unusual keys, by their last part if that will do.

    The name of a section is always said, as its value alone.
    """
    different = {key for keys in unusual.values() for key in keys}
    count = collections.Counter(key.rsplit(".", 1)[-1] for key in different)
    suffixes = {}
    for name, keys in unusual.items():
        given = {key: flat[name][key] for key in keys if flat[name].get(key) is not None}
        parts = []
        for key, value in given.items():
            short = key.rsplit(".", 1)[-1]
            if short == "name":
                parts.append(f", {value}")
            elif len(given) <= IN_A_LABEL:
                parts.append(f", {short if count[short] == 1 else key}={value}")
        if len(given) > IN_A_LABEL:
            parts.append(f" [{name}]")
        suffixes[name] = "".join(parts)
    return suffixes


def _majority(values: list[str]) -> str | None:
    """What more than half of them are."""
    most, number = collections.Counter(values).most_common(1)[0]
    return most if 2 * number > len(values) else None
