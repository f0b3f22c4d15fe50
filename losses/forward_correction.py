"""Forward loss correction.

What the network says of the true label is compared with the given one through the probabilities of
confusing them (Patrini et al., CVPR 2017).
"""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .base import Predict, SampleLoss, check_classification, check_index
from .errors import UserError, check_interval
from .task import full_precision

SMALLEST = torch.finfo(torch.float32).tiny  # stands for a probability of 0 under a logarithm


class ForwardCorrection(SampleLoss):
    """-log (T^T p)_y: the cross-entropy of the given label y, which T says what it may come from.

    p = softmax(output) is what the network says of the *true* label, [C], and T_ij the probability
    that a sample of class i is given the label j (arXiv 1609.03683):

        loss = -log sum_i p_i T_iy

    computed from log p and log T. With T = 1 it is cross-entropy. If T is that of the noise, its
    minimiser is that of cross-entropy with true labels.

    An estimate of T needs a network that has learned what is *given*: the method trains with plain
    cross-entropy for ``estimate_epochs`` epochs, looks at its predictions p for all training
    samples, and sets

        T_ij = p_j(x^i) / sum_j p_j(x^i)     x^i: the sample whose p_i is the largest of those below
                                             the percentile of p_i over all samples

    and goes on with that T. Classification only.

    Args:
        task_loss: cross_entropy.
        num_samples: N.
        num_outputs: C.
        noise_transition: T of the labels of this run, [C, C]; None if that is not known. The row of
            a class without samples may be zero. Only read if transition is "known".
        epochs: of the whole training.
        transition: "known", an oracle: T counted in the true and the given labels; "estimate"; or
            the path of a file with T: .npy, .npz (the array ``transition``) or .csv without a head.
        estimate_epochs: how long "estimate" trains before it, in [1, epochs).
        percentile: of "estimate", in [0, 100]; 100: x^i has the largest p_i. The authors take 97,
            and 100 on CIFAR-100: each class should be well more than 100 - percentile percent of
            the samples.

    State: log T, [C, C]; and for the score 4 bytes per sample.

    Deviations from the authors' code (github.com/giorgiop/loss-correction): 1. That trains a new
    network with T, on a network that was chosen by the loss on noisy held-out samples; here the
    same one goes on. 2. That sets the p_i from the percentile on to 0 in place, which falsifies
    rows of T that are read later; here p stays. 3. There p is clipped to [1e-7, 1 - 1e-7]; here a
    T_ij of 0 counts as 1e-38.

    Raises:
        UserError: a regression task loss; a T that is not known, cannot be read, has another shape,
            a negative entry, or a row that does not sum to 1; an argument out of range.
        IndexError: on the CPU, an index outside [0, num_samples).
    """

    def __init__(
        self,
        task_loss: Callable,
        num_samples: int,
        num_outputs: int,
        noise_transition: Tensor | None,
        epochs: int,
        *,
        transition: str = "known",
        estimate_epochs: int = 20,
        percentile: float = 97.0,
    ):
        super().__init__(task_loss)
        check_classification("ForwardCorrection", task_loss)
        if not 0 <= percentile <= 100:
            raise UserError(f"percentile must lie in [0, 100], got {percentile}")
        estimates = transition == "estimate"
        if not estimates:
            check_interval("estimate_epochs", estimate_epochs, "[1, inf)")
        if estimates and not 1 <= estimate_epochs < epochs:
            raise UserError(
                f"estimate_epochs must lie in [1, {epochs}), the epochs of the training, so that "
                f"some are left for the corrected loss; got {estimate_epochs}"
            )
        if estimates:
            matrix = torch.eye(num_outputs)
        elif transition == "known":
            matrix = _known(noise_transition)
        else:
            matrix = read_transition(transition)
        check_transition(matrix, num_outputs, transition)
        self.num_samples, self.percentile = num_samples, percentile
        self.estimate_epochs = estimate_epochs if estimates else None
        self.follows_epochs = estimates
        self.register_buffer("log_transition", matrix.float().clamp_min(SMALLEST).log())
        self.register_buffer("score", torch.zeros(num_samples))

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        check_index(self, index, target, self.num_samples)
        output = full_precision(output)
        # of each class i: log of the probability that it is the true one, and y the given one
        log_joint = output.log_softmax(1) + self.log_transition.t()[target].to(output.dtype)
        losses = -log_joint.logsumexp(1)
        if self.training:
            with torch.no_grad():
                own = log_joint.gather(1, target.unsqueeze(1)).squeeze(1)
                self.score.index_copy_(0, index, (-losses - own).to(self.score.dtype))
        return losses

    def end_epoch(self, predict: Predict):
        if self.estimate_epochs is None or self.epoch + 1 != self.estimate_epochs:
            return
        output, _, index = predict()
        probabilities = output[index.argsort()].double().softmax(1)  # in any number of processes
        matrix = estimate_transition(probabilities, self.percentile)
        self.log_transition.copy_(matrix.float().clamp_min(SMALLEST).log())

    @property
    def transition(self) -> Tensor:
        """T, [C, C], as it is at present."""
        return self.log_transition.exp()

    def sample_score(self) -> Tensor:
        """-log of the probability, given p and T, that the given label is the true one, [N].

        As it was when each sample was last drawn.
        """
        return self.score


def estimate_transition(probabilities: Tensor, percentile: float) -> Tensor:
    """T [C, C] from predictions [N, C]: row i is that of a sample that is probably of class i.

    Of all samples whose p_i lies below the value at the rank ceil(percentile / 100 (N - 1)) from
    the smallest, it is the one with the largest p_i; that of the lowest index if several have it.
    If none lies below, or if percentile is 100, it is the one with the largest p_i of all.
    """
    below = probabilities
    if percentile < 100:
        thresholds = _percentile(probabilities, percentile)
        below = torch.where(probabilities < thresholds, probabilities, -1.0)
        below = torch.where((below < 0).all(0), probabilities, below)
    rows = probabilities[below.argmax(0)]
    return rows / rows.sum(1, keepdim=True)


def _percentile(values, percentile):
    """Of each column, the smallest entry that at least that part of the others do not exceed."""
    position = math.ceil(round(percentile / 100 * (len(values) - 1), 9))
    return values.sort(0).values[position]


def read_transition(path: str) -> Tensor:
    """The matrix in a file: .npy, .npz (the array ``transition``) or .csv, numbers alone.

    Raises UserError if it cannot be read as numbers.
    """
    hint = 'transition must be "known", "estimate" or the path of a .npy, .npz or .csv file'
    if Path(path).suffix not in (".npy", ".npz", ".csv"):
        raise UserError(f"{hint}, got {path!r}")
    if not Path(path).is_file():
        raise UserError(f"transition={path}: there is no such file")
    try:
        import numpy as np  # by nothing else here: PyTorch alone is required

        if path.endswith(".csv"):
            with open(path, newline="", encoding="utf-8-sig") as file:  # a mark of spreadsheets
                matrix = np.array([row for row in csv.reader(file) if row], np.float64)
        else:
            with open(path, "rb") as file:
                stored = np.load(file)  # allow_pickle is off: a matrix cannot run code
                matrix = stored if path.endswith(".npy") else stored["transition"]
        return torch.from_numpy(matrix.astype(np.float64))
    except Exception as error:  # of zipfile, csv or NumPy, as the damage may be
        raise UserError(
            f"transition={path} cannot be read as a matrix of numbers ({error})"
        ) from None


def check_transition(matrix: Tensor, num_outputs: int, source: str):
    """Raise UserError if the matrix is not [C, C] with rows that are distributions."""
    expected = f"transition={source} must be [{num_outputs}, {num_outputs}], one row a true class"
    if list(matrix.shape) != [num_outputs, num_outputs]:
        raise UserError(f"{expected}, got {list(matrix.shape)}")
    if not (matrix.isfinite() & (matrix >= 0)).all():
        raise UserError(
            f"{expected}, of probabilities; it has entries that are negative or no numbers"
        )
    sums = matrix.sum(1)
    wrong = (sums - 1).abs() > 1e-4
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise UserError(f"{expected}, that sums to 1; row {row} sums to {float(sums[row]):.6g}")


def _known(noise_transition):
    if noise_transition is None:
        raise UserError(
            "transition=known needs true labels, which are not known here: set "
            "loss.transition=estimate, or the path of a file with the matrix"
        )
    empty = noise_transition.sum(1) == 0  # no sample is of that class
    return torch.where(empty.unsqueeze(1), torch.eye(len(empty)).double(), noise_transition)
