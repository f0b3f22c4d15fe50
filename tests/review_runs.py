"""Runs made up for the tests of the review: what a judged run is, without a training."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from utils.judged import Judged

CLASSES = ["cat", "dog", "owl"]


class MadeUp(Judged):
    """A Judged whose images are grey, the brighter the later their row."""

    def picture(self, row):
        if self.kind != "images":
            return None
        return Image.new("RGB", (20, 10), (row * 9 % 256,) * 3)


def make_judged(
    run: Path, count: int = 12, *, num_test: int = 4, kind: str = "images", **changes
) -> Judged:
    """A finished run of ``count`` samples, the last of which in the data are the test part.

    Every third sample is predicted as the next class. ``changes``: "classes", "names", "root",
    "config", columns of the table, and "made_split" (true), whether the run split its files.
    """
    run.mkdir(parents=True, exist_ok=True)
    classes = changes.pop("classes", [] if kind == "numbers" else CLASSES)
    config = changes.pop("config", {"dataset": {"name": "folder"}, "loss": {"name": "DiscrimLoss"}})
    summary = {
        "finished": True,
        "metric": "accuracy",
        "test": {"last": 90.0},
        "noise": {"sha256": "5" * 64},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if changes.pop("made_split", True):
        (run / "split.csv").write_text("part,path\n")
    position = np.random.default_rng(0).permutation(count)  # in the data, of each row
    is_test = position >= count - num_test
    if classes:
        given = position % len(classes)
        predicted = np.where(position % 3 == 0, (given + 1) % len(classes), given)
        labels = {
            "given": given,
            "predicted": predicted,
            "second": (predicted + 1) % len(classes),
            "given_probability": np.full(count, 0.1, np.float32),
            "predicted_probability": np.full(count, 0.7, np.float32),
            "second_probability": np.full(count, 0.2, np.float32),
            "true": np.full(count, -1),
        }
    else:
        given = (position + 0.5).astype(np.float32)
        labels = {"given": given, "predicted": given + 1, "true": np.full(count, np.nan)}
    table = labels | {
        "part": np.where(is_test, "test", "train"),
        "index": np.where(is_test, position - (count - num_test), position),
        "score": np.linspace(5, 0, count, dtype=np.float32),
        "quality": np.linspace(0.01, 1, count, dtype=np.float32),
        "loss": np.linspace(4, 0.1, count, dtype=np.float32),
        "flagged": np.arange(count) < 3,
    }
    root = changes.pop("root", run.parent / "photos" if kind == "images" else None)
    names = changes.pop("names", None)
    if names is None:
        part = "train/{}/{:02d}.png" if classes else "{}_{:02d}.png"
        folders = [classes[label] for label in given] if classes else ["a"] * count
        names = [part.format(*pair) for pair in zip(folders, position, strict=True)]
        if kind == "text":
            names = [f"text number {number}" for number in position]
        elif root is None:
            names = [""] * count
    return MadeUp(run, kind, classes, root, table | changes, names)
