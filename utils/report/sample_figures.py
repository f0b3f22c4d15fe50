"""Pictures of the samples of runs: their scores, and those that are looked at."""

import io
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from utils.colours import KINDS
from utils.detection import wrong_labels
from utils.errors import UserError
from utils.files import read_bytes
from utils.report.charts import WIDTH
from utils.report.run_files import read_arrays

SHEETS = {
    "most suspicious labels": "suspects.png",
    "correct labels with the largest loss": "hardest.png",
}
LARGEST_SHEET = 4000  # pixels wide; ours have 800


def read_samples(directories: dict[str, Path], skipped: dict[str, str]) -> dict[str, tuple]:
    """Label -> score and incorrect [N], if both kinds of samples are there and known."""
    samples = {}
    for label, directory in directories.items():
        arrays = read_arrays(directory / "samples.npz", ("score", "given", "true"), skipped)
        if arrays is None:
            continue
        score, given, true = arrays
        known, incorrect = np.isfinite(score), wrong_labels(given, true)
        if incorrect is not None and len(set(incorrect[known])) == 2:
            samples[label] = score[known], incorrect[known]
    return samples


def scores(samples: dict[str, tuple], styles: dict) -> Figure:
    """ROC of the incorrect samples for all methods, and the distribution of each one's score."""
    figure = Figure(figsize=(WIDTH, max(3.4, 0.8 * len(samples) + 0.8)), layout="constrained")
    left, right = figure.subfigures(1, 2)
    axes = left.subplots()
    panels = right.subplots(len(samples), 1, squeeze=False, sharex=True)[:, 0]
    for panel, (label, (score, incorrect)) in zip(panels, samples.items(), strict=True):
        correct_above, incorrect_above, _ = roc_curve(incorrect, score)
        text = f"{label}, AUROC {roc_auc_score(incorrect, score):.4f}"
        axes.plot(correct_above, incorrect_above, color=styles[label][0], label=text)
        _distribution(panel, score, incorrect)
        panel.set_title(label, fontsize="small", loc="left", pad=2)
    fewest = 1 / max((~incorrect).sum() for _, incorrect in samples.values())  # a single one
    chance = np.geomspace(fewest, 1, 50)
    axes.plot(chance, chance, color="#cccccc", linewidth=1, zorder=0)
    axes.set(
        xscale="log",
        xlim=(fewest, 1),
        xlabel="part of the correct labels above the threshold",
        ylabel="part of the incorrect labels above it",
    )
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    panels[0].legend(
        frameon=False, fontsize="small", ncols=2, loc="lower right", bbox_to_anchor=(1, 0.92)
    )
    panels[-1].set_xlabel("score, from its lowest to its highest; samples: log scale")
    panels[-1].set_xticks([])
    return figure


def _distribution(panel, score: np.ndarray, incorrect: np.ndarray):
    """Histograms of the scores [N] of correct and incorrect labels, without the utmost ones."""
    low, high = np.percentile(score, [0.5, 99.5])
    scaled = ((score - low) / (high - low or 1)).clip(0, 1)
    style = {"bins": np.linspace(0, 1, 51), "alpha": 0.7}
    panel.hist(scaled[~incorrect], color=KINDS["easy"], label="correct", **style)
    panel.hist(scaled[incorrect], color=KINDS["incorrect"], label="incorrect", **style)
    panel.set_yscale("log")
    panel.set_yticks([])
    panel.minorticks_off()
    panel.spines[["left", "top", "right"]].set_visible(False)


def sheets(images: dict[str, np.ndarray], label: str) -> Figure:
    """The contact sheets of one run: the most suspicious labels, and the hardest correct ones."""
    tallest = max(image.shape[0] / image.shape[1] for image in images.values())
    size = WIDTH / 2 * 1.4
    figure = Figure(figsize=(size * len(images), size * tallest + 0.4), layout="constrained")
    panels = figure.subplots(1, len(images), squeeze=False)[0]
    for axes, (name, image) in zip(panels, images.items(), strict=True):
        axes.imshow(image, interpolation="none")
        axes.set_title(f"{label}: {name}", fontsize="medium")
        axes.set_axis_off()
    return figure


def read_sheets(directory: Path, skipped: dict[str, str]) -> dict[str, np.ndarray]:
    """What is shown -> picture, of those that a run has left."""
    images = {}
    for name, file in SHEETS.items():
        path = directory / file
        if not os.path.lexists(path):
            continue
        try:
            content = io.BytesIO(read_bytes(path))
            width, height = Image.open(content, formats=["PNG"]).size  # of the header
            if not 0 < height <= 2 * width <= 2 * LARGEST_SHEET:
                raise UserError(f"it has {width} x {height} pixels")
            content.seek(0)
            images[name] = imread(content, "png")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            skipped[str(path)] = f"cannot be read: {error}"
    return images
