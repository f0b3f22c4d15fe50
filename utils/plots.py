"""The pictures of a run, drawn from the files in its directory.

Figures.py draws those of several.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from utils.detection import wrong_labels
from utils.files import atomic_write
from utils.metrics import Metric

COLOURS = {
    "grey": "#777777",
    "easy": "#0072B2",
    "hard": "#E69F00",
    "incorrect": "#D55E00",
}  # Okabe and Ito: colour-blind safe


def draw_curves(directory: Path, metric: Metric):
    """curves.png.

    Training, validation and test metric over the epochs, with the best and the last test value
    marked.
    """
    rows = pd.read_csv(directory / "metrics.csv")
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    if rows.train_metric.notna().any():
        axes.plot(
            rows.epoch, rows.train_metric, color=COLOURS["grey"], label="training, given labels"
        )
    if "validation_metric" in rows:
        axes.plot(rows.epoch, rows.validation_metric, color=COLOURS["hard"], label="validation")
    axes.plot(rows.epoch, rows.test_metric, color=COLOURS["easy"], label="test")
    best = rows.test_metric.idxmax() if metric.higher_is_better else rows.test_metric.idxmin()
    for position, name, offset in ((best, "best", 8), (rows.index[-1], "last", -14)):
        axes.plot(rows.epoch[position], rows.test_metric[position], "o", color=COLOURS["easy"])
        axes.annotate(
            f"{name} {rows.test_metric[position]:.2f}",
            (rows.epoch[position], rows.test_metric[position]),
            xytext=(0, offset),
            textcoords="offset points",
            ha="right",
            color=COLOURS["easy"],
        )
    axes.set(xlabel="epoch", ylabel=metric.heading)
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    save(figure, axes, directory / "curves.png")


def draw_samples(directory: Path):
    """samples.png.

    The scores of correct and incorrect labels; and the weight of easy, hard and incorrect samples
    by epoch.
    """
    weighted = any(
        column.startswith("weight_") for column in pd.read_csv(directory / "metrics.csv", nrows=0)
    )
    figure = Figure(figsize=(9, 3.6) if weighted else (5, 3.6), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, 2 if weighted else 1))
    _scores(all_axes[0], directory)
    if weighted:
        _weights(all_axes[1], directory)
    save(figure, all_axes, directory / "samples.png")


def draw_targets(directory: Path):
    """targets.png, of a regression.

    What the network predicts of the training samples, against given and true targets.
    """
    with np.load(directory / "samples.npz") as samples:
        given, true, predicted = (samples[key] for key in ("given", "true", "predicted"))
    incorrect = wrong_labels(given, true)
    figure = Figure(figsize=(9, 4), layout="constrained")
    all_axes = figure.subplots(1, 2, sharex=True, sharey=True)
    if incorrect is None:
        groups = [(np.ones(len(given), bool), "grey", "all samples")]
    else:
        groups = [
            (~incorrect, "easy", "correct labels"),
            (incorrect, "incorrect", "incorrect labels"),
        ]
    for axes, target, name in zip(all_axes, (given, true), ("given", "true"), strict=True):
        for mask, colour, label in groups:
            axes.plot(
                target[mask],
                predicted[mask],
                ".",
                markersize=2,
                alpha=0.4,
                color=COLOURS[colour],
                label=label,
                rasterized=True,
            )
        ends = [np.nanmin(given), np.nanmax(given)]
        axes.plot(ends, ends, color=COLOURS["grey"], linewidth=1)
        axes.set(xlabel=f"{name} target" + (" (unknown)" if np.isnan(target).all() else ""))
    all_axes[0].set(ylabel="prediction")
    all_axes[0].legend(frameon=False, markerscale=5)
    save(figure, all_axes, directory / "targets.png")


def draw_suspects(
    path: Path, table: dict[str, np.ndarray], name: Callable, images: list[str] | torch.Tensor
):
    """A contact sheet of some samples, eight a row, each with its given label and, if another, the
    predicted one.

    Args:
        table: of these samples: index, given, predicted.
        name: from a label to its name.
        images: of all samples: paths, or uint8 [N, C, H, W].
    """
    size, text, columns = 96, 26, 8
    rows = -(-len(table["index"]) // columns)
    sheet = Image.new("RGB", (columns * (size + 4), rows * (size + text + 4)), "white")
    drawing, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for place, (index, given, predicted) in enumerate(
        zip(table["index"], table["given"], table["predicted"], strict=True)
    ):
        left, top = place % columns * (size + 4) + 2, place // columns * (size + text + 4) + 2
        image = _picture(images[index])
        image = image.resize(
            (size, size),
            Image.Resampling.NEAREST if max(image.size) < size else Image.Resampling.BILINEAR,
        )
        sheet.paste(image, (left, top))
        names = [name(label).encode(errors="replace").decode()[:16] for label in (given, predicted)]
        drawing.text((left, top + size), names[0], "black", font)
        if predicted != given:
            drawing.text((left, top + size + text // 2), f"{names[1]}?", COLOURS["incorrect"], font)
    with atomic_write(path, "wb") as file:
        sheet.save(file, "PNG")


def _picture(image: str | torch.Tensor) -> Image.Image:
    if isinstance(image, str):
        with Image.open(image) as file:
            return file.convert("RGB")
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy(force=True))


def _scores(axes, directory):
    with np.load(directory / "samples.npz") as samples:
        score, incorrect = samples["score"], wrong_labels(samples["given"], samples["true"])
    bins = np.histogram_bin_edges(score, 50)
    if incorrect is not None:
        axes.hist(score[~incorrect], bins, alpha=0.7, color=COLOURS["easy"], label="correct labels")
        axes.hist(
            score[incorrect], bins, alpha=0.7, color=COLOURS["incorrect"], label="incorrect labels"
        )
        axes.legend(frameon=False)
    else:
        axes.hist(score, bins, color=COLOURS["grey"])
    axes.set(xlabel="score (larger: more suspicious)", ylabel="samples", yscale="log")


def _weights(axes, directory):
    rows = pd.read_csv(directory / "metrics.csv")
    for name in ("easy", "hard", "incorrect"):
        if f"weight_{name}" in rows:
            axes.plot(rows.epoch, rows[f"weight_{name}"], color=COLOURS[name], label=name)
    axes.set(xlabel="epoch", ylabel="weight (the task loss alone: 1)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)


def save(figure: Figure, axes, path: Path):
    """Write a figure without the frame lines that carry nothing."""
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, dpi=150, format=path.suffix[1:])


def draw_selection(
    path: Path, mean_loss: np.ndarray, given: np.ndarray, incorrect: np.ndarray, table: pd.DataFrame
):
    """Precision of vanilla and RSL selection by epoch; and the mean losses of correct and incorrect
    labels, label by label.

    Args:
        mean_loss, given, incorrect: [n], of the training samples.
        table: of datasets.selection.compare: rule ("epoch" or "mean"), epoch, precision.
    """
    labels = np.unique(given)
    columns = min(len(labels), 5 if len(labels) <= 20 else 10)
    lines = -(-len(labels) // columns)
    figure = Figure(figsize=(9, 2.6 + 1.3 * lines), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[2.6, 1.3 * lines])
    top = above.subplots()
    for rule, name, colour in (
        ("mean", "mean loss up to the epoch (RSL)", "easy"),
        ("epoch", "loss of the epoch (vanilla)", "incorrect"),
    ):
        rows = table[table.rule == rule]
        top.plot(rows.epoch, rows.precision, color=COLOURS[colour], label=name)
    top.set(xlabel="epoch", ylabel="precision")
    top.xaxis.set_major_locator(MaxNLocator(integer=True))
    top.legend(frameon=False)
    panels = below.subplots(lines, columns, sharex=True, squeeze=False)
    mean_loss = mean_loss.clip(max=np.percentile(mean_loss, 99))  # the few beyond join the last bar
    bins = np.histogram_bin_edges(mean_loss, 40)
    for panel, label in zip(panels.flat, labels, strict=False):
        for wrong, name, colour in ((False, "correct", "easy"), (True, "incorrect", "incorrect")):
            panel.hist(
                mean_loss[(given == label) & (incorrect == wrong)],
                bins,
                alpha=0.7,
                color=COLOURS[colour],
                label=name,
            )
        panel.set_title(f"label {label}", fontsize="small", pad=2)
        panel.set_yticks([])
    for panel in panels.flat[len(labels) :]:
        panel.set_axis_off()
    panels[0, 0].legend(frameon=False, fontsize="x-small")
    below.supxlabel("mean loss", fontsize="medium")
    save(figure, [top, *panels.flat], path)
