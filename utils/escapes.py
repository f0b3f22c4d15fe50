"""Text of others, escaped for what it is shown in."""

import re

# Control characters, but for tab and newline; what turns the direction of writing; line separators
# of Unicode; and halves of characters, which stand for bytes in names of files.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What a spreadsheet takes for a formula, and what of that is a number, with its spread, or "-".
FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff0b\uff0d\uff1d\uff20]")
NUMBER = re.compile(r"-|[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?( \+- [\d.]+)?|[-+]?(inf|nan)", re.I)


def printable(text: object) -> str:
    """A text with its control characters escaped, which could take over the terminal."""
    return CONTROL.sub(_escape, str(text))


def in_a_line(text: object, length: int = 300) -> str:
    """The same in one line of at most so many characters, e.g. a name in a table."""
    line = re.sub(r"[\t\n]", _escape, printable(text))
    return line if len(line) <= length else f"{line[: length - 3]}..."


def _escape(match) -> str:
    return match[0].encode("unicode_escape").decode()


def in_a_cell(text: str) -> str:
    """A text for a cell of a CSV file: one that a spreadsheet would compute gets an apostrophe."""
    is_formula = FORMULA.match(text) and not NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def from_a_cell(text: str) -> str:
    """The text of which ``in_a_cell`` made this one."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text
