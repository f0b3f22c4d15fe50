"""The pictures of one run, drawn from the files in its directory."""

import functools
from collections.abc import Callable
from pathlib import Path
from unicodedata import east_asian_width

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from utils.colours import KINDS
from utils.decoding import decode
from utils.detection import wrong_labels
from utils.files import atomic_write
from utils.metrics import Metric

COLOURS = {"grey": "#777777"} | KINDS
FONTS = (  # of contact sheets: matplotlib's own, and those with Chinese, Japanese, Korean letters
    "DejaVu Sans",
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP"),
    *("Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "PingFang SC", "Hiragino Sans"),
    *("Arial Unicode MS", "Unifont"),
)


def draw_curves(directory: Path, metric: Metric):
    """curves.png: training, validation and test metric by epoch; best and last test values."""
    rows = pd.read_csv(directory / "metrics.csv")
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    if rows.train_metric.notna().any():
        label = "training, given labels"
        axes.plot(rows.epoch, rows.train_metric, color=COLOURS["grey"], label=label)
    if "validation_metric" in rows:
        axes.plot(rows.epoch, rows.validation_metric, color=COLOURS["hard"], label="validation")
    axes.plot(rows.epoch, rows.test_metric, color=COLOURS["easy"], label="test")
    best = rows.test_metric.idxmax() if metric.higher_is_better else rows.test_metric.idxmin()
    for row, name, offset in ((best, "best", 8), (rows.index[-1], "last", -14)):
        epoch, value = rows.epoch[row], rows.test_metric[row]
        axes.plot(epoch, value, "o", color=COLOURS["easy"])
        axes.annotate(
            f"{name} {value:.2f}",
            (epoch, value),
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
    """samples.png: the scores of correct and incorrect labels, and the weights by epoch."""
    columns = pd.read_csv(directory / "metrics.csv", nrows=0)
    has_weights = any(column.startswith("weight_") for column in columns)
    figure = Figure(figsize=(9 if has_weights else 5, 3.6), layout="constrained")
    panels = figure.subplots(1, 2 if has_weights else 1, squeeze=False)[0]
    _draw_scores(panels[0], directory)
    if has_weights:
        _draw_weights(panels[1], directory)
    save(figure, panels, directory / "samples.png")


def _draw_scores(axes, directory):
    with np.load(directory / "samples.npz") as samples:
        score, incorrect = samples["score"], wrong_labels(samples["given"], samples["true"])
    known = np.isfinite(score)
    score, incorrect = score[known], None if incorrect is None else incorrect[known]
    bins = np.histogram_bin_edges(score, 50)
    if incorrect is None:
        axes.hist(score, bins, color=COLOURS["grey"])
    else:
        groups = (
            ("easy", "correct labels", ~incorrect),
            ("incorrect", "incorrect labels", incorrect),
        )
        for colour, label, mask in groups:
            axes.hist(score[mask], bins, alpha=0.7, color=COLOURS[colour], label=label)
        axes.legend(frameon=False)
    axes.set(xlabel="score (larger: more suspicious)", ylabel="samples", yscale="log")


def _draw_weights(axes, directory):
    rows = pd.read_csv(directory / "metrics.csv")
    for name in ("easy", "hard", "incorrect"):
        if f"weight_{name}" in rows:
            axes.plot(rows.epoch, rows[f"weight_{name}"], color=COLOURS[name], label=name)
    axes.set(xlabel="epoch", ylabel="weight (the task loss alone: 1)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)


def draw_targets(directory: Path):
    """targets.png of a regression: predictions of training samples by given and true target."""
    with np.load(directory / "samples.npz") as samples:
        given, true, predicted = samples["given"], samples["true"], samples["predicted"]
    incorrect = wrong_labels(given, true)
    if incorrect is None:
        groups = [("grey", "all samples", np.ones(len(given), bool))]
    else:
        groups = [
            ("easy", "correct labels", ~incorrect),
            ("incorrect", "incorrect labels", incorrect),
        ]
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    diagonal = [np.nanmin(given), np.nanmax(given)]
    dots = {"markersize": 2, "alpha": 0.4, "rasterized": True}
    for axes, target, name in zip(panels, (given, true), ("given", "true"), strict=True):
        for colour, label, mask in groups:
            axes.plot(
                target[mask], predicted[mask], ".", color=COLOURS[colour], label=label, **dots
            )
        axes.plot(diagonal, diagonal, color=COLOURS["grey"], linewidth=1)
        unknown = " (unknown)" if np.isnan(target).all() else ""
        axes.set(xlabel=f"{name} target{unknown}")
    panels[0].set(ylabel="prediction")
    panels[0].legend(frameon=False, markerscale=5)
    save(figure, panels, directory / "targets.png")


def draw_suspects(
    path: Path, table: dict[str, np.ndarray], name: Callable, images: list[str | torch.Tensor]
):
    """A contact sheet of some samples, eight in a row, and above them what is written below each.

    That is its rank in the table with the name of its file, or its index; its given label; and, if
    that is another one, the predicted label.

    Args:
        table: of these samples: index, given, predicted.
        name: from a label to its name.
        images: theirs: paths, or uint8 [C, H, W].
    """
    size, line, gap, columns = 96, 13, 4, 8
    width, height, head = size + gap, size + 3 * line + 2 * gap, 2 * line
    rows = -(-len(table["index"]) // columns)
    sheet = Image.new("RGB", (columns * width, head + rows * height), "white")
    drawing = ImageDraw.Draw(sheet)

    def write(left, top, text, colour):
        drawing.text((left, top), text, colour, font_for(text))

    write(gap // 2, 4, "rank and file or index; given label;", "black")
    write(235, 4, "predicted label, if that is another one", COLOURS["incorrect"])
    samples = zip(images, table["index"], table["given"], table["predicted"], strict=True)
    for position, (image, index, given, predicted) in enumerate(samples):
        row, column = divmod(position, columns)
        left, top = column * width + gap // 2, head + row * height
        sheet.paste(_thumbnail(image, size), (left, top))
        rank = f"{position + 1} "
        file = Path(image).name if isinstance(image, str) else f"{index}"
        below = top + size + 1
        write(left, below, rank + shorten(file, 16 - len(rank)), COLOURS["grey"])
        write(left, below + line, shorten(name(given), 16), "black")
        if predicted != given:
            guess = f"{shorten(name(predicted), 15)}?"
            write(left, below + 2 * line, guess, COLOURS["incorrect"])
    with atomic_write(path, "wb") as file:
        sheet.save(file, "PNG")


def font_for(text: str) -> ImageFont.FreeTypeFont:
    """The first of FONTS that is installed and has all letters of a text; else the first."""
    paths = _paths()
    for path in paths if not text.isascii() else ():
        if all(ord(letter) in _letters(path) for letter in text):
            return _font(path)
    return _font(paths[0])


@functools.cache
def _paths() -> list[str]:
    """Files of those of FONTS that are installed; the first comes with matplotlib."""
    installed = {font.name for font in fontManager.ttflist}
    return [fontManager.findfont(name) for name in FONTS if name in installed]


@functools.cache
def _letters(path: str) -> dict[int, int]:
    return FT2Font(path).get_charmap()


@functools.cache
def _font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, 10)


def _thumbnail(image: str | torch.Tensor, size: int) -> Image.Image:
    pixels = decode(image) if isinstance(image, str) else image.expand(3, -1, -1)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy(force=True))
    is_small = max(picture.size) < size
    method = Image.Resampling.NEAREST if is_small else Image.Resampling.BILINEAR
    return picture.resize((size, size), method)


def shorten(name: str, width: int) -> str:
    """A name in at most so many columns; of a longer one, its beginning and its end.

    Chinese, Japanese and Korean letters take two columns. Bytes that are no text can be drawn too.
    """
    name = name.encode(errors="replace").decode()
    columns = [2 if east_asian_width(letter) in "WF" else 1 for letter in name]
    if sum(columns) <= width:
        return name
    first = last = 0  # letters kept at either end
    while True:
        takes = columns[first] if first <= last else columns[-1 - last]
        kept = sum(columns[:first]) + sum(columns[len(name) - last :])
        if kept + takes > width - 1:
            return f"{name[:first]}…{name[len(name) - last :]}"
        if first <= last:
            first += 1
        else:
            last += 1


def draw_selection(
    path: Path, mean_loss: np.ndarray, given: np.ndarray, incorrect: np.ndarray, table: pd.DataFrame
):
    """Precision of vanilla and RSL selection by epoch, and the mean losses for each given label.

    Of more than 100 labels, those of the first 100.

    Args:
        mean_loss, given, incorrect: [n], of the training samples.
        table: of datasets.selection.compare: rule ("epoch" or "mean"), epoch, precision.
    """
    labels = np.unique(given)[:100]
    columns = min(len(labels), 5 if len(labels) <= 20 else 10)
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(9, 2.6 + 1.3 * rows), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[2.6, 1.3 * rows])
    top = above.subplots()
    _draw_precision(top, table)
    panels = below.subplots(rows, columns, sharex=True, squeeze=False)
    mean_loss = mean_loss.clip(max=np.percentile(mean_loss, 99))  # the last bar holds all above
    bins = np.histogram_bin_edges(mean_loss, 40)
    for panel, label in zip(panels.flat, labels, strict=False):
        chosen = given == label
        _draw_losses(panel, mean_loss[chosen], incorrect[chosen], bins)
        panel.set_title(f"label {label}", fontsize="small", pad=2)
    for panel in panels.flat[len(labels) :]:
        panel.set_axis_off()
    panels[0, 0].legend(frameon=False, fontsize="x-small")
    below.supxlabel("mean loss", fontsize="medium")
    save(figure, [top, *panels.flat], path)


def _draw_precision(axes, table):
    for rule, label, colour in (
        ("mean", "mean loss up to the epoch (RSL)", "easy"),
        ("epoch", "loss of the epoch (vanilla)", "incorrect"),
    ):
        rows = table[table.rule == rule]
        axes.plot(rows.epoch, rows.precision, color=COLOURS[colour], label=label)
    axes.set(xlabel="epoch", ylabel="precision")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)


def _draw_losses(axes, losses, incorrect, bins):
    for colour, label, mask in (
        ("easy", "correct", ~incorrect),
        ("incorrect", "incorrect", incorrect),
    ):
        axes.hist(losses[mask], bins, alpha=0.7, color=COLOURS[colour], label=label)
    axes.set_yticks([])


def save(figure: Figure, axes, path: Path):
    """Write a figure of one or several axes, without the frame lines that mean nothing."""
    for panel in np.atleast_1d(axes):
        panel.spines[["top", "right"]].set_visible(False)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, dpi=150, format=path.suffix[1:])
