"""MixMatch.

Each of its parts by hand, a whole step against a naive loop, and that it beats plain training where
it should.
"""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from datasets.base import Batch
from losses import MixMatch
from losses.mixmatch import interleave
from losses.task import cross_entropy, mse

B, C, K, FEATURES = 6, 4, 2, 5


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, C))


def make(model=None, **arguments):
    return MixMatch(cross_entropy, model or network(), 500, **arguments)


def a_batch(seed=1, views=K):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(B, FEATURES, generator=generator)
    target = torch.randint(C, (B,), generator=generator)
    unlabelled = torch.randn(views, B, FEATURES, generator=generator)
    return Batch(inputs, target, torch.arange(B), Batch(unlabelled, None, torch.arange(B)))


@pytest.mark.parametrize(("size", "number"), [(64, 3), (6, 3), (7, 4), (5, 2)])
def test_interleaving_twice_changes_nothing(size, number):
    chunks = [torch.randn(size, 2) for _ in range(number)]
    mixed = interleave(chunks)
    assert all(torch.equal(one, two) for one, two in zip(interleave(mixed), chunks, strict=True))
    assert not torch.equal(mixed[0], chunks[0])
    everything = torch.cat(chunks)
    assert sorted(torch.cat(mixed).tolist()) == sorted(everything.tolist())


def test_interleaving_swaps_the_slices_of_the_authors():
    chunks = [torch.arange(64) + 100 * number for number in range(3)]
    first, second, third = (part.tolist() for part in interleave(chunks))
    assert first == [*range(21), *range(121, 142), *range(242, 264)]  # offsets 0, 21, 42, 64
    assert second == [*range(100, 121), *range(21, 42), *range(142, 164)]
    assert third == [*range(200, 242), *range(42, 64)]


def test_the_ramp_of_the_paper():
    loss, model, batch = make(), network(), a_batch()
    assert loss.weight() == 0
    loss(model, batch)
    assert loss.steps == 1 and loss.weight() == pytest.approx(75 / 512_000)
    for steps, weight in (
        (1024 * 250, 37.5),
        (1024 * 500 - 1, 74.99985),
        (1024 * 500, 75),
        (1024 * 600, 75),
    ):
        loss.steps.fill_(steps)
        assert float(loss.weight()) == pytest.approx(weight, abs=1e-5)
    assert make(ramp_epochs=0).weight() == 75
    short = make(ramp_epochs=2, epoch_steps=10, unlabelled_weight=8.0)
    short.steps.fill_(5)
    assert short.weight() == 2


def test_evaluation_does_not_move_the_ramp():
    loss = make().eval()
    loss(network().eval(), a_batch())
    assert loss.steps == 0


def test_guesses_are_sharpened_means_over_the_views():
    model, views = network(), a_batch().extra.input
    expected = sum(F.softmax(copy.deepcopy(model)(view), 1) for view in views) / K
    expected = expected**2 / (expected**2).sum(1, keepdim=True)
    guess = make().guess(model, views)
    torch.testing.assert_close(guess, expected)
    assert not guess.requires_grad and torch.allclose(guess.sum(1), torch.ones(B))
    flat = make(temperature=1.0).guess(network(), views)
    assert (guess.max(1).values >= flat.max(1).values).all()
    hard = make(temperature=0.01).guess(network(), views)
    assert (
        torch.equal(hard.argmax(1), flat.argmax(1))
        and (hard.max(1).values > 0.9).float().mean() > 0.5
    )


def test_a_guess_leaves_no_weights_without_gradient_behind_for_the_next_pass():
    """Autocast keeps its half-precision weights for as long as it is open.

    Those of a pass without gradient have none.
    """
    model, loss, batch = network(), make(), a_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss.guess(model, batch.extra.input)
        model(batch.input).float().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_guessing_moves_the_running_statistics():
    model = network()
    make().guess(model, a_batch().extra.input)
    assert model[1].num_batches_tracked == K


def test_a_mixture_keeps_at_least_half_of_its_own():
    loss, shares = make(), []
    inputs, targets = torch.eye(3 * B), torch.arange(3.0 * B).unsqueeze(1)
    for _ in range(200):
        mixed, labels = loss.mix(inputs, targets)
        own = mixed.diagonal()
        shares.append(own.min().item())
        assert (own >= 0.5 - 1e-6).all() and torch.allclose(mixed.sum(1), torch.ones(3 * B))
        assert torch.allclose(
            mixed @ targets, labels, atol=1e-4
        )  # inputs and targets are mixed alike
        assert (
            len({round(share, 4) for share in own.tolist() if share < 1 - 1e-4}) <= 1
        )  # one lambda a step
    # of Beta(3/4, 3/4), folded: its mean is 1/2 + E|lambda - 1/2| = 0.791
    assert abs(np.mean(shares) - 0.791) < 0.04


def test_a_step_equals_a_naive_loop():
    model, loss, batch = network(), make(unlabelled_weight=3.0, ramp_epochs=0), a_batch()
    reference = copy.deepcopy(model)
    torch.manual_seed(5)
    got = loss(model, batch)
    got.backward()

    torch.manual_seed(5)
    with torch.no_grad():
        q = (
            F.softmax(reference(batch.extra.input[0]), 1)
            + F.softmax(reference(batch.extra.input[1]), 1)
        ) / 2
    q = q**2 / (q**2).sum(1, keepdim=True)
    x, y = (
        [*batch.input, *batch.extra.input[0], *batch.extra.input[1]],
        [*F.one_hot(batch.target, C).float(), *q, *q],
    )
    share = float(torch.distributions.Beta(0.75, 0.75).sample())
    share, other = max(share, 1 - share), torch.randperm(3 * B).tolist()
    mixed_x = [share * x[i] + (1 - share) * x[other[i]] for i in range(3 * B)]
    mixed_y = [share * y[i] + (1 - share) * y[other[i]] for i in range(3 * B)]
    order = list(
        range(3 * B)
    )  # blocks of 2: block 1 of the first chunk with that of the second, block 2 with the third's
    for i in (1, 2):
        for j in (2 * i, 2 * i + 1):
            order[j], order[B * i + j] = order[B * i + j], order[j]
    logits = [None] * (3 * B)
    for chunk in range(3):
        places = order[chunk * B : (chunk + 1) * B]
        for place, output in zip(
            places, reference(torch.stack([mixed_x[place] for place in places])), strict=True
        ):
            logits[place] = output
    labelled = sum(-(mixed_y[i] * F.log_softmax(logits[i], 0)).sum() for i in range(B)) / B
    unlabelled = sum(
        ((F.softmax(logits[i], 0) - mixed_y[i]) ** 2).sum() for i in range(B, 3 * B)
    ) / (2 * B * C)
    expected = labelled + 3 * unlabelled
    expected.backward()
    torch.testing.assert_close(got, expected)
    for one, two in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(model[1].running_mean, reference[1].running_mean)
    assert model[1].num_batches_tracked == 5  # two guesses, three mixtures


def test_the_average_moves_before_the_parameters_shrink():
    model = network()
    loss = make(model, ema_decay=0.9, parameter_decay=0.01)
    before = [parameter.clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    loss.after_step(model)
    for old, parameter, average in zip(
        before, model.parameters(), loss.average.parameters(), strict=True
    ):
        torch.testing.assert_close(average, 0.9 * old + 0.1 * (old + 1))
        torch.testing.assert_close(parameter, 0.99 * (old + 1))
        assert not average.requires_grad


def test_what_is_evaluated_has_averaged_parameters_and_the_models_own_statistics():
    model = network()
    loss = make(model)
    for _ in range(3):
        loss(model, a_batch())
        loss.after_step(model)
    assert not torch.equal(loss.average[1].running_mean, model[1].running_mean)
    evaluated = loss.evaluated(model)
    assert evaluated is loss.average and torch.equal(
        evaluated[1].running_mean, model[1].running_mean
    )
    assert not torch.equal(evaluated[0].weight, model[0].weight)


def test_state_goes_on_bit_identically():
    runs = []
    for interrupted in (False, True):
        model = network()
        loss = make(model)
        for step in range(6):
            torch.manual_seed(step)
            value = loss(model, a_batch(step))
            value.backward()
            loss.after_step(model)
            if interrupted and step == 2:
                state, parameters = (
                    copy.deepcopy(loss.state_dict()),
                    copy.deepcopy(model.state_dict()),
                )
                model = network(9)
                loss = make(model)
                model.load_state_dict(parameters)
                loss.load_state_dict(state)
        runs.append((value, loss.state_dict()))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1].keys() == runs[1][1].keys()
    assert all(torch.equal(value, runs[1][1][key]) for key, value in runs[0][1].items())


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_views": 0},
        {"temperature": 0.0},
        {"epoch_steps": 0},
        {"alpha": 0.0},
        {"unlabelled_weight": -1.0},
        {"ramp_epochs": -1.0},
        {"ema_decay": 1.0},
        {"parameter_decay": -0.1},
    ],
)
def test_arguments_out_of_range_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make(**arguments)


def test_what_it_cannot_work_with_is_refused():
    with pytest.raises(ValueError, match="needs task_loss cross_entropy"):
        MixMatch(mse, network(), 5)
    extra = a_batch().extra
    fewer_samples = extra._replace(input=extra.input[:, :3])
    for extra in (None, a_batch(views=3).extra, fewer_samples):
        with pytest.raises(ValueError, match=r"needs 2 views .* \[2, 6, 5\], got"):
            make()(network(), a_batch()._replace(extra=extra))


def test_bfloat16_outputs_are_accepted():
    model, loss = network(), make(ramp_epochs=0)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(model, a_batch())
    value.backward()
    assert (
        value.dtype == torch.float32 and value.isfinite() and model[0].weight.grad.isfinite().all()
    )


# Whole runs


def test_it_beats_plain_at_60_percent_noise(run):
    """On real digits, mean of 3 seeds.

    Cross-entropy, whose losses are recorded, then MixMatch on what they select.
    """
    last = {"plain": [], "mixmatch": []}
    for seed in (1, 2, 3):
        common = [
            f"seed={seed}",
            "noise.kind=symmetric",
            "noise.fraction=0.6",
            "model=cnn",
            "model.width=8",
        ]
        code, directory, *_ = run(
            *common,
            "record_losses=true",
            "epochs=25",
            params="params/digits/plain.yaml",
            name=f"{seed}",
        )
        assert code == 0
        last["plain"].append(json.loads((directory / "summary.json").read_text())["test"]["last"])
        code, directory, printed, _ = run(
            *common,
            f"dataset.selection.history={directory}/losses.npy",
            "epochs=12",
            params="params/digits/rsl_mixmatch.yaml",
            name=f"m{seed}",
        )
        assert code == 0 and "accuracy nan" not in printed
        last["mixmatch"].append(
            json.loads((directory / "summary.json").read_text())["test"]["last"]
        )
    assert np.mean(last["mixmatch"]) > np.mean(last["plain"]) + 5, last


def test_too_large_a_selection_is_named_before_training(run):
    _, directory, *_ = run(
        "record_losses=true", "noise.fraction=0.01", params="params/digits/plain.yaml", name="p"
    )
    code, other, _, complaints = run(
        f"dataset.selection.history={directory}/losses.npy",
        "noise.fraction=0.01",
        "batch_size=128",
        params="params/digits/rsl_mixmatch.yaml",
    )
    assert (
        code == 2
        and "samples unlabelled, fewer than a batch of 128" in complaints
        and not (other / "config.yaml").exists()
    )


def test_without_a_selection_it_says_what_is_missing(run):
    code, _, _, complaints = run("loss=MixMatch", params="params/digits/plain.yaml")
    assert code == 2 and "needs unlabelled samples, those that a selection leaves out" in complaints
