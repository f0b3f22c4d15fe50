"""What a finished run leaves besides its log: one function per file, and the list of them."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.detection import wrong_labels
from utils.escapes import in_a_cell
from utils.files import atomic_write
from utils.labels import write_labels
from utils.metrics import Metric

NUM_SUSPECTS = 1000  # suspects.csv lists at least this many of the most suspicious samples,
MAX_SUSPECTS = 100_000  # and at most this many: samples.npz has all
SHEET = 64  # samples on a contact sheet


@dataclass
class FinishedRun:
    """What the exports are made from."""

    path: Path  # of the run's directory
    data: object  # the datasets.base.Dataset
    metric: Metric
    samples: dict[str, np.ndarray]  # detection.sample_table of the training samples
    test: dict[str, np.ndarray]  # evaluation.prediction_table of the test samples
    labels: Tensor | None  # what the method would rather train on
    noise_sha256: str

    @property
    def most_suspicious(self) -> np.ndarray:
        """Rows of ``samples``, the most suspicious first."""
        return np.argsort(-self.samples["score"], kind="stable")

    def in_words(self, label) -> str:
        """A label in words; "" if it is unknown."""
        if self.data.classes:
            return self.data.classes[label] if label >= 0 else ""
        return "" if np.isnan(label) else f"{label:.6g}"


def write_samples(run: FinishedRun):
    """samples.npz: a row per training sample."""
    _write_arrays(run.path / "samples.npz", run.samples)


def write_test(run: FinishedRun):
    """test.npz: a row per test sample."""
    _write_arrays(run.path / "test.npz", run.test)


def write_labels_of_method(run: FinishedRun):
    """labels.npz: what another run can train on with ``targets=``, if the method makes labels."""
    if run.labels is not None:
        write_labels(run.path / "labels.npz", run.labels, run.noise_sha256)


def write_suspects(run: FinishedRun):
    """suspects.csv: the most suspicious training samples, in words, the most suspicious first.

    All that are flagged, but at least NUM_SUSPECTS and at most MAX_SUSPECTS.
    """
    table, part = run.samples, run.data.train
    column, names = "path", None
    if part.texts:
        column, names = "text", part.texts
    elif isinstance(part.source, list):
        names = part.source
    heads = ["rank", "index", column, "given_label", "predicted_label", "score", "loss"]
    num_flagged = int(table["flagged"].sum())
    count = min(max(NUM_SUSPECTS, num_flagged), MAX_SUSPECTS)
    if num_flagged > count:
        print(
            f"suspects.csv lists the {count:,} most suspicious of {num_flagged:,} flagged samples; "
            "samples.npz has all of them"
        )
    with atomic_write(run.path / "suspects.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*heads, "mean_loss", "flagged", "true_label"])
        for rank, row in enumerate(run.most_suspicious[:count], start=1):
            index = table["index"][row]
            given, predicted, true = (
                in_a_cell(run.in_words(table[key][row])) for key in ("given", "predicted", "true")
            )
            numbers = [f"{table[key][row]:.6g}" for key in ("score", "loss", "mean_loss")]
            name = in_a_cell(names[index]) if names else ""
            flagged = int(table["flagged"][row])
            writer.writerow([rank, index, name, given, predicted, *numbers, flagged, true])


def draw_sheets(run: FinishedRun):
    """suspects.png, and hardest.png if the truth is known: contact sheets of images.

    The most suspicious samples, and the correct ones that the network finds hardest.
    """
    if not run.data.is_images and run.data.train.images is None:
        return
    from utils.plots import draw_suspects

    hardest = np.argsort(-run.samples["loss"], kind="stable")
    incorrect = wrong_labels(run.samples["given"], run.samples["true"])
    sheets = {"suspects.png": run.most_suspicious}
    if incorrect is not None:
        sheets["hardest.png"] = hardest[~incorrect[hardest]]
    for name, rows in sheets.items():
        if len(rows) == 0:  # no label is correct
            continue
        shown = {key: values[rows[:SHEET]] for key, values in run.samples.items()}
        draw_suspects(run.path / name, shown, run.in_words, run.data.train.source)


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
    write_test,
    write_labels_of_method,
)
PICTURES: tuple[Callable[[FinishedRun], None], ...] = (
    draw_sheets,
    draw_curves,
    draw_samples,
    draw_targets,
)


def _write_arrays(path, arrays):
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, **arrays)
