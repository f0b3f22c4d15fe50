"""Data that nobody wished for: a run on them ends with results, or before it has begun."""

import numpy as np
import pytest

import utils.plots
from datasets import csv, digits, folder
from datasets.noise import inject
from tests.test_datasets import write_tree
from utils.detection import flag, measure_detection
from utils.errors import UserError
from utils.run_state import read_summary

CSV = ["params/csv/plain.yaml", "dataset.image_size=8", "dataset.num_workers=0", "schedule=null"]


# After the last epoch


def test_a_run_whose_labels_are_all_wrong_finishes(run):
    code, directory, _, complaints = run("noise.kind=symmetric", "noise.fraction=1.0", "epochs=1")
    assert code == 0 and "warning" not in complaints
    assert read_summary(directory)["finished"] and (directory / "suspects.png").exists()
    assert not (directory / "hardest.png").exists()


def test_a_regression_whose_numbers_are_all_wrong_finishes(run, tmp_path):
    write_tree(tmp_path)
    paths = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("train/*/*"))
    lines = [f"{path},{row},{row + 0.5}" for row, path in enumerate(paths)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,true_label", *lines]))
    code, directory, _, complaints = run(
        f"dataset.file={tmp_path}/t.csv",
        f"dataset.root={tmp_path}",
        "dataset.task=regression",
        "task=regression",
        "task_loss=mse",
        "optimizer.lr=1e-4",
        *CSV[1:],
        params=CSV[0],
    )
    assert code == 0 and "warning" not in complaints, complaints
    assert read_summary(directory)["finished"]


def test_a_picture_that_cannot_be_drawn_costs_no_result(run, monkeypatch):
    def broken(directory, metric):
        raise ValueError("no such\nfont")

    monkeypatch.setattr(utils.plots, "draw_curves", broken)
    code, directory, _, complaints = run("epochs=1")
    assert code == 0 and read_summary(directory)["finished"]
    assert complaints == "warning: draw_curves has failed (ValueError: no such)\n"
    assert (directory / "samples.png").exists() and (directory / "suspects.csv").exists()


def test_samples_without_a_score_do_not_count():
    score = np.array([0.1, 0.2, np.nan, 5.0, 5.1, 0.15])
    table = {
        "given": np.array([0, 1, 0, 0, 1, 0]),
        "true": np.array([0, 1, 1, 1, 0, 0]),
        "predicted": np.array([0, 1, 1, 1, 0, 0]),
        "loss": np.arange(6.0),
        "score": score,
        "flagged": flag(score),
    }
    assert table["flagged"].tolist() == [False, False, False, True, True, False]
    assert measure_detection(table)["auroc"] == 1
    tiny = np.array([0, 1e-45], np.float32)  # whose standard deviation is 0
    assert not flag(tiny).any()


# One class


def test_one_class_is_refused_before_training(run, tmp_path):
    write_tree(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part / "cat").rename(tmp_path / f"{part} cats")
    with pytest.raises(UserError, match="there is one class, 'dog', and it takes two"):
        folder(str(tmp_path))
    lines = [f"{path},dog" for path in (tmp_path / "train/dog").iterdir()]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines]))
    with pytest.raises(UserError, match="there is one class, 'dog'"):
        csv(str(tmp_path / "t.csv"), root=str(tmp_path))
    code, _, _, complaints = run(f"dataset.root={tmp_path}", params="params/folder/plain.yaml")
    assert code == 2 and complaints.count("\n") == 1


@pytest.mark.parametrize("kind", ["symmetric", "pair", "symmetric_coteaching", "permute"])
def test_noise_among_one_class_is_refused(kind):
    labels = 0 * digits().train.targets
    with pytest.raises(UserError, match=r"there is one class: set noise\.kind=none"):
        inject(labels, kind=kind, fraction=0.4, seed=0, num_classes=1, dataset="digits")
