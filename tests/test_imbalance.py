"""Datasets with some of their classes, and few samples of some."""

import numpy as np
import pytest
import torch

from datasets import digits, noise_kinds
from tests.test_run import arrays
from utils.errors import UserError


def test_classes_are_kept_with_as_many_samples_and_numbered_anew():
    whole, part = digits(), digits(keep={"9": 100, "4": 7}, test_per_class=20, seed=3)
    assert part.classes == ["4", "9"]
    assert np.bincount(part.train.targets).tolist() == [7, 100]
    assert np.bincount(part.test.targets).tolist() == [20, 20]
    for kept, split in ((part.train, whole.train), (part.test, whole.test)):
        rows = [
            int((split.inputs == image).all(dim=(1, 2, 3)).nonzero()[0]) for image in kept.inputs
        ]
        assert rows == sorted(set(rows))
        assert split.targets[rows].tolist() == [[4, 9][label] for label in kept.targets]
    assert str(part).endswith("7 of class 4, 100 of class 9 to train")


def test_which_samples_are_kept_is_a_function_of_the_seed_but_for_the_test_part():
    first, again, other = (digits(keep={4: 20, 9: 20}, test_per_class=9, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert torch.equal(first.test.inputs, other.test.inputs)


def test_without_counts_a_dataset_is_as_it_was():
    assert len(digits().train) == 1297 and digits().note == ""
    balanced = digits(test_per_class=5)
    assert np.bincount(balanced.test.targets).tolist() == [5] * 10
    assert torch.equal(balanced.train.targets, digits().train.targets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": {"four": 3}}, r"dataset\.keep names the class 'four', and the dataset has 0, 1"),
        ({"keep": {"4": 0, "9": 3}}, r"dataset\.keep\.4 must be how many training .* got 0"),
        ({"keep": {"4": 0.5, "9": 3}}, r"dataset\.keep\.4 must be how many"),
        ({"keep": {"4": 3}}, "there is one class, '4'"),
        ({"keep": {"4": 3, "9": 900}}, r"dataset\.keep\.9=900 is more than the \d+ training"),
        ({"test_per_class": 900}, r"dataset\.test_per_class=900 is more than the \d+ test '0'"),
    ],
)
def test_counts_that_cannot_be_had(arguments, message):
    with pytest.raises(UserError, match=message):
        digits(**arguments)


def test_a_run_with_a_class_that_is_rare(run):
    keep = ["dataset.keep.4=30", "dataset.keep.9=90", "dataset.test_per_class=40"]
    trusted = ["trusted.count=10", "noise=none", "epochs=1"]
    code, directory, stdout, _ = run(*keep, *trusted, params="params/digits/plain.yaml")
    assert code == 0
    assert "120 training, 80 test samples in 2 classes; 30 of class 4" in stdout
    stored = arrays(directory / "noise.npz")
    assert np.bincount(stored["true"][stored["trusted"]]).tolist() == [5, 5]


def test_a_map_between_ten_classes_is_not_for_two():
    with pytest.raises(UserError, match="asymmetric is a map between the 10 classes of digits"):
        noise_kinds.asymmetric(np.zeros(5, np.int64), 0.4, seed=0, num_classes=2, dataset="digits")
