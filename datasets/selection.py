"""Small-loss selection: which samples to trust, from the losses that a run recorded.

    python -m datasets.selection runs/mnist/plain/pair-0.45/seed1      a table and selection.png, for a run with losses.npy

Gui, Wang and Tian, "Towards Understanding Deep Learning from Noisy Labels with Small-Loss
Criterion", IJCAI 2021 (arXiv 2106.09291), and their code (github.com/guixianjin/RSL). The network
learns the majority of a class first, so within each given label, or in regression among all, a
sample with a smaller loss is more probably correct. RSL averages the loss over the epochs
(``mean``); the vanilla criterion takes that of one epoch (``epoch:<e>``).

Deviations from the authors' code: losses come from log-softmax in float32, where theirs take the
logarithm of a softmax, which is infinite from a gap of 104 on; ties are broken by position; counts
are exact unless ``counts="authors"``.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import yaml

from datasets.noise import CIFAR10_MAP, Noise
from utils.detection import flag
from utils.errors import UserError
from utils.plots import draw_selection

KAPPA = -math.log(0.7)
# with probability r, any label: r (C - 1) / C are wrong
INCLUSIVE = ("symmetric_inclusive", "uniform", "permute", "label_permutation")
EXCLUSIVE = ("symmetric", "pair", "pairwise", "none")  # r are wrong, in every class


@dataclass
class Selection:
    """Trusted samples: ``index [K]``, positions in the training set, and ``weight [K]`` in
    [exp(-kappa), 1].

    Class by class, each from the smallest loss on. From a recorded run also ``mean_loss [N]``, what
    was ranked (NaN for held-out samples), and a ``report`` for summary.json.
    """

    index: np.ndarray
    weight: np.ndarray
    mean_loss: np.ndarray | None = None
    report: dict = field(default_factory=dict)


def kept_proportion(noise_rate: float, beta: float = 0.2) -> float:
    """max(1 - (1 + beta) eta, (1 - beta) (1 - eta)) of a class of which eta are wrong; the first up
    to eta = 1/2.

    beta > 0 keeps less than the clean part, 1 - eta. Given Fractions, it is exact.

    Raises:
        ValueError: noise_rate outside [0, 1), beta outside [0, 1).
    """
    if not 0 <= noise_rate < 1:
        raise UserError(f"the noise rate must lie in [0, 1), got {noise_rate}")
    if not 0 <= beta < 1:
        raise UserError(f"beta must lie in [0, 1), got {beta}")
    return max(1 - (1 + beta) * noise_rate, (1 - beta) * (1 - noise_rate))


def num_kept(
    kind: str,
    noise_rate: float | Sequence[float],
    class_sizes: Sequence[int],
    *,
    beta: float = 0.2,
    gamma_index: int = 1,
    counts: Literal["exact", "authors"] = "exact",
) -> np.ndarray:
    """How many samples of each given label to keep, [C].

    Args:
        kind: of the noise, as in datasets.noise (or the paper's "uniform" and "pairwise"). It says
            what part of each given label is wrong. "structured" (the CIFAR-10 map on balanced
            classes) and a ``noise_rate`` per class are *balanced* besides: with a_i = size x
            proportion, min(gamma min a, a_i) are kept, so that no class dominates.
        noise_rate: the kind's parameter r in [0, 1); or [C], the part of each given label that is
            wrong.
        class_sizes: [C]; uniform and pairwise noise: samples of each *true* class, as in the paper,
            of which (1 - eta) keep their label; otherwise: samples of each *given* label.
        gamma_index: picks gamma from 1, (1 + g) / 2 and g, where g = max a / min a.
        counts: "exact" arithmetic, rounded down; or "authors", whose floating-point numbers end one
            lower in places: of 4,500 at uniform noise 0.3, 3041 for 3042, and at 0.9, 683 for 684.

    Raises:
        ValueError: a rate outside [0, 1), an unknown kind, a class that is left empty.
    """
    sizes, num_classes = [int(size) for size in class_sizes], len(class_sizes)
    exact = counts == "exact"
    number = _fraction if exact else float
    beta = number(beta)
    if gamma_index not in (0, 1, 2):
        raise UserError(f"gamma_index must be 0, 1 or 2, got {gamma_index}")
    if np.ndim(noise_rate) == 0:
        kept_proportion(noise_rate)  # its range
        rate = number(noise_rate)
        if kind in (*INCLUSIVE, *EXCLUSIVE):
            wrong = rate * (1 - number(1) / num_classes) if kind in INCLUSIVE else rate
            return _no_class_empty([int(size * kept_proportion(wrong, beta)) for size in sizes])
        if kind != "structured" or num_classes != 10:
            raise UserError(
                f"what part of each label noise of kind {kind!r} makes wrong among {num_classes} classes is not "
                f"known from its rate: give a rate per class, [C]"
            )
        come_from = {label: source for source, label in CIFAR10_MAP.items()}
        rates = [
            0 if label not in come_from else rate if label in CIFAR10_MAP else rate / (1 + rate)
            for label in range(10)
        ]
    else:
        rates = [number(rate) for rate in noise_rate]
        if len(rates) != num_classes:
            raise UserError(
                f"noise_rate must be one number or one for each of the {num_classes} classes, got {len(rates)}"
            )
    clean = [size * kept_proportion(rate, beta) for size, rate in zip(sizes, rates, strict=True)]
    _no_class_empty([int(count) for count in clean])
    # the authors divide by 0.1, the size of their validation split, and multiply again
    scaled = clean if exact else [count / 0.1 for count in clean]
    largest = max(scaled) / min(scaled)
    limit = [1, (1 + largest) / 2, largest][gamma_index] * min(scaled)
    return _no_class_empty([int(min(limit if exact else 0.1 * limit, count)) for count in clean])


def select(
    mean_losses: np.ndarray, targets: np.ndarray, num_kept: Sequence[int], kappa: float = KAPPA
) -> Selection:
    """The num_kept[c] smallest losses of each given label c, all of a label that has fewer.

    Weights are exp(-kappa t), with t the loss scaled to [0, 1] by the smallest and largest of *all*
    samples of its label.

    Args:
        mean_losses: [N], finite.
        targets: [N], given labels in [0, C).
        num_kept: [C].

    Raises:
        ValueError: shapes that do not match, a loss that is not finite, kappa < 0, a class that is
            left empty.
    """
    mean_losses, targets = np.asarray(mean_losses, dtype=np.float64), np.asarray(targets)
    if mean_losses.ndim != 1 or mean_losses.shape != targets.shape:
        raise UserError(
            f"mean_losses and targets must be [N] both, got {list(mean_losses.shape)} and {list(targets.shape)}"
        )
    if not np.isfinite(mean_losses).all():
        raise UserError(
            f"{(~np.isfinite(mean_losses)).sum()} of {len(mean_losses)} losses are not finite"
        )
    if kappa < 0:
        raise UserError(f"kappa must be at least 0, got {kappa}")
    order = np.argsort(mean_losses, kind="stable")
    index, weight = [], []
    for label, count in enumerate(num_kept):
        members = order[targets[order] == label]
        if min(len(members), count) < 1:
            raise UserError(
                f"class {label} is left empty: {len(members)} samples have this label, {count} are to be kept"
            )
        low, high = mean_losses[members[0]], mean_losses[members[-1]]
        kept = members[:count]
        index.append(kept)
        weight.append(
            np.exp(-kappa * (mean_losses[kept] - low) / (high - low if high > low else 1))
        )
    return Selection(np.concatenate(index), np.concatenate(weight))


def rank_losses(history: np.ndarray, criterion: str) -> np.ndarray:
    """One number a sample, [N], out of its recorded losses [E, N].

    Args:
        criterion: "mean", over all epochs; "mean:<k>", over the first k; "epoch:<e>", the loss of
            that epoch, from 0.

    Raises:
        ValueError: an unknown criterion, or epochs beyond the recorded ones.
    """
    name, _, number = criterion.partition(":")
    if criterion != "mean" and (name not in ("mean", "epoch") or not number.isdecimal()):
        raise UserError(f"criterion must be mean, mean:<k> or epoch:<e>, got {criterion!r}")
    total = len(history)
    epochs = (
        slice(int(number), int(number) + 1)
        if name == "epoch"
        else slice(0, int(number) if number else total)
    )
    if not 0 <= epochs.start < epochs.stop <= total:
        raise UserError(
            f"criterion {criterion} asks for epochs that are not among the {total} recorded ones"
        )
    return np.mean(history[epochs], axis=0, dtype=np.float64)


def make_selection(
    noise: Noise,
    rows: np.ndarray,
    *,
    history: str | None = None,
    criterion: str = "mean",
    per: Literal["class", "global"] = "class",
    noise_rate: float | Literal["estimate"] | None = None,
    keep_fraction: float | None = None,
    beta: float = 0.2,
    gamma_index: int = 1,
    kappa: float = KAPPA,
    counts: Literal["exact", "authors"] = "exact",
) -> Selection:
    """The selection of a run among ``rows``, those not held out, from the losses that another run
    recorded on the same labels.

    Args:
        history: ``losses.npy`` in the directory of a run with ``record_losses: true``.
        criterion: as for ``rank_losses``.
        per: whether the smallest losses are taken class by class, or of all samples together, as
            always in regression.
        noise_rate: the part of the given labels that is wrong, if you know it; "estimate": see
            ``estimate_noise_rate``; null: known from the injected noise, as in the paper (an
            oracle).
        keep_fraction: keep this part of each label, instead of what follows from the noise rate.
        beta, gamma_index, counts: as for ``num_kept``.
        kappa: as for ``select``.

    Raises:
        FileNotFoundError: no such history, or not in a run's directory.
        ValueError: a history of other labels or another validation split, too short or damaged;
            rates out of range; null where the true labels are not known; a class left empty.
    """
    rows = np.sort(rows)
    recorded = read_history(history, noise, rows)
    losses = rank_losses(recorded, criterion)
    never = np.isnan(losses[rows])
    never[never] = np.isnan(recorded[:, rows[never]]).all(axis=0)
    if never.mean() <= 0.01:  # images that could not be read
        rows = rows[~never]
    ranked, groups = losses[rows], noise.groups[rows]
    if not np.isfinite(ranked).all():
        raise UserError(
            f"{history} lacks epochs that criterion {criterion} asks for, of some samples or of all: has the run "
            f"that records it finished, and with this validation split? Run its command again, or use mean:<k>"
        )
    kept, rate, source = how_many(
        ranked,
        noise,
        rows,
        noise_rate=noise_rate,
        keep_fraction=keep_fraction,
        beta=beta,
        gamma_index=gamma_index,
        counts=counts,
    )
    per = per if noise.num_classes else "global"
    chosen = (
        select(ranked, groups, kept, kappa)
        if per == "class"
        else select(ranked, np.zeros_like(groups), [kept.sum()], kappa)
    )
    index = rows[chosen.index]
    counted = _no_class_empty(np.bincount(noise.groups[index], minlength=len(kept)))
    report = {
        "criterion": criterion,
        "per": per,
        "noise_rate": rate,
        "noise_rate_is": source,
        "kept": len(index),
        "of": len(rows),
        "counts": counted.tolist(),
    }
    if noise.corrupted is not None:
        report |= quality(index, rows, noise)
    return Selection(index, chosen.weight, losses, report)


def how_many(
    ranked: np.ndarray,
    noise: Noise,
    rows: np.ndarray,
    *,
    noise_rate: float | str | None = None,
    keep_fraction: float | None = None,
    beta: float = 0.2,
    gamma_index: int = 1,
    counts: str = "exact",
) -> tuple[np.ndarray, float | list[float] | None, str]:
    """How many samples to keep of each given label [C]; the part that is wrong; and where that is
    known from.

    Args:
        ranked: the ranked losses of ``rows``, for an estimate. The others as for
            ``make_selection``, whose errors are these.
    """
    num_groups = noise.num_classes or 1
    given_sizes = np.bincount(noise.groups[rows], minlength=num_groups)
    options = {"beta": beta, "gamma_index": gamma_index, "counts": counts}
    if keep_fraction is not None:
        if noise_rate is not None:
            raise UserError(
                "keep_fraction says how many are kept, and so does noise_rate: give one of them"
            )
        if not 0 < keep_fraction <= 1:
            raise UserError(f"keep_fraction must lie in (0, 1], got {keep_fraction}")
        return (
            _no_class_empty([int(_fraction(keep_fraction) * int(size)) for size in given_sizes]),
            None,
            "not used",
        )
    if noise_rate is not None:
        rate = estimate_noise_rate(ranked) if noise_rate == "estimate" else noise_rate
        return (
            num_kept("symmetric", rate, given_sizes, **options),
            rate,
            "estimated" if noise_rate == "estimate" else "given",
        )
    if noise.corrupted is None:
        raise UserError(
            "noise_rate=null means that of the injected noise, and here the true labels are not known: set "
            'dataset.selection.noise_rate to a number or to "estimate", or set dataset.selection.keep_fraction'
        )
    came_noisy = noise.kind == "none" and noise.corrupted.any()
    if noise.kind in (*INCLUSIVE, *EXCLUSIVE) and noise.num_classes and not came_noisy:
        rate = noise.fraction * (1 - 1 / num_groups) if noise.kind in INCLUSIVE else noise.fraction
        true_sizes = np.bincount(noise.true[rows], minlength=num_groups)
        return num_kept(noise.kind, noise.fraction, true_sizes, **options), rate, "oracle"
    if noise.kind == "structured":
        return (
            num_kept(noise.kind, noise.fraction, given_sizes, **options),
            noise.fraction,
            "oracle",
        )
    wrong = np.bincount(
        noise.groups[rows][noise.corrupted[rows]], minlength=num_groups
    )  # no formula: counted
    rates = [
        Fraction(int(part), max(int(size), 1))
        for part, size in zip(wrong, given_sizes, strict=True)
    ]
    return (
        num_kept(noise.kind, rates, given_sizes, **options),
        [float(rate) for rate in rates],
        "oracle",
    )


def estimate_noise_rate(mean_losses: np.ndarray) -> float:
    """The part of the samples [N] that belongs to the upper of two Gaussians, fitted to the
    logarithm of their mean losses.

    The lowest and highest 2.5 % are clipped before: losses have a long tail, which would get a
    Gaussian of its own. There are always two groups, so that clean labels are not found to be
    clean; look at the figure of ``python -m datasets.selection`` where the truth is known, or at
    samples.png, before trusting it.
    """
    logarithm = np.log(np.maximum(mean_losses, 1e-12))
    return float(flag(logarithm.clip(*np.percentile(logarithm, [2.5, 97.5]))).mean())


def quality(index: np.ndarray, rows: np.ndarray, noise: Noise) -> dict:
    """Precision, how many of the selected labels are correct, and recall, how many of the correct
    ones are selected.

    Overall and per given label ([C]; None where there is none to count).
    """
    correct = ~noise.corrupted
    selected, right, found = (
        np.bincount(noise.groups[part], minlength=noise.num_classes or 1)
        for part in (index, rows[correct[rows]], index[correct[index]])
    )
    return {
        "precision": found.sum() / selected.sum(),
        "recall": found.sum() / max(right.sum(), 1),
        "precision_per_class": [
            hit / count if count else None for hit, count in zip(found, selected, strict=True)
        ],
        "recall_per_class": [
            hit / count if count else None for hit, count in zip(found, right, strict=True)
        ],
    }


def read_noise(directory: Path) -> Noise:
    """The labels that the run of this directory trains on.

    Raises FileNotFoundError or ValueError where that cannot be read.
    """
    for name in ("noise.npz", "config.yaml"):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory} has no {name}, so it is not the directory of a run, whose labels it says"
            )
    noise = yaml.safe_load((directory / "config.yaml").read_text())["noise"]
    try:
        with np.load(directory / "noise.npz") as stored:
            return Noise(
                stored["given"],
                stored["true"],
                stored["transition"],
                str(stored["sha256"]),
                noise["kind"],
                noise["fraction"],
            )
    except Exception as error:  # of NumPy, zipfile or zlib, as the damage may be
        raise UserError(f"{directory}/noise.npz cannot be read ({error})") from None


def read_history(path: str | None, noise: Noise, rows: np.ndarray | None = None) -> np.ndarray:
    """The recorded losses [E, N], memory-mapped, of a run with the same labels, of which ``rows``
    were trained on.

    Raises as make_selection.
    """
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no history {path}: it is losses.npy of a run with record_losses=true"
        )
    directory = Path(path).parent
    recorded = read_noise(directory)
    try:
        history = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    if history.ndim != 2 or history.dtype.kind != "f" or len(history) == 0:
        raise UserError(
            f"{path} must hold losses [E, N], got {history.dtype} {list(history.shape)}"
        )
    if history.shape[1] != len(noise.given) or recorded.sha256 != noise.sha256:
        config = yaml.safe_load((directory / "config.yaml").read_text())
        theirs = config["noise"]
        raise UserError(
            f"{path} was recorded with other labels: dataset {config['dataset']['name']}, {history.shape[1]} "
            f"samples, noise {theirs['kind']} {theirs['fraction']}, noise.seed {theirs['seed']}; this run has "
            f"{len(noise.given)} samples, noise {noise.kind} {noise.fraction}. Use the same dataset, noise and "
            f"noise.seed in both"
        )
    others = [] if rows is None else np.setdiff1d(np.arange(history.shape[1]), rows)
    if np.isfinite(history[0, others]).any():
        raise UserError(
            f"{path} was recorded with another validation split: use the same validation.fraction, "
            f"validation.clean and noise.seed in both runs"
        )
    return history


def _fraction(number):
    """0.3 as 3/10, which a float only comes near."""
    return number if isinstance(number, Fraction) else Fraction(repr(float(number)))


def _no_class_empty(counts):
    empty = [label for label, count in enumerate(counts) if count < 1]
    if empty:
        raise UserError(
            f"nothing would be kept of class {', '.join(map(str, empty[:10]))}: keep more, or merge small classes"
        )
    return np.asarray(counts, dtype=np.int64)


def compare(
    history: np.ndarray, noise: Noise, rows: np.ndarray, kept: Sequence[int]
) -> pd.DataFrame:
    """What the two criteria select after each epoch: a row for ``epoch:<e>`` (vanilla) and one for
    ``mean:<e + 1>`` (RSL).

    Args:
        kept: how many of each given label, [C].
    """
    groups, total, table = noise.groups[rows], np.zeros(len(rows)), []
    for epoch, losses in enumerate(history):
        total += losses[rows]
        for rule, number, ranked in (
            ("epoch", epoch, losses[rows]),
            ("mean", epoch + 1, total / (epoch + 1)),
        ):
            index = rows[select(ranked, groups, kept).index]
            table.append(
                {"criterion": f"{rule}:{number}", "rule": rule, "epoch": epoch}
                | quality(index, rows, noise)
            )
    return pd.DataFrame(table)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, help="directory of a run that recorded its losses, or selects by them"
    )
    parser.add_argument(
        "--figure", type=Path, help="a .png, .svg or .pdf to draw; <run>/selection.png unless given"
    )
    options = parser.parse_args(arguments)
    try:
        noise = read_noise(options.run)
        chosen = (
            yaml.safe_load((options.run / "config.yaml").read_text())["dataset"].get("selection")
            or {}
        )
        path = chosen.get("history") or options.run / "losses.npy"
        history = read_history(path, noise)
        mean_loss = rank_losses(history, "mean")
        rows = np.flatnonzero(np.isfinite(history[0]))
        if not len(rows) or not np.isfinite(history[-1, rows]).all():
            raise UserError(f"{path} is not complete: run the command that records it again")
        if noise.corrupted is None:
            raise UserError(
                f"the true labels of {options.run} are not known, so there is nothing to compare a selection with"
            )
        if chosen:  # as many of each label as that run has selected
            with np.load(options.run / "selection.npz") as stored:
                kept = stored["counts"].astype(int)
        else:
            kept, *_ = how_many(mean_loss[rows], noise, rows)
        table = compare(history, noise, rows, kept)
        figure = options.figure or options.run / "selection.png"
        draw_selection(figure, mean_loss[rows], noise.groups[rows], noise.corrupted[rows], table)
    except (ValueError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    vanilla = table[table.rule == "epoch"]
    best, last = vanilla.precision.idxmax(), vanilla.index[-1]
    rows_shown = {
        "mean of all epochs (RSL)": table.index[-1],
        f"vanilla, its best epoch ({vanilla.epoch[best]})": best,
        f"vanilla, the last epoch ({vanilla.epoch[last]})": last,
    }
    shown = pd.DataFrame(
        {
            name: [table.precision[row], table.recall[row], min(table.precision_per_class[row])]
            for name, row in rows_shown.items()
        },
        index=["precision", "recall", "lowest precision of a class"],
    )
    print(f"{int(kept.sum())} of {len(rows)} samples kept, {kept.min()} to {kept.max()} of a label")
    print(shown.T.to_string(float_format=lambda value: f"{value:.4f}"))
    print(f"drawn: {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
