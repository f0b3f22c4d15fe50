"""Decisions about samples: read from the page's decisions.csv or from Label Studio, and checked."""

import difflib
import json
import math
import re
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.base import warn
from datasets.tables import NO_UTF_8, read_table, visible
from utils.errors import UserError, unknown
from utils.escapes import from_a_cell
from utils.files import read_text
from utils.judged import Judged
from utils.review.exchange import CONTROL, FLAG
from utils.review.listing import identifiers, in_words, keys, shortest

WORDS = ("keep", "relabel", "drop", "unsure")
COLUMNS = ("path", "given", "decision", "label")
NUMBERED = re.compile(r"( ?\(\d+\)|-\d)$")  # as browsers end a name that is there already
NEAREST_OF = 20_000  # names among which the nearest one is looked for


class Written(NamedTuple):
    """A decision as it stands in a file; ``where``: of it, in words."""

    where: str
    path: str
    given: str
    decision: str
    label: str


class Decision(NamedTuple):
    """What becomes of a sample; ``label``: the new class or number of a relabelled one."""

    word: str
    label: float | None
    where: str

    @property
    def is_hit(self) -> bool:
        """Whether the given label is wrong."""
        return self.word in ("relabel", "drop")


def read_decisions(judged: Judged, paths: list[Path]) -> dict[int, Decision]:
    """The decisions in these files by row, .csv or, of Label Studio, .json.

    Raises UserError, naming the file and the line, for decisions about another run, and whatever is
    no decision, sample or class, or contradicts another one.
    """
    written = []
    for path in paths:
        if not path.is_file():
            raise UserError(f"--apply {path}: there is no such file; save it from review.html")
        is_json = path.suffix.lower() == ".json"
        read = read_label_studio(path) if is_json else read_csv(path, not judged.classes)
        written += [row for row in read if row.decision]
    _warn_of_newer(paths)
    if not written:
        raise UserError(f"there is no decision in {', '.join(map(str, paths))}")
    rows_of = _rows_by_key(judged)
    _check_run(judged, written, rows_of)
    decisions = {}
    for entry in written:
        decision = _decision(judged, entry)
        for row in _rows(judged, entry, rows_of):
            before = decisions.setdefault(row, decision)
            if before[:2] != decision[:2]:
                raise UserError(
                    f"{entry.where}: the decision on {entry.path!r} is {_shown(judged, decision)}, "
                    f"and in {before.where} it is {_shown(judged, before)}: leave one of them"
                )
    return decisions


def _warn_of_newer(paths):
    """Name files that were saved under the same name later, to which a browser gives numbers."""
    given = {path.resolve() for path in paths}
    for path in paths:
        stem = NUMBERED.sub("", path.stem)
        newer = [
            other
            for other in path.parent.glob(f"{escape(stem)}*{escape(path.suffix)}")
            if NUMBERED.sub("", other.stem) == stem
            and other.is_file()
            and other.resolve() not in given
            and other.stat().st_mtime > path.stat().st_mtime
        ]
        if newer:
            newest = max(newer, key=lambda other: other.stat().st_mtime)
            warn(
                f"{newest} was saved after {path}, and is not applied: a browser numbers what it "
                f"saves under one name, and the last one holds all decisions of its page"
            )


def read_csv(path: Path, labels_are_numbers: bool = False) -> Iterator[Written]:
    """The rows of a decisions.csv, also of one that a spreadsheet has written.

    Numbers have a decimal comma where fields are separated by semicolons.
    """
    table = read_table(path)
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r}; it has {', '.join(table.columns)}, and needs "
            f"{', '.join(COLUMNS)}"
        )
    for line, *cells in table[list(COLUMNS)].itertuples():
        name, given, decision, label = map(from_a_cell, cells)
        if labels_are_numbers and table.attrs["separator"] == ";":
            given, label = given.replace(",", "."), label.replace(",", ".")
        yield Written(f"{path}, line {line}", name, given, decision.strip().lower(), label)


def read_label_studio(path: Path) -> Iterator[Written]:
    """The annotations of an export of Label Studio as JSON, of tasks that ``export`` has made.

    A choice that is the given label keeps it; skipped tasks, and those without a choice, are
    undecided.
    """
    try:
        tasks = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from None
    try:
        for number, task in enumerate(tasks, start=1):
            data = task["data"]
            name, given = str(data["path"]), str(data["given"])
            for annotation in task["annotations"]:
                if annotation.get("was_cancelled"):
                    continue
                choices = {result["from_name"]: _value(result) for result in annotation["result"]}
                where = f"{path}, task {task.get('id', number)}"
                if FLAG in choices:
                    yield Written(where, name, given, choices[FLAG], "")
                elif CONTROL in choices:
                    label = choices[CONTROL]
                    word = "keep" if label == given else "relabel"
                    yield Written(where, name, given, word, label if word == "relabel" else "")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path} is no export of Label Studio for tasks that --export labelstudio has made "
            f"({type(error).__name__}: {error}): export it as JSON, not as JSON-MIN or CSV"
        ) from None


def _value(result):
    value = result["value"]
    return str(value["choices"][0]) if "choices" in value else shortest(float(value["number"]))


def _rows_by_key(judged) -> dict[str, list[int]]:
    """By what names them in files: the path first, since it may look like an identifier."""
    rows_of = {}
    for row, key in enumerate(keys(judged)):
        rows_of.setdefault(key, []).append(row)
    for row, identifier in enumerate(identifiers(judged)):
        rows_of.setdefault(identifier, [row])
    return rows_of


def _check_run(judged, written, rows_of):
    """Raise UserError if most of the samples are not of this run."""
    strange = [entry for entry in written if entry.path not in rows_of]
    if len(strange) > len(written) / 2 and len(written) > 1:
        raise UserError(
            f"{strange[0].where}: {judged.run} has no sample {strange[0].path!r} ({len(strange)} "
            f"such of {len(written)}): these are decisions about another run"
        )


def _rows(judged, entry, rows_of) -> list[int]:
    """The rows that an entry names: of several with the same path, those with the given label."""
    if entry.path not in rows_of:
        near = difflib.get_close_matches(entry.path, list(rows_of)[:NEAREST_OF], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{entry.where}: {judged.run} has no sample {entry.path!r}{hint}")
    candidates = rows_of[entry.path]
    rows = [row for row in candidates if _is_label(judged, entry.given, row)]
    if not rows:
        given = in_words(judged, judged.table["given"][candidates[0]])
        raise UserError(
            f"{entry.where}: {entry.path!r} is given {entry.given!r} there, and {given!r} in "
            f"{judged.run}: these are decisions about another run"
        )
    return rows


def _is_label(judged, text, row) -> bool:
    """Whether a text is the given label of a row, up to what a spreadsheet changes."""
    given = judged.table["given"][row]
    if judged.classes:
        return find_class(judged.classes, text) == given
    number = _number(text)
    return number is not None and bool(np.isclose(number, given, rtol=1e-5, atol=1e-8))


def find_class(classes: list[str], text: str) -> int | None:
    """The class of this name, also if spaces, ".0" or capitals are there that it does not have.

    And as a browser writes it, which has no place for bytes that are no UTF-8.
    """
    if text in classes:
        return classes.index(text)
    for alike in (visible, _value_or_text, _as_saved, _folded):
        matches = [number for number, name in enumerate(classes) if alike(name) == alike(text)]
        if len(matches) == 1:
            return matches[0]
    return None


def _as_saved(text):
    return NO_UTF_8.sub("\ufffd", text)


def _folded(text):  # a spreadsheet makes TRUE of True
    return visible(text).casefold()


def _value_or_text(text):
    number = _number(text)
    return visible(text) if number is None else number


def _number(text) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _decision(judged, entry) -> Decision:
    if entry.decision not in WORDS:
        raise UserError(f"{entry.where}: " + unknown("decision", entry.decision, WORDS))
    has_label = entry.label.strip() != ""
    if entry.decision in ("drop", "unsure") or (entry.decision == "keep" and not has_label):
        return Decision(entry.decision, None, entry.where)
    if not has_label:
        raise UserError(f"{entry.where}: the decision relabel needs the new label")
    if judged.classes:
        label = find_class(judged.classes, entry.label)
        given = find_class(judged.classes, entry.given)
        if label is None:
            raise UserError(f"{entry.where}: {unknown('label', entry.label, judged.classes)}")
    else:
        label, given = _number(entry.label), _number(entry.given)
        if label is None:
            raise UserError(f"{entry.where}: the label must be a number, got {entry.label!r}")
    if label == given:
        return Decision("keep", None, entry.where)
    if entry.decision == "keep":
        raise UserError(
            f"{entry.where}: the decision is keep, and the label {entry.label!r} is not the given "
            f"one, {entry.given!r}: write relabel, or leave the label out"
        )
    return Decision("relabel", label, entry.where)


def _shown(judged, decision):
    label = "" if decision.label is None else f" as {in_words(judged, decision.label)}"
    return f"{decision.word}{label}"
