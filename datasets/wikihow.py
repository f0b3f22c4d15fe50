"""wikiHow: which step, goal or order, of several, as multiple choice."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from datasets.base import Dataset, Split
from datasets.tables import read_table
from datasets.text import tokenize
from utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

CONTEXT, QUESTION, FIRST_ENDING = 4, 5, 7  # columns of SWAG's format; the label is the last one


def wikihow(
    task: Literal["step", "goal", "order"],
    encoder: str | None = None,
    data_root: str = "data",
    seed: int = 1,
    max_length: int = 80,
    validation_fraction: float = 0.1,
) -> Dataset:
    """Multiple-choice tasks (Zhang et al., EMNLP 2020, arXiv 2009.07690), for ``model.path``.

    Reads ``data_root/wikihow/<task>/train.csv`` and ``val.csv``, in SWAG's format: by position,
    column 4 is the context, 5 the question, 7 and on are the endings, four or two, and the last one
    is the number of the right ending. A choice is the pair of the context and "question ending", or
    the question with its "_" replaced by the ending. As in the DiscrimLoss authors' code,
    ``train.csv`` is shuffled with ``seed``, the run's, and its last ``validation_fraction`` is for
    validation; ``val.csv`` is the test part. Inputs are tokens [N, C, 2, L]; classes are the
    numbers of the endings.

    Raises:
        FileNotFoundError: a file, or a model of that name, that is not there.
        UserError: files of another format; validation_fraction outside (0, 1); transformers is not
            installed.
    """
    if not 0 < validation_fraction < 1:
        raise UserError(f"validation_fraction must lie in (0, 1), got {validation_fraction}")
    if encoder is None:
        raise UserError("texts are read by the tokenizer of an encoder: set model.path")
    folder = Path(data_root, "wikihow", task)
    train, test = (read(folder / name) for name in ("train.csv", "val.csv"))
    num_endings = _num_endings(train)
    if _num_endings(test) != num_endings:
        raise UserError(
            f"train.csv of {task} has {num_endings} endings, and val.csv {_num_endings(test)}"
        )
    order = list(range(len(train)))
    random.Random(seed).shuffle(order)
    count = int(len(train) * (1 - validation_fraction))
    tables = (train.iloc[order[:count]], train.iloc[order[count:]], test)
    training, validation, testing = (_split(table, encoder, max_length) for table in tables)
    return Dataset(
        training,
        testing,
        classes=[str(number) for number in range(num_endings)],
        validation=validation,
    )


def read(path: Path) -> "pd.DataFrame":
    """A CSV file of SWAG's format as texts, without endings that are empty in all its lines.

    Raises as ``wikihow``.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} was not found: the wikiHow goal-step data "
            f"(github.com/zharry29/wikihow-goal-step) go to data_root/wikihow/<step, goal or "
            f"order>/train.csv and val.csv, in SWAG's format"
        )
    table = read_table(path)
    if _num_endings(table) < 2 or table.empty:
        raise UserError(
            f"{path} must have SWAG's columns, a context in column {CONTEXT}, a question in "
            f"{QUESTION}, endings from {FIRST_ENDING} on and the label in the last; got "
            f"{', '.join(table.columns)}"
        )
    used = [
        position
        for position in range(table.shape[1])
        if not FIRST_ENDING <= position < table.shape[1] - 1
        or (table.iloc[:, position] != "").any()
    ]
    table = table.iloc[:, used]
    labels, endings = table.iloc[:, -1].str.strip(), _num_endings(table)
    strange = ~labels.isin([str(number) for number in range(endings)])
    if strange.any():
        raise UserError(
            f"{path}: the label in line {strange.idxmax()} must be the number of one of {endings} "
            f"endings, got {labels[strange.idxmax()]!r}"
        )
    return table


def _num_endings(table):
    return table.shape[1] - FIRST_ENDING - 1


def _split(table, encoder, max_length):
    endings = [list(row) for row in table.iloc[:, FIRST_ENDING:-1].to_numpy()]
    columns = zip(table.iloc[:, CONTEXT], table.iloc[:, QUESTION], endings, strict=True)
    first, second, shown = [], [], []
    for context, question, choices in columns:
        template = question if "_" in question else f"{question} _"
        first += [context] * len(choices)
        second += [template.replace("_", ending) for ending in choices]
        shown.append(" / ".join([f"{context} {question}".strip(), *choices]))
    tokens = tokenize(encoder, first, second, max_length=max_length)
    labels = torch.tensor(table.iloc[:, -1].astype(int).to_numpy())
    return Split(tokens.unflatten(0, (len(table), -1)), labels, texts=shown)
