"""All samples of a finished run, the most suspicious first."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Judged:
    """The samples of a run by row, the most suspicious first; by column in ``table``.

    part: "train", "validation", "trusted", "test" or "fold 3".
    index: position in its part; all parts but the test part share that of the training set.
    given, predicted, second: classes, or numbers to predict.
    given_probability, predicted_probability, second_probability: of classes.
    score: larger is more suspicious; quality: in [0, 1], low is bad; loss; flagged.
    true: -1 or NaN if it is not known.
    """

    run: Path
    kind: Literal["images", "text", "numbers", "choices"]
    classes: list[str]  # none in a regression
    root: Path | None  # what ``names`` are relative to, if they are paths
    table: dict[str, np.ndarray]
    names: list[str]  # paths or texts; "" of images in memory

    def picture(self, row: int) -> "Image.Image | None":
        """The image of a row, as the training reads it."""
        return None
