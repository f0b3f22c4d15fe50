"""Pictures of many runs: each drawn as .png and .svg, from run directories or compact logs."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter
from sklearn.metrics import roc_auc_score, roc_curve

from utils.detection import wrong_labels
from utils.errors import UserError
from utils.files import atomic_write
from utils.report import published
from utils.report.collect import BROKEN, Runs

KINDS = {
    "easy": "#0072B2",
    "hard": "#E69F00",
    "incorrect": "#D55E00",
}  # Okabe and Ito: colour-blind safe; and so are these
METHODS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "os^Dv<>P"
DETECTED = "hard_vs_incorrect_auroc"
AXIS = {"accuracy": "test accuracy (%)", "mae": "test MAE"}
WIDTH = 9  # inches: what README shows at about 900 pixels


class Picture(NamedTuple):
    path: Path  # of the .png; an .svg of that name is beside it
    dataset: str
    noise: str
    title: str


def draw(runs: Runs, folder: Path, forms: tuple[str, ...] = ("png", "svg")) -> list[Picture]:
    """All pictures that these runs have the files for."""
    folder.mkdir(parents=True, exist_ok=True)
    epochs, drawn = runs.epochs, []
    styles = {
        label: (METHODS[place % len(METHODS)], MARKERS[place % len(MARKERS)])
        for place, label in enumerate(dict.fromkeys(runs.table.label))
    }
    several = runs.table.groupby(["dataset", "noise"]).metric.nunique()
    for (dataset, noise, metric), condition in runs.table.groupby(
        ["dataset", "noise", "metric"], sort=False
    ):

        def keep(figure, name, title, dataset=dataset, noise=noise, metric=metric):
            safe = re.sub(
                r"[^\w.-]+",
                "-",
                f"{dataset}-{noise}" + (f"-{metric}" if several[dataset, noise] > 1 else ""),
            )
            drawn.append(
                Picture(
                    save(figure, folder / f"{name.format(safe)}.png", forms), dataset, noise, title
                )
            )

        if condition.fraction.nunique() > 1:
            keep(
                error_by_noise(condition, runs.configs, styles),
                "noise-{}",
                "test metric by noise fraction",
            )
            if condition[DETECTED].astype(float).notna().any():
                keep(
                    detection_by_noise(condition, styles),
                    "detection-{}",
                    "hard against incorrect by noise fraction",
                )
        for fraction, part in condition.groupby("fraction"):
            logged = epochs.merge(part[["config", "seed", "label"]], on=["config", "seed"])
            logged = logged.sort_values(["label", "seed", "epoch"])
            if len(logged):
                keep(
                    accuracy_by_epoch(logged, part, styles),
                    f"epochs-{{}}-{fraction:g}",
                    f"{fraction:g}: metric by epoch",
                )
            if part.label.nunique() > 2:
                keep(
                    methods(part, runs.configs),
                    f"methods-{{}}-{fraction:g}",
                    f"{fraction:g}: methods",
                )
            if _weighs(logged):
                keep(
                    weights_by_epoch(logged),
                    f"weights-{{}}-{fraction:g}",
                    f"{fraction:g}: weights by epoch",
                )
            samples = _samples(part, runs)
            if samples:
                keep(
                    scores(samples, styles),
                    f"scores-{{}}-{fraction:g}",
                    f"{fraction:g}: scores of incorrect labels",
                )
            sign = -1 if part.metric.iloc[0] == "accuracy" else 1
            for label in (
                (sign * part.groupby("label")["last"].mean()).sort_values().index[:1]
            ):  # the best one
                directory = _first(part, runs).get(label)
                found = directory and _sheets(directory, runs)
                if found:
                    keep(
                        sheets(found, label),
                        f"sheet-{{}}-{fraction:g}",
                        f"{fraction:g}: suspects and hard samples",
                    )
    return drawn


def accuracy_by_epoch(logged: pd.DataFrame, part: pd.DataFrame, styles: dict) -> Figure:
    """Test metric over the epochs, the mean over seeds in the range of all.

    Their mean best and last, and the gap between.
    """
    figure, axes = _axes()
    low, high = _fences(
        pd.concat(
            [
                logged.groupby(["label", "epoch"]).test_metric.mean(),
                part.groupby("label").best.mean(),
            ]
        )
    )
    step = 0.012 * logged.epoch.max()
    for place, (label, rows) in enumerate(logged.groupby("label", sort=False)):
        curve = rows.groupby("epoch").test_metric.agg(["mean", "min", "max"])
        colour, of = styles[label][0], part[part.label == label]
        best, last, end = (
            of.best.mean(),
            of["last"].mean(),
            curve.index[-1] + step * place,
        )  # side by side
        outside = "" if low <= last <= high else " (off the axis)"
        axes.plot(
            curve.index,
            curve["mean"],
            color=colour,
            label=f"{label}: last {last:.2f}, best {best:.2f}{outside}",
        )
        axes.fill_between(
            curve.index, curve["min"], curve["max"], color=colour, alpha=0.15, linewidth=0
        )
        axes.plot(of.best_epoch.mean(), best, "o", color=colour, markerfacecolor="white")
        axes.plot(end, last, "o", color=colour)
        axes.plot([end, end], [best, last], ":", color=colour, linewidth=1.5)
    axes.set_ylim(low, high)
    axes.set(xlabel="epoch", ylabel=AXIS[part.metric.iloc[0]])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    seeds = sorted(set(logged.groupby("label").seed.nunique()))
    count = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    _legend(
        axes,
        "last: dot; best of each run: ring; between them: dotted"
        + ("\none seed" if count == "1" else f"\nmean and range of {count} seeds"),
    )
    return figure


def _fences(values: pd.Series, span: float = 3) -> tuple[float, float]:
    """Limits of an axis that leave out what would squeeze the rest.

    ``span`` times the range of the quartiles beyond these.
    """
    low, high = values.quantile([0.25, 0.75])
    low, high = (
        max(values.min(), low - span * (high - low)),
        min(values.max(), high + span * (high - low)),
    )
    space = 0.05 * (high - low) or 1
    return low - space, high + space


def error_by_noise(condition: pd.DataFrame, configs: dict[str, dict], styles: dict) -> Figure:
    """Last (filled) and best (hollow) test error against the noise fraction, with the published
    numbers that compare.

    100 - accuracy on a logarithmic scale, MAE on a linear one. The methods stand side by side at
    each fraction.
    """
    figure, axes = _axes(height=5)
    numbers, labels = published.load(), list(dict.fromkeys(condition.label))
    fractions, accuracy = (
        sorted(condition.fraction.unique()),
        condition.metric.iloc[0] == "accuracy",
    )
    step = min(np.diff(fractions)) / 3 / len(labels)

    def error(values):
        return 100 - values if accuracy else values

    condition = condition.assign(last=error(condition["last"]), best=error(condition.best))
    values = pd.concat([condition["last"], condition.best]).dropna()
    low, high = (
        np.exp(_fences(np.log(values.clip(lower=0.01)), span=1.5))
        if accuracy
        else _fences(values, span=5)
    )
    for place, label in enumerate(labels):
        colour, marker = styles[label]
        rows, aside = condition[condition.label == label], step * (place - (len(labels) - 1) / 2)
        outside = "" if rows["last"].between(low, high).all() else " (partly off the axis)"
        for rule, line, face in (("last", "-", colour), ("best", "", "white")):
            points = rows.groupby("fraction")[rule].agg(["mean", "std"])
            axes.errorbar(
                points.index + aside,
                points["mean"],
                points["std"].fillna(0),
                color=colour,
                linestyle=line,
                marker=marker,
                markerfacecolor=face,
                capsize=2,
                linewidth=1.2,
                label=label + outside if rule == "last" else None,
            )
        for cell in rows.drop_duplicates("fraction").to_dict("records"):
            for value, cross in _published(cell, configs, numbers):
                axes.plot(
                    cell["fraction"] + aside,
                    error(value),
                    cross,
                    color="black",
                    markersize=7,
                    markeredgewidth=1.5,
                    zorder=3,
                )
    axes.set(
        xlabel="noise fraction",
        xticks=fractions,
        ylabel="test error (%)" if accuracy else AXIS["mae"],
        yscale="log" if accuracy else "linear",
        ylim=(low, high),
    )
    if accuracy:
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(axes, "last: filled; best: hollow\npublished: + last, x best or another rule")
    return figure


def detection_by_noise(condition: pd.DataFrame, styles: dict) -> Figure:
    """AUROC of incorrect against hard samples, among the half with the largest losses, against the
    noise fraction.
    """
    figure, axes = _axes()
    for label, rows in condition[condition[DETECTED].notna()].groupby("label", sort=False):
        colour, marker = styles[label]
        points = (
            rows.assign(auroc=rows[DETECTED].astype(float))
            .groupby("fraction")
            .auroc.agg(["mean", "std"])
        )
        axes.errorbar(
            points.index,
            points["mean"],
            points["std"].fillna(0),
            color=colour,
            marker=marker,
            capsize=2,
            linewidth=1.2,
            label=label,
        )
    axes.set(xlabel="noise fraction", ylabel="AUROC among the large losses")
    axes.set_xticks(sorted(condition.fraction[condition[DETECTED].notna()].unique()))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(axes, "by the method's own score")
    return figure


def _published(
    cell: dict, configs: dict[str, dict], numbers: pd.DataFrame
) -> list[tuple[float, str]]:
    """The published numbers that compare, of each rule the preferred one, and the cross that stands
    for it.
    """
    alike = {
        number["rule"]: number.value
        for number, different in reversed(published.matches(numbers, cell, configs[cell["config"]]))
        if not different
    }
    return [(value, "+" if rule == "last" else "x") for rule, value in alike.items()]


def methods(part: pd.DataFrame, configs: dict[str, dict]) -> Figure:
    """A line a method at one noise fraction.

    Last (filled) and best (hollow), on average and of each run, best last on top.
    """
    numbers, sign = published.load(), 1 if part.metric.iloc[0] == "accuracy" else -1
    order = (sign * part.groupby("label")["last"].mean()).sort_values(na_position="first").index
    figure = Figure(figsize=(WIDTH, 1 + 0.32 * len(order)), layout="constrained")
    axes = figure.subplots()
    low, high = _fences(pd.concat([part["last"], part.best]).dropna())
    names = []
    for place, label in enumerate(order):
        rows = part[part.label == label]
        for rule, shift, face in (("last", 0.1, METHODS[0]), ("best", -0.2, "white")):
            axes.plot(
                rows[rule],
                [place + shift] * len(rows),
                "|",
                color=METHODS[0],
                alpha=0.6,
                markersize=6,
            )
            axes.plot(
                rows[rule].mean(),
                place + shift,
                "o",
                color=METHODS[0],
                markerfacecolor=face,
                markersize=7,
            )
        for value, cross in _published(rows.iloc[0].to_dict(), configs, numbers):
            axes.plot(value, place - 0.2, cross, color="black", markersize=8, markeredgewidth=1.5)
        away = [
            f", {rule} {rows[rule].mean():.2f}"
            for rule in ("last", "best")
            if not low <= rows[rule].mean() <= high
        ]
        names.append(f"{label} ({len(rows)}{''.join(away)})")
    axes.set_yticks(range(len(order)), names)
    axes.set(
        xlim=(low, high),
        xlabel=f"{AXIS[part.metric.iloc[0]]}; (number of runs)\nlast: filled; best: hollow; each run: "
        "bar\npublished: + last, x best or another rule",
    )
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def trials(table: pd.DataFrame) -> Figure:
    """Of the trials of ``utils.search.table``: the test error by method, and against the one on the
    held-out noisy labels.

    Raises ValueError where they are of several noises, or were made by an earlier version.
    """
    if table.noise.nunique() > 1 or "chosen" not in table:
        raise UserError("a picture is of the trials under one noise, with the column chosen")
    table = table.assign(error=100 - table.test_last, noisy_error=100 - table.noisy_validation)
    names = (
        table.groupby("method")
        .error.median()
        .sort_values(ascending=False, na_position="first")
        .index
    )
    figure = Figure(figsize=(WIDTH, 1.2 + 0.35 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    ticks, ring = (
        [],
        {
            "marker": "o",
            "linestyle": "",
            "color": "black",
            "markerfacecolor": "none",
            "markersize": 11,
        },
    )
    for place, name in enumerate(names):
        rows, lost = (
            table[table.method == name],
            ((table.method == name) & (table.state == "diverged")).sum(),
        )
        style = {
            "color": METHODS[place % len(METHODS)],
            "alpha": 0.7,
            "markersize": 6,
            "markeredgewidth": 0,
            "linestyle": "",
            "marker": MARKERS[place % len(MARKERS)],
        }
        left.plot(rows.error, [place] * len(rows), **style)
        left.plot(rows.error[rows.chosen], [place] * rows.chosen.sum(), **ring)
        right.plot(rows.noisy_error, rows.error, **style)
        right.plot(rows.noisy_error[rows.chosen], rows.error[rows.chosen], **ring)
        ticks.append(name + (f" ({lost} diverged)" if lost else ""))
    left.set_yticks(range(len(names)), ticks)
    left.set(
        xscale="log",
        xlabel="test error after the last epoch (%)\na trial each; ring: the chosen one",
    )
    right.set(
        xscale="log",
        yscale="log",
        xlabel="error on held-out noisy labels (%)",
        ylabel="test error (%)",
    )
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
    left.grid(axis="x", color="#dddddd", linewidth=0.6)
    return figure


def weights_by_epoch(logged: pd.DataFrame) -> Figure:
    """The weights of easy, hard and incorrect samples over the epochs, a panel a method that gives
    any, the mean over seeds.
    """
    shown = [(label, rows) for label, rows in logged.groupby("label", sort=False) if _weighs(rows)]
    lines = -(-len(shown) // 4)
    columns = -(-len(shown) // lines)
    figure = Figure(
        figsize=(
            max(4.5, WIDTH * columns / 4 if columns > 2 else WIDTH * columns / 2),
            2.6 * lines + 0.4,
        ),
        layout="constrained",
    )
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
    """ROC of the incorrect samples for all methods.

    And for each the distribution of its score, correct and incorrect.
    """
    count = len(samples)
    figure = Figure(figsize=(WIDTH, max(3.4, 0.8 * count + 0.8)), layout="constrained")
    left, right = figure.subfigures(1, 2)
    axes = left.subplots()
    panels = right.subplots(count, 1, squeeze=False, sharex=True)[:, 0]
    for panel, (label, (score, incorrect)) in zip(panels, samples.items(), strict=True):
        wrong, found, _ = roc_curve(incorrect, score)
        axes.plot(
            wrong,
            found,
            color=styles[label][0],
            label=f"{label}, AUROC {roc_auc_score(incorrect, score):.4f}",
        )
        low, high = np.percentile(score, [0.5, 99.5])
        bins = np.linspace(0, 1, 51)
        scaled = ((score - low) / (high - low or 1)).clip(0, 1)
        for mask, kind, name in (
            (~incorrect, "easy", "correct"),
            (incorrect, "incorrect", "incorrect"),
        ):
            panel.hist(scaled[mask], bins, color=KINDS[kind], alpha=0.7, label=name)
        panel.set_title(label, fontsize="small", loc="left", pad=2)
        panel.set_yscale("log")
        panel.set_yticks([])
        panel.minorticks_off()
        panel.spines[["left", "top", "right"]].set_visible(False)
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


def sheets(found: dict[str, np.ndarray], label: str) -> Figure:
    """The contact sheets of one run.

    The most suspicious labels, and the correct ones that the network finds hardest.
    """
    tallest = max(image.shape[0] / image.shape[1] for image in found.values())
    figure = Figure(
        figsize=(WIDTH * len(found) / 2 * 1.4, WIDTH / 2 * 1.4 * tallest + 0.4),
        layout="constrained",
    )
    for axes, (name, image) in zip(
        np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True
    ):
        axes.imshow(image, interpolation="none")
        axes.set_title(f"{label}: {name}", fontsize="medium")
        axes.set_axis_off()
    return figure


def _sheets(directory: Path, runs: Runs) -> dict[str, np.ndarray]:
    """What is shown -> picture, of those that a run has left."""
    found = {}
    for name, file in (
        ("most suspicious labels", "suspects.png"),
        ("correct labels with the largest loss", "hardest.png"),
    ):
        if (directory / file).exists():
            try:
                found[name] = imread(directory / file)
            except (OSError, ValueError, SyntaxError) as error:
                runs.skipped[str(directory / file)] = f"cannot be read: {error}"
    return found


def _first(part: pd.DataFrame, runs: Runs) -> dict[str, Path]:
    """Label -> the directory of its first seed, where there is one."""
    found = {}
    for config, seed, label in part[["config", "seed", "label"]].itertuples(index=False):
        if (config, seed) in runs.directories:
            found.setdefault(label, runs.directories[config, seed])
    return found


def _samples(part: pd.DataFrame, runs: Runs) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label -> score and incorrect [N] of its first seed, where both kinds are there and known."""
    found = {}
    for label, directory in _first(part, runs).items():
        if not (directory / "samples.npz").exists():
            continue
        try:
            with np.load(directory / "samples.npz") as file:
                score, given, true = (file[key] for key in ("score", "given", "true"))
        except BROKEN as error:
            runs.skipped[str(directory / "samples.npz")] = f"cannot be read: {error}"
            continue
        incorrect = wrong_labels(given, true)
        if (
            incorrect is not None
            and incorrect.any()
            and not incorrect.all()
            and np.isfinite(score).all()
        ):
            found[label] = score, incorrect
    return found


def _axes(height: float = 4):
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
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


def save(figure: Figure, path: Path, forms: tuple[str, ...] = ("png", "svg")) -> Path:
    """Write the figure in these forms, without the frame lines that carry nothing, the same bytes
    for the same runs.
    """
    for axes in figure.get_axes():
        axes.spines[["top", "right"]].set_visible(False)
    for form in forms:
        with atomic_write(path.with_name(f"{path.stem}.{form}"), "wb") as file:
            figure.savefig(
                file,
                dpi=150,
                format=form,
                **({"metadata": {"Date": None}} if form == "svg" else {}),
            )
    return path
