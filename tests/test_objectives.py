"""The contract of every Objective in losses.__all__, and the doors that a method may ask for."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import experiment
import losses
import main
from datasets.base import Batch
from losses.base import Objective
from losses.task import cross_entropy
from models.several import Several, build_several
from tests import toy_methods
from tests.test_run import arrays, assert_same_arrays, equal, interrupt_at, weights
from tests.toy_methods import ALL
from utils.build import build
from utils.run_state import read_summary

N, C, B, FEATURES = 40, 5, 8, 3
PLAIN = {"params": "params/digits/plain.yaml"}
OBJECTIVES = [name for name in ALL.__all__ if issubclass(getattr(ALL, name), Objective)]
TOYS = {  # the overrides that each needs besides its name
    "ToyTwoNetworks": [],
    "ToyTrusted": ["trusted.count=50"],
    "ToyRelabelling": [],
    "ToyOwnParameters": ["loss.lr=0.01"],
    "ToyDropping": [],
}


@pytest.fixture
def toys():
    """Configurations may name the toy methods."""
    with toy_methods.registered():
        yield


def make(name):
    """The objective of that name, and the model that experiment.py would build for it."""
    torch.manual_seed(0)
    model = build_several(lambda: torch.nn.Linear(FEATURES, C), getattr(ALL, name).networks)
    objective = build(
        ALL,
        {"name": name},
        task_loss=cross_entropy,
        num_samples=N,
        num_outputs=C,
        given=torch.arange(N) % C,
        trusted_labels=torch.arange(N) % C,
        verified=torch.arange(N) % 3 - 1,
        noise_rate=0.4,
        noise_transition=torch.eye(C).double(),
        model=model,
        epochs=5,
        steps_per_epoch=5,
    )
    return objective, model


def batches(objective, count, seed=0):
    """Batches with the second stream that the objective asks for."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        extra = None
        if objective.unlabelled:
            views = torch.randn(objective.unlabelled["num_views"], B, FEATURES, generator=generator)
            extra = Batch(views, None, torch.arange(B))
        elif objective.trusted_batch_size:
            size = objective.trusted_batch_size
            inputs = torch.randn(size, FEATURES, generator=generator)
            target = torch.randint(C, (size,), generator=generator)
            extra = Batch(inputs, target, torch.arange(size))
        inputs = torch.randn(B, FEATURES, generator=generator)
        target = torch.randint(C, (B,), generator=generator)
        yield Batch(inputs, target, torch.randperm(N, generator=generator)[:B], extra)


def state(objective):
    return {key: value.clone() for key, value in objective.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


def train(objective, model, steps, seed=0):
    """Take steps of SGD; returns the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = []
    for batch in batches(objective, steps, seed):
        loss = objective(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(model)
        values.append(loss.item())
    return values


@pytest.mark.parametrize("name", OBJECTIVES)
class TestContract:
    def test_a_number_with_a_gradient(self, name):
        objective, model = make(name)
        for batch in batches(objective, 3):
            loss = objective(model, batch)
            assert loss.shape == ()
            assert loss.isfinite()
            model.zero_grad()
            loss.backward()
            assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
            assert any(parameter.grad.any() for parameter in model.parameters())

    def test_scored_holds_outputs_with_their_gradient(self, name):
        objective, model = make(name)
        for batch in batches(objective, 2):
            objective(model, batch).backward()
            if objective.scored is not None:
                output, target, index = objective.scored
                assert output.shape == (B, C)
                assert output.grad.shape == (B, C)
                assert torch.equal(target, batch.target)
                assert torch.equal(index, batch.index)

    def test_evaluation_changes_nothing(self, name):
        objective, model = make(name)
        train(objective, model, 3)
        before = state(objective)
        objective.eval()
        for batch in batches(objective, 2, seed=1):
            objective(model, batch)
        objective.evaluated(model)
        assert same(before, state(objective))

    def test_an_epoch_may_be_set_twice(self, name):
        objective, model = make(name)
        train(objective, model, 3)
        before = state(objective)
        for epoch in (0, 1, 1):
            objective.set_epoch(epoch)
        assert same(before, state(objective))

    def test_a_restored_state_goes_on_bit_identically(self, name):
        objective, model = make(name)
        train(objective, model, 4)
        restored, restored_model = make(name)
        restored.load_state_dict(objective.state_dict())
        restored_model.load_state_dict(model.state_dict())
        objective.set_epoch(1)
        restored.set_epoch(1)
        torch.manual_seed(3)
        expected = train(objective, model, 3, seed=2)
        torch.manual_seed(3)
        assert train(restored, restored_model, 3, seed=2) == expected
        assert same(state(objective), state(restored))
        assert same(model.state_dict(), restored_model.state_dict())

    def test_what_it_evaluates_gives_one_output_per_sample(self, name):
        objective, model = make(name)
        train(objective, model, 2)
        evaluated = objective.evaluated(model).eval()
        assert evaluated(torch.randn(B, FEATURES)).shape == (B, C)

    def test_bfloat16_gives_a_loss_near_that_of_float32(self, name):
        values = []
        for dtype in (torch.float32, torch.bfloat16):
            objective, model = make(name)
            torch.manual_seed(3)
            batch = next(batches(objective, 1))
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                loss = objective(model, batch)
            assert loss.dtype == torch.float32
            loss.backward()
            values.append(loss.item())
        assert values[0] == pytest.approx(values[1], rel=0.02, abs=0.02)

    def test_the_score_and_the_labels_number_every_sample_or_are_none(self, name):
        objective, _ = make(name)
        score, labels = objective.sample_score(), objective.labels()
        assert score is None or score.shape == (N,)
        assert labels is None or labels.shape in ((N,), (N, C))


@pytest.mark.parametrize("name", TOYS)
def test_resume_equals_no_interruption(run, toys, monkeypatch, name):
    """Interrupted in the middle of an epoch, at its end, and in the last one."""
    overrides = [f"loss={name}", *TOYS[name]]
    code, whole, _, stderr = run(*overrides, **PLAIN, name="whole")
    assert code == 0, stderr
    for step in (3, 7, 10):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            code, broken, *_ = run(*overrides, **PLAIN)
            assert code == main.INTERRUPTED
    code, *_ = run(*overrides, **PLAIN)
    assert code == 0
    assert equal(weights(whole), weights(broken))
    assert_same_arrays(whole / "samples.npz", broken / "samples.npz")


def test_two_networks_begin_apart_and_the_first_as_it_would_alone(run, toys):
    barely_trained = ["epochs=1", "optimizer.lr=1e-12"]
    _, both, *_ = run("loss=ToyTwoNetworks", *barely_trained, **PLAIN)
    _, alone, *_ = run(*barely_trained, **PLAIN, name="alone")
    two_networks = weights(both)["model"]
    single_network = weights(alone)["model"]
    assert len(two_networks) == 2 * len(single_network)
    for key, value in single_network.items():
        torch.testing.assert_close(two_networks[f"networks.0.{key}"], value, rtol=0, atol=1e-9)
        assert value.ndim == 0 or not torch.equal(two_networks[f"networks.1.{key}"], value)


def test_another_model_on_the_command_line_keeps_the_second_network(run, toys):
    small = ["model=resnet18", "epochs=1", "batch_size=512", "chunk_steps=1"]
    code, directory, *_ = run("loss=ToyTwoNetworks", *small, **PLAIN)
    assert code == 0
    networks = {key.split(".")[1] for key in weights(directory)["model"]}
    assert networks == {"0", "1"}


def test_the_output_of_several_networks():
    inputs = torch.randn(B, FEATURES)
    networks = [torch.nn.Linear(FEATURES, C) for _ in range(2)]
    first, second = (network(inputs) for network in networks)
    mean_probability = (first.softmax(1) + second.softmax(1)) / 2
    for evaluate, expected in (("first", first.softmax(1)), ("mean", mean_probability)):
        several = Several(networks, evaluate=evaluate)
        assert torch.equal(several(inputs), torch.stack([first, second], 1))
        torch.testing.assert_close(several.eval()(inputs).softmax(1), expected)
    regression = Several([torch.nn.Linear(FEATURES, 1) for _ in range(2)], evaluate="mean").eval()
    expected = sum(network(inputs) for network in regression.networks) / 2
    torch.testing.assert_close(regression(inputs), expected)


def test_work_between_epochs_is_done_once_an_epoch(run, toys, monkeypatch):
    overrides = ["loss=ToyRelabelling", "epochs=4"]
    for step in (10, 10):  # before the checkpoint of the first epoch, and after it
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            run(*overrides, **PLAIN)
    code, directory, *_ = run(*overrides, **PLAIN)
    assert code == 0
    assert weights(directory)["objective"]["loss.calls"] == 4


@pytest.fixture
def facts(run, toys, monkeypatch):
    """facts(*overrides) -> the arguments that a run gives to a method that asks for all facts."""
    seen = {}

    class Asks(toy_methods.ToyRelabelling):
        takes_soft_targets = True

        def __init__(
            self,
            task_loss,
            num_samples: int,
            num_outputs: int,
            given: torch.Tensor,
            noise_rate: float | None,
            noise_transition: torch.Tensor | None,
            epochs: int,
            steps_per_epoch: float,
        ):
            rate = noise_rate
            seen.update(rate=rate, transition=noise_transition, epochs=epochs)
            seen.update(steps=steps_per_epoch)
            super().__init__(task_loss, num_samples, num_outputs, given, rate, epochs, 1)

    monkeypatch.setattr(losses, "ToyRelabelling", Asks)

    def call(*overrides, name="asks"):
        code, directory, _, complaints = run("loss=ToyRelabelling", *overrides, **PLAIN, name=name)
        assert code == 0, complaints
        return SimpleNamespace(**seen, directory=directory)

    return call


def test_an_epoch_of_a_method_is_a_chunk_if_a_pass_is_divided(facts):
    """1,297 samples in batches of 100 are 13 steps, or chunks of 5, 5 and 3."""
    whole = facts("epochs=2", "batch_size=100")
    assert (whole.epochs, whole.steps) == (2, 13)
    chunks = facts("epochs=2", "batch_size=100", "chunk_steps=5", name="chunks")
    assert chunks.epochs == 6 and chunks.epochs * chunks.steps == pytest.approx(2 * 13)
    assert weights(chunks.directory)["objective"]["loss.calls"] == 6


def test_the_noise_rate_is_that_of_what_is_trained_on(facts, run):
    symmetric = ["noise.kind=symmetric", "noise.fraction=0.4", "epochs=4"]
    run("record_losses=true", "optimizer.lr=0.1", *symmetric, **PLAIN, name="recording")
    given = facts(*symmetric)
    assert given.rate == pytest.approx(0.4, abs=1e-3)

    history = given.directory.parent / "recording/losses.npy"
    selected = facts(*symmetric, f"dataset.selection={{history: {history}}}", name="selected")
    precision = read_summary(selected.directory)["selection"]["precision"]
    assert selected.rate == pytest.approx(1 - precision) and selected.rate < 0.3
    torch.testing.assert_close(selected.transition.sum(1), torch.ones(10).double())
    assert selected.transition.diagonal().mean() > given.transition.diagonal().mean() + 0.1

    # nobody knows how many wrong labels another run has left
    mended = facts(*symmetric, f"targets={given.directory}/labels.npz", name="mended")
    assert mended.rate == given.rate and torch.equal(mended.transition, given.transition)

    noise = np.load(given.directory / "noise.npz")
    wrong = noise["given"] != noise["true"]
    for train in ("false", "true", "given", "only"):
        options = ["trusted.count=100", f"trusted.train={train}"]
        some = facts(*symmetric, *options, name=f"trusted_{train}")
        trusted = np.load(some.directory / "noise.npz")["trusted"]
        others = np.delete(wrong, trusted)
        expected = {"false": others.mean(), "true": others.sum() / len(wrong)}
        expected |= {"given": wrong.mean(), "only": 0}
        assert some.rate == pytest.approx(expected[train]), train


def test_a_method_that_does_not_predict_between_epochs_pays_nothing(run, monkeypatch):
    passes = []

    def predict_training(self):
        passes.append(1)
        return 1, 1, 1

    monkeypatch.setattr(experiment.Experiment, "predict_training", predict_training)
    monkeypatch.setattr(experiment.Experiment, "finish", lambda self: None)
    assert run("loss=Plain")[0] == 0
    assert not passes
    monkeypatch.setattr(losses.Plain, "end_epoch", lambda self, predict: predict())
    assert run("loss=Plain", name="other")[0] == 0
    assert len(passes) == 3


def test_labels_of_a_run_are_what_another_one_trains_on(run, toys):
    code, first, *_ = run("loss=ToyRelabelling", "loss.momentum=0.0", "epochs=6", **PLAIN)
    assert code == 0
    noise = arrays(first / "noise.npz")
    labels = arrays(first / "labels.npz")["labels"]
    assert labels.shape == (1297, 10)
    accuracy = 100 * (labels.argmax(1) == noise["true"]).mean()
    assert read_summary(first)["recovery"]["accuracy"] == pytest.approx(accuracy)
    assert accuracy > 100 * (noise["given"] == noise["true"]).mean()

    targets = f"targets={first}/labels.npz"
    code, second, *_ = run(targets, **PLAIN, name="second")
    assert code == 0
    # suspects are still looked for among the given labels
    assert np.array_equal(arrays(second / "samples.npz")["given"], noise["given"])
    _, without, *_ = run(**PLAIN, name="without")
    assert not equal(weights(second)["model"], weights(without)["model"])

    true_labels = first / "true.npz"
    np.savez(true_labels, labels=noise["true"], given_sha256=noise["sha256"])
    short = ["epochs=3", "loss=GCE"]
    code, corrected, *_ = run(f"targets={true_labels}", *short, **PLAIN, name="corrected")
    _, clean, *_ = run("noise=none", *short, **PLAIN, name="clean")
    assert code == 0
    assert equal(weights(corrected)["model"], weights(clean)["model"])
    # what is incorrect among what is trained on, of which nothing is wrong here
    assert (pd.read_csv(corrected / "metrics.csv").mass_incorrect == 0).all()
    assert (pd.read_csv(second / "metrics.csv").mass_incorrect > 0).all()

    for overrides, message in (
        ([targets, "loss=GCE"], "GCE needs a class: use Plain, SuperLoss or DiscrimLoss"),
        ([targets, "noise.seed=5"], "made from other given labels"),
        (["targets=/nowhere.npz"], "there is no such file"),
    ):
        code, *_, stderr = run(*overrides, **PLAIN, name="refused")
        assert code == 2
        assert message in stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"labels": np.zeros(7)},
            r"holds labels \[7\].*\[1297\] or \[1297, 10\]: it is of another",
        ),
        ({"labels": np.full(1297, 10)}, r"class numbers in \[0, 10\)"),
        ({"labels": np.full(1297, 0.5)}, "class numbers"),
        ({"labels": np.full((1297, 10), 0.2)}, "rows >= 0 that sum to 1"),
        ({"labels": np.full((1297, 10), np.nan)}, "finite"),
        ({"labels": np.full(1297, "a")}, "finite numbers"),
        ({"other": np.zeros(3)}, "cannot be read as labels.npz"),
    ],
)
def test_a_file_of_labels_that_cannot_be_trained_on(run, tmp_path, content, message):
    _, directory, *_ = run("epochs=1", name="first")
    sha256 = arrays(directory / "noise.npz")["sha256"]
    np.savez(tmp_path / "labels.npz", **content, given_sha256=sha256)
    code, other, _, stderr = run(f"targets={tmp_path}/labels.npz")
    assert code == 2
    assert re.search(message, stderr), stderr
    assert not (other / "config.yaml").exists()


def test_trusted_samples_are_recorded_and_taken_off_the_training_rows(run, toys):
    method = "loss=ToyTrusted"
    code, directory, *_ = run(method, "trusted.count=50", "epochs=1", **PLAIN)
    assert code == 0
    noise = arrays(directory / "noise.npz")
    trusted = noise["trusted"]
    assert len(trusted) == 50
    assert np.bincount(noise["true"][trusted]).tolist() == [5] * 10
    index = arrays(directory / "samples.npz")["index"]
    assert len(index) == 1247
    assert not np.isin(index, trusted).any()
    code, *_, stderr = run(method, "epochs=1", name="none")
    assert code == 2
    assert "set trusted.count" in stderr


def test_own_parameters_train_at_their_own_rate(run, toys):
    method = "loss=ToyOwnParameters"
    code, directory, *_ = run(method, "loss.lr=0.05", **PLAIN)
    assert code == 0
    checkpoint = weights(directory)
    assert checkpoint["objective"]["loss.shift"].abs().sum() > 0
    assert [group["lr"] for group in checkpoint["optimizer"]["param_groups"]] == [0.1, 0.05]
    _, directory, *_ = run(method, **PLAIN, name="same_rate")
    checkpoint = weights(directory)
    assert [group["lr"] for group in checkpoint["optimizer"]["param_groups"]] == [0.1, 0.1]
    code, *_, stderr = run("loss.lr=0.05", **PLAIN, name="none")
    assert code == 2
    assert "Plain has none" in stderr
    code, *_, stderr = run(method, "loss.lr=-1", **PLAIN, name="negative")
    assert code == 2
    assert "loss.lr must be greater than 0" in stderr


def test_a_bug_in_a_method_keeps_its_traceback(run, toys, monkeypatch):
    def __init__(self, task_loss, num_samples):
        {}["history"]

    monkeypatch.setattr(toy_methods.ToyTwoNetworks, "__init__", __init__)
    with pytest.raises(KeyError, match="history"):
        run("loss=ToyTwoNetworks", **PLAIN)
