"""What a configuration is called: its hash, its dataset and method, and its label in tables."""

import collections
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from utils.params_file import flatten
from utils.settings import DEFAULTS, DISPLAY, EXECUTION, SECTIONS

KEY = ["config", "seed"]  # what identifies a run
CELL = ["dataset", "noise", "fraction", "config"]  # what runs share that differ only in their seed
TABLE = ["dataset", "noise", "metric"]  # what the rows of one table share
DEFAULT_KEYS = {
    key: value for key, value in flatten(DEFAULTS).items() if key.split(".")[0] not in SECTIONS
}
SEED_DIRECTORY = re.compile(r"seed\d+")
PATHS = {"file", "root", "test_file"}  # keys of a dataset
OF_RUNS = {"targets", "recording"}  # parts of data.json that differ between seeds
NOISE_RATE = "noise.fraction"
IN_A_LABEL = 4  # keys: a configuration that differs in more has its hash there


def without_execution(config: dict) -> dict:
    """A configuration without its seed and without what says only where a run is executed.

    The seed of the noise stays if it is not that of the run: labels that are the same for all
    seeds are another experiment than labels that are drawn for each.
    """
    dropped = {"seed", *EXECUTION}
    if "seed" in config and config.get("noise", {}).get("seed") in (None, config["seed"]):
        dropped.add("noise.seed")

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
    if value.startswith("file:"):  # a kind of noise
        return f"file:{shorten_path(value[5:])}"
    parts = Path(value).parts
    same = ["seed" if SEED_DIRECTORY.fullmatch(part) else part for part in parts]
    if same != list(parts):
        return "/".join(same[-4:])
    return "/".join(parts[-2:]) if value.startswith("/") else value


def inputs(config: dict, summary: dict, data: dict | None) -> dict[str, str]:
    """What a result depends on and its configuration only names: by content, not by path.

    ``data``: a hash of the samples, labels and files of the user's own data. ``recording`` and
    ``targets``: of a file that another run left, the configuration of that run, and its seed if
    it is another one; of any other such file, its hash.

    Args:
        data: of the run's data.json; None if it has none.
    """
    named = {}
    if data:
        parts = {part: content for part, content in data.items() if part not in OF_RUNS}
        text = json.dumps(parts, sort_keys=True)
        named["data"] = hashlib.sha256(text.encode()).hexdigest()[:10]
    for name, origin in (summary.get("origins") or {}).items():
        left_by = origin.get("config")
        if left_by is None:
            named[name] = origin["sha256"][:10]
        else:
            seed = "" if left_by["seed"] == config["seed"] else f" seed {left_by['seed']}"
            named[name] = config_hash(left_by) + seed
    return named


def with_inputs(config: dict, named: dict[str, str]) -> dict:
    """A configuration without execution whose paths are replaced by what they lead to."""
    stored = without_execution(config)
    if not named:
        return stored
    if "data" in named:
        section = stored["dataset"]
        for key in PATHS & section.keys():
            section[key] = section[key] and Path(section[key]).name
    if "targets" in named:
        stored["targets"] = Path(stored["targets"]).name
    return stored | {"inputs": named}


def variant(config: dict) -> dict[str, str | int]:
    """What tells runs of one configuration apart that differ in more than their seed.

    It is the seed of their noise, if that is fixed, and what is known of their inputs.
    """
    flat = flatten({"noise": config.get("noise", {}), "inputs": config.get("inputs", {})})
    return {key: value for key, value in flat.items() if _is_of_variant(key)}


def without_variant(config: dict, keys: Iterable[str] | None = None) -> dict:
    """A configuration without these keys of its variant; None: without any."""
    dropped = variant(config).keys() if keys is None else set(keys)
    result = dict(config)
    for name in ("noise", "inputs"):
        section = config.get(name, {})
        result[name] = {key: section[key] for key in section if f"{name}.{key}" not in dropped}
        if not result[name]:
            del result[name]
    return result


def _is_of_variant(key):
    return key == "noise.seed" or key.startswith("inputs.")


def shared_variants(runs: list[tuple[dict, int]]) -> list[dict]:
    """The configurations (config, seed) of runs that are equal but for their variant, told apart.

    A run whose noise has its own seed belongs to those whose noise is fixed at that seed, if there
    are such and no other runs whose noise follows their seeds. What is not known of the inputs of
    an older run is taken to be what it is of all others, if these agree.
    """
    configs = [config for config, _ in runs]
    fixed = {config["noise"]["seed"] for config in configs if "seed" in config["noise"]}
    following = {seed for config, seed in runs if "seed" not in config["noise"]}
    if len(following) == 1 and following <= fixed:
        seed = next(iter(following))
        configs = [config | {"noise": {"seed": seed} | config["noise"]} for config in configs]
    variants = [variant(config) for config in configs]
    agreed = []
    for key in {key for known in variants for key in known if key.startswith("inputs.")}:
        values = {known.get(key) for known in variants}
        if None in values and len(values) == 2:
            agreed.append(key)
    return [
        without_variant(config, keys=agreed) if set(agreed) & variant(config).keys() else config
        for config in configs
    ]


def config_hash(config: dict) -> str:
    """Ten digits that all runs share which differ only in seed, label and where they are executed.

    A top-level key with its default counts as absent, so that a key new in a later version changes
    no hash. 1 and 1.0 do: ``same_numbers`` finds such configurations.
    """
    text = json.dumps(_what_counts(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def same_numbers(config: dict) -> str:
    """A text that configurations share which differ only in writing a number as 1 or as 1.0."""
    counts = _what_counts(config)
    return json.dumps({key: _as_text(value) for key, value in counts.items()}, sort_keys=True)


def written_as(config: dict, other: dict) -> dict:
    """A configuration with its numbers as one writes them that differs in its variant alone."""
    result = without_variant(other)
    if "seed" in config.get("noise", {}):
        result["noise"] = result.get("noise", {}) | {"seed": config["noise"]["seed"]}
    return result | {key: config[key] for key in ("inputs",) if key in config}


def _what_counts(config):
    return {
        key: value
        for key, value in flatten(without_execution(config)).items()
        if key not in DISPLAY and (key not in DEFAULT_KEYS or DEFAULT_KEYS[key] != value)
    }


def identity(config: dict) -> dict:
    """Dataset, noise, fraction, method and model, as tables name them.

    The fraction is 0 if the kind of noise reads none.
    """
    kind = config["noise"]["kind"]
    fraction = 0.0 if kind == "none" or ":" in kind else float(config["noise"]["fraction"])
    return {
        "dataset": dataset_name(config),
        "noise": shorten_path(kind),
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


def data_of(config: dict) -> str | None:
    """The hash of the user's own data, if it is known."""
    return config.get("inputs", {}).get("data")


def different_data(table: pd.DataFrame, configs: dict[str, dict]) -> dict[str, str | None]:
    """Configuration -> the hash of its data, if others under the same name and noise had others."""
    found = dict.fromkeys(configs)
    for _, group in table.groupby(["dataset", "noise"], sort=False):
        data = {name: data_of(configs[name]) for name in dict.fromkeys(group.config)}
        if len(set(data.values()) - {None}) > 1:
            found |= data
    return found


def labels(table: pd.DataFrame, configs: dict[str, dict], axis: str = NOISE_RATE) -> pd.Series:
    """The label of each run, or else its method, with the values in which it is unusual.

    It may only be so if the label has several configurations at one noise fraction, or whatever
    key of the configuration the column ``fraction`` has, the ``axis``. A
    configuration that differs in more than four keys has its hash, and so have those that would be
    left with one label. All have the hash of their data where those of one dataset, by its name,
    are not the same.
    """
    flat = {name: flatten(config) for name, config in configs.items()}
    for keys in flat.values():
        keys.pop(axis, None)
    named = {name: keys.pop("label", None) or None for name, keys in flat.items()}
    bases = table.config.map(named).fillna(table.method)
    suffixes = dict.fromkeys(flat, "")
    for _, group in table.groupby(["dataset", "noise", bases], sort=False):
        cells = [list(dict.fromkeys(cell.config)) for _, cell in group.groupby("fraction")]
        suffixes |= _suffixes(_unusual_keys(cells, flat), flat)
        for names in cells:
            alike = collections.Counter(suffixes[name] for name in names)
            for name in names:
                suffixes[name] += f" [{name}]" if alike[suffixes[name]] > 1 else ""
    for name, data in different_data(table, configs).items():
        if data and f"data={data}" not in suffixes[name]:
            suffixes[name] += f", data={data}"
    return bases + table.config.map(suffixes)


def _unusual_keys(cells: list[list[str]], flat: dict[str, dict]) -> dict[str, list[str]]:
    """Configuration -> the keys in which it differs from what is usual at its noise fraction.

    Usual is what more than half of a cell have, or else more than half of all cells, if anything.
    ``cells``: the configurations of one method at each noise fraction.
    """
    unusual = {name: [] for names in cells for name in names}
    for names in cells:
        for key in dict.fromkeys(key for name in names for key in flat[name]):
            values = {name: _as_text(flat[name].get(key)) for name in unusual}
            here = [values[name] for name in names]
            if len(set(here)) > 1:
                usual = _majority(here) or _majority(list(values.values()))
                for name in names:
                    if values[name] != usual:
                        unusual[name].append(key)
    return unusual


def _as_text(value) -> str:
    """What tells values apart: 0 and 0.0 are one."""
    if isinstance(value, list):
        return f"[{', '.join(map(_as_text, value))}]"
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return repr(float(value) if is_whole else value)


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
            short = key if key == "noise.seed" else key.rsplit(".", 1)[-1]
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
