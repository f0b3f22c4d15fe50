"""Runs made up for the tests of the review: what a judged run is, without a training."""

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from datasets.base import Dataset, Split
from utils.judged import Judged

CLASSES = ["cat", "dog", "owl"]


class MadeUp(Judged):
    """A Judged whose images are grey, the brighter the later their row."""

    def picture(self, row):
        return Image.new("RGB", (20, 10), (row * 9 % 256,) * 3)


def make_judged(
    run: Path,
    count: int = 12,
    *,
    num_test: int = 4,
    kind: str = "files",
    classes: list[str] | None = None,
    names: list[str] | None = None,
    made_split: bool = True,
    config: dict | None = None,
    **columns: np.ndarray,
) -> Judged:
    """A finished run of ``count`` samples, the last of which in the data are the test part.

    Every third sample is predicted as the next class. Its files lie in photos/ beside it.

    Args:
        kind: "files" or "memory", of images; "text"; "numbers", of images in files.
        names: of the samples, by row.
        columns: of the table, by row.
    """
    run.mkdir(parents=True, exist_ok=True)
    if classes is None:
        classes = [] if kind == "numbers" else CLASSES
    config = {"dataset": {"name": "folder"}, "loss": {"name": "DiscrimLoss"}} | (config or {})
    summary = {
        "finished": True,
        "metric": "accuracy",
        "test": {"last": 90.0},
        "noise": {"sha256": "5" * 64},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    position = np.random.default_rng(0).permutation(count)  # in the data, of each row
    is_test, num_train = position >= count - num_test, count - num_test
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
        "index": np.where(is_test, position - num_train, position),
        "score": np.linspace(5, 0, count, dtype=np.float32),
        "quality": np.linspace(0.01, 1, count, dtype=np.float32),
        "loss": np.linspace(4, 0.1, count, dtype=np.float32),
        "flagged": np.arange(count) < 3,
    }
    table |= columns
    if names is None:
        folders = [classes[label] for label in given] if classes else ["a"] * count
        pairs = zip(folders, position, strict=True)
        names = ["train/{}/{:02d}.png".format(*pair) for pair in pairs]
        if kind == "text":
            names = [f"text number {number}" for number in position]
        elif kind == "memory":
            names = [""] * count
    root = run.parent / "photos"
    rows = np.argsort(position)
    splits = [
        _split(kind, [names[row] for row in part], table["given"][part], root)
        for part in (rows[:num_train], rows[num_train:])
    ]
    np.savez(run / "noise.npz", given=splits[0].targets.numpy())
    is_images = kind != "text"
    data = Dataset(
        *splits,
        classes=classes,
        mean=(0.5,) * 3 * is_images,
        made_split=made_split and kind in ("files", "numbers"),
        root=root if kind in ("files", "numbers") else None,
    )
    return MadeUp(run, config, data, table, names)


def _split(kind, names, targets, root):
    targets = torch.from_numpy(targets.copy())
    if kind in ("files", "numbers"):
        return Split([str(root / name) for name in names], targets)
    return Split(torch.zeros(len(names), 2), targets, names if kind == "text" else None)
