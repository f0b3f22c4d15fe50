"""The same image or text several times: where a split must not part them, and what to say."""

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from tqdm import tqdm

from datasets.base import warn
from utils.files import file_sha256

MOST_TO_READ = 200_000  # image files; to read the ends of more takes minutes


def find_copies(
    what: Literal["images", "texts"],
    names: Sequence[str],
    labels: Sequence[str | float],
    num_training: int,
) -> list[int]:
    """For each training sample the position of its first copy, its own if that is itself.

    Says how many are in the training and in the test part, and how many have two labels.

    Args:
        names: paths or texts, of the training part and after it the test part.
        labels: of the same.
        num_training: how long the training part is.
    """
    original = copies_of_files(names) if what == "images" else copies_of_texts(names)
    in_both, in_two_classes = {}, {}
    for row, first in enumerate(original):
        if first < num_training <= row:
            in_both.setdefault(first, row)
        elif row < num_training and labels[row] != labels[first]:
            in_two_classes.setdefault(first, row)
    for pairs, problem in (
        (in_both, "in the training part and in the test part"),
        (in_two_classes, "in the training part under two labels"),
    ):
        if pairs:
            first, row = next(iter(pairs.items()))
            warn(
                f"{len(pairs)} {what} are {problem}, e.g. {_short(names[first])} ({labels[first]}) "
                f"and {_short(names[row])} ({labels[row]})"
            )
    return original[:num_training]


def copies_of_texts(texts: Iterable[str]) -> list[int]:
    """For each text the position of the first one that is equal, its own if that is itself."""
    first = {}
    return [first.setdefault(text, row) for row, text in enumerate(texts)]


def copies_of_files(paths: Sequence[str]) -> list[int]:
    """As ``copies_of_texts``, of the bytes of files. What cannot be read is equal to nothing.

    Files are read only as far as they could be equal: those of one size at their ends, and if these
    are equal too, as a whole.
    """
    original, by_size = list(range(len(paths))), {}
    same_file = {}  # under two names
    for row, path in enumerate(paths):
        try:
            status = os.stat(path)
        except OSError:
            continue
        original[row] = same_file.setdefault((status.st_dev, status.st_ino), row)
        if original[row] == row and status.st_size:
            by_size.setdefault(status.st_size, []).append(row)
    groups = [rows for rows in by_size.values() if len(rows) > 1]
    if sum(map(len, groups)) > MOST_TO_READ:
        warn(f"copies are not looked for among more than {MOST_TO_READ:,} images")
        groups = []
    for content in (_end, _hash):
        groups = _refine(groups, paths, content)
    for rows in groups:
        for row in rows:
            original[row] = rows[0]
    return [original[row] for row in original]


def _refine(
    groups: list[list[int]], paths: Sequence[str], content: Callable[[str], Hashable]
) -> list[list[int]]:
    """The groups of files that are equal in ``content`` too, of two files or more."""
    rows = [row for group in groups for row in group]
    with ThreadPoolExecutor(8) as pool:  # which wait for a disk or a network
        contents = pool.map(content, [paths[row] for row in rows])
        shown = tqdm(contents, "looking for copies", len(rows), leave=False, disable=None)
        found = dict(zip(rows, shown, strict=True))
    refined = []
    for group in groups:
        parts = {}
        for row in group:
            if found[row] is not None:
                parts.setdefault(found[row], []).append(row)
        refined += [part for part in parts.values() if len(part) > 1]
    return refined


def _end(path):
    """The last bytes of a file, None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(-min(4096, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return file.read()
    except OSError:
        return None


def _hash(path):
    try:
        return file_sha256(path)
    except OSError:
        return None


def among(original: Sequence[int], rows: Sequence[int]) -> list[int]:
    """``original`` of a part: with positions in ``rows``, which hold originals and copies alike."""
    position = {row: number for number, row in enumerate(rows)}
    return [position[original[row]] for row in rows]


def count_copies(original: Sequence[int]) -> str:
    """How many are copies, in words; "" if none is."""
    count = sum(row != first for row, first in enumerate(original))
    return f"{count} copies are on the same side of the split as what they repeat" if count else ""


def _short(name):
    """A path as it is, a text in one line."""
    return name if os.sep in name and "\n" not in name else repr(name[:60])
