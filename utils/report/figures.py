"""Which pictures of many runs there are: each as .png and .svg, from run folders or logs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from utils.colours import styles_of
from utils.files import atomic_write
from utils.report.charts import (
    DETECTED,
    accuracy_by_epoch,
    detection_by_noise,
    differences_by_noise,
    error_by_noise,
    has_weights,
    methods,
    metric_of,
    metric_over,
    weights_by_epoch,
)
from utils.report.collect import Results
from utils.report.comparison import differences
from utils.report.identity import KEY, NOISE_RATE, TABLE
from utils.report.sample_figures import read_samples, read_sheets, scores, sheets


class Picture(NamedTuple):
    path: Path  # of the .png; an .svg of that name is beside it
    dataset: str
    noise: str
    title: str


def draw(
    results: Results,
    folder: Path,
    forms: tuple[str, ...] = ("png", "svg"),
    against: tuple[str, str] | None = None,
) -> list[Picture]:
    """All pictures that these runs have the files for.

    ``against``: a rule for the epoch and a method; then only the differences to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if against is not None:
        return _draw_against(results, folder, forms, *against)
    # between two $ matplotlib would read a formula
    table = results.table.assign(label=results.table.label.str.replace("$", r"\$"))
    styles = styles_of(zip(table.label, table.method, strict=True))
    metrics = table.groupby(["dataset", "noise"]).metric.nunique()
    pictures = []
    for (dataset, noise, metric), rows in table.groupby(TABLE, sort=False):
        names = [dataset, noise, metric] if metrics[dataset, noise] > 1 else [dataset, noise]
        condition = _in_a_name("-".join(names))
        drawn = _figures(rows, results, styles)
        if results.axis != NOISE_RATE:
            figure = metric_over(rows, results.axis, styles)
            drawn = [(f"{results.axis}-{{}}", f"test metric by {results.axis}", figure)]
        for name, title, figure in drawn:
            path = folder / f"{name.format(condition)}.png"
            save(figure, path, forms)
            pictures.append(Picture(path, dataset, noise, title))
    return pictures


def _draw_against(
    results: Results, folder: Path, forms: tuple[str, ...], rule: str, method: str
) -> list[Picture]:
    """The differences to one method under all noises, a picture a dataset and metric."""
    pictures = []
    found = differences(results, rule, method)
    for (dataset, metric), rows in found.groupby(["dataset", "metric"], sort=False):
        name = _in_a_name(f"{rule}-{dataset}-{metric}-against-{method}")
        save(differences_by_noise(rows, rule, method), folder / f"{name}.png", forms)
        title = f"{rule} less that of {method}"
        pictures.append(Picture(folder / f"{name}.png", dataset, "", title))
    return pictures


def _in_a_name(text: str) -> str:
    """A text as it may stand in the name of a file."""
    return re.sub(r"[^\w.-]+", "-", text)[:150]


def _figures(rows: pd.DataFrame, results: Results, styles: dict) -> Iterator[tuple]:
    """The figures of one table: (name with a gap for dataset and noise, title, figure)."""
    if rows.fraction.nunique() > 1:
        figure = error_by_noise(rows, results.configs, styles)
        yield "noise-{}", "test metric by noise fraction", figure
        if rows[DETECTED].astype(float).notna().any():
            figure = detection_by_noise(rows, styles)
            yield "detection-{}", "hard against incorrect by noise fraction", figure
    for fraction, part in rows.groupby("fraction"):
        for kind, title, figure in _figures_at(part, results, styles):
            yield f"{kind}-{{}}-{fraction:g}", f"{fraction:g}: {title}", figure


def _figures_at(rows: pd.DataFrame, results: Results, styles: dict) -> Iterator[tuple]:
    """The figures of one table at one noise fraction: (kind, title, figure)."""
    logged = results.epochs.merge(rows[[*KEY, "label"]], on=KEY)
    logged = logged.sort_values(["label", "seed", "epoch"])
    if len(logged):
        yield "epochs", "metric by epoch", accuracy_by_epoch(logged, rows, styles)
    if rows.label.nunique() > 2:
        yield "methods", "methods", methods(rows, results.configs, styles)
    if has_weights(logged):
        yield "weights", "weights by epoch", weights_by_epoch(logged)
    directories = _first_directories(rows, results)
    samples = read_samples(directories, results.skipped)
    if samples:
        yield "scores", "scores of incorrect labels", scores(samples, styles)
    means = -metric_of(rows).sign * rows.groupby("label")["last"].mean()
    best = means.sort_values().index[0]
    images = read_sheets(directories[best], results.skipped) if best in directories else {}
    if images:
        yield "sheet", "suspects and hard samples", sheets(images, best)


def _first_directories(rows: pd.DataFrame, results: Results) -> dict[str, Path]:
    """Label -> the directory of its first seed, if there is one."""
    directories = {}
    for *key, label in rows[[*KEY, "label"]].itertuples(index=False, name=None):
        if tuple(key) in results.directories:
            directories.setdefault(label, results.directories[tuple(key)])
    return directories


def save(figure: Figure, path: Path, forms: tuple[str, ...] = ("png", "svg")):
    """Write the figure in these forms, the same bytes for the same runs.

    Without the frame lines that carry nothing.
    """
    for axes in figure.get_axes():
        axes.spines[["top", "right"]].set_visible(False)
    for form in forms:
        metadata = {"Date": None} if form == "svg" else None
        with (
            rc_context({"svg.hashsalt": "runs"}),  # else its ids are random
            atomic_write(path.with_suffix(f".{form}"), "wb") as file,
        ):
            figure.savefig(file, dpi=150, format=form, metadata=metadata)
