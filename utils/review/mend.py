"""What decisions change: the labels, mended, and how many were wrong."""

import csv
import json
import os
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from datasets.tables import find_table
from utils.errors import UserError
from utils.exports import names_of
from utils.files import atomic_write, file_sha256, read_arrays, write_arrays
from utils.judged import Judged
from utils.review.decisions import WORDS, Decision
from utils.review.listing import first_run, has_files, in_words, read_sample

CONFIDENCE = 0.95


def mend(judged: Judged, decisions: dict[int, Decision]) -> tuple[list[Path], dict]:
    """Write labels_fixed.csv or .npz and labels_fixed.json; returns these, and what the last holds.

    Samples in files and texts become a table that the dataset ``csv`` or ``text`` reads; for all
    others, labels that ``noise.kind=file:`` reads. A test part of the data's own becomes
    labels_fixed_test, if anything in it is decided, or if no table lists it yet.

    Raises UserError if one of these files is there already.
    """
    parts, report = _parts(judged, decisions), _report(judged, decisions)
    suffix = ".csv" if _is_table(judged) else ".npz"
    files = {judged.run / f"{name}{suffix}": part for name, part in parts.items()}
    summary = judged.run / "labels_fixed.json"
    for path in (*files, summary):
        if os.path.lexists(path):
            raise UserError(
                f"{path} is there already, and is not written over: remove it, or rename it"
            )
    labels, dropped = _mended(judged, decisions)
    write = _write_table if suffix == ".csv" else _write_arrays
    for path, part in files.items():
        write(judged, part, labels, dropped, path)
    report = {"sha256": {path.name: file_sha256(path) for path in files}} | report
    with atomic_write(summary) as file:
        json.dump(report, file, indent=1)
    return [*files, summary], report


def _is_table(judged):
    return has_files(judged) or judged.config["dataset"]["name"] == "text"


def _parts(judged, decisions) -> dict[str, tuple[str, ...]]:
    """The parts of the data that each file holds, by its name."""
    spec, data = judged.config["dataset"], judged.data
    if data.made_split or (spec["name"] == "text" and spec.get("test_file") is None):
        return {"labels_fixed": ("train", "test")}
    parts = {"labels_fixed": ("train",)}
    decided = any(judged.table["part"][row] == "test" for row in decisions)
    if decided or (_is_table(judged) and spec.get("test_file") is None):
        parts["labels_fixed_test"] = ("test",)
    return parts


def _mended(judged, decisions) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The labels of both parts after the decisions, also of samples that were not judged.

    And which samples are dropped.
    """
    table, is_test, test = judged.table, judged.table["part"] == "test", judged.data.test
    given = read_arrays(first_run(judged) / "noise.npz", ("given",))["given"]
    given_test = test.targets if test.given is None else test.given
    labels = {"train": given, "test": given_test.numpy().copy()}
    for part, mask in (("train", ~is_test), ("test", is_test)):
        labels[part][table["index"][mask]] = table["given"][mask]
    dropped = {part: np.zeros(len(values), bool) for part, values in labels.items()}
    for row, decision in decisions.items():
        part, index = "test" if is_test[row] else "train", table["index"][row]
        if decision.word == "relabel":
            labels[part][index] = decision.label
        dropped[part][index] = decision.word == "drop"
    return labels, dropped


def _write_table(judged, parts, labels, dropped, path):
    """Names and labels as they stand, without what is dropped."""
    spec = judged.config["dataset"]
    heads = ["path", "label"]
    if not has_files(judged):
        heads = [spec.get("text_column", "text"), spec.get("label_column", "label")]
    with atomic_write(path) as file:
        # quoted, as spaces in front would be skipped, and a carriage return end the row
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(heads)
        for part in parts:
            index = np.flatnonzero(~dropped[part])
            names = names_of({"part": [part] * len(index), "index": index}, judged.data)
            words = [in_words(judged, label) for label in labels[part][index]]
            writer.writerows(zip(names, words, strict=True))


def _write_arrays(judged, parts, labels, dropped, path):
    """``given`` [N], by position; ``dropped`` [N]: these keep their label, as they cannot leave."""
    (part,) = parts
    write_arrays(path, given=labels[part], dropped=dropped[part])


def _report(judged, decisions):
    """How many decisions there are of each kind, and what they say about all labels."""
    counts = Counter(decision.word for decision in decisions.values())
    sample, num_unsuspected = read_sample(judged)
    reviewed = [decision for row, decision in decisions.items() if row not in sample]
    drawn = [decision for row, decision in decisions.items() if row in sample]
    return {
        "samples": len(judged.data.train) + len(judged.data.test),
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


def how_to_train(judged: Judged, written: list[Path]) -> str:
    """The arguments of main.py that read the mended labels as the run has read its own."""
    first, second, *_ = written
    if first.suffix == ".npz":
        return f"noise.kind=file:{first}"
    config, spec = judged.config, judged.config["dataset"]
    arguments = {"dataset.file": first}
    if has_files(judged):
        arguments["dataset.root"] = judged.data.root or Path()
    else:
        columns = ("text_column", "label_column")
        arguments |= {f"dataset.{key}": spec[key] for key in columns if key in spec}
    if second.suffix == ".csv":
        arguments["dataset.test_file"] = second
    elif spec.get("test_file") is not None:
        arguments["dataset.test_file"] = find_table(spec["test_file"], config["data_root"])
    if not judged.classes:
        task, task_loss = judged.data.task, config["task_loss"]
        arguments |= {"dataset.task": task, "task": task, "task_loss": task_loss}
    return " ".join(f"{key}={shlex.quote(str(value))}" for key, value in arguments.items())


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
