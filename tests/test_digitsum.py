"""DigitSum, and everything else that regression needs: data, noise, network and whole runs."""

import random

import numpy as np
import pandas as pd
import pytest
import torch

from datasets import digitsum
from datasets.noise import inject
from models import digitsum_lstm
from tests.test_run import arrays
from utils.detection import measure_detection
from utils.evaluation import further_metrics
from utils.run_state import read_summary

PADDING = 10  # the token behind the end of a sequence


@pytest.fixture(scope="module")
def data():
    return digitsum()


def digits_of(row):
    return [token for token in row.tolist() if token != PADDING]


def test_the_sequences_and_their_sums(data):
    assert len(data.train) == 18_100
    assert len(data.validation) == len(data.test) == 200
    lengths = (data.train.inputs != PADDING).sum(1)
    assert torch.bincount(lengths).tolist() == [0, 0, 100] + [1000] * 18
    assert (lengths.diff() >= 0).all()
    for split in (data.train, data.validation, data.test):
        assert split.inputs.dtype == torch.int32
        assert split.inputs.shape[1] == 20
        assert split.targets.dtype == torch.float32
        is_padding = (split.inputs == PADDING).int()
        assert (is_padding.diff(dim=1) >= 0).all()  # only behind the end
        for row in range(0, len(split), 37):
            digits = digits_of(split.inputs[row])
            assert sum(digits) == split.targets[row]
            assert split.texts[row] == " ".join(map(str, digits))
    assert {*data.validation.texts, *data.test.texts}.isdisjoint(data.train.texts)
    assert len(set(data.train.texts)) == 18_100
    pairs = {f"{first} {second}" for first in range(10) for second in range(10)}
    assert set(data.train.texts[:100]) == pairs
    assert (data.validation.inputs != PADDING).all()
    assert (data.test.inputs != PADDING).all()
    assert data.train.targets.mean() == pytest.approx(51.4, abs=0.3)
    assert data.train.targets.std() == pytest.approx(25.4, abs=0.3)
    assert (data.task, data.num_outputs, data.classes) == ("regression", 1, [])


def test_the_sequences_follow_from_the_seed(data):
    assert torch.equal(digitsum().train.inputs, data.train.inputs)
    assert not torch.equal(digitsum(generator_seed=1).train.inputs, data.train.inputs)


def permute_labels(labels, *, fraction, seed, num_classes=0):
    return inject(
        labels,
        kind="label_permutation",
        fraction=fraction,
        seed=seed,
        num_classes=num_classes,
        dataset="any",
    )


@pytest.mark.parametrize(
    ("fraction", "wrong", "shift"),
    [(0.2, 0.198, 5.9), (0.4, 0.396, 11.7), (0.6, 0.593, 17.6), (0.8, 0.791, 23.4)],
)
def test_label_permutation_changes_as_many_labels_as_the_authors_data(data, fraction, wrong, shift):
    noise = permute_labels(data.train.targets, fraction=fraction, seed=1)
    assert noise.corrupted.mean() == pytest.approx(wrong, abs=0.003)
    assert np.abs(noise.given - noise.true).mean() == pytest.approx(shift, rel=0.03)
    assert sorted(noise.given) == sorted(noise.true)
    assert noise.given.dtype == np.float32
    assert noise.num_classes == 0
    assert (noise.true == data.train.targets.numpy()).all()


def test_label_permutation_is_the_authors_one():
    """y[O[j]] <- y[S[j]], S drawn by Python's random, O sorted."""
    labels = np.arange(50, dtype=np.float32)
    random.seed(7)
    drawn = random.sample(range(50), 20)
    expected = labels.copy()
    for position, source in zip(sorted(drawn), drawn, strict=True):
        expected[position] = labels[source]
    numbers = permute_labels(torch.from_numpy(labels), fraction=0.4, seed=7)
    assert numbers.given.tolist() == expected.tolist()
    classes = permute_labels(torch.arange(50) % 5, fraction=0.4, seed=7, num_classes=5)
    assert classes.given.tolist() == (expected % 5).tolist()


def test_numbers_take_no_noise_that_is_made_for_classes():
    with pytest.raises(ValueError, match=r"noise.kind=pair is for classes.*label_permutation"):
        inject(torch.rand(9), kind="pair", fraction=0.4, seed=1, num_classes=0, dataset="digitsum")


def test_numbers_from_a_file(tmp_path):
    path = tmp_path / "ages.npz"
    options = {"fraction": 0, "seed": 1, "num_classes": 0, "dataset": "any"}
    np.savez(path, given=np.array([1.5, -2, 3]))
    noise = inject(torch.tensor([1.5, 0, 3]), kind=f"file:{path}", **options)
    assert noise.given.tolist() == [1.5, -2, 3]
    assert noise.corrupted.tolist() == [False, True, False]
    unknown = inject(torch.zeros(3), kind="none", trusted=False, **options)
    assert unknown.corrupted is None
    assert np.isnan(unknown.true).all()
    np.savez(path, given=np.array([1.5, np.nan, 3]))
    with pytest.raises(ValueError, match="must hold numbers"):
        inject(torch.zeros(3), kind=f"file:{path}", **options)


# The network


def test_the_network_has_the_authors_size_and_is_torchs_lstm(data):
    torch.manual_seed(0)
    model = digitsum_lstm(1)
    assert sum(parameter.numel() for parameter in model.parameters()) == 529_409
    tokens = data.train.inputs[torch.randperm(18_100)[:64]]
    output = model(tokens)
    assert output.shape == (64, 1)
    assert (output >= 0).all()
    assert output.any()
    for row in range(64):  # each sequence by itself, through torch's own LSTM
        digits = torch.tensor([digits_of(tokens[row])])
        state = model.lstm(model.embedding(digits))[0][0, -1]
        torch.testing.assert_close(output[row], model.head(state).relu(), rtol=1e-5, atol=1e-6)


def test_both_ways_through_the_network_give_the_same_gradients(data):
    torch.manual_seed(0)
    model = digitsum_lstm(1)
    tokens = data.train.inputs[torch.randperm(18_100)[:64]]
    lengths = (tokens != PADDING).sum(1)
    first_state = torch.randn(2, 64, 256)
    gradients = []
    for last_states in (model._by_length, model._padded):
        model.zero_grad()
        model.head(last_states(tokens, lengths, *first_state)).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-3 * float(second.abs().max()))


def test_a_random_first_state_is_drawn_in_each_pass(data):
    tokens = data.test.inputs[:8]
    random_first_state = digitsum_lstm(1, random_state="authors").eval()
    assert not torch.equal(random_first_state(tokens), random_first_state(tokens))
    deterministic = digitsum_lstm(1).eval()
    assert torch.equal(deterministic(tokens), deterministic(tokens))


# What is measured


def test_rmse_and_r2_are_those_of_scikit_learn():
    from sklearn.metrics import r2_score, root_mean_squared_error

    generator = torch.Generator().manual_seed(0)
    target = torch.randn(40, generator=generator)
    output = torch.randn(40, 1, generator=generator)
    measured = further_metrics(output, target)
    assert measured["rmse"] == pytest.approx(
        root_mean_squared_error(target.numpy(), output[:, 0].numpy())
    )
    assert measured["r2"] == pytest.approx(r2_score(target.numpy(), output[:, 0].numpy()))


def test_detection_of_changed_numbers():
    true = np.array([10.0, 20, 30, 40, 50, 60], np.float32)  # standard deviation 17
    given = np.array([10.0, 21, 30, 40, 50, 10], np.float32)  # one changed a little, one by more
    score = np.array([1.0, 0, 2, 3, 4, 5])
    table = {
        "given": given,
        "true": true,
        "score": score,
        "loss": score,
        "predicted": np.array([0, 20.6, 0, 0, 0, 58], np.float32),
        "flagged": score > 4.5,
    }
    measured = measure_detection(table)
    assert measured["auroc"] == 0.5
    assert measured["large_change_auroc"] == 1
    assert measured["large_change"] == pytest.approx(true.std())
    # 20.6 is nearer to 21 than to 20; 58 is nearer to 60 than to 10
    assert measured["memorised_fraction"] == 0.5
    assert measured["flag_precision"] == 1
    assert measured["flag_recall"] == 0.5
    table["true"] = np.full(6, np.nan, np.float32)
    assert set(measure_detection(table).values()) == {None}


# Whole runs


PLAIN = {"params": "params/digitsum/plain.yaml"}
SMALL = ["model=digitsum_lstm", "model.hidden=8", "batch_size=512"]


@pytest.mark.parametrize("method", ["plain", "superloss", "discrimloss"])
def test_a_run_of_each_method(run, method):
    params = f"params/digitsum/{method}.yaml"
    code, directory, stdout, stderr = run(*SMALL, "epochs=2", params=params)
    assert code == 0
    assert not stderr or "it has learned nothing" in stderr  # in two epochs
    assert "18,100 training, 200 validation, 200 test samples" in stdout
    summary = read_summary(directory)
    assert summary["metric"] == "mae"
    assert summary["noise"]["mean_change"] == pytest.approx(11.7, rel=0.03)
    rows = pd.read_csv(directory / "metrics.csv")
    best = rows.validation_metric.idxmin()
    assert summary["test"]["validated"] == pytest.approx(rows.test_metric[best], rel=1e-5)
    assert summary["test"]["best"] == pytest.approx(rows.test_metric.min(), rel=1e-5)
    test_rmse = summary["at_the_same_epochs"]["test_rmse"]
    assert test_rmse["validated"] == pytest.approx(rows.test_rmse[best], rel=1e-5)
    assert {"test_r2", "validation_rmse", "weight_incorrect"} <= set(rows)
    assert summary["detection"]["large_change_auroc"] is not None
    assert summary["validation"] == {"fraction": 0, "labels": "the dataset's own"}
    assert (directory / "targets.png").read_bytes()[:4] == b"\x89PNG"
    assert not (directory / "suspects.png").exists()
    suspects = pd.read_csv(directory / "suspects.csv")
    assert list(suspects)[:5] == ["rank", "index", "text", "given_label", "predicted_label"]
    for text, true_label in zip(suspects.text, suspects.true_label, strict=True):
        assert sum(map(int, text.split())) == true_label


def test_a_selection_among_numbers(run):
    """Among all samples together: as many as are correct, which is known here, or a given part."""
    code, first, *_ = run(*SMALL, "record_losses=true", "epochs=2", **PLAIN, name="first")
    assert code == 0
    assert np.load(first / "losses.npy").shape == (2, 18_100)
    selection = f"dataset.selection={{history: {first}/losses.npy}}"
    code, second, *_ = run(*SMALL, selection, "epochs=1", **PLAIN, name="second")
    assert code == 0
    summary = read_summary(second)
    report = summary["selection"]
    assert report["per"] == "global"
    assert report["noise_rate_is"] == "oracle"
    assert report["kept"] == int(18_100 * (1 - 1.2 * summary["noise"]["realised"]))
    losses = np.load(first / "losses.npy").astype(np.float64).mean(0)
    selected = arrays(second / "selection.npz")["index"]
    labels = arrays(second / "noise.npz")
    assert losses[selected].max() <= np.sort(losses)[report["kept"] - 1]
    assert report["precision"] == (labels["given"] == labels["true"])[selected].mean()
    half = "dataset.selection.keep_fraction=0.5"
    code, third, *_ = run(*SMALL, selection, half, "epochs=1", **PLAIN, name="third")
    assert code == 0
    assert read_summary(third)["selection"]["kept"] == 9_050


def test_a_part_of_numbers_can_be_held_out(run):
    code, directory, *_ = run(*SMALL, "validation.fraction=0.1", "epochs=1", **PLAIN)
    assert code == 0
    assert read_summary(directory)["validation"] == {"fraction": 0.1, "labels": "given"}
    assert len(arrays(directory / "samples.npz")["index"]) == 16_290


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task=classification", "task_loss=cross_entropy"],
            "the targets of this dataset are for regression: set task=regression",
        ),
        (["noise.kind=symmetric"], "noise.kind=symmetric is for classes"),
        ([*SMALL, "loss=GCE"], "for regression use Plain, SuperLoss, DiscrimLoss or, with"),
        (["model=mlp"], "takes images"),
    ],
)
def test_what_does_not_fit_numbers_is_an_error_before_training(run, overrides, message):
    code, directory, _, stderr = run(*overrides, **PLAIN)
    assert code == 2
    assert message in stderr
    assert not (directory / "config.yaml").exists()


def test_a_network_for_sequences_takes_no_images(run):
    code, _, _, stderr = run("model=digitsum_lstm", params="params/digits/plain.yaml")
    assert code == 2
    assert "the model does not fit the dataset, with inputs of [1, 8, 8]" in stderr
