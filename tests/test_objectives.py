"""What every Objective promises, found through losses.__all__; and the doors that it may ask for."""

import json

import numpy as np
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
from tests.test_run import arrays, equal, interrupt_at, weights
from tests.toy_methods import ALL
from utils.build import build

N, C, B, FEATURES = 40, 5, 8, 3
OBJECTIVES = [name for name in ALL.__all__ if issubclass(getattr(ALL, name), Objective)]
TOYS = {  # what each needs besides its name
    "ToyTwoNetworks": [],
    "ToyTrusted": ["trusted.count=50"],
    "ToyRelabelling": [],
    "ToyOwnParameters": ["loss.lr=0.01"],
    "ToyDropping": [],
}


@pytest.fixture
def toys():
    """The toy methods, by name, for YAML and the command line."""
    with toy_methods.registered():
        yield


class Network(torch.nn.Module):
    """A linear network, or several as one, as experiment.py would build it."""

    def __new__(cls, networks=1):
        torch.manual_seed(0)
        return build_several(lambda: torch.nn.Linear(FEATURES, C), networks)


def make(name):
    """The objective of that name and its model."""
    model = Network(getattr(ALL, name).networks)
    objective = build(
        ALL,
        {"name": name},
        task_loss=cross_entropy,
        num_samples=N,
        num_outputs=C,
        given=torch.arange(N) % C,
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
            extra = Batch(
                inputs, torch.randint(C, (size,), generator=generator), torch.arange(size)
            )
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
    """Some steps of SGD; the losses."""
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
            assert loss.shape == () and loss.isfinite()
            model.zero_grad()
            loss.backward()
            assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
            assert any(parameter.grad.any() for parameter in model.parameters())

    def test_what_it_shows_are_outputs_with_their_gradient(self, name):
        objective, model = make(name)
        for batch in batches(objective, 2):
            objective(model, batch).backward()
            if objective.scored is not None:
                output, target, index = objective.scored
                assert output.shape == (B, C) and output.grad.shape == (B, C)
                assert torch.equal(target, batch.target) and torch.equal(index, batch.index)

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
        first, model = make(name)
        train(first, model, 4)
        second, copied = make(name)
        second.load_state_dict(first.state_dict())
        copied.load_state_dict(model.state_dict())
        losses_of_both = []
        for objective, network in ((first, model), (second, copied)):
            torch.manual_seed(3)
            losses_of_both.append(train(objective, network, 3, seed=2))
        assert losses_of_both[0] == losses_of_both[1] and same(state(first), state(second))
        assert same(model.state_dict(), copied.state_dict())

    def test_what_it_evaluates_gives_one_output_per_sample(self, name):
        objective, model = make(name)
        train(objective, model, 2)
        assert objective.evaluated(model).eval()(torch.randn(B, FEATURES)).shape == (B, C)

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


def last_checkpoint(directory):
    return weights(directory)["objective"]


@pytest.mark.parametrize("name", TOYS)
def test_resume_equals_no_interruption(run, toys, monkeypatch, name):
    """Killed in the middle of an epoch, at its end, and in the last one."""
    options = [f"loss={name}", *TOYS[name]]
    code, whole, _, complaints = run(*options, params="params/digits/plain.yaml", name="whole")
    assert code == 0, complaints
    for step in (3, 7, 10):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            code, broken, *_ = run(*options, params="params/digits/plain.yaml")
            assert code == main.INTERRUPTED
    code, *_ = run(*options, params="params/digits/plain.yaml")
    assert code == 0 and equal(weights(whole), weights(broken))
    first, second = arrays(whole / "samples.npz"), arrays(broken / "samples.npz")
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_two_networks_begin_apart_and_the_first_as_it_would_alone(run, toys):
    run("loss=ToyTwoNetworks", "epochs=1", "optimizer.lr=1e-12", params="params/digits/plain.yaml")
    *_, alone, _, _ = run(
        "epochs=1", "optimizer.lr=1e-12", params="params/digits/plain.yaml", name="a"
    )
    two = weights(alone.parent / "run")["model"]
    one = weights(alone)["model"]
    assert len(two) == 2 * len(one)
    for key, value in one.items():
        torch.testing.assert_close(two[f"networks.0.{key}"], value, rtol=0, atol=1e-9)
        assert value.ndim == 0 or not torch.equal(two[f"networks.1.{key}"], value)


def test_another_model_on_the_command_line_keeps_the_second_network(run, toys):
    code, directory, *_ = run(
        "loss=ToyTwoNetworks", "model=resnet18", "epochs=1", "batch_size=512", "chunk_steps=1",
        params="params/digits/plain.yaml",
    )  # fmt: skip
    assert code == 0
    keys = {key.split(".")[1] for key in weights(directory)["model"]}
    assert keys == {"0", "1"}


def test_the_output_of_several_networks():
    inputs = torch.randn(B, FEATURES)
    networks = [torch.nn.Linear(FEATURES, C) for _ in range(2)]
    first, second = (network(inputs) for network in networks)
    for evaluate, expected in (
        ("first", first.softmax(1)),
        ("mean", (first.softmax(1) + second.softmax(1)) / 2),
    ):
        several = Several(networks, evaluate=evaluate)
        assert torch.equal(several(inputs), torch.stack([first, second], 1))
        torch.testing.assert_close(several.eval()(inputs).softmax(1), expected)
    regression = Several([torch.nn.Linear(FEATURES, 1) for _ in range(2)], evaluate="mean").eval()
    expected = sum(network(inputs) for network in regression.networks) / 2
    torch.testing.assert_close(regression(inputs), expected)


def test_work_between_epochs_is_done_once_an_epoch(run, toys, monkeypatch):
    options = ["loss=ToyRelabelling", "epochs=4"]
    for step in (10, 10):  # before the checkpoint of the first epoch, and after it
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            run(*options, params="params/digits/plain.yaml")
    code, directory, *_ = run(*options, params="params/digits/plain.yaml")
    assert code == 0 and last_checkpoint(directory)["loss.calls"] == 4


def test_who_does_not_predict_between_epochs_pays_nothing(run, monkeypatch):
    passes = []
    monkeypatch.setattr(
        experiment.Experiment, "predict_training", lambda self: passes.append(1) or (1, 1, 1)
    )
    monkeypatch.setattr(experiment.Experiment, "finish", lambda self: None)
    assert run("loss=Plain")[0] == 0 and not passes
    monkeypatch.setattr(losses.Plain, "end_epoch", lambda self, predict: predict())
    assert run("loss=Plain", name="other")[0] == 0 and len(passes) == 3


def test_labels_of_a_run_are_what_another_one_trains_on(run, toys):
    plain = {"params": "params/digits/plain.yaml"}
    code, first, *_ = run("loss=ToyRelabelling", "loss.momentum=0.0", "epochs=6", **plain, name="a")
    summary, left = json.loads((first / "summary.json").read_text()), arrays(first / "labels.npz")
    noise = arrays(first / "noise.npz")
    recovery = 100 * (left["labels"].argmax(1) == noise["true"]).mean()
    assert code == 0 and left["labels"].shape == (1297, 10)
    assert summary["recovery"]["accuracy"] == pytest.approx(recovery)
    assert recovery > 100 * (noise["given"] == noise["true"]).mean()

    targets = f"targets={first}/labels.npz"
    code, second, *_ = run(targets, **plain, name="b")
    assert code == 0
    samples = arrays(second / "samples.npz")
    assert np.array_equal(samples["given"], noise["given"])  # suspects are given labels still
    assert not equal(weights(second)["model"], weights(run(**plain, name="c")[1])["model"])

    hard = first / "hard.npz"
    np.savez(hard, labels=noise["true"], given_sha256=noise["sha256"])
    code, mended, *_ = run(f"targets={hard}", "epochs=3", "loss=GCE", **plain, name="d")
    clean = run("noise=none", "epochs=3", "loss=GCE", **plain, name="e")[1]
    assert code == 0 and equal(weights(mended)["model"], weights(clean)["model"])

    code, *_, complaints = run(targets, "loss=GCE", **plain, name="f")
    assert code == 2 and "GCE needs a class: use Plain, SuperLoss or DiscrimLoss" in complaints
    code, *_, complaints = run(targets, "noise.seed=5", **plain, name="g")
    assert code == 2 and "made from other given labels" in complaints
    code, *_, complaints = run("targets=/nowhere.npz", **plain, name="h")
    assert code == 2 and "there is no such file" in complaints


@pytest.mark.parametrize(
    ("arrays_of_file", "message"),
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
def test_a_file_of_labels_that_cannot_be_trained_on(run, tmp_path, arrays_of_file, message):
    import re

    _, directory, *_ = run("epochs=1", name="first")
    sha256 = arrays(directory / "noise.npz")["sha256"]
    np.savez(tmp_path / "labels.npz", **arrays_of_file, given_sha256=sha256)
    code, other, _, complaints = run(f"targets={tmp_path}/labels.npz")
    assert code == 2 and re.search(message, complaints), complaints
    assert not (other / "config.yaml").exists()


def test_trusted_samples_are_recorded_and_taken_off_the_training_rows(run, toys):
    options = ["loss=ToyTrusted", "trusted.count=50", "epochs=1"]
    code, directory, *_ = run(*options, params="params/digits/plain.yaml")
    noise, samples = arrays(directory / "noise.npz"), arrays(directory / "samples.npz")
    assert code == 0 and len(noise["trusted"]) == 50
    assert np.bincount(noise["true"][noise["trusted"]]).tolist() == [5] * 10
    assert len(samples["index"]) == 1247 and not np.isin(samples["index"], noise["trusted"]).any()
    code, *_, complaints = run(*options[:1], "epochs=1", name="none")
    assert code == 2 and "set trusted.count" in complaints


def test_own_parameters_train_at_their_own_rate(run, toys):
    options = {"params": "params/digits/plain.yaml"}
    code, directory, *_ = run("loss=ToyOwnParameters", "loss.lr=0.05", **options)
    state = weights(directory)
    assert code == 0 and state["objective"]["loss.shift"].abs().sum() > 0
    assert [group["lr"] for group in state["optimizer"]["param_groups"]] == [0.1, 0.05]
    _, same_rate, *_ = run("loss=ToyOwnParameters", **options, name="same")
    assert [group["lr"] for group in weights(same_rate)["optimizer"]["param_groups"]] == [0.1, 0.1]
    code, *_, complaints = run("loss.lr=0.05", **options, name="none")
    assert code == 2 and "Plain has none" in complaints
    code, *_, complaints = run("loss=ToyOwnParameters", "loss.lr=-1", **options, name="negative")
    assert code == 2 and "loss.lr must be greater than 0" in complaints


def test_a_bug_in_a_method_keeps_its_traceback(run, toys, monkeypatch):
    def __init__(self, task_loss, num_samples):
        {}["history"]

    monkeypatch.setattr(toy_methods.ToyTwoNetworks, "__init__", __init__)
    with pytest.raises(KeyError, match="history"):
        run("loss=ToyTwoNetworks", params="params/digits/plain.yaml")
