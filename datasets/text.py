"""The user's own texts with labels, in a table."""

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from datasets.base import Dataset, Split, split_off, warn
from datasets.copies import among, count_copies, find_copies
from datasets.tables import find_table, number_labels, read_table
from utils.errors import UserError
from utils.pretrained import load_pretrained, mean_of_tokens

if TYPE_CHECKING:
    import pandas as pd


def text(
    file: str,
    encoder: str | None = None,
    data_root: str = "data",
    test_file: str | None = None,
    text_column: str = "text",
    label_column: str = "label",
    true_column: str = "true_label",
    max_length: int = 64,
    test_fraction: float = 0.2,
    features: bool = False,
    device: torch.device | str = "cpu",
) -> Dataset:
    """Texts and labels of a CSV file, .csv or compressed, for the encoder ``model.path``.

    Classes are the distinct labels, in order of their names. Inputs are tokens [N, 2, L] of int32,
    numbers and types, padded to the longest text.

    Args:
        file: the training part; relative to ``data_root``, unless it is there as it stands.
        test_file: the test part; without it, ``test_fraction`` of ``file`` is split off, copies of
            a text together.
        text_column, label_column: of both files; true_column: of ``file``, if you know the true
            labels.
        max_length: tokens of a text; what is longer is cut.
        features: the inputs are the texts' mean states in the encoder instead, [N, D], computed
            once: for a head alone, as ``model: {name: mlp, hidden: []}``, on an encoder that is not
            trained, and is named with ``encoder``.
        device: where these are computed.

    Raises:
        FileNotFoundError: a file, or a model of that name, that is not there.
        UserError: a missing column, text or label; a label of the test part that the training part
            does not have; arguments out of range; transformers is not installed.
    """
    if max_length < 3:
        raise UserError(f"max_length must be at least 3, got {max_length}")
    if encoder is None:
        raise UserError(
            "texts are read by the tokenizer of an encoder: set model.path, or, with features, "
            "dataset.encoder"
        )
    table = read("file", file, data_root, text_column, label_column, true_column)
    test = read("test_file", test_file, data_root, text_column, label_column) if test_file else None
    labels = number_labels(
        table[label_column],
        table.get(true_column),
        None if test is None else test[label_column],
        file=file,
        test_file=test_file,
        by_value=False,
    )
    given, true = labels.given, labels.true
    names = [*table[text_column], *([] if test is None else test[text_column])]
    numbers = [*given.tolist(), *([] if test is None else labels.test.tolist())]
    shown = [labels.classes[number] for number in numbers]
    original, note = find_copies("texts", names, shown, len(table)), ""
    if test is None:
        rows, held_out = split_off(given, test_fraction, original, labels.classes)
        note, original = count_copies(original), among(original, rows)
        test_texts = list(table[text_column].iloc[held_out])
        test_targets = (given if true is None else true)[held_out]
        test_given = given[held_out]
    else:
        rows = list(range(len(table)))
        test_texts, test_targets, test_given = list(test[text_column]), labels.test, None
    texts = list(table[text_column].iloc[rows])
    inputs = tokenize(encoder, texts + test_texts, max_length=max_length)
    used = inputs[:, 0] != load_tokenizer(encoder).pad_token_id
    num_full = int(used.sum(1).eq(max_length).sum())
    if num_full:
        warn(
            f"{num_full:,} of {len(inputs):,} texts fill {max_length} tokens; what goes beyond is "
            f"cut off (dataset.max_length)"
        )
    if features:
        inputs = embed(encoder, inputs, device)
    train = Split(inputs[: len(texts)], given[rows], texts)
    return Dataset(
        train,
        Split(inputs[len(texts) :], test_targets, test_texts, given=test_given),
        classes=labels.classes,
        in_channels=inputs.shape[1] if features else 0,
        image_size=1 if features else 0,
        trusted=False,
        true=None if true is None else true[rows],
        original=original,
        doubtful_test=true is None,
        note=note,
    )


def read(
    key: str, file: str, data_root: str, text_column: str, label_column: str, true_column: str = ""
) -> "pd.DataFrame":
    """The table that the argument ``key`` names, as texts; raises as ``text``.

    Its index is the line of each row.
    """
    path = find_table(file, data_root)
    if not path.is_file():
        raise FileNotFoundError(
            f"dataset.{key}: there is no file {file}, here or under data_root={data_root}; it must "
            f"be a CSV file with a column of texts and one of labels"
        )
    table = read_table(path)
    for name, column in (("text_column", text_column), ("label_column", label_column)):
        if column not in table:
            raise UserError(
                f"{path} has no column {column!r}; set dataset.{name} to one of "
                f"{', '.join(table.columns)}"
            )
    for column in {text_column, label_column, true_column} & set(table.columns):
        empty = table.index[table[column].str.strip() == ""]
        if len(empty):
            raise UserError(f"{path} has no {column} in line {empty[0]} ({len(empty)} such lines)")
    if table.empty:
        raise UserError(f"{path} lists no texts")
    return table


def tokenize(
    encoder: str, first: list[str], second: list[str] | None = None, *, max_length: int
) -> Tensor:
    """Token numbers and types [N, 2, L] of int32 of texts, or of pairs of them.

    Cut to ``max_length`` and padded to the longest.
    """
    tokenizer = load_tokenizer(encoder)
    if tokenizer.pad_token_id is None:
        raise UserError(f"{encoder} has no padding token, by which a text's end is known")
    parts = []
    # in parts, since what the tokenizer returns takes a hundred times the room
    for start in range(0, len(first), 10_000):
        coded = tokenizer(
            first[start : start + 10_000],
            second and second[start : start + 10_000],
            truncation=True,
            max_length=max_length,
            padding="max_length",
            return_token_type_ids=True,
            return_tensors="pt",
        )
        both = torch.stack([coded["input_ids"], coded["token_type_ids"]], dim=1)
        parts.append(both.to(torch.int32))
    tokens = torch.cat(parts)
    return tokens[:, :, (tokens[:, 0] != tokenizer.pad_token_id).any(0)]


@functools.cache
def load_tokenizer(encoder: str):
    """The tokenizer of a model; raises as ``load_pretrained``."""
    return load_pretrained("AutoTokenizer", encoder)


@torch.no_grad()
def embed(encoder: str, tokens: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Mean states [N, D] of texts in the encoder, scaled to length 1, from tokens [N, 2, L]."""
    model = load_pretrained("AutoModel", encoder).float().eval().to(device)
    used = tokens[:, 0] != load_tokenizer(encoder).pad_token_id
    features = torch.empty(len(tokens), model.config.hidden_size)
    # texts of about the same length together: less padding to compute
    order = used.sum(1).argsort(stable=True)
    batches = tqdm(order.split(100), "embedding", unit=" hundred texts", leave=False, disable=None)
    for rows in batches:
        columns = used[rows].any(0)
        ids = tokens[rows, 0][:, columns].long().to(device)
        mask = used[rows][:, columns].to(device)
        states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        features[rows] = torch.nn.functional.normalize(mean_of_tokens(states, mask), dim=1).cpu()
    return features
