"""A table of any CSV file: means and spreads over the rows that agree in some columns."""

import io
import re
from pathlib import Path

import pandas as pd

from utils.errors import UserError
from utils.escapes import in_a_line
from utils.files import read_bytes
from utils.report.collect import where
from utils.report.tables import of_fewer, spread


def summarise(
    path: Path,
    by: list[str],
    columns: list[str],
    *,
    median: bool = False,
    condition: str | None = None,
) -> pd.DataFrame:
    """Columns over the rows that agree in ``by``: mean +- standard deviation (ddof 1), as texts.

    ``columns``: "name" or "name:digits"; ``median``: median [low, high] instead.

    Raises:
        UserError: the file cannot be read, or has not the columns that are named.
    """
    if not by or not columns:
        raise UserError("--summary needs --by and --columns")
    digits = dict(_digits(text) for text in columns)
    try:
        table = where(pd.read_csv(io.BytesIO(read_bytes(path.resolve()))), condition)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV file: {error}") from error
    missing = [name for name in [*by, *digits] if name not in table]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table)}")
    texts = [name for name in digits if not pd.api.types.is_numeric_dtype(table[name])]
    if texts:
        raise UserError(f"{path}: no numbers are in the columns {', '.join(texts)}")
    rows = []
    for values, group in table.groupby(by, sort=False, dropna=False):
        row = dict(zip(by, map(in_a_line, values), strict=True)) | {"n": str(len(group))}
        for name in digits:
            row[name] = _text(group[name], digits[name], median)
            row[name] += of_fewer(group[name].count(), len(group))
        rows.append(row)
    return pd.DataFrame(rows)


def _digits(text):
    name, _, digits = text.partition(":")
    if digits and not re.fullmatch("[0-9]{1,2}", digits):
        raise UserError(f"--columns are written name or name:digits, got {text!r}")
    return name, int(digits or 2)


def _text(values: pd.Series, digits: int, median: bool) -> str:
    if median and values.count() > 1:
        middle, low, high = (
            f"{value:.{digits}f}" for value in (values.median(), values.min(), values.max())
        )
        return f"{middle} [{low}, {high}]"
    return spread(values.mean(), values.std(), digits)
