"""Label noise: each kind is a pure function (labels, fraction, seed, num_classes) -> given labels.

Labels are class numbers, or, in regression, the numbers to predict.

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

import csv
import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.base import warn
from datasets.tables import separator_of, visible
from utils.build import unknown
from utils.detection import wrong_labels
from utils.errors import UserError
from utils.files import read_arrays

# Patrini et al. 2017 (arXiv 1609.03683): truck -> automobile, bird -> airplane, deer -> horse, cat
# <-> dog; and, for digits, 2 -> 7, 3 -> 8, 5 <-> 6, 7 -> 1.
CIFAR10_MAP = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
DIGIT_MAP = {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}
CIFAR_N = {  # what a params file calls them, and what the release does
    "worse": "worse_label",
    "aggre": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "noisy": "noisy_label",
}
CIFAR100_SUPERCLASSES = (  # the 5 fine classes of each of the 20 superclasses, in order
    (4, 30, 55, 72, 95),
    (1, 32, 67, 73, 91),
    (54, 62, 70, 82, 92),
    (9, 10, 16, 28, 61),
    (0, 51, 53, 57, 83),
    (22, 39, 40, 86, 87),
    (5, 20, 25, 84, 94),
    (6, 7, 14, 18, 24),
    (3, 42, 43, 88, 97),
    (12, 17, 37, 68, 76),
    (23, 33, 49, 60, 71),
    (15, 19, 21, 31, 38),
    (34, 63, 64, 66, 75),
    (26, 45, 77, 79, 99),
    (2, 11, 35, 46, 98),
    (27, 29, 44, 78, 93),
    (36, 50, 65, 74, 80),
    (47, 52, 56, 59, 96),
    (8, 13, 48, 58, 90),
    (41, 69, 81, 85, 89),
)


def permutation_order(num_samples: int, fraction: float, seed: int) -> np.ndarray:
    """P of the authors' ``images[:n] = images[:n][P]``, n = floor(fraction N), bit for bit."""
    return np.random.RandomState(seed).permutation(int(np.floor(num_samples * fraction)))


def permute(labels: np.ndarray, fraction: float, seed: int, num_classes: int) -> np.ndarray:
    """DiscrimLoss and Data Parameters: permute the images of the first floor(rN) samples.

    Their labels stay. Here every image stays where it is and the labels move, which pairs the same
    images with the same labels and keeps the index of an image what it is in the dataset: image
    P[i] is given the label of position i. It takes a dataset in mixed order: of one that is sorted
    by class, it would exchange labels between few classes, or within one.
    """
    order = permutation_order(len(labels), fraction, seed)
    given = labels.copy()
    given[order] = labels[: len(order)]
    return given


def label_permutation(
    labels: np.ndarray, fraction: float, seed: int, num_classes: int
) -> np.ndarray:
    """DiscrimLoss on DigitSum: the labels of a random floor(rN) samples permuted among them.

    Bit-exact with its generator: the samples, in their order, get the labels of the same samples in
    the order in which Python's random drew them.
    """
    drawn = random.Random(seed).sample(range(len(labels)), int(np.floor(len(labels) * fraction)))
    given = labels.copy()
    given[sorted(drawn)] = labels[drawn]
    return given


def symmetric(labels: np.ndarray, fraction: float, seed: int, num_classes: int) -> np.ndarray:
    """Exactly round(rN) samples get one of the C - 1 other classes, uniformly."""
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(labels))[: round(fraction * len(labels))]
    given = labels.copy()
    given[chosen] = (labels[chosen] + generator.integers(1, num_classes, len(chosen))) % num_classes
    return given


def symmetric_inclusive(
    labels: np.ndarray, fraction: float, seed: int, num_classes: int
) -> np.ndarray:
    """RSL's "uniform": each sample with probability r draws any class; bit-exact with its code."""
    generator = np.random.RandomState(seed)
    given = labels.copy()
    for i in range(len(labels)):  # the draws interleave, so this loop is what makes it bit-exact
        if generator.rand() <= fraction:
            given[i] = generator.randint(0, num_classes)
    return given


def pair(labels: np.ndarray, fraction: float, seed: int, num_classes: int) -> np.ndarray:
    """RSL's "pairwise": each sample with probability r moves to class c + 1 mod C; bit-exact."""
    flipped = np.random.RandomState(seed).rand(len(labels)) <= fraction
    return np.where(flipped, (labels + 1) % num_classes, labels)


def structured(labels: np.ndarray, fraction: float, seed: int, num_classes: int) -> np.ndarray:
    """RSL's "structured": each sample with probability r moves along CIFAR10_MAP, if that has it.

    Raises UserError if there are not ten classes.
    """
    if num_classes != 10:
        raise UserError(
            f"noise kind structured is a map between the 10 classes of CIFAR-10; this dataset has "
            f"{num_classes}. Use pair or symmetric"
        )
    flipped = np.random.RandomState(seed).rand(len(labels)) <= fraction
    return np.where(flipped, _lookup(CIFAR10_MAP, num_classes)[labels], labels)


def asymmetric(
    labels: np.ndarray, fraction: float, seed: int, num_classes: int, dataset: str = "cifar10"
) -> np.ndarray:
    """Exactly round(r n_c) samples of each class c of the dataset's look-alike map move along it.

    cifar10: CIFAR10_MAP; mnist and digits: DIGIT_MAP; cifar100: each class to the next of its
    superclass, in a circle.
    """
    circle = {group[i]: group[(i + 1) % 5] for group in CIFAR100_SUPERCLASSES for i in range(5)}
    maps = {"cifar10": CIFAR10_MAP, "mnist": DIGIT_MAP, "digits": DIGIT_MAP, "cifar100": circle}
    if dataset not in maps:
        raise UserError(
            f"noise kind asymmetric has a map of look-alike classes for {', '.join(maps)}, not for "
            f"{dataset}. Use pair or symmetric"
        )
    if num_classes < 10:
        raise UserError(
            f"noise kind asymmetric is a map between the 10 classes of {dataset}, and here are "
            f"{num_classes} of them. Use pair or symmetric"
        )
    generator = np.random.default_rng(seed)
    given = labels.copy()
    for source, destination in sorted(maps[dataset].items()):
        members = generator.permutation(np.flatnonzero(labels == source))
        given[members[: round(fraction * len(members))]] = destination
    return given


def symmetric_coteaching(
    labels: np.ndarray, fraction: float, seed: int, num_classes: int
) -> np.ndarray:
    """Each sample with probability r draws one of the C - 1 other classes, uniformly.

    Bit-exact with the code of Co-teaching (arXiv 1804.06872), whose seed is always 0, and with the
    same generator in those of Patrini et al. and JoCoR, whose seeds differ.
    """

    def chances(label):
        row = np.full(num_classes, fraction / max(num_classes - 1, 1))
        row[label] = 1.0 - fraction
        return row

    return _draw_given(labels, chances, seed)


def pair_coteaching(labels: np.ndarray, fraction: float, seed: int, num_classes: int) -> np.ndarray:
    """Each sample with probability r moves to class c + 1 mod C.

    Bit-exact as symmetric_coteaching.
    """

    def chances(label):
        row = np.zeros(num_classes)
        row[label] = 1.0 - fraction
        row[(label + 1) % num_classes] += fraction
        return row

    return _draw_given(labels, chances, seed)


def _draw_given(labels, chances, seed):
    """A label for each sample, drawn from ``chances`` of its own: a distribution [C]."""
    generator = np.random.RandomState(seed)
    given = labels.copy()
    for i, label in enumerate(labels):  # one draw a sample, in their order: bit-exact
        given[i] = generator.multinomial(1, chances(label)).argmax()
    return given


INSTANCE_SPREAD = 0.1  # standard deviation of the flip rates about r, before they are cut off


def instance(
    labels: np.ndarray,
    fraction: float,
    seed: int,
    num_classes: int,
    inputs: Tensor | list[str] | None = None,
) -> np.ndarray:
    """Instance-dependent noise: Algorithm 2 of Xia et al. 2020 (arXiv 2006.07836).

    Sample n is flipped with the probability q_n, from a normal distribution about r of standard
    deviation 0.1 that is cut off at 0 and 1. It goes to a class j other than its own, y, with the
    probability softmax_j(x_n W_y): x_n are the bytes of its image as they are, and every class y
    has a random projection W_y [features, C] of standard normal entries. Draws are made in the
    order of the authors' code; sums are not rounded as theirs on a GPU. r = 0 changes nothing,
    whereas their q_n would then have a mean of 0.08.

    Args:
        inputs: the images of the training set, uint8 [N, ...].

    Raises:
        UserError: no images in memory, or other than one of each label.
    """
    in_memory = isinstance(inputs, Tensor) and inputs.dtype == torch.uint8
    if not in_memory or len(inputs) != len(labels):
        got = type(inputs).__name__ if not isinstance(inputs, Tensor) else inputs.dtype
        raise UserError(
            f"noise kind instance needs the training images in memory, as those of digits, mnist, "
            f"cifar10 and cifar100 are: {len(labels)} of uint8, got {got}. Use symmetric or pair"
        )
    if fraction == 0:
        return labels.copy()
    from scipy.stats import truncnorm  # slow to import

    generator = np.random.RandomState(seed)
    low, high = -fraction / INSTANCE_SPREAD, (1 - fraction) / INSTANCE_SPREAD
    rates = truncnorm.rvs(
        low, high, fraction, INSTANCE_SPREAD, size=len(labels), random_state=generator
    )
    images = inputs.cpu().flatten(1)
    chances = np.zeros((len(labels), num_classes))  # of each class to be the given label
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        projection = torch.from_numpy(generator.randn(images.shape[1], num_classes))
        scores = images[torch.from_numpy(members)].float() @ projection.float()
        scores[:, label] = -torch.inf
        chances[members] = rates[members, None] * scores.softmax(1).double().numpy()
        chances[members, label] = 1 - rates[members]
    cumulative = chances.cumsum(1)
    drawn = generator.random_sample((len(labels), 1)) * cumulative[:, -1:]
    return (cumulative <= drawn).sum(1)


KINDS = {
    "permute": permute,
    "label_permutation": label_permutation,
    "symmetric": symmetric,
    "symmetric_inclusive": symmetric_inclusive,
    "symmetric_coteaching": symmetric_coteaching,
    "pair": pair,
    "pair_coteaching": pair_coteaching,
    "asymmetric": asymmetric,
    "structured": structured,
    "instance": instance,
}
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
        given = human(kind.removeprefix("human:"), clean, num_classes, dataset, data_root)
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


def read_labels(
    path: str, num_samples: int, num_classes: int, classes: Sequence[str] = ()
) -> np.ndarray:
    """Labels [num_samples] from a .npz or a .csv: its column ``given``, or another after a #.

    They are class numbers, or names of ``classes``, or with num_classes = 0 any finite numbers. A
    csv may have a column ``index`` with the position of each row in the training set; otherwise
    rows are in order.

    Raises:
        FileNotFoundError: no such file.
        UserError: another format, a missing key, a wrong number of labels, a label that is no
            class, or texts that are both numbers and names, of different classes.
    """
    path, _, key = path.partition("#")
    key = key or "given"
    columns = read_columns(path)
    if key not in columns:
        raise UserError(
            f"{path} has no key {key!r}; it has {', '.join(columns) or 'none'}. Name one with "
            f"file:{path}#<key>"
        )
    column, what = columns[key], f"{path}, {key}"
    if num_classes and column.dtype.kind in "OU":
        column = _named(column, what, classes)
    given = (_whole_numbers if num_classes else _numbers)(column, what)
    if given.shape != (num_samples,):
        raise UserError(
            f"{path} must hold one label for each of the {num_samples} training samples, got "
            f"{list(given.shape)}"
        )
    if num_classes and (given.min() < 0 or given.max() >= num_classes):
        bad = np.flatnonzero((given < 0) | (given >= num_classes))
        raise UserError(
            f"{path} must hold class numbers in [0, {num_classes}), got {given[bad[0]]} at "
            f"position {bad[0]} ({len(bad)} such)"
        )
    if path.endswith(".csv") and "index" in columns:
        index = _whole_numbers(columns["index"], f"{path}, index")
        if not np.array_equal(np.sort(index), np.arange(num_samples)):
            raise UserError(
                f"column index of {path} must hold each position in [0, {num_samples}) once"
            )
        given = given[np.argsort(index)]
    return given


def _named(column, what, classes):
    """Class numbers of texts that are names of classes; other texts as they are."""
    numbers = {visible(name): number for number, name in enumerate(classes)}
    names = ["" if text is None else visible(str(text)) for text in column.ravel()]
    strange = [position for position, name in enumerate(names) if name not in numbers]
    if not numbers or (strange and all(map(_is_number, names))):
        return column
    if strange:
        message = unknown(what, names[strange[0]], numbers)
        raise UserError(f"{message}, at position {strange[0]} ({len(strange)} such)")
    named = np.array([numbers[name] for name in names]).reshape(column.shape)
    if all(map(_is_number, names)) and (np.array(names, np.float64) != named.ravel()).any():
        raise UserError(
            f"{what}: {names[0]!r} may be the number of a class or its name, and these differ; "
            f"write an .npz with whole numbers"
        )
    return named


def _is_number(text):
    return re.fullmatch(r"[-+]?\d+(\.0*)?", text) is not None


def read_columns(path: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz or .csv file, by name; raises as ``read_labels``."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"noise.kind=file:{path}: there is no such file")
    if path.endswith(".npz"):
        try:  # allow_pickle is off: labels cannot run code
            return read_arrays(Path(path).resolve())
        except OSError as error:
            raise UserError(f"{path} cannot be read as .npz with plain arrays ({error})") from None
    if path.endswith(".csv"):
        longer = []
        try:  # -sig: spreadsheets write a mark of the encoding
            with open(path, newline="", encoding="utf-8-sig") as file:
                separator = separator_of(file)
                reader = csv.DictReader(file, delimiter=separator, skipinitialspace=True)
                names, rows = reader.fieldnames or (), []
                for row in reader:
                    rows.append(row)
                    if None in row:
                        longer.append(reader.line_num)
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path} cannot be read as .csv ({error})") from None
        if longer:
            warn(
                f"{path}: {len(longer)} rows have more fields than the head, the first of them in "
                f"line {longer[0]}: those at their end are left out"
            )
        return {name: np.array([row[name] for row in rows]) for name in names}
    raise UserError(f"labels are read from .npz or .csv, got {path}")


def human(
    name: str, clean: np.ndarray, num_classes: int, dataset: str, data_root: str
) -> np.ndarray:
    """Human labels of CIFAR-N (Wei et al. 2022): worse, aggre, random1 to random3; or noisy.

    The last one is for CIFAR-100. Read from the official ``data_root/CIFAR-10_human.pt`` (or
    CIFAR-100_human.pt), or from a .npz of that name with the same arrays; whose clean_label must be
    the labels of the dataset, in the same order.

    Raises:
        FileNotFoundError: no such file.
        UserError: another dataset or name; a file that cannot be read, or is of other labels.
    """
    if dataset not in ("cifar10", "cifar100"):
        raise UserError(
            f"noise kind human:{name} exists for cifar10 and cifar100 (CIFAR-N), not for {dataset}"
        )
    path = Path(data_root) / f"CIFAR-{num_classes}_human.pt"
    if not path.is_file() and path.with_suffix(".npz").is_file():
        path = path.with_suffix(".npz")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} was not found: noise kind human:{name} reads this file of the CIFAR-N release "
            f"(github.com/UCSC-REAL/cifar-10-100n, folder data), or a .npz of that name"
        )
    try:
        columns = _read_release(path)
    except Exception as error:  # of pickle, zip or torch, as the damage may be
        raise UserError(
            f"{path} cannot be read as plain NumPy arrays: is it the file of the release?"
        ) from error
    # without coarse labels
    names = {key: key for key in columns if key in ("clean_label", *CIFAR_N.values())}
    names |= {short: key for short, key in CIFAR_N.items() if key in columns}
    if name not in names:
        raise UserError(f"{path} has no labels {name!r}; it has {', '.join(names)}")
    if "clean_label" in columns and not np.array_equal(np.asarray(columns["clean_label"]), clean):
        raise UserError(
            f"clean_label of {path} differs from the labels of {dataset}: the files are not in the "
            f"same order"
        )
    given = np.asarray(columns[names[name]])
    if given.shape != clean.shape:
        raise UserError(f"{path} must hold {len(clean)} labels, got {list(given.shape)}")
    return given.astype(np.int64)


def _read_release(path):
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    integers = [type(np.dtype(name)) for name in ("int64", "int32", "uint8")]
    reconstruct = np._core.multiarray._reconstruct
    # its name in the released files, which are older than NumPy 2
    released = (reconstruct, "numpy.core.multiarray._reconstruct")
    allowed = [reconstruct, released, np.ndarray, np.dtype, *integers]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, weights_only=True)


def _lookup(mapping, num_classes):
    return np.array([mapping.get(label, label) for label in range(num_classes)])


def _numbers(column, what, kind="numbers"):
    try:
        numbers = column.astype(np.float64)
    except (ValueError, TypeError):  # TypeError: a cell that is missing
        raise UserError(f"{what} must hold {kind}") from None
    if not np.isfinite(numbers).all():
        raise UserError(f"{what} must hold {kind}")
    return numbers.astype(np.float32)


def _whole_numbers(column, what):
    _numbers(column, what, "whole numbers")
    numbers = column.astype(np.float64)
    if (numbers != np.floor(numbers)).any():
        raise UserError(f"{what} must hold whole numbers")
    return numbers.astype(np.int64)
