"""Pictures of many runs: each drawn as .png and .svg, from run directories or compact logs."""

import io
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from utils.colours import COLOURS, KINDS, MARKERS, styles_of
from utils.detection import wrong_labels
from utils.errors import UserError
from utils.files import atomic_write, read_bytes
from utils.metrics import METRICS, Metric
from utils.report import published
from utils.report.collect import Results
from utils.report.comparison import conditions, differences
from utils.report.identity import KEY, NOISE_RATE, TABLE
from utils.report.run_files import read_arrays
from utils.report.statistics import INTERVAL

DETECTED = "hard_vs_incorrect_auroc"
WIDTH = 9  # inches: what README shows at about 900 pixels
GRID = {"color": "#dddddd", "linewidth": 0.6}
SHEETS = {
    "most suspicious labels": "suspects.png",
    "correct labels with the largest loss": "hardest.png",
}


LARGEST_SHEET = 4000  # pixels wide; ours have 800


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
    found = differences(results.table, rule, method)
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
    if _weighs(logged):
        yield "weights", "weights by epoch", weights_by_epoch(logged)
    directories = _first_directories(rows, results)
    samples = _samples(directories, results.skipped)
    if samples:
        yield "scores", "scores of incorrect labels", scores(samples, styles)
    means = -_metric(rows).sign * rows.groupby("label")["last"].mean()
    best = means.sort_values().index[0]
    images = _sheets(directories[best], results.skipped) if best in directories else {}
    if images:
        yield "sheet", "suspects and hard samples", sheets(images, best)


def _metric(rows: pd.DataFrame) -> Metric:
    return METRICS[rows.metric.iloc[0]]


def accuracy_by_epoch(logged: pd.DataFrame, rows: pd.DataFrame, styles: dict) -> Figure:
    """Test metric over the epochs, the mean over seeds in the range of all.

    With the mean best, the mean last, and the gap between them.
    """
    figure, axes = _axes()
    shown = [logged.groupby(["label", "epoch"]).test_metric.mean()]
    low, high = _fences(pd.concat([*shown, rows.groupby("label").best.mean()]))
    step = 0.012 * logged.epoch.max()
    for number, (label, own) in enumerate(logged.groupby("label", sort=False)):
        curve = own.groupby("epoch").test_metric.agg(["mean", "min", "max"])
        colour, runs = styles[label][0], rows[rows.label == label]
        best, last = runs.best.mean(), runs["last"].mean()
        end = curve.index[-1] + step * number  # side by side
        outside = "" if low <= last <= high else " (off the axis)"
        text = f"{label}: last {last:.2f}, best {best:.2f}{outside}"
        axes.plot(curve.index, curve["mean"], color=colour, label=text)
        axes.fill_between(
            curve.index, curve["min"], curve["max"], color=colour, alpha=0.15, linewidth=0
        )
        axes.plot(runs.best_epoch.mean(), best, "o", color=colour, markerfacecolor="white")
        axes.plot(end, last, "o", color=colour)
        axes.plot([end, end], [best, last], ":", color=colour, linewidth=1.5)
    axes.set_ylim(low, high)
    axes.set(xlabel="epoch", ylabel=f"test {_metric(rows).heading}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    seeds = logged.groupby("label").seed.nunique()
    count = " to ".join(map(str, dict.fromkeys((seeds.min(), seeds.max()))))
    seeds = "one seed" if count == "1" else f"mean and range of {count} seeds"
    _legend(axes, f"last: dot; best of each run: ring; between them: dotted\n{seeds}")
    return figure


def _fences(values: pd.Series, span: float = 3) -> tuple[float, float]:
    """Limits of an axis that leave out what would squeeze the rest.

    That is what lies more than ``span`` times the range of the quartiles beyond these.
    """
    first, third = values.quantile([0.25, 0.75])
    low = max(values.min(), first - span * (third - first))
    high = min(values.max(), third + span * (third - first))
    space = 0.05 * (high - low) or 1
    return low - space, high + space


def error_by_noise(rows: pd.DataFrame, configs: dict[str, dict], styles: dict) -> Figure:
    """Test error by noise fraction, a panel a method, the lowest last error first.

    Last (filled) and best (hollow), the published numbers, and in grey the last of the others. A
    metric in percent is shown as 100 less it, on a logarithmic scale; others as they are, on a
    linear one.
    """
    numbers, metric = published.load(), _metric(rows)
    percent = metric.unit == "%"
    rows = rows.assign(last=_error(rows["last"], metric), best=_error(rows.best, metric))
    values = pd.concat([rows["last"], rows.best]).dropna()
    if percent:
        low, high = np.exp(_fences(np.log(values.clip(lower=0.01)), span=1.5))
    else:
        low, high = _fences(values, span=5)
    better = 1 if percent or not metric.higher_is_better else -1
    labels = (better * rows.groupby("label")["last"].mean()).sort_values(kind="stable").index
    lasts = {label: _by_noise(rows[rows.label == label], "last") for label in labels}
    panels = _panels(len(labels))
    for axes, label in zip(panels, labels, strict=True):
        own = rows[rows.label == label]
        for other in labels.drop(label):
            axes.plot(lasts[other].index, lasts[other]["mean"], color="#cccccc", linewidth=0.8)
        outside = "" if own["last"].between(low, high).all() else " (partly off)"
        _error_bars(axes, lasts[label], styles[label])
        best = _by_noise(own, "best")
        _error_bars(axes, best, styles[label], linestyle=":", markerfacecolor="white")
        for cell in own.drop_duplicates("fraction").to_dict("records"):
            for value, cross in _published(cell, configs, numbers):
                error = _error(value, metric)
                axes.plot(cell["fraction"], error, cross, **_cross(7), zorder=3)
        title = "\n".join(textwrap.wrap(label + outside, 26))
        axes.set_title(title, fontsize="medium", color=styles[label][0], fontweight="bold")
        name = _error_axis(axes, metric)
        axes.set_ylim(low, high)
        _noise_axis(axes, rows)
    figure = panels[0].figure
    figure.supylabel(name)
    figure.supxlabel(
        "noise fraction\nfilled: last; hollow: best; +: published last, x: best or another rule; "
        "grey: last of the others",
        fontsize="medium",
    )
    return figure


def metric_over(rows: pd.DataFrame, axis: str, styles: dict) -> Figure:
    """Last test metric by a number of the configuration, which stands in the column fraction.

    A metric in percent is shown as 100 less it, on a logarithmic scale.
    """
    figure, axes = _axes()
    metric, values = _metric(rows), sorted(rows.fraction.unique())
    rows = rows.assign(last=_error(rows["last"], metric))
    name = _error_axis(axes, metric)
    for label, own in rows.groupby("label", sort=False):
        _error_bars(axes, _by_noise(own, "last"), styles[label], label=label)
    if values[0] > 0 and values[-1] >= 20 * values[0]:
        axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values], minor=False)
    axes.xaxis.minorticks_off()
    axes.set(xlabel=axis, ylabel=name)
    _legend(axes, "last epoch")
    return figure


def _error(values, metric: Metric):
    """What is drawn of a metric: of one in percent, 100 less it."""
    return 100 - values if metric.unit == "%" else values


def _error_axis(axes, metric: Metric) -> str:
    """Make the vertical axis logarithmic, if the metric is in percent; its name."""
    if metric.unit != "%":
        return f"test {metric.heading}"
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    return "test error (%)"


def _noise_axis(axes, rows: pd.DataFrame):
    """A tick for each noise fraction, in percent."""
    axes.set_xticks(sorted(rows.fraction.unique()))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _by_noise(rows: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Mean and standard deviation of a rule by noise fraction."""
    return rows.groupby("fraction")[rule].agg(["mean", "std"])


def _panels(count: int) -> list:
    """So many axes of equal limits, four in a row, without the others of the last row."""
    columns = min(count, 4)
    lines = -(-count // columns)
    size = (max(WIDTH * columns / 4, WIDTH / 2), 2.4 * lines + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes in every[count:]:
        axes.remove()
    for axes in every[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)
    return list(every[:count])


def _error_bars(axes, points: pd.DataFrame, style: tuple[str, str], **more):
    """Means with standard deviations, in the colour and marker of a method."""
    colour, marker = style
    axes.errorbar(
        points.index,
        points["mean"],
        points["std"].fillna(0),
        color=colour,
        marker=marker,
        capsize=2,
        linewidth=1.2,
        **more,
    )


def _cross(size):
    return {"color": "black", "markersize": size, "markeredgewidth": 1.5}


def _published(
    cell: dict, configs: dict[str, dict], numbers: pd.DataFrame
) -> list[tuple[float, str]]:
    """The published numbers that compare, of each rule the preferred one, each with its cross."""
    pairs = published.matches(numbers, cell, configs[cell["config"]])
    same = {number["rule"]: number.value for number, different in reversed(pairs) if not different}
    return [(value, "+" if rule == "last" else "x") for rule, value in same.items()]


def detection_by_noise(rows: pd.DataFrame, styles: dict) -> Figure:
    """AUROC of incorrect against hard samples by noise fraction, among the half of large losses."""
    figure, axes = _axes()
    known = rows[rows[DETECTED].notna()].astype({DETECTED: float})
    for label, own in known.groupby("label", sort=False):
        points = own.groupby("fraction")[DETECTED].agg(["mean", "std"])
        _error_bars(axes, points, styles[label], label=label)
    axes.set(xlabel="noise fraction", ylabel="AUROC among the large losses")
    _noise_axis(axes, known)
    _legend(axes, "by the method's own score")
    return figure


def methods(rows: pd.DataFrame, configs: dict[str, dict], styles: dict) -> Figure:
    """A line a method at one noise fraction, the best last on top.

    Last (filled) and best (hollow), on average and of each run.
    """
    numbers, metric = published.load(), _metric(rows)
    means = metric.sign * rows.groupby("label")["last"].mean()
    order = means.sort_values(na_position="first").index
    figure = Figure(figsize=(WIDTH, 1 + 0.32 * len(order)), layout="constrained")
    axes = figure.subplots()
    low, high = _fences(pd.concat([rows["last"], rows.best]).dropna())
    names = []
    for height, label in enumerate(order):
        own, away, colour = rows[rows.label == label], "", styles[label][0]
        for rule, shift, face in (("last", 0.1, colour), ("best", -0.2, "white")):
            mean, line = own[rule].mean(), height + shift
            axes.plot(own[rule], [line] * len(own), "|", color=colour, alpha=0.6, markersize=6)
            axes.plot(mean, line, "o", color=colour, markerfacecolor=face, markersize=7)
            away += "" if low <= mean <= high else f", {rule} {mean:.2f}"
        for value, cross in _published(own.iloc[0].to_dict(), configs, numbers):
            axes.plot(value, height - 0.2, cross, **_cross(8))
        names.append(f"{label} ({len(own)}{away})")
    axes.set_yticks(range(len(order)), names)
    axes.set_xlim(low, high)
    axes.set_xlabel(
        f"test {metric.heading}; (number of runs)\n"
        "last: filled; best: hollow; each run: bar\n"
        "published: + last, x best or another rule"
    )
    axes.grid(axis="x", **GRID)
    axes.set_axisbelow(True)
    return figure


def differences_by_noise(found: pd.DataFrame, rule: str, against: str) -> Figure:
    """A line a method, the best on top: how far it is from another one under each noise.

    ``found``: of ``comparison.differences``.
    """
    names, order, metric = conditions(found), list(found.method.unique()), _metric(found)
    height = 1.2 + len(order) * (0.18 + 0.1 * len(names))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    ends = found[["difference", "low", "high"]]
    low, high = _fences(pd.concat([*(ends[name] for name in ends), pd.Series([0.0])]).dropna())
    inside = (ends.isna() | ((ends >= low) & (ends <= high))).all(axis=1)
    for number, name in enumerate(names):
        own = found[inside & (found.condition == name)]
        shift = 0.7 * ((number + 0.5) / len(names) - 0.5)
        axes.errorbar(
            own.difference,
            [order.index(method) + shift for method in own.method],
            xerr=(own.high - own.difference).fillna(0),
            linestyle="",
            color=COLOURS[number % 8],
            marker=MARKERS[(number + number // 8) % 8],
            capsize=2,
            label=name.replace("$", r"\$"),
        )
    labels = {method: [method] for method in order}
    for row in found[~inside].itertuples():
        labels[row.method].append(f"{row.condition}: {row.difference:+.1f}")
    axes.set_yticks(
        range(len(order)), ["\n".join(labels[method]).replace("$", r"\$") for method in order]
    )
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(low, high)
    unit = "points" if metric.unit == "%" else metric.heading
    axes.set_xlabel(f"{rule} less that of {against}, {unit}; bars: {INTERVAL}")
    axes.grid(axis="x", **GRID)
    axes.set_axisbelow(True)
    _legend(axes, "noise")
    return figure


def weights_by_epoch(logged: pd.DataFrame) -> Figure:
    """The weights of easy, hard and incorrect samples over the epochs, the mean over seeds.

    A panel for each method that gives any.
    """
    shown = [(label, rows) for label, rows in logged.groupby("label", sort=False) if _weighs(rows)]
    lines = -(-len(shown) // 4)
    columns = -(-len(shown) // lines)
    width = max(4.5, WIDTH * columns / (4 if columns > 2 else 2))
    figure = Figure(figsize=(width, 2.6 * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, squeeze=False)
    for axes, (label, rows) in zip(panels.flat, shown, strict=False):
        means = rows.groupby("epoch")[[f"weight_{kind}" for kind in KINDS]].mean()
        for kind, colour in KINDS.items():
            axes.plot(means.index, means[f"weight_{kind}"], color=colour, label=kind)
        axes.set_title(textwrap.fill(label, 24), fontsize="medium")
        axes.set_ylim(0, None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    panels[0, 0].legend(frameon=False)
    figure.supxlabel("epoch", fontsize="medium")
    figure.supylabel("weight (the task loss alone: 1)", fontsize="medium")
    return figure


def _weighs(logged: pd.DataFrame) -> bool:
    """Whether any sample counted for more or less than under the task loss alone."""
    weights = logged.filter(regex=f"^weight_(?:{'|'.join(KINDS)})$")
    return bool(((weights - 1).abs() > 1e-3).any(axis=None))


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


def _sheets(directory: Path, skipped: dict[str, str]) -> dict[str, np.ndarray]:
    """What is shown -> picture, of those that a run has left."""
    images = {}
    for name, file in SHEETS.items():
        path = directory / file
        if not os.path.lexists(path):
            continue
        try:
            content = io.BytesIO(read_bytes(path))
            width, height = Image.open(content).size  # of the header
            if not 0 < height <= 2 * width <= 2 * LARGEST_SHEET:
                raise UserError(f"it has {width} x {height} pixels")
            content.seek(0)
            images[name] = imread(content, "png")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            skipped[str(path)] = f"cannot be read: {error}"
    return images


def _first_directories(rows: pd.DataFrame, results: Results) -> dict[str, Path]:
    """Label -> the directory of its first seed, if there is one."""
    directories = {}
    for *key, label in rows[[*KEY, "label"]].itertuples(index=False, name=None):
        if tuple(key) in results.directories:
            directories.setdefault(label, results.directories[tuple(key)])
    return directories


def _samples(directories: dict[str, Path], skipped: dict[str, str]) -> dict[str, tuple]:
    """Label -> score and incorrect [N], if both kinds of samples are there and known."""
    samples = {}
    for label, directory in directories.items():
        arrays = read_arrays(directory / "samples.npz", ("score", "given", "true"), skipped)
        if arrays is None:
            continue
        score, given, true = arrays
        incorrect = wrong_labels(given, true)
        both = incorrect is not None and incorrect.any() and not incorrect.all()
        if both and np.isfinite(score).all():
            samples[label] = score, incorrect
    return samples


def _axes():
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    return figure, figure.subplots()


def _legend(axes, title):
    axes.legend(
        frameon=False,
        fontsize="small",
        title=title,
        title_fontsize="small",
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        alignment="left",
    )


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
