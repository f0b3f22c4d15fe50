"""Label noise: the labels that a training set is given, of a kind that a params file names.

Labels are class numbers, or, in regression, the numbers to predict. datasets.noise_kinds draws
those that are injected, datasets.label_files reads those of people and of files.

The papers do not mean the same by "40 % noise": the kinds differ in whether a label may be redrawn
as itself, in whether the number of changes is exact, and in the random generator. Each is therefore
named, and every run states the rate that came out. ``r`` is the fraction, ``C`` the number of
classes.

    kind                 what happens                                       wrong in the end
    permute              the images of the first floor(rN) samples are      about r (1 - 1/C)
                         permuted among them
    label_permutation    the labels of floor(rN) samples from anywhere are  about r (1 - 1/C)
                         permuted among them
    symmetric            round(rN) samples get another class, uniformly     r, exactly
    symmetric_inclusive  with probability r, any class, also the true one   about r (1 - 1/C)
    symmetric_coteaching with probability r, another class, uniformly       about r
    pair                 with probability r, class c becomes c + 1 (mod C)  about r
    pair_coteaching      the same, drawn as the Co-teaching code does       about r
    asymmetric           round(r n_c) samples of class c move along a map   r x share of the classes
                         of look-alikes                                     in the map
    structured           with probability r, the CIFAR-10 map               about r / 2
    instance             another class with a probability of its own, about about r; more if r
                         r, and which one depends on the image              is below 0.2
    human:<name>         labels of CIFAR-N: worse, aggre, random1 to 3;     as collected
                         noisy
    file:<path>          labels from the user's own .npz or .csv, numbers   as they are
                         or names of classes
    none                 nothing

In regression the kinds are permute, label_permutation, file: and none.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.label_files import human, read_labels
from datasets.noise_kinds import KINDS
from utils.detection import wrong_labels
from utils.errors import UserError, unknown

MIXED = 0.25  # the largest association of label and position that still counts as mixed order
MOST_CLASSES = 20_000  # of which a matrix of all pairs is made: of 3.2 GB
KIND_NAMES = (*KINDS, "human:<name>", "file:<path>", "none")
FOR_NUMBERS = ("permute", "label_permutation", "file:<path>", "none")


@dataclass
class Noise:
    """The labels of a training set, and what is worth stating about them."""

    given: np.ndarray  # [N]
    true: np.ndarray  # [N]; unknown: -1, or in regression NaN
    num_classes: int  # C; 0 in regression
    sha256: str  # of the given labels
    kind: str  # as asked for, one of KIND_NAMES
    fraction: float  # as asked for, r

    @property
    def corrupted(self) -> np.ndarray | None:
        """[N] bool: the given label is not the true one; None if the truth is unknown."""
        return wrong_labels(self.given, self.true)

    @property
    def transition(self) -> np.ndarray:
        """[C, C]: row c is the distribution of the given label of those whose true one is c.

        Zeros if the truth is unknown. Raises UserError if that is too large for any memory.
        """
        if self.num_classes > MOST_CLASSES:
            raise UserError(
                f"the matrix of how classes are mixed up would be [{self.num_classes}, "
                f"{self.num_classes}]: of more than {MOST_CLASSES:,} classes there is none"
            )
        transition = np.zeros((self.num_classes, self.num_classes))
        if self.num_classes and self.corrupted is not None:
            np.add.at(transition, (self.true, self.given), 1)
            transition /= np.maximum(transition.sum(1, keepdims=True), 1)
        return transition

    @property
    def groups(self) -> np.ndarray:
        """[N], within which losses can be compared: the given class, in regression one for all."""
        return self.given if self.num_classes else np.zeros(len(self.given), np.int64)


def inject(
    labels: torch.Tensor,
    *,
    kind: str,
    fraction: float,
    seed: int,
    num_classes: int,
    dataset: str,
    classes: Sequence[str] = (),
    trusted: bool = True,
    true: torch.Tensor | None = None,
    data_root: str = "data",
    inputs: Tensor | list[str] | None = None,
) -> Noise:
    """Labels [N] of a training set with noise of the named kind.

    Args:
        kind: one of KIND_NAMES.
        fraction: r, in [0, 1]; not read by human:, file: and none.
        num_classes: C; 0: the labels are numbers to predict.
        dataset: name of the dataset, for the kinds that are made for one.
        classes: names, which a file may have in the place of class numbers.
        trusted: whether ``labels`` are true before the noise; if they are not, none, file: and
            human: leave the truth unknown.
        true: the true labels, if the dataset comes with both; then nothing can be injected.
        data_root: where the files of human: lie.
        inputs: those of the training set, for instance.

    Raises:
        UserError: an unknown kind, a fraction outside [0, 1], labels in a file that do not fit the
            dataset.
        FileNotFoundError: a file of labels that is not there.
    """
    clean = labels.numpy().astype(np.int64 if num_classes else np.float32)
    if not 0 <= fraction <= 1:
        raise UserError(f"noise.fraction must lie in [0, 1], got {fraction}")
    if num_classes == 0 and kind.split(":")[0] not in [name.split(":")[0] for name in FOR_NUMBERS]:
        raise UserError(
            f"noise.kind={kind} is for classes, and what is predicted here are numbers: use one of "
            f"{', '.join(FOR_NUMBERS)}"
        )
    if num_classes == 1 and kind in KINDS:
        raise UserError(
            f"noise.kind={kind} gives samples the label of another class, and there is one class: "
            f"set noise.kind=none"
        )
    if kind == "none":
        given = clean.copy()
    elif kind.startswith("file:"):
        path = kind.removeprefix("file:")
        given = read_labels(path, len(clean), num_classes, classes)
    elif kind.startswith("human:"):
        given = human(kind.removeprefix("human:"), clean, dataset, data_root)
    elif kind not in KINDS:
        raise UserError(unknown("noise.kind", kind, KIND_NAMES))
    elif true is not None:
        raise UserError(
            f"noise.kind={kind} would be injected into labels that are noisy as they are, and "
            f"whose true ones are known: set noise.kind=none"
        )
    else:
        if kind == "permute":
            _check_mixed_order(clean, num_classes, dataset)
        more = {"asymmetric": {"dataset": dataset}, "instance": {"inputs": inputs}}
        given = KINDS[kind](clean, fraction, seed, num_classes, **more.get(kind, {}))
    if true is not None:
        truth = true.numpy().astype(clean.dtype)
    elif trusted or kind in KINDS:
        truth = clean
    else:
        truth = np.full_like(clean, -1 if num_classes else np.nan)
    stored = given.astype("<i8" if num_classes else "<f4").tobytes()
    sha256 = hashlib.sha256(stored).hexdigest()
    return Noise(given, truth, num_classes, sha256, kind, fraction)


def _check_mixed_order(labels, num_classes, dataset):
    """Raise UserError if permute would exchange labels among those of one end of the data only."""
    if dataset == "digitsum":
        raise UserError(
            "noise.kind=permute is for a dataset in mixed order, and digitsum is sorted by length: "
            "use label_permutation"
        )
    steps = np.sign(np.diff(labels))
    ascending, descending = (steps >= 0).all(), (steps <= 0).all()
    if (ascending or descending) and steps.any() and (num_classes or len(labels) >= 10):
        what = "class" if num_classes else "label"
        raise UserError(
            f"noise.kind=permute is for a dataset in mixed order, and this one is sorted by "
            f"{what}: use {'symmetric' if num_classes else 'label_permutation'}"
        )
    association = _association_with_position(labels, num_classes)
    if association > MIXED:
        raise UserError(
            f"noise.kind=permute is for a dataset in mixed order, and in this one the label goes "
            f"with the position (Cramer's V of tenths of the data: {association:.2f}): use "
            f"label_permutation{', or symmetric' if num_classes else ''}"
        )


def _association_with_position(labels, num_classes):
    """Cramer's V of the label and the tenth of the data, in [0, 1]; 0 if it may be chance.

    Numbers count by their tenths too.
    """
    from scipy.special import chdtrc  # slow to import, though less than scipy.stats

    count = len(labels)
    if not num_classes:
        labels = np.searchsorted(np.quantile(labels, np.arange(0.1, 1, 0.1)), labels, side="right")
    groups = np.unique(labels, return_inverse=True)[1]
    if count < 10 or groups.max() == 0:
        return 0.0
    table = np.zeros((10, groups.max() + 1))
    np.add.at(table, (np.arange(count) * 10 // count, groups), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / count
    chi_squared = ((table - expected) ** 2 / expected).sum()
    chance = chdtrc(9 * groups.max(), chi_squared)
    return 0.0 if chance > 1e-4 else float(np.sqrt(chi_squared / count / (min(table.shape) - 1)))
