"""From a section of a YAML file to the object it describes.

The constructor's signature is the schema.
"""

import collections.abc
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable

from utils.errors import UserError


def build(package, spec: dict, **context):
    """Call ``package.<spec["name"]>`` with the other keys of ``spec``, and with what its signature
    takes of ``context``.

    ``context`` fills what the spec does not give. Call ``problems`` first: it finds what is wrong
    with the spec itself.

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
    except (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError) as error:
        if isinstance(error, UserError) or constructor.__module__.startswith("torch."):
            raise UserError(f"{spec['name']}: {error}") from error
        raise


def problems(package, spec: dict, *, section: str, context: Iterable[str] = ()) -> list[str]:
    """Everything wrong with a section.

    An unknown name or key, a value of the wrong type, a missing argument.
    """
    if "name" not in spec:
        return [f"{section} needs a name: {', '.join(public_names(package))}"]
    if spec["name"] not in public_names(package):
        return [unknown(f"{section}.name", spec["name"], public_names(package))]
    arguments = {key: value for key, value in spec.items() if key != "name"}
    return argument_problems(
        getattr(package, spec["name"]), arguments, section=section, context=context
    )


def argument_problems(
    constructor: Callable, arguments: dict, *, section: str, context: Iterable[str] = ()
) -> list[str]:
    """Everything wrong with the arguments of a call.

    An unknown key, a value of the wrong type, a missing argument.
    """
    parameters = inspect.signature(constructor).parameters
    hints = type_hints(constructor)
    found = []
    for key, value in arguments.items():
        if key not in parameters or key in context:
            found.append(
                unknown(
                    f"key {section}.{key}",
                    key,
                    [name for name in parameters if name not in context],
                    f" of {constructor.__name__}",
                )
            )
        elif not fits(value, hints.get(key, typing.Any)):
            found.append(f"{section}.{key} must be {describe(hints[key])}, got {value!r}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments and key not in context:
            wanted = describe(hints.get(key, typing.Any))
            found.append(f"{section}.{key} is missing: {constructor.__name__} needs it ({wanted})")
    return found


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


def unknown(what: str, got: str, options: Iterable[str], where: str = "") -> str:
    """The message for a name that is none of ``options``, with the nearest one first."""
    options = list(options)
    by_lower = {option.lower(): option for option in options}
    nearest = difflib.get_close_matches(str(got).lower(), by_lower, n=1, cutoff=0.5)
    hint = f"did you mean {by_lower[nearest[0]]!r}? " if nearest else ""
    return f"{what}: {got!r} is not known{where}; {hint}(choose from {', '.join(options)})"


def type_hints(constructor) -> dict:
    """Annotations of a function or of a class's __init__.

    Any for one that names what only a type checker imports.
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


def fits(value, hint) -> bool:
    """Whether a value read from YAML is of the annotated type.

    An int is a float; a bool is no number.
    """
    if hint is typing.Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
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
    if origin is dict:
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
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(argument) for argument in arguments))
    if origin is typing.Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if origin in (list, tuple, Iterable):
        return "a list, each " + " or ".join(
            dict.fromkeys(describe(argument) for argument in arguments if argument is not ...)
        )
    names = {
        float: "a number",
        int: "a whole number",
        bool: "true or false",
        str: "a text",
        type(None): "null",
        None: "null",
    }
    return names.get(hint) or getattr(hint, "__name__", str(hint))
