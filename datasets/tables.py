"""Tables of the user's: read strictly, and labels that look alike taken for one.

A row that does not fit the head would shift the labels in silence.
"""

import bz2
import csv
import gzip
import io
import lzma
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch
from torch import Tensor

from datasets.base import warn
from utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SEPARATORS = {",": "comma", ";": "semicolon"}
NO_UTF_8 = re.compile("[\udc80-\udcff]")  # bytes that are none, as they are read
OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
ZIP = ".zip"


def find_table(file: str, data_root: str) -> Path:
    """Where a table is that is named relative to ``data_root``, unless it is there as it stands."""
    return Path(file) if Path(file).is_file() else Path(data_root) / file


def read_table(
    path: str | Path, *, skip_spaces: bool = False, paths: str | None = None
) -> "pd.DataFrame":
    """A CSV file, perhaps compressed, as texts; the index is the line in which each row begins.

    Blank lines are skipped, and so are empty cells beyond the head's, which spreadsheets write.
    Fields are separated by commas, or, as spreadsheets write them where numbers have a decimal
    comma, by semicolons: if the head has some and no comma. ``attrs`` has the "separator".

    Args:
        skip_spaces: those after a separator.
        paths: a column of names of files. Where some of these are bytes that are no UTF-8, they are
            read as Python reads such names, and so are others beside them, e.g. of their folders.

    Raises UserError, naming the line, if it is no CSV in UTF-8, or a row has more or fewer fields
    than the head.
    """
    import pandas as pd  # takes a second: only if it is used

    rows, lines, line, separator = [], [], 1, ","
    csv.field_size_limit(2**31 - 1)  # texts may be longer than the 128 KiB that are the default
    try:
        with _open(Path(path)) as file:
            separator = separator_of(file)
            reader = csv.reader(
                file, delimiter=separator, skipinitialspace=skip_spaces, strict=True
            )
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows.append(row)
                    lines.append(line)
                line = reader.line_num + 1
    except Exception as error:  # of csv, or of what decompresses, as the damage may be
        hint = ""
        if isinstance(error, csv.Error):
            hint = "; quotes around a field must be closed, and those within it doubled"
        raise UserError(
            f"{path} cannot be read as CSV, at the row that begins in line {line} ({error}{hint})"
        ) from None
    _check_encoding(path, rows, lines, paths)
    head = _without_empty_end([name.strip() for name in rows.pop(0)], 0) if rows else []
    lines = lines[1:]
    if len(head) == 1 and "\t" in head[0]:
        raise UserError(f"{path} is separated by tabs: write it with commas or semicolons")
    twice = [name for name, count in Counter(head).items() if name and count > 1]
    if twice:
        raise UserError(f"{path} has the column {twice[0]!r} more than once")
    rows = [_without_empty_end(row, len(head)) for row in rows]
    misfits = [number for number, row in enumerate(rows) if len(row) != len(head)]
    if misfits:
        raise UserError(
            f"{path} has {len(rows[misfits[0]])} fields in line {lines[misfits[0]]} "
            f"({len(misfits)} such rows), and its head has {len(head)}: {', '.join(head)}; a field "
            f"with a {SEPARATORS[separator]} in it needs quotes around it"
        )
    _warn_of_swallowed_rows(path, rows, lines, separator)
    # str may be that of pyarrow, which has no place for bytes that are no UTF-8
    table = pd.DataFrame(rows, columns=head, index=lines, dtype=object)
    table.attrs["separator"] = separator
    return table


def is_table(path: Path) -> bool:
    """Whether a file is a table by its name, which may end as that of a compressed one."""
    name = path.with_suffix("") if path.suffix in (*OPENERS, ZIP) else path
    return name.suffix.lower() in (".csv", ".tsv", ".txt")


def _open(path):
    """The file as text, as ``atomic_write`` writes it."""
    # -sig: spreadsheets mark the encoding
    options = {"newline": "", "encoding": "utf-8-sig", "errors": "surrogateescape"}
    if path.suffix != ZIP:
        return OPENERS.get(path.suffix, open)(path, "rt", **options)
    archive = zipfile.ZipFile(path)
    return io.TextIOWrapper(archive.open(archive.namelist()[0]), **options)


def _check_encoding(path, rows, lines, paths):
    """Raise UserError for bytes that are no UTF-8, unless there are some among the paths."""
    strange = [row for row, cells in enumerate(rows) if NO_UTF_8.search("".join(cells))]
    if not strange:
        return
    head = [name.strip() for name in rows[0]]
    if 0 not in strange and paths in head:
        column = head.index(paths)
        if any(NO_UTF_8.search("".join(rows[row][column : column + 1])) for row in strange):
            return
    raise UserError(
        f"{path} is not encoded in UTF-8, in the row that begins in line {lines[strange[0]]} "
        f"({len(strange)} such rows): save it as UTF-8, which spreadsheets call CSV UTF-8"
    )


def separator_of(file: TextIO) -> str:
    """What separates the fields of a CSV file, by its first line that is not blank.

    The file is then at its start again.
    """
    head = next((line for line in file if line.strip()), "")
    file.seek(0)
    outside_quotes = re.sub(r'"[^"]*"', "", head)
    return ";" if ";" in outside_quotes and "," not in outside_quotes else ","


def _without_empty_end(row, least):
    """A row without the empty cells at its end, if it has more than ``least`` cells."""
    while len(row) > least and not row[-1].strip():
        row = row[:-1]
    return row


def _warn_of_swallowed_rows(path, rows, lines, separator):
    """Name the first row with lines in it that look like rows: a quote may be missing.

    Such a line has as many fields as the rows, and in one of them what other rows have there too.
    """
    suspects = {}
    for number, row in enumerate(rows):
        inner = [line for cell in row for line in cell.splitlines()[1:-1]]
        if inner and len(row) > 1:
            suspects[number] = inner
    if not suspects:
        return
    others = [row for number, row in enumerate(rows) if number not in suspects]
    known = [set(column) for column in zip(*others, strict=True)]
    count, first = 0, None
    for number, inner in suspects.items():
        fields = [line.split(separator) for line in inner]
        alike = [
            parts
            for parts in fields
            if len(parts) == len(known)
            and any(part.strip() in cells for part, cells in zip(parts, known, strict=True))
        ]
        count += len(alike)
        if alike and first is None:
            first = lines[number]
    if count:
        warn(
            f"{path}: {count} lines within quoted fields look like rows of their own, the first of "
            f"them in the row that begins in line {first}: is a quote missing there, or one too "
            f"many?"
        )


# Labels


@dataclass
class Labels:
    """The labels of a table as classes, and what is to be predicted of each row."""

    classes: list[str]  # their names
    given: Tensor  # [N]
    true: Tensor | None  # [N], if they are known
    test: Tensor | None  # of another table


def number_labels(
    given: Iterable[str],
    true: Iterable[str] | None,
    test: Iterable[str] | None,
    *,
    file: str,
    test_file: str | None,
    by_value: bool,
) -> Labels:
    """Classes are the distinct labels, in the order of their names.

    Labels that differ in what cannot be seen are one class, and so are 1 and 1.0 if both occur.

    Args:
        test: of the rows of ``test_file``.
        by_value: in the order of their values if all are whole numbers.

    Raises UserError if ``test`` has labels that are not in ``file``.
    """
    columns = [
        None if column is None else list(map(visible, column)) for column in (given, true, test)
    ]
    alias = _same_numbers(set().union(*filter(None, columns)))
    columns = [column and [alias.get(name, name) for name in column] for column in columns]
    given, true, test = columns
    names = set(given).union(true or ())
    strange = sorted(set(test or ()) - names)
    if strange:
        raise UserError(
            f"{test_file} has labels that {file} does not have: {', '.join(strange[:10])}"
        )
    _warn_of_letter_case(names)
    numeric = by_value and all(name.isdecimal() and len(name) < 20 for name in names)
    classes = sorted(names, key=(lambda name: (int(name), name)) if numeric else None)
    number = {name: position for position, name in enumerate(classes)}
    numbers = [
        None if column is None else torch.tensor([number[name] for name in column])
        for column in columns
    ]
    return Labels(classes, *numbers)


def visible(label: str) -> str:
    """A name without what cannot be seen: composed letters (NFC), single spaces, none around it."""
    return " ".join(unicodedata.normalize("NFC", label.strip("\ufeff\u200b")).split())


def _same_numbers(names):
    """1 for 1.0, where both are among the names: spreadsheets and pandas write either."""
    alike = {}
    for name in names:
        alike.setdefault(re.sub(r"^(\d+)\.0*$", r"\1", name), []).append(name)
    return {name: number for number, group in alike.items() if len(group) > 1 for name in group}


def _warn_of_letter_case(names):
    """Name two classes that differ in nothing but capital letters."""
    folded = {}
    for name in sorted(names):
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            warn(f"the classes {other!r} and {name!r} differ in capital letters alone")
            return
