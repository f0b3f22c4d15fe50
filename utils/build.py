"""From a section of a YAML file to the object it describes: the signature is the schema."""

import collections.abc
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from utils.errors import UserError, is_extreme, shorten, unknown


class Must(NamedTuple):
    """A condition on an argument besides its type: ``Annotated[int, Must("be even", is_even)]``.

    None, if the type allows it, needs to meet no condition.
    """

    text: str
    holds: Callable[[typing.Any], bool]


POSITIVE = Must("be greater than 0", lambda value: value > 0)
AT_LEAST_0 = Must("be at least 0", lambda value: value >= 0)
AT_LEAST_1 = Must("be at least 1", lambda value: value >= 1)
FRACTION = Must("lie in [0, 1]", lambda value: 0 <= value <= 1)
SEED = Must("lie in [0, 2^32)", lambda value: 0 <= value < 2**32)
TOO_LARGE = re.compile("memory|[Ss]torage size|overflow")  # in PyTorch's errors over allocations


class Section(dict):
    """The annotation of a section that names what is built from its other keys."""


def build(package, spec: dict, **context):
    """Call ``package.<spec["name"]>`` with the other keys of ``spec``.

    What the signature asks for and the spec does not give is taken from ``context``. Call
    ``problems`` first: it finds what is wrong with the spec itself.

    Raises:
        UserError: what the constructor says is wrong, with its name in front. Our own constructors
            say so with a UserError; of those of PyTorch, any complaint about arguments counts.
    """
    constructor = getattr(package, spec["name"])
    wanted = inspect.signature(constructor).parameters
    arguments = {key: value for key, value in context.items() if key in wanted}
    arguments |= {key: value for key, value in spec.items() if key != "name"}
    try:
        return constructor(**arguments)
    except MemoryError as error:
        raise UserError(f"{spec['name']} does not fit into memory") from error
    except (
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        ZeroDivisionError,
        OverflowError,
        RuntimeError,
    ) as error:
        theirs = constructor.__module__.startswith("torch.")
        too_large = isinstance(error, RuntimeError) and TOO_LARGE.search(str(error))
        if isinstance(error, UserError) or theirs or too_large:
            named = str(error).startswith(f"{spec['name']} ")
            raise UserError(str(error) if named else f"{spec['name']}: {error}") from error
        raise


def asks_for(package, spec: dict, name: str) -> bool:
    """Whether what a section describes takes an argument of that name."""
    return name in inspect.signature(getattr(package, spec["name"])).parameters


def problems(package, spec: dict, *, section: str, context: Iterable[str] = ()) -> list[str]:
    """Everything wrong with a section: its name, and as ``argument_problems``.

    A package whose constructors are not ours may state the ranges of their arguments in RANGES.
    """
    if "name" not in spec:
        return [f"{section} needs a name: {', '.join(public_names(package))}"]
    if spec["name"] not in public_names(package):
        return [unknown(f"{section}.name", spec["name"], public_names(package))]
    arguments = {key: value for key, value in spec.items() if key != "name"}
    constructor = getattr(package, spec["name"])
    further = getattr(package, "RANGES", {})
    return argument_problems(
        constructor, arguments, section=section, context=context, further=further
    )


def argument_problems(
    constructor: Callable,
    arguments: dict,
    *,
    section: str,
    context: Iterable[str] = (),
    further: Mapping[str, Iterable[Must]] = types.MappingProxyType({}),
) -> list[str]:
    """Everything wrong with the arguments of a call, a line each.

    An unknown key, a missing argument, a value of the wrong type or outside its range. Arguments
    that are dataclasses are sections themselves.

    Args:
        section: stands before each key; "" at the top level of a configuration.
        context: names of arguments that are given by the program.
        further: conditions on arguments besides those of their annotations.
    """
    parameters = inspect.signature(constructor).parameters
    hints = type_hints(constructor)
    owner = "" if dataclasses.is_dataclass(constructor) else f" of {constructor.__name__}"
    prefix = f"{section}." if section else ""
    lines = []
    for key, value in arguments.items():
        hint = hints.get(key, typing.Any)
        if key not in parameters or key in context:
            options = [name for name in parameters if name not in context]
            what = f"key {prefix}{key}" if section else "key"
            lines.append(unknown(what, key, options, owner))
        elif dataclasses.is_dataclass(hint) and isinstance(value, dict):
            lines += argument_problems(hint, value, section=prefix + key)
        elif is_extreme(value):
            lines.append(f"{prefix}{key} must be finite, got {shorten(value)}")
        elif not fits(value, hint):
            lines.append(f"{prefix}{key} must be {describe(hint)}, got {shorten(value)}")
        elif value is not None:
            musts = [*conditions(hint), *further.get(key, ())]
            unmet = [condition.text for condition in musts if not condition.holds(value)]
            lines += [f"{prefix}{key} must {text}, got {value!r}" for text in unmet[:1]]
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments and key not in context:
            wanted = describe(hints.get(key, typing.Any))
            lines.append(f"{prefix}{key} is missing: {constructor.__name__} needs it ({wanted})")
    return lines


def public_names(package) -> list[str]:
    """The names that a YAML file may use: the callables in __all__."""
    return [name for name in package.__all__ if callable(getattr(package, name))]


def defaults(constructor: Callable, given: Iterable[str], context: Iterable[str] = ()) -> dict:
    """Arguments that are not among those ``given``, with their defaults."""
    parameters = inspect.signature(constructor).parameters
    return {
        key: parameter.default
        for key, parameter in parameters.items()
        if key not in given and key not in context and parameter.default is not parameter.empty
    }


def type_hints(constructor) -> dict:
    """Annotations of a function or of a class's __init__, by argument.

    One that names what is only imported for type checkers is Any.
    """
    function = inspect.unwrap(constructor.__init__ if inspect.isclass(constructor) else constructor)
    hints = {}
    for name, hint in inspect.get_annotations(function).items():
        if isinstance(hint, str):
            try:
                hint = eval(hint, function.__globals__, {**vars(collections.abc), **vars(typing)})
            except (NameError, AttributeError, TypeError):
                hint = typing.Any
        hints[name] = hint
    return hints


def conditions(hint) -> list[Must]:
    """The conditions in an annotation."""
    return [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Must)]


def fits(value, hint) -> bool:
    """Whether a value from YAML is of the annotated type: an int is a float, a bool is neither."""
    if hint is typing.Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return fits(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return any(value == argument and type(value) is type(argument) for argument in arguments)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, dict):
        return isinstance(value, hint)
    if hint in (None, type(None)):
        return value is None
    if origin is dict or hint is Section:
        return isinstance(value, dict)
    if origin in (list, tuple, Iterable):
        kinds = [argument for argument in arguments if argument is not ...]
        return isinstance(value, (list, tuple)) and all(
            any(fits(item, kind) for kind in kinds) for item in value
        )
    return not inspect.isclass(hint) or isinstance(value, hint)


def describe(hint) -> str:
    """An annotation in words, for error messages."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return describe(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(argument) for argument in arguments))
    if origin is typing.Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if origin in (list, tuple, Iterable):
        kinds = [describe(argument) for argument in arguments if argument is not ...]
        return "a list, each " + " or ".join(dict.fromkeys(kinds))
    if dataclasses.is_dataclass(hint):
        return f"a section with {', '.join(field.name for field in dataclasses.fields(hint))}"
    words = {
        float: "a number",
        int: "a whole number",
        bool: "true or false",
        str: "a text",
        Section: "a section with a name",
        type(None): "null",
        None: "null",
    }
    return words.get(hint) or getattr(hint, "__name__", str(hint))
