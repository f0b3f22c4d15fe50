"""MentorNet, truncated GCE and forward correction.

Against traces of the authors' code where there are some, against loops in plain Python, and the
places where an implementation may go wrong in silence.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from losses import GCE, ForwardCorrection, MentorNet, Plain, mentor
from losses.forward_correction import estimate_transition
from losses.mentornet import CURRICULA, curriculum_weights, nearest_percentile
from losses.task import cross_entropy
from tests.fixtures import check_trace
from tests.replay.curricula import CURRICULA as NAMES
from tests.replay_methods import METHODS
from tests.test_run import arrays, equal, interrupt_at, weights

GOLDEN = Path(__file__).parent / "golden" / "methods"
TRACES = sorted(
    path.stem for path in GOLDEN.glob("*.npz") if path.stem.startswith(("mentornet", "truncated"))
)
N, C, B = 40, 5, 8
UNIFORM = 0.6 * torch.eye(C, dtype=torch.float64) + 0.4 / C


def batches(count, seed=0, size=B):
    """(output, target, index) with every index at most once in a batch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        output = 2 * torch.randn(size, C, generator=generator)
        target = torch.randint(C, (size,), generator=generator)
        yield output, target, torch.randperm(N, generator=generator)[:size]


def gradient(loss, output, target, index):
    """Of the mean loss, for the output."""
    output = output.clone().requires_grad_()
    return torch.autograd.grad(loss(output, target, index).mean(), output)[0]


# --- traces of the authors' code


@pytest.mark.parametrize("name", TRACES)
def test_trace(name):
    check_trace(name, METHODS)


def test_there_are_traces_of_each_method():
    assert len(TRACES) == 5


# --- MentorNet


TABLES = json.loads((GOLDEN / "mentornet_tables.json").read_text())


def mentornet(curriculum="self_paced", num_samples=N, noise_rate=0.4, epochs=5, **arguments):
    return MentorNet(
        cross_entropy,
        num_samples,
        noise_rate,
        epochs,
        20,
        curriculum=curriculum,
        **arguments,
    )


@pytest.mark.parametrize("theirs", TABLES["vstar"])
def test_curricula_are_those_of_the_authors_on_a_grid(theirs):
    grid = torch.tensor(TABLES["grid"], dtype=torch.float64)
    got = [
        curriculum_weights(NAMES[theirs], loss[None], excess[None], int(percent)).item()
        for loss, excess, _, percent in grid
    ]
    np.testing.assert_allclose(got, TABLES["vstar"][theirs], rtol=1e-6, atol=1e-7)
    assert set(NAMES) == set(TABLES["vstar"]) and {*NAMES.values(), "learned"} == set(CURRICULA)


@pytest.mark.parametrize("row", TABLES["percentile"], ids=lambda row: f"{row['count']}-{row['q']}")
def test_percentile_is_a_loss_of_the_nearest_rank(row):
    losses = torch.tensor(TABLES["percentile_values"][: row["count"]])
    got = nearest_percentile(losses, row["q"] / 100)
    if row["exact_tie_between_two_ranks"]:  # in which versions of TensorFlow differ
        position = (row["count"] - 1) * (1 - row["q"] / 100)
        neighbours = losses.sort(descending=True).values[math.floor(position) :][:2]
        assert got in neighbours and position % 1 == pytest.approx(0.5)
    else:
        assert got.item() == pytest.approx(row["value"])


def test_half_a_rank_is_rounded_to_the_even_one():
    losses = torch.arange(128.0)
    assert nearest_percentile(losses, 0.5) == 127 - 64  # 63.5 from the top
    assert nearest_percentile(losses[:16], 0.7) == 15 - 4  # 4.5, or 4.500000000000001 in floats
    assert nearest_percentile(losses[:16], 0.9) == 15 - 2  # 1.5, or 1.4999999999999996
    assert nearest_percentile(losses, 1.0) == 127 and nearest_percentile(losses, 0.0) == 0


@pytest.mark.parametrize("curriculum", NAMES.values())
def test_mentornet_equals_a_naive_loop(curriculum):
    loss = mentornet(curriculum, percentile=0.6, decay=0.7, burn_in=9, gamma=1.5)
    m, score = 0.0, [0.0] * N
    for step, (output, target, index) in enumerate(batches(100)):
        values = loss(output, target, index)
        own = [
            -row.double().log_softmax(0)[y].item() for row, y in zip(output, target, strict=True)
        ]
        m = 0.7 * m + 0.3 * sorted(own, reverse=True)[3]  # of 7 * 0.4 = 2.8
        for position, i in enumerate(index.tolist()):
            value = own[position]
            linear = min(max(1 - (value - m) / 1.5, 0), 1)
            weight = {
                "self_paced": float(value <= m),
                "spcl_linear": linear,
                "hard": float(value >= m),
                "focal": (1 - math.exp(-value)) ** 2,
                "predefined": 1.0 if step <= 18 else float(value <= m) if step < 90 else linear,
            }[curriculum]
            weight = 1.0 if step < 8 else weight
            assert values[position].item() == pytest.approx(weight * value, rel=1e-3, abs=1e-4)
            score[i] = 0.9 * score[i] + 0.1 * (value - m)
    torch.testing.assert_close(loss.sample_score(), torch.tensor(score), rtol=1e-4, atol=1e-5)


def test_the_percentile_moves_before_it_is_used_and_from_zero():
    loss = mentornet(percentile=0.5, decay=0.5)
    output, target, index = next(batches(1))
    own = cross_entropy(output, target)
    kept = loss(output, target, index) > 0
    assert torch.equal(kept, own <= own.sort(descending=True).values[4] / 2)  # of 7 / 2 = 3.5


def test_weights_carry_no_gradient():
    for curriculum in ("spcl_linear", "focal"):
        loss, plain = mentornet(curriculum, gamma=9.0), Plain(cross_entropy)
        for output, target, index in batches(3):
            own = cross_entropy(output, target)
            loss(output, target, index)
            weight = loss.eval()(output, target, index) / own
            assert 0 < weight.min() < weight.max()
            expected = weight.unsqueeze(1) * gradient(plain, output, target, index)
            got = gradient(loss, output, target, index)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
            loss.train()


def test_constant_losses_keep_all_samples():
    loss = mentornet(decay=0.0)
    output, target, index = torch.zeros(B, C), torch.zeros(B, dtype=torch.long), torch.arange(B)
    assert (loss(output, target, index) > 0).all()


def test_progress_is_rounded_down_and_ends_at_99():
    loss, seen = mentornet(epochs=1), []
    for batch in batches(22):
        seen.append(loss.percent())
        loss(*batch)
    assert seen == [5 * step for step in range(20)] + [99, 99]


def test_the_noise_rate_gives_the_percentile():
    assert mentornet(noise_rate=0.3).percentile == pytest.approx(0.7)
    assert mentornet(noise_rate=0.3, percentile=0.75).percentile == 0.75
    assert mentornet(noise_rate=None, percentile=0.75).percentile == 0.75


def test_progress_may_stay_where_the_burn_in_ends():
    loss = mentornet("focal", epochs=5, burn_in=30, fixed_after_burn_in=True)
    seen = []
    for batch in batches(100):
        seen.append(loss.percent())
        loss(*batch)
    assert seen == [*range(30), *[30] * 70]
    stages = ((0.5, 30), (0.05, 70))
    loss = mentornet(burn_in=30, fixed_after_burn_in=True, example_dropout=stages)
    loss._step = 90
    assert loss.num_spared(20) == 19


# --- its learned mentor


def recorded(folder, epochs=20, count=60):
    """A run of 200 samples: right labels have losses below 1, others above 2."""
    generator = np.random.default_rng(0)
    true = generator.integers(C, size=200)
    given = np.where(generator.random(200) < 0.4, (true + 1) % C, true)
    losses = generator.random((epochs, 200), np.float32) + 2 * (given != true)
    np.save(folder / "losses.npy", losses.astype(np.float32))
    trusted = np.sort(generator.permutation(200)[:count])
    np.savez(folder / "noise.npz", given=given, true=true, trusted=trusted)
    return losses, given == true, trusted


def test_a_mentor_learns_which_losses_are_those_of_right_labels(tmp_path, capsys):
    losses, right, _ = recorded(tmp_path)
    path = tmp_path / "mentor.npz"
    assert mentor.main([str(tmp_path), str(path)]) == 0
    assert re.search(r"48 samples; of 12 others it takes 100\.0 %", capsys.readouterr().out)
    learned, m = mentor.read_mentor(str(path)), np.percentile(losses[9], 60)
    own = torch.from_numpy(losses[9]).float()
    weights = learned.weights(own, own - m, percent=50)
    assert weights[right].min() > 0.9 and weights[~right].max() < 0.1
    again = tmp_path / "again.npz"
    mentor.main([str(tmp_path), str(again)])
    assert equal(dict(mentor.read_mentor(str(again)).state_dict()), dict(learned.state_dict()))


def test_the_features_of_a_mentor_by_hand():
    losses = np.array([[1.0, 2, 3, np.nan], [2, 4, 6, np.nan]], np.float32)
    features = mentor.examples(losses, np.array([2, 0]))
    assert features.shape == (2, 2, 6, 3)
    median = list(mentor.PERCENTILES).index(50)
    assert features[0, :, median].tolist() == [[3, 1, 50], [1, -1, 50]]
    assert features[1, :, median].tolist() == [[6, 2, 99], [2, -2, 99]]


def test_samples_are_weighed_by_the_mentor(tmp_path):
    torch.manual_seed(0)
    mentor.write_mentor(tmp_path / "mentor.npz", mentor.Mentor())
    arguments = {"mentor": str(tmp_path / "mentor.npz"), "percentile": 0.5, "decay": 0.0}
    loss = mentornet("learned", burn_in=3, **arguments)
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    for step, (output, target, index) in enumerate(batches(8)):
        own = cross_entropy(output, target)
        weights = loss(output, target, index) / own
        layers = loss.mentor.layers
        features = torch.stack([own, own - loss.m, torch.full((B,), float(step))], 1)
        logit = torch.tanh(features @ layers[0].weight.T + layers[0].bias) @ layers[2].weight[0]
        expected = (logit + layers[2].bias).sigmoid() if step >= 2 else torch.ones(B)
        torch.testing.assert_close(weights, expected)
    other = mentornet("learned", **arguments)
    other.load_state_dict(loss.state_dict())
    assert equal(dict(other.state_dict()), dict(loss.state_dict()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"curriculum": "learned"},
            r"loss\.mentor=<file> and loss\.curriculum=learned go together",
        ),
        ({"mentor": "a.npz"}, "go together.*curriculum=self_paced and mentor=a.npz"),
        ({"curriculum": "learned", "mentor": "/nowhere.npz"}, "no such file; make it with python"),
    ],
)
def test_a_mentor_and_its_curriculum_go_together(arguments, message):
    with pytest.raises(ValueError, match=message):
        mentornet(**arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mean": np.zeros(3)}, "cannot be read as a mentor"),
        ({"mean": np.zeros(4)}, "cannot be read as a mentor"),
        ({"mean": np.full(3, np.nan)}, "not finite"),
    ],
)
def test_a_file_that_holds_no_mentor(tmp_path, content, message):
    path = tmp_path / "mentor.npz"
    mentor.write_mentor(path, mentor.Mentor())
    whole = arrays(path) if "not finite" in message or len(content["mean"]) == 4 else {}
    np.savez(path, **whole | content)
    with pytest.raises(ValueError, match=message):
        mentor.read_mentor(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trusted": None}, "has no trusted samples: record it with trusted.count=<how many>"),
        ({"losses": None}, "has no losses.npy: record it with record_losses=true"),
        ({"losses": np.zeros((3, 7))}, "not of as many samples"),
        ({"losses": np.full((3, 200), np.nan)}, "lacks losses of its trusted samples"),
        ({"true": "given"}, "all 60 trusted samples of .* have right labels"),
    ],
)
def test_a_run_that_no_mentor_can_learn_from(tmp_path, capsys, changes, message):
    recorded(tmp_path)
    stored = arrays(tmp_path / "noise.npz")
    if "losses" in changes:
        (tmp_path / "losses.npy").unlink()
        if changes["losses"] is not None:
            np.save(tmp_path / "losses.npy", changes["losses"].astype(np.float32))
    if "trusted" in changes:
        del stored["trusted"]
    if "true" in changes:
        stored["true"] = stored["given"]
    np.savez(tmp_path / "noise.npz", **stored)
    assert mentor.main([str(tmp_path), str(tmp_path / "mentor.npz")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (tmp_path / "mentor.npz").exists()


STAGES = ((0.5, 17), (0.05, 78), (0.9, 5))


@pytest.mark.parametrize(
    ("size", "step", "left"),
    [(16, 0, 8), (16, 16, 8), (16, 17, 15), (16, 94, 15), (16, 95, 1), (128, 17, 121), (3, 95, 0)],
)
def test_example_dropout_leaves_its_share_of_every_batch(size, step, left):
    """int(B (1 - rate)), at percent 17 and 95 by the next rate."""
    loss = mentornet("focal", num_samples=128, example_dropout=STAGES)  # whose weights are never 0
    loss._step = step
    output, target = torch.randn(size, C), torch.zeros(size, dtype=torch.long)
    assert (loss(output, target, torch.arange(size)) > 0).sum() == left


def test_example_dropout_draws_other_samples_at_every_step_and_in_every_run():
    output, target, index = next(batches(1))

    def drawn(loss):
        return [(loss(output, target, index) > 0).tolist() for _ in range(6)]

    torch.manual_seed(0)
    first = mentornet("focal", example_dropout=((0.5, 100),))
    second = mentornet("focal", example_dropout=((0.5, 100),))
    before = torch.get_rng_state()
    masks = drawn(first)
    assert torch.equal(torch.get_rng_state(), before)  # the network's own dropout stays as it is
    assert len({tuple(mask) for mask in masks}) > 3 and masks != drawn(second)
    assert np.mean(masks, 0).min() < 1  # no sample has a privilege


def test_example_dropout_goes_on_where_it_was():
    first = mentornet(example_dropout=STAGES)
    second = mentornet(example_dropout=STAGES)
    list(first(*batch) for batch in batches(30))
    second.load_state_dict(first.state_dict())
    for batch in batches(5, seed=1):
        assert torch.equal(first(*batch), second(*batch))
    assert first.percent() == second.percent() == 35


def test_evaluation_drops_nothing():
    loss = mentornet("focal", example_dropout=((0.9, 100),)).eval()
    assert (loss(*next(batches(1))) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"curriculum": "dd"}, "curriculum must be one of predefined, self_paced.*'dd'"),
        ({"noise_rate": None}, r"set loss\.percentile"),
        ({"percentile": 1.1}, r"percentile must lie in \[0, 1\], got 1\.1"),
        ({"percentile": math.nan}, "percentile must lie"),
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), got 1\.0"),
        ({"burn_in": 101}, "burn_in must lie"),
        ({"burn_in": -1}, "burn_in must lie"),
        ({"gamma": 0.0}, "gamma must be"),
        ({"gamma": math.inf}, "gamma must be"),
        ({"gamma": math.nan}, "gamma must be"),
        ({"example_dropout": ((1.0, 100),)}, r"pairs of a rate in \[0, 1\).*got \[1\.0, 100\]"),
        ({"example_dropout": ((0.5, 17.5),)}, "a whole number of percent"),
        ({"example_dropout": ((math.nan, 17),)}, "pairs of a rate"),
        ({"example_dropout": ((0.5, math.nan),)}, "pairs of a rate"),
        ({"example_dropout": ((0.5,),)}, "pairs of a rate"),
        ({"example_dropout": ((0.5, 17), (0.05, 78))}, "sum to 100, got 95"),
    ],
)
def test_an_argument_of_mentornet_outside_its_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        mentornet(**arguments)


# --- truncated GCE


def truncated(k=0.3, prune_from=1, prune_every=1, **arguments):
    return GCE(cross_entropy, N, k=k, prune_from=prune_from, prune_every=prune_every, **arguments)


def all_samples(seed=1):
    """(outputs, targets, indices) of all samples, as ``predict`` returns them."""
    output, target, _ = next(batches(1, seed, size=N))
    return output, target, torch.randperm(N, generator=torch.Generator().manual_seed(seed))


def test_gce_without_k_is_what_it_was():
    first, second = GCE(cross_entropy, q=0.7), GCE(cross_entropy, N, q=0.7, prune_from=1)
    assert not first.state_dict() and not second.state_dict() and not second.drops_samples
    second.end_epoch(lambda: pytest.fail("nothing is predicted"))
    assert second.sample_score() is None
    for output, target, index in batches(3):
        expected = -torch.expm1(-0.7 * cross_entropy(output, target)) / 0.7
        assert torch.equal(first(output, target, index), expected)
        assert torch.equal(second(output, target, index + 10**6), expected)  # it reads no index


def test_truncated_gce_by_hand():
    """p = 0.8, 0.6, 0.3 and 0.1 with k = 0.3, which p = 0.3 does not exceed."""
    loss = GCE(cross_entropy, 4, q=0.5, k=0.3, prune_from=1, prune_every=1)
    p = torch.tensor([0.8, 0.6, 0.3, 0.1], dtype=torch.float64)
    output = torch.stack([p, 1 - p], 1).log()
    batch = output, torch.zeros(4, dtype=torch.long), torch.arange(4)
    before = (1 - p.sqrt()) / 0.5 - (1 - 0.3**0.5) / 0.5
    torch.testing.assert_close(loss(*batch), before)
    loss.end_epoch(lambda: batch)
    expected = torch.tensor([*before[:2].tolist(), 0, 0], dtype=torch.float64)
    torch.testing.assert_close(loss(*batch), expected)
    torch.testing.assert_close(loss.sample_score(), -p.log().float())
    slope = -p.sqrt() * (1 - p) / 4  # of -p^q (1 - p) for the output of the given label
    slope[2:] = 0
    torch.testing.assert_close(gradient(loss, *batch)[:, 0], slope)


def test_between_refreshes_nothing_is_truncated():
    loss, (output, target, index) = truncated(k=0.9), next(batches(1))
    loss.end_epoch(lambda: (torch.eye(C)[[0] * N] * 9, torch.zeros(N).long(), torch.arange(N)))
    plain = gradient(GCE(cross_entropy), output, target, index)
    assert torch.equal(gradient(loss, output, target, index), plain)


def test_a_pruned_sample_may_return():
    loss = truncated(k=0.5)
    output, target, index = all_samples()
    for sign in (1, -1):
        loss.end_epoch(lambda sign=sign: (sign * output, target, index))
        kept = loss(sign * output[:B], target[:B], index[:B]) != 0
        p = (sign * output).softmax(1).gather(1, target[:, None]).squeeze(1)
        assert torch.equal(kept, (p > 0.5)[:B]) and 0 < (p > 0.5).sum() < N


@pytest.mark.parametrize(
    ("prune_from", "prune_every", "expected"),
    [(4, 2, [4, 6, 8, 10, 12]), (3, 3, [3, 6, 9, 12]), (5, 4, [8, 12]), (1, 1, range(2, 14))],
)
def test_a_refresh_comes_before_the_epochs_that_the_rule_names(prune_from, prune_every, expected):
    """Counted from 1, as e + 1 >= start and (e + 1) % every == 0 for e from 0."""
    loss, refreshed = truncated(prune_from=prune_from, prune_every=prune_every), []
    for epoch in range(12):
        loss.set_epoch(epoch)
        loss.end_epoch(lambda epoch=epoch: refreshed.append(epoch + 2) or all_samples())
    assert refreshed == list(expected)


def test_a_refresh_that_would_prune_all_changes_nothing():
    loss = truncated(k=0.5)
    loss.end_epoch(all_samples)
    kept = loss.kept(loss.pruning_loss)
    assert 0 < kept.sum() < N
    hopeless = torch.zeros(N, C), torch.zeros(N).long(), torch.arange(N)
    loss.end_epoch(lambda: hopeless)
    assert torch.equal(loss.kept(loss.pruning_loss), kept)


def test_there_is_no_score_before_the_first_refresh():
    loss = truncated()
    assert loss.sample_score() is None
    loss.end_epoch(all_samples)
    assert loss.sample_score().shape == (N,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0.0}, r"k must lie in \(0, 1\).*got 0\.0"),
        ({"k": 1.0}, "k must lie"),
        ({"k": math.nan}, "k must lie"),
        ({"prune_from": 0}, r"prune_from must lie in \[1, inf\), got 0"),
        ({"prune_every": 0}, r"prune_every must lie in \[1, inf\), got 0"),
        ({"q": math.nan}, "q must lie"),
    ],
)
def test_an_argument_of_truncated_gce_outside_its_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        truncated(**arguments)


def test_truncated_gce_needs_the_size_of_the_set_and_an_epoch_to_prune_before():
    with pytest.raises(ValueError, match="needs num_samples"):
        GCE(cross_entropy, k=0.5)
    for epochs, prune_from, prune_every in ((20, 40, 10), (45, 41, 10), (1, 1, 1)):
        with pytest.raises(ValueError, match=f"none of the {epochs} epochs begins with a refresh"):
            truncated(epochs=epochs, prune_from=prune_from, prune_every=prune_every)
    assert truncated(epochs=40, prune_from=40, prune_every=10).drops_samples
    assert GCE(cross_entropy, N, 1).k is None


# --- forward correction


def forward(known=UNIFORM, epochs=5, **arguments):
    return ForwardCorrection(cross_entropy, N, C, known, epochs, **arguments)


def test_forward_correction_by_hand():
    """p = (0.7, 0.3) and T = [[0.8, 0.2], [0.4, 0.6]]: labels 0 and 1 have 0.68 and 0.32."""
    matrix = torch.tensor([[0.8, 0.2], [0.4, 0.6]], dtype=torch.float64)
    loss = ForwardCorrection(cross_entropy, 4, 2, matrix, 5)
    output = torch.tensor([[0.7, 0.3]] * 2).log()
    values = loss(output, torch.tensor([0, 1]), torch.tensor([2, 0]))
    torch.testing.assert_close(values, -torch.tensor([0.68, 0.32]).log())
    expected = -torch.tensor([0.18 / 0.32, 1, 0.56 / 0.68, 1]).log()  # p_y T_yy / (T^T p)_y
    torch.testing.assert_close(loss.sample_score(), expected)


def test_forward_correction_equals_a_naive_loop():
    generator = torch.Generator().manual_seed(4)
    matrix = torch.rand(C, C, generator=generator).double()
    matrix[1, 2] = matrix[0, 4] = 0
    matrix /= matrix.sum(1, keepdim=True)
    loss = forward(matrix)
    for output, target, index in batches(5):
        values, p = loss(output, target, index), output.double().softmax(1)
        for position, y in enumerate(target.tolist()):
            mixed = sum(p[position, i].item() * matrix[i, y].item() for i in range(C))
            assert values[position].item() == pytest.approx(-math.log(mixed), rel=1e-5)
            right = p[position, y].item() * matrix[y, y].item() / mixed
            score = loss.score[index[position]].item()
            assert score == pytest.approx(-math.log(right), rel=1e-4, abs=1e-6)


def test_forward_correction_without_noise_is_cross_entropy():
    loss = forward(torch.eye(C, dtype=torch.float64))
    for output, target, index in batches(3):
        torch.testing.assert_close(loss(output, target, index), cross_entropy(output, target))
        plain = gradient(Plain(cross_entropy), output, target, index)
        torch.testing.assert_close(gradient(loss, output, target, index), plain)


def test_forward_correction_is_finite_where_a_label_cannot_be():
    loss = forward(torch.roll(torch.eye(C, dtype=torch.float64), 1, 0))
    output = 200 * torch.eye(C).requires_grad_()
    values = loss(output, torch.arange(C), torch.arange(C))
    values.sum().backward()
    assert values.isfinite().all() and loss.score.isfinite().all()


def test_a_class_without_samples_keeps_its_labels():
    matrix = UNIFORM.clone()
    matrix[3] = 0
    expected = torch.where(matrix == 0, torch.eye(C).double(), matrix)
    torch.testing.assert_close(forward(matrix).transition.double(), expected, atol=1e-6, rtol=0)


def naive_estimate(p, percentile):
    """Patrini et al., class by class, of a copy of the predictions."""
    rows = []
    for i in range(p.shape[1]):
        column = p[:, i].copy()
        if percentile < 100:
            column[column >= np.percentile(column, percentile, method="higher")] = 0
        rows.append(p[column.argmax()] / p[column.argmax()].sum())
    return np.array(rows)


@pytest.mark.parametrize("percentile", [97, 90, 50, 100])
@pytest.mark.parametrize("count", [101, 340])
def test_the_estimate_equals_a_naive_loop(percentile, count):
    p = np.random.default_rng(0).dirichlet([0.5] * C, count)
    got = estimate_transition(torch.from_numpy(p), percentile)
    np.testing.assert_allclose(got, naive_estimate(p, percentile), rtol=1e-12)
    largest = estimate_transition(torch.from_numpy(p), 100)
    assert (got.diagonal() < largest.diagonal()).all() == (percentile < 100)


def test_the_estimate_passes_ties_at_the_percentile_by():
    """Predictions that have run into 1 are no probabilities of confusion."""
    p = torch.tensor([[1.0, 0.0]] * 30 + [[0.9, 0.1]] + [[0.2, 0.8]] * 69, dtype=torch.float64)
    got = estimate_transition(p, 97)
    torch.testing.assert_close(got[0], p[30])
    torch.testing.assert_close(got[1], p[30])  # all 0.8 are at the percentile
    same = torch.full((10, 2), 0.5, dtype=torch.float64)
    assert torch.equal(estimate_transition(same, 97), same[:2])


def test_the_estimate_finds_the_noise():
    """Of a network that says exactly how each image is labelled."""
    true = torch.arange(1000) % C
    sure = 0.99 * torch.nn.functional.one_hot(true, C).double() + 0.01 / C
    got = estimate_transition(sure @ UNIFORM, 100)
    torch.testing.assert_close(got, UNIFORM, atol=0.01, rtol=0)


def test_the_estimate_does_not_depend_on_the_order_of_the_predictions():
    """Of samples that tie, the first one in the training set counts."""
    p = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.1, 0.3]] * 20).repeat_interleave(2, 1)[:, :C]
    matrices = []
    for seed in range(6):
        loss = forward(None, transition="estimate", estimate_epochs=1, percentile=100.0)
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        loss.end_epoch(lambda order=order: (p[order].log(), order, order))
        matrices.append(loss.transition)
    assert all(torch.equal(matrix, matrices[0]) for matrix in matrices)


def test_the_loss_is_corrected_once_the_matrix_is_estimated():
    loss, plain = forward(None, transition="estimate", estimate_epochs=2), Plain(cross_entropy)
    p = torch.from_numpy(np.random.default_rng(0).dirichlet([0.5] * C, N))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    batch = next(batches(1))
    for epoch in range(4):
        loss.set_epoch(epoch)
        corrected = not torch.allclose(loss(*batch), plain(*batch))
        assert corrected == (epoch >= 2)
        if not corrected:
            torch.testing.assert_close(gradient(loss, *batch), gradient(plain, *batch))
        # in evaluation mode at the end of epoch 1 only, and in any order
        loss.end_epoch(
            lambda epoch=epoch: (
                (p[order].log(), order, order) if epoch == 1 else pytest.fail("too much work")
            )
        )
    expected = naive_estimate(p.numpy(), 97)
    np.testing.assert_allclose(loss.transition, expected, rtol=1e-5)
    again = forward(None, transition="estimate", estimate_epochs=2)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again(*batch), loss(*batch))


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
def test_a_matrix_is_read_from_a_file(tmp_path, suffix):
    path = tmp_path / f"matrix.{suffix}"
    if suffix == "npy":
        np.save(path, UNIFORM.numpy())
    elif suffix == "npz":
        np.savez(path, transition=UNIFORM.numpy(), given=np.zeros(3))  # as noise.npz of a run
    else:
        rows = [",".join(map(str, row)) for row in UNIFORM.tolist()]
        path.write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    batch = next(batches(1))
    loss = forward(None, transition=str(path))
    assert torch.equal(loss(*batch), forward()(*batch))


BAD = UNIFORM.numpy().copy()
BAD[2, 2] += 0.1
NEGATIVE = UNIFORM.numpy().copy()
NEGATIVE[0, :2] += [0.2, -0.2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("matrix.npy", BAD, r"row 2 sums to 1\.1"),
        ("matrix.npy", NEGATIVE, "negative"),
        ("matrix.npy", np.full((C, C), np.nan), "no numbers"),
        ("matrix.npy", np.full((C, C), np.inf), "no numbers"),
        ("matrix.npy", UNIFORM.numpy()[:4], r"must be \[5, 5\].*got \[4, 5\]"),
        ("matrix.npy", np.ones(3), r"got \[3\]"),
        ("matrix.npy", np.array([["a"]]), "cannot be read as a matrix of numbers"),
        ("matrix.npy", b"no array", "cannot be read as a matrix of numbers"),
        ("matrix.npz", b"no archive", "cannot be read as a matrix of numbers"),
        ("matrix.csv", b"a,b\n1,2\n", "cannot be read as a matrix of numbers"),
        ("matrix.csv", b"1,2\n3\n", "cannot be read as a matrix of numbers"),
        ("matrix.txt", b"1", r'"known", "estimate" or the path of a \.npy, \.npz or \.csv'),
    ],
)
def test_a_matrix_that_is_none_is_one_clear_error(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(ValueError, match=message):
        forward(transition=str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transition": "known", "known": None}, r"set loss\.transition=estimate"),
        ({"transition": "estimated"}, "'estimated'"),
        ({"transition": "/nowhere/matrix.npy"}, "there is no such file"),
        ({"transition": "estimate", "estimate_epochs": 0}, r"lie in \[1, 5\).*got 0"),
        ({"transition": "estimate", "estimate_epochs": 5}, r"lie in \[1, 5\).*got 5"),
        ({"percentile": 101.0}, r"percentile must lie in \[0, 100\]"),
        ({"percentile": math.nan}, "percentile must lie"),
    ],
)
def test_an_argument_of_forward_correction_outside_its_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        forward(**arguments)


# --- whole runs


DIGITS = {"params": "params/digits/plain.yaml"}
RUNS = {
    "MentorNet": ["loss.curriculum=predefined", "loss.example_dropout=[[0.5, 50], [0.05, 50]]"],
    "GCE": ["loss.k=0.2", "loss.prune_from=2", "loss.prune_every=1"],
    "ForwardCorrection": ["loss.transition=estimate", "loss.estimate_epochs=1"],
}


@pytest.mark.parametrize("method", RUNS)
def test_a_resumed_run_equals_one_that_was_not_interrupted(run, monkeypatch, method):
    """In the middle of an epoch, and at its end."""
    options = [f"loss={method}", *RUNS[method]]
    code, whole, _, complaints = run(*options, **DIGITS, name="whole")
    assert code == 0, complaints
    for step in (3, 7, 10):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            _, broken, *_ = run(*options, **DIGITS)
    code, *_ = run(*options, **DIGITS)
    assert code == 0 and equal(weights(whole), weights(broken))
    score = arrays(broken / "samples.npz")["score"]
    assert np.isfinite(score).all() and score.std() > 0


def test_the_known_matrix_is_that_of_the_noise(run):
    options = ["noise=pair", "noise.fraction=0.4", "epochs=1", "loss=ForwardCorrection"]
    code, directory, *_ = run(*options, **DIGITS)
    stored = torch.from_numpy(arrays(directory / "noise.npz")["transition"])
    got = weights(directory)["objective"]["loss.log_transition"].exp()
    assert code == 0
    torch.testing.assert_close(got.double(), stored, rtol=1e-6, atol=1e-6)
    from_file = f"loss.transition={directory / 'noise.npz'}"
    _, again, *_ = run(*options, from_file, **DIGITS, name="again")
    assert equal(weights(directory)["model"], weights(again)["model"])


def test_instance_noise_goes_through_a_run(run):
    code, directory, *_ = run("noise=instance", "noise.fraction=0.4", "epochs=1", **DIGITS)
    noise = arrays(directory / "noise.npz")
    assert code == 0 and 0.3 < (noise["given"] != noise["true"]).mean() < 0.5
