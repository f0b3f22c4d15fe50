"""From a params file and a command line to one resolved, checked configuration.

A configuration is a nested dict. Later wins: the defaults of utils.settings, the file's ``base``,
the file, its ``by_fraction`` row for the noise fraction, the command line. A section whose name
changes starts afresh: the old one's arguments do not fit it. A text such as "50% of epochs" stands
for that many whole epochs.
"""

import copy
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.build import argument_problems, asks_for, fits, problems, public_names, type_hints
from utils.errors import UserError
from utils.params_file import flatten, merge, parse_overrides, read, value_of
from utils.settings import DEFAULTS, DISPLAY, EXECUTION, SECTIONS, Settings

LIKE = "like"  # of a row of by_fraction: the fraction of the row it lies on top of
SHARE_OF_EPOCHS = re.compile(r"(\d+(\.\d*)?|\.\d+) ?% of epochs")


class Schema(NamedTuple):
    """What a section is built from.

    Args:
        package: what its name is looked up in; or, if the section needs no name, the constructor.
        facts: arguments that the program knows, and a file need not give: name -> how to get it
            from the experiment that is being built.
    """

    package: Any
    facts: Mapping[str, Callable]


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
    _take_literally(config, overrides, schemas)
    mistakes = check(config, schemas)
    if mistakes:
        raise UserError("\n".join(mistakes))
    return complete(config, path)


def complete(config: dict, path: str) -> dict:
    """A configuration with what follows from other keys written in: seed of the noise, paths.

    ``path``: of its params file. Of a configuration that has not been checked, it may raise
    whatever values of wrong types raise.
    """
    config = copy.deepcopy(config)
    if config["noise"]["kind"] == "none":
        config["noise"]["fraction"] = 0.0
    config["noise"]["fraction"] = float(config["noise"]["fraction"])
    if config["noise"]["seed"] is None:
        config["noise"]["seed"] = config["seed"]
    config["run_dir"] = config["run_dir"] or default_run_dir(config, Path(path))
    selection = config["dataset"].get("selection")
    if selection is not None and selection.get("history") is None:
        selection["history"] = f"{default_run_dir(config, recorder(path))}/losses.npy"
    return config


def resolve(path: str, overrides: list[str]) -> dict:
    """As ``load``, but unchecked.

    Raises UserError for a share of the epochs beside chunk_steps.
    """
    config, row, _, command_line = _parts(path, overrides)
    config = expand_home(merge(merge(config, row), command_line))
    epochs = config.get("epochs")
    # of a number that check() refuses, so that it names that mistake alone
    resolved = _resolve_shares(config, epochs if fits(epochs, int) else DEFAULTS["epochs"])
    if config.get("chunk_steps") is not None and resolved != config:
        flat = flatten(resolved)
        shares = [key for key, value in flatten(config).items() if value != flat[key]]
        raise UserError(
            "with chunk_steps an epoch of the method and of the schedule is a chunk, and the data "
            f"say how many there are: write a number for {', '.join(shares)}"
        )
    return resolved


def _parts(path, overrides):
    """A params file without its rows, the row for the noise fraction, the rows, the command line.

    Without rows, both are {}.
    """
    config, command_line = merge(DEFAULTS, read(Path(path))), parse_overrides(overrides)
    rows = config.pop("by_fraction", None)
    if "by_fraction" in command_line:
        rows = command_line.pop("by_fraction")
    row = {}
    if rows is not None:
        fraction = _noise_fraction(merge(config, command_line)["noise"])
        if fits(fraction, float) and 0 <= fraction <= 1:  # else check() names the mistake
            row = _row(rows, fraction, path, command_line)
    return config, row, rows or {}, command_line


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


def left_to_defaults(path: str, overrides: list[str]) -> list[str]:
    """A line if the row for this noise fraction lacks keys that others of the file have.

    They come from the rest of the file if that has them, else from the signature.
    """
    config, row, rows, command_line = _parts(path, overrides)
    if not row:
        return []
    known = flatten(merge(config, merge(row, command_line)))
    missing = [key for key in _keys_of_rows(rows) if key not in known]
    if not missing:
        return []
    fraction = _noise_fraction(merge(config, command_line)["noise"])
    return [
        f"{path} has a row for the noise fraction {fraction} without {', '.join(missing)}, which "
        f"others have: these keep their defaults. To take them from another row, add "
        f"like: <its fraction>"
    ]


def _keys_of_rows(rows):
    return list(dict.fromkeys(key for row in rows.values() for key in flatten(row) if key != LIKE))


def _resolve_shares(value, epochs):
    """A configuration with numbers in the place of "50% of epochs" and the like."""
    if isinstance(value, dict):
        return {key: _resolve_shares(inner, epochs) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolve_shares(inner, epochs) for inner in value]
    share = SHARE_OF_EPOCHS.fullmatch(value) if isinstance(value, str) else None
    if share is None:
        return value
    return math.floor(float(share[1]) / 100 * epochs + 0.5)


def _take_literally(config, overrides, schemas):
    """Where a key of a section takes a text, and its value looks like another, the text.

    So a folder may be called 2024 or true. A value that the key takes too, as null, stays that.
    ``parse_override`` does the same at the top level, where no schema is needed.
    """
    for text in overrides:
        key, _, raw = text.partition("=")
        *sections, last = key.split(".")
        inner = config
        for section in sections:
            inner = inner.get(section) if isinstance(inner, dict) else None
        hint = _hint(sections, last, config, schemas)
        if isinstance(inner, dict) and hint is not None and last in inner:
            value = inner[last]
            if not isinstance(value, str) and not fits(value, hint) and fits(raw, hint):
                inner[last] = raw


def _hint(sections, key, config, schemas):
    """The annotation of a key in a section, or None."""
    if sections == ["dataset", "selection"]:
        return type_hints(schemas["selection"].package).get(key)
    section = config.get(sections[0]) if len(sections) == 1 else None
    if not isinstance(section, dict) or sections[0] not in schemas:
        return None
    package = schemas[sections[0]].package
    if section.get("name") not in public_names(package):
        return None
    return type_hints(getattr(package, section["name"])).get(key)


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


def differences(old: dict, new: dict, free: tuple[str, ...] = ()) -> list[str]:
    """Keys in which two configurations differ, but for those that say where a run is executed.

    A key that an older version of this project did not know counts as having its default. ``free``:
    further keys that may differ.
    """
    known = flatten({key: value for key, value in DEFAULTS.items() if key not in SECTIONS})
    old, new = known | flatten(old), known | flatten(new)
    return [
        f"{key}: {old.get(key, 'not set')} before, {new.get(key, 'not set')} now"
        for key in {**old, **new}
        if key not in (*EXECUTION, *DISPLAY, *free) and not _same(old.get(key), new.get(key))
    ]


def _same(first, second) -> bool:
    """Whether two values are one, also a number and a text that looks like it: a folder 2024."""
    if isinstance(first, str) and not isinstance(second, str):
        first = value_of(first)
    elif isinstance(second, str) and not isinstance(first, str):
        second = value_of(second)
    return first == second


def extension(begun: dict, config: dict, arguments: Sequence[str], free: tuple[str, ...]) -> dict:
    """What changes if a finished run goes on for more epochs, its old values by key.

    That of ``epochs``, and of what the params file or the command line gives as a share of them.
    {} if ``config`` is not that of the run but for its epochs.

    Args:
        begun: the configuration of the finished run.
        arguments: what ``config`` was made of: the params file and the overrides.
        free: keys that may differ.
    """
    before, now = begun.get("epochs"), config["epochs"]
    if not (arguments and fits(before, int) and fits(now, int) and before < now):
        return {}
    overrides = [*arguments[1:], f"epochs={before}"]
    as_before = complete(resolve(arguments[0], overrides), arguments[0])
    free = (*free, "extended")
    if differences(begun, as_before, free):
        return {}
    old = flatten(begun)
    changed = (line.split(":")[0] for line in differences(begun, config, free))
    return {key: old.get(key) for key in changed}


def default_run_dir(config: dict, params: Path) -> str:
    """runs/<dataset>/<params file>/<noise>/seed<k>, with the kind and fraction of the noise.

    Of the user's own data, the dataset is e.g. csv-<name of the file>; of one with several tasks,
    e.g. wikihow-goal; of one with several protocols, e.g. mnist_mlp, the folder of the params file.
    """
    section, folder = config["dataset"], params.parent.name
    dataset = folder if folder.startswith(f"{section['name']}_") else section["name"]
    source = section.get("file") or section.get("root") or section.get("task")
    dataset += f"-{Path(str(source)).stem}" if source else ""
    kind, _, detail = config["noise"]["kind"].partition(":")
    kind = re.sub(r"[^\w.-]+", "-", kind)  # of a kind that is refused later on: no folder elsewhere
    if detail:
        noise = f"{kind}-" + re.sub(r"[^\w.-]+", "-", Path(detail).name)
    else:
        noise = kind if kind == "none" else f"{kind}-{config['noise']['fraction']:g}"
    run, validation = f"seed{config['seed']}", config["validation"]
    if validation["folds"] is not None:
        run += f"-{validation['folds']}folds/fold{validation['fold']}"
    return f"runs/{dataset}/{params.stem}/{noise}/{run}"


def _row(rows, fraction, path, command_line):
    """What by_fraction says of a noise fraction.

    A row lies on top of the one that its ``like`` names, or else of the row ``default``. Without a
    row, the command line may give all keys that the others have.
    """
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise UserError(f"by_fraction of {path} must map noise fractions to sections")
    row = _find_row(rows, fraction)
    if row is None and "default" in rows:
        return merge({}, rows["default"])
    if row is None:
        missing = [key for key in _keys_of_rows(rows) if key not in flatten(command_line)]
        if not missing:
            return {}
        known = ", ".join(str(key) for key in rows)
        raise UserError(
            f"{path} has parameters for the noise fractions {known}, got {fraction}: choose one of "
            f"them, add a row to its by_fraction (of its own, like: <another>, or a row named "
            f"default), give {', '.join(missing)} on the command line, or set by_fraction=null"
        )
    seen = [fraction]
    while LIKE in row:
        like = row[LIKE]
        other = _find_row(rows, like) if fits(like, float) else rows.get(like)
        if other is None or like in seen:
            raise UserError(
                f"by_fraction of {path}: a row is like: {like!r}, which is no other row of it"
            )
        seen.append(like)
        row = merge(other, {key: value for key, value in row.items() if key != LIKE})
    return row if len(seen) > 1 else merge(rows.get("default", {}), row)


def _find_row(rows, fraction):
    for key, row in rows.items():
        if fits(key, float) and math.isclose(key, fraction, abs_tol=1e-9):
            return row
    return None
