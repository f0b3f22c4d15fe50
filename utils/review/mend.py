"""What decisions change: the labels, mended, and how many were wrong."""

import csv
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from utils.errors import UserError
from utils.files import atomic_write, file_sha256
from utils.judged import Judged
from utils.review.decisions import WORDS, Decision
from utils.review.listing import in_words, read_sample
from utils.run_state import read_config

CONFIDENCE = 0.95
TABLES = ("csv", "folder", "text")  # datasets whose test part a table can hold


def mend(judged: Judged, decisions: dict[int, Decision]) -> tuple[list[Path], dict]:
    """Write labels_fixed.csv or .npz and labels_fixed.json; returns these, and what the last holds.

    Samples in files and texts become a table that the dataset ``csv`` or ``text`` reads; for all
    others, labels that ``noise.kind=file:`` reads. A test part of the data's own becomes
    labels_fixed_test, if anything in it is decided, or if no table lists it yet.

    Raises UserError if one of these files is there already.
    """
    config = read_config(judged.run) or {}
    parts = _parts(judged, decisions, config)
    report = _report(judged, decisions)
    suffix = ".csv" if _is_table(judged, config) else ".npz"
    files = {judged.run / f"{name}{suffix}": rows for name, rows in parts.items()}
    summary = judged.run / "labels_fixed.json"
    for path in (*files, summary):
        if os.path.lexists(path):
            raise UserError(
                f"{path} is there already, and is not written over: remove it, or rename it"
            )
    write = _write_table if suffix == ".csv" else _write_arrays
    for path, rows in files.items():
        write(judged, decisions, rows, path, config)
    hashes = {path.name: file_sha256(path) for path in files}
    report = {"sha256": hashes} | report
    with atomic_write(summary) as file:
        json.dump(report, file, indent=1)
    return [*files, summary], report


def _is_table(judged, config):
    return judged.root is not None or config.get("dataset", {}).get("name") == "text"


def _parts(judged, decisions, config) -> dict[str, list[int]]:
    """The rows of each file by its name, in the order of the data."""
    is_test, index = judged.table["part"] == "test", judged.table["index"]
    order = np.lexsort((index, is_test))
    spec = config.get("dataset", {})
    split_here = (judged.run / "split.csv").exists() or (
        spec.get("name") == "text" and spec.get("test_file") is None
    )
    if split_here:
        return {"labels_fixed": order.tolist()}
    parts = {"labels_fixed": order[~is_test[order]].tolist()}
    decided = any(is_test[row] for row in decisions)
    if is_test.any() and (decided or spec.get("name") == "folder"):
        parts["labels_fixed_test"] = order[is_test[order]].tolist()
    return parts


def _mended(judged, decisions, row):
    """The label of a row after its decision."""
    decision = decisions.get(row)
    relabelled = decision is not None and decision.word == "relabel"
    return decision.label if relabelled else judged.table["given"][row]


def _write_table(judged, decisions, rows, path, config):
    """Names and labels as they stand, without what was dropped."""
    spec = config.get("dataset", {})
    heads = ["path", "label"]
    if judged.root is None:
        heads = [spec.get("text_column", "text"), spec.get("label_column", "label")]
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heads)
        for row in rows:
            if row not in decisions or decisions[row].word != "drop":
                label = in_words(judged, _mended(judged, decisions, row))
                writer.writerow([judged.names[row], label])


def _write_arrays(judged, decisions, rows, path, config):
    """``given`` [N], by position; ``dropped`` [N]: these keep their label, as they cannot leave."""
    labels = np.array([_mended(judged, decisions, row) for row in rows])
    dropped = [row in decisions and decisions[row].word == "drop" for row in rows]
    kind = np.int64 if judged.classes else np.float32
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, given=labels.astype(kind), dropped=np.array(dropped, bool))


def _report(judged, decisions):
    """How many decisions there are of each kind, and what they say about all labels."""
    counts = Counter(decision.word for decision in decisions.values())
    sample, num_unsuspected = read_sample(judged)
    reviewed = [decision for row, decision in decisions.items() if row not in sample]
    drawn = [decision for row, decision in decisions.items() if row in sample]
    return {
        "samples": len(judged.names),
        "decisions": {word: counts[word] for word in WORDS},
        "reviewed": _rate(reviewed),
        "unsuspected": _remaining(drawn, num_unsuspected),
    }


def _rate(decisions) -> dict | None:
    """How many of the given labels are wrong, with a Wilson interval; None if none is decided."""
    sure = [decision.is_hit for decision in decisions if decision.word != "unsure"]
    if not sure:
        return None
    low, high = binomtest(sum(sure), len(sure)).proportion_ci(CONFIDENCE, "wilson")
    return {
        "decided": len(sure),
        "wrong": sum(sure),
        "rate": sum(sure) / len(sure),
        "interval": [float(low), float(high)],
    }


def _remaining(drawn, num_unsuspected) -> dict | None:
    """How many wrong labels are left among the unsuspected, from a random sample of these.

    Those that were looked at are mended; the rate holds for the others.
    """
    rate = _rate(drawn)
    if rate is None:
        return None
    others = num_unsuspected - rate["decided"]
    return rate | {
        "of": num_unsuspected,
        "left": round(rate["rate"] * others, 1),
        "left_interval": [round(bound * others, 1) for bound in rate["interval"]],
    }


def describe(report: dict) -> list[str]:
    """The report in lines."""
    counts = report["decisions"]
    listed = ", ".join(f"{counts[word]} {word}" for word in WORDS)
    lines = [f"{sum(counts.values())} of {report['samples']:,} samples are decided: {listed}"]
    reviewed, remaining = report["reviewed"], report["unsuspected"]
    if reviewed:
        low, high = (f"{100 * bound:.1f}" for bound in reviewed["interval"])
        lines.append(
            f"of {reviewed['decided']} reviewed suspects {reviewed['wrong']} had a wrong label: "
            f"{100 * reviewed['rate']:.1f} % [{low}, {high}]"
        )
    if remaining:
        low, high = (f"{bound:,.0f}" for bound in remaining["left_interval"])
        lines.append(
            f"of {remaining['decided']} drawn at random from {remaining['of']:,} that nobody "
            f"suspects {remaining['wrong']} were wrong: about {remaining['left']:,.0f} [{low}, "
            f"{high}] wrong labels are left among these"
        )
    else:
        lines.append(
            "how many wrong labels are left is not known: nothing is decided in the random sample "
            "of the unsuspected"
        )
    return lines
