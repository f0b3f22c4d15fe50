"""Trusted samples, split off and brought with every batch; and targets of another run."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.io import write_png

from datasets import digits, digitsum
from datasets.base import Dataset, Split
from datasets.loader import make_loaders
from datasets.noise import Noise, inject
from datasets.selection import Selection, make_selection
from datasets.splits import split_rows
from datasets.streams import PairedLoader, repeated_passes
from tests.test_run import arrays
from utils.errors import UserError
from utils.run_inputs import write_config, write_noise
from utils.run_state import read_summary
from utils.settings import DEFAULTS

COUNT, CLASSES = 200, 4


def noisy(count=COUNT, known=True):
    """Every third label is the next class; true classes come in turn."""
    true = np.arange(count) % CLASSES
    given = np.where(np.arange(count) % 3 == 0, (true + 1) % CLASSES, true)
    return Noise(given, true if known else np.full(count, -1), CLASSES, "", "pair", 0.3)


def split(noise, fraction=0.0, seed=1, verified=None, **trusted):
    return split_rows(
        noise, validation={"fraction": fraction}, trusted=trusted, seed=seed, verified=verified
    )


# The split


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_trusted_samples_are_balanced_over_true_classes_and_trained_on_no_more(fraction):
    noise = noisy()
    parts = split(noise, fraction, count=30)
    counts = np.bincount(noise.true[parts.trusted], minlength=CLASSES)
    assert sorted(counts) == [7, 7, 8, 8]
    assert (np.diff(parts.trusted) > 0).all()
    everything = np.concatenate([parts.rows, parts.held_out, parts.trusted])
    assert sorted(everything) == list(range(COUNT))


def test_which_samples_are_trusted_is_a_function_of_the_seed():
    first, again, other = (split(noisy(), 0.1, seed, count=20) for seed in (1, 1, 2))
    assert np.array_equal(first.trusted, again.trusted) and np.array_equal(first.rows, again.rows)
    assert not np.array_equal(first.trusted, other.trusted)
    assert split(noisy(), count=8).trusted.tolist() == [13, 58, 59, 127, 160, 166, 168, 177]


def test_without_trusted_samples_nothing_is_split_off():
    for fraction in (0.0, 0.25):
        parts, before = split(noisy(), fraction, count=0), split(noisy(), fraction)
        assert len(parts.trusted) == 0
        assert np.array_equal(parts.rows, before.rows)
        assert np.array_equal(parts.held_out, before.held_out)


def test_the_validation_part_does_not_depend_on_the_trusted_one():
    plain, parts = split(noisy(), 0.25), split(noisy(), 0.25, count=20)
    assert np.array_equal(parts.held_out, plain.held_out)
    kept = plain.rows[~np.isin(plain.rows, parts.trusted)]
    assert np.array_equal(parts.rows, kept)  # in the same order


def test_trusted_samples_may_be_drawn_without_regard_to_their_class():
    parts = split(noisy(), count=40, per_class=False)
    counts = np.bincount(noisy().true[parts.trusted], minlength=CLASSES)
    assert counts.sum() == len(set(parts.trusted)) == 40 and counts.max() > 10


def test_numbers_are_drawn_from_all_alike():
    true = np.linspace(0, 1, COUNT, dtype=np.float32)
    noise = Noise(true[::-1].copy(), true, 0, "", "label_permutation", 1.0)
    parts = split(noise, count=50)
    assert len(set(parts.trusted)) == 50 and len(parts.rows) == 150


@pytest.mark.parametrize(
    ("trusted", "message"),
    [
        ({"count": -1}, r"trusted\.count must lie in \[0, 199\], got -1"),
        ({"count": 200}, r"trusted\.count must lie in \[0, 199\], got 200"),
        ({"count": 199, "per_class": False}, None),
        ({"count": 60}, r"trusted\.count=60 takes 15 samples of class 2, which has only 10"),
        ({"count": 3}, r"trusted\.count=3 is fewer than one sample of each of the 4 classes"),
        ({"count": 3, "per_class": False}, None),
        ({"count": 0, "train": True}, r"trusted\.train=true .* there are none: set trusted\.count"),
        ({"count": 0, "train": "only"}, r"trusted\.train=only .* there are none"),
        ({"count": 60, "per_class": False}, None),
    ],
)
def test_counts_that_cannot_be_drawn(trusted, message):
    noise = noisy()
    noise.true[(noise.true == 2) & (np.arange(COUNT) > 40)] = 0
    if message is None:
        assert len(split(noise, **trusted).trusted) == trusted["count"]
    else:
        with pytest.raises(UserError, match=message):
            split(noise, **trusted)


def test_unknown_truth_is_an_error_that_says_what_to_do():
    assert len(split(noisy(known=False)).trusted) == 0
    with pytest.raises(UserError, match=r"trusted\.count needs true labels.*trusted\.count=0"):
        split(noisy(known=False), count=20)


def test_a_verified_part_is_drawn_from_instead_of_the_training_rows():
    verified = Split(torch.zeros(40, 1), torch.arange(40) % CLASSES)
    parts = split(noisy(known=False), verified=verified, count=8)
    assert np.bincount(verified.targets[parts.trusted]).tolist() == [2] * CLASSES
    assert parts.trusted.max() < 40 and len(parts.rows) == COUNT
    assert len(split(noisy(known=False), verified=verified).trusted) == 0
    assert len(split(noisy(known=False), verified=verified, count=40).trusted) == 40


def test_a_verified_part_is_no_part_of_what_is_trained_on():
    verified = Split(torch.zeros(40, 1), torch.arange(40) % CLASSES)
    for train in (True, "only", "given"):
        with pytest.raises(UserError, match=r"those of this dataset are a part of their own"):
            split(noisy(known=False), verified=verified, count=8, train=train)


@pytest.mark.parametrize(
    ("train", "rows", "drawn"),
    [
        (False, 150, 150),
        (True, 150, 180),
        ("only", 150, 30),
        ("given", 180, 180),
    ],
)
def test_trusted_samples_may_be_trained_on_too(train, rows, drawn):
    parts, apart = split(noisy(), 0.1, count=30, train=train), split(noisy(), 0.1, count=30)
    assert np.array_equal(parts.trusted, apart.trusted)
    assert np.array_equal(parts.held_out, apart.held_out)
    assert len(parts.rows) == rows and len(parts.drawn) == len(set(parts.drawn)) == drawn
    assert np.isin(parts.trusted, parts.drawn).all() == bool(train)
    assert len(parts.corrected) == (30 if train in (True, "only") else 0)


DATASETS = [digits, digitsum]  # those that need no files


@pytest.mark.parametrize("make_dataset", DATASETS, ids=lambda make_dataset: make_dataset.__name__)
def test_a_trusted_sample_is_in_no_other_part(make_dataset, tmp_path):
    """Not among the noisy samples, those to validate on, nor those that may be selected."""
    dataset = make_dataset()
    true = dataset.train.targets.numpy()
    kind = "symmetric" if dataset.classes else "label_permutation"
    noise = inject(
        dataset.train.targets,
        kind=kind,
        fraction=0.4,
        seed=1,
        num_classes=len(dataset.classes),
        dataset=make_dataset.__name__,
    )
    parts = split(noise, 0.2, count=100)
    trusted = set(parts.trusted.tolist())
    recorded = np.full((3, len(true)), np.nan, np.float32)
    recorded[:, parts.rows] = np.random.default_rng(0).random((3, len(parts.rows)))
    np.save(tmp_path / "losses.npy", recorded)
    write_noise(tmp_path, noise, parts.trusted, None)
    write_config(tmp_path, DEFAULTS)
    history = str(tmp_path / "losses.npy")
    selection = make_selection(noise, parts.rows, history=history, noise_rate=0.4)
    assert len(trusted) == 100 and not trusted & set(selection.index.tolist())
    for chosen in (None, selection):
        loaders, _ = loaders_of(dataset, noise, parts, chosen, record_losses=True)
        seen = {}
        for name, loader in (
            ("noisy", loaders.train),
            ("plain", loaders.train_plain),
            ("recorded", loaders.recording),
            ("validation", loaders.evaluation["validation"]),
        ):
            seen[name] = {row for batch in loader for row in batch.index.tolist()}
            assert not seen[name] & trusted, name
        assert seen["plain"] == seen["recorded"]
        assert not seen["plain"] & seen["validation"]
        assert len(seen["plain"]) + len(seen["validation"]) == len(true) - 100
        drawn = {row for batch in loaders.train for row in batch.extra.index.tolist()}
        assert drawn <= trusted


# The order


@pytest.mark.parametrize(("count", "batch_size"), [(10, 10), (10, 8), (11, 4), (9, 3), (7, 1)])
def test_passes_follow_one_another_in_full_batches_without_repetition(count, batch_size):
    rows, steps = 5 * torch.arange(count), 40
    draw = repeated_passes(rows, batch_size=batch_size, steps=steps)
    order = draw(torch.Generator().manual_seed(3)).tolist()
    assert len(order) == steps * batch_size
    for start in range(0, len(order), batch_size):
        assert len(set(order[start : start + batch_size])) == batch_size
    passes = [order[start : start + count] for start in range(0, len(order) - count + 1, count)]
    assert all(sorted(part) == rows.tolist() for part in passes)
    assert len({tuple(part) for part in passes}) > 1


# The stream


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same grey images, each of a shade of its own, in memory and in files."""
    folder = tmp_path_factory.mktemp("shades")
    images = torch.arange(COUNT, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    paths = [str(folder / f"{number}.png") for number in range(COUNT)]
    for path, image in zip(paths, images, strict=True):
        write_png(image, path)
    targets = torch.arange(COUNT) % CLASSES
    common = {
        "classes": list("abcd"),
        "in_channels": 3,
        "image_size": 8,
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "flip": True,
    }
    return {
        name: Dataset(Split(inputs, targets), Split(inputs[:8], targets[:8]), **common)
        for name, inputs in (("memory", images.contiguous()), ("files", paths))
    }


def loaders_of(dataset, noise=None, parts=None, selection=None, count=30, **options):
    noise = noise or noisy()
    parts = parts or split(noise, 0.1, count=count)
    options = {"batch_size": 16, "trusted_batch_size": 8, "device": "cpu", "seed": 5} | options
    return make_loaders(dataset, noise, parts, selection, **options), parts


def shades(batch):
    """Which samples these are, by their pixels."""
    return (255 * batch.input.mean((1, 2, 3))).round().long()


def same(first, second):
    """Whether two lists of batches are equal, bit for bit, with their second streams."""
    return len(first) == len(second) and all(
        torch.equal(getattr(batch, part), getattr(other, part))
        for pair in zip(first, second, strict=True)
        for batch, other in (pair, (pair[0].extra, pair[1].extra))
        for part in ("input", "target", "index")
    )


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_every_batch_has_its_trusted_samples_with_true_labels(data, kind):
    noise = noisy()
    loaders, parts = loaders_of(data[kind], noise)
    batches = list(loaders.train)
    assert len(batches) == len(loaders.train) == 10 and loaders.steps_per_pass == 10
    assert [len(batch.index) for batch in batches] == [16] * 9 + [6]
    drawn = []
    for batch in batches:
        extra = batch.extra
        assert extra.input.shape == (8, 3, 8, 8) and extra.extra is None
        assert torch.equal(shades(extra), extra.index)
        assert extra.target.tolist() == noise.true[extra.index].tolist()
        assert batch.target.tolist() == noise.given[batch.index].tolist()
        drawn += extra.index.tolist()
    assert set(drawn) == set(parts.trusted)  # 80 draws of 30: it wraps around
    assert (noise.true != noise.given)[drawn].any()
    for loader in (loaders.train, loaders.train_plain, loaders.evaluation["validation"]):
        rows = torch.cat([batch.index for batch in loader])
        assert not set(rows.tolist()) & set(drawn)


@pytest.mark.parametrize("kind", ["memory", "files"])
@pytest.mark.parametrize("first_batch", [0, 3, 9])
def test_a_run_that_is_resumed_sees_the_same_trusted_samples(data, kind, first_batch):
    whole, resumed = (loaders_of(data[kind])[0].train for _ in range(2))
    whole.set_epoch(2)
    resumed.set_epoch(2, first_batch)
    expected = list(whole)
    assert same(list(resumed), expected[first_batch:])
    assert resumed.rows_of(4) == expected[4].index.tolist()
    whole.set_epoch(3)
    assert not torch.equal(next(iter(whole)).extra.index, expected[0].extra.index)


def test_the_trusted_stream_is_a_function_of_the_seed_and_leaves_the_training_batches_alone(data):
    noise = noisy()
    parts = split(noise, 0.1, count=30)
    first, other = (
        list(loaders_of(data["memory"], noise, parts, seed=seed)[0].train) for seed in (5, 6)
    )
    assert not torch.equal(first[0].extra.index, other[0].extra.index)
    alone, _ = loaders_of(data["memory"], noise, parts, trusted_batch_size=0)
    for batch, plain in zip(first, alone.train, strict=True):
        assert plain.extra is None
        assert torch.equal(batch.input, plain.input) and torch.equal(batch.index, plain.index)


def test_trusted_samples_are_augmented_in_their_own_way(data):
    ramp = torch.arange(8, dtype=torch.uint8).expand(COUNT, 3, 8, 8).contiguous()
    dataset = replace(data["memory"], train=Split(ramp, data["memory"].train.targets))
    batches = list(loaders_of(dataset)[0].train)
    mirrored = [extra.input[:, 0, 0, 0] > 0 for _, _, _, extra in batches]
    assert 20 < torch.cat(mirrored).sum() < 60
    assert not torch.equal(mirrored[0], batches[0].input[:8, 0, 0, 0] > 0)


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_chunks_of_an_epoch_have_trusted_samples_too(data, kind):
    whole, chunked = (
        loaders_of(data[kind], chunk_steps=chunk_steps)[0] for chunk_steps in (None, 4)
    )
    assert chunked.train.per_pass == 3 and chunked.steps_per_pass == 10
    whole.train.set_epoch(1)
    batches = []
    for epoch in (3, 4, 5):
        chunked.train.set_epoch(epoch)
        batches += list(chunked.train)
    assert same(batches, list(whole.train))


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_the_shares_of_two_processes_are_the_whole_batch(data, kind, monkeypatch):
    whole, shares = list(loaders_of(data[kind])[0].train), []
    for rank in (0, 1):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2)):
            monkeypatch.setenv(name, str(value))
        shares.append(list(loaders_of(data[kind])[0].train))
    for batch, first, second in zip(whole, *shares, strict=True):
        for part in ("input", "target", "index"):
            expected = getattr(batch.extra, part)
            assert torch.equal(getattr(first.extra, part), expected[0::2])
            assert torch.equal(getattr(second.extra, part), expected[1::2])
            assert torch.equal(getattr(first, part), getattr(batch, part)[0::2])
    with pytest.raises(UserError, match="trusted_batch_size=7 is that of all 2 processes"):
        loaders_of(data[kind], trusted_batch_size=7)


def test_a_selection_is_trained_on_beside_trusted_samples(data):
    noise = noisy()
    parts = split(noise, count=30)
    index = parts.rows[::2]
    selection = Selection(index, np.ones(len(index)))
    loaders, _ = loaders_of(data["memory"], noise, parts, selection)
    batches = list(loaders.train)
    assert sorted(row for batch in batches for row in batch.index.tolist()) == index.tolist()
    assert all(len(batch.extra.index) == 8 for batch in batches)


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_verified_part_is_the_trusted_stream(data, kind):
    dataset = data[kind]
    inputs = dataset.train.inputs[50:90]
    targets = (torch.arange(40) + 1) % CLASSES
    dataset = replace(dataset, verified=Split(inputs, targets), trusted=False)
    noise = noisy(known=False)
    for count, rows in ((0, set(range(40))), (12, None)):
        parts = split(noise, verified=dataset.verified, count=count)
        batches = list(loaders_of(dataset, noise, parts)[0].train)
        drawn = torch.cat([batch.extra.index for batch in batches])
        assert set(drawn.tolist()) == (rows or set(parts.trusted))
        for batch in batches:
            assert torch.equal(shades(batch.extra), batch.extra.index + 50)
            assert torch.equal(batch.extra.target, targets[batch.extra.index])
    assert "40 verified" in str(dataset)


@pytest.mark.parametrize("shape", [(COUNT,), (COUNT, CLASSES)])
@pytest.mark.parametrize("kind", ["memory", "files"])
def test_targets_of_another_run_are_those_of_the_training_loader_alone(data, kind, shape):
    noise = noisy()
    if len(shape) == 1:
        targets = torch.from_numpy((noise.true + 2) % CLASSES)
    else:
        targets = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    loaders, _ = loaders_of(data[kind], noise, targets=targets, record_losses=True)
    for batch in loaders.train:
        assert torch.equal(batch.target, targets[batch.index])
        assert batch.extra.target.tolist() == noise.true[batch.extra.index].tolist()
    for loader in (loaders.train_plain, loaders.recording, loaders.evaluation["validation"]):
        for batch in loader:
            assert batch.target.tolist() == noise.given[batch.index].tolist()


def test_targets_of_unlabelled_samples_and_of_other_data(data):
    noise = noisy()
    selection = Selection(np.arange(0, COUNT, 2), np.ones(COUNT // 2))
    targets = torch.rand(COUNT, CLASSES)
    options = {"targets": targets, "trusted_batch_size": 0}
    unlabelled = {"num_views": 2, "steps_per_epoch": 3}
    loaders, _ = loaders_of(
        data["memory"], noise, split(noise), selection, unlabelled=unlabelled, **options
    )
    for batch in loaders.train:
        assert torch.equal(batch.target, targets[batch.index]) and batch.extra.target is None
    with pytest.raises(UserError, match=r"\[N, C\] with N = 200, got \[199, 4\]"):
        loaders_of(data["memory"], targets=targets[1:])


@pytest.mark.parametrize("train", [True, "only", "given"])
@pytest.mark.parametrize("soft", [False, True])
def test_trusted_samples_are_trained_on_with_true_or_with_given_labels(data, train, soft):
    noise = noisy()
    parts = split(noise, 0.1, count=30, train=train)
    targets, expected = None, noise.given.copy()
    if train != "given":
        expected[parts.trusted] = noise.true[parts.trusted]
    if soft:
        targets = torch.rand(COUNT, CLASSES, generator=torch.Generator().manual_seed(0))
        expected = targets.clone()
        if train != "given":
            expected[parts.trusted] = torch.eye(CLASSES)[noise.true[parts.trusted]]
    loaders, _ = loaders_of(data["memory"], noise, parts, targets=targets, trusted_batch_size=0)
    batches = list(loaders.train)
    rows = torch.cat([batch.index for batch in batches])
    assert sorted(rows.tolist()) == sorted(parts.drawn)
    for batch in batches:
        assert batch.extra is None and batch.target.tolist() == expected[batch.index].tolist()
    # what is looked for wrong labels in are the others
    plain = torch.cat([batch.index for batch in loaders.train_plain])
    assert plain.tolist() == parts.rows.tolist()


def test_trusted_samples_are_trained_on_besides_a_selection(data):
    noise = noisy()
    parts = split(noise, count=30, train=True)
    selection = Selection(parts.rows[::2], np.ones(len(parts.rows[::2])))
    loaders, _ = loaders_of(data["memory"], noise, parts, selection, trusted_batch_size=0)
    rows = torch.cat([batch.index for batch in loaders.train])
    assert sorted(rows.tolist()) == sorted([*parts.rows[::2], *parts.trusted])
    alone = split(noise, count=30, train="only")
    with pytest.raises(UserError, match=r"train=only leaves nothing to select from"):
        loaders_of(data["memory"], noise, alone, selection, trusted_batch_size=0)


def test_trusted_samples_are_not_trained_on_twice(data):
    parts = split(noisy(), count=30, train=True)
    with pytest.raises(UserError, match=r"this one has trusted samples: set trusted\.train=false"):
        loaders_of(data["memory"], parts=parts)
    unlabelled = {"num_views": 2, "steps_per_epoch": 3}
    options = {"unlabelled": unlabelled, "trusted_batch_size": 0}
    with pytest.raises(UserError, match="this one draws batches of its own"):
        loaders_of(data["memory"], parts=parts, **options)


def test_runs_on_trusted_samples_alone_and_besides_the_others(run):
    trusted = ["loss=Plain", "trusted.count=100"]
    _, alone, *_ = run(*trusted, "trusted.train=only", "epochs=60", name="alone")
    stored = arrays(alone / "noise.npz")
    samples = arrays(alone / "samples.npz")
    assert not np.isin(samples["index"], stored["trusted"]).any() and len(samples["index"]) == 1197
    assert np.array_equal(samples["score"], samples["loss"])
    # their labels are right, though some of the given ones are not
    assert (stored["given"] != stored["true"])[stored["trusted"]].any()
    rows = pd.read_csv(alone / "metrics.csv")
    assert rows["train_metric"].iloc[-1] > 95 and rows["mass_incorrect"].fillna(0).max() == 0
    assert read_summary(alone)["test"]["last"] > 75
    _, both, *_ = run(*trusted, "trusted.train=true", name="both")
    assert len(arrays(both / "samples.npz")["index"]) == 1197
    code, *_, stderr = run("loss=Plain", "trusted.train=true", name="none")
    assert code == 2 and "there are none: set trusted.count" in stderr
    code, *_, stderr = run("loss=Plain", "trusted.train=maybe", name="none")
    assert code == 2 and "trusted.train must be" in stderr


def test_what_cannot_be_had_is_refused(data):
    with pytest.raises(UserError, match=r"needs trusted samples.*set trusted\.count"):
        loaders_of(data["memory"], count=0)
    with pytest.raises(UserError, match="there are 6 trusted samples, fewer than trusted_batch_si"):
        loaders_of(data["memory"], count=6)
    with pytest.raises(UserError, match="unlabelled samples and for trusted ones"):
        loaders_of(data["memory"], unlabelled={"num_views": 2, "steps_per_epoch": 5})


def test_a_trusted_image_that_cannot_be_read_is_an_error_that_names_it(data, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    noise = noisy()
    parts = split(noise, count=30)
    paths = list(data["files"].train.inputs)
    paths[parts.trusted[3]] = str(tmp_path / "broken.png")
    dataset = replace(data["files"], train=Split(paths, data["files"].train.targets))
    loaders, _ = loaders_of(dataset, noise, parts)
    loaders.train.second.rows = torch.arange(1000)  # so that one is less than a percent
    with pytest.raises(OSError, match=r"needs whole batches.*broken\.png"):
        list(loaders.train)
    assert isinstance(loaders.train, PairedLoader)
