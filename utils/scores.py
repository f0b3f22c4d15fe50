"""Scores of how suspicious a label is, by name: which there are, and what they are made from.

While a sample is trained on (``TrainingDynamics``: in training mode, augmented, as it is drawn;
under these names in samples.npz), or from ``losses.npy`` and ``margins.npy`` of a run with
``record_losses`` (in evaluation mode, after each epoch; names that end in ``_recorded``). p is the
probability of the given label:

    aum          mean margin: logit of the given label minus the largest other (Pleiss et al.,
                 NeurIPS 2020, arXiv 2001.10528)
    confidence   mean p; variability: standard deviation of p; correctness: how often the given
                 label is predicted (Swayamdipta et al., EMNLP 2020, arXiv 2009.10795)
    aleatoric    mean p (1 - p) (Data-IQ: Seedat et al., NeurIPS 2022, arXiv 2210.13043)
    forgetting   how often the given label was predicted and the next time was not (Toneva et al.,
                 ICLR 2019, arXiv 1812.05159). A sample that was never predicted has, there,
                 infinitely many; here as many as it was seen times, which is more than any other.
    mean_loss    mean task loss

From predictions of a network that was not trained on the sample (``validation.folds``):

    self_confidence      p
    normalised_margin    p minus the largest other probability
    confident_learning   1 if the sample is off the diagonal of the confident joint, else 0: of the
                         classes whose probability reaches the mean self-confidence of the samples
                         given that class, the most probable one is not the given one (Northcutt
                         et al., JAIR 2021, arXiv 1911.00068)

In a regression there is mean_loss alone, and the loss itself.
"""

import numpy as np

# Whether a larger value is more suspicious. Of variability and aleatoric neither end is where wrong
# labels are: the large values are those of ambiguous samples.
LARGER_IS_WORSE = {
    "mean_loss": True,
    "aum": False,
    "confidence": False,
    "variability": True,
    "correctness": False,
    "aleatoric": True,
    "forgetting": True,
    "self_confidence": False,
    "normalised_margin": False,
    "confident_learning": True,
}
OUT_OF_SAMPLE = ("self_confidence", "normalised_margin", "confident_learning")
IN_TRAINING = tuple(name for name in LARGER_IS_WORSE if name not in OUT_OF_SAMPLE)
RECORDED = tuple(f"{name}_recorded" for name in IN_TRAINING)
NAMES = (*IN_TRAINING, *RECORDED, *OUT_OF_SAMPLE)
BLOCK = 100_000  # samples whose recordings are summed up together


def suspicion(name: str, scores: dict[str, np.ndarray]) -> np.ndarray:
    """The score of this name [N], signed so that larger means more probably incorrect.

    Those that confident learning selects come first, and are in the order of self-confidence, as
    the rest are.
    """
    values = np.asarray(scores[name], np.float32)
    if name == "confident_learning":
        return values + 1 - scores["self_confidence"]
    return values if LARGER_IS_WORSE[name.removesuffix("_recorded")] else -values


def recorded(losses: np.ndarray, margins: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Scores [N] from losses [E, N] and margins [E, N]; in a regression there are no margins.

    An epoch of which a sample has no record (NaN) does not count; without any it has no score.
    """
    # what is made on the way takes 27 bytes for each epoch and sample
    blocks = [slice(start, start + BLOCK) for start in range(0, losses.shape[1], BLOCK)]
    parts = [
        _recorded(losses[:, block], None if margins is None else margins[:, block])
        for block in blocks
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _recorded(losses, margins):
    known = np.isfinite(losses)
    count = np.where(known.any(0), known.sum(0), np.nan)

    def mean(values):
        return np.where(known, values, 0).sum(0) / count

    made = {"mean_loss": mean(losses)}
    if margins is not None:
        chance = np.exp(-losses.astype(np.float64))  # of the given label: the loss is its entropy
        correct = known & (margins > 0)
        confidence = mean(chance)
        forgotten = (correct[:-1] & known[1:] & ~correct[1:]).sum(0)
        made |= {
            "aum": mean(margins),
            "confidence": confidence,
            "variability": np.sqrt(mean((chance - confidence) ** 2)),
            "correctness": mean(correct),
            "aleatoric": mean(chance * (1 - chance)),
            "forgetting": np.where(correct.any(0), forgotten, count),
        }
    return {f"{name}_recorded": values.astype(np.float32) for name, values in made.items()}


def out_of_sample(probabilities: np.ndarray, given: np.ndarray) -> dict[str, np.ndarray]:
    """Scores [N] from probabilities [N, C] by networks that were not trained on the sample.

    Args:
        given: [N], classes.
    """
    rows = np.arange(len(given))
    own = probabilities[rows, given]
    others = probabilities.copy()
    others[rows, given] = -np.inf
    thresholds = np.full(probabilities.shape[1], np.inf)  # of a class that nobody was given: none
    for label in np.unique(given):
        thresholds[label] = own[given == label].mean()
    confident = np.where(probabilities >= thresholds, probabilities, -np.inf)
    selected = np.isfinite(confident).any(1) & (confident.argmax(1) != given)
    return {
        "self_confidence": own.astype(np.float32),
        "normalised_margin": (own - others.max(1)).astype(np.float32),
        "confident_learning": selected.astype(np.float32),
    }


def quality(score: np.ndarray) -> np.ndarray:
    """How good each label is among these, [N] in [0, 1]: which part of them is more suspicious.

    Low is bad, as cleanlab has it: 0.02 is among the 2 % most suspicious. So samples of two parts
    can be merged whose scores cannot be compared, since one was trained on and the other was not;
    either is taken to hold as many wrong labels. Without a score (NaN) it is NaN.
    """
    from scipy.stats import rankdata

    known = np.isfinite(score)
    made = np.full(len(score), np.nan, np.float32)
    if known.any():
        made[known] = (rankdata(-score[known]) - 0.5) / known.sum()
    return made
