"""Features of a network that is not trained, in the place of images."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from datasets import features, folder
from datasets.base import Dataset, Split
from datasets.features import replace_images
from datasets.look import mismatches
from tests.test_datasets import random_images, write_tree
from utils.review.__main__ import main as review

MEAN = (0.5, 0.5, 0.5)


class Means(torch.nn.Module):
    """Means of the channels, of images [B, 3, 32, 32]; counts how many it has seen."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor, self.seen = torch.nn.Parameter(torch.tensor(factor)), 0

    def forward(self, images):
        assert images.shape[1:] == (3, 32, 32) and not self.training
        self.seen += len(images)
        return self.factor * images.mean((2, 3))


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "photos")


def replaced(dataset, network, kept, **options):
    options = {"image_size": 32, "mean": MEAN, "std": MEAN, "device": "cpu"} | options
    return replace_images(dataset, network, folder=kept, **options)


def test_features_take_the_place_of_images_in_every_part(tree, tmp_path):
    source = folder(str(tree))
    source.more_tests["other"] = source.test
    data = replaced(source, Means(), tmp_path / "kept")
    for split, before in ((data.train, source.train), (data.more_tests["other"], source.test)):
        assert split.source == before.inputs and torch.equal(split.targets, before.targets)
        assert split.inputs.shape == (len(before), 3) and not split.inputs.requires_grad
    assert (data.in_channels, data.image_size, data.is_images) == (3, 1, False)
    red = tree / "train/cat/0.png"
    Image.new("RGB", (30, 20), (255, 0, 0)).save(red)
    data = replaced(folder(str(tree)), Means(), tmp_path / "kept")
    assert data.train.inputs[data.train.source.index(str(red))].tolist() == [1, -1, -1]


def test_images_in_memory_are_resized_and_grey_ones_are_three_equal_channels(tmp_path):
    images = random_images(1, 8, 8)[None].repeat(5, 1, 1, 1)
    images[4] = 255
    part = Split(images, torch.tensor([0, 1, 0, 1, 0]))
    data = Dataset(part, part, ["a", "b"], 1, 8, mean=(0.1,), std=(0.3,), crop_padding=2, flip=True)
    data = replaced(data, Means(), tmp_path)
    assert torch.equal(data.train.source, images) and data.train.inputs[4].tolist() == [1, 1, 1]
    expected = images[0].float().mean().item() / 127.5 - 1
    assert data.train.inputs[0].tolist() == pytest.approx([expected] * 3, abs=0.05)
    assert not data.crop_padding and not data.flip


def test_features_are_made_once_and_anew_if_anything_changes(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 4)  # 8 and 3 images
    kept = tmp_path / "kept"

    def seen(network=None, **options):
        network = network or Means()
        replaced(folder(str(tree)), network, kept, **options)
        return network.seen

    assert (seen(), seen()) == (11, 0)
    for path in list(kept.glob("*.npy"))[1:]:  # as if interrupted after the first
        path.unlink()
    assert 7 <= seen() <= 8
    assert seen(Means(2.0)) == 11 and seen(std=(0.2,) * 3) == 11
    Image.new("RGB", (30, 20)).save(tree / "train/dog/0.png")
    assert seen() == 4  # of one file
    tree.rename(tree.with_name("moved"))
    tree = tree.with_name("moved")
    assert seen() == 0
    for path in kept.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(OSError, match=r"\.npy cannot be read .*: remove it"):
        seen()


def test_what_cannot_be_read_is_left_out_named_and_counted(run, tmp_path, capsys):
    root = tmp_path / "photos"
    for row in range(210):
        path = root / "train" / ("cat" if row % 2 else "dog") / f"{row:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (row, 255 * (row % 2), 0)).save(path)
    damaged, *others = (Path(path) for path in folder(root=str(root)).train.inputs[:4])
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:40].ljust(len(whole), b"\0"))  # the lists of the data are the same
    options = [f"dataset.root={root}", "features.image_size=32", f"data_root={tmp_path}/data"]
    options += ["features.name=efficientnet_lite0", "schedule=null", "model.hidden=[]"]
    for name in ("first", "from the cache"):
        code, directory, _, warnings = run(*options, name=name, params="params/folder/plain.yaml")
        assert code == 0, warnings
        summary = json.loads((directory / "summary.json").read_text())
        assert summary["unreadable_images"] == {"count": 1, "paths": [str(damaged)]}
        assert f"{damaged} cannot be read as an image and is left out" in warnings
        split = pd.read_csv(directory / "split.csv")
        suspects = pd.read_csv(directory / "suspects.csv")
        readable = {f"train/{path}" for path in split.path}
        assert len(split) == 209 and set(suspects.path) == readable
        assert str(damaged.relative_to(root)) not in readable
        assert all(
            path.split("/")[-2] == label
            for path, label in zip(suspects.path, suspects.given_label, strict=True)
        )
        assert (directory / "suspects.png").exists()
    assert review([str(directory)]) == 0
    damaged.write_bytes(whole)  # then each sample after it is another one
    capsys.readouterr()
    assert review([str(directory)]) == 2
    assert "are not those that it was trained on, though its lists" in capsys.readouterr().err
    for path in others:
        path.write_bytes(b"no image")
    code, _, _, complaints = run(*options, name="bad", params="params/folder/plain.yaml")
    assert code == 2 and "image files cannot be read, more than 1%: mend or remove" in complaints


def test_a_chunk_without_a_readable_image_is_left_out_or_named(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 7)  # 8 training images
    for _ in ("computed", "from the cache"):
        source = folder(str(tree))
        last = source.train.inputs[-1]
        Path(last).write_bytes(b"no image")
        data = replaced(source, Means(), tmp_path / "kept")
        assert data.train.source == source.train.inputs[:-1] and data.unreadable.keys() == {last}
        assert data.train.inputs.shape == (7, 3) and data.train.inputs.isfinite().all()
    for path in source.train.inputs[:7]:
        Path(path).write_bytes(b"no image")
    Image.new("RGB", (30, 20)).save(last)
    with pytest.raises(OSError, match=r"7 of 8 image files cannot be read, .*/train/cat/0\.png, "):
        replaced(folder(str(tree)), Means(), tmp_path / "kept")


def test_features_fit_every_dataset_of_images_and_noise_that_looks_at_them(run, tmp_path):
    options = ["features=efficientnet_lite0", "features.image_size=32", "epochs=1"]
    options += ["noise.kind=instance", f"data_root={tmp_path}", "batch_size=500"]
    code, directory, _, complaints = run(*options)
    assert code == 0, complaints
    assert (directory / "hardest.png").exists()
    with np.load(directory / "noise.npz") as given:
        expected = given["given"]
    assert run(*options[2:], "features=null", name="images")[0] == 0
    with np.load(directory.with_name("images") / "noise.npz") as given:
        assert np.array_equal(given["given"], expected)
    code, _, _, complaints = run(
        "features=efficientnet_lite0", params="params/digitsum/plain.yaml", name="sums"
    )
    assert code == 2 and "features are made of images" in complaints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["features=efficientnet"], "did you mean 'efficientnet_lite0'"),
        (["features={name: efficientnet_lite0, image_size: 8}"], "must lie in [32, 1024], got 8"),
        (["features=3"], "features must be a section with a name or null, got 3"),
    ],
)
def test_features_that_are_not_to_be_had_are_named(run, options, message):
    code, _, _, complaints = run(*options)
    assert code == 2 and message in complaints


def test_a_folder_without_test_part_is_judged_whole(run, tree, tmp_path):
    options = [f"dataset.root={tree}", "features.image_size=32", f"data_root={tmp_path}/data"]
    options += ["features.name=efficientnet_lite0", "model.hidden=[]", "schedule=null"]
    options += ["dataset.test_fraction=0", "validation.folds=2", "validation.fold=1"]
    code, directory, _, complaint = run(*options, params="params/folder/plain.yaml")
    assert code == 0, complaint
    parts = [np.load(directory / name)["index"] for name in ("samples.npz", "held_out.npz")]
    assert len(np.union1d(*parts)) == sum(map(len, parts)) > 0


@pytest.mark.parametrize(
    ("side", "options", "warning"),
    [
        (8, ["dataset.image_size=32"], "have 8 pixels (median of their shorter sides)"),
        (8, ["dataset.image_size=16"], None),
        (8, ["features=efficientnet_lite0", "features.image_size=32"], None),
        (120, ["dataset.image_size=32"], "dataset.image_size=32 leaves little of them"),
        (
            120,
            ["features=efficientnet_lite0", "features.image_size=32"],
            "features.image_size=32 leaves little of them",
        ),
        (40, ["dataset.image_size=64"], None),
    ],
)
def test_images_that_do_not_fit_their_network_are_named(run, tmp_path, side, options, warning):
    for row in range(20):
        path = tmp_path / "photos" / "ab"[row % 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side + row, side), (row, 0, 0)).save(path)
    options = [f"dataset.root={tmp_path}/photos", f"data_root={tmp_path}", "epochs=1", *options]
    options += ["dataset.num_workers=0", "schedule=null"]
    code, _, _, warnings = run(*options, params="params/folder/plain.yaml")
    named = [line for line in warnings.splitlines() if "the images have" in line]
    assert code == 0 and (warning in named[0] if warning else not named)


def test_a_large_network_from_scratch_and_small_classes_are_named(tmp_path):
    for row in range(40):
        path = tmp_path / "ab"[row % 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (row, 0, 0)).save(path)
    data = folder(root=str(tmp_path), image_size=32)
    facts = {"pretrained": False, "num_parameters": 11_000_000}
    assert mismatches(data, **facts | {"num_parameters": 1000}) == []
    assert mismatches(data, **facts | {"pretrained": True}) == []
    (line,) = mismatches(data, **facts)
    assert "32 images are few for a network of 11,000,000 parameters from scratch" in line
    data.train.targets, data.classes = torch.arange(32) // 2, [str(name) for name in range(16)]
    (line,) = mismatches(data, **facts | {"pretrained": True})
    assert "half of the 16 classes have fewer than 5 training images" in line
