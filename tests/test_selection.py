"""Small-loss selection: the paper's counts, toy vectors, what it refuses, and whole runs."""

import json
import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch

from datasets.noise import Noise, inject
from datasets.selection import make_selection
from datasets.selection.__main__ import main
from datasets.selection.rules import (
    KAPPA,
    compare,
    how_many,
    kept_proportion,
    num_kept,
    quality,
    rank_losses,
    select,
)
from experiment import SCHEMAS
from tests.test_run import arrays, interrupt_at
from utils.config import load

# Per class, out of 4,500 or 450 (90 % of CIFAR): what the authors' code gives.
UNIFORM_10 = {0.1: 4014, 0.3: 3041, 0.5: 2070, 0.7: 1332, 0.9: 683}
EXACT_UNIFORM_10 = UNIFORM_10 | {0.3: 3042, 0.9: 684}  # the others are the same
PAIR_10 = {0.1: 3960, 0.2: 3420, 0.3: 2880, 0.4: 2340}
UNIFORM_100 = {0.1: 396, 0.2: 343, 0.3: 289, 0.4: 236}
PAIR_100 = {0.1: 396, 0.2: 342, 0.3: 288, 0.4: 234}
STRUCTURED = {
    0.1: (4230, 4050, 3960),
    0.2: (3960, 3600, 3420),
    0.3: (3690, 3150, 2880),
    0.4: (3420, 2700, 2340),
}


@pytest.mark.parametrize("counts", ["exact", "authors"])
class TestCounts:
    def test_uniform_10(self, counts):
        table = EXACT_UNIFORM_10 if counts == "exact" else UNIFORM_10
        for rate, expected in table.items():
            kept = num_kept("symmetric_inclusive", rate, [4500] * 10, counts=counts)
            assert kept.tolist() == [expected] * 10

    @pytest.mark.parametrize(
        ("kind", "table", "size", "classes"),
        [
            ("pair", PAIR_10, 4500, 10),
            ("symmetric_inclusive", UNIFORM_100, 450, 100),
            ("pair", PAIR_100, 450, 100),
        ],
    )
    def test_the_others(self, counts, kind, table, size, classes):
        for rate, expected in table.items():
            kept = num_kept(kind, rate, [size] * classes, counts=counts)
            assert kept.tolist() == [expected] * classes

    @pytest.mark.parametrize("rate", STRUCTURED)
    def test_structured_with_expected_counts(self, counts, rate):
        sizes = np.full(10, 4500)
        sizes[[0, 1, 7]] = round(4500 * (1 + rate))  # they get samples, and lose none
        sizes[[2, 4, 9]] = round(4500 * (1 - rate))  # they lose samples, and get none
        many, few, fewest = STRUCTURED[rate]
        expected = np.full(10, many)
        expected[[2, 4, 9]], expected[[3, 5]] = few, fewest
        got = num_kept("structured", rate, sizes, counts=counts)
        assert abs(got - expected).max() <= (0 if counts == "exact" else 1)

    def test_gamma_says_how_far_classes_may_differ(self, counts):
        sizes, rates = [100, 200, 400], [0.0, 0.25, 0.5]
        clean = [100, 140, 160]  # 1, 1 - 1.2 / 4 and 0.8 / 2 of them
        for gamma_index, limit in enumerate((100, 130, 160)):
            got = num_kept("asymmetric", rates, sizes, gamma_index=gamma_index, counts=counts)
            assert abs(got - np.minimum(clean, limit)).max() <= (0 if counts == "exact" else 1)


def test_the_names_of_the_paper_mean_the_same():
    for name, kind in (("uniform", "symmetric_inclusive"), ("pairwise", "pair")):
        counts, same = (num_kept(word, 0.3, [4500] * 10) for word in (name, kind))
        assert counts.tolist() == same.tolist()


def test_exactly_the_rate_of_symmetric_noise_is_wrong():
    assert num_kept("symmetric", 0.4, [100, 50]).tolist() == [52, 26]


def test_the_kept_proportion():
    assert kept_proportion(0.0) == 1 and kept_proportion(0.4, beta=0) == 0.6
    assert kept_proportion(0.2) == pytest.approx(1 - 1.2 * 0.2)
    assert kept_proportion(0.5) == pytest.approx(0.4)
    assert kept_proportion(0.8) == pytest.approx(0.8 * 0.2)
    assert kept_proportion(Fraction(27, 100), Fraction(1, 5)) == Fraction(676, 1000)
    for rate in np.linspace(0, 0.99, 100):
        assert 0 < kept_proportion(rate) <= 1 - rate + 1e-12  # never more than the clean part


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kept_proportion(1.0), r"noise rate must lie in \[0, 1\), got 1"),
        (lambda: kept_proportion(-0.1), r"noise rate must lie in \[0, 1\), got -0.1"),
        (lambda: kept_proportion(0.1, beta=1.0), r"beta must lie in \[0, 1\), got 1"),
        (lambda: num_kept("pair", 1.2, [10] * 10), r"noise rate must lie in \[0, 1\), got 1.2"),
        (lambda: num_kept("asymmetric", 0.4, [10] * 10), "give a rate per class"),
        (lambda: num_kept("structured", 0.4, [10] * 5), "give a rate per class"),
        (lambda: num_kept("pair", [0.1, 0.2], [10] * 3), "one for each of the 3 classes, got 2"),
        (lambda: num_kept("pair", [0.1, 1.0, 0.2], [10] * 3), r"must lie in \[0, 1\), got 1"),
        (lambda: num_kept("pair", 0.4, [10, 1, 10]), "nothing would be kept of class 1"),
        (lambda: num_kept("pair", 0.4, [10] * 3, gamma_index=3), "gamma_index must be 0, 1 or 2"),
        (lambda: select([0.1, 0.2], [0, 0, 1], [1, 1]), "must be \\[N\\] both"),
        (lambda: select([0.1, np.nan], [0, 1], [1, 1]), "1 of 2 losses are not finite"),
        (lambda: select([0.1, 0.2], [0, 0], [1, 1]), "class 1 is left empty: 0 samples"),
        (
            lambda: select([0.1, 0.2], [0, 1], [1, 0]),
            "class 1 is left empty: 1 samples have this label, 0 are to be kept",
        ),
        (lambda: select([0.1, 0.2], [0, 1], [1, 1], kappa=-1.0), "kappa must be at least 0"),
        (
            lambda: rank_losses(np.zeros((3, 4)), "median"),
            "criterion must be mean, mean:<k> or epoch:<e>, got 'median'",
        ),
        (lambda: rank_losses(np.zeros((3, 4)), "mean:4"), "not among the 3 recorded"),
        (lambda: rank_losses(np.zeros((3, 4)), "mean:0"), "not among the 3 recorded"),
        (lambda: rank_losses(np.zeros((3, 4)), "epoch:3"), "not among the 3 recorded"),
        (lambda: rank_losses(np.zeros((3, 4)), "epoch:-1"), "criterion must be"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_toy_vectors():
    chosen = select([0.9, 0.1, 0.5, 0.3, 0.7, 0.2], [0, 0, 0, 1, 1, 1], [2, 2])
    assert chosen.index.tolist() == [1, 2, 5, 3]
    np.testing.assert_allclose(chosen.weight, [1, 0.8366600, 1, 0.9311499], atol=1e-7)


def test_weights_and_their_order():
    generator = np.random.default_rng(0)
    losses, targets = generator.random(1000), generator.integers(0, 4, 1000)
    chosen = select(losses, targets, [50, 100, 150, 2000])
    counts = np.bincount(targets[chosen.index])
    assert counts.tolist() == [50, 100, 150, (targets == 3).sum()]  # all of a class that has fewer
    assert chosen.weight.min() == pytest.approx(math.exp(-KAPPA)) == pytest.approx(0.7)
    assert chosen.weight.max() == 1
    for label in range(4):
        own = targets[chosen.index] == label
        kept, weight = losses[chosen.index[own]], chosen.weight[own]
        assert weight[0] == 1 and (np.diff(weight) < 0).all() and (np.diff(kept) > 0).all()
        left_out = np.setdiff1d(losses[targets == label], kept)
        assert kept.max() <= left_out.min(initial=9)


def test_selection_is_invariant_to_increasing_transforms_and_weights_to_affine_ones_of_each_class():
    generator = np.random.default_rng(1)
    losses, targets = generator.random(300), generator.integers(0, 3, 300)
    chosen = select(losses, targets, [30, 30, 30])
    transformed = np.choose(targets, [losses**3, np.exp(losses), 7 * losses])
    assert select(transformed, targets, [30, 30, 30]).index.tolist() == chosen.index.tolist()
    transformed = np.choose(targets, [2 * losses + 3, 5 * losses - 9, 0.1 * losses])
    scaled = select(transformed, targets, [30, 30, 30])
    np.testing.assert_allclose(chosen.weight, scaled.weight)


def test_equal_losses_have_weight_one_and_are_taken_in_order():
    chosen = select(np.full(6, 0.3), [0, 1] * 3, [2, 1])
    assert chosen.index.tolist() == [0, 2, 1] and chosen.weight.tolist() == [1] * 3


def test_criteria_against_a_loop():
    history = np.random.default_rng(2).random((5, 7)).astype(np.float32)
    averaged = {"mean": range(5), "mean:3": range(3), "epoch:0": [0], "epoch:4": [4]}
    for criterion, epochs in averaged.items():
        expected = np.zeros(7)
        for epoch in epochs:
            for sample in range(7):
                expected[sample] += float(history[epoch, sample]) / len(epochs)
        np.testing.assert_allclose(rank_losses(history, criterion), expected, rtol=1e-12)


# A history in a run's directory


C, N, E = 4, 400, 6


def labels(kind="pair", fraction=0.3, known=True):
    true = np.arange(N) % C
    given = np.where(np.random.default_rng(3).random(N) < fraction, (true + 1) % C, true)
    return Noise(given, true if known else np.full(N, -1), C, "hash", kind, fraction)


def recorded(directory, noise, held_out=(), epochs=E):
    """A history in which incorrect labels have a higher loss, by and large."""
    generator = np.random.default_rng(4)
    wrong = noise.given != np.arange(N) % C
    history = np.full((E, N), np.nan, np.float32)
    history[:epochs] = np.where(wrong, 2.0, 0.5) + 0.4 * generator.standard_normal((epochs, N))
    history[:, list(held_out)] = np.nan
    directory.mkdir(exist_ok=True)
    np.save(directory / "losses.npy", history)
    arrays = {"given": noise.given, "true": noise.true, "transition": noise.transition}
    np.savez(directory / "noise.npz", **arrays, sha256="hash")
    (directory / "config.yaml").write_text(
        "dataset: {name: digits}\n"
        f"noise: {{kind: {noise.kind}, fraction: {noise.fraction}, seed: 1}}\n"
    )
    return str(directory / "losses.npy")


def test_a_selection_from_a_history(tmp_path):
    noise, held_out = labels(), [3, 5, 8]
    rows = np.setdiff1d(np.arange(N), held_out)
    path = recorded(tmp_path, noise, held_out)
    chosen = make_selection(noise, rows, history=path)
    report, index = chosen.report, chosen.index
    kept = num_kept("pair", 0.3, np.bincount(noise.true[rows])).tolist()
    assert report["counts"] == kept == np.bincount(noise.given[index]).tolist()
    assert report["noise_rate"] == 0.3 and report["noise_rate_is"] == "oracle"
    assert report["of"] == N - 3 and report["kept"] == len(index) and set(index) <= set(rows)
    correct = noise.given == noise.true
    assert report["precision"] == correct[index].mean() > 0.95
    assert report["recall"] == pytest.approx(correct[index].sum() / correct[rows].sum())
    for label in range(C):
        own = index[noise.given[index] == label]
        total = (correct[rows] & (noise.given[rows] == label)).sum()
        assert report["precision_per_class"][label] == correct[own].mean()
        assert report["recall_per_class"][label] == pytest.approx(correct[own].sum() / total)
    assert np.isnan(chosen.mean_loss[held_out]).all() and np.isfinite(chosen.mean_loss[rows]).all()
    vanilla = make_selection(noise, rows, history=path, criterion="epoch:2").report
    assert vanilla["precision"] < report["precision"] and vanilla["counts"] == report["counts"]
    json.dumps(report)


def test_the_noise_rate_given_estimated_or_not_needed(tmp_path):
    noise, rows = labels(known=False), np.arange(N)
    path, sizes = recorded(tmp_path, noise), np.bincount(noise.given)
    with pytest.raises(ValueError, match='noise_rate to a number or to "estimate"'):
        make_selection(noise, rows, history=path)
    given = make_selection(noise, rows, history=path, noise_rate=0.25).report
    assert given["counts"] == [int(size * 0.7) for size in sizes]
    assert given["noise_rate_is"] == "given" and "precision" not in given
    estimated = make_selection(noise, rows, history=path, noise_rate="estimate").report
    assert estimated["noise_rate"] == pytest.approx(0.3, abs=0.05)
    assert estimated["noise_rate_is"] == "estimated"
    plain = make_selection(noise, rows, history=path, keep_fraction=0.5).report
    assert plain["counts"] == [size // 2 for size in sizes] and plain["noise_rate"] is None
    everywhere = make_selection(noise, rows, history=path, noise_rate=0.25, per="global")
    assert everywhere.report["kept"] == given["kept"]
    assert everywhere.report["counts"] != given["counts"]
    assert everywhere.index.tolist() == np.argsort(everywhere.mean_loss)[: given["kept"]].tolist()


# none: of a dataset that comes with given and true labels
@pytest.mark.parametrize("kind", ["file:labels.npz", "none"])
def test_noise_without_a_formula_is_counted(tmp_path, kind):
    noise = labels(kind)
    report = make_selection(noise, np.arange(N), history=recorded(tmp_path, noise)).report
    sizes = np.bincount(noise.given).tolist()
    wrong = np.bincount(noise.given[noise.given != noise.true]).tolist()
    rates = [Fraction(part, size) for part, size in zip(wrong, sizes, strict=True)]
    assert report["noise_rate"] == [float(rate) for rate in rates]
    assert report["noise_rate_is"] == "oracle"
    clean = [
        size * kept_proportion(rate, Fraction(1, 5))
        for rate, size in zip(rates, sizes, strict=True)
    ]
    limit = (min(clean) + max(clean)) / 2
    assert report["counts"] == [int(min(limit, count)) for count in clean]


def test_of_clean_labels_all_are_kept():
    true = np.repeat(np.arange(4), [10, 20, 30, 40])
    noise = Noise(true, true, 4, "hash", "none", 0.0)
    assert how_many(np.zeros(100), noise, np.arange(100))[0].tolist() == [10, 20, 30, 40]


def test_structured_noise_is_that_of_the_paper():
    true = torch.arange(5000) % 10
    noise = inject(true, kind="structured", fraction=0.4, seed=0, num_classes=10, dataset="cifar10")
    counts, *rate = how_many(np.zeros(5000), noise, np.arange(5000))
    expected = num_kept("structured", 0.4, np.bincount(noise.given))
    assert counts.tolist() == expected.tolist() and rate == [0.4, "oracle"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": None}, "there is no history"),
        ({"history": "nowhere/losses.npy"}, "there is no history nowhere"),
        ({"noise_rate": 1.0}, r"must lie in \[0, 1\)"),
        ({"noise_rate": -0.1}, r"must lie in \[0, 1\)"),
        ({"keep_fraction": 0.0}, r"keep_fraction must lie in \(0, 1\]"),
        ({"keep_fraction": 0.001}, "nothing would be kept"),
        ({"keep_fraction": 0.5, "noise_rate": 0.2}, "give one of them"),
        ({"criterion": "mean:7"}, "not among the 6 recorded"),
        ({"criterion": "worst"}, "criterion must be"),
    ],
)
def test_arguments_that_are_refused(tmp_path, change, message):
    noise = labels()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_selection(noise, np.arange(N), **({"history": recorded(tmp_path, noise)} | change))


def test_histories_that_do_not_belong_to_the_run(tmp_path):
    noise, rows = labels(), np.arange(N)
    path = recorded(tmp_path / "a", noise)
    other = Noise(noise.given, noise.true, noise.num_classes, "another hash", "pair", 0.2)
    message = r"labels: dataset digits, 400 samples, noise pair 0.3, noise.seed 1; .* pair 0.2"
    with pytest.raises(ValueError, match=message):
        make_selection(other, rows, history=path)
    longer = Noise(np.zeros(500, int), np.zeros(500, int), C, "hash", "pair", 0.3)
    with pytest.raises(ValueError, match=r"400 samples, .* 500 samples"):
        make_selection(longer, np.arange(500), history=path)
    with pytest.raises(ValueError, match="another validation split"):
        make_selection(noise, rows[10:], history=path)
    with pytest.raises(ValueError, match="with this validation split"):
        make_selection(noise, rows, history=recorded(tmp_path / "b", noise, range(10)))
    path = recorded(tmp_path / "c", noise, epochs=4)
    with pytest.raises(ValueError, match="has the run that records it finished"):
        make_selection(noise, rows, history=path)
    assert make_selection(noise, rows, history=path, criterion="mean:4").report["kept"] > 0
    (tmp_path / "c" / "noise.npz").unlink()
    message = r"has no noise\.npz, so it is not the directory of a run"
    with pytest.raises(FileNotFoundError, match=message):
        make_selection(noise, rows, history=path)
    path = recorded(tmp_path / "d", noise)
    (tmp_path / "d" / "losses.npy").write_bytes(b"not an array")
    with pytest.raises(ValueError, match="cannot be read"):
        make_selection(noise, rows, history=path)
    np.save(path, np.zeros(N))
    with pytest.raises(ValueError, match=r"must hold losses \[E, N\]"):
        make_selection(noise, rows, history=path)


def test_a_selection_that_leaves_a_class_empty(tmp_path):
    noise = labels()
    path = recorded(tmp_path, noise)
    history = np.load(path)
    history[:, noise.given == 2] += 100
    np.save(path, history)
    with pytest.raises(ValueError, match="nothing would be kept of class 2"):
        make_selection(noise, np.arange(N), history=path, per="global")


def test_both_criteria_epoch_by_epoch(tmp_path):
    noise, rows = labels(), np.arange(5, N)
    history = np.load(recorded(tmp_path, noise))
    kept = num_kept("pair", 0.3, np.bincount(noise.true[rows]))
    table = compare(history, noise, rows, kept)
    assert table.criterion.tolist()[:4] == ["epoch:0", "mean:1", "epoch:1", "mean:2"]
    assert len(table) == 2 * E and table.criterion.iloc[-1] == f"mean:{E}"
    for row in table.to_dict("records"):
        ranked = rank_losses(history, row["criterion"])[rows]
        index = rows[select(ranked, noise.given[rows], kept).index]
        assert quality(index, rows, noise).items() <= row.items()


# Whole runs


RSL = "params/digits/rsl.yaml"


@pytest.fixture
def history(run):
    """losses.npy of a recorded run on digits."""
    code, directory, *_ = run(
        "record_losses=true", "epochs=8", params="params/digits/plain.yaml", name="recording"
    )
    assert code == 0
    return directory / "losses.npy"


def test_a_run_trains_on_what_it_selects(run, history):
    code, directory, *_ = run(f"dataset.selection.history={history}", params=RSL)
    assert code == 0
    summary = json.loads((directory / "summary.json").read_text())
    stored, report = arrays(directory / "selection.npz"), summary["selection"]
    assert report["kept"] == len(stored["index"]) < 0.6 * 1297
    assert report["noise_rate_is"] == "oracle"
    assert stored["counts"].tolist() == report["counts"]
    assert stored["precision"] == pytest.approx(report["precision"])
    assert len(report["precision_per_class"]) == len(report["recall_per_class"]) == 10
    assert stored["weight"].shape == stored["index"].shape
    assert 0.7 <= stored["weight"].min() <= stored["weight"].max() == 1
    samples = arrays(directory / "samples.npz")
    mean = np.load(history).mean(0, dtype=np.float64)
    np.testing.assert_allclose(samples["score"], mean, rtol=1e-6)  # of all samples, selected or not
    rows = pd.read_csv(directory / "metrics.csv")
    assert (rows.images_per_second * rows.seconds).round().tolist() == [report["kept"]] * 3
    assert summary["validation"] is None and (directory / "samples.png").exists()


def test_a_missing_history_names_the_command_that_makes_it(run, tmp_path):
    options = ["noise.kind=pair", "noise.fraction=0.3", "seed=4"]
    code, directory, _, complaints = run(*options, params=RSL)
    assert code == 2 and not directory.exists()
    command = (
        "python main.py params/digits/plain.yaml record_losses=true seed=4 noise.seed=4 "
        "noise.kind=pair noise.fraction=0.3"
    )
    assert command in complaints
    options = ["device=cpu", f"dataset.selection.history={tmp_path}/x"]
    _, _, _, complaints = run(*options, params="params/cifar10/rsl.yaml")
    assert "python main.py params/cifar10/rsl_record.yaml" in complaints
    assert "validation.fraction=0.1 validation.clean=true" in complaints


def test_without_a_path_the_history_is_where_the_recording_run_leaves_it():
    options = ["noise.kind=pair", "noise.fraction=0.2", "seed=3"]
    for dataset, recorder in (("digits", "plain"), ("cifar10", "rsl_record")):
        config = load(f"params/{dataset}/rsl.yaml", options, SCHEMAS)
        recording = load(f"params/{dataset}/{recorder}.yaml", options, SCHEMAS)
        assert config["dataset"]["selection"]["history"] == f"{recording['run_dir']}/losses.npy"


def test_a_method_with_a_score_of_its_own_is_trained_on_a_selection_without_it(run, history):
    """It has never seen the others, and would take them for the cleanest."""
    options = [f"dataset.selection.history={history}", "loss=DiscrimLoss"]
    code, directory, *_ = run(*options, params=RSL)
    assert code == 0
    assert json.loads((directory / "summary.json").read_text())["detection"]["auroc"] > 0.6


def test_a_finished_run_needs_its_history_no_more(run, history):
    options = [f"dataset.selection.history={history}"]
    run(*options, params=RSL)
    history.unlink()
    code, _, printed, _ = run(*options, params=RSL)
    assert code == 0 and "is finished" in printed


def test_another_dataset_keeps_the_selection():
    dataset = load(RSL, ["dataset=mnist"], SCHEMAS)["dataset"]
    assert dataset["name"] == "mnist" and dataset["selection"]["criterion"] == "mean"
    dataset = load(RSL, ["dataset.selection=null"], SCHEMAS)["dataset"]
    assert dataset["selection"] is None


@pytest.mark.parametrize(
    "overrides", [["noise.fraction=0.3"], ["noise.seed=7"], ["validation.fraction=0.2"]]
)
def test_another_dataset_than_the_recorded_one_is_an_error(run, history, overrides):
    options = [f"dataset.selection.history={history}", *overrides]
    code, directory, _, complaints = run(*options, params=RSL)
    assert code == 2 and ("other labels" in complaints or "another validation split" in complaints)
    assert not (directory / "config.yaml").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.selection.criterium=mean", "did you mean 'criterion'"),
        ("dataset.selection.per=sample", "'class' or 'global'"),
        ("dataset.selection.noise_rate=guess", "a number or 'estimate' or null"),
        ("dataset.selection=mean", "must be a section or null"),
        ("dataset.selection.noise_rate=1", r"must lie in [0, 1)"),
        ("validation.clean=1", "must be true or false"),
        ("record_losses=1", "must be true or false"),
        ("dataset.selection.rows=[1]", "is not known"),
    ],
)
def test_misspelt_or_wrong_values_are_named(run, history, override, message):
    options = [f"dataset.selection.history={history}", override]
    if override.startswith("dataset.selection="):
        options = [override]
    code, _, _, complaints = run(*options, params=RSL)
    assert code == 2 and message in complaints and "Traceback" not in complaints


def test_a_history_that_changed_since_the_run_began_is_an_error(run, history, monkeypatch):
    options = [f"dataset.selection.history={history}"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        run(*options, params=RSL)
    losses = np.load(history)
    np.save(history, losses[:, ::-1])
    code, _, _, complaints = run(*options, params=RSL)
    assert code == 2 and "recording is another file, or has been changed" in complaints
    moved = history.parent.rename(history.parents[1] / "moved") / "losses.npy"
    np.save(moved, losses)  # where it lies may change
    assert run(f"dataset.selection.history={moved}", params=RSL)[0] == 0


def test_the_figure_of_a_finished_run(run, history, tmp_path, capsys):
    assert main([str(history.parent)]) == 0
    printed = capsys.readouterr().out
    for name in ("mean of all epochs (RSL)", "vanilla, its best epoch", "lowest precision"):
        assert name in printed
    assert (history.parent / "selection.png").stat().st_size > 10_000
    _, directory, *_ = run(f"dataset.selection.history={history}", params=RSL)
    capsys.readouterr()
    assert main([str(directory), "--figure", str(tmp_path / "of.svg")]) == 0
    shown = float(capsys.readouterr().out.split("(RSL)")[1].split()[0])
    summary = json.loads((directory / "summary.json").read_text())
    assert shown == pytest.approx(summary["selection"]["precision"], abs=1e-4)
    assert (tmp_path / "of.svg").exists()
    (directory / "selection.npz").write_bytes(b"half")
    assert main([str(directory)]) == 2
    assert "selection.npz cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("losses.npy", b""),
        ("losses.npy", b"half"),
        ("noise.npz", b"half"),
        ("noise.npz", None),
        ("config.yaml", b"{"),
        ("config.yaml", b"noise: 3"),
        ("config.yaml", b"\xff"),
    ],
)
def test_damaged_files_of_a_run_are_named(tmp_path, capsys, name, damage):
    recorded(tmp_path, labels())
    assert main([str(tmp_path)]) == 0
    if damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damage)
    capsys.readouterr()
    assert main([str(tmp_path)]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ") and name in complaint


def test_what_the_command_refuses(tmp_path, capsys):
    for directory in (tmp_path, tmp_path / "nothing"):
        assert main([str(directory)]) == 2 and "error: " in capsys.readouterr().err
    recorded(tmp_path, labels())
    assert main([str(tmp_path), "--figure", "x.jpg"]) == 2
    assert "must end in .png, .svg, .pdf" in capsys.readouterr().err
    recorded(tmp_path, labels(known=False))
    assert main([str(tmp_path)]) == 2
    assert "nothing to compare a selection with" in capsys.readouterr().err
    recorded(tmp_path, labels(), epochs=4)
    assert main([str(tmp_path)]) == 2 and "is not complete" in capsys.readouterr().err
