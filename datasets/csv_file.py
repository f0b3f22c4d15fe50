"""The user's own images, listed in a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from datasets.base import IMAGENET, Dataset, Split, cache_folder, check_files, split_off
from datasets.copies import among, count_copies, find_copies
from datasets.tables import NO_UTF_8, number_labels, read_table
from utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def csv(
    file: str,
    data_root: str = "data",
    root: str | None = None,
    test_file: str | None = None,
    image_size: int = 224,
    num_workers: int = 2,
    test_fraction: float = 0.2,
    crop_scale: float = 0.08,
    flip: bool = True,
    cache: bool = False,
    task: Literal["classification", "regression"] = "classification",
) -> Dataset:
    """Images named in a CSV file with columns ``path``, ``label`` and perhaps ``true_label``.

    Classes are the distinct labels, in the order of their names, or of their values if all are
    whole numbers; in a regression, labels are the numbers to predict. Images are treated as those
    of ``folder``.

    Args:
        file: the training part.
        root: what paths are relative to; ``data_root`` unless given.
        test_file: the test part, with columns path and label; without it, ``test_fraction`` of
            ``file`` is split off, copies of an image together, or none if that is 0. It is tested
            on true labels if they are known.
        crop_scale, flip, cache: as for ``folder``.
        task: give the same to ``task`` of the run, and a task_loss of it.

    Raises:
        FileNotFoundError: a CSV file or an image that is not there.
        UserError: a missing column or label; a label of the test part that the training part does
            not have; an argument out of range.
    """
    check_files(image_size, num_workers, crop_scale)
    root = Path(root or data_root)
    table = read("file", file, root)
    test = read("test_file", test_file, root) if test_file else None
    columns = (table.label, table.get("true_label"), None if test is None else test.label)
    if task == "classification":
        labels = number_labels(*columns, file=file, test_file=test_file, by_value=True)
        classes, given, true, tested = labels.classes, labels.given, labels.true, labels.test
    else:
        files = (file, file, test_file)
        classes, (given, true, tested) = [], map(_numbers, columns, files)
    names = [*table.path, *([] if test is None else test.path)]
    shown = [*given.tolist(), *([] if tested is None else tested.tolist())]
    if classes:
        shown = [classes[number] for number in shown]
    original, note = find_copies("images", names, shown, len(table)), ""
    if test is None:
        try:
            rows, held_out = split_off(given, test_fraction, original, classes)
        except UserError as error:
            if not _are_numbers(classes):
                raise
            raise UserError(
                f"{error}; or, if the labels are numbers to be predicted, set "
                f"dataset.task=regression task=regression task_loss=smooth_l1"
            ) from None
        note, original = count_copies(original), among(original, rows)
        tested = (given if true is None else true)[held_out]
        paths = [table.path.iloc[row] for row in held_out]
        test_part = Split(paths, tested, given=given[held_out])
    else:
        rows = list(range(len(table)))
        test_part = Split(list(test.path), tested)
    return Dataset(
        Split([table.path.iloc[row] for row in rows], given[rows]),
        test_part,
        classes=classes,
        in_channels=3,
        image_size=image_size,
        **IMAGENET,
        flip=flip,
        crop_scale=crop_scale,
        trusted=False,
        true=None if true is None else true[rows],
        num_workers=num_workers,
        original=original,
        made_split=test is None,
        doubtful_test=true is None,
        root=root,
        note=note,
        cache=cache_folder(data_root, cache),
    )


def _are_numbers(classes: list[str]) -> bool:
    """Whether all names of the classes are numbers."""
    import pandas as pd

    numbers = pd.to_numeric(pd.Series(classes, dtype=object), errors="coerce")
    return bool(classes) and numbers.notna().all()


def _numbers(column, file) -> Tensor | None:
    """The numbers that these labels are, if there are any labels."""
    import pandas as pd

    if column is None:
        return None
    numbers = pd.to_numeric(column, errors="coerce").to_numpy()
    numbers = torch.tensor(numbers, dtype=torch.float32)
    if not numbers.isfinite().all():
        row = int((~numbers.isfinite()).nonzero()[0])
        raise UserError(
            f"{file} must have numbers as labels for dataset.task=regression, got "
            f"{column.iloc[row]!r} in line {column.index[row]}"
        )
    return numbers


def read(key: str, file: str, root: Path) -> "pd.DataFrame":
    """The table that the argument ``key`` names, as texts, its paths absolute or relative to here.

    Its index is the line of each row. Raises as ``csv``.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"dataset.{key}: there is no file {file}; it must be a CSV file with the columns path "
            f"and label"
        )
    table = read_table(file, skip_spaces=True, paths="path")
    for column in ("path", "label"):
        if column not in table:
            raise UserError(f"{file} has no column {column!r}; it has {', '.join(table.columns)}")
    for column in set(table.columns) & {"path", "label", "true_label"}:
        empty = table.index[table[column].str.strip() == ""]
        if len(empty):
            raise UserError(f"{file} has no {column} in line {empty[0]} ({len(empty)} such lines)")
    if table.empty:
        raise UserError(f"{file} lists no images")
    table.loc[:, "path"] = [str(root / path) for path in table.path]  # stays of dtype object
    missing = [row for row, path in enumerate(table.path) if not Path(path).is_file()]
    if missing:
        hint = ""
        if any(NO_UTF_8.search(table.path.iloc[row]) for row in missing):
            hint = (
                f"; {file} is not encoded in UTF-8: save it as UTF-8 if the names of the files are"
            )
        raise FileNotFoundError(
            f"{file} lists {len(missing)} images that are not there, the first of them "
            f"{table.path.iloc[missing[0]]} in line {table.index[missing[0]]}; paths are relative "
            f"to dataset.root{hint}"
        )
    return table
