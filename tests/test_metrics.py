"""What is measured, against values worked out by hand on a few samples."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets.base import Batch
from losses.task import cross_entropy, mse
from utils.detection import (
    easy_hard_incorrect,
    flag,
    measure_detection,
    measure_learning,
    sample_table,
    top_half,
)
from utils.evaluation import in_a_table, prediction_table
from utils.metrics import METRICS, accuracy, mae
from utils.training_record import TrainingRecord

DETECTION = (
    "auroc",
    "average_precision",
    "hard_vs_incorrect_auroc",
    "memorised_fraction",
    "flag_precision",
    "flag_recall",
)


def mask_of(*rows, length=8):
    """A mask of that length that is True in these rows."""
    mask = np.zeros(length, bool)
    mask[list(rows)] = True
    return mask


def test_accuracy_and_mean_absolute_error():
    logits = torch.tensor(
        [[2.0, 1, 0], [0, 1, 2], [0, 3, 1], [5, 4, 3], [-3, -2, -1], [0.1, 0.3, 0.2]]
    )
    percent = accuracy(logits, torch.tensor([0, 2, 0, 1, 2, 1]))
    assert percent.tolist() == [100, 100, 0, 0, 100, 100]
    prediction = torch.tensor([1.0, -2, 3, 0, 0.5, -0.5])
    target = torch.tensor([3.0, -2, 2, 1, 0, 0.5])
    errors = [2, 0, 1, 1, 0.5, 1]
    assert mae(prediction, target).tolist() == errors
    assert mae(prediction[:, None], target).tolist() == errors


def test_hard_is_correct_with_a_loss_in_the_top_half():
    loss = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    groups = easy_hard_incorrect(loss, mask_of(1, 6, 7))
    assert {name: np.flatnonzero(mask).tolist() for name, mask in groups.items()} == {
        "easy": [0, 2, 3],
        "hard": [4, 5],
        "incorrect": [1, 6, 7],
    }


@pytest.fixture
def table():
    """Labels 1, 5 and 7 are incorrect; 4 to 7 have the top half of the losses."""
    return {
        "true": np.array([0, 1, 2, 0, 1, 2, 0, 1]),
        "given": np.array([0, 2, 2, 0, 1, 0, 0, 0]),
        "predicted": np.array([0, 2, 2, 1, 1, 0, 2, 1]),
        "flagged": mask_of(3, 7),
        "loss": np.array([0.1, 0.2, 0.3, 0.4, 1, 2, 3, 4]),
        "score": np.array([0.1, 0.6, 0.2, 0.7, 0.3, 0.5, 0.55, 0.8]),
    }


def test_detection_of_incorrect_labels(table):
    expected = {
        # of the 3 * 5 pairs, those with the incorrect label above the correct one: 4 + 3 + 5
        "auroc": 12 / 15,
        # the incorrect labels are 1st, 3rd and 5th by score
        "average_precision": (1 / 1 + 2 / 3 + 3 / 5) / 3,
        # 0.5 and 0.8 against 0.3 and 0.55
        "hard_vs_incorrect_auroc": 3 / 4,
        "memorised_fraction": 2 / 3,
        "flag_precision": 1 / 2,
        "flag_recall": 1 / 3,
    }
    assert measure_detection(table) == pytest.approx(expected)


def test_detection_with_nothing_flagged_or_nothing_to_tell_apart_in_the_top_half(table):
    measured = measure_detection(table | {"flagged": mask_of()})
    assert (measured["flag_precision"], measured["flag_recall"]) == (0, 0)
    top_half_1_5_6_7 = np.array([1, 5.0, 2, 3, 4, 6, 4.5, 7])
    measured = measure_detection(table | {"loss": top_half_1_5_6_7})
    # 0.6 and 0.8 are above 0.55, 0.5 is not
    assert measured["hard_vs_incorrect_auroc"] == pytest.approx(2 / 3)
    incorrect_4_to_7 = np.array([0, 1, 2, 0, 2, 0, 1, 0])
    measured = measure_detection(table | {"given": incorrect_4_to_7})
    assert measured["hard_vs_incorrect_auroc"] is None
    assert measured["auroc"] is not None


def test_detection_is_none_if_it_cannot_be_measured(table):
    nothing = dict.fromkeys(DETECTION)
    assert measure_detection(table | {"true": np.full(8, -1)}) == nothing
    assert measure_detection(table | {"given": table["true"]}) == nothing
    assert measure_detection(table | {"given": (table["true"] + 1) % 3}) == nothing


def test_flag_marks_the_upper_of_two_groups():
    score = np.array([0.12, 0.9, 0.1, 0.14, 0.94, 0.11, 0.13, 0.92, 0.1, 0.12])
    assert np.flatnonzero(flag(score)).tolist() == [1, 4, 7]
    assert not flag(np.full(8, 0.3)).any()


def test_samples_are_tabled_by_index():
    index = torch.tensor([3, 0, 5, 1, 4, 2])
    target = torch.tensor([1, 0, 1, 1, 0, 0])
    margin = torch.tensor([3.0, 0, 5, -1, 4, 2])  # of class 1 over class 0
    output = torch.stack([torch.zeros(6), margin], 1)
    trained = prediction_table(*in_a_table(cross_entropy)(output, target), index)
    assert trained["target"].tolist() == [0, 1, 0, 1, 0, 1]

    true = np.array([0, 0, 0, 1, 1, -1])
    mean_loss = np.array([0.1, 0.11, 0.12, 0.9, 0.91, 0.1], np.float32)
    table = sample_table(trained, true, scores={"mean_loss": mean_loss}, score=mean_loss)
    assert table["index"].tolist() == [0, 1, 2, 3, 4, 5]
    assert table["given"].tolist() == [0, 1, 0, 1, 0, 1]
    assert table["true"].tolist() == [0, 0, 0, 1, 1, -1]
    assert table["predicted"].tolist() == [0, 0, 1, 1, 1, 1]
    margins_of_the_wrong_class = (0, 1, 2, -3, 4, -5)
    by_hand = [math.log1p(math.exp(margin)) for margin in margins_of_the_wrong_class]
    assert table["loss"].tolist() == pytest.approx(by_hand, rel=1e-5)
    assert table["mean_loss"].tolist() == table["score"].tolist() == mean_loss.tolist()
    assert np.flatnonzero(table["flagged"]).tolist() == [3, 4]

    score = mean_loss[::-1]  # if a method keeps a score, it is used instead
    table = sample_table(trained, true, scores={"mean_loss": mean_loss}, score=score)
    assert table["score"].tolist() == score.tolist()
    assert table["mean_loss"].tolist() == mean_loss.tolist()
    assert np.flatnonzero(table["flagged"]).tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_of_a_regression_the_prediction_itself_is_tabled(shape):
    index = torch.tensor([3, 0, 5, 1, 4, 2])
    output = torch.tensor([3.5, 0.5, 5.5, 1.5, 4.5, 2.5]).reshape(shape)
    trained = prediction_table(*in_a_table(mse)(output, index.float() - 1), index)
    loss = np.arange(6.0)
    table = sample_table(trained, np.full(6, -1), scores={"mean_loss": loss}, score=loss)
    assert table["predicted"].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert table["given"].tolist() == [-1, 0, 1, 2, 3, 4]
    assert table["loss"].tolist() == [2.25] * 6


# Eight of ten samples are trained on, in two steps of different sizes; labels 1, 6 and 7 are
# incorrect. The error of a sample is its row + 1, and the loss is the square of that, so that 4, 5,
# 6 and 7 are the top half. Samples 2, 5, 6 and 7 have a weight of 1/2.
STEPS = [[5, 0, 3, 6, 1], [7, 2, 4]]
LOADER = SimpleNamespace(rows_of=lambda step: STEPS[step])
ERRORS = torch.tensor([1.0, -2, 3, 4, -5, 6, 7, -8, 100, 100])
WEIGHTS = torch.tensor([1, 1, 0.5, 1, 1, 0.5, 0.5, 0.5, 1, 1])
CORRUPTED = mask_of(1, 6, 7, length=10)


def new_record():
    return TrainingRecord(10, mse, METRICS["mae"], torch.device("cpu"))


def take_step(record, step, errors=ERRORS, with_output=True, shape=(-1, 1)):
    """What the training loop does with a batch, without a model."""
    index = torch.tensor(STEPS[step])
    batch = Batch(torch.zeros(len(index), 1), torch.full((len(index),), 20.0), index)
    output = (20 + errors[index]).reshape(shape).requires_grad_()
    output = output * 1.0  # like the output of a model, it is not a leaf
    output.retain_grad()
    loss = (WEIGHTS[index] * mse(output, batch.target)).mean()
    loss.backward()
    record.update(step, loss, batch, (output, batch.target, batch.index) if with_output else None)


def finish_epoch(record, corrupted, seconds=1.0):
    """The row of an epoch whose steps have been taken."""
    record.check(0, LOADER)
    record.seconds = seconds
    return record.end_epoch(corrupted)


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_an_epoch_in_numbers(shape):
    record = new_record()
    for factor in (2, 1):  # of the first epoch only the sum of losses is kept
        record.start(0, lr=0.1)
        for step in range(2):
            take_step(record, step, ERRORS * factor, shape=shape)
        row = finish_epoch(record, CORRUPTED, seconds=2.0)
    expected = {
        "lr": 0.1,
        "train_loss": (1 + 4 + 9 / 2 + 16 + 25 + 36 / 2 + 49 / 2 + 64 / 2) / 8,
        "train_metric": 4.5,
        "seconds": 2,
        "images_per_second": 4,
        "weight_easy": (1 + 3 / 2 + 4) / (1 + 3 + 4),
        "weight_hard": (5 + 6 / 2) / (5 + 6),
        "weight_incorrect": (2 + 7 / 2 + 8 / 2) / (2 + 7 + 8),
        "mass_incorrect": 9.5 / (6.5 + 8 + 9.5),
    }
    assert row == pytest.approx(expected, rel=1e-5)
    squares = [1, 4, 9, 16, 25, 36, 49, 64, 0, 0]
    assert record.samples["loss"].tolist() == squares  # of the task, not of the method
    assert record.samples["loss_total"].tolist() == [5 * square for square in squares]


def test_an_epoch_that_is_a_part_of_a_pass_counts_what_it_has_seen():
    record = new_record()
    for step in range(2):
        record.start(0, lr=0.1)
        take_step(record, step)
        row = finish_epoch(record, CORRUPTED)
        assert row["train_metric"] == pytest.approx(ERRORS[STEPS[step]].abs().mean().item())
    assert row["weight_incorrect"] == pytest.approx(0.5)
    assert record.mean_loss(1)[:8].tolist() == ERRORS[:8].square().tolist()


def test_how_often_the_record_is_checked_changes_nothing():
    rows = []
    for every_step in (True, False):
        record = new_record()
        record.start(0, lr=0.1)
        for step in range(2):
            take_step(record, step)
            if every_step:
                record.check(0, LOADER)
        rows.append(finish_epoch(record, CORRUPTED))
    assert rows[0] == pytest.approx(rows[1], rel=1e-6)


def test_cross_entropy_has_a_weight_of_1_on_samples_that_it_has_fitted_to_the_last_digit():
    """Their loss is 1e-7 or less: in float32 the gradient can no longer be derived from it."""
    logits = torch.zeros(64, 10)
    logits[:, 0] = torch.linspace(16, 20, 64)
    index = torch.arange(64)
    target = torch.zeros(64, dtype=torch.int64)
    record = TrainingRecord(64, cross_entropy, METRICS["accuracy"], torch.device("cpu"))
    record.start(0, lr=0.1)
    output = logits.requires_grad_() * 1.0
    output.retain_grad()
    loss = cross_entropy(output, target).mean()
    loss.backward()
    record.update(0, loss, Batch(torch.zeros(64, 1), target, index), (output, target, index))
    row = finish_epoch(record, mask_of(1, length=64))
    for group in ("easy", "hard", "incorrect"):
        assert row[f"weight_{group}"] == pytest.approx(1, rel=1e-5)


def test_the_top_half_is_half_also_if_most_losses_tie():
    loss = np.zeros(101)
    loss[90:] = np.linspace(1, 2, 11)
    top = top_half(loss)
    assert top.sum() == 51
    assert top[90:].all()
    assert 10 < top[:45].sum() < 30  # of the tied ones, neither the first nor the last
    assert np.array_equal(top, top_half(loss))
    assert top_half(np.array([3.0, 1, 2, 5])).tolist() == [True, False, False, True]


def test_there_are_no_weights_if_they_are_not_known():
    for with_output, corrupted in ((False, CORRUPTED), (True, None)):
        record = new_record()
        record.start(0, lr=0.1)
        for step in range(2):
            take_step(record, step, with_output=with_output)
        row = finish_epoch(record, corrupted)
        assert row["train_loss"] == pytest.approx(15.625)
        for group in ("easy", "hard", "incorrect"):
            assert math.isnan(row.get(f"weight_{group}", math.nan))


def test_the_record_goes_on_from_its_state():
    original, restored = new_record(), new_record()
    original.start(0, lr=0.1)
    take_step(original, 0)
    original.check(0, LOADER)
    original.seconds = 1.5
    restored.load_state_dict(copy.deepcopy(original.state_dict()))
    results = []
    for record in (original, restored):
        take_step(record, 1)
        record.check(0, LOADER)
        row = record.end_epoch(CORRUPTED)
        samples = {name: values.tolist() for name, values in record.samples.items()}
        results.append((row, samples))
    assert results[0] == results[1]
    restored_row, _ = results[1]
    assert restored_row["train_loss"] == pytest.approx(15.625)
    assert restored_row["seconds"] == 1.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_loss_that_is_not_finite_is_named(value):
    record = new_record()
    errors = ERRORS.clone()
    errors[7] = value
    record.start(0, lr=0.1)
    for step in range(2):
        take_step(record, step, errors)
    with pytest.raises(FloatingPointError, match=r"epoch 3, step 1; samples 7\."):
        record.check(3, LOADER)


@pytest.mark.parametrize("numbers", [False, True])
def test_a_network_that_has_learned_nothing_is_told_from_one_that_has(numbers):
    generator = np.random.default_rng(1)
    given = generator.integers(0, 5, 600)
    wrong = np.arange(600) < 100
    true = np.where(wrong, (given + 1) % 5, given)
    kind = float if numbers else int
    table = {"given": given.astype(kind), "true": true.astype(kind)}

    def learning(predicted, score):
        return measure_learning(table | {"predicted": predicted.astype(kind), "score": score})

    suspicious = wrong + generator.normal(0, 0.3, 600)
    learned = learning(np.where(generator.random(600) < 0.3, true, given[::-1]), suspicious)
    assert learned["warning"] is None and learned["p_value"] == 1 / 200
    assert learned["order_p_value"] < 1e-10
    # one class for all, and predictions that have nothing to do with the samples
    for predicted in (np.zeros(600), generator.permutation(given)):
        nothing = learning(predicted, suspicious)
        assert nothing["agreement"] < 0.05
        assert "no better than chance" in nothing["warning"]
        assert "learned nothing" in nothing["warning"]
    for score in (generator.random(600), -suspicious, np.zeros(600)):
        assert "order of the suspects" in learning(given, score)["warning"]
    unread = np.where(np.arange(600) == 7, np.nan, -suspicious)
    assert "order of the suspects" in learning(given, unread)["warning"]
    # few wrong labels at the head do not tell an order from chance, and do not speak against it
    table["true"] = np.where(np.arange(600) == 0, true, given).astype(kind)
    one = learning(given, np.where(np.arange(600) < 20, 1.0, generator.random(600) / 2))
    assert one["order_p_value"] > 0.01 and one["warning"] is None
    table["true"] = np.full(600, np.nan) if numbers else np.full(600, -1)  # not known
    unknown = learning(given, generator.random(600))
    assert unknown["order_p_value"] is None and unknown["warning"] is None


def test_agreement_is_kappa():
    from sklearn.metrics import cohen_kappa_score

    given, predicted = np.array([0, 0, 1, 2, 7, 7, 1]), np.array([0, 1, 1, 2, 7, 0, 3])
    table = {"given": given, "true": given, "predicted": predicted, "score": np.arange(7.0)}
    agreement = measure_learning(table)["agreement"]
    assert agreement == pytest.approx(cohen_kappa_score(given, predicted))
