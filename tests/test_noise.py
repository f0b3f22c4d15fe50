"""Label noise: the authors' numbers, the rate and purity of every kind, labels from files."""

import hashlib
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from datasets.label_files import read_labels
from datasets.noise import inject
from datasets.noise_kinds import KINDS, permutation_order, permute
from tests.test_loaders import generator_states

GOLDEN = Path(__file__).parent / "golden"
PERMUTED = json.loads((GOLDEN / "noise_mnist.json").read_text())
FRACTIONS = (0.2, 0.4, 0.7)
CLASSES = (10, 100)
# written out again, from the papers: 9 truck, 1 automobile, 2 bird, 0 airplane, 4 deer, 7 horse,
# 3 cat, 5 dog
LOOK_ALIKES = {
    "cifar10": {9: 1, 2: 0, 4: 7, 3: 5, 5: 3},
    "mnist": {2: 7, 3: 8, 5: 6, 6: 5, 7: 1},
    "digits": {2: 7, 3: 8, 5: 6, 6: 5, 7: 1},
}
# superclass of each fine class, as coarse_labels of CIFAR-100's own files has it
COARSE = """
    4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7
    6 13 15 3 15 0 11 1 10 12 14 16 9 11 5 5 19 8 8 15 13 14 17 18 10
    16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16
    12 9 13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13
"""
COARSE = [int(number) for number in COARSE.split()]
APPROXIMATE = [kind for kind in KINDS if kind not in ("symmetric", "asymmetric")]


def balanced(num_classes, num_samples=20_000):
    return np.arange(num_samples) % num_classes


def flip(kind, labels, fraction, seed, num_classes):
    """The given labels, of some images if the kind needs any."""
    more = {"inputs": images(len(labels))} if kind == "instance" else {}
    return KINDS[kind](labels, fraction, seed, num_classes, **more)


def images(num_samples, num_pixels=12):
    generator = torch.Generator().manual_seed(0)
    shape = (num_samples, 1, 1, num_pixels)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def digest(array, dtype):
    return hashlib.sha256(array.astype(dtype).tobytes()).hexdigest()


def make(labels, kind="none", fraction=0.0, seed=0, num_classes=10, dataset="cifar10", **others):
    """inject() with whatever a test does not care about."""
    return inject(
        torch.from_numpy(labels),
        kind=kind,
        fraction=fraction,
        seed=seed,
        num_classes=num_classes,
        dataset=dataset,
        **others,
    )


# Numbers of the authors' code


@pytest.fixture(scope="module")
def mnist_labels():
    with np.load(GOLDEN / "mnist_train_labels.npz") as stored:
        labels = stored["labels"]
    assert digest(labels, np.uint8) == PERMUTED["labels_sha256"]
    return labels.astype(np.int64)


@pytest.mark.parametrize(
    "row", PERMUTED["rows"], ids=lambda row: f"seed{row['seed']}-{row['fraction']}"
)
def test_permute_is_bit_exact_on_mnist(row, mnist_labels):
    order = permutation_order(len(mnist_labels), row["fraction"], row["seed"])
    assert len(order) == row["m"]
    assert order[:8].tolist() == row["first8"] and order[-4:].tolist() == row["last4"]
    assert digest(order, "<i8") == row["order_sha256"]

    # the image at each of the authors' positions
    images = np.concatenate([order, np.arange(row["m"], len(mnist_labels))])
    assert digest(images, "<i8") == row["full_order_sha256"]
    true_labels = mnist_labels[images]
    assert digest(true_labels, np.uint8) == row["true_labels_of_images_sha256_uint8"]

    given = permute(mnist_labels, row["fraction"], row["seed"], 10)
    np.testing.assert_array_equal(given[images], mnist_labels)  # labels stay where they are
    assert (given != mnist_labels).sum() == row["wrong"]


@pytest.mark.parametrize(
    "row", PERMUTED["cifar_n50000_seed1"], ids=lambda row: str(row["fraction"])
)
def test_permute_order_is_bit_exact_on_cifar(row):
    order = permutation_order(50_000, row["fraction"], seed=1)
    assert len(order) == row["m"] and order[:8].tolist() == row["first8"]
    assert digest(order, "<i8") == row["order_sha256"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("symmetric_inclusive", [0, 1, 2, 3, 5, 7, 6, 7, 6, 9, 1, 1]),
        ("pair", [0, 1, 2, 3, 5, 5, 7, 7, 8, 0, 0, 1]),
    ],
)
def test_kinds_of_rsl_are_bit_exact(kind, expected):
    labels = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    assert flip(kind, labels, 0.5, 0, 10).tolist() == expected


@pytest.mark.parametrize(
    ("kind", "fraction", "expected"),
    [
        ("symmetric_coteaching", 0.4, [0, 1, 2, 2, 8, 2, 9, 7, 8, 5, 0, 1, 2, 3, 4, 2, 1, 7, 8, 9]),
        ("pair_coteaching", 0.45, [0, 2, 2, 3, 5, 6, 6, 8, 9, 0, 0, 1, 2, 4, 5, 6, 7, 8, 9, 9]),
    ],
)
def test_kinds_of_coteaching_are_bit_exact(kind, fraction, expected):
    assert KINDS[kind](np.arange(20) % 10, fraction, 0, 10).tolist() == expected


# Rates


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize(
    ("kind", "num_classes"),
    [(kind, 10) for kind in APPROXIMATE]
    + [(kind, 100) for kind in APPROXIMATE if kind != "structured"],
)
def test_realised_rate_is_within_four_standard_deviations(kind, fraction, num_classes):
    labels = balanced(num_classes)
    exclusive = ("pair", "symmetric_coteaching", "pair_coteaching", "instance")
    share = {"structured": 0.5, **dict.fromkeys(exclusive, 1)}.get(kind, 1 - 1 / num_classes)
    rate = fraction * share
    realised = (flip(kind, labels, fraction, 1, num_classes) != labels).mean()
    assert abs(realised - rate) < 4 * (rate * (1 - rate) / len(labels)) ** 0.5


@pytest.mark.parametrize(
    ("fraction", "num_samples", "wrong"),
    [
        (0.2, 20_000, 4_000),
        (0.4, 20_000, 8_000),
        (0.7, 20_000, 14_000),
        (1.0, 20_000, 20_000),
        (0.45, 999, 450),
        (0.3, 1, 0),
    ],
)
@pytest.mark.parametrize("num_classes", CLASSES)
def test_symmetric_changes_exactly_the_fraction(fraction, num_samples, wrong, num_classes):
    labels = balanced(num_classes, num_samples)
    given = KINDS["symmetric"](labels, fraction, 3, num_classes)
    assert (given != labels).sum() == wrong
    assert given.min() >= 0 and given.max() < num_classes


@pytest.mark.parametrize("num_classes", CLASSES)
def test_symmetric_reaches_every_other_class_alike(num_classes):
    labels = balanced(num_classes)
    given = KINDS["symmetric"](labels, 1.0, 0, num_classes)
    steps = np.bincount((given - labels) % num_classes, minlength=num_classes)
    expected = len(labels) / (num_classes - 1)
    assert steps[0] == 0 and abs(steps[1:] - expected).max() < 5 * expected**0.5


@pytest.mark.parametrize("num_classes", CLASSES)
def test_symmetric_inclusive_reaches_every_class_alike_the_true_one_included(num_classes):
    labels = balanced(num_classes)
    given = KINDS["symmetric_inclusive"](labels, 1.0, 0, num_classes)
    steps = np.bincount((given - labels) % num_classes)
    expected = len(labels) / num_classes
    assert len(steps) == num_classes and abs(steps - expected).max() < 5 * expected**0.5


def test_permute_moves_labels_only_among_the_first_samples():
    labels = balanced(10, 1_000)
    given = permute(labels, 0.4, 0, 10)
    np.testing.assert_array_equal(given[400:], labels[400:])
    np.testing.assert_array_equal(np.bincount(given), np.bincount(labels))


@pytest.mark.parametrize("num_classes", CLASSES)
def test_pair_moves_to_the_next_class_only(num_classes):
    labels = balanced(num_classes, 2_000)
    given = KINDS["pair"](labels, 0.5, 0, num_classes)
    assert set(((given - labels) % num_classes).tolist()) == {0, 1}
    all_moved = KINDS["pair"](labels, 1.0, 0, num_classes)
    np.testing.assert_array_equal(all_moved, (labels + 1) % num_classes)


@pytest.mark.parametrize("num_classes", CLASSES)
def test_kinds_of_coteaching_reach_the_classes_they_name(num_classes):
    labels = balanced(num_classes)
    pairs = KINDS["pair_coteaching"](labels, 1.0, 0, num_classes)
    np.testing.assert_array_equal(pairs, (labels + 1) % num_classes)
    given = KINDS["symmetric_coteaching"](labels, 1.0, 0, num_classes)
    steps = np.bincount((given - labels) % num_classes, minlength=num_classes)
    expected = len(labels) / (num_classes - 1)
    assert steps[0] == 0 and abs(steps[1:] - expected).max() < 5 * expected**0.5


def test_instance_follows_the_algorithm_of_its_paper():
    """Written out sample by sample, with the generators of the authors' code."""
    labels, inputs = balanced(5, 2_000), images(2_000)
    state = np.random.get_state()
    np.random.seed(7)
    rates = truncnorm((0 - 0.3) / 0.1, (1 - 0.3) / 0.1, loc=0.3, scale=0.1).rvs(2_000)
    projections = np.random.randn(5, 12, 5)
    chances = []
    for image, label, rate in zip(inputs.flatten(1).numpy(), labels, rates, strict=True):
        scores = image.astype(float) @ projections[label]
        scores[label] = -np.inf
        chance = rate * np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        chance[label] += 1 - rate
        chances.append(chance)
    expected = [np.random.choice(5, p=chance) for chance in chances]
    np.random.set_state(state)
    given = KINDS["instance"](labels, 0.3, 7, 5, inputs=inputs)
    np.testing.assert_array_equal(given, expected)
    assert 500 < (given != labels).sum() < 700


def test_instance_depends_on_the_image():
    """The wrong labels of one class: all the same for equal images, several for different ones."""
    labels = np.zeros(400, int)
    different = KINDS["instance"](labels, 0.5, 0, 10, inputs=images(400))
    equal = KINDS["instance"](labels, 0.5, 0, 10, inputs=images(1).expand(400, 1, 1, 12))
    assert len(set(equal.tolist())) == 2 and len(set(different.tolist())) > 4


def test_instance_is_more_than_the_fraction_if_that_is_small():
    """The mean of a normal distribution about 0.1 that is cut off at 0 is 0.1288."""
    labels = balanced(10)
    realised = (flip("instance", labels, 0.1, 0, 10) != labels).mean()
    assert abs(realised - 0.1288) < 4 * (0.1288 * 0.8712 / len(labels)) ** 0.5


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        (None, "NoneType"),
        (["a.png"] * 50, "list"),
        (torch.zeros(50, 7, dtype=torch.int64), r"torch\.int64"),
        (images(49), r"torch\.uint8"),
    ],
    ids=["none", "files", "tokens", "too_few"],
)
def test_instance_refuses_what_are_no_images_in_memory(inputs, got):
    match = f"needs the training images in memory.*: 50 of uint8, got {got}"
    with pytest.raises(ValueError, match=match):
        make(balanced(10, 50), "instance", fraction=0.4, inputs=inputs)


def test_structured_moves_along_the_cifar10_map():
    assert KINDS["structured"](np.arange(10), 1.0, 0, 10).tolist() == [0, 1, 0, 5, 7, 3, 6, 7, 8, 1]
    labels = balanced(10, 2_000)
    given = KINDS["structured"](labels, 0.4, 0, 10)
    moved = given != labels
    assert moved.any()
    destinations = [LOOK_ALIKES["cifar10"][source] for source in labels[moved]]
    assert given[moved].tolist() == destinations


@pytest.mark.parametrize("fraction", [*FRACTIONS, 1.0])
@pytest.mark.parametrize("dataset", LOOK_ALIKES)
def test_asymmetric_moves_the_exact_share_of_each_class_along_the_map(dataset, fraction):
    # unequal, and even, so that fraction * count never ends in .5
    counts = [42 + 6 * label for label in range(10)]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), counts))
    given = KINDS["asymmetric"](labels, fraction, 5, 10, dataset=dataset)
    for label, count in enumerate(counts):
        moved = given[(labels == label) & (given != labels)]
        assert len(moved) == (int(fraction * count + 0.5) if label in LOOK_ALIKES[dataset] else 0)
        assert set(moved.tolist()) <= {LOOK_ALIKES[dataset].get(label)}


def test_asymmetric_on_cifar100_is_a_circle_within_each_superclass():
    circle = KINDS["asymmetric"](np.arange(100), 1.0, 0, 100, dataset="cifar100")
    assert sorted(circle) == list(range(100))
    for superclass in range(20):
        group = [label for label in range(100) if COARSE[label] == superclass]
        assert len(group) == 5 and circle[group].tolist() == [*group[1:], group[0]]

    labels = balanced(100)  # 200 a class
    for fraction in FRACTIONS:
        given = KINDS["asymmetric"](labels, fraction, 0, 100, dataset="cifar100")
        moved = given != labels
        assert set(np.bincount(labels[moved], minlength=100)) == {round(200 * fraction)}
        np.testing.assert_array_equal(given[moved], circle[labels[moved]])


# Purity


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_give_the_same_labels_and_another_seed_others(kind):
    labels = balanced(10, 1_000)
    first, again, other = (flip(kind, labels, 0.4, seed, 10) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("kind", KINDS)
def test_input_and_global_generators_are_left_alone(kind):
    labels = balanced(10, 1_000)
    labels.flags.writeable = False
    np.random.seed(11)
    before = generator_states()
    given = flip(kind, labels, 0.4, 1, 10)
    assert not np.shares_memory(given, labels)
    np.testing.assert_array_equal(labels, balanced(10, 1_000))
    assert generator_states() == before


def test_global_numpy_seed_has_no_influence():
    labels, results = balanced(10, 1_000), []
    for seed in (0, 1):
        np.random.seed(seed)
        results.append({kind: flip(kind, labels, 0.4, 1, 10).tolist() for kind in KINDS})
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", KINDS)
def test_fraction_zero_changes_nothing(kind):
    labels = balanced(10, 1_000)
    for seed in range(3):
        np.testing.assert_array_equal(flip(kind, labels, 0.0, seed, 10), labels)


# inject()


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_transition_is_the_share_of_each_given_label_where_the_true_one_is_c(kind):
    labels = balanced(10, 1_000)
    noise = make(labels, kind, fraction=0.4, seed=1, inputs=images(1_000))
    counts = np.zeros((10, 10))
    for true, given in zip(labels, noise.given, strict=True):
        counts[true, given] += 1
    np.testing.assert_allclose(noise.transition.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(noise.transition * 100, counts, rtol=1e-12)
    np.testing.assert_array_equal(noise.true, labels)
    np.testing.assert_array_equal(noise.corrupted, noise.given != labels)
    assert noise.corrupted.any() == (kind != "none")
    expected = labels if kind == "none" else flip(kind, labels, 0.4, 1, 10)
    np.testing.assert_array_equal(noise.given, expected)


def test_transition_of_a_class_without_samples_is_zero():
    transition = make(np.zeros(20, int), "symmetric", fraction=0.5, num_classes=3).transition
    assert transition[0].sum() == 1 and not transition[1:].any()


def test_sha256_is_that_of_the_given_labels_and_tells_them_apart():
    labels = balanced(10, 100)
    noise = make(labels, "symmetric", fraction=0.4, seed=1)
    assert noise.sha256 == hashlib.sha256(struct.pack("<100q", *noise.given)).hexdigest()
    assert noise.sha256 == make(labels, "symmetric", fraction=0.4, seed=1).sha256
    other_seed = make(labels, "symmetric", fraction=0.4, seed=2)
    other_kind = make(labels, "pair", fraction=0.4, seed=1)
    noises = (noise, other_seed, other_kind, make(labels))
    assert len({noise.sha256 for noise in noises}) == 4


def test_inject_leaves_the_datasets_labels_as_they_are():
    labels = torch.arange(10).repeat(10)
    for kind in (*KINDS, "none"):
        noise = make(labels.numpy(), kind, fraction=1.0, inputs=images(100))
        noise.given[:] = noise.true[:] = 0
        assert torch.equal(labels, torch.arange(10).repeat(10))


def test_truth_is_unknown_where_labels_are_not_trusted_and_no_noise_is_injected(tmp_path):
    labels = balanced(10, 50)
    np.savez(tmp_path / "labels.npz", given=(labels + 1) % 10)
    for kind in ("none", f"file:{tmp_path / 'labels.npz'}"):
        noise = make(labels, kind, trusted=False)
        assert (noise.true == -1).all() and noise.corrupted is None and not noise.transition.any()
    np.testing.assert_array_equal(noise.given, (labels + 1) % 10)


def test_untrusted_labels_count_as_true_under_injected_noise():
    labels = balanced(10, 50)
    noise = make(labels, "symmetric", fraction=0.4, trusted=False, dataset="folder")
    np.testing.assert_array_equal(noise.true, labels)
    assert noise.corrupted.sum() == 20


def test_unknown_kind_names_the_nearest():
    message = r"noise\.kind: 'pare' is not known; did you mean 'pair'\?"
    with pytest.raises(ValueError, match=message):
        make(balanced(10, 50), "pare", fraction=0.4)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, 40, float("nan")])
@pytest.mark.parametrize("kind", ["symmetric", "none"])
def test_fraction_outside_zero_to_one_is_refused(fraction, kind):
    with pytest.raises(ValueError, match=rf"fraction must lie in \[0, 1\], got {fraction}"):
        make(balanced(10, 50), kind, fraction=fraction)


def test_structured_refuses_another_number_of_classes():
    with pytest.raises(ValueError, match="10 classes of CIFAR-10; this dataset has 100"):
        make(balanced(100, 200), "structured", fraction=0.4, num_classes=100, dataset="cifar100")


def test_asymmetric_refuses_a_dataset_without_a_map():
    with pytest.raises(ValueError, match="for cifar10, mnist, digits, cifar100, not for folder"):
        make(balanced(10, 50), "asymmetric", fraction=0.4, dataset="folder")


# file:


LABELS = [3, 1, 4, 1, 5, 9, 2, 6]


def test_npz_is_read_by_its_key_given_or_by_another(tmp_path):
    np.savez(tmp_path / "labels.npz", given=LABELS, worse=np.array(LABELS[::-1], float))
    path = tmp_path / "labels.npz"
    for kind, expected in (
        (f"file:{path}", LABELS),
        (f"file:{path}#given", LABELS),
        (f"file:{path}#worse", LABELS[::-1]),
    ):
        noise = make(np.zeros(8, int), kind)
        assert noise.given.dtype == np.int64 and noise.given.tolist() == expected
        assert noise.true.tolist() == [0] * 8 and noise.corrupted.all()


def test_noise_npz_of_a_run_is_read(tmp_path):
    noise = make(balanced(10, 100), "symmetric", fraction=0.4, seed=3)
    np.savez_compressed(
        tmp_path / "noise.npz",
        given=noise.given,
        true=noise.true,
        index=np.arange(100),
        transition=noise.transition,
        sha256=noise.sha256,
    )
    assert make(balanced(10, 100), f"file:{tmp_path / 'noise.npz'}").sha256 == noise.sha256


def write_csv(path, rows, header="given"):
    path.write_text("\n".join([header, *(str(row) for row in rows)]) + "\n")
    return str(path)


def test_csv_is_read_in_order_without_a_column_index(tmp_path):
    rows = [f"image{label}.png,{label}" for label in LABELS]
    path = write_csv(tmp_path / "labels.csv", rows, "name,given")
    assert read_labels(path, 8, 10).tolist() == LABELS


def test_csv_is_sorted_by_its_column_index(tmp_path):
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    rows = [f"{row},{LABELS[row]},{9 - LABELS[row]}" for row in order]
    path = write_csv(tmp_path / "labels.csv", rows, "index,given,other")
    assert read_labels(path, 8, 10).tolist() == LABELS
    assert read_labels(f"{path}#other", 8, 10).tolist() == [9 - label for label in LABELS]
    arrays = tmp_path / "labels.npz"
    np.savez(arrays, given=np.array(LABELS)[order], index=order)
    assert read_labels(str(arrays), 8, 10).tolist() == LABELS
    np.savez(arrays, given=np.array(LABELS), index=order[:7])
    refused(str(arrays), r"index of .* each position in \[0, 8\) once")


def test_csv_of_a_spreadsheet_is_read(tmp_path):
    text = "\ufeffgiven\r\n" + "".join(f"{label}\r\n" for label in LABELS)
    (tmp_path / "labels.csv").write_bytes(text.encode())
    assert read_labels(str(tmp_path / "labels.csv"), 8, 10).tolist() == LABELS


def test_csv_with_a_cell_too_many_is_read(tmp_path):
    path = write_csv(tmp_path / "labels.csv", ["3,remark", *LABELS[1:]])
    assert read_labels(path, 8, 10).tolist() == LABELS


def refused(path, match, num_samples=8):
    with pytest.raises(ValueError, match=match) as caught:
        make(np.zeros(num_samples, int), f"file:{path}")
    assert str(path).partition("#")[0] in str(caught.value)


def test_missing_file_of_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"file:.*absent\.npz: there is no such file"):
        make(np.zeros(8, int), f"file:{tmp_path / 'absent.npz'}")


def test_missing_key_names_those_that_are_there(tmp_path):
    np.savez(tmp_path / "labels.npz", noisy=LABELS, clean=LABELS)
    refused(tmp_path / "labels.npz", "no key 'given'; it has noisy, clean.*#<key>")
    refused(f"{tmp_path / 'labels.npz'}#worse", "no key 'worse'")
    refused(write_csv(tmp_path / "labels.csv", LABELS, "noisy"), "no key 'given'; it has noisy")
    (tmp_path / "empty.csv").touch()
    refused(tmp_path / "empty.csv", "no key 'given'; it has none")


@pytest.mark.parametrize("given", [LABELS[:-1], [*LABELS, 0], [LABELS], 3])
def test_wrong_number_of_labels_is_refused(given, tmp_path):
    np.savez(tmp_path / "labels.npz", given=given)
    refused(tmp_path / "labels.npz", "one label for each of the 8 training samples, got")


@pytest.mark.parametrize("bad", [-1, 10])
def test_number_that_is_no_class_is_refused(bad, tmp_path):
    given = [*LABELS[:5], bad, bad, 0]
    np.savez(tmp_path / "labels.npz", given=given)
    match = rf"class numbers in \[0, 10\), got {bad} at position 5 \(2 such\)"
    refused(tmp_path / "labels.npz", match)
    refused(write_csv(tmp_path / "labels.csv", given), match)


@pytest.mark.parametrize("bad", ["2.5", "cat", "nan", "inf", ""])
def test_labels_that_are_no_whole_numbers_are_refused(bad, tmp_path):
    rows = [f"{label},x" for label in [*LABELS[:-1], bad]]
    path = write_csv(tmp_path / "labels.csv", rows, "given,name")
    refused(path, r"labels\.csv, given must hold whole numbers")
    np.savez(tmp_path / "labels.npz", given=np.array([*LABELS[:-1], bad]))
    refused(tmp_path / "labels.npz", r"labels\.npz, given must hold whole numbers")


def test_a_csv_with_a_cell_too_few_is_refused(tmp_path):
    path = write_csv(tmp_path / "labels.csv", ["a.png,1", "b.png"], "name,given")
    refused(path, r"labels\.csv, given must hold whole numbers", num_samples=2)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 6], r"index of .* each position in \[0, 8\) once"),
        ([1, 2, 3, 4, 5, 6, 7, 8], r"index of .* each position in \[0, 8\) once"),
        ([0, 1, 2, 3, 4, 5, 6, 6.5], "index must hold whole numbers"),
    ],
)
def test_index_that_is_no_permutation_is_refused(index, match, tmp_path):
    rows = [f"{row},{label}" for row, label in zip(index, LABELS, strict=True)]
    refused(write_csv(tmp_path / "labels.csv", rows, "index,given"), match)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "npy"])
def test_unreadable_npz_is_refused(damage, tmp_path):
    path = tmp_path / "labels.npz"
    np.savez_compressed(path, given=LABELS)
    content = path.read_bytes()
    if damage == "npy":
        with open(path, "wb") as file:
            np.save(file, LABELS)
    else:
        flipped = bytes(byte ^ 255 for byte in content[80:90])
        contents = {
            "empty": b"",
            "text": b"3 1 4 1 5 9 2 6",
            "cut": content[:100],
            "flipped": content[:80] + flipped + content[90:],
        }
        path.write_bytes(contents[damage])
    refused(path, r"cannot be read as \.npz with plain arrays")


def test_unreadable_csv_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"given\n\xff\xfe\n")
    refused(tmp_path / "labels.csv", r"cannot be read as \.csv")


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_npz_that_would_run_code_is_refused(tmp_path):
    labels = np.array([Malicious(tmp_path / "attacked")] * 8, object)
    np.savez(tmp_path / "labels.npz", given=labels)
    refused(tmp_path / "labels.npz", "cannot be read as .npz with plain arrays")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("name", ["labels.txt", "labels.npy", "labels"])
def test_other_formats_are_refused(name, tmp_path):
    (tmp_path / name).write_text("given\n1\n")
    refused(tmp_path / name, r"read from \.npz or \.csv, got")


# human:


CLEAN = balanced(10, 60)
HUMAN = ("worse_label", "aggre_label", "random_label1", "random_label2", "random_label3")
RELEASE = {name: flip("symmetric", CLEAN, 0.2, seed, 10) for seed, name in enumerate(HUMAN)}
RELEASE["clean_label"] = CLEAN


@pytest.fixture
def human_root(tmp_path):
    """A folder with CIFAR-10_human.pt as released: a dict of int64 arrays, saved by torch."""
    torch.save(RELEASE, tmp_path / "CIFAR-10_human.pt")
    return str(tmp_path)


@pytest.mark.parametrize("name", HUMAN)
def test_human_labels_are_read_by_name(name, human_root):
    noise = make(CLEAN, f"human:{name}", data_root=human_root)
    assert noise.given.dtype == np.int64
    np.testing.assert_array_equal(noise.given, RELEASE[name])
    np.testing.assert_array_equal(noise.true, CLEAN)
    assert noise.corrupted.sum() == 12
    np.testing.assert_allclose(noise.transition.sum(1), 1)


@pytest.mark.parametrize("short", ["worse", "aggre", "random1", "random2", "random3"])
@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_human_labels_have_short_names_and_may_be_arrays(short, suffix, human_root):
    key = f"{short}_label" if not short[-1].isdigit() else f"random_label{short[-1]}"
    if suffix == ".npz":
        (Path(human_root) / "CIFAR-10_human.pt").unlink()
        arrays = {name: labels.astype(np.uint8) for name, labels in RELEASE.items()}
        path = Path(human_root) / "CIFAR-10_human.npz"
        np.savez(path, classes=np.array(["a"]), **arrays)
    noise = make(CLEAN, f"human:{short}", data_root=human_root)
    np.testing.assert_array_equal(noise.given, RELEASE[key])


def test_human_labels_saved_before_numpy_2_are_read(human_root):
    path = Path(human_root) / "CIFAR-10_human.pt"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert any(b"numpy._core.multiarray" in content for content in files.values())
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            older = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            archive.writestr(name, older)
    noise = make(CLEAN, "human:worse_label", data_root=human_root)
    np.testing.assert_array_equal(noise.given, RELEASE["worse_label"])


def test_human_labels_of_cifar100_have_their_own_file(tmp_path):
    clean = balanced(100, 200)
    labels = {"noisy_label": (clean + 1) % 100, "clean_label": clean}
    torch.save(labels, tmp_path / "CIFAR-100_human.pt")
    options = {"num_classes": 100, "dataset": "cifar100", "data_root": str(tmp_path)}
    noise = make(clean, "human:noisy_label", **options)
    np.testing.assert_array_equal(noise.given, (clean + 1) % 100)


def test_human_name_that_is_not_there_is_refused(human_root):
    message = "no labels 'worst_label'; it has worse_label, aggre_label, .*clean_label, worse"
    with pytest.raises(ValueError, match=message):
        make(CLEAN, "human:worst_label", data_root=human_root)


@pytest.mark.parametrize("clean", [CLEAN[::-1].copy(), CLEAN[:-1]])
def test_human_labels_in_another_order_are_refused(clean, human_root):
    with pytest.raises(ValueError, match=r"clean_label of .* differs from the labels of cifar10"):
        make(clean, "human:worse_label", data_root=human_root)


def test_human_labels_need_their_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10_human\.pt was not found.*cifar-10-100n"):
        make(CLEAN, "human:worse_label", data_root=str(tmp_path))


@pytest.mark.parametrize("dataset", ["mnist", "digits", "folder"])
def test_human_labels_exist_for_cifar_only(dataset, human_root):
    with pytest.raises(ValueError, match=f"cifar10 and cifar100 .*, not for {dataset}"):
        make(CLEAN, "human:worse_label", dataset=dataset, data_root=human_root)


UNREADABLE = r"CIFAR-10_human\.pt cannot be read as plain NumPy arrays"


def test_human_file_that_would_run_code_is_refused(human_root):
    attacked = Path(human_root) / "attacked"
    hostile = RELEASE | {"worse_label": Malicious(attacked)}
    torch.save(hostile, Path(human_root) / "CIFAR-10_human.pt")
    with pytest.raises(ValueError, match=UNREADABLE):
        make(CLEAN, "human:worse_label", data_root=human_root)
    assert not attacked.exists()


@pytest.mark.parametrize("content", [b"", b"404: Not Found", b"PK\x03\x04"])
def test_unreadable_human_file_is_refused(content, human_root):
    (Path(human_root) / "CIFAR-10_human.pt").write_bytes(content)
    with pytest.raises(ValueError, match=UNREADABLE):
        make(CLEAN, "human:worse_label", data_root=human_root)


# Order


def in_order(name, num_classes):
    """Labels of 1,000 samples in an order that is far from random."""
    numbers = np.arange(1_000)
    if name == "nearly sorted":
        numbers = np.argsort(numbers + 50 * np.random.default_rng(0).standard_normal(1_000))
    if name == "descending":
        numbers = numbers[::-1].copy()
    labels = numbers * num_classes // 1_000 if num_classes else numbers.astype(np.float32)
    if name == "in blocks":  # of each class or tenth, one after another, but not by their numbers
        group = numbers // 100 if num_classes == 0 else labels
        labels = labels[np.argsort(group * 7 % 10, kind="stable")]
    if name == "both ends alike":
        labels = np.concatenate([labels[::2], labels[1::2][::-1]])
    return torch.from_numpy(labels)


@pytest.mark.parametrize(
    "name", ["ascending", "descending", "in blocks", "nearly sorted", "both ends alike"]
)
@pytest.mark.parametrize("num_classes", [0, 2, 10])
def test_permute_refuses_an_order_far_from_random(name, num_classes):
    labels = in_order(name, num_classes)
    options = {"kind": "permute", "fraction": 0.4, "seed": 0, "dataset": "csv"}
    message = r"is for a dataset in mixed order, and .*: use"
    with pytest.raises(ValueError, match=message) as caught:
        inject(labels, num_classes=num_classes, **options)
    assert ("symmetric" in str(caught.value)) == (num_classes > 0)
    assert num_classes or "label_permutation" in str(caught.value)


@pytest.mark.parametrize("num_classes", [0, 2, 10, 1_000])
@pytest.mark.parametrize("count", [2, 12, 100, 5_000])
def test_permute_takes_a_random_order_and_one_class_after_another(num_classes, count, mnist_labels):
    generator = np.random.default_rng(0)
    options = {"kind": "permute", "fraction": 0.4, "seed": 0, "dataset": "csv"}
    for _ in range(20):
        labels = generator.random(count)
        if num_classes:
            labels = generator.integers(0, num_classes, count)
            labels[:3] = [1, 0, 1][: len(labels)]  # neither ascending nor descending
        if count > 2 or num_classes == 0:
            inject(torch.from_numpy(labels), num_classes=num_classes, **options)
    inject(torch.arange(count * 10) % 10, num_classes=10, **options)
    inject(torch.from_numpy(mnist_labels), num_classes=10, **options)


# Names of classes in the place of their numbers


def read_names(tmp_path, labels, classes, head="given"):
    (tmp_path / "labels.csv").write_text("\n".join([head, *labels]) + "\n")
    return read_labels(str(tmp_path / "labels.csv"), len(labels), len(classes), classes)


def test_files_of_labels_may_have_names_of_classes(tmp_path):
    classes = ["cat", "dog", "1st"]
    assert read_names(tmp_path, ["dog", " cat ", "1st"], classes).tolist() == [1, 0, 2]
    assert read_names(tmp_path, ["dog;1", "cat;0"], classes, "given;index").tolist() == [0, 1]
    np.savez(tmp_path / "labels.npz", given=np.array(["dog", "1st"]))
    assert read_labels(str(tmp_path / "labels.npz"), 2, 3, classes).tolist() == [1, 2]
    noise = make(
        np.zeros(2, np.int64), f"file:{tmp_path}/labels.npz", num_classes=3, classes=classes
    )
    assert noise.given.tolist() == [1, 2]


def test_class_numbers_stay_numbers(tmp_path):
    assert read_names(tmp_path, ["1", "0", "2"], ["cat", "dog", "owl"]).tolist() == [1, 0, 2]
    assert read_names(tmp_path, ["1", "0"], ["0", "1"]).tolist() == [1, 0]
    assert read_names(tmp_path, ["1.0", "0.0"], ["0", "1"]).tolist() == [1, 0]
    assert read_names(tmp_path, ["1", "0"], ["1", "2"]).tolist() == [1, 0]  # 0 is no name


def test_names_that_are_other_numbers_or_unknown_are_refused(tmp_path):
    for point in ("", ".0"):  # as a spreadsheet and as pandas may write them
        with pytest.raises(ValueError, match="'2' may be the number of a class or its name"):
            read_names(tmp_path, [f"2{point}", f"1{point}"], ["1", "2", "3"])
    with pytest.raises(ValueError, match=r"'dgo' is not known; did you mean 'dog'\?.*position 1"):
        read_names(tmp_path, ["cat", "dgo"], ["cat", "dog"])
