"""Every sample of a finished run with its data: what reviews and lists of suspects are made from.

It reads the data, so it lies above experiment.py, and only commands import it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np

import datasets
from experiment import build_data, contents_of
from utils.build import asks_for
from utils.errors import UserError
from utils.exports import doubtful, names_of, split_of
from utils.files import read_arrays, read_json
from utils.run_inputs import changes, check_samples
from utils.run_state import finished_config

JOINED = "folds.json"  # in the directory that the folds of a run were joined into


@dataclass
class Judged:
    """The samples whose labels are doubtful, the most suspicious first.

    ``table`` has a row per sample: ``part`` ("train", "validation", "test" or "fold <k>"),
    ``index`` (its position in the test part, or in the training set), and the columns of
    ``utils.detection.sample_table`` that all parts have.
    """

    run: Path
    config: dict
    data: object  # a datasets.base.Dataset
    table: dict[str, np.ndarray]
    names: list[str]  # by row: path as the user's own table has it, or text; "" if in memory

    @property
    def classes(self) -> list[str]:
        """Their names; none in a regression."""
        return self.data.classes

    @property
    def root(self) -> Path | None:
        """What names are relative to, if they are paths."""
        return self.data.root

    @property
    def kind(self) -> Literal["images", "text", "numbers"]:
        """What there is to look at."""
        if self.data.shows_images:
            return "images"
        return "text" if self.data.train.texts else "numbers"

    def picture(self, row: int):
        """The image of a row as training reads it; None if it is none, or cannot be read."""
        from PIL import Image

        from datasets.images import decode, middle

        if self.kind != "images":
            return None
        split = split_of(self.table["part"][row], self.data)
        image = split.source[self.table["index"][row]]
        if isinstance(image, str):
            try:
                image = middle(decode(image))
            except OSError:
                return None
        pixels = image.expand(3, -1, -1) if len(image) == 1 else image
        return Image.fromarray(pixels.permute(1, 2, 0).numpy(force=True))


def judge(directory: Path, moved: Mapping[str, str] = MappingProxyType({})) -> Judged:
    """The samples of a finished run, or of joined folds.

    Args:
        moved: data_root or keys of PLACES, where the data are not where they were.

    Raises:
        UserError: the run is not finished; its data are not what they were.
        OSError: the data, or files of the run, are not there or damaged.
    """
    joined = (directory / JOINED).exists()
    first = directory / read_json(directory / JOINED)["runs"][0] if joined else directory
    config = finished_config(first)
    for key, path in moved.items():
        section, _, name = key.rpartition(".")
        spec = config["dataset"] if section else config
        if section and not asks_for(datasets, spec, name):
            raise UserError(f"--{name.replace('_', '-')}: the dataset {spec['name']} has no {key}")
        spec[name] = path
    changed = changes(first, contents_of(config))
    if changed:
        raise UserError(f"the data of {directory} have changed since it was trained: {changed}")
    data = build_data(config)
    check_samples(first, data.train.source, data.test.source)
    names = ("samples.npz", "held_out.npz", "test.npz")
    paths = [directory / name for name in names]
    parts = [read_arrays(path) if path.exists() else None for path in paths]
    table = doubtful(*parts, data)
    return Judged(directory, config, data, table, names_of(table, data))
