"""The methods that learn from trusted labels.

Against traces of the authors' code where there are some, against loops in plain Python and finite
differences, and the places where an implementation may go wrong in silence.
"""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datasets.base import Batch
from losses import LearningToReweight, Plain
from losses.base import as_objective
from losses.task import cross_entropy, mse
from models.lenet import lenet
from models.preact_resnet18 import preact_resnet18
from tests.fixtures import check_trace
from tests.replay_methods import METHODS

GOLDEN = Path(__file__).parent / "golden" / "methods"
TRACES = sorted(path.stem for path in GOLDEN.glob("l2rw*.npz"))
N, C, B, M, FEATURES = 40, 5, 12, 6, 7


@pytest.mark.parametrize("name", TRACES)
def test_trace(name):
    check_trace(name, METHODS)


def test_there_are_traces_of_each_method():
    assert len(TRACES) == 3


def batch_of(*, seed=0, size=B, trusted=M, shape=(FEATURES,), classes=C, dtype=torch.float32):
    """A batch with its trusted samples."""
    generator = torch.Generator().manual_seed(seed)

    def samples(count):
        inputs = torch.randn(count, *shape, generator=generator, dtype=dtype)
        return inputs, torch.randint(classes, (count,), generator=generator)

    extra = Batch(*samples(trusted), torch.arange(trusted))
    return Batch(*samples(size), torch.randperm(N, generator=generator)[:size], extra)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Linear(FEATURES, 9), nn.Tanh(), nn.Linear(9, C)
    return nn.Sequential(*layers).to(dtype)


def reweight(**arguments):
    return LearningToReweight(cross_entropy, N, **{"trusted_batch_size": M} | arguments)


# --- Learning to reweight


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_weights_are_those_of_finite_differences_of_the_look_ahead(decay):
    """For each sample: how fast the trusted loss falls as a step of descent takes it in."""
    model, batch = network(torch.float64), batch_of(dtype=torch.float64)
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def trusted_loss_after(number, eps):
        loss = eps * cross_entropy(model(batch.input), batch.target)[number]
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= gradient
            value = cross_entropy(model(batch.extra.input), batch.extra.target).mean()
            value += decay / 2 * sum(p.square().sum() for p in model.parameters() if p.ndim > 1)
            for parameter, old in zip(model.parameters(), before, strict=True):
                parameter.copy_(old)
        return value.item()

    slopes = [
        (trusted_loss_after(number, -1e-5) - trusted_loss_after(number, 1e-5)) / 2e-5
        for number in range(B)
    ]
    positive = torch.tensor(slopes, dtype=torch.float64).clamp_min(0)
    assert 0 < (positive > 0).sum() < B
    weights = reweight(trusted_decay=decay).weights(model, batch)
    torch.testing.assert_close(weights, positive / positive.sum(), rtol=1e-5, atol=1e-8)


def test_the_loss_is_the_weighted_sum_and_the_weights_carry_no_gradient():
    model, batch, method = network(), batch_of(), reweight()
    weights = method.weights(model, batch)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all() and not weights.requires_grad
    expected = (weights * cross_entropy(model(batch.input), batch.target)).sum()
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = method(model, batch)
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_batch_that_helps_nobody_has_no_weight():
    """All its samples contradict the trusted one."""
    model = nn.Linear(FEATURES, 2)
    inputs = torch.randn(1, FEATURES)
    extra = Batch(inputs, torch.tensor([1]), torch.tensor([0]))
    batch = Batch(inputs.expand(4, -1), torch.zeros(4).long(), torch.arange(4), extra)
    method = reweight(trusted_batch_size=1)
    loss = method(model, batch)
    assert loss == 0
    loss.backward()
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_a_trusted_sample_under_a_wrong_label_gets_no_weight_under_the_right_one_it_does():
    model, batch = nn.Linear(FEATURES, C), batch_of(trusted=1)
    inputs = torch.cat([batch.extra.input.repeat(2, 1), batch.input])
    right = batch.extra.target
    target = torch.cat([right, (right + 1) % C, batch.target])
    mixed = batch._replace(input=inputs, target=target, index=torch.arange(B + 2))
    weights = reweight(trusted_batch_size=1).weights(model, mixed)
    assert weights[0] > 0 and weights[1] == 0


@pytest.mark.parametrize(("make", "shape"), [(lenet, (1, 28, 28)), (preact_resnet18, (3, 8, 8))])
def test_both_ways_of_differentiating_give_the_same_weights(make, shape):
    torch.manual_seed(0)
    model, batch = make(C), batch_of(shape=shape)
    forward, backward = (
        reweight(meta=meta).weights(model, batch) for meta in ("forward", "backward")
    )
    torch.testing.assert_close(forward, backward, rtol=1e-3, atol=1e-5)


class Cube(torch.autograd.Function):
    """An operator without a forward-mode rule, whose gradient can be differentiated."""

    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return values**3

    @staticmethod
    def backward(ctx, gradient):
        (values,) = ctx.saved_tensors
        return 3 * values**2 * gradient


class Cubes(nn.Module):
    def forward(self, values):
        return Cube.apply(values)


def test_an_operator_without_a_forward_mode_rule_is_differentiated_twice_and_that_is_said_once(
    capsys,
):
    batch, method = batch_of(), reweight()
    linear = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, C)
    weights = [method.weights(nn.Sequential(linear[0], Cubes(), linear[1]), batch) for _ in "ab"]
    assert capsys.readouterr().err.count("goes on with meta=backward") == 1
    assert method.meta == "backward" and torch.equal(*weights)

    class Known(nn.Module):
        def forward(self, values):
            return values**3

    expected = reweight().weights(nn.Sequential(linear[0], Known(), linear[1]), batch)
    torch.testing.assert_close(weights[0], expected, rtol=1e-4, atol=1e-6)


def test_other_errors_of_a_model_are_not_taken_for_a_missing_rule():
    class Broken(nn.Module):
        def forward(self, inputs):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model, method = nn.Sequential(nn.Linear(FEATURES, C)), reweight()
    batch = batch_of()
    direction = method.trusted_gradient(model, batch.extra)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        method._forward_mode(nn.Sequential(*model, Broken()), batch, direction)
    broken = nn.Sequential(*model, Broken())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        method.alignment(broken, batch)
    assert method.meta == "forward"


@pytest.mark.parametrize("meta", ["forward", "backward"])
def test_only_the_weighted_pass_moves_the_statistics_of_a_batch_norm(meta):
    def normed():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(FEATURES, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, C))

    model, alone, batch = normed(), normed(), batch_of()
    reweight(meta=meta)(model, batch).backward()
    alone(batch.input)
    for name, buffer in alone[1].named_buffers():
        assert torch.equal(buffer, model[1].get_buffer(name)), name
    assert model[1].track_running_stats and model[1].num_batches_tracked == 1
    frozen = normed().eval()
    before = frozen[1].running_mean.clone()
    weights = reweight(meta=meta).weights(frozen, batch)
    assert torch.equal(before, frozen[1].running_mean)
    frozen[1].running_mean += 1  # which evaluation mode normalises by
    assert not torch.allclose(weights, reweight(meta=meta).weights(frozen, batch))


def test_frozen_parameters_have_no_part_in_the_weights():
    model, batch = network(), batch_of()
    model[0].requires_grad_(False)
    features = model[:2](batch.input).detach(), model[:2](batch.extra.input).detach()
    extra = batch.extra._replace(input=features[1])
    expected = reweight().weights(model[2:], batch._replace(input=features[0], extra=extra))
    torch.testing.assert_close(reweight().weights(model, batch), expected)


def test_numbers_to_predict_are_reweighted_too():
    model, batch = nn.Linear(FEATURES, 1), batch_of()
    extra = batch.extra._replace(target=batch.extra.target - 2.0)
    batch = batch._replace(target=2.0 - batch.target, extra=extra)
    weights = LearningToReweight(mse, N, trusted_batch_size=M).weights(model, batch)
    assert weights.sum() == pytest.approx(1) and 0 < (weights > 0).sum() < B


def test_the_score_is_minus_the_average_weight_times_the_batch_size():
    model, method, average = network(), reweight(), [1.0] * N
    for seed in range(4):
        batch = batch_of(seed=seed)
        weights = method.weights(model, batch)
        method(model, batch)
        for position, i in enumerate(batch.index.tolist()):
            average[i] = 0.9 * average[i] + 0.1 * B * weights[position].item()
    torch.testing.assert_close(method.sample_score(), -torch.tensor(average))


def test_a_step_costs_at_most_three_of_cross_entropy():
    """In operations, with the authors' 100 trusted samples to a batch of 128."""
    model, batch = lenet(10), batch_of(size=32, trusted=25, shape=(1, 28, 28), classes=10)
    counts = []
    for method in (Plain(cross_entropy), reweight(trusted_batch_size=25)):
        with FlopCounterMode(display=False) as counter:
            as_objective(method)(model, batch).backward()
        counts.append(counter.get_total_flops())
    assert 2 * counts[0] < counts[1] <= 3 * counts[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trusted_batch_size": 0}, r"trusted_batch_size must lie in \[1, inf\), got 0"),
        ({"trusted_decay": -0.1}, r"trusted_decay must lie in \[0, inf\), got -0.1"),
        ({"trusted_decay": math.nan}, "trusted_decay must lie"),
        ({"meta": "sideways"}, 'meta must be "forward" or "backward", got \'sideways\''),
    ],
)
def test_an_argument_of_learning_to_reweight_outside_its_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        reweight(**arguments)


def test_a_batch_without_trusted_samples_is_refused():
    with pytest.raises(ValueError, match=r"needs trusted samples in batch\.extra"):
        reweight()(network(), batch_of()._replace(extra=None))
