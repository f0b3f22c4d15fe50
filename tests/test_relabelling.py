"""SELFIE, Joint Optimization and the two stages of Ding et al.

Against traces of the authors' code, plain loops, and what the papers say of extreme cases.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from losses import SELFIE, JointOptimization, Plain, TwoStage
from losses.joint_optimization import imbalance
from losses.selfie import vote
from losses.task import cross_entropy
from losses.two_stage import most_confident, normalised, ramp_up
from tests.fixtures import check_trace
from tests.replay_methods import METHODS
from tests.test_cost import Watch
from tests.test_run import arrays, weights
from utils.schedules import RampUpAndDown

GOLDEN = Path(__file__).parent / "golden" / "methods"
TRACES = sorted(
    path.stem
    for path in GOLDEN.glob("*.npz")
    if path.stem.startswith(("selfie", "joint_optimization", "temporal_ensembling"))
)
N, C, B = 12, 4, 4
GIVEN = torch.tensor([0, 1, 2, 3] * 3)
DIGITS = {"params": "params/digits/plain.yaml"}


def epochs(count, seed=0, scale=2.0):
    """(epoch, output, index): permutations of all N samples, in batches of B."""
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(count):
        for index in torch.randperm(N, generator=generator).split(B):
            yield epoch, scale * torch.randn(B, C, generator=generator), index


def run_epochs(loss, count, seed=0, target=GIVEN):
    """Train ``loss`` for some epochs of random outputs; the losses of the last batch."""
    steps = list(epochs(count, seed))
    for number, (epoch, output, index) in enumerate(steps):
        loss.set_epoch(epoch)
        losses = loss(output, target[index], index)
        if number % (N // B) == N // B - 1:
            loss.end_epoch(None)
    return losses


def logits(*predicted, size=6.0):
    """Outputs of a network that is sure of these classes."""
    return size * F.one_hot(torch.tensor(predicted), C).float()


# --- traces of the authors' code


@pytest.mark.parametrize("name", TRACES)
def test_golden(name):
    check_trace(name, METHODS)


def test_there_are_traces():
    assert [name.split("_")[0] for name in TRACES] == ["joint"] * 3 + ["selfie"] * 3 + [
        "temporal"
    ] * 2


# --- SELFIE


def selfie(noise_rate=0.4, given=GIVEN, **arguments):
    options = {"warm_up": 2, "q": 2, "eps": 0.05} | arguments
    return SELFIE(cross_entropy, len(given), C, given, noise_rate, **options)


def test_selfie_measures_uncertainty_as_the_authors_code():
    table = json.loads((GOLDEN / "selfie_uncertainty.json").read_text())["table"]
    assert len(table) > 10
    for row in table:
        votes = [label for label, count in enumerate(row["votes"]) for _ in range(count)]
        uncertainty, agreed = vote(torch.tensor([votes]), row["C"])
        assert uncertainty.item() == pytest.approx(row["uncertainty"], abs=1e-6)
        assert agreed.item() == np.argmax(row["votes"])


def test_selfie_counts_votes_for_the_smallest_of_tied_classes():
    uncertainty, agreed = vote(torch.tensor([[3, 1, 3, 1], [2, 2, 2, 2]]), C)
    assert agreed.tolist() == [1, 2]
    torch.testing.assert_close(uncertainty, torch.tensor([math.log(2) / math.log(C), 0.0]))


def naive_selfie(tau, q, eps, warm_up, reuse, num_epochs):
    """The losses of all steps, the votes and the corrections, sample by sample."""
    votes, corrected, results = [[] for _ in range(N)], {}, []
    for epoch, output, index in epochs(num_epochs):
        log_p = output.double().log_softmax(1)
        samples = index.tolist()
        own = [-log_p[row, GIVEN[i]].item() for row, i in enumerate(samples)]
        selected = set(samples)
        if epoch >= warm_up:
            order = sorted(range(len(samples)), key=lambda row: own[row])
            kept = math.ceil(len(samples) * (1 - tau) - 1e-6)
            selected = {samples[row] for row in order[:kept]}
            for i in samples:
                counts = [votes[i][-q:].count(label) / q for label in range(C)]
                entropy = -sum(part * math.log(part) for part in counts if part) / math.log(C)
                certain = len(votes[i]) >= q and entropy <= eps
                if certain:
                    corrected[i] = counts.index(max(counts))
                if certain or (reuse and i in corrected):
                    selected.add(i)
        labels = [corrected.get(i, GIVEN[i].item()) for i in samples]
        results.append(
            [
                -log_p[row, labels[row]].item() * len(samples) / len(selected)
                if i in selected
                else 0.0
                for row, i in enumerate(samples)
            ]
        )
        for row, i in enumerate(samples):
            votes[i].append(output[row].argmax().item())
    return results, votes, corrected


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize(("q", "eps"), [(2, 0.05), (3, 0.5), (4, 0.8), (2, -1.0)])
def test_selfie_is_a_naive_loop(q, eps, reuse):
    loss = selfie(q=q, eps=eps, warm_up=4, reuse=reuse)
    expected, votes, corrected = naive_selfie(0.4, q, eps, 4, reuse, 10)
    for (epoch, output, index), losses in zip(epochs(10), expected, strict=True):
        loss.set_epoch(epoch)
        got = loss(output, GIVEN[index], index)
        torch.testing.assert_close(got, torch.tensor(losses), rtol=1e-5, atol=1e-6)
    assert loss.corrected.tolist() == [corrected.get(i, -1) for i in range(N)]
    assert loss.labels().tolist() == [corrected.get(i, GIVEN[i].item()) for i in range(N)]
    assert [sorted(row) for row in loss.votes.tolist()] == [sorted(row[-q:]) for row in votes]
    assert (len(corrected) > 0) == (eps > 0)


def test_selfie_without_refurbishing_is_the_small_loss_rule():
    loss = selfie(0.5, eps=-1.0)
    run_epochs(loss, 5)
    output = torch.randn(B, C, generator=torch.Generator().manual_seed(3))
    losses, own = loss(output, GIVEN[:B], torch.arange(B)), cross_entropy(output, GIVEN[:B])
    assert (losses > 0).sum() == 2 and set(own.argsort()[:2].tolist()) == set(
        losses.nonzero().squeeze(1).tolist()
    )
    torch.testing.assert_close(losses.mean(), own.sort().values[:2].mean())


def test_selfie_without_noise_trains_on_all():
    loss, plain = selfie(0.0, eps=-1.0), Plain(cross_entropy)
    for epoch, output, index in epochs(5):
        loss.set_epoch(epoch)
        assert torch.equal(loss(output, GIVEN[index], index), plain(output, GIVEN[index], index))


@pytest.mark.parametrize(
    ("tau", "size", "kept"),
    [(0.7, 10, 3), (0.4, 16, 10), (0.4, 5, 3), (0.45, 100, 55), (0.9, 3, 1)],
)
def test_selfie_rounds_up_how_many_are_clean(tau, size, kept):
    loss = selfie(tau, given=torch.zeros(size, dtype=torch.int64))
    assert loss._clean(torch.randn(size)).sum() == kept


def test_of_equal_losses_selfie_keeps_the_first():
    assert selfie(0.5)._clean(torch.tensor([1.0, 0.0, 1.0, 1.0])).tolist() == [1, 1, 0, 0]


def test_a_sample_is_refurbished_by_earlier_votes_reused_and_dropped():
    both = [selfie(0.75, reuse=reuse) for reuse in (True, False)]
    index = torch.arange(B)
    for epoch in range(2):
        for loss in both:
            loss.set_epoch(epoch)
            assert (loss(logits(1, 1, 1, 3), GIVEN[index], index) > 0).all()  # warm-up
    for loss in both:
        loss.set_epoch(2)
        losses = loss(logits(2, 2, 2, 3), GIVEN[index], index)  # its own votes do not count yet
        assert loss.corrected[index].tolist() == [1, 1, 1, 3]
        expected = cross_entropy(logits(2, 2, 2, 3), torch.tensor([1, 1, 1, 3]))
        torch.testing.assert_close(losses, expected)
        loss.set_epoch(3)
    # now the votes of the first three are 1 and 2: they are small losses, reused, or dropped
    output = logits(0, 0, 0, 3, size=1.0)
    losses = [loss(output, GIVEN[index], index) for loss in both]
    assert (losses[0] > 0).tolist() == [True, True, True, True]
    assert (losses[1] > 0).tolist() == [True, False, False, True]  # sample 0: the small loss
    torch.testing.assert_close(losses[1][0], 2 * cross_entropy(output, torch.tensor([1] * 4))[0])


def test_a_queue_that_is_not_full_refurbishes_nothing():
    loss = selfie(0.5, q=3, warm_up=3)
    loss.set_epoch(5)
    for number in range(5):
        loss(logits(0, 0, 0, 0), GIVEN[:B], torch.arange(B))
        assert (loss.corrected[:B] >= 0).all() == (number >= 3)
        assert (loss.corrected[B:] == -1).all()


def test_what_an_earlier_run_corrected_is_trained_on_and_given_on():
    target = GIVEN.clone()
    target[:3] = torch.tensor([3, 3, 3])
    loss = selfie(0.75)
    index = torch.arange(B)
    output = logits(0, 1, 2, 0)  # the given labels of the first three are easy, the others are not
    losses = loss(output, target[index], index)
    torch.testing.assert_close(losses, cross_entropy(output, target[index]))  # in warm-up too
    assert loss.labels()[:B].tolist() == [3, 3, 3, 3]
    loss.set_epoch(2)
    loss.num_votes.zero_()
    losses = loss(output, target[index], index)
    # clean is one of the first three, by its given label; all three are reused
    assert (losses > 0).tolist() == [True, True, True, False]
    torch.testing.assert_close(losses[:3], 4 / 3 * cross_entropy(output, target[index])[:3])


def test_selfie_distrusts_relabelled_samples_most():
    loss = selfie()
    index = torch.arange(B)
    loss(torch.tensor([[0.0] * C] * B), GIVEN[index], index)
    loss.corrected[:2] = torch.tensor([3, 1])  # of given labels 0 and 1
    score = loss.sample_score()
    torch.testing.assert_close(score[:B], torch.tensor([1.75, 0.75, 0.75, 0.75]))
    assert (score[B:] == 0).all()


@pytest.mark.parametrize("epoch", [0, 2])
def test_selfie_reads_nothing_from_the_device(monkeypatch, epoch):
    monkeypatch.setattr("losses.selfie.check_index", lambda *_: None)
    loss = selfie()
    loss.set_epoch(epoch)
    with Watch() as watch:
        for _ in range(4):
            output = torch.randn(B, C, requires_grad=True)
            loss(output, GIVEN[:B], torch.arange(B)).mean().backward()
    assert watch.reads == 0


def test_evaluation_leaves_the_votes_and_corrections():
    loss = selfie(eps=1.0)
    run_epochs(loss, 4)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    loss.corrected.fill_(-1)
    loss.eval()
    loss.set_epoch(4)
    loss(torch.randn(B, C), (GIVEN[:B] + 1) % C, torch.arange(B))
    after = loss.state_dict()
    assert (after.pop("corrected") == -1).all()
    assert all(torch.equal(before[key], value) for key, value in after.items())


# --- Joint Optimization


def joint(given=GIVEN, **arguments):
    options = {"alpha": 1.2, "beta": 0.8, "begin": 3, "window": 3} | arguments
    return JointOptimization(cross_entropy, len(given), C, given, **options)


def three_terms(output, target, prior):
    """L_c [B], L_p and L_e [B], from probabilities."""
    p = output.softmax(1)
    match, entropy = -(target * p.log()).sum(1), -(p * p.log()).sum(1)
    return match, -(prior * p.mean(0).log()).sum(), entropy


@pytest.mark.parametrize("prior", [[0.25] * 4, [0.7, 0.1, 0.2, 0.0]])
def test_the_three_terms_by_hand(prior):
    s = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]])
    log = math.log
    mean = (0.3, 0.225, 0.2125, 0.2625)
    balance = -sum(part * log(value) for part, value in zip(prior, mean, strict=True))
    entropy = torch.tensor([-sum(part * log(part) for part in row) for row in s.tolist()])
    loss = joint(prior=prior)
    values = loss(s.log(), torch.tensor([0, 3]), torch.arange(2))
    torch.testing.assert_close(
        values, torch.tensor([log(2), -log(0.4)]) + 1.2 * balance + 0.8 * entropy
    )
    soft = torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0, 0.5]])
    values = loss(s.log(), soft, torch.arange(2))
    matches = torch.tensor([log(2), -(log(0.2) + log(0.4)) / 2])
    torch.testing.assert_close(values, matches + 1.2 * balance + 0.8 * entropy)


@pytest.mark.parametrize("prior", [[0.25] * 4, [0.7, 0.1, 0.1, 0.1], [0.5, 0.5, 0.0, 0.0]])
def test_balance_is_best_where_the_mean_is_the_prior(prior):
    """And there is the entropy of the prior."""
    prior = torch.tensor(prior)
    at_best = imbalance(prior.clamp_min(1e-12).log().expand(3, 4), prior)
    assert at_best.item() == pytest.approx(-torch.xlogy(prior, prior).sum().item(), abs=1e-5)
    for seed in range(20):
        output = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        assert imbalance(output.log_softmax(1), prior) > at_best
    logit = prior.clamp_min(1e-12).log().requires_grad_()
    imbalance(logit.log_softmax(0).expand(3, 4), prior).backward()
    torch.testing.assert_close(logit.grad, torch.zeros(4), rtol=0, atol=1e-6)


def test_without_its_terms_and_before_it_begins_it_is_cross_entropy():
    loss, plain = joint(alpha=0.0, beta=0.0), Plain(cross_entropy)
    for epoch, output, index in epochs(3):
        loss.set_epoch(epoch)
        torch.testing.assert_close(
            loss(output, GIVEN[index], index), plain(output, GIVEN[index], index)
        )
    assert loss.labels() is None


def test_outputs_that_are_far_apart_have_finite_terms_and_gradients():
    output = torch.zeros(3, C)
    output[:, 0] = 1000.0
    output.requires_grad_()
    values = joint(beta=1.0)(output, GIVEN[:3], torch.arange(3))
    values.mean().backward()
    assert values.isfinite().all() and output.grad.isfinite().all()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(("begin", "window"), [(3, 3), (5, 2), (1, 1)])
def test_targets_become_the_mean_of_the_last_predictions(begin, window, hard):
    loss, history = joint(begin=begin, window=window, hard=hard), [[] for _ in range(N)]
    expected = F.one_hot(GIVEN, C).float()
    for number, (epoch, output, index) in enumerate(epochs(9)):
        loss.set_epoch(epoch)
        got = loss(output, GIVEN[index], index)
        match, balance, entropy = three_terms(output, expected[index], loss.prior)
        torch.testing.assert_close(got, match + 1.2 * balance + 0.8 * entropy)
        for row, i in enumerate(index.tolist()):
            history[i].append(output[row].softmax(0))
        if number % 3 == 2:
            loss.end_epoch(None)
            assert bool(loss.replaced) == (epoch + 1 >= begin)
            if epoch + 1 >= begin:
                expected = torch.stack([sum(row[-window:]) / window for row in history])
                labels = expected.argmax(1) if hard else expected
                torch.testing.assert_close(loss.labels(), labels)
                expected = F.one_hot(labels, C).float() if hard else expected
                torch.testing.assert_close(loss.soft_target.sum(1), torch.ones(N))


def test_a_sample_that_is_never_drawn_keeps_its_label():
    loss = joint(begin=2, window=2)
    for epoch in range(3):
        loss.set_epoch(epoch)
        loss(logits(1, 1, 1, 1), GIVEN[:B], torch.arange(B))
        loss.end_epoch(None)
    assert loss.labels().argmax(1).tolist() == [1] * B + GIVEN[B:].tolist()
    assert torch.equal(loss.labels()[B:], F.one_hot(GIVEN[B:], C).float())
    assert (loss.sample_score()[B:] == 0).all()


def test_a_sample_that_was_drawn_less_often_has_the_mean_of_what_there_is():
    loss = joint(begin=3, window=3)
    for epoch in range(3):
        loss.set_epoch(epoch)
        index = torch.arange(B) if epoch else torch.arange(2)
        loss(logits(*[epoch] * len(index)), GIVEN[index], index)
        loss.end_epoch(None)
    first, second = (logits(label).softmax(1) for label in (1, 2))
    torch.testing.assert_close(loss.labels()[2:B], ((first + second) / 2).expand(2, C))
    torch.testing.assert_close(loss.labels().sum(1), torch.ones(N))


def test_joint_optimization_distrusts_labels_that_are_not_predicted():
    loss = joint(begin=9)
    loss(logits(0, 1, 2, 0, size=2.0), GIVEN[:B], torch.arange(B))
    assert loss.sample_score()[:B].argmax() == 3
    sure = math.log(math.exp(2) + 3) - 2
    torch.testing.assert_close(loss.sample_score()[0], torch.tensor(sure))
    loss.ring.zero_()
    assert loss.sample_score().isfinite().all()


def test_after_targets_are_replaced_the_given_ones_do_not_enter():
    loss = joint()
    run_epochs(loss, 3)
    loss.set_epoch(3)
    loss.eval()
    output = torch.randn(B, C)
    first, second = (
        loss(output, target[:B], torch.arange(B)) for target in (GIVEN, (GIVEN + 1) % C)
    )
    assert torch.equal(first, second)


# --- two stages


def two_stage(given=GIVEN, **arguments):
    options = {"select_epochs": 0, "ramp_epochs": 4, "max_weight": 5.0} | arguments
    return TwoStage(cross_entropy, len(given), C, given, **options)


def certain(mask, target):
    """[B, C]: one-hot where a label is trusted, what is not certain elsewhere."""
    label = F.one_hot(target, C).float()
    return torch.where(
        mask.unsqueeze(1), label, torch.lerp(label, torch.full_like(label, 1 / C), 0.1)
    )


def test_what_is_trusted_of_each_label():
    given = torch.tensor([0] * 5 + [1] * 4 + [2])
    prediction = torch.full((10, 3), 0.0)
    own = [0.9, 0.8, 0.3, 0.7, 0.6, 0.2, 0.5, 0.9, 0.3, 0.1]
    for row, (label, value) in enumerate(zip(given.tolist(), own, strict=True)):
        prediction[row] = (1 - value) / 2
        prediction[row, label] = value
    assert most_confident(prediction, given, 0.4).nonzero().squeeze(1).tolist() == [0, 1, 7]
    assert most_confident(prediction, given, 1.0).nonzero().squeeze(1).tolist() == [
        0, 1, 3, 4, 6, 7,
    ]  # fmt: skip
    assert most_confident(prediction, given, 0.01).nonzero().squeeze(1).tolist() == [0, 7]
    prediction[:3] = 0  # held out: not known, and not counted
    assert most_confident(prediction, given, 0.5).nonzero().squeeze(1).tolist() == [3, 6, 7]


def test_a_share_is_not_rounded_down_twice():
    prediction = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    mask = most_confident(prediction, torch.zeros(100, dtype=torch.int64), 0.29)
    assert mask.sum() == 29 and mask[:29].all()  # 0.29 * 100 is 28.999999999999996


def test_of_equal_predictions_the_ensemble_is_that_prediction():
    loss = two_stage()
    prediction = logits(0, 1, 2, 3, size=1.0)
    for epoch in range(5):
        loss.set_epoch(epoch)
        losses = loss(prediction, GIVEN[:B], torch.arange(B))
        loss.end_epoch(None)
        torch.testing.assert_close(normalised(loss.average[:B]), prediction.softmax(1))
        if epoch:
            torch.testing.assert_close(losses, cross_entropy(prediction, GIVEN[:B]))
        assert not loss.average[B:].any()


def test_stage_two_by_hand():
    loss = two_stage(decay=0.6)
    index, mask = torch.arange(B), torch.tensor([True, False, False, True])
    outputs = [torch.randn(B, C, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    p, q, r = (output.softmax(1) for output in outputs)
    goals = [torch.zeros(B, C), p, (0.6 * 0.4 * p + 0.4 * q) / (1 - 0.6**2)]
    for epoch, (output, goal, ramp) in enumerate(
        zip(outputs, goals, (0.0, math.exp(-5 * 0.75**2), math.exp(-5 * 0.25)), strict=True)
    ):
        loss.set_epoch(epoch)
        assert float(loss.weight()) == pytest.approx(5 * ramp / 2)  # half of them are trusted
        losses = loss(output, certain(mask, GIVEN[:B]), index)
        own = cross_entropy(output, GIVEN[:B]) * mask
        apart = (output.softmax(1) - goal).square().sum(1) / C
        torch.testing.assert_close(losses, own + 5 * ramp / 2 * apart)
        loss.end_epoch(None)
    expected = (0.6**2 * 0.4 * p + 0.6 * 0.4 * q + 0.4 * r) / (1 - 0.6**3)
    torch.testing.assert_close(normalised(loss.average[:B]), expected)
    assert loss.labels()[:B].tolist() == expected.argmax(1).tolist()
    assert loss.labels()[B:].tolist() == GIVEN[B:].tolist()


def test_labels_that_are_not_trusted_do_not_enter():
    mask = torch.tensor([True, False] * (N // 2))
    both = [two_stage() for _ in range(2)]
    other = torch.where(mask, GIVEN, (GIVEN + 1) % C)
    for number, (epoch, output, index) in enumerate(epochs(4)):
        results = []
        for loss, label in zip(both, (GIVEN, other), strict=True):
            loss.set_epoch(epoch)
            z = output.clone().requires_grad_()
            losses = loss(z, certain(mask, label)[index], index)
            losses.mean().backward()
            results.append((losses.detach(), z.grad))
            if number % 3 == 2:
                loss.end_epoch(None)
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        moved = results[0][1].abs().sum(1) > 0
        assert moved.all() if epoch else torch.equal(moved, mask[index])


def test_an_epoch_that_leaves_samples_out_leaves_their_ensembles():
    loss = two_stage()
    run_epochs(loss, 2)
    before = loss.average.clone()
    loss.set_epoch(2)
    loss(logits(0, 1, 2, 3), GIVEN[:B], torch.arange(B))
    loss.end_epoch(None)
    assert torch.equal(loss.average[B:], before[B:])
    assert not torch.equal(loss.average[:B], before[:B])


def test_of_stage_two_nothing_is_known_of_a_sample_until_it_is_drawn():
    loss = two_stage(select_epochs=1, decay=0.5)
    first, second = torch.arange(B), torch.arange(B, 2 * B)
    outputs = [torch.randn(B, C, generator=torch.Generator().manual_seed(k)) for k in range(5)]
    loss.set_epoch(0)
    loss(outputs[0], GIVEN[:B], first)
    loss(outputs[1], GIVEN[B : 2 * B], second)
    loss.end_epoch(None)
    # an epoch may be a chunk of a pass: these draw one half of the samples each
    for epoch, index in ((1, first), (2, second)):
        loss.set_epoch(epoch)
        own = cross_entropy(outputs[epoch + 1], GIVEN[index]) * loss.trusted[index]
        torch.testing.assert_close(loss(outputs[epoch + 1], GIVEN[index], index), own)
        loss.end_epoch(None)
        torch.testing.assert_close(normalised(loss.average[index]), outputs[epoch + 1].softmax(1))
    loss.set_epoch(3)
    own = cross_entropy(outputs[4], GIVEN[:B]) * loss.trusted[:B]
    assert (loss(outputs[4], GIVEN[:B], first) > own).all()


def test_both_stages_in_one_run():
    loss = two_stage(select_epochs=2, share=0.5, decay=0.5)
    index = torch.arange(8)
    # labels 0 1 2 3 0 1 2 3: the network gives the first four, the others by halves
    output = torch.cat([logits(0, 1, 2, 3), logits(1, 1, 3, 3, size=1.0)])
    for epoch in range(2):
        loss.set_epoch(epoch)
        losses = loss(output, GIVEN[:8], index)
        torch.testing.assert_close(losses, cross_entropy(output, GIVEN[:8]))
        assert not loss.trusted.any()
        loss.end_epoch(None)
    assert loss.trusted.tolist() == [True] * 4 + [False] * 8
    labels = loss.labels()
    assert torch.equal(labels[:4], F.one_hot(GIVEN[:4], C).float())
    assert (labels[4:].amax(1) < 1).all() and labels[4:8].argmax(1).tolist() == [1, 1, 3, 3]
    torch.testing.assert_close(labels.sum(1), torch.ones(N))

    loss.set_epoch(2)
    assert loss.weight() == 0.0
    own = cross_entropy(output, GIVEN[:8])
    torch.testing.assert_close(loss(output, GIVEN[:8], index), own * loss.trusted[:8])
    loss.end_epoch(None)
    torch.testing.assert_close(loss.average[:8], 0.5 * output.softmax(1))  # nothing of stage 1
    loss.set_epoch(3)
    assert float(loss.weight()) == pytest.approx(5 * math.exp(-5 * 0.75**2) * 4 / 8)
    assert loss.labels().tolist() == [0, 1, 2, 3, 1, 1, 3, 3, *GIVEN[8:].tolist()]


def test_with_ordinary_labels_and_no_selection_all_are_trusted():
    loss = two_stage()
    run_epochs(loss, 2)
    assert loss.trusted.all() and loss.trusted_share == 1
    loss.set_epoch(9)
    assert float(loss.weight()) == 5.0


def test_two_stage_distrusts_labels_that_the_ensemble_does_not_give():
    loss = two_stage()
    loss(logits(0, 1, 2, 0, size=2.0), GIVEN[:B], torch.arange(B))
    loss.end_epoch(None)
    score = loss.sample_score()
    assert score[:B].argmax() == 3
    torch.testing.assert_close(score[0], torch.tensor(math.log(math.exp(2) + 3) - 2))
    torch.testing.assert_close(score[B:], torch.full((N - B,), math.log(C)))


@pytest.mark.parametrize("method", [joint, two_stage])
def test_later_epochs_read_nothing_from_the_device(monkeypatch, method):
    for module in ("joint_optimization", "two_stage"):
        monkeypatch.setattr(f"losses.{module}.check_index", lambda *_: None)
    loss = method()
    run_epochs(loss, 4)
    loss.set_epoch(4)
    with Watch() as watch:
        output = torch.randn(B, C, requires_grad=True)
        loss(output, GIVEN[:B], torch.arange(B)).mean().backward()
    assert watch.reads == 0


def test_the_ramps_of_temporal_ensembling():
    assert [ramp_up(epoch, 80) for epoch in (0, 40, 80, 99)] == [
        math.exp(-5), math.exp(-1.25), 1.0, 1.0,
    ]  # fmt: skip
    assert ramp_up(0, 0) == 1.0
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.003)
    schedule, rates = RampUpAndDown(optimizer, 300), []
    for _ in range(300):
        rates.append(optimizer.param_groups[0]["lr"] / 0.003)
        optimizer.step()
        schedule.step()
    for epoch, factor in (
        (0, math.exp(-5)), (40, math.exp(-1.25)), (80, 1), (250, 1), (260, math.exp(-0.5)),
        (299, math.exp(-(24.5**2) / 50)),
    ):  # fmt: skip
        assert rates[epoch] == pytest.approx(factor, rel=1e-9)
    with pytest.raises(ValueError, match=r"up must lie in \[0, inf\), got -1"):
        RampUpAndDown(optimizer, 300, up=-1)


# --- what is refused


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (selfie, {"noise_rate": None}, "SELFIE needs the noise rate.*set loss.tau"),
        *((selfie, {"tau": bad}, r"\[0, 1\), got.*loss.tau") for bad in (1.0, -0.1, NAN, INF)),
        (selfie, {"noise_rate": 1.0}, r"\[0, 1\), got 1.0"),
        (selfie, {"q": 0}, "q, the number of votes, must be at least 1, got 0"),
        (selfie, {"q": 3}, "warm_up=2 and q=3"),
        (selfie, {"epochs": 2}, "warm_up must be less than 2, the epochs.*got 2"),
        *((selfie, {"eps": bad}, "eps bounds") for bad in (1.1, NAN, INF, -INF)),
        *((joint, {"alpha": bad}, "alpha is the weight") for bad in (-1.0, NAN, INF)),
        *((joint, {"beta": bad}, "beta is the weight") for bad in (-1.0, NAN, INF)),
        (joint, {"window": 0}, "window must be at least 1"),
        (joint, {"window": 4}, "begin=3 and window=4"),
        (joint, {"epochs": 2}, "begin must be at most 2, the epochs.*got 3"),
        (joint, {"prior": [0.5, 0.5]}, "each of the 4 classes, got 2"),
        *(
            (joint, {"prior": bad}, "probabilities that sum to 1")
            for bad in ([0.5] * 4, [-0.5, 0.5, 0.5, 0.5], [NAN] * 4, [INF] * 4)
        ),
        (two_stage, {"select_epochs": -1}, "select_epochs must be >= 0, got -1"),
        (two_stage, {"select_epochs": 3, "epochs": 2}, "select_epochs must be at most 2.*got 3"),
        *((two_stage, {"share": bad}, r"share must be in \(0, 1\]") for bad in (0.0, 1.1, NAN)),
        *((two_stage, {"decay": bad}, r"decay must be in \[0, 1\)") for bad in (1.0, -0.1, NAN)),
        *((two_stage, {"max_weight": bad}, "max_weight must be") for bad in (-1.0, NAN, INF)),
        (two_stage, {"ramp_epochs": -1}, "ramp_epochs must be >= 0, got -1"),
    ],
)
def test_an_argument_outside_its_range_is_named(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        method(**arguments)


# --- runs, one after another


def test_selfie_runs_restart_from_labels(run):
    options = ["loss=SELFIE", "loss.warm_up=3", "loss.q=2", "epochs=5"]
    code, first, *_ = run(*options, **DIGITS, name="seed1")
    noise, left = arrays(first / "noise.npz"), arrays(first / "labels.npz")["labels"]
    corrected = weights(first)["objective"]["loss.corrected"].numpy()
    assert code == 0 and (corrected >= 0).any()
    assert np.array_equal(left, np.where(corrected >= 0, corrected, noise["given"]))
    changed = left != noise["given"]
    assert 0 < changed.sum() < len(changed)

    targets = f"targets={first}/labels.npz"
    # a fresh network, and nothing more refurbished: what remains is what was handed on
    code, second, *_ = run(*options, "loss.eps=-1", targets, **DIGITS, name="seed2")
    state = weights(second)["objective"]
    assert code == 0
    assert np.array_equal(state["loss.corrected"].numpy(), np.where(changed, left, -1))
    assert np.array_equal(arrays(second / "labels.npz")["labels"], left)
    code, *_, complaints = run(*options, targets, "noise.seed=9", **DIGITS, name="other")
    assert code == 2 and "made from other given labels" in complaints


def test_selfie_asks_for_a_noise_rate_that_nobody_knows(run, monkeypatch):
    import experiment

    monkeypatch.setattr(experiment.Experiment, "noise_rate", None)
    options = ["loss=SELFIE", "loss.warm_up=1", "loss.q=1", "epochs=2"]
    code, *_, complaints = run(*options, **DIGITS)
    assert code == 2 and "set loss.tau to an estimate" in complaints
    assert run(*options, "loss.tau=0.3", **DIGITS, name="estimated")[0] == 0


def test_both_steps_of_joint_optimization(run):
    options = ["loss=JointOptimization", "loss.begin=3", "loss.window=2", "epochs=6"]
    code, first, *_ = run(*options, "validation.fraction=0.1", **DIGITS, name="a")
    left, held_out = arrays(first / "labels.npz")["labels"], arrays(first / "samples.npz")["index"]
    assert code == 0 and left.shape == (1297, 10) and len(held_out) < 1297
    np.testing.assert_allclose(left.sum(1), 1, atol=1e-5)
    assert np.isin(left[np.setdiff1d(np.arange(1297), held_out)], (0, 1)).all()
    summary = json.loads((first / "summary.json").read_text())
    assert summary["recovery"]["accuracy"] > 60  # of labels of which 60 % are right

    step2 = {"params": "params/digits/joint_optimization_step2.yaml", "name": "b"}
    code, second, *_ = run(f"targets={first}/labels.npz", "validation.fraction=0.1", **step2)
    assert code == 0 and not (second / "labels.npz").exists()
    code, *_, complaints = run(*options, "epochs=2", **DIGITS, name="c")
    assert code == 2 and "begin must be at most 2, the epochs of the training" in complaints
    code, hard, *_ = run(*options, "loss.hard=true", **DIGITS, name="d")
    assert code == 0 and arrays(hard / "labels.npz")["labels"].shape == (1297,)
    code, *_, complaints = run(*options, "loss.begin=1", **DIGITS, name="e")
    assert code == 2 and "begin=1 and window=2" in complaints


def test_the_second_stage_with_a_fresh_network(run):
    options = ["loss=TwoStage", "loss.share=0.2"]
    code, first, *_ = run(*options, "loss.select_epochs=3", **DIGITS, name="a")
    state = weights(first)["objective"]
    left, noise = arrays(first / "labels.npz")["labels"], arrays(first / "noise.npz")
    trusted = left.max(1) == 1
    assert code == 0 and np.array_equal(trusted, state["loss.trusted"].numpy())
    assert np.array_equal(left[trusted].argmax(1), noise["given"][trusted])
    assert 20 < trusted.sum() <= 0.2 * 1297

    options += ["loss.select_epochs=0", f"targets={first}/labels.npz"]
    code, second, *_ = run(*options, "epochs=2", **DIGITS, name="b")
    state = weights(second)["objective"]
    assert code == 0 and np.array_equal(trusted, state["loss.trusted"].numpy())
    assert state["loss.trusted_share"].item() == pytest.approx(trusted.mean())
    assert arrays(second / "labels.npz")["labels"].shape == (1297,)


@pytest.mark.parametrize("method", ["SELFIE", "JointOptimization", "TwoStage"])
def test_regression_is_refused(run, method):
    options = [f"loss={method}", "model=digitsum_lstm", "model.hidden=4"]
    code, *_, complaints = run(*options, params="params/digitsum/plain.yaml")
    assert code == 2 and f"{method} works on class probabilities" in complaints
