"""Data that nobody wished for: a run on them ends with results, or before it has begun."""

import contextlib
import copy
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
import yaml

import utils.plots
from datasets import csv, digits, folder
from datasets.base import Batch
from datasets.noise import inject
from datasets.selection import read_noise
from datasets.selection.rules import select
from datasets.splits import draw_trusted
from losses.task import cross_entropy
from tests.test_datasets import write_tree
from utils import run_inputs
from utils.detection import flag, measure_detection
from utils.errors import UserError
from utils.evaluation import check_batch_of_one, evaluate, in_a_table, predict
from utils.metrics import METRICS
from utils.run_state import read_summary
from utils.training_record import TrainingRecord

CSV = ["params/csv/plain.yaml", "dataset.image_size=8", "dataset.num_workers=0", "schedule=null"]


# After the last epoch


def test_a_run_whose_labels_are_all_wrong_finishes(run):
    code, directory, _, complaints = run("noise.kind=symmetric", "noise.fraction=1.0", "epochs=1")
    assert code == 0 and "has failed" not in complaints
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
    assert code == 0 and "has failed" not in complaints, complaints
    assert read_summary(directory)["finished"]


def test_a_picture_that_cannot_be_drawn_costs_no_result(run, monkeypatch):
    def broken(directory, metric):
        raise ValueError("no such\nfont")

    monkeypatch.setattr(utils.plots, "draw_curves", broken)
    code, directory, _, complaints = run("epochs=1")
    assert code == 0 and read_summary(directory)["finished"]
    assert complaints == "warning: draw_curves has failed (ValueError: no such)\n"
    assert (directory / "samples.png").exists() and (directory / "suspects.csv").exists()
    samples = dict(np.load(directory / "samples.npz"))
    samples["score"][0] = np.nan  # which could not be read while it was trained on
    np.savez(directory / "samples.npz", **samples)
    utils.plots.draw_samples(directory)


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
    warning, error = complaints.splitlines()
    assert code == 2 and "train cats" in warning and error.startswith("error: folder: there is one")


@pytest.mark.parametrize("kind", ["symmetric", "pair", "symmetric_coteaching", "permute"])
def test_noise_among_one_class_is_refused(kind):
    labels = 0 * digits().train.targets
    with pytest.raises(UserError, match=r"there is one class: set noise\.kind=none"):
        inject(labels, kind=kind, fraction=0.4, seed=0, num_classes=1, dataset="digits")


# Many classes


MANY = 100_000


@pytest.fixture
def little_memory():
    """Fails a test in which NumPy asks for more than 200 MB at once."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e8


@pytest.mark.parametrize("kind", ["none", "symmetric", "pair", "symmetric_coteaching", "permute"])
def test_noise_among_100_000_classes_needs_no_matrix_of_them(kind, tmp_path, little_memory):
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, MANY, 50))
    noise = inject(labels, kind=kind, fraction=0.5, seed=0, num_classes=MANY, dataset="csv")
    run_inputs.write_noise(tmp_path, noise, np.arange(0), None)
    config = {"dataset": {"name": "csv"}, "noise": {"kind": kind, "fraction": 0.5, "seed": 0}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    read = read_noise(tmp_path)
    assert read.num_classes == MANY and read.sha256 == noise.sha256
    with pytest.raises(UserError, match="of more than 20,000 classes there is none"):
        noise.transition  # noqa: B018


def test_a_selection_among_100_000_classes_takes_a_moment():
    targets = np.arange(MANY).repeat(2)
    chosen = select(np.arange(2.0 * MANY), targets, [1] * MANY)
    assert np.array_equal(chosen.index, 2 * np.arange(MANY))
    rows = np.arange(2 * MANY)
    options = {"count": MANY, "num_classes": MANY, "most": MANY, "seed": 0}
    assert np.array_equal(targets[draw_trusted(rows, targets, **options)], np.arange(MANY))


def test_an_evaluation_keeps_no_outputs_of_batches_that_are_over():
    alive, outputs = [], []

    def model(inputs):
        alive.append(sum(output() is not None for output in outputs))
        output = torch.randn(len(inputs), 50)
        outputs.append(weakref.ref(output))
        return output

    model.eval = lambda: None
    batches = [Batch(torch.zeros(4, 1), torch.arange(4), torch.arange(4))] * 6
    evaluate(model, {"test": batches}, METRICS["accuracy"], contextlib.nullcontext)
    predict(model, batches, contextlib.nullcontext, in_a_table(cross_entropy))
    assert len(alive) == 12 and max(alive) <= 1


def test_the_record_is_checked_sooner_if_outputs_are_large():
    record = TrainingRecord(8, cross_entropy, METRICS["accuracy"], torch.device("cpu"))
    record.most_pending = 1000
    record.start(0, lr=0.1)
    for step, due in enumerate([False, False, True]):
        output = torch.zeros(4, 100)
        batch = Batch(torch.zeros(4, 1), torch.arange(4), torch.arange(4))
        record.update(step, torch.tensor(1.0), batch, (output, batch.target, batch.index))
        assert record.is_due == due


# Batches of one


def test_a_model_that_cannot_be_trained_on_one_sample_is_refused_before_training(run):
    code, directory, _, complaints = run("model=resnet18", "batch_size=1")
    assert code == 2 and complaints.count("\n") == 1 and "raise batch_size" in complaints
    assert not (directory / "config.yaml").exists()


def test_trying_a_batch_of_one_changes_nothing():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5))
    with pytest.raises(UserError, match="some batches hold one sample"):
        check_batch_of_one(model, torch.randn(2, 3), torch.device("cpu"))
    torch.manual_seed(0)
    expected, before = torch.rand(1), copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    for fine in (torch.nn.Sequential(torch.nn.Dropout(0.5)), torch.nn.BatchNorm1d(3).eval()):
        check_batch_of_one(fine, torch.randn(2, 3, 9), torch.device("cpu"))
        torch.manual_seed(0)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
