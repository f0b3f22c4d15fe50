"""Scores of suspicious labels: by hand, by a naive loop, and as a run leaves them."""

import itertools
import json

import numpy as np
import pytest
import torch

from utils import scores
from utils.checkpoint import StopRequest
from utils.detection import merge, without_training
from utils.training_dynamics import TrainingDynamics, margins


def test_margins_are_the_given_logit_minus_the_largest_other():
    output = torch.tensor([[2.0, 5.0, 1.0], [2.0, 5.0, 1.0], [3.0, 3.0, 0.0]])
    assert margins(output, torch.tensor([1, 0, 0])).tolist() == [3, -3, 0]
    soft = torch.tensor([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0, 0, 1.0]])
    assert margins(output, soft).tolist() == [-4, -3, -3]


@pytest.fixture(scope="module")
def history():
    """Outputs [E, N, C] and targets [N] of 6 epochs and 20 samples."""
    generator = torch.Generator().manual_seed(0)
    output = 3 * torch.randn(6, 20, 4, generator=generator)
    target = torch.randint(4, (20,), generator=generator)
    output[:, 0, target[0]] = 9  # always predicted
    output[:, 1, target[1]] = -9  # never
    return output, target


def naive(output, target):
    """The definitions, a sample and an epoch at a time."""
    found = {name: [] for name in scores.IN_TRAINING if name != "mean_loss"}
    for row, label in enumerate(target.tolist()):
        chances, correct, gaps = [], [], []
        for logits in output[:, row].double():
            others = [value for number, value in enumerate(logits.tolist()) if number != label]
            gaps.append(logits[label].item() - max(others))
            chances.append(logits.softmax(0)[label].item())
            correct.append(gaps[-1] > 0)
        forgotten = sum(now and not then for now, then in itertools.pairwise(correct))
        found["aum"].append(np.mean(gaps))
        found["confidence"].append(np.mean(chances))
        found["variability"].append(np.std(chances))
        found["correctness"].append(np.mean(correct))
        found["aleatoric"].append(np.mean([p * (1 - p) for p in chances]))
        found["forgetting"].append(forgotten if any(correct) else len(correct))
    return found


def test_what_is_kept_in_training_is_what_a_loop_over_all_epochs_gives(history):
    output, target = history
    dynamics, generator = TrainingDynamics(21, "cpu"), torch.Generator().manual_seed(1)
    for logits in output:
        for index in torch.randperm(20, generator=generator).split(8):
            dynamics.update(logits[index], target[index], index)
    kept, expected = dynamics.scores(), naive(output, target)
    assert kept.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(kept[name][:20], values, rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.isnan(kept[name][20])  # never trained on
    assert kept["forgetting"][0] == 0 and kept["forgetting"][1] == 6


def test_recordings_give_the_same_scores(history, monkeypatch):
    output, target = history
    losses = np.stack(
        [torch.nn.functional.cross_entropy(part, target, reduction="none") for part in output]
    )
    gaps = np.stack([margins(part, target) for part in output])
    made = scores.recorded(losses, gaps)
    assert tuple(made) == scores.RECORDED
    np.testing.assert_allclose(made["mean_loss_recorded"], losses.mean(0), rtol=1e-5)
    for name, values in naive(output, target).items():
        np.testing.assert_allclose(made[f"{name}_recorded"], values, rtol=1e-4, atol=1e-5)
    losses[2:, 5], losses[:, 6], gaps[2:, 5], gaps[:, 6] = (np.nan,) * 4  # could not be read
    made = scores.recorded(losses, gaps)
    with monkeypatch.context() as patched:
        patched.setattr(scores, "BLOCK", 6)
        for name, values in scores.recorded(losses, gaps).items():
            np.testing.assert_array_equal(values, made[name], err_msg=name)
    assert made["aum_recorded"][5] == pytest.approx(gaps[:2, 5].mean())
    assert all(np.isnan(values[6]) for values in made.values())
    assert list(scores.recorded(losses, None)) == ["mean_loss_recorded"]


def test_confident_learning_is_the_off_diagonal_of_the_joint():
    """Thresholds: class 0 mean(0.9, 0.5, 0.1) = 0.5; class 1 mean(0.8, 0.6) = 0.7."""
    first = np.array([0.9, 0.5, 0.1, 0.2, 0.4])
    chances = np.stack([first, 1 - first], 1).astype(np.float32)
    made = scores.out_of_sample(chances, np.array([0, 0, 0, 1, 1]))
    assert made["confident_learning"].tolist() == [0, 0, 1, 0, 0]  # 0.9 of class 1, given 0
    np.testing.assert_allclose(made["self_confidence"], [0.9, 0.5, 0.1, 0.8, 0.6], rtol=1e-6)
    np.testing.assert_allclose(made["normalised_margin"], [0.8, 0, -0.8, 0.6, 0.2], atol=1e-6)
    order = np.argsort(-scores.suspicion("confident_learning", made))
    assert order.tolist() == [2, 1, 4, 3, 0]


def test_out_of_sample_scores_are_those_of_cleanlab():
    from cleanlab import filter as filters
    from cleanlab import rank

    generator = np.random.default_rng(0)
    chances = generator.dirichlet([0.6] * 5, 400)
    given = np.array([generator.choice(5, p=row) for row in chances])
    made = scores.out_of_sample(chances.astype(np.float32), given)
    for name, theirs in (("self_confidence", 1), ("normalised_margin", 2)):
        expected = rank.get_label_quality_scores(
            given, chances, method=name.replace("normalised", "normalized")
        )
        # theirs of the margin is in [0, 1]
        ours = made[name] if theirs == 1 else (made[name] + 1) / 2
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    issues = filters.find_label_issues(given, chances, filter_by="confident_learning")
    np.testing.assert_array_equal(made["confident_learning"].astype(bool), issues)


def test_larger_suspicion_is_worse():
    values = {name: np.array([0.0, 1.0]) for name in scores.NAMES}
    assert scores.suspicion("confident_learning", values).tolist() == [1, 1]
    del values["confident_learning"]
    worst = {name: int(scores.suspicion(name, values).argmax()) for name in values}
    assert {name for name, row in worst.items() if row == 0} == {
        *("aum", "confidence", "correctness", "self_confidence", "normalised_margin"),
        *("aum_recorded", "confidence_recorded", "correctness_recorded"),
    }


def test_quality_is_the_part_that_is_more_suspicious():
    share = scores.quality(np.array([5.0, 1.0, 3.0, 1.0, np.nan]))
    np.testing.assert_allclose(share[:4], [0.125, 0.75, 0.375, 0.75])
    assert np.isnan(share[4])


def test_parts_are_merged_by_quality():
    def part(losses):
        losses = np.array(losses, np.float32)
        count = np.arange(len(losses))
        return without_training(
            {"index": count, "target": count, "loss": losses, "predicted": count}
        )

    table = merge({"train": part([0.1, 3.0]), "test": part([1.0, 4.0, 0.2, 0.3])})
    assert table["part"].tolist() == ["test", "train", "test", "test", "train", "test"]
    assert table["index"].tolist() == [1, 1, 0, 3, 0, 2]
    assert (np.diff(table["quality"]) > 0).all() and (table["true"] == -1).all()


@pytest.mark.parametrize("name", ["aum", "confidence_recorded"])
def test_a_score_chosen_by_name_ranks_the_samples(run, name):
    code, directory, *_ = run(f"score={name}", "record_losses=true", "noise.fraction=0.2")
    assert code == 0
    samples = dict(np.load(directory / "samples.npz"))
    np.testing.assert_array_equal(samples["score"], -samples[name])
    assert set(scores.IN_TRAINING + scores.RECORDED) <= samples.keys()
    recorded = np.load(directory / "margins.npy")
    assert recorded.shape == (3, 1297)
    np.testing.assert_allclose(samples["aum_recorded"], recorded.mean(0), rtol=1e-5, atol=1e-5)
    auroc = json.loads((directory / "summary.json").read_text())["detection"]["auroc"]
    assert auroc > 0.7


@pytest.mark.parametrize(
    "options, message",
    [
        (["score=self_confidence"], "run the folds with examples/folds.sbatch"),
        (["score=aum_recorded"], "set record_losses=true"),
        (
            ["score=aum", "trusted.count=50", "trusted.train=only"],
            "take mean_loss, or aum_recorded with record_losses=true",
        ),
        (["score=entropy"], "must be one of mean_loss, aum,"),
    ],
)
def test_a_score_that_cannot_be_had_is_refused(run, options, message):
    code, directory, _, complaint = run(*options)
    assert code == 2 and message in complaint and not directory.exists()


def test_scores_survive_an_interruption(run, monkeypatch):
    """The sums are in the checkpoint: a run in two parts has the scores of one in a single part."""
    _, whole, *_ = run("noise.fraction=0.2", name="whole")
    calls = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "agreed", lambda self: "SIGTERM" if next(calls) >= 15 else None)
        code, broken, *_ = run("noise.fraction=0.2", name="broken")
    assert code == 75
    assert run("noise.fraction=0.2", name="broken")[0] == 0
    first, second = (dict(np.load(path / "samples.npz")) for path in (whole, broken))
    for name in scores.IN_TRAINING:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
