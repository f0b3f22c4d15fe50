"""From a params file and a command line to one resolved, checked configuration.

A configuration is a nested dict. Later wins: the defaults of utils.settings, the file's ``base``,
the file, its ``by_fraction`` row for the noise fraction, the command line. A section whose name
changes starts afresh: the old one's arguments do not fit it.
"""

import copy
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from utils.build import argument_problems, asks_for, defaults, fits, problems, public_names
from utils.errors import UserError
from utils.settings import DEFAULTS, EXECUTION, SECTIONS, Settings


class Schema(NamedTuple):
    """What a section is built from.

    Args:
        package: what its name is looked up in; or, if the section needs no name, the constructor.
        facts: arguments that the program knows, and a file need not give: name -> how to get it
            from the experiment that is being built.
    """

    package: Any
    facts: Mapping[str, Callable]


class Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-3 is a number, and a key that is given twice is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [
            self.construct_object(key, deep=True)
            for key, _ in node.value
            if key.tag != "tag:yaml.org,2002:merge"
        ]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse(arguments: list[str], manual_text: str, schemas: dict[str, Schema]) -> dict:
    """The configuration that a command line asks for: a params file, then key=value.

    Exits after printing --help.

    Raises:
        UserError, FileNotFoundError: as ``load``; and if there is no history to select from, naming
            the command that makes it.
    """
    wants_help = bool({"-h", "--help"} & set(arguments))
    arguments = [argument for argument in arguments if argument not in ("-h", "--help")]
    if not arguments and wants_help:
        print(manual(manual_text, DEFAULTS, schemas))
        raise SystemExit(0)
    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        raise UserError(
            "the first argument is a params file, e.g. params/digits/discrimloss.yaml; "
            "--help prints the manual"
        )
    config = load(arguments[0], arguments[1:], schemas)
    if wants_help:
        print(manual(manual_text, config, schemas))
        raise SystemExit(0)
    selection = config["dataset"].get("selection")
    # samples.npz is written at the end of a run, which then needs no history any more
    finished = Path(config["run_dir"], "samples.npz").exists()
    if selection is not None and not finished and not Path(selection["history"]).is_file():
        raise FileNotFoundError(_no_history(config, recorder(arguments[0])))
    return config


def _no_history(config, params_file):
    """The message that says how to record the losses that a selection needs."""
    noise, validation = config["noise"], config["validation"]
    held_out = [f" validation.{key}={_show(value)}" for key, value in validation.items()]
    return (
        f"there is no history of losses {config['dataset']['selection']['history']} to select "
        "from. Record it with the same dataset and labels, e.g.\n"
        f"  python main.py {params_file} record_losses=true seed={config['seed']} "
        f"noise.seed={noise['seed']} noise.kind={noise['kind']} noise.fraction={noise['fraction']}"
        f"{''.join(held_out) if validation['fraction'] else ''}\n"
        "and name it with dataset.selection.history=<its run directory>/losses.npy, if that is "
        "elsewhere"
    )


def recorder(path: str) -> Path:
    """The params file, next to the given one, whose runs record the losses it selects by."""
    rsl_record = Path(path).with_name("rsl_record.yaml")
    return rsl_record if rsl_record.is_file() else rsl_record.with_name("plain.yaml")


def load(path: str, overrides: list[str], schemas: dict[str, Schema]) -> dict:
    """The resolved configuration of ``path`` with ``a.b=c`` overrides.

    Raises:
        FileNotFoundError: the file or its base is not there.
        UserError: all that is wrong with it, a line each.
    """
    config = resolve(path, overrides)
    mistakes = check(config, schemas)
    if mistakes:
        raise UserError("\n".join(mistakes))
    if config["noise"]["kind"] == "none":
        config["noise"]["fraction"] = 0.0
    config["noise"]["fraction"] = float(config["noise"]["fraction"])
    if config["noise"]["seed"] is None:
        config["noise"]["seed"] = config["seed"]
    config["run_dir"] = config["run_dir"] or default_run_dir(config, Path(path).stem)
    selection = config["dataset"].get("selection")
    if selection is not None and selection.get("history") is None:
        selection["history"] = f"{default_run_dir(config, recorder(path).stem)}/losses.npy"
    return config


def resolve(path: str, overrides: list[str]) -> dict:
    """As ``load``, but unchecked."""
    config = merge(DEFAULTS, read(Path(path)))
    command_line = {}
    for text in overrides:
        command_line = merge(command_line, parse_override(text))
    rows = config.pop("by_fraction", None)
    if rows:
        fraction = _noise_fraction(merge(config, command_line)["noise"])
        if fits(fraction, float) and 0 <= fraction <= 1:  # else check() names the mistake
            config = merge(config, _row(rows, fraction, path))
    return expand_home(merge(config, command_line))


def expand_home(value):
    """A value, or all in a section: of a path that begins with ~, the home folder in its place."""
    if isinstance(value, dict):
        return {key: expand_home(inner) for key, inner in value.items()}
    if not isinstance(value, str):
        return value
    prefix = "file:" if value.startswith("file:") else ""  # of a noise kind
    return prefix + os.path.expanduser(value.removeprefix(prefix))


def _noise_fraction(noise):
    if not isinstance(noise, dict):
        return None
    return 0.0 if noise.get("kind") == "none" else noise.get("fraction")


def run_dir(path: str, overrides: list[str]) -> str:
    """Where the run of this command line writes, if nothing is wrong with it."""
    config = resolve(path, overrides)
    return config["run_dir"] or default_run_dir(config, Path(path).stem)


def read(path: Path, descendants: tuple[Path, ...] = ()) -> dict:
    """A params file merged over its ``base``, which is named relative to it.

    ``descendants`` are the files that are based on this one.
    """
    descendants = (*descendants, path.resolve())
    if not path.is_file():
        folder = path.parent
        near = sorted(map(str, folder.glob("*.yaml"))) if folder.is_dir() else []
        neighbours = f"; in that folder: {', '.join(near)}" if near else ""
        raise FileNotFoundError(f"there is no params file {path}{neighbours}")
    try:
        content = yaml.load(path.read_text(), Loader) or {}  # Loader is a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, got {type(content).__name__}")
    base = content.pop("base", None)
    if base is None:
        return merge({}, content)
    if not isinstance(base, str):
        raise UserError(f"base of {path} must name a params file, got {base!r}")
    base = path.parent / os.path.expanduser(base)
    if base.resolve() in descendants:
        raise UserError(f"{path} names itself as its base, or one that is based on it")
    return merge(read(base, descendants), content)


def merge(old: dict, new: dict) -> dict:
    """A copy of ``old`` with ``new`` on top, section by section.

    ``section: name`` is short for ``section: {name: ...}``.
    """
    result = copy.deepcopy(old)
    for key, value in new.items():
        if key in SECTIONS and isinstance(value, str):
            value = {"kind" if key == "noise" else "name": value}
        if isinstance(value, dict):
            value = _merge_section(result.get(key), value)
        result[key] = value
    return result


def _merge_section(before, value):
    if not isinstance(before, dict):
        return merge({}, value)
    if "name" not in value or before.get("name") in (None, value["name"]):
        return merge(before, value)
    if "selection" in before:  # no argument of the dataset: it goes with any
        value = {"selection": before["selection"]} | value
    return merge({}, value)


def parse_override(text: str) -> dict:
    """``a.b=c`` as {"a": {"b": c}}, c read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"an override is written key=value, e.g. noise.fraction=0.4; got {text!r}")
    try:
        tree = yaml.load(value, Loader)
    except yaml.YAMLError:
        tree = value  # e.g. a path with a colon: as it stands
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def check(config: dict, schemas: dict[str, Schema]) -> list[str]:
    """All that is wrong with a configuration before anything is built from it."""
    mistakes = argument_problems(Settings, config, section="")
    for key, (package, facts) in schemas.items():
        if not isinstance(config.get(key), dict):  # inside another section, or reported already
            continue
        spec, _ = without_selection(config[key]) if key == "dataset" else (config[key], None)
        if key == "loss":
            mistakes += _own_rate_problems(spec)
            spec = without_own_rate(package, spec)
        mistakes += problems(package, spec, section=key, context=facts)
    selection = config["dataset"].get("selection") if isinstance(config["dataset"], dict) else None
    if isinstance(selection, dict):
        package, facts = schemas["selection"]
        mistakes += argument_problems(
            package, selection, section="dataset.selection", context=facts
        )
    elif selection is not None:
        mistakes.append(f"dataset.selection must be a section or null, got {selection!r}")
    return mistakes


def without_selection(dataset: dict) -> tuple[dict, dict | None]:
    """The section ``dataset`` in two: what it is built from, and its ``selection``."""
    own = {key: value for key, value in dataset.items() if key != "selection"}
    return own, dataset.get("selection")


def without_own_rate(package, spec: dict) -> dict:
    """The section ``loss`` without ``lr``, which belongs to the optimiser of its parameters.

    It stays if the method itself takes an argument of that name.
    """
    known = spec.get("name") in public_names(package)
    if known and asks_for(package, spec, "lr"):
        return spec
    return {key: value for key, value in spec.items() if key != "lr"}


def _own_rate_problems(spec):
    rate = spec.get("lr", 1.0)
    if fits(rate, float) and rate > 0:
        return []
    return [f"loss.lr must be greater than 0, got {rate!r}"]


def differences(old: dict, new: dict) -> list[str]:
    """Keys in which two configurations differ, but for those that say where a run is executed.

    A key that an older version of this project did not know counts as having its default.
    """
    known = flatten({key: value for key, value in DEFAULTS.items() if key not in SECTIONS})
    old, new = known | flatten(old), known | flatten(new)
    return [
        f"{key}: {old.get(key, 'not set')} before, {new.get(key, 'not set')} now"
        for key in {**old, **new}
        if key not in EXECUTION and old.get(key) != new.get(key)
    ]


def flatten(config: dict, prefix: str = "") -> dict:
    """{"a.b": c} for every value of a nested configuration."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def manual(text: str, config: dict, schemas: dict[str, Schema]) -> str:
    """The manual, and each key that the command line may set with its value here."""
    values = flatten(config)
    if config["dataset"].get("selection") is None:
        values = {"dataset.selection": None} | values
    for section, (package, facts) in schemas.items():
        prefix, given = section, config.get(section)
        if section == "selection":
            prefix, given = "dataset.selection", config["dataset"].get("selection")
        if given is None:
            continue
        constructor = package if section == "selection" else getattr(package, given["name"])
        inner = defaults(constructor, given, facts)
        values |= {f"{prefix}.{key}": value for key, value in inner.items()}
    order = {key: position for position, key in enumerate(config)}
    sections_together = sorted(values.items(), key=lambda item: order[item[0].split(".")[0]])
    lines = [f"  {key}={_show(value)}" for key, value in sections_together]
    return "\n".join([text.strip(), "", "keys, with their values here:", *lines])


def default_run_dir(config: dict, method: str) -> str:
    """runs/<dataset>/<method>/<noise>/seed<k>, with the kind and fraction of the noise.

    Of the user's own data, the dataset is e.g. csv-<name of the file>; of one with several tasks,
    e.g. wikihow-goal.
    """
    section = config["dataset"]
    source = section.get("file") or section.get("root") or section.get("task")
    dataset = section["name"] + (f"-{Path(source).stem}" if source else "")
    kind, _, detail = config["noise"]["kind"].partition(":")
    if detail:
        noise = f"{kind}-" + re.sub(r"[^\w.-]+", "-", Path(detail).name)
    else:
        noise = kind if kind == "none" else f"{kind}-{config['noise']['fraction']:g}"
    return f"runs/{dataset}/{method}/{noise}/seed{config['seed']}"


def _row(rows, fraction, path):
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise UserError(f"by_fraction of {path} must map noise fractions to sections")
    for key, row in rows.items():
        if isinstance(key, (int, float)) and math.isclose(key, fraction, abs_tol=1e-9):
            return row
    if "default" in rows:
        return rows["default"]
    known = ", ".join(str(key) for key in rows)
    raise UserError(
        f"{path} has parameters for the noise fractions {known}, got {fraction}: choose one of "
        "them, or add a row (or a row named default) to its by_fraction"
    )


def _show(value):
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
