"""Small-loss selection: which samples to trust, from the losses that a run recorded.

``rules`` says by what criterion, ``histories`` reads what was recorded.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from datasets.noise import Noise
from datasets.selection.histories import read_history, read_noise
from datasets.selection.rules import (
    KAPPA,
    Selection,
    compare,
    estimate_noise_rate,
    how_many,
    no_class_empty,
    quality,
    rank_losses,
    select,
    with_names,
)
from utils.errors import UserError

__all__ = [
    "Selection",
    "make_selection",
    "compare",
    "estimate_noise_rate",
    "rank_losses",
    "read_noise",
]


def make_selection(
    noise: Noise,
    rows: np.ndarray,
    *,
    classes: Sequence[str] = (),
    history: str | None = None,
    criterion: str = "mean",
    per: Literal["class", "global"] = "class",
    noise_rate: float | Literal["estimate"] | None = None,
    keep_fraction: float | None = None,
    beta: float = 0.2,
    gamma_index: int = 1,
    kappa: float = KAPPA,
    counts: Literal["exact", "authors"] = "exact",
) -> Selection:
    """The selection of a run among ``rows``, those it trains on, by the losses of another run.

    Args:
        classes: names, for errors.
        history: ``losses.npy`` in the directory of a run with ``record_losses: true`` and the same
            labels.
        criterion: as for ``rank_losses``.
        per: whether the smallest losses are taken class by class, or of all samples together, as
            always in regression.
        noise_rate: the part of the given labels that is wrong, if you know it; "estimate": see
            ``estimate_noise_rate``; null: known from the injected noise, as in the paper (an
            oracle).
        keep_fraction: keep this part of each label, instead of what follows from the noise rate.
        beta, gamma_index, counts: as for ``num_kept``.
        kappa: as for ``select``.

    Raises:
        FileNotFoundError: no such history, or not in a run's directory.
        UserError: a history of other labels or another validation split, too short or damaged;
            rates out of range; null if the true labels are not known; a class left empty.
    """
    rows = np.sort(rows)
    recorded = read_history(history, noise, rows)
    losses = rank_losses(recorded, criterion)
    never = np.isnan(losses[rows])
    never[never] = np.isnan(recorded[:, rows[never]]).all(axis=0)
    if never.mean() <= 0.01:  # images that could not be read
        rows = rows[~never]
    ranked, groups = losses[rows], noise.groups[rows]
    if not np.isfinite(ranked).all():
        raise UserError(
            f"{history} lacks epochs that criterion {criterion} asks for, of some samples or of "
            f"all: has the run that records it finished, and with this validation split? Run its "
            f"command again, or use mean:<k>"
        )
    with with_names(classes):
        kept, rate, source = how_many(
            ranked,
            noise,
            rows,
            noise_rate=noise_rate,
            keep_fraction=keep_fraction,
            beta=beta,
            gamma_index=gamma_index,
            counts=counts,
        )
        if per == "class" and noise.num_classes:
            chosen = select(ranked, groups, kept, kappa)
        else:
            per, chosen = "global", select(ranked, np.zeros_like(groups), [kept.sum()], kappa)
        index = rows[chosen.index]
        sizes = no_class_empty(np.bincount(noise.groups[index], minlength=len(kept)))
    report = {
        "criterion": criterion,
        "per": per,
        "noise_rate": rate,
        "noise_rate_is": source,
        "kept": len(index),
        "of": len(rows),
        "counts": sizes.tolist(),
    }
    if noise.corrupted is not None:
        report |= quality(index, rows, noise)
    return Selection(index, chosen.weight, losses, report)
