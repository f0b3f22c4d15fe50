"""Which training samples are trained on, and which are held out."""

from dataclasses import dataclass

import numpy as np

from datasets.noise import Noise
from utils.errors import UserError


@dataclass
class Parts:
    """Positions in the training set to train on, and to validate on with labels [N].

    The latter are not trained on.
    """

    rows: np.ndarray
    held_out: np.ndarray
    labels: np.ndarray


def hold_out(noise: Noise, *, fraction: float, clean: bool = False, seed: int) -> Parts:
    """Hold out a fraction of the training set, drawn from ``seed``, to validate on.

    It is looked at, and stratified, with its given labels, noise and all, or if ``clean`` with the
    true ones. Targets that are numbers are not stratified.

    Raises:
        UserError: a class too small for it; ``clean`` if the truth is unknown.
    """
    rows, labels = np.arange(len(noise.given)), noise.true if clean else noise.given
    if not fraction:
        return Parts(rows, rows[:0], labels)
    if clean and noise.corrupted is None:
        raise UserError(
            "validation.clean=true needs true labels, and those of this dataset are not known"
        )
    from sklearn.model_selection import train_test_split  # takes a second to import

    strata = labels if noise.num_classes else None
    try:
        rows, held_out = train_test_split(
            rows, test_size=fraction, random_state=seed, stratify=strata
        )
    except ValueError as error:
        raise UserError(
            f"validation.fraction={fraction} cannot be held out by class: {error}"
        ) from None
    return Parts(rows, held_out, labels)
