"""Every sample judged by a network that was not trained on it."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from datasets import folder
from datasets.noise import inject
from datasets.splits import hold_out
from tests.fixtures import write_digits
from utils import folds, scores
from utils.errors import UserError
from utils.judged import judge
from utils.review.__main__ import main as review
from utils.run_state import read_summary

ROOT = Path(__file__).parents[1]
SMALL = ["model=mlp", "dataset.image_size=8", "dataset.num_workers=0", "dataset.flip=false"]
SMALL += ["dataset.crop_scale=1", "batch_size=16", "epochs=4", "dataset.test_fraction=0"]


@pytest.fixture
def photos(tmp_path):
    """A folder of 120 digits, 6 of them under another class; and these."""
    root = tmp_path / "photos"
    return root, write_digits(root, 0.05, seed=0, num_training=120, num_test=0)


def test_each_sample_is_held_out_in_one_fold_with_its_copies_class_by_class():
    labels = np.repeat([0, 1, 2], [50, 20, 2])
    noise = inject(
        torch.from_numpy(labels),
        kind="none",
        fraction=0,
        seed=0,
        num_classes=3,
        trusted=True,
        dataset="",
    )
    original = np.arange(72)
    original[[10, 11]] = 9
    parts = [
        hold_out(noise, fraction=0, folds=4, fold=fold, seed=1, original=original)
        for fold in range(4)
    ]
    held_out = [set(part[1].tolist()) for part in parts]
    assert sorted(row for rows in held_out for row in rows) == list(range(72))
    for (train, rows, _), same in zip(parts, held_out, strict=True):
        assert not set(train) & same and len(train) + len(rows) == 72
        assert same.isdisjoint({9, 10, 11}) or {9, 10, 11} <= same
        assert abs((labels[rows] == 1).sum() - 5) <= 1
    again = hold_out(noise, fraction=0, folds=4, fold=2, seed=2)[1]
    assert set(again.tolist()) != held_out[2]


@pytest.mark.parametrize(
    "options, message",
    [
        (["validation.folds=3"], "must say which of the 3 folds is held out, 0 to 2, got None"),
        (["validation.folds=3", "validation.fold=3"], "got 3"),
        (["validation.fold=0"], "set validation.folds"),
        (["validation.folds=1", "validation.fold=0"], "at least 2"),
        (["validation.clean=true"], "none is held out: set validation.fraction"),
        (["validation.folds=2000", "validation.fold=0"], "more than the 1297 samples"),
        (["validation.folds=3", "validation.fold=1", "validation.fraction=.1"], "two ways"),
    ],
)
def test_folds_that_there_are_not_are_refused(run, options, message):
    code, directory, _, complaint = run(*options)
    assert code == 2 and message.lower() in complaint.lower() and not directory.exists()


def test_a_folder_is_judged_whole(run, photos, tmp_path, capsys):
    root, planted = photos
    options = [f"dataset.root={root}", *SMALL, "validation.folds=3"]
    for fold in (0, 1, 2):
        code, directory, *_ = run(
            *options,
            f"validation.fold={fold}",
            params="params/folder/discrimloss.yaml",
            name=f"whole/fold{fold}",
        )
        assert code == 0 and not (directory / "test.npz").exists()
        held_out = {"folds": 3, "fold": fold, "labels": "given", "part": "test"}
        assert read_summary(directory)["validation"] == held_out
    whole = tmp_path / "whole"
    assert folds.main([str(whole)]) == 0
    assert "120 samples judged" in capsys.readouterr().out
    joined = dict(np.load(whole / "out_of_sample.npz"))
    assert joined["probabilities"].shape == (120, 10)
    np.testing.assert_allclose(joined["probabilities"].sum(1), 1, rtol=1e-5)
    for fold in (0, 1, 2):
        trained = np.load(whole / f"fold{fold}/samples.npz")["index"]
        held_out = np.load(whole / f"fold{fold}/held_out.npz")
        assert not set(trained) & set(joined["index"][joined["fold"] == fold])
        np.testing.assert_array_equal(
            held_out["probabilities"], joined["probabilities"][held_out["index"]]
        )
    samples = dict(np.load(whole / "samples.npz"))
    assert set(scores.OUT_OF_SAMPLE) < samples.keys() and len(samples["index"]) == 120
    own = joined["probabilities"][np.arange(120), samples["given"]]
    np.testing.assert_array_equal(samples["score"], -own)
    others = [
        dict(np.load(whole / f"fold{fold}/samples.npz"))
        for fold in range(3)
        if fold != joined["fold"][7]
    ]
    means = [float(other["aum"][other["index"] == 7][0]) for other in others]
    assert samples["aum"][7] == pytest.approx(np.mean(means), rel=1e-5)
    suspects = pd.read_csv(whole / "suspects.csv")
    assert sorted(suspects.path) == sorted(
        str(path.relative_to(root)) for path in root.rglob("*.png")
    )
    assert set(suspects.part) == {"fold 0", "fold 1", "fold 2"}
    assert (np.diff(suspects.quality) >= 0).all()
    assert suspects.flagged.sum() > 0 and set(planted) <= set(suspects.path)
    assert set(json.loads((whole / "folds.json").read_text())["runs"]) == {
        "fold0",
        "fold1",
        "fold2",
    }
    judged = judge(whole)
    assert judged.names == suspects.path.tolist() and judged.picture(0).size == (8, 8)
    # a sample that could not be read where it was held out is in no fold, and in no other's scores
    paths = [whole / f"fold{fold}" for fold in range(3)]
    held_out = dict(np.load(paths[0] / "held_out.npz"))
    gone = held_out["index"][0]
    without = [np.delete(values, 0, axis=0) for values in held_out.values()]
    np.savez(paths[0] / "held_out.npz", **dict(zip(held_out, without, strict=True)))
    fewer = folds.join(paths, None)
    kept = samples["index"] != gone
    assert gone not in fewer["index"]
    np.testing.assert_array_equal(fewer["aum"], samples["aum"][kept])

    root.rename(root.with_name("moved"))
    assert folds.main([str(whole)]) == 2
    assert "there is no folder" in capsys.readouterr().err
    place = ["--root", str(root.with_name("moved"))]
    assert folds.main([str(whole), *place]) == 0
    assert review([str(whole), *place]) == 0
    assert (whole / "review.html").stat().st_size > 10_000
    root.with_name("moved").rename(root)

    shutil.copy(whole / "fold0/config.yaml", whole)  # as of a run that was there before the folds
    before = (whole / "samples.npz").read_bytes()
    assert folds.main([str(whole), "--score", "method"]) == 2
    assert "move its fold0, fold1, ... into a folder of their own" in capsys.readouterr().err
    assert (whole / "samples.npz").read_bytes() == before
    (whole / "config.yaml").unlink()

    assert folds.main([str(whole), "--score", "method"]) == 0
    assert folds.main([str(whole), "--score", "beauty"]) == 2
    assert "--score must be one of" in capsys.readouterr().err
    shutil.rmtree(whole / "fold1")
    assert folds.main([str(whole)]) == 2
    assert "lacks fold 1" in capsys.readouterr().err


def test_a_folder_without_test_part_and_folds_is_refused(run, photos):
    code, directory, _, complaint = run(
        f"dataset.root={photos[0]}", *SMALL, params="params/folder/plain.yaml"
    )
    assert code == 2 and "there is no test part" in complaint and not directory.exists()


def test_folds_of_two_configurations_are_not_joined(run, tmp_path):
    for fold, rate in ((0, 0.1), (1, 0.2)):
        options = ["validation.folds=2", f"validation.fold={fold}", f"optimizer.lr={rate}"]
        run(*options, params="params/digits/plain.yaml", name=f"two/fold{fold}")
    with pytest.raises(UserError, match=r"another configuration: optimizer\.lr: 0\.1 before, 0\.2"):
        folds.read_folds(tmp_path / "two")
    with np.load(tmp_path / "two/fold1/noise.npz") as noise:
        np.savez(tmp_path / "two/fold1/noise.npz", **dict(noise) | {"sha256": "another"})
    with pytest.raises(UserError, match="the folds have other labels"):
        folds.join([tmp_path / "two/fold0", tmp_path / "two/fold1"], None)
    with pytest.raises(UserError, match="holds no runs fold0"):
        folds.read_folds(tmp_path)


def test_one_run_lists_every_file_and_says_which_were_trained_on(run, photos):
    root, _ = photos
    options = [*SMALL[:-1], "dataset.test_fraction=0.2", "validation.fraction=0.25"]
    code, directory, *_ = run(
        f"dataset.root={root}", *options, params="params/folder/discrimloss.yaml"
    )
    assert code == 0
    suspects = pd.read_csv(directory / "suspects.csv")
    assert suspects.part.value_counts().to_dict() == {"train": 72, "validation": 24, "test": 24}
    assert sorted(suspects.path) == sorted(
        str(path.relative_to(root)) for path in root.rglob("*.png")
    )
    assert suspects.quality.between(0, 1).all() and (np.diff(suspects.quality) >= 0).all()
    assert "probabilities" not in np.load(directory / "held_out.npz")
    sheet = np.asarray(Image.open(directory / "suspects.png"))
    for position, path in enumerate(suspects.path[:16]):  # the first of the list, of all parts
        row, column = divmod(position, 8)
        shown = sheet[26 + 143 * row :, 2 + 100 * column :][:96, :96, 0]
        pixels = Image.open(root / path).convert("RGB").resize((96, 96), Image.Resampling.NEAREST)
        assert np.array_equal(shown, np.asarray(pixels)[..., 0]), position
    data = folder(root=str(root), image_size=8, num_workers=0)
    assert judge(directory).names == suspects.path.tolist() and len(data.train) == 96
    with pytest.raises(UserError, match=r"--file: the dataset folder has no dataset\.file"):
        judge(directory, {"dataset.file": "labels.csv"})


def test_the_launcher_writes_a_cell_a_fold(tmp_path):
    done = subprocess.run(
        ["bash", "examples/folds.sbatch", "--dry-run", "dataset.root=photos"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "FOLDS": "3", "RUN": "runs/photos"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if "validation.folds=3" in line]
    assert [f"run_dir=runs/photos/fold{fold}" in line for fold, line in enumerate(lines)] == [
        True
    ] * 3
