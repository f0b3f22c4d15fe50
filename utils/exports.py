"""What a finished run leaves besides its log: one function per file, and the list of them."""

import csv
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.detection import merge, without_training, wrong_labels
from utils.escapes import in_a_cell
from utils.files import atomic_write, write_arrays
from utils.labels import write_labels
from utils.metrics import Metric
from utils.network import write_network

NUM_SUSPECTS = 1000  # suspects.csv lists at least this many of the most suspicious samples,
MAX_SUSPECTS = 100_000  # and at most this many: samples.npz has all
SHEET = 64  # samples on a contact sheet


@dataclass
class FinishedRun:
    """What the exports are made from."""

    path: Path  # of the run's directory
    data: object  # the datasets.base.Dataset
    metric: Metric
    samples: dict[str, np.ndarray]  # detection.sample_table of the samples that were trained on
    held_out: dict[str, np.ndarray] | None  # detection.without_training of those held out
    test: dict[str, np.ndarray] | None  # evaluation.prediction_table of the test samples
    labels: Tensor | None  # what the method would rather train on
    noise_sha256: str
    network: object = None  # the torch module that is evaluated
    use: dict | None = None  # network.describe_use

    @functools.cached_property
    def judged(self) -> dict[str, np.ndarray]:
        """All samples whose labels are doubtful, the most suspicious first, as detection.merge."""
        return doubtful(self.samples, self.held_out, self.test, self.data)

    def in_words(self, label) -> str:
        """A label in words; "" if it is unknown."""
        return in_words(label, self.data.classes)


def write_samples(run: FinishedRun):
    """samples.npz: a row per training sample."""
    write_arrays(run.path / "samples.npz", **run.samples)


def write_held_out(run: FinishedRun):
    """held_out.npz: a row per sample that is validated on, and with folds all probabilities."""
    if run.held_out:
        write_arrays(run.path / "held_out.npz", **run.held_out)


def write_test(run: FinishedRun):
    """test.npz: a row per test sample."""
    if run.test:
        write_arrays(run.path / "test.npz", **run.test)


def write_labels_of_method(run: FinishedRun):
    """labels.npz: what another run can train on with ``targets=``, if the method makes labels."""
    if run.labels is not None:
        write_labels(run.path / "labels.npz", run.labels, run.noise_sha256)


def write_suspects(run: FinishedRun):
    """suspects.csv: the most suspicious labels of all parts, in words, most suspicious first.

    All that are flagged, but at least NUM_SUSPECTS and at most MAX_SUSPECTS.
    """
    write_list(run.path / "suspects.csv", run.judged, run.data)


def doubtful(samples: dict, held_out: dict | None, test: dict | None, data) -> dict:
    """All samples whose labels are doubtful, the most suspicious first, as ``detection.merge``.

    The test part is among them if it is as doubtful as the rest, and no noise was injected on top:
    then the labels that were there count as true.
    """
    parts = {"train": samples}
    if held_out:
        parts["validation"] = held_out
    if test and data.doubtful_test and wrong_labels(samples["given"], samples["true"]) is None:
        parts["test"] = without_training(test)
    return merge(parts)


def write_list(path: Path, table: dict[str, np.ndarray], data):
    """A list of suspects, as ``write_suspects`` makes it of ``FinishedRun.judged``."""
    num_flagged = int(table["flagged"].sum())
    count = min(max(NUM_SUSPECTS, num_flagged), MAX_SUSPECTS)
    if num_flagged > count:
        print(
            f"suspects.csv lists the {count:,} most suspicious of {num_flagged:,} flagged samples; "
            "samples.npz has all of them"
        )
    table = {key: values[:count] for key, values in table.items()}
    labels = {
        f"{key}_label": [in_a_cell(in_words(label, data.classes)) for label in table[key]]
        for key in ("given", "predicted", "true")
    }
    shown = {
        "rank": range(1, len(table["index"]) + 1),
        "index": table["index"],
        "text" if data.train.texts else "path": map(in_a_cell, names_of(table, data)),
        "given_label": labels["given_label"],
        "predicted_label": labels["predicted_label"],
        **{key: _digits(table[key]) for key in ("score", "loss", "mean_loss")},
        "flagged": table["flagged"].astype(int),
        "true_label": labels["true_label"],
        **{key: _digits(table[key]) for key in PROBABILITIES if key in table},
        "part": table["part"],
    }
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(shown)
        writer.writerows(zip(*shown.values(), strict=True))


PROBABILITIES = ("given_probability", "predicted_probability", "quality")


def _digits(values):
    return [f"{value:.6g}" for value in values]


def split_of(part: str, data):
    """The split that ``index`` counts in, in a row of this part."""
    return data.test if part == "test" else data.train


def names_of(table: dict[str, np.ndarray], data) -> list[str]:
    """By row the path as the user's own table has it, or the text; "" if there is neither."""
    names = []
    for part, index in zip(table["part"], table["index"], strict=True):
        split = split_of(part, data)
        if split.texts:
            names.append(split.texts[index])
        else:
            names.append(data.name(split.source[index]) if isinstance(split.source, list) else "")
    return names


def in_words(label, classes: list[str]) -> str:
    """A label in words; "" if it is unknown."""
    if classes:
        return classes[label] if label >= 0 else ""
    return "" if np.isnan(label) else f"{label:.6g}"


def write_trained_network(run: FinishedRun):
    """network.pt and network.json: what it takes to use the network, without the data."""
    write_network(run.path, run.network, run.use)


def draw_sheets(run: FinishedRun):
    """suspects.png, and hardest.png if the truth is known: contact sheets of images.

    The first of suspects.csv, and the correct training samples that the network finds hardest.
    """
    if not run.data.shows_images:
        return
    from utils.plots import draw_suspects

    sheets = {"suspects.png": run.judged}
    incorrect = wrong_labels(run.samples["given"], run.samples["true"])
    if incorrect is not None:
        hardest = np.argsort(-run.samples["loss"], kind="stable")
        rows = hardest[~incorrect[hardest]][:SHEET]
        correct = {key: values[rows] for key, values in run.samples.items()}
        sheets["hardest.png"] = correct | {"part": np.full(len(rows), "train")}
    for name, table in sheets.items():
        if len(table["index"]) == 0:  # no label is correct
            continue
        shown = {key: values[:SHEET] for key, values in table.items()}
        places = zip(shown["part"], shown["index"], strict=True)
        images = [split_of(part, run.data).source[index] for part, index in places]
        draw_suspects(run.path / name, shown, run.in_words, images)


def draw_curves(run: FinishedRun):
    """curves.png: the metrics by epoch."""
    from utils import plots

    plots.draw_curves(run.path, run.metric)


def draw_samples(run: FinishedRun):
    """samples.png: the scores of correct and incorrect labels, and the weights by epoch."""
    from utils import plots

    plots.draw_samples(run.path)


def draw_targets(run: FinishedRun):
    """targets.png, of a regression: predictions against targets."""
    if not run.data.classes:
        from utils import plots

        plots.draw_targets(run.path)


FILES: tuple[Callable[[FinishedRun], None], ...] = (
    write_samples,
    write_suspects,
    write_held_out,
    write_test,
    write_labels_of_method,
    write_trained_network,
)
PICTURES: tuple[Callable[[FinishedRun], None], ...] = (
    draw_sheets,
    draw_curves,
    draw_samples,
    draw_targets,
)
