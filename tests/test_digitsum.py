"""DigitSum and everything else that regression needs.

The data, the network, the noise, and whole runs.
"""

import json
import random

import numpy as np
import pandas as pd
import pytest
import torch

from datasets import digitsum
from datasets.noise import inject
from models import digitsum_lstm
from utils.detection import measure_detection
from utils.evaluation import further_metrics
from utils.metrics import METRICS


@pytest.fixture(scope="module")
def data():
    return digitsum()


def digits_of(row):
    return [token for token in row.tolist() if token != 10]


def test_the_sequences_and_their_sums(data):
    assert len(data.train) == 18_100 and len(data.validation) == len(data.test) == 200
    lengths = (data.train.inputs != 10).sum(1)
    assert (
        torch.bincount(lengths).tolist() == [0, 0, 100] + [1000] * 18
        and (lengths.diff() >= 0).all()
    )
    for split in (data.train, data.validation, data.test):
        assert (
            split.inputs.dtype == torch.int32
            and split.inputs.shape[1] == 20
            and split.targets.dtype == torch.float32
        )
        assert (
            (split.inputs == 10).int().diff(dim=1) >= 0
        ).all()  # padding is behind the end alone
        for row in range(0, len(split), 37):
            digits = digits_of(split.inputs[row])
            assert sum(digits) == split.targets[row] and split.texts[row] == " ".join(
                map(str, digits)
            )
    assert {*data.validation.texts, *data.test.texts}.isdisjoint(data.train.texts) and len(
        set(data.train.texts)
    ) == 18_100
    assert set(data.train.texts[:100]) == {
        f"{first} {second}" for first in range(10) for second in range(10)
    }
    assert (data.validation.inputs != 10).all() and (data.test.inputs != 10).all()
    assert data.train.targets.mean() == pytest.approx(51.4, abs=0.3)
    assert data.train.targets.std() == pytest.approx(25.4, abs=0.3)
    assert (data.task, data.num_outputs, data.classes) == ("regression", 1, [])


def test_the_sequences_follow_from_the_seed(data):
    assert torch.equal(digitsum().train.inputs, data.train.inputs)
    assert not torch.equal(digitsum(generator_seed=1).train.inputs, data.train.inputs)


@pytest.mark.parametrize(
    "fraction, wrong, shift",
    [(0.2, 0.198, 5.9), (0.4, 0.396, 11.7), (0.6, 0.593, 17.6), (0.8, 0.791, 23.4)],
)
def test_label_permutation_changes_as_many_labels_as_the_authors_data(data, fraction, wrong, shift):
    noise = inject(
        data.train.targets,
        kind="label_permutation",
        fraction=fraction,
        seed=1,
        num_classes=0,
        dataset="any",
    )
    assert noise.corrupted.mean() == pytest.approx(wrong, abs=0.003)
    assert np.abs(noise.given - noise.true).mean() == pytest.approx(shift, rel=0.03)
    assert (
        sorted(noise.given) == sorted(noise.true)
        and noise.given.dtype == np.float32
        and noise.num_classes == 0
    )
    assert (noise.true == data.train.targets.numpy()).all()


def test_label_permutation_is_the_authors_one():
    """y[O[j]] <- y[S[j]], S drawn by Python's random, O sorted."""
    labels = np.arange(50, dtype=np.float32)
    random.seed(7)
    drawn = random.sample(range(50), 20)
    expected = labels.copy()
    for position, source in zip(sorted(drawn), drawn, strict=True):
        expected[position] = labels[source]
    noise = inject(
        torch.from_numpy(labels),
        kind="label_permutation",
        fraction=0.4,
        seed=7,
        num_classes=0,
        dataset="any",
    )
    assert noise.given.tolist() == expected.tolist()
    classes = inject(
        torch.arange(50) % 5,
        kind="label_permutation",
        fraction=0.4,
        seed=7,
        num_classes=5,
        dataset="any",
    )
    assert classes.given.tolist() == (expected % 5).tolist()


def test_numbers_take_no_noise_that_is_made_for_classes():
    with pytest.raises(ValueError, match=r"noise.kind=pair is for classes.*label_permutation"):
        inject(torch.rand(9), kind="pair", fraction=0.4, seed=1, num_classes=0, dataset="digitsum")


def test_numbers_from_a_file(tmp_path):
    np.savez(tmp_path / "ages.npz", given=np.array([1.5, -2, 3]))
    options = {"fraction": 0, "seed": 1, "num_classes": 0, "dataset": "any"}
    noise = inject(torch.tensor([1.5, 0, 3]), kind=f"file:{tmp_path}/ages.npz", **options)
    assert noise.given.tolist() == [1.5, -2, 3] and noise.corrupted.tolist() == [False, True, False]
    unknown = inject(torch.zeros(3), kind="none", trusted=False, **options)
    assert unknown.corrupted is None and np.isnan(unknown.true).all()
    np.savez(tmp_path / "ages.npz", given=np.array([1.5, np.nan, 3]))
    with pytest.raises(ValueError, match="must hold numbers"):
        inject(torch.zeros(3), kind=f"file:{tmp_path}/ages.npz", **options)


# The network


def test_the_network_has_the_authors_size_and_is_torchs_lstm(data):
    torch.manual_seed(0)
    model = digitsum_lstm(1)
    assert sum(parameter.numel() for parameter in model.parameters()) == 529_409
    tokens = data.train.inputs[torch.randperm(18_100)[:64]]
    output = model(tokens)
    assert output.shape == (64, 1) and (output >= 0).all() and output.any()
    for row in range(64):  # each sequence by itself, through torch's own LSTM
        digits = torch.tensor([digits_of(tokens[row])])
        state = model.lstm(model.embedding(digits))[0][0, -1]
        torch.testing.assert_close(output[row], model.head(state).relu(), rtol=1e-5, atol=1e-6)


def test_both_ways_through_the_network_give_the_same_gradients(data):
    torch.manual_seed(0)
    model, tokens = digitsum_lstm(1), data.train.inputs[torch.randperm(18_100)[:64]]
    lengths, state, gradients = (tokens != 10).sum(1), torch.randn(2, 64, 256), []
    for run in (model._by_length, model._padded):
        model.zero_grad()
        model.head(run(tokens, lengths, *state)).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-3 * float(second.abs().max()))


def test_a_random_first_state_is_drawn_in_each_pass(data):
    model, tokens = digitsum_lstm(1, random_state="authors").eval(), data.test.inputs[:8]
    assert not torch.equal(model(tokens), model(tokens))
    still = digitsum_lstm(1).eval()
    assert torch.equal(still(tokens), still(tokens))


# What is measured


def test_rmse_and_r2_are_those_of_scikit_learn():
    from sklearn.metrics import r2_score, root_mean_squared_error

    generator = torch.Generator().manual_seed(0)
    target, output = torch.randn(40, generator=generator), torch.randn(40, 1, generator=generator)
    measured = further_metrics(output, target, METRICS["mae"])
    assert measured["rmse"] == pytest.approx(root_mean_squared_error(target, output[:, 0]))
    assert measured["r2"] == pytest.approx(r2_score(target, output[:, 0]))


def test_detection_of_changed_numbers():
    true = np.array([10.0, 20, 30, 40, 50, 60], np.float32)
    given = np.array(
        [10.0, 21, 30, 40, 50, 10], np.float32
    )  # changed a little, and by more than the standard deviation, 17
    score = np.array([1.0, 0, 2, 3, 4, 5])
    predicted = np.array([0, 20.6, 0, 0, 0, 58], np.float32)
    table = {
        "given": given,
        "true": true,
        "score": score,
        "loss": score,
        "predicted": predicted,
        "flagged": score > 4.5,
    }
    found = measure_detection(table)
    assert (
        found["auroc"] == 0.5
        and found["large_change_auroc"] == 1
        and found["large_change"] == pytest.approx(true.std())
    )
    assert (
        found["memorised_fraction"] == 0.5
    )  # 20.6 is nearer to 21 than to 20; 58 is nearer to 60 than to 10
    assert found["flag_precision"] == 1 and found["flag_recall"] == 0.5
    table["true"] = np.full(6, np.nan, np.float32)
    assert set(measure_detection(table).values()) == {None}


# Whole runs


SMALL = ["model=digitsum_lstm", "model.hidden=8", "batch_size=512"]


@pytest.mark.parametrize("method", ["plain", "superloss", "discrimloss"])
def test_a_run_of_each_method(run, method):
    code, directory, printed, complaints = run(
        *SMALL, "epochs=2", params=f"params/digitsum/{method}.yaml"
    )
    assert (
        code == 0
        and not complaints
        and "18,100 training, 200 validation, 200 test samples" in printed
    )
    summary, rows = (
        json.loads((directory / "summary.json").read_text()),
        pd.read_csv(directory / "metrics.csv"),
    )
    assert summary["metric"] == "mae" and summary["noise"]["mean_change"] == pytest.approx(
        11.7, rel=0.03
    )
    best = rows.validation_metric.idxmin()
    assert summary["test"]["validated"] == pytest.approx(rows.test_metric[best], rel=1e-5)
    assert summary["test"]["best"] == pytest.approx(rows.test_metric.min(), rel=1e-5)
    assert summary["at_the_same_epochs"]["test_rmse"]["validated"] == pytest.approx(
        rows.test_rmse[best], rel=1e-5
    )
    assert {"test_r2", "validation_rmse", "weight_incorrect"} <= set(rows)
    assert summary["detection"]["large_change_auroc"] is not None
    assert summary["validation"] == {"fraction": 0, "labels": "the dataset's own"}
    assert (directory / "targets.png").read_bytes()[:4] == b"\x89PNG" and not (
        directory / "suspects.png"
    ).exists()
    suspects = pd.read_csv(directory / "suspects.csv")
    assert list(suspects)[:5] == ["rank", "index", "text", "given_label", "predicted_label"]
    assert all(
        sum(map(int, text.split())) == true
        for text, true in zip(suspects.text, suspects.true_label, strict=True)
    )


def test_a_selection_among_numbers(run, tmp_path):
    """Of all together, as many as are correct by the oracle; and by a part to keep."""
    code, first, *_ = run(
        *SMALL, "record_losses=true", "epochs=2", params="params/digitsum/plain.yaml", name="first"
    )
    assert code == 0 and np.load(first / "losses.npy").shape == (2, 18_100)
    selection = f"dataset.selection={{history: {first}/losses.npy}}"
    code, second, *_ = run(
        *SMALL, selection, "epochs=1", params="params/digitsum/plain.yaml", name="second"
    )
    report = json.loads((second / "summary.json").read_text())["selection"]
    wrong = json.loads((second / "summary.json").read_text())["noise"]["realised"]
    assert code == 0 and report["per"] == "global" and report["noise_rate_is"] == "oracle"
    assert report["kept"] == int(18_100 * (1 - 1.2 * wrong))
    losses = np.load(first / "losses.npy").astype(np.float64).mean(0)
    with np.load(second / "selection.npz") as stored, np.load(second / "noise.npz") as labels:
        assert losses[stored["index"]].max() <= np.sort(losses)[report["kept"] - 1]
        assert report["precision"] == (labels["given"] == labels["true"])[stored["index"]].mean()
    code, third, *_ = run(
        *SMALL,
        selection,
        "dataset.selection.keep_fraction=0.5",
        "epochs=1",
        name="third",
        params="params/digitsum/plain.yaml",
    )
    assert (
        code == 0 and json.loads((third / "summary.json").read_text())["selection"]["kept"] == 9_050
    )


def test_a_part_of_numbers_can_be_held_out(run):
    code, directory, *_ = run(
        *SMALL, "validation.fraction=0.1", "epochs=1", params="params/digitsum/plain.yaml"
    )
    summary = json.loads((directory / "summary.json").read_text())
    assert code == 0 and summary["validation"] == {"fraction": 0.1, "labels": "given"}
    with np.load(directory / "samples.npz") as samples:
        assert len(samples["index"]) == 16_290


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["task=classification", "task_loss=cross_entropy"],
            "the targets of this dataset are for regression: set task=regression",
        ),
        (["noise.kind=symmetric"], "noise.kind=symmetric is for classes"),
        ([*SMALL, "loss=GCE"], "for regression use Plain, SuperLoss or DiscrimLoss"),
        (["model=mlp"], "takes images"),
    ],
)
def test_what_does_not_fit_numbers_is_said_before_training(run, overrides, message):
    code, directory, _, complaints = run(*overrides, params="params/digitsum/plain.yaml")
    assert code == 2 and message in complaints and not (directory / "config.yaml").exists()


def test_a_network_for_sequences_takes_no_images(run):
    code, _, _, complaints = run("model=digitsum_lstm", params="params/digits/plain.yaml")
    assert (
        code == 2 and "the model does not fit the dataset, with inputs of [1, 8, 8]" in complaints
    )
