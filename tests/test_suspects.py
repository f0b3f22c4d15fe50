"""What a practitioner comes for: errors planted among images are at the head of suspects.csv."""

import json

import numpy as np
import pandas as pd
import pytest

from datasets import digits
from tests.fixtures import SUSPECTS_OPTIONS, write_digits

SHORT = [*SUSPECTS_OPTIONS, "model.width=16", "epochs=12", "batch_size=32"]


@pytest.fixture
def images(tmp_path):
    """A folder of the first 600 training digits, 5 % of them under another class; and these."""
    root = tmp_path / "images"
    return root, write_digits(root, 0.05, seed=0, num_training=600, num_test=50)


def test_planted_errors_of_a_folder_are_found(run, images):
    root, planted = images
    code, directory, *_ = run(
        f"dataset.root={root}", *SHORT, "loss.q=6", params="params/folder/discrimloss.yaml"
    )
    assert code == 0
    suspects = pd.read_csv(directory / "suspects.csv")
    assert (
        len(planted) == 30
        and suspects.path[suspects.part == "train"][:30].isin(planted).mean() > 0.8
    )
    assert suspects.given_label.astype(str).tolist() == [
        path.split("/")[-2] for path in suspects.path
    ]
    with np.load(directory / "samples.npz") as samples:
        assert (samples["true"] == -1).all()


def test_planted_errors_of_a_table_are_found_and_measured_where_the_truth_is_known(
    run, images, tmp_path
):
    root, planted = images
    source = {
        f"{number}.png": int(target) for number, target in enumerate(digits().train.targets[:600])
    }
    rows = [
        (path.relative_to(root), path.parent.name, source[path.name])
        for path in sorted(root.glob("train/*/*.png"))
    ]
    pd.DataFrame(rows, columns=["path", "label", "true_label"]).to_csv(
        tmp_path / "labels.csv", index=False
    )
    code, directory, *_ = run(
        f"dataset.file={tmp_path}/labels.csv",
        f"dataset.root={root}",
        *SHORT,
        "loss.q=6",
        params="params/csv/discrimloss.yaml",
    )
    assert code == 0
    summary = json.loads((directory / "summary.json").read_text())
    suspects = pd.read_csv(directory / "suspects.csv")
    assert summary["detection"]["auroc"] > 0.95 and summary["noise"]["kind"] == "none"
    assert summary["noise"]["realised"] == pytest.approx(0.05, abs=0.02)
    wrong = suspects.given_label != suspects.true_label
    assert wrong.sum() == round(480 * summary["noise"]["realised"]) and wrong[:20].mean() > 0.8
    assert set(suspects.path[wrong]) <= set(planted)
    assert (suspects.part == "train").all()
