"""Labels from a file: the user's own, .npz or .csv, or those that people gave (CIFAR-N)."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from datasets.base import warn
from datasets.tables import separator_of, visible
from utils.errors import UserError, unknown
from utils.files import read_arrays

CIFAR_N = {  # what a params file calls them, and what the release does
    "worse": "worse_label",
    "aggre": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "noisy": "noisy_label",
}
HUMAN = {"cifar10": "CIFAR-10_human.pt", "cifar100": "CIFAR-100_human.pt"}  # files of the release


def read_labels(
    path: str, num_samples: int, num_classes: int, classes: Sequence[str] = ()
) -> np.ndarray:
    """Labels [num_samples] from a .npz or a .csv: its column ``given``, or another after a #.

    They are class numbers, or names of ``classes``, or with num_classes = 0 any finite numbers. The
    column ``index`` is the position of each row in the training set; without it, rows are in order.

    Raises:
        FileNotFoundError: no such file.
        UserError: another format, a missing key, a wrong number of labels, a label that is no
            class, or texts that are both numbers and names, of different classes.
    """
    path, _, key = path.partition("#")
    key = key or "given"
    columns = read_columns(path)
    if key not in columns:
        raise UserError(
            f"{path} has no key {key!r}; it has {', '.join(columns) or 'none'}. Name one with "
            f"file:{path}#<key>"
        )
    column, what = columns[key], f"{path}, {key}"
    if num_classes and column.dtype.kind in "OU":
        column = _named(column, what, classes)
    given = (_whole_numbers if num_classes else _numbers)(column, what)
    if given.shape != (num_samples,):
        raise UserError(
            f"{path} must hold one label for each of the {num_samples} training samples, got "
            f"{list(given.shape)}"
        )
    if num_classes and (given.min() < 0 or given.max() >= num_classes):
        bad = np.flatnonzero((given < 0) | (given >= num_classes))
        raise UserError(
            f"{path} must hold class numbers in [0, {num_classes}), got {given[bad[0]]} at "
            f"position {bad[0]} ({len(bad)} such)"
        )
    if "index" in columns:
        index = _whole_numbers(columns["index"], f"{path}, index")
        if not np.array_equal(np.sort(index), np.arange(num_samples)):
            raise UserError(
                f"column index of {path} must hold each position in [0, {num_samples}) once"
            )
        given = given[np.argsort(index)]
    return given


def _named(column, what, classes):
    """Class numbers of texts that are names of classes; other texts as they are."""
    numbers = {visible(name): number for number, name in enumerate(classes)}

    def as_class(text):
        name = "" if text is None else visible(str(text))
        if name not in numbers and _is_number(name):  # 1.0 for 1, as pandas writes it
            whole = name.partition(".")[0]
            return whole if whole in numbers else name
        return name

    names = [as_class(text) for text in column.ravel()]
    strange = [position for position, name in enumerate(names) if name not in numbers]
    if not numbers or (strange and all(map(_is_number, names))):
        return column
    if strange:
        message = unknown(what, names[strange[0]], numbers)
        raise UserError(f"{message}, at position {strange[0]} ({len(strange)} such)")
    named = np.array([numbers[name] for name in names]).reshape(column.shape)
    if all(map(_is_number, names)) and (np.array(names, np.float64) != named.ravel()).any():
        raise UserError(
            f"{what}: {names[0]!r} may be the number of a class or its name, and these differ; "
            f"write an .npz with whole numbers"
        )
    return named


def _is_number(text):
    return re.fullmatch(r"[-+]?\d+(\.0*)?", text) is not None


def read_columns(path: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz or .csv file, by name; raises as ``read_labels``."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"noise.kind=file:{path}: there is no such file")
    if path.endswith(".npz"):
        try:  # allow_pickle is off: labels cannot run code
            return read_arrays(Path(path).resolve())
        except OSError as error:
            raise UserError(f"{path} cannot be read as .npz with plain arrays ({error})") from None
    if path.endswith(".csv"):
        longer = []
        try:  # -sig: spreadsheets write a mark of the encoding
            with open(path, newline="", encoding="utf-8-sig") as file:
                separator = separator_of(file)
                reader = csv.DictReader(file, delimiter=separator, skipinitialspace=True)
                names, rows = reader.fieldnames or (), []
                for row in reader:
                    rows.append(row)
                    if None in row:
                        longer.append(reader.line_num)
        except (ValueError, csv.Error) as error:
            hint = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
            raise UserError(f"{path} cannot be read as .csv ({error}){hint}") from None
        if longer:
            warn(
                f"{path}: {len(longer)} rows have more fields than the head, the first of them in "
                f"line {longer[0]}: those at their end are left out"
            )
        return {name: np.array([row[name] for row in rows]) for name in names}
    raise UserError(f"labels are read from .npz or .csv, got {path}")


def human(name: str, clean: np.ndarray, dataset: str, data_root: str) -> np.ndarray:
    """Human labels of CIFAR-N as ``read_human``; their clean_label must be the dataset's own.

    Raises:
        UserError: a file that is of other labels; and as ``read_human``.
    """
    given, true = read_human(name, dataset, data_root)
    if true is not None and not np.array_equal(true, clean):
        raise UserError(
            f"clean_label of the file of human:{name} differs from the labels of {dataset}: the "
            f"files are not in the same order"
        )
    if given.shape != clean.shape:
        raise UserError(f"human:{name} must be {len(clean)} labels, got {list(given.shape)}")
    return given


def read_human(name: str, dataset: str, data_root: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Human labels of CIFAR-N (Wei et al. 2022): worse, aggre, random1 to random3; or noisy.

    The last one is for CIFAR-100. Read from the official ``data_root/CIFAR-10_human.pt`` (or
    CIFAR-100_human.pt), or from a .npz of that name with the same arrays.

    Returns:
        The labels, and the clean_label of the file, if it has any.

    Raises:
        FileNotFoundError: no such file.
        UserError: another dataset or name; a file that cannot be read.
    """
    if dataset not in HUMAN:
        raise UserError(
            f"noise kind human:{name} exists for cifar10 and cifar100 (CIFAR-N), not for {dataset}"
        )
    path = Path(data_root) / HUMAN[dataset]
    if not path.is_file() and path.with_suffix(".npz").is_file():
        path = path.with_suffix(".npz")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} was not found: noise kind human:{name} reads this file of the CIFAR-N release "
            f"(github.com/UCSC-REAL/cifar-10-100n, folder data), or a .npz of that name"
        )
    try:
        columns = _read_release(path)
    except Exception as error:  # of pickle, zip or torch, as the damage may be
        raise UserError(
            f"{path} cannot be read as plain NumPy arrays: is it the file of the release?"
        ) from error
    # without coarse labels
    names = {key: key for key in columns if key in ("clean_label", *CIFAR_N.values())}
    names |= {short: key for short, key in CIFAR_N.items() if key in columns}
    if name not in names:
        raise UserError(f"{path} has no labels {name!r}; it has {', '.join(names)}")
    true = np.asarray(columns["clean_label"]) if "clean_label" in columns else None
    return np.asarray(columns[names[name]]).astype(np.int64), true


def _read_release(path):
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    integers = [type(np.dtype(name)) for name in ("int64", "int32", "uint8")]
    reconstruct = np._core.multiarray._reconstruct
    # its name in the released files, which are older than NumPy 2
    released = (reconstruct, "numpy.core.multiarray._reconstruct")
    allowed = [reconstruct, released, np.ndarray, np.dtype, *integers]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, weights_only=True)


def _numbers(column, what, kind="numbers"):
    try:
        numbers = column.astype(np.float64)
    except (ValueError, TypeError):  # TypeError: a cell that is missing
        raise UserError(f"{what} must hold {kind}") from None
    if not np.isfinite(numbers).all():
        raise UserError(f"{what} must hold {kind}")
    return numbers.astype(np.float32)


def _whole_numbers(column, what):
    _numbers(column, what, "whole numbers")
    numbers = column.astype(np.float64)
    if (numbers != np.floor(numbers)).any():
        raise UserError(f"{what} must hold whole numbers")
    return numbers.astype(np.int64)
