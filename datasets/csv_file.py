"""The user's own images, listed in a table."""

from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from datasets.base import IMAGENET, Dataset, Split, cache_folder, check_files, split_off
from utils.errors import UserError


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
    """Images named in a CSV file with the columns ``path``, ``label`` and, if you know it,
    ``true_label``.

    Classes are the distinct labels, in the order of their names, or of their values if all are
    whole numbers; of a regression, labels are the numbers to predict. Images are treated as those
    of ``folder``.

    Args:
        file: the training part.
        root: what paths are relative to; ``data_root`` unless given.
        test_file: the test part, with columns path and label; without it, ``test_fraction`` of
            ``file`` is split off. It is tested on true labels where they are known.
        crop_scale, flip, cache: as for ``folder``.
        task: give the same to ``task`` of the run, and a task_loss of it.

    Raises:
        FileNotFoundError: a CSV file or an image that is not there.
        ValueError: a missing column or label; a label of the test part that the training part does
            not have; an argument out of range.
    """
    check_files(image_size, num_workers, crop_scale)
    root = Path(root or data_root)
    table, test = (
        read("file", file, root),
        read("test_file", test_file, root) if test_file else None,
    )
    columns = [column for column in ("label", "true_label") if column in table]
    names = set(pd.concat([table[column] for column in columns]))
    classes = (
        []
        if task == "regression"
        else sorted(names, key=int if all(name.isdecimal() for name in names) else None)
    )
    number = {name: position for position, name in enumerate(classes)}
    strange = [] if test is None or not classes else sorted(set(test.label) - names)
    if strange:
        raise UserError(
            f"{test_file} has labels that {file} does not have: {', '.join(strange[:10])}"
        )

    def targets(column, source) -> Tensor:
        if classes:
            return torch.tensor(column.map(number).to_numpy())
        numbers = torch.tensor(
            pd.to_numeric(column, errors="coerce").to_numpy(), dtype=torch.float32
        )
        if not numbers.isfinite().all():
            row = int((~numbers.isfinite()).nonzero()[0])
            raise UserError(
                f"{source} must have numbers as labels for dataset.task=regression, got {column.iloc[row]!r} in "
                f"line {row + 2}"
            )
        return numbers

    given = targets(table.label, file)
    true = targets(table.true_label, file) if "true_label" in table else None
    if test is None:
        rows, held_out = split_off(given, test_fraction)
        test_part = Split(
            [table.path[row] for row in held_out], (given if true is None else true)[held_out]
        )
    else:
        rows, test_part = (
            list(range(len(table))),
            Split(list(test.path), targets(test.label, test_file)),
        )
    return Dataset(
        Split([table.path[row] for row in rows], given[rows]),
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
        made_split=test is None,
        cache=cache_folder(data_root, cache),
    )


def read(key: str, file: str, root: Path) -> pd.DataFrame:
    """The table that the argument ``key`` names, as texts, its paths absolute or relative to here.

    Raises as ``csv``.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"dataset.{key}: there is no file {file}; it must be a CSV file with the columns path and "
            f"label"
        )
    try:
        table = pd.read_csv(
            file, dtype=str, skipinitialspace=True, keep_default_na=False, encoding="utf-8-sig"
        )
    except ValueError as error:
        raise UserError(f"{file} cannot be read as CSV ({error})") from None
    for column in ("path", "label"):
        if column not in table:
            raise UserError(f"{file} has no column {column!r}; it has {', '.join(table.columns)}")
    for column in set(table.columns) & {"path", "label", "true_label"}:
        empty = table.index[table[column] == ""]
        if len(empty):
            raise UserError(
                f"{file} has no {column} in line {empty[0] + 2} ({len(empty)} such lines)"
            )
    if table.empty:
        raise UserError(f"{file} lists no images")
    table["path"] = [str(root / path) for path in table.path]
    missing = [path for path in table.path if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{file} lists {len(missing)} images that are not there, the first of them {missing[0]}; paths "
            f"are relative to dataset.root"
        )
    return table
