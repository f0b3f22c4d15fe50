"""The kinds of label noise that are injected: pure functions, each with a generator of its own.

Each takes labels [N], the fraction r, a seed and the number of classes C, and returns the given
labels [N]. Labels are class numbers, or, of permute and label_permutation, also numbers to predict.
datasets.noise says in a table what each does.
"""

import random

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError

# Patrini et al. 2017 (arXiv 1609.03683): truck -> automobile, bird -> airplane, deer -> horse, cat
# <-> dog; and, for digits, 2 -> 7, 3 -> 8, 5 <-> 6, 7 -> 1.
CIFAR10_MAP = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
DIGIT_MAP = {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}
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


def _lookup(mapping, num_classes):
    return np.array([mapping.get(label, label) for label in range(num_classes)])


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
