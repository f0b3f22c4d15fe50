"""What the data of a run are, from lists alone: so that a change is noticed without decoding them.

Files are known by their paths below the folder of the data, and their sizes: moving that changes
nothing.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from datasets.csv_file import read as read_images
from datasets.folder import find_parts
from datasets.label_files import read_columns, read_human
from datasets.scan import is_hidden, scan
from datasets.text import read as read_texts
from datasets.utkface import image_files
from datasets.wikihow import read as read_choices
from utils.errors import UserError
from utils.files import file_sha256

Line = tuple[str, str]  # a sample: its class, "" where that is not known; and all else


def contents(
    spec: dict, *, noise_kind: str, targets: str | None, recording: str | None, data_root: str
) -> dict[str, dict]:
    """For each part of the data its ``sha256`` and how many samples of each class there are.

    Nothing of datasets that are generated, or whose files are checked when they are read.

    Args:
        spec: the section ``dataset`` of the configuration.
        noise_kind: as ``noise.kind``, which may name a file.
        targets, recording: files that other runs have left: labels, and losses to select by. Of a
            recording that is no longer there, nothing: a finished run needs it no more.

    Raises as the dataset does if its files are missing or wrong.
    """
    arguments = {key: value for key, value in spec.items() if key != "name"}
    parts = {}
    if spec["name"] in LISTS:
        parts = dict(LISTS[spec["name"]](data_root=data_root, **arguments))
    if noise_kind.startswith("file:"):
        parts["noise.kind"] = _labels_of_noise(noise_kind.removeprefix("file:"))
    elif noise_kind.startswith("human:"):  # not the file's bytes: .pt and .npz hold the same
        given, _ = read_human(noise_kind.removeprefix("human:"), spec["name"], data_root)
        parts["noise.kind"] = (("", str(label)) for label in given)
    if targets is not None:
        parts["targets"] = _arrays(targets)
    if recording is not None and Path(recording).is_file():
        parts["recording"] = _bytes(Path(recording))
    return {name: _summary(lines) for name, lines in parts.items()}


def _summary(lines: Iterable[Line]):
    counts, sha256 = Counter(), hashlib.sha256()
    for name, rest in lines:
        counts[name] += 1
        sha256.update(f"{name}\t{rest}\n".encode(errors="surrogateescape"))
    return {"classes": dict(counts), "sha256": sha256.hexdigest()}


# The lines of each dataset, by part


def _folder(data_root, root=None, **_):
    base = Path(root or data_root)
    for part, path in find_parts(data_root, root).items():
        found = scan(path)
        yield part, _files(found.paths, base, (found.classes[label] for label in found.targets))


def _csv(data_root, file, root=None, test_file=None, **_):
    base = Path(root or data_root)
    for key, name in (("file", file), ("test_file", test_file)):
        if name is not None:
            table = read_images(key, name, base)
            labels = table.label
            if "true_label" in table:
                labels = labels + "\t" + table.true_label
            yield f"dataset.{key}", _files(table.path, base, labels)


def _text(
    data_root,
    file,
    test_file=None,
    text_column="text",
    label_column="label",
    true_column="true_label",
    **_,
):
    for key, name in (("file", file), ("test_file", test_file)):
        if name is not None:
            table = read_texts(key, name, data_root, text_column, label_column)
            true = table.get(true_column, [""] * len(table))
            rest = [
                f"{given}\t{words}" for given, words in zip(true, table[text_column], strict=True)
            ]
            yield f"dataset.{key}", zip(table[label_column], rest, strict=True)


def _wikihow(data_root, task, **_):
    for name in ("train.csv", "val.csv"):
        table = read_choices(Path(data_root, "wikihow", task, name))
        rows = ["\t".join(row) for row in table.to_numpy()]
        yield name, zip(table.iloc[:, -1], rows, strict=True)


def _utkface(data_root, **_):
    folder = _there(Path(data_root, "UTKFace"))
    yield "UTKFace", _files(map(str, image_files(folder)), folder)


def _clothing1m(data_root, **_):
    folder = _there(Path(data_root, "clothing1m"))
    for path in sorted([*folder.glob("*.txt"), *folder.glob("annotations/*.txt")]):
        yield path.name, _lines(path)


def _webvision(data_root, **_):
    for name in ("synsets", "train_filelist_google", "val_filelist"):
        yield name, _lines(Path(data_root, "webvision/info", f"{name}.txt"))
    imagenet = Path(data_root, "imagenet/val")
    images = sorted(path for path in imagenet.glob("*/*.*") if not is_hidden(path.name))
    if images:
        yield "imagenet", ((path.parent.name, path.name) for path in images)


def _mnist(data_root, **_):
    yield "MNIST", _bytes(*sorted(_there(Path(data_root, "MNIST/raw")).glob("*-ubyte")))


LISTS: dict[str, Callable[..., Iterator[tuple[str, Iterable[Line]]]]] = {
    "folder": _folder,
    "csv": _csv,
    "text": _text,
    "wikihow": _wikihow,
    "utkface": _utkface,
    "clothing1m": _clothing1m,
    "webvision": _webvision,
    "mnist": _mnist,
}


def _there(folder):
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    return folder


def _files(paths: Iterable[str], base: Path, labels: Iterable[str] | None = None) -> Iterator[Line]:
    root = os.path.join(base, "")
    paths = list(paths)
    labels = [""] * len(paths) if labels is None else labels
    for path, label in zip(paths, labels, strict=True):
        try:
            size = os.stat(path).st_size
        except OSError:
            size = "missing"
        name, _, true = label.partition("\t")
        yield name, f"{true}\t{path.removeprefix(root)}\t{size}"


def _lines(path) -> Iterator[Line]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            yield "", line


def _bytes(*paths) -> Iterator[Line]:
    for path in paths:
        yield "", f"{path.name}\t{file_sha256(path)}"


def _labels_of_noise(path) -> Iterator[Line]:
    path, _, key = path.partition("#")
    columns = read_columns(path)
    used = [columns[name] for name in (key or "given", "index") if name in columns]
    for row in zip(*used, strict=False):  # of different lengths, they are refused where used
        yield "", "\t".join(map(str, row))


def _arrays(path) -> Iterator[Line]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"targets={path}: there is no such file")
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            for name in sorted(arrays):
                yield "", f"{name}\t{hashlib.sha256(arrays[name].tobytes()).hexdigest()}"
    except Exception as error:  # of zipfile, zlib or NumPy, depending on the damage
        raise UserError(f"targets={path} cannot be read as labels.npz of a run ({error})") from None
