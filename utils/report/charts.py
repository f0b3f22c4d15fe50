"""Charts of many runs, from their table and from what each wrote after every epoch."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from utils.colours import COLOURS, KINDS, MARKERS
from utils.metrics import METRICS, Metric
from utils.report import published
from utils.report.comparison import conditions
from utils.report.statistics import INTERVAL

DETECTED = "hard_vs_incorrect_auroc"
WIDTH = 9  # inches: what README shows at about 900 pixels
NO_ERROR = 0.01  # percent
GRID = {"color": "#dddddd", "linewidth": 0.6}


def metric_of(rows: pd.DataFrame) -> Metric:
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
        text = _in_legend(f"{label}: last {last:.2f}, best {best:.2f}{outside}")
        axes.plot(curve.index, curve["mean"], color=colour, label=text)
        axes.fill_between(
            curve.index, curve["min"], curve["max"], color=colour, alpha=0.15, linewidth=0
        )
        axes.plot(runs.best_epoch.mean(), best, "o", color=colour, markerfacecolor="white")
        axes.plot(end, last, "o", color=colour)
        axes.plot([end, end], [best, last], ":", color=colour, linewidth=1.5)
    axes.set_ylim(low, high)
    axes.set(xlabel="epoch", ylabel=f"test {metric_of(rows).heading}")
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
    numbers, metric = published.load(), metric_of(rows)
    percent = metric.unit == "%"
    rows = rows.assign(last=_error(rows["last"], metric), best=_error(rows.best, metric))
    values = pd.concat([rows["last"], rows.best]).dropna()
    if percent:
        low, high = np.exp(_fences(np.log(values), span=1.5))
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
    explained = (
        "filled: last; hollow: best; +: published last, x: best or another rule; grey: last of the "
        "others"
    )
    characters = int(11 * figure.get_figwidth())
    figure.supxlabel(f"noise fraction\n{textwrap.fill(explained, characters)}", fontsize="medium")
    return figure


def metric_over(rows: pd.DataFrame, axis: str, styles: dict) -> Figure:
    """Last test metric by a number of the configuration, which stands in the column fraction.

    A metric in percent is shown as 100 less it, on a logarithmic scale.
    """
    figure, axes = _axes()
    metric, values = metric_of(rows), sorted(rows.fraction.unique())
    rows = rows.assign(last=_error(rows["last"], metric))
    name = _error_axis(axes, metric)
    for label, own in rows.groupby("label", sort=False):
        _error_bars(axes, _by_noise(own, "last"), styles[label], label=_in_legend(label))
    if values[0] > 0 and values[-1] >= 20 * values[0]:
        axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values], minor=False)
    axes.xaxis.minorticks_off()
    axes.set(xlabel=axis, ylabel=name)
    _legend(axes, "last epoch")
    return figure


def _error(values, metric: Metric):
    """What is drawn of a metric: of one in percent, 100 less it, which a logarithmic axis can show.

    No error at all is drawn as NO_ERROR.
    """
    return np.maximum(100 - values, NO_ERROR) if metric.unit == "%" else values


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
    axes.xaxis.set_major_formatter(lambda fraction, _: f"{100 * fraction:g}%")


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
        _error_bars(axes, points, styles[label], label=_in_legend(label))
    axes.set(xlabel="noise fraction", ylabel="AUROC among the large losses")
    _noise_axis(axes, known)
    _legend(axes, "by the method's own score")
    return figure


def methods(rows: pd.DataFrame, configs: dict[str, dict], styles: dict) -> Figure:
    """A line a method at one noise fraction, the best last on top.

    Last (filled) and best (hollow), on average and of each run.
    """
    numbers, metric = published.load(), metric_of(rows)
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
    names, order, metric = conditions(found), list(found.method.unique()), metric_of(found)
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
            label=_in_legend(name.replace("$", r"\$")),
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
    shown = [
        (label, rows) for label, rows in logged.groupby("label", sort=False) if has_weights(rows)
    ]
    lines = -(-len(shown) // 4)
    columns = -(-len(shown) // lines)
    width = max(4.5, WIDTH * columns / (4 if columns > 2 else 2))
    figure = Figure(figsize=(width, 2.6 * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, squeeze=False)
    for axes, (label, rows) in zip(panels.flat, shown, strict=False):
        weights = [f"weight_{kind}" for kind in KINDS]  # a log lacks those that no run has
        means = rows.reindex(columns=["epoch", *weights]).groupby("epoch").mean()
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


def has_weights(logged: pd.DataFrame) -> bool:
    """Whether any sample counted for more or less than under the task loss alone."""
    weights = logged.filter(regex=f"^weight_(?:{'|'.join(KINDS)})$")
    return bool(((weights - 1).abs() > 1e-3).any(axis=None))


def _axes():
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    return figure, figure.subplots()


def _in_legend(label: str) -> str:
    """The label as matplotlib takes it: it leaves out those that begin with an underscore."""
    return f"\u200b{label}" if label.startswith("_") else label


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
