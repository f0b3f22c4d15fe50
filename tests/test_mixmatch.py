"""MixMatch: its parts by hand, a whole step against a naive loop, and whole runs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from datasets.base import Batch
from losses import MixMatch
from losses.mixmatch import interleave
from losses.task import cross_entropy, mse
from utils.run_state import read_summary

B, C, K, FEATURES = 6, 4, 2, 5


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, C))


def make(model=None, **arguments):
    return MixMatch(cross_entropy, model or network(), 500, **arguments)


def make_batch(seed=1, views=K):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(B, FEATURES, generator=generator)
    target = torch.randint(C, (B,), generator=generator)
    unlabelled = torch.randn(views, B, FEATURES, generator=generator)
    return Batch(inputs, target, torch.arange(B), Batch(unlabelled, None, torch.arange(B)))


@pytest.mark.parametrize(("size", "number"), [(64, 3), (6, 3), (7, 4), (5, 2)])
def test_interleaving_twice_changes_nothing(size, number):
    chunks = [torch.randn(size, 2) for _ in range(number)]
    mixed = interleave(chunks)
    for restored, chunk in zip(interleave(mixed), chunks, strict=True):
        assert torch.equal(restored, chunk)
    assert not torch.equal(mixed[0], chunks[0])
    assert sorted(torch.cat(mixed).tolist()) == sorted(torch.cat(chunks).tolist())


def test_interleaving_swaps_the_slices_of_the_authors():
    chunks = [torch.arange(64) + 100 * number for number in range(3)]
    first, second, third = (part.tolist() for part in interleave(chunks))
    assert first == [*range(21), *range(121, 142), *range(242, 264)]  # offsets 0, 21, 42, 64
    assert second == [*range(100, 121), *range(21, 42), *range(142, 164)]
    assert third == [*range(200, 242), *range(42, 64)]


def test_the_ramp_of_the_paper():
    loss, model, batch = make(), network(), make_batch()
    assert loss.weight() == 0
    loss(model, batch)
    assert loss.steps == 1
    assert loss.weight() == pytest.approx(75 / 512_000)
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
    loss(network().eval(), make_batch())
    assert loss.steps == 0


def test_guesses_are_sharpened_means_over_the_views():
    model, views = network(), make_batch().extra.input
    expected = sum(F.softmax(copy.deepcopy(model)(view), 1) for view in views) / K
    expected = expected**2 / (expected**2).sum(1, keepdim=True)
    guess = make().guess(model, views)
    torch.testing.assert_close(guess, expected)
    assert not guess.requires_grad
    assert torch.allclose(guess.sum(1), torch.ones(B))
    flat = make(temperature=1.0).guess(network(), views)
    assert (guess.max(1).values >= flat.max(1).values).all()
    hard = make(temperature=0.01).guess(network(), views)
    assert torch.equal(hard.argmax(1), flat.argmax(1))
    assert (hard.max(1).values > 0.9).float().mean() > 0.5


def test_a_guess_leaves_no_weights_without_gradient_behind_for_the_next_pass():
    """Autocast caches its half-precision weights until it is left.

    Those that a pass without gradients has cached have no gradient.
    """
    model, loss, batch = network(), make(), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss.guess(model, batch.extra.input)
        model(batch.input).float().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_guessing_moves_the_running_statistics():
    model = network()
    make().guess(model, make_batch().extra.input)
    assert model[1].num_batches_tracked == K


def test_a_mixture_keeps_at_least_half_of_its_own():
    loss = make()
    shares = []
    inputs, targets = torch.eye(3 * B), torch.arange(3.0 * B).unsqueeze(1)
    for _ in range(200):
        mixed, labels = loss.mix(inputs, targets)
        own = mixed.diagonal()  # the share of a sample in its own mixture
        shares.append(own.min().item())
        assert (own >= 0.5 - 1e-6).all()
        assert torch.allclose(mixed.sum(1), torch.ones(3 * B))
        # inputs and targets are mixed alike
        assert torch.allclose(mixed @ targets, labels, atol=1e-4)
        # all samples of a step share one lambda, but for those mixed with themselves
        lambdas = {round(share, 4) for share in own.tolist() if share < 1 - 1e-4}
        assert len(lambdas) <= 1
    # of Beta(3/4, 3/4), folded: its mean is 1/2 + E|lambda - 1/2| = 0.791
    assert abs(np.mean(shares) - 0.791) < 0.04


def test_a_step_equals_a_naive_loop():
    model, loss, batch = network(), make(unlabelled_weight=3.0, ramp_epochs=0), make_batch()
    reference = copy.deepcopy(model)
    torch.manual_seed(5)
    value = loss(model, batch)
    value.backward()

    torch.manual_seed(5)
    first_view, second_view = batch.extra.input
    with torch.no_grad():
        q = (F.softmax(reference(first_view), 1) + F.softmax(reference(second_view), 1)) / 2
    q = q**2 / (q**2).sum(1, keepdim=True)
    x = [*batch.input, *first_view, *second_view]
    y = [*F.one_hot(batch.target, C).float(), *q, *q]
    share = float(torch.distributions.Beta(0.75, 0.75).sample())
    share = max(share, 1 - share)
    other = torch.randperm(3 * B).tolist()
    mixed_x = [share * x[i] + (1 - share) * x[other[i]] for i in range(3 * B)]
    mixed_y = [share * y[i] + (1 - share) * y[other[i]] for i in range(3 * B)]
    # Chunks consist of blocks of 2. The first chunk swaps its block 1 with that of the second
    # chunk, and its block 2 with that of the third.
    order = list(range(3 * B))
    for block in (1, 2):
        for j in (2 * block, 2 * block + 1):
            order[j], order[B * block + j] = order[B * block + j], order[j]
    logits = [None] * (3 * B)
    for chunk in range(3):
        rows = order[chunk * B : (chunk + 1) * B]
        outputs = reference(torch.stack([mixed_x[row] for row in rows]))
        for row, output in zip(rows, outputs, strict=True):
            logits[row] = output
    labelled = unlabelled = 0
    for i in range(B):
        labelled += -(mixed_y[i] * F.log_softmax(logits[i], 0)).sum() / B
    for i in range(B, 3 * B):
        unlabelled += ((F.softmax(logits[i], 0) - mixed_y[i]) ** 2).sum() / (2 * B * C)
    expected = labelled + 3 * unlabelled
    expected.backward()
    torch.testing.assert_close(value, expected)
    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-6)
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
    averages = loss.average.parameters()
    for old, parameter, average in zip(before, model.parameters(), averages, strict=True):
        torch.testing.assert_close(average, 0.9 * old + 0.1 * (old + 1))
        torch.testing.assert_close(parameter, 0.99 * (old + 1))
        assert not average.requires_grad


def test_what_is_evaluated_has_averaged_parameters_and_the_models_own_statistics():
    model = network()
    loss = make(model)
    for _ in range(3):
        loss(model, make_batch())
        loss.after_step(model)
    assert not torch.equal(loss.average[1].running_mean, model[1].running_mean)
    evaluated = loss.evaluated(model)
    assert evaluated is loss.average
    assert torch.equal(evaluated[1].running_mean, model[1].running_mean)
    assert not torch.equal(evaluated[0].weight, model[0].weight)


def test_state_goes_on_bit_identically():
    values, states = [], []
    for interrupted in (False, True):
        model = network()
        loss = make(model)
        for step in range(6):
            torch.manual_seed(step)
            value = loss(model, make_batch(step))
            value.backward()
            loss.after_step(model)
            if interrupted and step == 2:
                loss_state = copy.deepcopy(loss.state_dict())
                model_state = copy.deepcopy(model.state_dict())
                model = network(9)
                loss = make(model)
                model.load_state_dict(model_state)
                loss.load_state_dict(loss_state)
        values.append(value)
        states.append(loss.state_dict())
    assert torch.equal(values[0], values[1])
    assert states[0].keys() == states[1].keys()
    for key, expected in states[0].items():
        assert torch.equal(states[1][key], expected), key


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
    extra = make_batch().extra
    fewer_samples = extra._replace(input=extra.input[:, :3])
    for extra in (None, make_batch(views=3).extra, fewer_samples):
        with pytest.raises(ValueError, match=r"needs 2 views .* \[2, 6, 5\], got"):
            make()(network(), make_batch()._replace(extra=extra))


def test_bfloat16_outputs_are_accepted():
    model, loss = network(), make(ramp_epochs=0)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(model, make_batch())
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert model[0].weight.grad.isfinite().all()


# Whole runs


PLAIN = {"params": "params/digits/plain.yaml"}
RSL_MIXMATCH = {"params": "params/digits/rsl_mixmatch.yaml"}


def test_it_beats_plain_at_60_percent_noise(run):
    """Real digits, mean of 3 seeds.

    Cross-entropy records its losses, and MixMatch trains on what they select.
    """
    noise = ["noise.kind=symmetric", "noise.fraction=0.6"]
    accuracy = {"plain": [], "mixmatch": []}
    for seed in (1, 2, 3):
        common = [f"seed={seed}", *noise, "model=cnn", "model.width=8"]
        recording = ["record_losses=true", "epochs=25"]
        code, directory, *_ = run(*common, *recording, **PLAIN, name=f"plain{seed}")
        assert code == 0
        accuracy["plain"].append(read_summary(directory)["test"]["last"])
        selection = [f"dataset.selection.history={directory}/losses.npy", "epochs=12"]
        code, directory, stdout, _ = run(
            *common, *selection, **RSL_MIXMATCH, name=f"mixmatch{seed}"
        )
        assert code == 0
        assert "accuracy nan" not in stdout
        accuracy["mixmatch"].append(read_summary(directory)["test"]["last"])
    assert np.mean(accuracy["mixmatch"]) > np.mean(accuracy["plain"]) + 5, accuracy


def test_too_large_a_selection_is_named_before_training(run):
    low_noise = "noise.fraction=0.01"
    _, recording, *_ = run("record_losses=true", low_noise, **PLAIN, name="recording")
    code, directory, _, stderr = run(
        f"dataset.selection.history={recording}/losses.npy",
        low_noise,
        "batch_size=128",
        **RSL_MIXMATCH,
    )
    assert code == 2
    assert "samples unlabelled, fewer than a batch of 128" in stderr
    assert not (directory / "config.yaml").exists()


def test_without_a_selection_it_says_what_is_missing(run):
    code, _, _, stderr = run("loss=MixMatch", **PLAIN)
    assert code == 2
    assert "needs unlabelled samples, those that a selection leaves out" in stderr
