"""The methods that learn from trusted labels.

Against traces of the authors' code where there are some, against loops in plain Python and finite
differences, and the places where an implementation may go wrong in silence.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datasets.base import Batch
from losses import (
    CleanNet,
    Distillation,
    LabelCleaning,
    LearningToReweight,
    NoisyCleanCRF,
    Plain,
    Teacher,
)
from losses.base import as_objective
from losses.cleannet import class_references, comparison_losses
from losses.label_cleaning import clean, cleaning_losses
from losses.noisy_clean_crf import bound, joint_losses, joint_scores
from losses.task import cross_entropy, mse
from models.lenet import lenet
from models.preact_resnet18 import preact_resnet18
from tests.fixtures import check_trace
from tests.replay_methods import METHODS
from tests.test_run import arrays
from utils.run_state import read_summary

GOLDEN = Path(__file__).parent / "golden" / "methods"
TRACES = sorted(
    path.stem
    for method in ("l2rw", "cleannet", "label_cleaning", "distillation", "vahdat_crf")
    for path in GOLDEN.glob(f"{method}*.npz")
)
N, C, B, M, FEATURES = 40, 5, 12, 6, 7


@pytest.mark.parametrize("name", TRACES)
def test_trace(name):
    check_trace(name, METHODS)


def test_there_are_traces_of_each_method():
    assert len(TRACES) == 9


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


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_compiled_model_has_the_weights_of_the_model():
    model, batch = network(), batch_of()
    compiled = torch.compile(model, backend="eager")
    weights = [reweight().weights(each, batch) for each in (model, compiled)]
    assert torch.equal(*weights)
    assert reweight()(compiled, batch).item() == pytest.approx(reweight()(model, batch).item())


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


@pytest.mark.parametrize("meta", ["forward", "backward"])
def test_losses_that_no_parameter_takes_part_in_have_no_weight(meta):
    class Gate(nn.Module):  # lets trusted samples through, and cuts the others off
        def forward(self, inputs):
            return inputs if len(inputs) == M else inputs.detach()

    model, batch = nn.Sequential(nn.Linear(FEATURES, C), Gate()), batch_of()
    assert M != B
    assert torch.equal(reweight(meta=meta).weights(model, batch), torch.zeros(B))


def test_weights_under_autocast_are_near_those_without():
    model, batch = network(), batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        weights = reweight().weights(model, batch)
    torch.testing.assert_close(weights.float(), reweight().weights(model, batch), rtol=0, atol=0.05)


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


# --- what methods with both labels of trusted samples share

GIVEN = torch.arange(N) % C
TRUE = torch.where(torch.arange(N) % 3 == 0, (GIVEN + 1) % C, GIVEN)
TRUSTED = torch.where(torch.arange(N) < M, TRUE, -1)  # of the first M


def paired(method, model, **arguments):
    facts = {"epochs": 5} if method is NoisyCleanCRF else {}
    options = {"trusted_batch_size": M} | arguments
    return method(cross_entropy, C, GIVEN, TRUSTED, model, **facts, **options)


def paired_batch(seed=0):
    """Noisy samples that are none of the trusted ones, and all of these."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, FEATURES, generator=torch.Generator().manual_seed(9))
    index, rows = M + torch.randperm(N - M, generator=generator)[:B], torch.arange(M)
    return Batch(inputs[index], GIVEN[index], index, Batch(inputs[rows], TRUE[rows], rows))


PAIRED = pytest.mark.parametrize("method", [LabelCleaning, NoisyCleanCRF])


@PAIRED
def test_a_dataset_with_a_verified_part_of_its_own_has_no_pairs(method):
    facts = {"epochs": 5} if method is NoisyCleanCRF else {}
    with pytest.raises(ValueError, match="of which the given label is known too"):
        method(cross_entropy, C, GIVEN, None, network(), **facts)


@PAIRED
def test_a_model_that_does_not_end_in_a_linear_layer_is_refused(method):
    for model in (nn.Conv2d(1, C, 3), nn.Linear(FEATURES, C + 1)):
        with pytest.raises(ValueError, match=f"a last linear layer with {C} outputs"):
            paired(method, model)


@PAIRED
def test_numbers_to_predict_have_no_classes_to_clean(method):
    facts = {"epochs": 5} if method is NoisyCleanCRF else {}
    with pytest.raises(ValueError, match=r"needs task_loss cross_entropy, .*got losses\.task\.mse"):
        method(mse, C, GIVEN, TRUSTED, network(), **facts)


@PAIRED
def test_a_batch_needs_its_trusted_samples(method):
    model = network()
    with pytest.raises(ValueError, match=r"needs trusted samples in batch\.extra, got none"):
        paired(method, model)(model, paired_batch()._replace(extra=None))


@PAIRED
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_compiled_model_hands_over_its_features_too(method):
    values = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model = network()
        objective = paired(method, model)
        forward = torch.compile(model, backend="eager") if compiled else model
        values.append([objective(forward, paired_batch(seed)).item() for seed in (0, 1)])
    assert values[0] == values[1]


# --- CleanNet

VERIFIED = torch.where(TRUSTED < 0, -1, (TRUSTED == GIVEN).long())


def cleannet(model, given=GIVEN, verified=VERIFIED, **arguments):
    options = {"begin": 1, "steps": 5, "num_references": 2} | arguments
    return CleanNet(cross_entropy, C, given, verified, model, 10, **options)


def test_references_are_centres_of_each_class_and_few_samples_stand_for_themselves():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0], [9, 0], [0, 9]])
    features = centres.repeat(10, 1) + 0.01 * torch.randn(30, 2)
    features = torch.cat([features, torch.tensor([[5.0, 5], [7, 7]])])
    labels = torch.cat([torch.zeros(30), torch.ones(2)]).long()
    references = class_references(features, labels, num_outputs=3, count=3, seed=0)
    first = references[0][references[0].sum(1).argsort(stable=True)]
    assert first[0].norm() < 0.1 and {tuple(row) for row in first[1:].round().tolist()} == {
        (9, 0),
        (0, 9),
    }
    assert references[1].tolist() == [[5, 5], [7, 7], [5, 5]]
    assert not references[2].any()


def test_the_loss_of_a_comparison_by_hand():
    similarity = torch.tensor([0.8, 0.8, 0.05, 0.3, 0.04])
    verified = torch.tensor([1, 0, 0, -1, -1])
    features, decoded = torch.zeros(5, 2), torch.full((5, 2), 0.5)
    losses = comparison_losses(
        similarity,
        features,
        decoded,
        verified,
        negative_weight=5.0,
        margin=0.1,
        beta=0.2,
        gamma=0.1,
    )
    expected = torch.tensor([0.2, 3.5, 0, 0.07, 0]) + 0.2 * 0.5
    torch.testing.assert_close(losses, expected)


def test_samples_that_do_not_resemble_the_class_of_their_label_lose_their_weight():
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(300) % 3
    features = 3 * torch.eye(3)[true] + 0.3 * torch.randn(300, 3, generator=generator).abs()
    wrong = torch.rand(300, generator=generator) < 0.3
    given = torch.where(wrong, (true + 1) % 3, true)
    known = torch.arange(300) < 60
    verified = torch.where(known, (~wrong).long(), -1)
    model, order = nn.Linear(3, 3), torch.randperm(300, generator=generator)
    method = CleanNet(
        cross_entropy, 3, given, verified, model, 10, begin=2, steps=200, num_references=4
    )

    def predict():
        return model(features[order]), given[order], order

    before = torch.get_rng_state()
    method.end_epoch(lambda: pytest.fail("it does not begin before"))
    assert torch.equal(method.weight, torch.ones(300))
    method.set_epoch(1)
    method.end_epoch(predict)
    assert torch.equal(torch.get_rng_state(), before) and not method.inputs.kept
    assert torch.equal(method.weight[known], (~wrong)[known].float())
    others, weight = ~known, method.weight
    assert weight[others & ~wrong].mean() > weight[others & wrong].mean() + 0.4
    again = CleanNet(
        cross_entropy, 3, given, verified, model, 10, begin=2, steps=200, num_references=4
    )
    again.set_epoch(1)
    again.end_epoch(lambda: (model(features), given, torch.arange(300)))
    assert torch.equal(again.weight, weight)  # in whatever order the samples come
    index = torch.arange(50, 60)
    output = torch.randn(10, 3)
    losses = method(output, given[index], index)
    torch.testing.assert_close(losses, weight[index] * cross_entropy(output, given[index]))
    torch.testing.assert_close(method.sample_score(), -weight)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_features_are_those_that_a_compiled_model_computes():
    model, inputs, order = network(), torch.randn(N, FEATURES), torch.randperm(N)
    method = cleannet(model)
    compiled = torch.compile(model.eval(), backend="eager")

    @torch.no_grad()
    def predict():
        return torch.cat([compiled(part) for part in inputs[order].split(20)]), GIVEN, order

    predict()
    features, index = method._features(predict)
    torch.testing.assert_close(features, model[:2](inputs).detach())
    assert torch.equal(index, torch.arange(N)) and not method.inputs.kept
    predict()
    assert not method.inputs.kept


def test_weights_are_computed_after_the_epochs_that_are_asked_for():
    model, seen = nn.Linear(FEATURES, C), []
    method = cleannet(model, begin=3, every=2)
    inputs = torch.randn(N, FEATURES)

    def predict():
        seen.append(method.epoch + 1)
        return model(inputs), GIVEN, torch.arange(N)

    for epoch in range(8):
        method.set_epoch(epoch)
        method.end_epoch(predict)
    assert seen == [3, 5, 7]


def test_a_run_needs_its_verified_samples_among_the_others(run):
    params = "params/digits/cleannet.yaml"
    for overrides in (["trusted.train=false"], ["trusted.count=0", "trusted.train=false"]):
        code, *_, stderr = run("loss.begin=1", *overrides, params=params)
        assert code == 2 and "CleanNet compares trusted samples with others" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"begin": 0}, "begin must lie"),
        ({"begin": 10}, "begin must be less than 10, the epochs of the training"),
        ({"every": 0}, "every must lie"),
        ({"num_references": 0}, "num_references must lie"),
        ({"steps": 0}, "steps must lie"),
        ({"rate": 0.0}, "rate must lie"),
        ({"margin": 1.5}, "margin must lie"),
        ({"beta": math.nan}, "beta must lie"),
        ({"decay": -1.0}, "decay must lie"),
        ({"normalisation": "l3"}, "normalisation must be one of log, l2, none, got 'l3'"),
        ({"verified": torch.ones(N).long()}, "with right and with wrong labels.*raise trusted"),
    ],
)
def test_an_argument_of_cleannet_outside_its_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        cleannet(network(), **arguments)


# --- label cleaning


def test_label_cleaning_begins_as_cross_entropy_with_the_given_and_the_trusted_labels():
    model, batch = network(), paired_batch()
    method = paired(LabelCleaning, model, clean_weight=0.5)
    own = cross_entropy(model(batch.input), batch.target)
    trusted = cross_entropy(model(batch.extra.input), batch.extra.target)
    wrong = (GIVEN[:M] != TRUE[:M]).float()
    assert 0 < wrong.sum() < M
    expected = torch.cat([own, trusted + 0.5 * 2 * wrong]).mean()
    torch.testing.assert_close(method(model, batch), expected)
    assert torch.equal(method.labels()[:M], TRUE[:M])
    assert torch.equal(method.labels()[M:], GIVEN[M:])
    assert not method.sample_score().any()


def test_label_cleaning_by_hand():
    given, true = torch.eye(3)[[0, 1]], torch.eye(3)[[2, 1]]
    residual = torch.tensor([[-0.6, 0.2, 0.1], [0.5, -2.0, -1.0]])
    cleaned = clean(given, residual)
    torch.testing.assert_close(cleaned, torch.tensor([[0.4, 0.2, 0.1], [0.5, 0, 0]]))
    output = torch.tensor([[1.0, 0, 0], [0, 2, 0]])
    log_p = output.log_softmax(1)
    to_clean, to_classify, target = cleaning_losses(
        output, cleaned, true, torch.tensor([False, True])
    )
    torch.testing.assert_close(to_clean, torch.tensor([0, 1.5]))
    torch.testing.assert_close(target, torch.tensor([[4 / 7, 2 / 7, 1 / 7], [0, 1, 0]]))
    by_hand = [-(4 * log_p[0, 0] + 2 * log_p[0, 1] + log_p[0, 2]) / 7, -log_p[1, 1]]
    torch.testing.assert_close(to_classify, torch.stack(by_hand))


def test_a_cleaner_that_begins_with_zeros_moves():
    model, batch = network(), paired_batch()
    method = paired(LabelCleaning, model)
    method(model, batch).backward()
    wrong = GIVEN[:M] != TRUE[:M]
    pulled = torch.zeros(C)
    for given, true in zip(GIVEN[:M][wrong], TRUE[:M][wrong], strict=True):
        pulled[given] += 1
        pulled[true] -= 1
    expected = method.clean_weight * pulled / (B + M)
    torch.testing.assert_close(method.cleaner.residual.bias.grad, expected)


def test_a_sample_whose_labels_are_all_cleaned_away_has_no_loss():
    output = torch.randn(1, 3, requires_grad=True)
    nothing, verified = torch.zeros(1, 3), torch.tensor([False])
    _, losses, _ = cleaning_losses(output, nothing, nothing, verified)
    assert losses == 0
    losses.sum().backward()
    assert not output.grad.any()


def test_the_classifier_does_not_teach_the_cleaner():
    model = network()
    method, batch = paired(LabelCleaning, model, clean_weight=0.0), paired_batch()
    nn.init.normal_(method.cleaner.residual.weight, std=0.1)
    method(model, batch).backward()
    assert not any(
        parameter.grad is not None and parameter.grad.any()
        for parameter in method.cleaner.parameters()
    )
    assert model[0].weight.grad.any()
    paired(LabelCleaning, model, clean_weight=0.1)(model, batch)


def test_before_its_warm_up_is_over_nothing_is_cleaned():
    model, batch = network(), paired_batch()
    method = paired(LabelCleaning, model, warm_up=2)
    nn.init.normal_(method.cleaner.residual.weight)
    method.set_epoch(1)
    method(model, batch).backward()
    assert not method.sample_score().any() and not method.cleaner.residual.weight.grad.any()
    method.set_epoch(2)
    method(model, batch).backward()
    assert method.sample_score().any() and method.cleaner.residual.weight.grad.any()


# --- distillation


def test_a_mixture_by_hand(tmp_path):
    graph = np.array([[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]])
    np.savetxt(tmp_path / "graph.csv", graph, delimiter=",")
    method = Distillation(
        cross_entropy,
        3,
        torch.tensor([2]),
        lam=0.25,
        temperature=2.0,
        beta=0.4,
        graph=str(tmp_path / "graph.csv"),
    )
    teacher = torch.tensor([[0.64, 0.36, 0.0]])
    s = np.array([0.8, 0.6, 0]) / 1.4
    expected = 0.25 * np.array([0, 0, 1]) + 0.75 * (0.6 * s + 0.4 * s @ graph)
    mixture = method.mixture(teacher, torch.tensor([2]))
    np.testing.assert_allclose(mixture[0], expected, rtol=1e-6)
    output = torch.randn(1, 3)
    for precision in (torch.float32, torch.bfloat16):
        output = output.to(precision)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            loss = method(output, teacher, torch.tensor([0]))
        torch.testing.assert_close(loss, -(mixture * output.float().log_softmax(1)).sum(1))


def test_of_the_given_label_alone_distillation_is_cross_entropy():
    method = Distillation(cross_entropy, C, GIVEN, lam=1.0)
    output, teacher = torch.randn(B, C), torch.randn(B, C).softmax(1)
    index = torch.arange(B) + 3
    expected = cross_entropy(output, GIVEN[index])
    torch.testing.assert_close(method(output, teacher, index), expected)


def test_the_score_of_a_student_is_how_little_it_believes_the_given_label():
    method, score = Distillation(cross_entropy, C, GIVEN), torch.zeros(N)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        output, teacher = torch.randn(2, B, C, generator=generator)
        index = torch.randperm(N, generator=generator)[:B]
        method(output, teacher.softmax(1), index)
        score[index] = 0.9 * score[index] + 0.1 * cross_entropy(output, GIVEN[index])
    torch.testing.assert_close(method.sample_score(), score)


def test_a_teacher_leaves_the_predictions_of_its_last_epoch():
    method = Teacher(cross_entropy, N, C, GIVEN, epochs=2)
    output, rows = torch.randn(N - 5, C), torch.randperm(N)[: N - 5]
    assert torch.equal(method.labels(), F.one_hot(GIVEN, C).float())
    method.end_epoch(lambda: pytest.fail("this is not the last epoch"))
    method.set_epoch(1)
    method.end_epoch(lambda: (output, GIVEN[rows], rows))
    assert torch.equal(method.labels()[rows], output.softmax(1))
    others = [row for row in range(N) if row not in rows.tolist()]
    assert torch.equal(method.labels()[others], F.one_hot(GIVEN[others], C).float())


def test_a_teacher_and_its_student(run):
    _, teacher, *_ = run("epochs=40", params="params/digits/teacher.yaml", name="teacher")
    stored, labels = arrays(teacher / "noise.npz"), arrays(teacher / "labels.npz")["labels"]
    trusted = stored["trusted"]
    assert (labels[trusted].argmax(1) == stored["true"][trusted]).all()
    assert read_summary(teacher)["recovery"]["accuracy"] > 60
    params = "params/digits/distillation.yaml"
    code, student, *_ = run(f"targets={teacher}/labels.npz", params=params, name="student")
    assert code == 0 and read_summary(student)["finished"]
    for overrides in ([], [f"targets={teacher}/hard.npz"]):
        hard = {"labels": labels.argmax(1), "given_sha256": stored["sha256"]}
        np.savez(teacher / "hard.npz", **hard)
        code, *_, stderr = run(*overrides, params=params, name="refused")
        assert code == 2 and "learns from the predictions of another run: set targets=" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": 1.1}, r"lam must lie in \[0, 1\], got 1\.1"),
        ({"lam": math.nan}, "lam must lie"),
        ({"temperature": 0.0}, r"temperature must lie in \(0, inf\), got 0\.0"),
        ({"beta": -0.1}, "beta must lie"),
        ({"beta": 0.1}, r"loss\.beta > 0 and loss\.graph=<file> go together"),
        ({"graph": "a.csv"}, "go together, got beta=0.0 and graph=a.csv"),
        ({"beta": 0.1, "graph": "a.txt"}, "the path of a .npy, .npz or .csv file"),
        ({"beta": 0.1, "graph": "/nowhere.csv"}, "there is no such file"),
    ],
)
def test_an_argument_of_distillation_outside_its_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Distillation(cross_entropy, C, GIVEN, **arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a matrix", "cannot be read as a matrix of numbers"),
        (np.ones((2, 2)), r"must be \[3, 3\], got \[2, 2\]"),
        (np.eye(3), "zeros on the diagonal"),
        (np.ones((3, 3)) - np.eye(3), "rows that sum to 1"),
        (np.full((3, 3), np.nan), "of numbers >= 0"),
    ],
)
def test_a_file_that_holds_no_graph(tmp_path, content, message):
    path = tmp_path / "graph.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(ValueError, match=message):
        Distillation(cross_entropy, 3, GIVEN % 3, beta=0.1, graph=str(path))


# --- the random field


def fields(seed=0, hidden=2):
    """Outputs of both heads, and the parameters of a field."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (B, C), (B, C), (C, C), (hidden,), (hidden, C)
    return [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]


def test_the_joint_distribution_is_that_of_all_states_of_labels_and_hidden_bits():
    a, b, W, c, V = fields()
    expected = torch.zeros(B, C, C, dtype=torch.float64)
    for t, y, h in itertools.product(range(C), range(C), itertools.product((0, 1), repeat=2)):
        bits = torch.tensor(h, dtype=torch.float64)
        expected[:, t, y] += (a[:, t] + b[:, y] + W[t, y] + c @ bits + bits @ V[:, y]).exp()
    expected /= expected.sum((1, 2), keepdim=True)
    scores = joint_scores(a, b, W, c, V)
    torch.testing.assert_close(scores.flatten(1).softmax(1).view_as(expected), expected)
    given, true = torch.arange(B) % C, (torch.arange(B) + 2) % C
    chosen = expected[torch.arange(B), true, given]
    torch.testing.assert_close(joint_losses(scores, given, true), -chosen.log())


@pytest.mark.parametrize("alpha", [0.0, 0.7, 40.0])
def test_the_bound_is_the_largest_over_all_q(alpha):
    scores, given = joint_scores(*fields(1)), torch.arange(B) % C
    auxiliary = torch.rand(C, C, dtype=torch.float64).softmax(1)
    losses, q = bound(scores, given, auxiliary.log(), alpha)
    joint = scores.flatten(1).softmax(1).view(B, C, C)
    for row in range(B):
        of_given = joint[row, :, given[row]]
        posterior, p_aux = of_given / of_given.sum(), auxiliary[given[row]]

        def value(mixed, of_given=of_given, posterior=posterior, p_aux=p_aux):
            apart = (mixed * (mixed / posterior).log()).sum()
            return of_given.sum().log() - apart - alpha * (mixed * (mixed / p_aux).log()).sum()

        assert losses[row].item() == pytest.approx(-value(q[row]).item(), rel=1e-9)
        for seed in range(5):
            other = torch.rand(C, generator=torch.Generator().manual_seed(seed))
            mixed = torch.lerp(q[row], (other / other.sum()).double(), 0.1)
            assert value(mixed) < value(q[row])


def test_the_random_field_begins_with_what_the_trusted_samples_show():
    method = paired(NoisyCleanCRF, network())
    counts = np.zeros((C, C))
    for row in range(M):
        counts[GIVEN[row], TRUE[row]] += 1
    auxiliary = (counts + 1) / (counts.sum(1, keepdims=True) + C)
    np.testing.assert_allclose(method.log_auxiliary.exp(), auxiliary, rtol=1e-6)
    np.testing.assert_allclose(method.log_auxiliary.exp().sum(1), 1, rtol=1e-6)
    shown = (counts.T + 1) / (counts.sum(0)[:, None] + C)
    np.testing.assert_allclose(method.W.detach().exp(), shown, rtol=1e-6)


def test_alpha_falls_linearly_over_the_epochs():
    method, seen = paired(NoisyCleanCRF, network(), first_alpha=40.0, last_alpha=5.0), []
    for epoch in range(5):
        method.set_epoch(epoch)
        seen.append(method.alpha())
    assert seen == [40, 31.25, 22.5, 13.75, 5]


def test_the_random_field_remembers_q_and_is_evaluated_with_given_labels_summed_out():
    model, batch = network(), paired_batch()
    method = paired(NoisyCleanCRF, model, hidden=3)
    output, features = model(batch.input), model[:2](batch.input)
    scores = joint_scores(output, method.b(features), method.W, method.c, method.V)
    losses, q = bound(scores, batch.target, method.log_auxiliary, 40.0)
    trusted = joint_scores(
        model(batch.extra.input),
        method.b(model[:2](batch.extra.input)),
        method.W,
        method.c,
        method.V,
    )
    verified = joint_losses(trusted, GIVEN[:M], TRUE[:M])
    torch.testing.assert_close(method(model, batch), torch.cat([losses, verified]).mean())
    torch.testing.assert_close(method.labels()[batch.index], q)
    assert torch.equal(method.labels()[:M], F.one_hot(TRUE[:M], C).float())
    own = q[torch.arange(B), batch.target]
    torch.testing.assert_close(method.sample_score()[batch.index], -own.log())
    evaluated = method.evaluated(model)
    expected = scores.flatten(1).softmax(1).view(B, C, C).sum(2)
    torch.testing.assert_close(evaluated(batch.input).exp(), expected)
    assert evaluated.eval().state_dict().keys() == model.state_dict().keys()
    assert method.training and not model.training


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (LabelCleaning, {"clean_weight": -1.0}, r"clean_weight must lie in \[0, inf\)"),
        (LabelCleaning, {"clean_weight": math.nan}, "clean_weight must lie"),
        (LabelCleaning, {"warm_up": -1}, "warm_up must lie"),
        (LabelCleaning, {"trusted_batch_size": 0}, "trusted_batch_size must lie"),
        (NoisyCleanCRF, {"first_alpha": -1.0}, "first_alpha must lie"),
        (NoisyCleanCRF, {"last_alpha": math.inf}, "last_alpha must lie"),
        (NoisyCleanCRF, {"hidden": -1}, "hidden must lie"),
    ],
)
def test_an_argument_outside_its_range_is_named(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        paired(method, network(), **arguments)
