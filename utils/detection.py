"""How well incorrect labels are told from correct ones. Needs no PyTorch: reports use it too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from utils.scores import quality

if TYPE_CHECKING:
    from torch import Tensor


def wrong_labels(given: np.ndarray, true: np.ndarray) -> np.ndarray | None:
    """Which given labels [N] are not the true ones.

    None if some of those are unknown: -1, or NaN if they are numbers to predict.
    """
    unknown = np.isnan(true) if true.dtype.kind == "f" else true < 0
    return None if unknown.any() else given != true


def top_half(loss: np.ndarray) -> np.ndarray:
    """Mask [N] of the larger half of the losses; of an odd number, the middle one belongs to it.

    Exactly half, also if many losses tie (e.g. at 0): ties are broken by a fixed random order,
    which has nothing to do with the order of the samples.
    """
    ties = np.random.default_rng(0).permutation(len(loss))
    mask = np.zeros(len(loss), bool)
    mask[np.lexsort((ties, loss))[len(loss) // 2 :]] = True
    return mask


def easy_hard_incorrect(loss: np.ndarray, corrupted: np.ndarray) -> dict[str, np.ndarray]:
    """Masks of three groups of samples.

    incorrect: the given label is wrong; hard: correct, and the loss is in the top half of all;
    easy: the other correct ones.
    """
    top = top_half(loss)
    return {"easy": ~corrupted & ~top, "hard": ~corrupted & top, "incorrect": corrupted}


def sample_table(
    predicted: dict[str, np.ndarray],
    true: np.ndarray,
    *,
    scores: dict[str, np.ndarray],
    score: np.ndarray,
) -> dict[str, np.ndarray]:
    """A row per sample, by index: samples.npz of those that are trained on.

    ``loss`` and what is predicted are those of the finished model, without augmentation. ``true``
    is -1, or in regression NaN, if it is not known.

    Args:
        predicted: the ``prediction_table`` of the samples.
        true: [N], of all training samples, as the others are.
        scores: those of ``utils.scores``, [N] each.
        score: [N], by which they are ranked: larger is more probably incorrect.
    """
    index = predicted["index"]
    columns = {name: values for name, values in predicted.items() if name not in FIRST}
    chosen = score[index]
    return {
        "index": index,
        "given": predicted["target"],
        "true": true[index],
        "loss": predicted["loss"],
        "mean_loss": scores["mean_loss"][index],
        "score": chosen,
        "predicted": predicted["predicted"],
        "flagged": flag(chosen),
        "quality": quality(chosen),
        **columns,
        **{name: values[index] for name, values in scores.items()},
    }


FIRST = ("index", "target", "loss", "predicted")  # of a prediction_table


def without_training(
    predicted: dict[str, np.ndarray], true: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """As ``sample_table``, of samples that the network was not trained on: the loss ranks them.

    Args:
        true: [N], by the index of the samples; None if it is not known.
    """
    target = predicted["target"]
    count = int(predicted["index"].max(initial=-1)) + 1
    if true is None:
        true = np.full(count, np.nan if target.dtype.kind == "f" else -1, target.dtype)
    scores = {"mean_loss": predicted["loss"]}
    if "given_probability" in predicted:
        scores["self_confidence"] = predicted["given_probability"]
    by_index = {name: np.full(count, np.nan, np.float32) for name in scores}
    for name, values in scores.items():
        by_index[name][predicted["index"]] = values
    return sample_table(predicted, true, scores=by_index, score=by_index["mean_loss"])


def merge(parts: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One table of several, as from ``sample_table``, by name: the most suspicious sample first.

    It has the columns that all of them have, and ``part``: the name, if the table has no such
    column itself. Parts are merged by quality, since scores of samples that were trained on and of
    others are not to be compared.
    """
    shared = set.intersection(*(set(table) for table in parts.values()))
    shared -= {"probabilities", "part"}
    table = {key: np.concatenate([part[key] for part in parts.values()]) for key in sorted(shared)}
    names = [part.get("part", np.full(len(part["index"]), name)) for name, part in parts.items()]
    table["part"] = np.concatenate(names).astype(str)
    # NaN, without a score, comes last; of one part alone the order is that of the score
    order = np.lexsort((-table["score"], table["quality"]))
    return {key: values[order] for key, values in table.items()}


NAMES = (
    "auroc",
    "average_precision",
    "hard_vs_incorrect_auroc",
    "memorised_fraction",
    "flag_precision",
    "flag_recall",
)
NAMES_OF_NUMBERS = (*NAMES, "large_change", "large_change_auroc")  # of a regression


def measure_detection(table: dict[str, np.ndarray]) -> dict[str, float | None]:
    """How well incorrect labels are told from correct ones.

    Every value is None if the truth is unknown, or all labels are of one kind. Samples without a
    score (NaN), whose images could not be read when losses were recorded, do not count.

    auroc, average_precision: of the score.
    hard_vs_incorrect_auroc: the same among the samples whose loss is in the top half, where hard
        and incorrect samples meet.
    memorised_fraction: of the incorrect samples, how many are predicted as the wrong label they
        were given.
    flag_precision, flag_recall: of the flag.

    In regression a label is incorrect if it was changed at all, and memorised if the prediction is
    nearer to the given than to the true one. Two more values: large_change, the standard deviation
    of the true labels, and large_change_auroc, for which only labels that were changed by more than
    that count as incorrect.

    Args:
        table: as from ``sample_table``.
    """
    scored = np.isfinite(table["score"])
    table = {key: values[scored] for key, values in table.items()}
    given, true, score, predicted = (table[key] for key in ("given", "true", "score", "predicted"))
    is_regression = true.dtype.kind == "f"
    corrupted = wrong_labels(given, true)
    if corrupted is None or corrupted.all() or not corrupted.any():
        return dict.fromkeys(NAMES_OF_NUMBERS if is_regression else NAMES)
    from sklearn.metrics import average_precision_score, precision_score, recall_score

    top, memorised = top_half(table["loss"]), predicted == given
    if is_regression:
        memorised = np.abs(predicted - given) < np.abs(predicted - true)
    values = {
        "auroc": _auroc(corrupted, score),
        "average_precision": average_precision_score(corrupted, score),
        "hard_vs_incorrect_auroc": _auroc(corrupted[top], score[top]),
        "memorised_fraction": memorised[corrupted].mean(),
        "flag_precision": precision_score(corrupted, table["flagged"], zero_division=0),
        "flag_recall": recall_score(corrupted, table["flagged"]),
    }
    if is_regression:
        values["large_change"] = true.std()
        values["large_change_auroc"] = _auroc(np.abs(given - true) > true.std(), score)
    return {name: None if value is None else float(value) for name, value in values.items()}


def measure_learning(table: dict[str, np.ndarray]) -> dict:
    """Whether a finished network has learned anything of its training labels.

    agreement: of predicted and given labels beyond chance, 1 at most: Cohen's kappa of classes; of
        numbers, the square of the correlation.
    p_value: how often as much agreement comes about if the given labels are permuted.
    order_p_value: how often a random order puts the incorrect labels as far in front as the score
        does (Mann-Whitney, one-sided); None if they are not known. A few incorrect labels far in
        front do not tell the order from chance, and are no cause for a warning.
    warning: None, or a sentence if one of these is no better than chance. What a network that has
        learned nothing suspects means nothing.

    Args:
        table: as from ``sample_table``.
    """
    given, predicted = table["given"], table["predicted"]
    rows = np.random.default_rng(0).permutation(len(given))[:LOOKED_AT]
    given, predicted = given[rows], predicted[rows]
    # A permutation leaves the shares of the classes as they are, so kappa grows with what agrees.
    agree = _squared_correlation if given.dtype.kind == "f" else _share_agreed
    agreed, generator = agree(given, predicted), np.random.default_rng(0)
    permuted = [agree(generator.permutation(given), predicted) for _ in range(PERMUTATIONS)]
    p_value = (1 + sum(value >= agreed for value in permuted)) / (1 + PERMUTATIONS)
    here = agreed if given.dtype.kind == "f" else _kappa(given, predicted)
    order, auroc = _order(table) or (None, None)
    warning = None
    if here < LITTLE or p_value > 0.01:
        warning = (
            f"the network predicts its training labels no better than chance (agreement beyond "
            f"chance {here:.3f}): it has learned nothing, and what it suspects means nothing. "
            f"Look at the learning rate, the number of epochs and curves.png"
        )
    elif order is not None and order > 0.01 and auroc < LITTLE_ORDER:
        warning = (
            "the order of the suspects is no better than chance: the labels that are known to be "
            f"wrong do not stand at its head (AUROC {auroc:.2f})"
        )
    return {"agreement": here, "p_value": p_value, "order_p_value": order, "warning": warning}


LITTLE = 0.02  # agreement beyond chance, of a network that has learned nothing worth a name
LITTLE_ORDER = 0.6  # AUROC of an order that is hardly one
LOOKED_AT, PERMUTATIONS = 20_000, 199


def _share_agreed(given, predicted):
    return float((given == predicted).mean())


def _kappa(given, predicted):
    """Cohen's kappa; that of scikit-learn fills a matrix of all pairs of classes."""
    classes, numbers = np.unique(np.concatenate([given, predicted]), return_inverse=True)
    counts = [np.bincount(part, minlength=len(classes)) for part in np.split(numbers, 2)]
    by_chance = float((counts[0] / len(given)) @ (counts[1] / len(given)))
    return (_share_agreed(given, predicted) - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0


def _squared_correlation(given, predicted):
    if np.ptp(given) == 0 or np.ptp(predicted) == 0:
        return 0.0
    correlation = float(np.corrcoef(given, predicted)[0, 1])
    return max(correlation, 0.0) ** 2


def _order(table):
    """The p-value of the order of the scores, and its AUROC; None if no wrong label is known."""
    scored = np.isfinite(table["score"])
    corrupted, score = wrong_labels(table["given"], table["true"]), table["score"][scored]
    corrupted = None if corrupted is None else corrupted[scored]
    if corrupted is None or corrupted.all() or not corrupted.any():
        return None
    from scipy.stats import mannwhitneyu

    test = mannwhitneyu(score[corrupted], score[~corrupted], alternative="greater")
    pairs = corrupted.sum() * (~corrupted).sum()
    return float(test.pvalue), float(test.statistic / pairs)


def measure_recovery(labels: Tensor | None, true: np.ndarray, rows: np.ndarray) -> dict | None:
    """How good the labels are that a method leaves: [N], or distributions [N, C].

    ``accuracy``, in percent, of the largest entry; of numbers, ``mae``. None if the method leaves
    no labels, or the truth is not known.

    Args:
        true: [N].
        rows: positions of the samples that were trained on.
    """
    if labels is None or wrong_labels(true, true) is None:
        return None
    made = labels.argmax(1) if labels.ndim == 2 else labels
    made = made.numpy(force=True)[rows]
    if true.dtype.kind == "f":
        return {"mae": float(np.abs(made - true[rows]).mean())}
    return {"accuracy": float(100 * (made == true[rows]).mean())}


def _auroc(positive, score):
    from sklearn.metrics import roc_auc_score

    return roc_auc_score(positive, score) if positive.any() and not positive.all() else None


def flag(score: np.ndarray) -> np.ndarray:
    """Which scores [N] belong to the upper of two groups.

    A mixture of two Gaussians is fitted, and cut where the upper one takes over. It always finds
    two groups, even if there is only one: look at the distribution before trusting it. A score
    that is not known (NaN) belongs to neither.
    """
    known = np.isfinite(score)
    if not known.all():
        flags = np.zeros(len(score), bool)
        flags[known] = flag(score[known])
        return flags
    if len(score) == 0 or np.ptp(score) == 0 or score.std() == 0:
        return np.zeros(len(score), bool)
    from sklearn.mixture import GaussianMixture

    column = ((score - score.mean()) / score.std()).reshape(-1, 1)
    order = np.random.default_rng(0).permutation(len(column))
    sample = column[order[:100_000]]  # of a huge set, a part is enough to fit
    means = np.percentile(column, [10, 90]).reshape(-1, 1)
    mixture = GaussianMixture(2, random_state=0, means_init=means).fit(sample)
    upper = int(np.argmax(mixture.means_))
    return (mixture.predict(column) == upper) & (column[:, 0] > mixture.means_[1 - upper, 0])
