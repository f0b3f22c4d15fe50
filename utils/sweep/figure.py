"""The picture of a search: what its trials reach, and how well noisy labels judge them."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from utils.colours import style_of
from utils.errors import UserError
from utils.files import atomic_write

WIDTH = 9  # inches: what README shows at about 900 pixels
RING = {
    "marker": "o",
    "linestyle": "",
    "color": "black",
    "markerfacecolor": "none",
    "markersize": 11,
}


def draw_trials(table: pd.DataFrame, path: Path):
    """Write a .png of the table that ``trials.trials_table`` makes.

    On the left is the test error by method, on the right against that on the held-out noisy labels.

    Raises:
        UserError: the trials are of several noises, or the table lacks a column.
    """
    needed = {"method", "noise", "state", "test_last", "noisy_validation", "chosen"}
    if not needed <= set(table) or table.noise.nunique() > 1:
        raise UserError("a picture is of the trials under one noise, with the column chosen")
    errors = 100 - table[["test_last", "noisy_validation"]].clip(upper=99.99)  # a log axis has no 0
    table = table.assign(error=errors.test_last, noisy_error=errors.noisy_validation)
    medians = table.groupby("method").error.median()
    methods = medians.sort_values(ascending=False, na_position="first").index
    figure = Figure(figsize=(WIDTH, 1.2 + 0.35 * len(methods)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    ticks = []
    for position, method in enumerate(methods):
        rows = table[table.method == method]
        chosen = rows[rows.chosen]
        colour, marker = style_of(method)
        style = {
            "color": colour,
            "alpha": 0.7,
            "markersize": 6,
            "markeredgewidth": 0,
            "linestyle": "",
            "marker": marker,
        }
        left.plot(rows.error, [position] * len(rows), **style)
        left.plot(chosen.error, [position] * len(chosen), **RING)
        right.plot(rows.noisy_error, rows.error, **style)
        right.plot(chosen.noisy_error, chosen.error, **RING)
        diverged = (rows.state == "diverged").sum()
        ticks.append(method + (f" ({diverged} diverged)" if diverged else ""))
    left.set_yticks(range(len(methods)), ticks)
    left.set_xlabel("test error after the last epoch (%)\na trial each; ring: the chosen one")
    left.set_xscale("log")
    left.grid(axis="x", color="#dddddd", linewidth=0.6)
    right.set(xscale="log", yscale="log")
    right.set(xlabel="error on held-out noisy labels (%)", ylabel="test error (%)")
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path.with_suffix(".png"), "wb") as file:
        figure.savefig(file, dpi=150, format="png")
