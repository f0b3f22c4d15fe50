"""Which samples of a run are reviewed, and what they are called in files of decisions."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.escapes import CONTROL
from utils.files import atomic_write, read_json
from utils.judged import JOINED, Judged

COUNT = 2000  # suspects, if there are enough
SAMPLE_SIZE = 50  # of the random sample of what nobody suspects
NAME = "review.json"


@dataclass
class Listing:
    """Rows of a Judged that are looked at."""

    suspects: list[int]  # the most suspicious first
    sample: list[int]  # drawn at random from the unsuspected
    num_unsuspected: int  # neither among the suspects nor flagged


def make_listing(judged: Judged, count: int | None = None) -> Listing:
    """The ``count`` most suspicious rows, and a random sample of those that nobody suspects.

    Without a count they are COUNT, but besides those that are flagged at most half of the others:
    of the rest the sample can be drawn. It is the same whenever it is drawn. A file that a table
    lists twice under one label is looked at once.
    """
    names, given = keys(judged), judged.table["given"]
    first = list(
        {(name, given[row]): row for row, name in reversed(list(enumerate(names)))}.values()
    )
    first.sort()
    if count is None:
        num_flagged = int(judged.table["flagged"].sum())
        count = min(COUNT, num_flagged + (len(first) - num_flagged + 1) // 2)
    suspects = first[:count]
    # Drawn in one order for all counts, so that the samples of two lists have most in common.
    order = np.random.default_rng(0).permutation(len(names))
    unsuspected = np.zeros(len(names), bool)
    unsuspected[first[count:]] = True
    unsuspected &= ~judged.table["flagged"]
    sample = order[unsuspected[order]][:SAMPLE_SIZE]
    return Listing(suspects, sample.tolist(), int(unsuspected.sum()))


def identifiers(judged: Judged) -> list[str]:
    """What names each row in any data: "train/123" or "test/7", part and position."""
    parts = ("test" if part == "test" else "train" for part in judged.table["part"].tolist())
    return [f"{part}/{index}" for part, index in zip(parts, judged.table["index"], strict=True)]


def has_files(judged: Judged) -> bool:
    """Whether the samples are files, and their names paths."""
    return isinstance(judged.data.train.source, list)


def keys(judged: Judged) -> list[str]:
    """What names each row in files of decisions: its path, or else its identifier.

    A path with bytes or control characters that a file of text does not keep counts as none.
    """
    other = identifiers(judged)
    if not has_files(judged):
        return other
    return [
        identifier if CONTROL.search(name) or set(name) & set("\t\n") else name
        for name, identifier in zip(judged.names, other, strict=True)
    ]


def first_run(judged: Judged) -> Path:
    """The directory of the run, or of the first of the folds that were joined there."""
    joined = judged.run / JOINED
    return judged.run / read_json(joined)["runs"][0] if joined.exists() else judged.run


def in_words(judged: Judged, label) -> str:
    """A class by its name, a number as ``shortest``."""
    return judged.classes[int(label)] if judged.classes else shortest(label)


def shortest(number: float) -> str:
    """A number in as few digits as give the same float32 again, which labels are kept as."""
    return str(np.float32(number)).removesuffix(".0")


def write_listing(judged: Judged, listing: Listing):
    """review.json: what the random sample was, so that its decisions can be told from others."""
    names = identifiers(judged)
    content = {
        "suspects": len(listing.suspects),
        "unsuspected": listing.num_unsuspected,
        "sample": [names[row] for row in listing.sample],
    }
    with atomic_write(judged.run / NAME) as file:
        json.dump(content, file, indent=1)


def read_sample(judged: Judged) -> tuple[set[int], int]:
    """The rows of the random sample, and how many it was drawn from; none without review.json.

    Raises UserError if that is damaged.
    """
    path = Path(judged.run, NAME)
    if not path.exists():
        return set(), 0
    rows = {name: row for row, name in enumerate(identifiers(judged))}
    try:
        content = read_json(path)
        return {rows[name] for name in content["sample"]}, int(content["unsuspected"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not that of this run ({error}): run the review again, which writes it anew"
        ) from None
