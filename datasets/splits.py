"""Which training samples are trained on, held out, or taken for samples whose labels are right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from datasets.base import Split, too_rare
from datasets.noise import Noise
from datasets.streams import TRUSTED
from utils.errors import UserError
from utils.seed import derive


@dataclass
class Parts:
    """Positions in the training set, each in one part at most."""

    rows: np.ndarray  # to train on
    held_out: np.ndarray  # to validate on
    labels: np.ndarray  # [N], what to validate with
    # with their true labels; if the dataset has a verified part: positions in that
    trusted: np.ndarray = field(default_factory=lambda: np.arange(0))
    train: bool | str = False  # as trusted.train of the configuration says

    @property
    def corrected(self) -> np.ndarray:
        """Trusted samples that are trained on with their true labels."""
        return self.trusted if self.train in (True, "only") else self.trusted[:0]

    @property
    def drawn(self) -> np.ndarray:
        """What training batches are drawn from, if there is no selection."""
        if self.train == "only":
            return self.trusted
        return np.concatenate([self.rows, self.corrected])


def split_rows(
    noise: Noise,
    *,
    validation: Mapping,
    trusted: Mapping = MappingProxyType({}),
    seed: int,
    verified: Split | None = None,
    original: Sequence[int] | None = None,
    classes: Sequence[str] = (),
) -> Parts:
    """Which samples of a training set a run trains on, and which it sets apart before.

    Args:
        validation: arguments of ``hold_out``: ``fraction``, and perhaps others.
        trusted: arguments of ``draw_trusted``: perhaps ``count`` and ``per_class``; and ``train``:
            False, and the trusted samples are in no other part; True or "only", and they are
            trained on with their true labels, besides the others or alone; "given", and they
            stay among the others, with their given labels.
        seed: of both draws.
        verified: the dataset's own verified part, if it has one: trusted samples are drawn from
            it, and none are taken off the training rows.
        original: [N], the first copy of each sample, as of datasets.copies.
        classes: names, for errors.

    Raises:
        UserError: as ``hold_out`` and ``draw_trusted``; trusted samples if the truth is unknown;
            ``train`` without any, or of a verified part.
    """
    trusted = dict(trusted)
    train = trusted.pop("train", False)
    rows, held_out, labels = hold_out(
        noise, **validation, seed=seed, original=original, classes=classes
    )
    parts = Parts(rows, held_out, labels)
    if not trusted.get("count"):
        if train:
            raise UserError(
                f"trusted.train={_as_yaml(train)} is about trusted samples, and there are none: "
                f"set trusted.count to how many"
            )
        return parts
    draw = {"num_classes": noise.num_classes, "seed": derive(seed, TRUSTED), **trusted}
    draw["classes"] = classes
    if verified is not None:
        if train:
            raise UserError(
                f"trusted.train={_as_yaml(train)} is about trusted samples among the training "
                f"samples, and those of this dataset are a part of their own: set "
                f"trusted.train=false"
            )
        true = verified.targets.numpy()
        parts.trusted = draw_trusted(np.arange(len(true)), true, most=len(true), **draw)
        return parts
    if noise.corrupted is None:
        raise UserError(
            "trusted.count needs true labels, and those of this dataset are not known: set "
            "trusted.count=0, or give the true labels with the dataset"
        )
    parts.trusted = draw_trusted(np.sort(rows), noise.true, most=len(rows) - 1, **draw)
    parts.train = train
    if train != "given":
        parts.rows = rows[~np.isin(rows, parts.trusted)]
    return parts


def _as_yaml(value: bool | str) -> str:
    return str(value).lower()


def hold_out(
    noise: Noise,
    *,
    fraction: float,
    clean: bool = False,
    folds: int | None = None,
    fold: int | None = None,
    seed: int,
    original: Sequence[int] | None = None,
    classes: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train on, rows to validate on, drawn from ``seed``, and the labels [N] for that.

    The labels, by which the rows are stratified too, are the given ones, noise and all, or if
    ``clean`` the true ones. Targets that are numbers are not stratified. Copies are on the side of
    their originals.

    Args:
        folds, fold: instead of a fraction: each row is held out in one fold of so many.

    Raises:
        UserError: a class too small for a fraction; a fold that there is not; ``clean`` if the
            truth is unknown, or nothing is held out.
    """
    rows, labels = np.arange(len(noise.given)), noise.true if clean else noise.given
    if folds is None and fold is not None:
        raise UserError(f"validation.fold={fold} is one of how many? Set validation.folds")
    if folds is not None:
        _check_folds(folds, fold, fraction, len(rows))
    elif not fraction:
        if clean:
            raise UserError(
                "validation.clean=true says by which labels a held-out part is judged, and none is "
                "held out: set validation.fraction"
            )
        return rows, rows[:0], labels
    if clean and noise.corrupted is None:
        raise UserError(
            "validation.clean=true needs true labels, and those of this dataset are not known"
        )
    first = rows if original is None else np.asarray(original)
    originals, copies = rows[first == rows], rows[first != rows]
    strata = labels[originals] if noise.num_classes else None
    if folds is not None:
        train, held_out = _split_fold(originals, strata, folds, fold, seed)
    else:
        train, held_out = _split_fraction(originals, strata, fraction, seed, noise, classes)
    if len(copies):
        of_held_out = np.isin(first[copies], held_out)
        train = np.concatenate([train, copies[~of_held_out]])
        held_out = np.concatenate([held_out, copies[of_held_out]])
    return train, held_out, labels


def _check_folds(folds, fold, fraction, count):
    if fraction:
        raise UserError(
            f"validation.folds={folds} and validation.fraction={fraction} are two ways to hold "
            f"samples out: set one of them"
        )
    if fold is None or not 0 <= fold < folds:
        raise UserError(
            f"validation.fold must say which of the {folds} folds is held out, 0 to {folds - 1}, "
            f"got {fold}; examples/folds.sbatch runs them all"
        )
    if folds > count:
        raise UserError(f"validation.folds={folds} is more than the {count} samples there are")


def _split_fraction(originals, strata, fraction, seed, noise, classes):
    from sklearn.model_selection import train_test_split  # takes a second to import

    try:
        return train_test_split(originals, test_size=fraction, random_state=seed, stratify=strata)
    except ValueError as error:
        reason = too_rare(strata, classes or range(noise.num_classes)) or error
        raise UserError(
            f"validation.fraction={fraction} cannot be held out by class: {reason}; more of these, "
            f"or set validation.fraction=0"
        ) from None


def _split_fold(originals, strata, folds, fold, seed):
    """Class by class as far as that goes: one that is rarer than the folds is in some of them."""
    order = np.random.default_rng(seed).permutation(len(originals))
    if strata is not None:
        order = order[np.argsort(strata[order], kind="stable")]
    inside = np.zeros(len(originals), bool)
    inside[order[fold::folds]] = True
    return originals[~inside], originals[inside]


def draw_trusted(
    rows: np.ndarray,
    true: np.ndarray,
    *,
    count: int,
    per_class: bool = True,
    num_classes: int,
    most: int,
    seed: int,
    classes: Sequence[str] = (),
) -> np.ndarray:
    """``count`` of the rows, sorted, drawn without replacement.

    Args:
        true: [N], true labels of all samples.
        per_class: draw as many of each true class, give or take one; else, and if the labels are
            no classes, from all rows alike.
        num_classes: 0 if the labels are no classes.
        most: the largest count allowed.
        classes: names, for errors.

    Raises:
        UserError: a count out of range, or of fewer samples than classes if ``per_class``; a class
            with too few rows.
    """
    if not 0 <= count <= most:
        raise UserError(f"trusted.count must lie in [0, {most}], got {count}")
    generator = np.random.default_rng(seed)
    if not (per_class and num_classes):
        return np.sort(generator.choice(rows, count, replace=False))
    if 0 < count < num_classes:
        raise UserError(
            f"trusted.count={count} is fewer than one sample of each of the {num_classes} classes: "
            f"raise it, or set trusted.per_class=false"
        )
    counts = np.full(num_classes, count // num_classes)
    counts[generator.permutation(num_classes)[: count % num_classes]] += 1
    by_class = rows[np.argsort(true[rows], kind="stable")]
    ends = np.searchsorted(true[by_class], np.arange(num_classes + 1))
    drawn = []
    for label, number in enumerate(counts):
        members = by_class[ends[label] : ends[label + 1]]
        if len(members) < number:
            name = classes[label] if classes else label
            raise UserError(
                f"trusted.count={count} takes {number} samples of class {name}, which has only "
                f"{len(members)}: lower trusted.count, or set trusted.per_class=false"
            )
        drawn.append(generator.choice(members, number, replace=False))
    return np.sort(np.concatenate(drawn))
