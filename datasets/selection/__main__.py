"""What a small loss selects, epoch by epoch, as a table and a figure.

    python -m datasets.selection runs/mnist/plain/pair-0.45/seed1     a run with losses.npy

Compares the mean loss over the epochs (RSL) with the loss of one epoch (vanilla), for a run that
recorded its losses, or selects by those of another, if its true labels are known.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.selection.histories import read_arrays, read_history, read_noise, read_settings
from datasets.selection.rules import compare, how_many, rank_losses
from utils.errors import UserError
from utils.escapes import printable
from utils.plots import draw_selection

FIGURES = (".png", ".svg", ".pdf")


def evaluate(run: Path, figure: Path) -> tuple[pd.DataFrame, np.ndarray, int]:
    """The table of ``compare``, how many of each label are kept [C], and out of how many samples.

    Draws the figure. Raises OSError or UserError if the run cannot be read, or has nothing to show.
    """
    if figure.suffix not in FIGURES:
        raise UserError(f"--figure must end in {', '.join(FIGURES)}, got {figure}")
    noise = read_noise(run)
    selection = read_settings(run)["selection"]
    path = selection.get("history") or run / "losses.npy"
    history = read_history(path, noise)
    mean_loss = rank_losses(history, "mean")
    rows = np.flatnonzero(np.isfinite(history[0]))
    if not len(rows) or not np.isfinite(history[-1, rows]).all():
        raise UserError(f"{path} is not complete: run the command that records it again")
    if noise.corrupted is None:
        raise UserError(
            f"the true labels of {run} are not known, so there is nothing to compare a selection "
            f"with"
        )
    if selection:  # as many of each label as that run has selected
        (kept,) = read_arrays(run / "selection.npz", "counts")
        kept = kept.astype(int)
    else:
        kept, *_ = how_many(mean_loss[rows], noise, rows)
    table = compare(history, noise, rows, kept)
    draw_selection(figure, mean_loss[rows], noise.groups[rows], noise.corrupted[rows], table)
    return table, kept, len(rows)


def summarise(table: pd.DataFrame) -> str:
    """Precision and recall of RSL, and of the vanilla criterion at its best and last epoch."""
    vanilla = table[table.rule == "epoch"]
    best, last = vanilla.precision.idxmax(), vanilla.index[-1]
    rows = {
        "mean of all epochs (RSL)": table.index[-1],
        f"vanilla, its best epoch ({vanilla.epoch[best]})": best,
        f"vanilla, the last epoch ({vanilla.epoch[last]})": last,
    }
    numbers = {
        name: [table.precision[row], table.recall[row], min(table.precision_per_class[row])]
        for name, row in rows.items()
    }
    shown = pd.DataFrame(numbers, index=["precision", "recall", "lowest precision of a class"])
    return shown.T.to_string(float_format=lambda value: f"{value:.4f}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="directory of a run")
    parser.add_argument(
        "--figure", type=Path, help="a .png, .svg or .pdf to draw; <run>/selection.png unless given"
    )
    options = parser.parse_args(arguments)
    figure = options.figure or options.run / "selection.png"
    try:
        table, kept, total = evaluate(options.run, figure)
    except (UserError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    print(f"{int(kept.sum())} of {total} samples kept, {kept.min()} to {kept.max()} of a label")
    print(summarise(table))
    print(f"drawn: {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
