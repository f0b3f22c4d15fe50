"""Co-teaching, Co-teaching+, JoCoR and Decoupling.

Against traces of the authors' code where there are some, against loops in plain Python, and what
the papers say of extreme cases.
"""

import copy
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import losses
from datasets.base import Batch
from losses import CoTeaching, CoTeachingPlus, Decoupling, JoCoR
from losses.small_loss import ForgetRate, smallest, smallest_among
from losses.task import cross_entropy
from models.several import Several
from tests.fixtures import check_trace
from tests.replay_methods import METHODS

GOLDEN = Path(__file__).parent / "golden" / "methods"
TRACES = sorted(
    path.stem
    for path in GOLDEN.glob("*.npz")
    if path.stem.startswith(("co_teaching", "decoupling"))
)
N, C, B, FEATURES = 40, 5, 8, 3
FORGETTING = (CoTeaching, CoTeachingPlus, JoCoR)
TWO = (*FORGETTING, Decoupling)


def make(method, noise_rate=0.4, model=None, **arguments):
    """That method for N samples; by default its model is ``batch.input`` itself."""
    rate = {"noise_rate": noise_rate} if method in FORGETTING else {}
    return method(cross_entropy, N, model=model or nn.Identity(), **rate, **arguments)


def networks(equal=False):
    """Two small networks as one model."""
    torch.manual_seed(0)
    first, second = (nn.Linear(FEATURES, C) for _ in range(2))
    return Several([first, copy.deepcopy(first) if equal else second])


def outputs_batch(seed=0, size=B, scale=2.0):
    """A batch whose input are the outputs [B, 2, C] of both networks."""
    generator = torch.Generator().manual_seed(seed)
    outputs = scale * torch.randn(size, 2, C, generator=generator, dtype=torch.float64)
    target = torch.randint(C, (size,), generator=generator)
    index = torch.randperm(N, generator=generator)[:size]
    return Batch(outputs.requires_grad_(), target, index)


def inputs_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(B, FEATURES, generator=generator)
    target = torch.randint(C, (B,), generator=generator)
    return Batch(inputs, target, torch.randperm(N, generator=generator)[:B])


def step(objective, batch):
    """The loss of a batch of outputs, and its gradient [B, 2, C]."""
    loss = objective(nn.Identity(), batch)
    (gradient,) = torch.autograd.grad(loss, batch.input)
    return loss.item(), gradient


# --- traces of the authors' code


@pytest.mark.parametrize("name", TRACES)
def test_golden(name):
    check_trace(name, METHODS)


def test_there_are_traces():
    assert len(TRACES) == 6 and {name.split("_")[0] for name in TRACES} == {"co", "decoupling"}


# --- the forget rate


def schedule(tau, **arguments):
    options = {
        "forget_rate_scale": 1.0,
        "schedule": "code",
        "num_gradual": 10,
        "exponent": 1.0,
        "epoch_offset": 0,
    }
    return ForgetRate(None, tau, **(options | arguments))


def test_the_forget_rate_is_that_of_the_authors_code():
    """As numpy.linspace rounds, so that int() keeps as many samples."""
    tables = json.loads((GOLDEN / "co_teaching_schedule.json").read_text())["forget_rate_tables"]
    assert len(tables) == 7
    for table in tables:
        rate = schedule(
            table["forget_rate"], num_gradual=table["num_gradual"], exponent=table["exponent"]
        )
        epochs = range(len(table["rate"]))
        assert [rate.at(epoch) for epoch in epochs] == table["rate"]
        for size in (128, 16):
            kept = [rate.num_kept(epoch, size) for epoch in epochs]
            assert kept == table[f"num_kept_of_{size}"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {0: 0.04, 4: 0.2, 9: 0.4, 10: 0.4, 500: 0.4}),  # R(T) = 1 - tau min(T / T_k, 1)
        ({"epoch_offset": 1}, {0: 0.08, 8: 0.4}),
        ({"exponent": 2.0}, {0: 0.04, 1: 0.16, 2: 0.36, 3: 0.4, 9: 0.4}),
        ({"exponent": 0.5}, {0: 0.04, 3: 0.08, 99: 0.4, 100: 0.4}),
        ({"exponent": 1e300}, {0: 0.04, 1: 0.4, 10**6: 0.4}),
        ({"num_gradual": 1}, {0: 0.4, 1: 0.4}),
    ],
)
def test_the_forget_rate_of_the_paper(arguments, expected):
    rate = schedule(0.4, schedule="paper", **arguments)
    assert {epoch: rate.at(epoch) for epoch in expected} == pytest.approx(expected)


def test_an_offset_of_one_is_the_authors_loop():
    assert schedule(0.45, epoch_offset=1).at(0) == pytest.approx(0.05)
    assert schedule(0.45, epoch_offset=1).at(8) == schedule(0.45).at(9) == 0.45


def test_at_least_one_sample_is_kept():
    assert int((1 - 0.9) * 10) == 0  # 0.9999999999999998
    assert schedule(0.9).num_kept(50, 10) == 1 and schedule(0.9).num_kept(50, 3) == 1
    assert schedule(0.9).num_kept(50, 20) == 1 and schedule(0.9).num_kept(50, 21) == 2


def test_the_forget_rate_is_the_noise_rate_times_a_scale():
    assert make(CoTeaching, 0.375).forget_rate.at(20) == 0.375
    assert make(CoTeaching, 0.4, forget_rate_scale=1.25).forget_rate.at(20) == 0.5
    assert make(CoTeaching, 0.4, forget_rate=0.1).forget_rate.at(20) == 0.1
    assert make(CoTeaching, None, forget_rate=0.1).forget_rate.at(20) == 0.1
    assert make(CoTeaching, 0.0).forget_rate.at(20) == 0


@pytest.mark.parametrize("method", FORGETTING)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_rate": None}, "not known here: set loss.forget_rate"),
        ({"forget_rate": 1.0}, r"forget_rate must lie in \[0, 1\), got 1.0"),
        ({"forget_rate": -0.1}, "forget_rate must lie"),
        ({"forget_rate": math.nan}, "forget_rate must lie.*nan"),
        ({"forget_rate_scale": 2.5}, r"0.4 times forget_rate_scale 2.5 must lie in \[0, 1\)"),
        ({"forget_rate_scale": -1.0}, "forget_rate_scale -1.0"),
        ({"forget_rate_scale": math.nan}, "forget_rate_scale nan"),
        ({"forget_rate_scale": math.inf}, "forget_rate_scale inf"),
        ({"schedule": "linear"}, '"code" or "paper", got \'linear\''),
        ({"num_gradual": 0}, "num_gradual must be at least 1 epoch, got 0"),
        ({"exponent": 0.0}, "exponent must be finite and greater than 0, got 0.0"),
        ({"exponent": math.inf}, "exponent.*inf"),
        ({"exponent": math.nan}, "exponent.*nan"),
        ({"epoch_offset": -1}, "epoch_offset must be at least 0, got -1"),
    ],
)
def test_a_forget_rate_that_is_none_is_named(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(method, **arguments)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (CoTeachingPlus, {"warmup_epochs": -1}, "warmup_epochs must be at least 0, got -1"),
        (JoCoR, {"lam": 1.0}, r"lam must lie in \[0, 1\), got 1.0"),
        (JoCoR, {"lam": -0.1}, "lam must"),
        (JoCoR, {"lam": math.nan}, "lam must.*nan"),
        (Decoupling, {"floor": -0.1}, r"floor is a part of a batch.*\[0, 1\], got -0.1"),
        (Decoupling, {"floor": 1.1}, "floor"),
        (Decoupling, {"floor": math.nan}, "floor.*nan"),
        (Decoupling, {"init_steps": -1}, "init_steps must be at least 0, got -1"),
    ],
)
def test_an_argument_outside_its_range_is_named(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(method, **arguments)


# --- loops in plain Python


def log_softmax(row):
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def entropy(row, label):
    return -log_softmax(row)[label]


def argmax(row):
    return max(range(len(row)), key=lambda position: (row[position], -position))


def first_of(values, among, count):
    """The ``count`` positions among those given with the smallest values, ties by the position."""
    return sorted(among, key=lambda position: (values[position], position))[:count]


def naive_exchange(rows, target, rate, among, loss=entropy):
    """Co-teaching on the samples ``among`` a batch."""
    values = [
        [loss(row[k], label) for row, label in zip(rows, target, strict=True)] for k in range(2)
    ]
    count = max(1, int((1 - rate) * len(among)))
    chosen = [first_of(values[k], among, count) for k in range(2)]
    return sum(values[k][position] for k in range(2) for position in chosen[1 - k]) / count


def naive_plus(rows, target, rate, loss=entropy):
    apart = [position for position, row in enumerate(rows) if argmax(row[0]) != argmax(row[1])]
    return naive_exchange(rows, target, rate, apart, loss) if apart else 0.0


def naive_whole(rows, target, loss):
    pairs = zip(rows, target, strict=True)
    return sum(loss(first, label) + loss(second, label) for (first, second), label in pairs) / len(
        rows
    )


def double(row, label):
    return entropy([math.exp(value) for value in log_softmax(row)], label)


def naive_jocor(rows, target, rate, lam):
    joint = []
    for (first, second), label in zip(rows, target, strict=True):
        p, q = log_softmax(first), log_softmax(second)
        there = sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
        back = sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))
        both = entropy(first, label) + entropy(second, label)
        joint.append((1 - lam) * both + lam * (there + back))
    count = max(1, int((1 - rate) * len(rows)))
    return sum(joint[position] for position in first_of(joint, range(len(rows)), count)) / count


def naive_decoupling(rows, target, floor, balance, everything):
    total = number = 0.0
    for (first, second), label in zip(rows, target, strict=True):
        if everything or argmax(first) != argmax(second):
            weight = len(rows) / C / target.count(label) if balance else 1.0
            total += weight * (entropy(first, label) + entropy(second, label))
            number += 1
    return total / max(floor * len(rows), number) if number else 0.0


CASES = [
    (
        CoTeaching,
        {"num_gradual": 4},
        lambda rows, target, rate, epoch: naive_exchange(rows, target, rate, range(len(rows))),
    ),
    (
        CoTeachingPlus,
        {"num_gradual": 4, "warmup_epochs": 2},
        lambda rows, target, rate, epoch: (
            naive_plus(rows, target, rate)
            if epoch >= 2
            else naive_exchange(rows, target, rate, range(len(rows)))
        ),
    ),
    (
        CoTeachingPlus,
        {"num_gradual": 2, "double_softmax": True},
        lambda rows, target, rate, epoch: naive_plus(rows, target, rate, double),
    ),
    (
        CoTeachingPlus,
        {"num_gradual": 2, "double_softmax": True, "agreement_epochs": 11},
        lambda rows, target, rate, epoch: (
            naive_plus(rows, target, rate, double)
            or (epoch < 11 and naive_whole(rows, target, double))
        ),
    ),
    (
        JoCoR,
        {"num_gradual": 4, "lam": 0.7},
        lambda rows, target, rate, epoch: naive_jocor(rows, target, rate, 0.7),
    ),
    (
        Decoupling,
        {"floor": 0.7, "balance": True, "init_steps": 2},
        lambda rows, target, rate, epoch: naive_decoupling(rows, target, 0.7, True, epoch < 2),
    ),
    (
        Decoupling,
        {"floor": 0.0},
        lambda rows, target, rate, epoch: naive_decoupling(rows, target, 0.0, False, False),
    ),
]


@pytest.mark.parametrize(("method", "arguments", "naive"), CASES)
def test_a_naive_loop(method, arguments, naive):
    """Value and, by finite differences of the loop, gradient; batches of every size down to one."""
    objective, seen = make(method, 0.45, **arguments), set()
    for epoch, size in enumerate([8, 8, 8, 8, 7, 6, 5, 4, 3, 2, 1, 16, 1, 1]):
        batch = outputs_batch(epoch, size, scale=0.8)
        objective.set_epoch(epoch)
        rate = objective.forget_rate.at(epoch) if method in FORGETTING else None
        loss, gradient = step(objective, batch)
        rows, target = batch.input.tolist(), batch.target.tolist()
        expected = naive(rows, target, rate, epoch)
        assert loss == pytest.approx(expected, rel=1e-9, abs=1e-12)
        seen.add(expected > 0)
        for position in range(0, size, 3):
            for network, label in ((0, target[position]), (1, 0)):
                changed = copy.deepcopy(rows)
                changed[position][network][label] += 1e-6
                slope = (naive(changed, target, rate, epoch) - expected) / 1e-6
                got = gradient[position, network, label].item()
                assert got == pytest.approx(slope, abs=1e-5)
    idle = method in (CoTeachingPlus, Decoupling) and "agreement_epochs" not in arguments
    assert seen == ({True, False} if idle else {True})  # the batch of epoch 10 agrees


def test_jocor_by_hand():
    """p = (3/4, 1/4), q = (1/2, 1/2): KL + KL = (1/4) log 3; cross-entropy log(4/3) + log 2."""
    batch = Batch(
        torch.tensor([[[3.0, 1.0], [1.0, 1.0]]]).log(), torch.tensor([0]), torch.tensor([7])
    )
    objective = make(JoCoR, lam=0.25)
    expected = 0.75 * math.log(8 / 3) + 0.25 * 0.25 * math.log(3)
    assert objective(nn.Identity(), batch).item() == pytest.approx(expected)
    assert objective.sample_score()[7].item() == pytest.approx(expected)


def test_ties_are_kept_by_their_position_in_the_batch():
    values = torch.tensor([2.0, 1.0, 1.0, 0.5, 1.0, 2.0])
    assert smallest(values, 3).tolist() == [3, 1, 2]
    everywhere = torch.ones(6, dtype=torch.bool)
    for count, expected in ((3, [1, 2, 3]), (4, [1, 2, 3, 4]), (6, [0, 1, 2, 3, 4, 5])):
        kept = smallest_among(values, everywhere, torch.tensor(count))
        assert kept.nonzero().squeeze(1).tolist() == expected
    some = torch.tensor([True, False, True, False, True, True])
    assert smallest_among(values, some, torch.tensor(3.0)).tolist() == [1, 0, 1, 0, 1, 0]
    assert smallest_among(values, some, torch.tensor(5)).tolist() == some.tolist()
    assert not smallest_among(values, ~everywhere, torch.tensor(1)).any()


# --- what the papers say


def test_forgetting_nothing_is_cross_entropy_of_both_networks():
    for method, arguments in ((CoTeaching, {}), (JoCoR, {"lam": 0.0})):
        batch = outputs_batch()
        loss, gradient = step(make(method, 0.0, **arguments), batch)
        plain = sum(cross_entropy(output, batch.target).mean() for output in batch.input.unbind(1))
        assert loss == pytest.approx(plain.item())
        torch.testing.assert_close(gradient, torch.autograd.grad(plain, batch.input)[0])


def test_a_network_learns_nothing_outside_what_the_other_chose():
    objective, batch = make(CoTeaching, 0.5, num_gradual=1), outputs_batch()
    objective.set_epoch(1)
    _, gradient = step(objective, batch)
    values = [cross_entropy(output, batch.target) for output in batch.input.detach().unbind(1)]
    moved = gradient.abs().sum(2) > 0
    chosen = [sorted(value.argsort()[: B // 2].tolist()) for value in values]
    assert chosen[0] != chosen[1]
    for network in range(2):
        assert moved[:, network].nonzero().squeeze(1).tolist() == chosen[1 - network]


def test_both_networks_of_jocor_learn_the_same_samples():
    objective, batch = make(JoCoR, 0.5, num_gradual=1), outputs_batch()
    objective.set_epoch(1)
    moved = step(objective, batch)[1].abs().sum(2) > 0
    assert moved.sum(0).tolist() == [B // 2, B // 2] and torch.equal(moved[:, 0], moved[:, 1])


def train(objective, model, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    values = []
    for number in range(steps):
        loss = objective(model, inputs_batch(number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


@pytest.mark.parametrize("method", TWO)
def test_equal_networks_stay_equal(method):
    """And where only disagreement is learned from, they stay as they are."""
    model = networks(equal=True)
    before = copy.deepcopy(model.state_dict())
    objective = make(method, model=model)
    if method in FORGETTING:
        objective.set_epoch(20)
    values = train(objective, model, 20)
    first, second = (network.weight for network in model.networks)
    assert torch.equal(first, second)
    frozen = method in (CoTeachingPlus, Decoupling)
    assert torch.equal(first, before["networks.0.weight"]) == frozen
    assert all(value == 0 for value in values) == frozen


def test_decoupling_trains_on_whole_batches_first():
    model = networks(equal=True)
    objective = make(Decoupling, model=model, init_steps=3)
    values = train(objective, model, 5)
    assert [value > 0 for value in values] == [True, True, True, False, False]
    assert objective.steps == 5


def test_the_floor_of_decoupling_makes_steps_small():
    batch = outputs_batch(scale=0.1)
    with torch.no_grad():
        batch.input[1:, 1] = batch.input[1:, 0]  # they disagree about sample 0 at most
        batch.input[0] = torch.eye(2, C)
    values = [step(make(Decoupling, floor=floor), batch)[0] for floor in (0.0, 0.125, 0.5, 1.0)]
    assert values == pytest.approx([values[0], values[0], values[0] / 4, values[0] / 8])


def test_decoupling_gives_every_class_the_same_weight_in_sum():
    batch = outputs_batch(size=12)
    target = torch.tensor([0] * 6 + [1] * 4 + [2] * 2)
    objective = make(Decoupling, balance=True, init_steps=1)
    weights = objective.weights(*batch.input.unbind(1), target)
    assert [weights[target == label].sum().item() for label in range(3)] == pytest.approx([0.2] * 3)


def test_networks_that_agree_about_everything_learn_in_the_first_epochs_alone():
    batch = outputs_batch()
    batch = batch._replace(input=batch.input.detach()[:, :1].repeat(1, 2, 1).requires_grad_())
    objective = make(CoTeachingPlus, agreement_epochs=1)
    assert step(objective, batch)[0] > 0
    objective.set_epoch(1)
    assert step(objective, batch)[0] == 0


def test_cross_entropy_of_probabilities_is_bounded():
    batch = outputs_batch(size=32, scale=50.0)
    objective = make(CoTeachingPlus, 0.0, double_softmax=True)
    for seed in range(5):
        objective.set_epoch(0)
        value = step(objective, outputs_batch(seed, 32, 50.0))[0] / 2
        assert math.log(1 + (C - 1) / math.e) <= value <= math.log(math.e + C - 1)
    assert step(make(CoTeachingPlus, 0.0), batch)[0] > 10


# --- what they keep, and what they refuse


@pytest.mark.parametrize("method", TWO)
def test_the_score_is_the_last_loss_of_the_drawn_samples(method):
    objective, batch = make(method), outputs_batch()
    step(objective, batch)
    score = objective.sample_score()
    both = sum(cross_entropy(output, batch.target) for output in batch.input.detach().unbind(1))
    if method is JoCoR:
        expected = objective.joint_losses(*batch.input.detach().unbind(1), batch.target)
    else:
        expected = both / 2
    torch.testing.assert_close(score[batch.index], expected.float())
    others = torch.ones(N, dtype=torch.bool).index_fill_(0, batch.index, False)
    assert not score[others].any() and score.dtype == torch.float32
    before = score.clone()
    objective.eval()(nn.Identity(), outputs_batch(1))
    assert torch.equal(objective.sample_score(), before)


@pytest.mark.parametrize("method", TWO)
def test_half_precision_chooses_by_losses_in_float32(method):
    """As in float64, from the same outputs: what is chosen shows in the gradient."""
    arguments = {"num_gradual": 1} if method in FORGETTING else {}
    half, full = make(method, **arguments), make(method, **arguments)
    for number in range(5):
        batch = outputs_batch(number)
        outputs = batch.input.detach().bfloat16().requires_grad_()
        gradients = []
        for objective, value in (
            (half, outputs),
            (full, outputs.detach().double().requires_grad_()),
        ):
            if method in FORGETTING:
                objective.set_epoch(3)
            loss = objective(nn.Identity(), Batch(value, batch.target, batch.index))
            gradients.append(torch.autograd.grad(loss, value)[0])
            if value.dtype == torch.bfloat16:
                assert loss.dtype == torch.float32
        torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=0.01, atol=1e-4)
    torch.testing.assert_close(half.sample_score(), full.sample_score(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", TWO)
def test_networks_that_share_parameters_are_refused(method):
    network = nn.Linear(FEATURES, C)
    with pytest.raises(ValueError, match="the two networks share 2 parameters"):
        make(method, model=Several([network, network]))
    trunk = nn.Linear(FEATURES, 4, bias=False)
    heads = [nn.Sequential(trunk, nn.ReLU(), nn.Linear(4, C)) for _ in range(2)]
    with pytest.raises(ValueError, match="share 1 parameters"):
        make(method, model=Several(heads))
    make(method, model=networks())


@pytest.mark.parametrize("method", TWO)
def test_a_model_of_one_network_is_refused(method):
    objective = make(method)
    for model in (nn.Linear(FEATURES, C), networks().eval()):
        with pytest.raises(ValueError, match=r"needs outputs \[B, 2, C\], got \[8, 5\]"):
            objective(model, inputs_batch())
    with pytest.raises(ValueError, match=r"got \[8, 3, 5\]"):
        objective(nn.Identity(), inputs_batch()._replace(input=torch.zeros(B, 3, C)))


@pytest.mark.parametrize("method", TWO)
def test_an_index_outside_the_training_set_is_an_error(method):
    batch = outputs_batch()
    for bad in (-1, N):
        index = batch.index.clone()
        index[3] = bad
        with pytest.raises(IndexError, match=rf"\[0, {N}\), got {bad}"):
            make(method)(nn.Identity(), Batch(batch.input, batch.target, index))


@pytest.fixture
def images(tmp_path):
    """A folder of images whose true labels nobody knows."""
    for part, label in itertools.product(("train", "test"), ("dark", "light")):
        (tmp_path / part / label).mkdir(parents=True)
        for number in range(20):
            image = Image.new("RGB", (20, 20), (number + 120 * (label == "light"),) * 3)
            image.save(tmp_path / part / label / f"{number}.png")
    return tmp_path


def test_a_run_whose_noise_rate_is_not_known_needs_a_forget_rate(run, images):
    options = [
        f"dataset.root={images}",
        "dataset.image_size=16",
        "dataset.num_workers=0",
        "noise=none",
        "batch_size=8",
        "epochs=1",
        "loss=CoTeaching",
    ]
    params = {"params": "params/folder/plain.yaml"}
    code, *_, complaints = run(*options, **params)
    assert code == 2 and "CoTeaching: which part of the labels is wrong is not" in complaints
    assert "set loss.forget_rate" in complaints
    code, directory, *_ = run(*options, "loss.forget_rate=0.3", **params)
    assert code == 0 and (directory / "suspects.csv").exists()


@pytest.mark.parametrize("method", ["co_teaching", "jocor"])
def test_wrong_labels_are_found_and_not_learned(run, method):
    """A small network on digits with 40 % wrong labels, of which cross-entropy would learn many."""
    summaries = {}
    for name in (method, "plain"):
        code, directory, *_ = run(
            "model.hidden=[64]", "epochs=25", params=f"params/digits/{name}.yaml", name=name
        )
        assert code == 0
        summaries[name] = json.loads((directory / "summary.json").read_text())
    assert summaries[method]["test"]["last"] > summaries["plain"]["test"]["last"] + 5
    assert summaries[method]["detection"]["auroc"] > 0.95


def test_every_method_of_two_networks_is_tested_here():
    named = {name for name in losses.__all__ if getattr(getattr(losses, name), "networks", 1) == 2}
    assert named == {method.__name__ for method in TWO}
