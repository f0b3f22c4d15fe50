"""Tables between the markers of markdown files, which name the arguments that make them."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from utils.errors import UserError
from utils.files import atomic_write, read_text

MARKER = re.compile(r"(<!-- report (?P<arguments>.*?) -->\n).*?(<!-- end of report -->)", re.DOTALL)


def update(path: Path, table_for: Callable[[list[str]], str]) -> bool:
    """Rewrite what stands between ``<!-- report ARGUMENTS -->`` and ``<!-- end of report -->``.

    ``table_for``: the markdown table for a list of arguments. Returns whether the file changed.

    Raises:
        UserError: a marker lacks its other half.
        OSError: this is no text file.
    """
    before = read_text(path)
    after = renew(before, table_for, path)
    if after != before:
        with atomic_write(path) as file:
            file.write(after)
    return after != before


def renew(text: str, table_for: Callable[[list[str]], str], path: Path) -> str:
    """The text with its tables as they should be; ``path``: where it is from, for errors."""
    halves = re.findall(r"<!-- (report|end of report)\b", text)
    if halves != ["report", "end of report"] * len(MARKER.findall(text)):
        raise UserError(
            f"{path}: each <!-- report ARGUMENTS --> needs its <!-- end of report --> "
            "before the next one"
        )

    def renewed(match):
        try:
            arguments = shlex.split(match["arguments"])
        except ValueError as error:
            raise UserError(f"{path}: <!-- report {match['arguments']} -->: {error}") from error
        try:
            return match[1] + table_for(arguments) + match[3]
        except SystemExit:  # of argparse, which has said what it does not know
            raise UserError(
                f"{path}: <!-- report {match['arguments']} --> are not the arguments of a table"
            ) from None

    return MARKER.sub(renewed, text)
