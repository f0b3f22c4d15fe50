"""The two pictures of a run, drawn from the files in its directory."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.checkpoint import atomic_write

COLOURS = {"easy": "#0072B2", "hard": "#E69F00", "incorrect": "#D55E00", "grey": "#777777"}  # Okabe and Ito: colour-blind safe


def draw_curves(directory: Path, metric: str):
    """curves.png: training, validation and test metric over the epochs, with the best and the last test value marked."""
    rows = pd.read_csv(directory / "metrics.csv")
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rows.epoch, rows.train_metric, color=COLOURS["grey"], label="training, given labels")
    if "validation_metric" in rows:
        axes.plot(rows.epoch, rows.validation_metric, color=COLOURS["hard"], label="validation, given labels")
    axes.plot(rows.epoch, rows.test_metric, color=COLOURS["easy"], label="test")
    best = rows.test_metric.idxmax() if metric == "accuracy" else rows.test_metric.idxmin()
    for position, name, offset in ((best, "best", 8), (rows.index[-1], "last", -14)):
        axes.plot(rows.epoch[position], rows.test_metric[position], "o", color=COLOURS["easy"])
        axes.annotate(f"{name} {rows.test_metric[position]:.2f}", (rows.epoch[position], rows.test_metric[position]),
                      xytext=(0, offset), textcoords="offset points", ha="right", color=COLOURS["easy"])
    axes.set(xlabel="epoch", ylabel="accuracy (%)" if metric == "accuracy" else "mean absolute error")
    axes.margins(y=0.15)
    axes.legend(frameon=False)
    save(figure, axes, directory / "curves.png")


def draw_samples(directory: Path):
    """samples.png: the scores of correct and incorrect labels; and the weight of easy, hard and incorrect samples by epoch."""
    samples, rows = np.load(directory / "samples.npz"), pd.read_csv(directory / "metrics.csv")
    groups = [name for name in ("easy", "hard", "incorrect") if f"weight_{name}" in rows]
    figure = Figure(figsize=(9, 3.6) if groups else (5, 3.6), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, 2 if groups else 1))
    score, known = samples["score"], (samples["true"] >= 0).all()
    bins = np.histogram_bin_edges(score, 50)
    if known:
        incorrect = samples["given"] != samples["true"]
        all_axes[0].hist(score[~incorrect], bins, alpha=0.7, color=COLOURS["easy"], label="correct labels")
        all_axes[0].hist(score[incorrect], bins, alpha=0.7, color=COLOURS["incorrect"], label="incorrect labels")
        all_axes[0].legend(frameon=False)
    else:
        all_axes[0].hist(score, bins, color=COLOURS["grey"])
    all_axes[0].set(xlabel="score (larger: more suspicious)", ylabel="samples", yscale="log")
    for name in groups:
        all_axes[1].plot(rows.epoch, rows[f"weight_{name}"], color=COLOURS[name], label=name)
    if groups:
        all_axes[1].set(xlabel="epoch", ylabel="weight (the task loss alone: 1)", ylim=(0, None))
        all_axes[1].legend(frameon=False)
    save(figure, all_axes, directory / "samples.png")


def save(figure: Figure, axes, path: Path):
    """Write a figure without the frame lines that carry nothing."""
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, dpi=150, format=path.suffix[1:])
