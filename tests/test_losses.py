"""The contract of every loss in losses.__all__, and its numbers by hand or from a naive loop."""

import copy
import inspect
import math
import warnings

import numpy as np
import pytest
import torch

import losses
from datasets.base import Batch
from losses import GCE, DataParameters, DiscrimLoss, GradientRescaling, Plain, SuperLoss
from losses.base import SampleLoss, Supervised, as_objective, check_index
from losses.distributed import _exchange_device
from losses.errors import UserError
from losses.per_sample import PerSampleParameter
from losses.superloss import confidence
from losses.task import cross_entropy, get_task_loss, mse, smooth_l1
from tests.toy_methods import ALL
from utils.build import build

N, C, B = 40, 5, 8
REQUIRED = {  # instead of the defaults, which are none or do not fit five epochs
    "GradientRescaling": [
        {"beta": 8.0, "lam": 0.5},
        {"beta": 2.0, "lam": 0.3, "variant": "normal", "normalise": "none"},
        {"beta": 2.0, "lam": 2.0, "variant": "beta"},
        {"beta": 3.0, "lam": 0.0, "variant": "exponential"},
    ],
    "SELFIE": [
        {"warm_up": 1, "q": 1},
        {"warm_up": 1, "q": 1, "epoch": 1},
        {"warm_up": 2, "q": 2, "epoch": 2, "tau": 0.7, "eps": 0.5, "reuse": False},
    ],
    "JointOptimization": [
        {"begin": 1, "window": 1},
        {"begin": 1, "window": 1, "hard": True, "prior": [0.6, 0.1, 0.1, 0.1, 0.1]},
    ],
    "CleanNet": [{"begin": 4}],
    "TwoStage": [
        {"select_epochs": 1, "share": 0.5},
        {"select_epochs": 0},
        {"select_epochs": 0, "epoch": 3},
    ],
}
ALSO = {
    "DiscrimLoss": [
        {"sigma_decay": 0.01, "threshold": "mean"},
        {"beta": 0.0, "threshold": 0.5, "suppression": "exp"},
        {"bias_correction": "visits", "log_sigma_low": 0.1},
    ],
    "SuperLoss": [{"tau": "ema"}, {"tau": 0.5, "lam": 0.25}],
    "GCE": [{"k": 0.2, "prune_from": 1, "prune_every": 1}],
    "MentorNet": [
        {"curriculum": "self_paced"},
        {"curriculum": "spcl_linear", "percentile": 0.5, "decay": 0.9, "gamma": 2.0},
        {"curriculum": "hard"},
        {"curriculum": "focal", "burn_in": 30},
    ],
    "ForwardCorrection": [{"transition": "estimate", "estimate_epochs": 1}],
    "DataParameters": [
        {"level": "class"},
        {"level": "both", "instance_decay": 0.01, "class_decay": 0.01},
    ],
}
# these are also tested on regression, the last one in tests/test_trusted_methods.py
REGRESSION = {"Plain", "DiscrimLoss", "SuperLoss", "LearningToReweight"}


def cases():
    """(name, arguments, task loss) for every loss, its variants and the tasks it serves."""
    for name in ALL.__all__:
        if not issubclass(getattr(ALL, name), SampleLoss):
            continue
        for arguments in REQUIRED.get(name, [{}]) + ALSO.get(name, []):
            yield name, arguments, cross_entropy
        if name in REGRESSION:
            arguments = {"tau": 1.0} if name == "SuperLoss" else {}
            for task_loss in (smooth_l1, mse):
                yield name, arguments, task_loss


def name_of(value):
    """The name of a function in the id of a test, instead of its address."""
    return getattr(value, "__name__", str(value))


def make(name, arguments, task_loss):
    """The method with these arguments; "epoch" is not one, but the epoch that it is in."""
    arguments = dict(arguments)
    epoch = arguments.pop("epoch", 0)
    method = build(
        ALL,
        {"name": name, **arguments},
        task_loss=task_loss,
        num_samples=N,
        num_outputs=C,
        given=torch.arange(N) % C,
        trusted_labels=torch.arange(N) % C,
        verified=torch.arange(N) % 3 - 1,
        noise_rate=0.4,
        noise_transition=0.6 * torch.eye(C).double() + 0.4 / C,
        model=torch.nn.Linear(3, C),
        epochs=5,
        steps_per_epoch=5,
    )
    method.set_epoch(epoch)
    return method


def batches(task_loss, count, seed=0):
    """(output, target, index) with every index at most once in a batch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        index = torch.randperm(N, generator=generator)[:B]
        if task_loss is cross_entropy:
            output = torch.randn(B, C, generator=generator)
            target = torch.randint(C, (B,), generator=generator)
        else:
            output = torch.randn(B, 1, generator=generator)
            target = 3 * torch.randn(B, generator=generator)
        yield output, target, index


def all_samples(task_loss):
    """(outputs, targets, indices) of all samples, in another order, as ``predict`` returns them."""
    output, target, _ = next(batches(task_loss, 1))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    return output.repeat(N // B, 1), target.repeat(N // B), order


def run_batches(loss, task_loss, count, seed=0):
    for output, target, index in batches(task_loss, count, seed):
        loss(output, target, index)


def state(loss):
    return {key: value.clone() for key, value in loss.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


@pytest.mark.parametrize(("name", "arguments", "task_loss"), list(cases()), ids=name_of)
class TestContract:
    def test_a_vector_with_a_gradient(self, name, arguments, task_loss):
        loss = make(name, arguments, task_loss)
        for output, target, index in batches(task_loss, 5):
            output.requires_grad_()
            values = loss(output, target, index)
            assert values.shape == (B,)
            assert values.isfinite().all()
            values.mean().backward()
            assert output.grad.isfinite().all()
            moved = output.grad.abs().sum(1) > 0
            assert moved.any() if loss.drops_samples else moved.all()

    def test_evaluation_changes_nothing(self, name, arguments, task_loss):
        loss = make(name, arguments, task_loss)
        run_batches(loss, task_loss, 3)
        before = state(loss)
        loss.eval()
        run_batches(loss, task_loss, 3, seed=1)
        assert same(before, state(loss))

    def test_samples_not_drawn_do_not_move(self, name, arguments, task_loss):
        loss = make(name, arguments, task_loss)
        *_, (output, target, index) = batches(task_loss, 4)
        run_batches(loss, task_loss, 3)
        before = state(loss)
        loss(output, target, index)
        others = torch.ones(N, dtype=torch.bool)
        others[index] = False
        for key, value in state(loss).items():
            if value.shape[:1] == (N,):
                assert torch.equal(value[others], before[key][others]), key

    def test_the_order_within_a_batch_does_not_matter(self, name, arguments, task_loss):
        order = torch.randperm(B, generator=torch.Generator().manual_seed(3))
        first, second = make(name, arguments, task_loss), make(name, arguments, task_loss)
        for output, target, index in batches(task_loss, 3):
            values = first(output, target, index)
            permuted = second(output[order], target[order], index[order])
            torch.testing.assert_close(values[order], permuted)
        for key, value in first.state_dict().items():
            torch.testing.assert_close(value, second.state_dict()[key])

    def test_a_restored_state_goes_on_bit_identically(self, name, arguments, task_loss):
        first, second = make(name, arguments, task_loss), make(name, arguments, task_loss)
        run_batches(first, task_loss, 4)
        second.load_state_dict(first.state_dict())
        for epoch, batch in enumerate(batches(task_loss, 4, seed=2)):
            first.set_epoch(epoch)
            second.set_epoch(epoch)
            assert torch.equal(first(*batch), second(*batch))
        assert same(state(first), state(second))

    def test_bfloat16_outputs_are_accepted(self, name, arguments, task_loss):
        half, full = make(name, arguments, task_loss), make(name, arguments, task_loss)
        for output, target, index in batches(task_loss, 3):
            output = output.bfloat16().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):  # as in a run
                values = half(output, target, index)
            expected = full(output.detach().float(), target, index)
            torch.testing.assert_close(values, expected, rtol=0.02, atol=0.02)
            values.mean().backward()
            assert values.dtype == torch.float32
            assert output.grad.dtype == torch.bfloat16
            assert output.grad.isfinite().all()

    def test_float64_outputs_are_accepted(self, name, arguments, task_loss):
        double, single = make(name, arguments, task_loss), make(name, arguments, task_loss)
        for output, target, index in batches(task_loss, 3):
            values = double(output.double(), target, index)
            expected = single(output, target, index)
            assert values.dtype == torch.float64
            torch.testing.assert_close(values.float(), expected, rtol=1e-4, atol=1e-5)

    def test_the_score_numbers_every_sample_or_is_none(self, name, arguments, task_loss):
        score = make(name, arguments, task_loss).sample_score()
        assert score is None or score.shape == (N,)

    def test_an_epoch_may_be_set_twice(self, name, arguments, task_loss):
        """A run that resumes in the middle of an epoch does so."""
        loss = make(name, arguments, task_loss)
        run_batches(loss, task_loss, 3)
        before = state(loss)
        for epoch in (0, 1, 1):
            loss.set_epoch(epoch)
        assert same(before, state(loss))

    def test_what_it_does_between_epochs_is_state(self, name, arguments, task_loss):
        first, second = make(name, arguments, task_loss), make(name, arguments, task_loss)
        run_batches(first, task_loss, 3)
        first.end_epoch(lambda: all_samples(task_loss))
        second.load_state_dict(first.state_dict())
        for batch in batches(task_loss, 3, seed=2):
            assert torch.equal(first(*batch), second(*batch))

    def test_the_labels_it_leaves_are_numbers_or_distributions(self, name, arguments, task_loss):
        loss = make(name, arguments, task_loss)
        loss.end_epoch(lambda: all_samples(task_loss))
        labels = loss.labels()
        assert labels is None or labels.shape in ((N,), (N, C))
        if labels is not None and labels.ndim == 2:
            torch.testing.assert_close(labels.sum(1), torch.ones(N))

    def test_soft_targets_that_are_one_hot_equal_hard_ones(self, name, arguments, task_loss):
        first, second = make(name, arguments, task_loss), make(name, arguments, task_loss)
        if task_loss is not cross_entropy or not first.takes_soft_targets:
            return
        for output, target, index in batches(task_loss, 3):
            soft = torch.nn.functional.one_hot(target, C).float()
            torch.testing.assert_close(first(output, target, index), second(output, soft, index))

    def test_the_objective_takes_the_mean_and_keeps_the_output(self, name, arguments, task_loss):
        method = make(name, arguments, task_loss).eval()
        objective = as_objective(method)
        model = torch.nn.Linear(3, C if task_loss is cross_entropy else 1)
        _, target, index = next(batches(task_loss, 1))
        batch = Batch(torch.randn(B, 3), target, index)
        value = objective(model, batch)
        value.backward()
        torch.testing.assert_close(value, method(model(batch.input), target, index).mean())
        assert isinstance(objective, Supervised)
        assert objective.scored[0].grad is not None


@pytest.mark.parametrize("name", sorted(set(losses.__all__) - REGRESSION))
def test_a_loss_that_cannot_serve_regression_says_so_at_construction(name):
    with pytest.raises(
        ValueError, match=rf"{name} works on class probabilities.*got losses.task.smooth_l1"
    ):
        make(name, REQUIRED.get(name, [{}])[0], smooth_l1)


@pytest.mark.parametrize("name", ["Plain", "DiscrimLoss", "SuperLoss", "LearningToReweight"])
@pytest.mark.parametrize(
    "task_loss",
    [
        torch.nn.functional.cross_entropy,
        torch.nn.CrossEntropyLoss(),
        torch.nn.functional.mse_loss,
        lambda output, target: cross_entropy(output, target).sum(),
    ],
)
def test_a_task_loss_that_is_reduced_already_is_refused(name, task_loss):
    """In silence DiscrimLoss would give every sample the mean of its batch."""
    facts = {"num_samples": N} if name in ("DiscrimLoss", "LearningToReweight") else {}
    with pytest.raises(UserError, match=r"one loss for each sample, \[B\].*losses\.task"):
        getattr(losses, name)(task_loss, **facts)


@pytest.mark.parametrize("name", ["Plain", "DiscrimLoss", "SuperLoss"])
def test_a_task_loss_that_cannot_be_tried_is_looked_at_in_each_batch(name):
    facts = {"DiscrimLoss": {"num_samples": N}, "SuperLoss": {"tau": 2.0}}.get(name, {})
    output, target, index = torch.randn(B, C), torch.zeros(B, dtype=torch.long), torch.arange(B)
    for reduction in ("mean", "none"):
        task_loss = torch.nn.CrossEntropyLoss(weight=torch.ones(C), reduction=reduction)
        loss = getattr(losses, name)(task_loss, **facts)
        if reduction == "none":
            assert loss(output, target, index).shape == (B,)
            continue
        with pytest.raises(UserError, match=r"one loss for each sample, \[B\]"):
            loss(output, target, index)


def test_copies_that_would_lose_the_state_are_refused():
    """As nn.DataParallel makes them."""
    with pytest.raises(UserError, match="start a process for each GPU with torchrun"):
        DiscrimLoss(cross_entropy, N)._replicate_for_data_parallel()
    losses.Plain(cross_entropy)._replicate_for_data_parallel()


def test_an_objective_can_be_copied_after_a_step():
    objective = as_objective(losses.Plain(cross_entropy))
    batch = Batch(torch.randn(B, 3), torch.zeros(B, dtype=torch.long), torch.arange(B))
    objective(torch.nn.Linear(3, C), batch).backward()
    assert objective.scored is not None and copy.deepcopy(objective).scored is None


def test_a_group_of_gpus_alone_exchanges_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    for config, device in (
        ("cpu:gloo,cuda:nccl", "cpu"),
        ("cpu:gloo", "cpu"),
        ("cuda:nccl", "cuda:1"),  # what PyTorch makes of no backend, and Lightning of "nccl"
    ):
        monkeypatch.setattr("torch.distributed.get_backend_config", lambda config=config: config)
        assert _exchange_device() == torch.device(device)


def test_a_task_loss_of_ones_own_may_be_of_any_kind():
    def several_labels(output, target):
        binary = torch.nn.functional.binary_cross_entropy_with_logits
        return binary(output, target, reduction="none").mean(-1)

    none = torch.nn.CrossEntropyLoss(reduction="none")
    for task_loss in (none, several_labels, lambda output, target: output.x):
        DiscrimLoss(task_loss, N)
    with pytest.raises(UserError, match=r"that of losses\.task, got CrossEntropyLoss\(\)"):
        losses.GCE(torch.nn.CrossEntropyLoss(reduction="none"))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("DiscrimLoss", {"beta": 1.0}, "beta.*got 1.0"),
        ("DiscrimLoss", {"rho": -0.1}, "rho"),
        ("DiscrimLoss", {"threshold": "median"}, "median"),
        ("DiscrimLoss", {"suppression": "cosine"}, "linear, sin.*cosine"),
        ("DiscrimLoss", {"suppression_epochs": -1}, "suppression_epochs"),
        ("DiscrimLoss", {"bias_correction": "none"}, "visits"),
        ("DiscrimLoss", {"sigma_lr": -1.0}, "learning rate"),
        ("DiscrimLoss", {"log_sigma_low": 4.0}, "lower bound"),
        ("SuperLoss", {"lam": 0.0}, r"lam must lie in \(0, inf\)"),
        ("SuperLoss", {"tau": "gak"}, "gak"),
        ("DataParameters", {"level": "sample"}, "sample"),
        ("DataParameters", {"instance_init": 0.0}, r"instance_init must lie in \(0, inf\)"),
        ("GradientRescaling", {"beta": 1.0, "lam": -1.0}, "lam must"),
        ("GradientRescaling", {"beta": 1.0, "lam": 1.0, "variant": "gamma"}, "power.*gamma"),
        ("GradientRescaling", {"beta": 0.5, "lam": 1.0, "variant": "beta"}, "bounded"),
        ("GradientRescaling", {"beta": 1.0, "lam": 1.0, "normalise": "sum"}, "batch.*sum"),
        ("GCE", {"q": 0.0}, "q must"),
        ("GCE", {"q": 1.1}, "q must"),
    ],
)
def test_an_argument_outside_its_range_is_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(name, arguments, cross_entropy)


@pytest.mark.parametrize(
    "name", ["DiscrimLoss", "DataParameters", "SELFIE", "JointOptimization", "TwoStage"]
)
@pytest.mark.parametrize("bad", [-1, N])
def test_an_index_outside_the_training_set_is_an_error(name, bad):
    loss = make(name, REQUIRED.get(name, [{}])[0], cross_entropy)
    output, target = torch.randn(B, C), torch.zeros(B, dtype=torch.long)
    index = torch.arange(B)
    index[3] = bad
    before = state(loss)
    with pytest.raises(IndexError, match=rf"\[0, {N}\), got {bad}"):
        loss(output, target, index)
    with pytest.raises(ValueError, match="one training-set position per target"):
        loss(output, target, torch.arange(B).unsqueeze(1))
    with pytest.raises(ValueError, match="of int64, got"):
        loss(output, target, torch.arange(B, dtype=torch.int32))
    assert same(before, state(loss))


def test_a_compiled_loss_is_not_compiled_for_each_batch():
    loss = torch.compile(DiscrimLoss(cross_entropy, N), backend="eager")

    def step():
        loss(torch.randn(B, C), torch.zeros(B, dtype=torch.long), torch.randperm(N)[:B])

    step()
    step()  # the first has found the threshold unset
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(4):
            step()


@pytest.mark.parametrize("name", ["DiscrimLoss", "DataParameters", "SELFIE"])
def test_an_index_twice_in_a_batch_is_an_error(name):
    loss = make(name, REQUIRED.get(name, [{}])[0], cross_entropy)
    output, target, index = torch.randn(B, C), torch.zeros(B, dtype=torch.long), torch.arange(B)
    index[3] = 6
    before = state(loss)
    with pytest.raises(UserError, match=r"at most once, got 6 twice: .* drop_last=True"):
        loss(output, target, index)
    assert same(before, state(loss))
    assert loss.eval()(output, target, index).shape == (B,)  # which keeps nothing


def pass_over(loss, order):
    """Train on the samples in this order, batch by batch; the warnings of set_epoch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index in order.split(B):
            loss(torch.randn(len(index), C), index % C, index)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", ["DiscrimLoss", "SELFIE"])
def test_a_forgotten_set_epoch_is_noticed_on_the_second_pass(name):
    loss = make(name, REQUIRED.get(name, [{}])[0], cross_entropy)
    assert pass_over(loss, torch.arange(N)) == []
    (message,) = pass_over(loss, torch.arange(N))
    assert message.startswith(f"{name} has drawn more than its {N} samples in epoch 0: call set_ep")
    assert pass_over(loss, torch.arange(N)) == []  # once


def test_passes_with_set_epoch_are_none_to_warn_of():
    loss, filled = DiscrimLoss(cross_entropy, N), torch.arange(N + 3) % N
    for epoch in range(3):
        loss.set_epoch(epoch)
        assert pass_over(loss, filled) == []  # as a DistributedSampler fills its last batch
    for _ in range(2):
        assert pass_over(DataParameters(cross_entropy, N, C).eval(), filled) == []
    indifferent = DataParameters(cross_entropy, N, C)
    assert [pass_over(indifferent, torch.arange(N)) for _ in range(3)] == [[], [], []]


def test_without_a_look_at_the_device():
    """Tensors on "meta" have no values: whoever reads one fails."""
    loss = DiscrimLoss(cross_entropy, N)
    target = torch.zeros(N, dtype=torch.long, device="meta")
    for _ in range(2):
        check_index(loss, target, target, N)
    with pytest.warns(UserWarning, match="call set_epoch"):
        loss.num_drawn = N + 1
        check_index(loss, target, target, N)


@pytest.mark.parametrize("name", losses.__all__)
def test_a_method_that_reads_the_epoch_says_that_it_follows_epochs(name):
    method = getattr(losses, name)
    source = inspect.getsource(method)
    assert ("self.epoch" in source) == ("follows_epochs = " in source)


def test_superloss_needs_a_threshold_if_there_are_no_classes():
    with pytest.raises(ValueError, match="tau=None"):
        SuperLoss(mse, num_outputs=1)
    assert SuperLoss(cross_entropy, num_outputs=10).tau == pytest.approx(math.log(10))


# Task losses


def test_regression_losses_do_not_broadcast():
    output, target = torch.tensor([[0.5], [3.0]]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(smooth_l1(output, target), torch.tensor([0.125, 1.5]))
    torch.testing.assert_close(mse(output.squeeze(1), target.double()), torch.tensor([0.25, 4.0]))
    with pytest.raises(ValueError, match=r"\[B\] or \[B, 1\]"):
        mse(torch.zeros(2, 3), target)


def test_a_task_loss_of_another_task_is_unknown():
    assert get_task_loss("regression", "mse", "regression") is mse
    with pytest.raises(ValueError, match="'mse' is not known for classification"):
        get_task_loss("classification", "mse", "classification")


# Numbers


@pytest.mark.parametrize(
    ("name", "arguments", "task_loss"),
    # but of methods whose weights depend on the output and carry no gradient
    [case for case in cases() if case[0] not in ("GradientRescaling", "MentorNet")],
    ids=name_of,
)
def test_gradients_against_finite_differences(name, arguments, task_loss):
    loss = make(name, arguments, task_loss)
    run_batches(loss, task_loss, 3)
    loss = loss.double().eval()  # in evaluation mode the state does not move
    output, target, index = next(batches(task_loss, 1, seed=5))
    output = (2 * output).double().requires_grad_()
    if task_loss is not cross_entropy:
        target = target.double()
    assert torch.autograd.gradcheck(
        lambda output: loss(output, target, index), output, eps=1e-6, atol=1e-6
    )


def test_sigma_gradient_against_finite_differences():
    """A table without bounds takes its first step along -d mean(loss) / d log sigma."""
    output, target, index = next(batches(cross_entropy, 1))
    unbounded = {"log_sigma_low": -99.0, "log_sigma_high": 99.0}
    loss = DiscrimLoss(cross_entropy, N, sigma_lr=1.0, a=0.3, threshold=0.7, **unbounded)

    def mean_loss(sample, offset):
        shifted = DiscrimLoss(cross_entropy, N, a=0.3, threshold=0.7, sigma_lr=0.0).double()
        shifted.log_sigma.value[sample] = offset
        return shifted(output.double(), target, index).mean().item()

    loss(output, target, index)
    for sample in index.tolist():
        slope = (mean_loss(sample, 1e-5) - mean_loss(sample, -1e-5)) / 2e-5
        assert -loss.log_sigma.value[sample].item() == pytest.approx(slope, rel=1e-4)


def test_temperature_gradient_against_finite_differences():
    output, target, index = next(batches(cross_entropy, 1))
    loss = DataParameters(
        cross_entropy, N, C, level="both", instance_lr=1.0, class_lr=1.0, low=-99.0, high=99.0
    )

    def mean_loss(table, row, offset):
        shifted = DataParameters(cross_entropy, N, C, level="both").double().eval()
        getattr(shifted, table).value[row] = offset
        return shifted(output.double(), target, index).mean().item()

    loss(output, target, index)
    for table, rows in (("instance", index.tolist()), ("classes", target.unique().tolist())):
        for row in rows:
            slope = (mean_loss(table, row, 1e-5) - mean_loss(table, row, -1e-5)) / 2e-5
            moved = getattr(loss, table).value[row].item()
            assert -moved == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_discrimloss_with_visits_equals_a_naive_loop():
    """bias_correction="visits" in plain Python, with samples that are drawn unevenly."""
    loss = DiscrimLoss(
        cross_entropy,
        N,
        bias_correction="visits",
        suppression_epochs=0,
        a=0.25,
        p=0.5,
        q=3.0,
        sigma_lr=0.5,
    )
    history, visits, log_sigma, velocity = [0.0] * N, [0] * N, [0.0] * N, [0.0] * N
    low, high = math.log(1 / 20), math.log(20)
    k = None
    for epoch, (output, target, index) in enumerate(batches(cross_entropy, 12)):
        loss.set_epoch(epoch)
        values = loss(output, target, index)
        average = []
        newest = cross_entropy(output, target).tolist()
        for value, i in zip(newest, index.tolist(), strict=True):
            history[i] = 0.9 * history[i] + 0.1 * value
            visits[i] += 1
            average.append(history[i] / (1 - 0.9 ** visits[i]))
        mean = sum(average) / B
        k = mean if k is None else 0.9 * k + 0.1 * mean
        gamma = 0.25 * math.tanh(0.5 * (epoch - 3)) + 1.25
        for position, i in enumerate(index.tolist()):
            expected = (average[position] - gamma * k) / math.exp(log_sigma[i])
            assert values[position].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
            velocity[i] = 0.9 * velocity[i] - expected / B
            log_sigma[i] = min(max(log_sigma[i] - 0.5 * velocity[i], low), high)
    torch.testing.assert_close(loss.log_sigma.value, torch.tensor(log_sigma), rtol=1e-4, atol=1e-5)


def test_the_first_step_lifts_every_sample_to_the_bounds():
    loss = DiscrimLoss(cross_entropy, N, log_sigma_low=0.2)
    assert (loss.log_sigma.value == 0).all()
    loss(*next(batches(cross_entropy, 1)))
    assert (loss.log_sigma.value >= 0.2).all()


def test_a_loss_that_is_reset_lifts_every_sample_again():
    loss = DiscrimLoss(cross_entropy, N, log_sigma_low=0.2)
    fresh = state(loss)
    for _ in range(2):
        loss.load_state_dict(fresh)
        assert (loss.log_sigma.value == 0).all()
        loss(*next(batches(cross_entropy, 1)))
        assert (loss.log_sigma.value >= 0.2).all()


def test_entries_with_no_gradient_keep_value_and_momentum():
    table = PerSampleParameter(3, init=0.0, lr=0.1, momentum=0.9, low=-9.0, high=9.0)
    for grad in ([1, 0, 0], [1, 2, 0], [0, 1, 0], [1, 0, -1]):
        table.step(torch.arange(3), torch.tensor(grad, dtype=torch.float))
    torch.testing.assert_close(table.value, torch.tensor([-0.561, -0.48, 0.1]))
    torch.testing.assert_close(table.velocity, torch.tensor([2.71, 2.8, -1.0]))


def test_a_class_drawn_twice_takes_one_step_along_the_sum():
    loss = DataParameters(cross_entropy, N, C, level="class", class_decay=0.1, class_init=2.0)
    output = torch.randn(1, C).expand(4, C)
    loss(output, torch.tensor([1, 1, 1, 1]), torch.arange(4))
    once = DataParameters(cross_entropy, N, C, level="class", class_decay=0.4, class_init=2.0)
    # the gradient is a mean over 4 equal samples, and decay counts once for each of them
    once(output[:1], torch.tensor([1]), torch.arange(1))
    torch.testing.assert_close(loss.classes.value, once.classes.value)
    assert (loss.classes.value[[0, 2, 3, 4]] == math.log(2)).all()


SUPERLOSS = [
    (
        math.log(10),
        1.0,
        [
            (0, 2.7182818, -5.2590752),
            (1, 2.7182818, -2.5407934),
            (1.567826, 2.5824740, -0.9973732),
            (3, 0.7656755, 0.6052808),
            (10, 0.3069091, 3.7576488),
            (20, 0.1885478, 6.1203796),
        ],
    ),
    (
        math.log(100),
        0.25,
        [(5, 0.6152038, 0.3019016), (10, 0.1662787, 1.7017350), (3, 2.7182818, -4.1133049)],
    ),
]


@pytest.mark.parametrize(("tau", "lam", "table"), SUPERLOSS)
def test_superloss_values(tau, lam, table):
    for value, sigma, expected in table:
        loss = SuperLoss(lambda output, target: output, tau=tau, lam=lam)
        task_losses = torch.tensor([float(value)], requires_grad=True)
        result = loss(task_losses, None, None)
        result.backward()
        assert result.item() == pytest.approx(expected, abs=2e-6)
        assert task_losses.grad.item() == pytest.approx(sigma, rel=1e-5)


def test_the_confidence_of_superloss_against_scipy():
    from scipy.special import lambertw

    branch_point = -math.exp(-1)
    offsets = torch.logspace(-14, 8, 2000, dtype=torch.float64)
    z = torch.cat([branch_point + offsets, torch.zeros(1, dtype=torch.float64)])
    expected = torch.from_numpy(np.exp(-lambertw(z.numpy()).real))
    torch.testing.assert_close(confidence(2 * z), expected, rtol=1e-9, atol=0)
    away = z > branch_point + 1e-6
    torch.testing.assert_close(confidence(2 * z)[away], expected[away], rtol=1e-11, atol=0)
    at_and_below = torch.tensor([-2 / math.e, -2.0], dtype=torch.float64)
    assert confidence(at_and_below).tolist() == pytest.approx([math.e] * 2, rel=1e-7)
    assert confidence(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(1, abs=1e-11)
    largest = torch.tensor([1e300, torch.finfo(torch.float64).max / 3], dtype=torch.float64)
    expected = torch.from_numpy(np.exp(-lambertw(largest.numpy() / 2).real))
    torch.testing.assert_close(confidence(largest), expected, rtol=1e-9, atol=0)
    assert confidence(torch.tensor([math.nan], dtype=torch.float64)).isnan()


def test_superloss_is_finite_at_and_around_the_branch_point():
    branch_point = -2 / math.e
    # three steps of bfloat16 above the branch point are far away from it
    for dtype, lowest in ((torch.float32, 2.71), (torch.bfloat16, 2.25)):
        value = torch.tensor(branch_point, dtype=dtype)
        for _ in range(3):
            value = torch.nextafter(value, torch.tensor(-9.0, dtype=dtype))
        for _ in range(7):
            sigma = confidence(value.double())
            assert sigma.isfinite()
            assert lowest < sigma <= math.e + 1e-12
            value = torch.nextafter(value, torch.tensor(9.0, dtype=dtype))


def test_superloss_moving_threshold():
    loss = SuperLoss(lambda output, target: output, tau="ema")
    for mean, expected in ((2.0, 2.0), (4.0, 2.2), (1.0, 2.08)):
        loss(torch.tensor([mean - 1, mean + 1]), None, None)
        assert loss.tau.item() == pytest.approx(expected)


DM_OUTPUT = torch.tensor([[2.0, 0, -1], [0, 1, 0.5], [-1, 3, 0], [0, 0, 0]])
DM_TARGET = torch.tensor([0, 0, 1, 2])


def gradient(loss, output=DM_OUTPUT, target=DM_TARGET):
    """The gradient of the mean loss with respect to the output."""
    output = output.clone().requires_grad_()
    loss(output, target, torch.arange(len(target))).mean().backward()
    return output.grad


def test_derivative_manipulation_gradient():
    expected = torch.tensor(
        [
            [-0.0365294, 0.0267052, 0.0098243],
            [-0.1924855, 0.1198144, 0.0726711],
            [0.0051065, -0.0189874, 0.0138809],
            [0.1259989, 0.1259989, -0.2519977],
        ]
    )
    rescaled = gradient(GradientRescaling(cross_entropy, beta=8.0, lam=0.5))
    torch.testing.assert_close(rescaled, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("beta", "lam", "weights"),
    [
        (8.0, 0.5, [3.1515676, 16.6066311, 1.6381281, 21.7410349]),
        (2.0, 0.0, [1.3667157, 5.0903804, 1.1360086, 3.7936679]),
        (16.0, 1.0, [8.2390324, 11.3103160, 2.5989847, 35.0072668]),
    ],
)
def test_derivative_manipulation_weights(beta, lam, weights):
    unnormalised = GradientRescaling(cross_entropy, beta=beta, lam=lam, normalise="none")
    norms = gradient(unnormalised).abs().sum(1) * len(DM_TARGET)
    torch.testing.assert_close(norms, torch.tensor(weights), rtol=1e-5, atol=1e-5)
    normalised = GradientRescaling(cross_entropy, beta=beta, lam=lam)
    assert gradient(normalised).abs().sum().item() == pytest.approx(1, abs=1e-6)


def test_emphasis_densities_reduce_to_known_losses():
    def rescaled(beta, lam, **options):
        return gradient(GradientRescaling(cross_entropy, beta=beta, lam=lam, **options))

    density = {"variant": "beta", "normalise": "none"}
    plain = gradient(Plain(cross_entropy))
    torch.testing.assert_close(2 * rescaled(1.0, 2.0, **density), plain)
    gce = gradient(GCE(cross_entropy, q=0.7))
    torch.testing.assert_close(2 * rescaled(1.7, 2.0, **density), gce)
    mae = gradient(GCE(cross_entropy, q=1.0))
    torch.testing.assert_close(2 * rescaled(2.0, 2.0, **density), mae)
    exponential = rescaled(2.0, 7.0, variant="exponential")
    torch.testing.assert_close(rescaled(2.0, 0.0), exponential)
    p = DM_OUTPUT.softmax(1).gather(1, DM_TARGET[:, None]).squeeze(1)
    imae = rescaled(8.0, 1.0, normalise="none").abs().sum(1)
    torch.testing.assert_close(imae, torch.exp(8 * p * (1 - p)) / 4)
    normal = rescaled(8.0, 0.5, variant="normal", normalise="none").abs().sum(1)
    torch.testing.assert_close(normal, imae)
    texts = rescaled(-0.52, 0.0, normalise="none").abs().sum(1)  # the paper's for IMDB
    torch.testing.assert_close(texts, torch.exp(-0.52 * (1 - p)) / 4)
    equal = rescaled(0.0, 1.0).abs().sum(1)
    torch.testing.assert_close(equal, torch.full((4,), 0.25))


def test_rescaled_gradients_keep_norm_and_zero_sum_however_sure_the_network_is():
    loss = GradientRescaling(cross_entropy, beta=8.0, lam=0.5, normalise="none")
    for gap in (5.0, 17.0, 20.0, 25.0, 60.0, 100.0, 300.0):
        output = torch.zeros(1, 10)
        output[0, 3] = gap
        grad = gradient(loss, output, torch.tensor([3]))
        rest = 1 / (1 + math.exp(gap) / 9)
        weight = math.exp(8 * math.sqrt(1 - rest) * rest)
        assert grad.abs().sum().item() == pytest.approx(weight, rel=1e-5)
        assert grad.sum().item() == pytest.approx(0, abs=1e-6)


def test_gce_values_and_gradients():
    loss = GCE(cross_entropy, q=0.7)
    target = torch.tensor([0])
    for p, value, slope in (
        (0.1, 1.1435340, -0.1795736),
        (0.3, 0.8135548, -0.3013581),
        (0.7, 0.3156344, -0.2337168),
    ):
        output = torch.tensor([[math.log(p), math.log(1 - p)]])
        assert loss(output, target, None).item() == pytest.approx(value, abs=1e-6)
        assert gradient(loss, output, target)[0, 0].item() == pytest.approx(slope, abs=1e-6)
    tiny = GCE(cross_entropy, q=1e-8)
    torch.testing.assert_close(
        tiny(DM_OUTPUT, DM_TARGET, None), cross_entropy(DM_OUTPUT, DM_TARGET), rtol=1e-5, atol=1e-6
    )


def test_discrimloss_weight_of_the_newest_loss():
    """If sigma is 1, the gradient is that of the task loss times a factor.

    The factor is suppression * (1 - beta) / (1 - beta^(e+1)).
    """
    output, target, index = next(batches(cross_entropy, 1))
    plain = gradient(Plain(cross_entropy), output, target)
    for epoch, factor in ((0, 0.100), (1, 0.2 * 0.1 / 0.19), (3, 0.1 / 0.3439), (19, 0.114)):
        loss = DiscrimLoss(cross_entropy, N)
        loss.set_epoch(epoch)
        z = output.clone().requires_grad_()
        loss(z, target, index).mean().backward()
        torch.testing.assert_close(z.grad, factor * plain, rtol=2e-3, atol=1e-7)
