"""What a user can mend, told apart from what is a bug of ours, and the checks that find it.

Needs no PyTorch: commands that only read files import it too.
"""

import difflib
from collections.abc import Iterable

LARGEST = 1e300  # of any number: what is beyond cannot be computed with
LARGEST_INT = 2**63
MOST_LISTED = 100  # names in a message


class UserError(ValueError):
    """A mistake in what was asked for or given: raised deliberately, shown as one line.

    Every command catches this class alone, and ends with exit code 2. Any other exception is a bug,
    and keeps its traceback. The message says what was got, what is allowed and what to do.
    """


def check_interval(name: str, value: float, interval: str):
    """Raise UserError if a number does not lie in an interval such as "[0, 1)" or "(0, inf)".

    NaN lies in none, and infinity in none that is open there.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below) or is_extreme(value):
        raise UserError(f"{name} must lie in {interval}, got {shorten(value)}")


def is_extreme(value) -> bool:
    """Whether a value, or one inside it, is NaN, infinite, or too large to compute with."""
    if isinstance(value, dict):
        return any(map(is_extreme, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(is_extreme, value))
    if isinstance(value, int):
        return abs(value) >= LARGEST_INT
    return isinstance(value, float) and not abs(value) <= LARGEST


def shorten(value) -> str:
    """A value as Python writes it; of a long text or number, the beginning."""
    if isinstance(value, int) and abs(value) >= LARGEST_INT:
        return "a whole number beyond 2^63"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def unknown(what: str, got: str, options: Iterable[str], owner: str = "") -> str:
    """The message for a name that is none of ``options``, with the nearest one first.

    Nearest in spelling, or of the same initials: 'learning_rate' is meant as 'lr'.
    """
    options = list(options)
    if not options:
        return f"{what}: {got!r} is not known{owner} (nothing can be set here)"
    by_lower = {option.lower(): option for option in options}
    name = str(got).lower()
    initials = "".join(word[:1] for word in name.split("_"))
    nearest = difflib.get_close_matches(name, by_lower, n=1, cutoff=0.5)
    if not nearest and initials in by_lower and len(initials) > 1:
        nearest = [initials]
    hint = f"did you mean {by_lower[nearest[0]]!r}? " if nearest else ""
    more = f" and {len(options) - MOST_LISTED} more" if len(options) > MOST_LISTED else ""
    listed = f"{', '.join(options[:MOST_LISTED])}{more}"
    separator = "; " if hint else " "
    return f"{what}: {got!r} is not known{owner}{separator}{hint}(choose from {listed})"
