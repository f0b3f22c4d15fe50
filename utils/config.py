"""From a params file and a command line to one resolved, checked configuration.

A configuration is a nested dict. Later wins: defaults below, the file's ``base``, the file, its
``by_fraction`` row for the noise fraction, the command line. A section whose name changes starts
afresh: the old one's arguments do not fit it.
"""

import copy
import math
import re
from pathlib import Path
from typing import Literal

import yaml

from utils.build import argument_problems, defaults, describe, fits, problems, unknown
from utils.errors import UserError

DEFAULTS = {
    "dataset": {"name": "digits"},
    "noise": {"kind": "permute", "fraction": 0.4, "seed": None},
    "task": "classification",
    "task_loss": "cross_entropy",
    "model": {"name": "cnn"},
    "loss": {"name": "Plain"},
    "optimizer": {"name": "SGD", "lr": 0.1},
    "schedule": None,
    "epochs": 20,
    "chunk_steps": None,
    "batch_size": 128,
    "clip_norm": None,
    "seed": 1,
    "validation": {"fraction": 0.0, "clean": False},
    "record_losses": False,
    "augment_recording": True,
    "tensorboard": False,
    "data_root": "data",
    "run_dir": None,
    "device": "auto",
    "precision": "fp32",
    "compile": False,
    "channels_last": True,
    "threads": None,
}
# of everything that is not built from a package; these, and the ranges in check(), are the schema
TYPES = {
    "noise.kind": str,
    "noise.fraction": float,
    "noise.seed": int | None,
    "task": Literal["classification", "regression"],
    "task_loss": str,
    "epochs": int,
    "chunk_steps": int | None,
    "batch_size": int,
    "clip_norm": float | None,
    "seed": int,
    "validation.fraction": float,
    "validation.clean": bool,
    "record_losses": bool,
    "augment_recording": bool,
    "tensorboard": bool,
    "data_root": str,
    "run_dir": str | None,
    "device": str,
    "precision": Literal["fp32", "bf16"],
    "compile": bool,
    "channels_last": bool,
    "threads": int | None,
}
SECTIONS = ("dataset", "noise", "model", "loss", "optimizer", "schedule")
# Where and on what a run goes on: free to change on resume.
EXECUTION = (
    "data_root",
    "run_dir",
    "device",
    "threads",
    "channels_last",
    "tensorboard",
    "dataset.num_workers",
    "dataset.memory_limit",
    "dataset.selection.history",
)
# What main.py gives to each constructor, and a file need not.
CONTEXT = {
    "dataset": ("data_root", "seed", "device"),
    "model": ("num_outputs", "in_channels", "image_size"),
    "selection": ("noise", "rows"),
    "loss": ("task_loss", "num_samples", "num_outputs", "model", "epochs"),
    "optimizer": ("params",),
    "schedule": ("optimizer", "epochs", "steps_per_epoch"),
}


class Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-3 is a number, and a key given twice is an error instead of the last one
    winning in silence.
    """

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


def parse(arguments: list[str], manual_text: str, packages: dict) -> dict:
    """The configuration that a command line asks for: a params file, then key=value. Exits after
    printing --help.

    Raises as ``load``; and FileNotFoundError, naming the command that makes it, where there is no
    history to select from.
    """
    wants_help = bool({"-h", "--help"} & set(arguments))
    arguments = [argument for argument in arguments if argument not in ("-h", "--help")]
    if not arguments and wants_help:
        print(manual(manual_text, DEFAULTS, packages))
        raise SystemExit(0)
    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        raise UserError(
            "the first argument is a params file, e.g. params/digits/discrimloss.yaml; --help prints the manual"
        )
    config = load(arguments[0], arguments[1:], packages)
    if wants_help:
        print(manual(manual_text, config, packages))
        raise SystemExit(0)
    selection = config["dataset"].get("selection")
    over = Path(
        config["run_dir"], "samples.npz"
    ).exists()  # written at the end of a run, which needs no history any more
    if selection is not None and not over and not Path(selection["history"]).is_file():
        held_out = "".join(
            f" validation.{key}={_show(value)}" for key, value in config["validation"].items()
        )
        raise FileNotFoundError(
            f"there is no history of losses {selection['history']} to select from. Record it with the same dataset and labels, "
            f"e.g.\n  python main.py {recorder(arguments[0])} record_losses=true seed={config['seed']} noise.seed="
            f"{config['noise']['seed']} noise.kind={config['noise']['kind']} noise.fraction={config['noise']['fraction']}"
            f"{held_out if config['validation']['fraction'] else ''}\n"
            f"and name it with dataset.selection.history=<its run directory>/losses.npy, if that is elsewhere"
        )
    return config


def recorder(path: str) -> Path:
    """The params file, in the folder of another one, whose runs record the losses that it selects
    by.
    """
    own = Path(path).with_name("rsl_record.yaml")
    return own if own.is_file() else own.with_name("plain.yaml")


def load(path: str, overrides: list[str], packages: dict) -> dict:
    """The resolved configuration of ``path`` with ``a.b=c`` overrides.

    Args:
        packages: section -> package that its name is looked up in.

    Raises:
        FileNotFoundError: the file or its base is not there.
        ValueError: all that is wrong with it, a line each.
    """
    config = resolve(path, overrides)
    found = check(config, packages)
    if found:
        raise UserError("\n".join(found))
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
    """As ``load``, without a look at what it says."""
    config = merge(DEFAULTS, read(Path(path)))
    command_line = {}
    for text in overrides:
        command_line = merge(command_line, parse_override(text))
    rows = config.pop("by_fraction", None)
    if rows:
        noise = merge(config, command_line)["noise"]
        fraction = (
            None
            if not isinstance(noise, dict)
            else 0.0
            if noise.get("kind") == "none"
            else noise.get("fraction")
        )
        if fits(fraction, float) and 0 <= fraction <= 1:  # else check() has something to say
            config = merge(config, _row(rows, fraction, path))
    return merge(config, command_line)


def run_dir(path: str, overrides: list[str]) -> str:
    """Where the run of this command line writes, if nothing is wrong with it."""
    config = resolve(path, overrides)
    return config["run_dir"] or default_run_dir(config, Path(path).stem)


def read(path: Path, above: tuple[Path, ...] = ()) -> dict:
    """A params file merged over its ``base``, which is named relative to it.

    ``above``: the files based on this one.
    """
    above = (*above, path.resolve())
    if not path.is_file():
        near = (
            sorted(str(other) for other in path.parent.glob("*.yaml"))
            if path.parent.is_dir()
            else []
        )
        raise FileNotFoundError(
            f"there is no params file {path}"
            + (f"; in that folder: {', '.join(near)}" if near else "")
        )
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
    if (path.parent / base).resolve() in above:
        raise UserError(f"{path} names itself as its base, or one that is based on it")
    return merge(read(path.parent / base, above), content)


def merge(old: dict, new: dict) -> dict:
    """A copy of ``old`` with ``new`` on top, section by section.

    ``section: name`` is short for ``section: {name: ...}``.
    """
    result = copy.deepcopy(old)
    for key, value in new.items():
        if key in SECTIONS and isinstance(value, str):
            value = {"kind" if key == "noise" else "name": value}
        before = result.get(key)
        both = isinstance(value, dict) and isinstance(before, dict)
        renamed = both and "name" in value and before.get("name") not in (None, value["name"])
        if renamed and "selection" in before:  # no argument of the dataset's: it goes with any
            value = {"selection": before["selection"]} | value
        result[key] = (
            merge(before, value)
            if both and not renamed
            else merge({}, value)
            if isinstance(value, dict)
            else value
        )
    return result


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


def check(config: dict, packages: dict) -> list[str]:
    """All that is wrong with a configuration before anything is built from it."""
    found = []
    for key, value in config.items():
        if key not in DEFAULTS:
            found.append(unknown("key", key, DEFAULTS))
        elif key in packages:
            if value is None and key == "schedule":
                continue
            if not isinstance(value, dict):
                found.append(f"{key} must be a section with a name, got {value!r}")
                continue
            value, selection = without_selection(value) if key == "dataset" else (value, None)
            found += problems(packages[key], value, section=key, context=CONTEXT[key])
            if isinstance(selection, dict):
                found += argument_problems(
                    packages["selection"],
                    selection,
                    section="dataset.selection",
                    context=CONTEXT["selection"],
                )
            elif selection is not None:
                found.append(f"dataset.selection must be a section or null, got {selection!r}")
        elif isinstance(DEFAULTS[key], dict):
            for inner in value if isinstance(value, dict) else ():
                if f"{key}.{inner}" not in TYPES:
                    found.append(unknown(f"key {key}.{inner}", inner, DEFAULTS[key]))
            if not isinstance(value, dict):
                found.append(
                    f"{key} must be a section with {', '.join(DEFAULTS[key])}, got {value!r}"
                )
    for key, hint in TYPES.items():
        value = _get(config, key)
        if not fits(value, hint):
            found.append(f"{key} must be {describe(hint)}, got {value!r}")
        elif key.endswith("fraction") and not 0 <= value <= 1:
            found.append(f"{key} must lie in [0, 1], got {value}")
        elif (
            key in ("epochs", "chunk_steps", "batch_size", "threads")
            and value is not None
            and value < 1
        ):
            found.append(f"{key} must be at least 1, got {value}")
        elif key == "clip_norm" and value is not None and value <= 0:
            found.append(f"clip_norm must be greater than 0, got {value}")
        elif key in ("seed", "noise.seed") and value is not None and not 0 <= value < 2**32:
            found.append(f"{key} must lie in [0, 2^32), got {value}")
        elif key == "validation.fraction" and value > 0.9:
            found.append(f"validation.fraction leaves nothing to train on, got {value}")
        elif key == "device" and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            found.append(f"device must be auto, cpu, cuda or cuda:<number>, got {value!r}")
    return found


def without_selection(dataset: dict) -> tuple[dict, dict | None]:
    """The section ``dataset`` in two.

    What the dataset itself is built from, and its ``selection``.
    """
    return {key: value for key, value in dataset.items() if key != "selection"}, dataset.get(
        "selection"
    )


def differences(old: dict, new: dict) -> list[str]:
    """Keys in which two configurations differ, those aside that only say where a run is executed.

    A key that an older version of this project did not know counts as having its default.
    """
    known = {
        key: value for key, value in flatten(DEFAULTS).items() if key.split(".")[0] not in SECTIONS
    }
    old, new = known | flatten(old), known | flatten(new)
    keys = [key for key in {**old, **new} if key not in EXECUTION]
    return [
        f"{key}: {old.get(key, 'not set')} before, {new.get(key, 'not set')} now"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def flatten(config: dict, prefix: str = "") -> dict:
    """{"a.b": c} for every value of a nested configuration."""
    flat = {}
    for key, value in config.items():
        flat |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def manual(text: str, config: dict, packages: dict) -> str:
    """The manual, and each key that the command line may set with its value here."""
    values = {"dataset.selection": None} if config["dataset"].get("selection") is None else {}
    values |= flatten(config)
    built = {
        section: (getattr(package, config[section]["name"]), config[section])
        for section, package in packages.items()
        if config.get(section) is not None
    }
    if config["dataset"].get("selection") is not None:
        built["selection"] = packages["selection"], config["dataset"]["selection"]
    for section, (constructor, given) in built.items():
        prefix = "dataset.selection" if section == "selection" else section
        values |= {
            f"{prefix}.{key}": value
            for key, value in defaults(constructor, given, CONTEXT[section]).items()
        }
    order = {key: position for position, key in enumerate(config)}
    lines = [
        f"  {key}={_show(value)}"
        for key, value in sorted(values.items(), key=lambda item: order[item[0].split(".")[0]])
    ]
    return "\n".join([text.strip(), "", "keys, with their values here:", *lines])


def default_run_dir(config: dict, method: str) -> str:
    """runs/<dataset>/<method>/<noise>/seed<k>, where the noise is its kind and fraction, or the
    kind alone.

    Of the user's own data, the dataset is e.g. csv-<name of the file>; of one with several tasks,
    e.g. wikihow-goal.
    """
    source = (
        config["dataset"].get("file")
        or config["dataset"].get("root")
        or config["dataset"].get("task")
    )
    dataset = config["dataset"]["name"] + (f"-{Path(source).stem}" if source else "")
    kind, _, detail = config["noise"]["kind"].partition(":")
    detail = re.sub(r"[^\w.-]+", "-", Path(detail).name)
    noise = (
        f"{kind}-{detail}"
        if detail
        else kind
        if kind == "none"
        else f"{kind}-{config['noise']['fraction']:g}"
    )
    return f"runs/{dataset}/{method}/{noise}/seed{config['seed']}"


def _row(rows, fraction, path):
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise UserError(f"by_fraction of {path} must map noise fractions to sections")
    for key, row in rows.items():
        if isinstance(key, (int, float)) and math.isclose(key, fraction, abs_tol=1e-9):
            return row
    if "default" in rows:
        return rows["default"]
    raise UserError(
        f"{path} has parameters for the noise fractions {', '.join(str(key) for key in rows)}, got {fraction}: "
        f"choose one of them, or add a row (or a row named default) to its by_fraction"
    )


def _get(config, dotted):
    for part in dotted.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _show(value):
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
