"""Text of others, as it may be printed."""

import re

# Control characters, but for tab and newline; what turns the direction of writing; line separators
# of Unicode; and halves of characters, which stand for bytes in names of files.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """A text with its control characters escaped, which could take over the terminal."""
    return CONTROL.sub(_escape, str(text))


def in_a_line(text: object, length: int = 300) -> str:
    """The same in one line of at most so many characters, e.g. a name in a table."""
    line = re.sub(r"[\t\n]", _escape, printable(text))
    return line if len(line) <= length else f"{line[: length - 3]}..."


def _escape(match) -> str:
    return match[0].encode("unicode_escape").decode()
