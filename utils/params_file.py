"""Params files and overrides as nested dictionaries: YAML, ``base``, what lies on top of what."""

import copy
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import yaml

from utils.build import fits, type_hints
from utils.errors import UserError
from utils.settings import NAMED, Settings

MOST_VALUES, DEEPEST, LARGEST_FILE = 10_000, 20, 1_000_000  # of a params file; bytes


class Loader(yaml.SafeLoader):
    """YAML without its surprises.

    Numbers are decimal, 1e-3 too; true and false are the only truth values; 010, 12:30, on and
    2024-01-01 are texts. A key that is given twice is an error.
    """

    # filled below: the resolvers of YAML 1.1 read octal numbers, dates and "on"
    yaml_implicit_resolvers: ClassVar = {}

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = repr(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} stands here twice", node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        digits = self.construct_scalar(node)
        return int(digits) if len(digits) < 400 else math.inf  # no number that can be used


SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    "float": (
        r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
for kind, (pattern, first) in SCALARS.items():
    letters = [*first, ""] if kind == "null" else list(first)
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^({pattern})$"), letters)
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
NO_TEXT = re.compile(f"({'|'.join(pattern for pattern, _ in SCALARS.values())})")


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
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} is no params file: it has more than {LARGEST_FILE:,} bytes")
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader)  # a SafeLoader
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not encoded in UTF-8: {error}") from None
    except RecursionError:
        raise UserError(f"{path} has sections in more than {DEEPEST} others") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what an explicit tag may raise
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        raise UserError(f"{path} is empty: it must hold keys and values, or name a base")
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, got {type(content).__name__}")
    _check_size(content, path)
    base = content.pop("base", None)
    if base is None:
        return merge({}, content)
    if not isinstance(base, str):
        raise UserError(f"base of {path} must name a params file, got {base!r}")
    base = path.parent / os.path.expanduser(base)
    if base.resolve() in descendants:
        raise UserError(f"{path} names itself as its base, or one that is based on it")
    return merge(read(base, descendants), content)


def _check_size(content, path):
    """Raise UserError if what a file holds is too much: YAML's aliases can be repeated at will."""
    waiting, count = [(content, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > DEEPEST:
            raise UserError(f"{path} has sections in more than {DEEPEST} others")
        if count > MOST_VALUES:
            raise UserError(f"{path} has more than {MOST_VALUES:,} values, counting aliases")
        if isinstance(value, dict):
            waiting += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += [(inner, depth + 1) for inner in value]


def merge(old: dict, new: dict, *, inside: bool = False) -> dict:
    """A copy of ``old`` with ``new`` on top, section by section.

    ``section: name`` is short for ``section: {name: ...}``, but not inside another section: there
    it is an argument, as loss.schedule is.
    """
    result = copy.deepcopy(old)
    for key, value in new.items():
        if key in NAMED and isinstance(value, str) and not inside:
            value = {"kind" if key == "noise" else "name": value}
        if isinstance(value, dict):
            value = _merge_section(result.get(key), value, inside or key in NAMED)
        result[key] = value
    return result


def _merge_section(before, value, inside):
    if not isinstance(before, dict):
        return merge({}, value, inside=inside)
    if "name" not in value or before.get("name") in (None, value["name"]):
        return merge(before, value, inside=inside)
    if "selection" in before:  # no argument of the dataset: it goes with any
        value = {"selection": before["selection"]} | value
    return merge({}, value, inside=inside)


def flatten(config: dict, prefix: str = "") -> dict:
    """{"a.b": c} for every value of a nested configuration."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def parse_overrides(texts: Iterable[str]) -> dict:
    """What ``a.b=c`` say together; later wins."""
    tree = {}
    for text in texts:
        tree = merge(tree, parse_override(text))
    return tree


def parse_override(text: str) -> dict:
    """``a.b=c`` as {"a": {"b": c}}.

    c is a list or section in brackets, a text in quotes, a number, true, false or null as in YAML;
    anything else is a text, as it stands.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"an override is written key=value, e.g. noise.fraction=0.4; got {text!r}")
    tree, parts = value_of(value), key.split(".")
    if not all(parts) or len(parts) > DEEPEST:
        raise UserError(f"{key!r} is no key; one is noise.fraction")
    _check_size(tree, key)
    hint = type_hints(Settings).get(key)
    if hint is not None and not fits(tree, hint) and fits(value, hint):
        tree = value  # e.g. a run_dir that is called 2024
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def value_of(text: str):
    """What a text on the command line stands for: as ``parse_override`` says."""
    if text.strip()[:1] not in tuple("[{'\"") and not NO_TEXT.fullmatch(text.strip()):
        return text
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text  # e.g. a path that begins with a bracket
