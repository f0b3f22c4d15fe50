"""Distillation from a network that trusted samples have taught (Li et al., ICCV 2017)."""

import csv
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .base import Predict, SampleLoss, check_classification, check_index
from .errors import UserError, check_interval
from .task import full_precision, one_hot

SMALLEST = 1e-38
SCORE_DECAY = 0.9


class Teacher(SampleLoss):
    """The task loss; after the last epoch, its predictions are labels for another run.

    With ``trusted.train=only`` it is the teacher of Distillation. Samples that it does not predict
    for keep their own label. Classification only.

    Args:
        task_loss: cross_entropy.
        num_samples: N.
        num_outputs: C.
        given: labels [N].
        epochs: of the whole training; predictions are those after the last.

    State: the predictions, 4 * C bytes per sample.

    Raises UserError for a regression task loss.
    """

    takes_soft_targets = True
    follows_epochs = True

    def __init__(
        self, task_loss: Callable, num_samples: int, num_outputs: int, given: Tensor, epochs: int
    ):
        super().__init__(task_loss)
        check_classification("Teacher", task_loss)
        self.epochs = epochs
        self.register_buffer("predictions", one_hot(given, num_outputs))

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return self.task_loss(output, target)

    def end_epoch(self, predict: Predict):
        if self.epoch + 1 == self.epochs:
            output, _, index = predict()
            predicted = output.float().softmax(1).to(self.predictions.device)
            self.predictions.index_copy_(0, index.to(self.predictions.device), predicted)

    def labels(self) -> Tensor:
        """The probabilities [N, C]."""
        return self.predictions


class Distillation(SampleLoss):
    """Cross-entropy with a mixture of the given label and what a teacher says.

    With the given label y, the teacher's probabilities p and one-hot labels e_c (arXiv 1703.02391):

        s  = p^(1/T) / sum p^(1/T)               softmax(z / T) of the teacher's logits z
        s' = (1 - beta) s + beta s G             G: rows say which classes are related
        l  = cross-entropy(output, lam e_y + (1 - lam) s')

    The teacher is a run on trusted samples alone, ``Teacher`` with ``trusted.train=only``, and its
    predictions come as ``targets=<its run>/labels.npz``. Classification only.

    Args:
        task_loss: cross_entropy.
        num_outputs: C.
        given: labels [N].
        lam: the part of the given label, in [0, 1].
        temperature: T > 0.
        beta: in [0, 1]; above 0 only with a graph.
        graph: .csv, .npy or .npz (the array ``graph``) with G [C, C]: rows that sum to 1, and zeros
            on the diagonal. The paper has one of DBpedia; without one, the rows of a confusion
            matrix of the teacher may do.

    State: of each sample its given label, and for the score a moving average of the cross-entropy
    of that, 12 bytes per sample.

    Confirmed, by notes on the paper: a teacher trained on the small clean set, a student trained on
    the interpolation of given labels and its predictions, with one parameter for their balance, and
    a graph that "does not improve significantly". Our choice: T, the step along the graph, lam =
    0.3. From memory: if the errors of both are independent and 0 in the mean, the best lam is
    R_s / (R_s + R_y), R_s and R_y being the mean squared errors of the teacher and of the label.

    Raises:
        UserError: a regression task loss, an argument out of range, no targets of a teacher, a
            graph that cannot be read or is none.
        IndexError: on the CPU, an index outside [0, N).
    """

    takes_soft_targets = True
    needs_soft_targets = True

    def __init__(
        self,
        task_loss: Callable,
        num_outputs: int,
        given: Tensor,
        *,
        lam: float = 0.3,
        temperature: float = 1.0,
        beta: float = 0.0,
        graph: str | None = None,
    ):
        super().__init__(task_loss)
        check_classification("Distillation", task_loss)
        for name, value, interval in (
            ("lam", lam, "[0, 1]"),
            ("temperature", temperature, "(0, inf)"),
            ("beta", beta, "[0, 1]"),
        ):
            check_interval(name, value, interval)
        if (beta > 0) != (graph is not None):
            raise UserError(
                f"loss.beta > 0 and loss.graph=<file> go together, got beta={beta} and "
                f"graph={graph}"
            )
        self.num_outputs, self.lam, self.temperature = num_outputs, lam, temperature
        self.beta = beta
        matrix = None if graph is None else read_graph(graph, num_outputs).float()
        self.register_buffer("graph", matrix)
        self.register_buffer("given", given.to(torch.int64, copy=True))
        self.register_buffer("score", torch.zeros(len(given)))

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        check_index(self, index, target, len(self.given))
        output = full_precision(output)
        if not target.is_floating_point():  # of a teacher that is certain
            target = one_hot(target, self.num_outputs)
        given = self.given[index]
        if self.training:
            newest = self.task_loss(output.detach(), given).to(self.score.dtype)
            average = torch.lerp(newest, self.score[index], SCORE_DECAY)
            self.score.index_copy_(0, index, average)
        return self.task_loss(output, self.mixture(target.to(output.dtype), given))

    def mixture(self, probabilities: Tensor, given: Tensor) -> Tensor:
        """What the student learns [B, C], from the teacher's [B, C] and given labels [B]."""
        soft = (probabilities.clamp_min(SMALLEST).log() / self.temperature).softmax(1)
        if self.graph is not None:
            with torch.autocast(soft.device.type, enabled=False):  # it would round the product
                related = soft @ self.graph.to(soft.dtype)
            soft = torch.lerp(soft, related, self.beta)
        return torch.lerp(soft, one_hot(given, self.num_outputs, soft.dtype), self.lam)

    def sample_score(self) -> Tensor:
        """The moving average of the cross-entropy of the given label, [N]; 0 if never drawn."""
        return self.score


def read_graph(path: str, num_outputs: int) -> Tensor:
    """G [C, C] of a file. Raises UserError if it cannot be read, or is none."""
    if Path(path).suffix not in (".npy", ".npz", ".csv"):
        raise UserError(f"graph must be the path of a .npy, .npz or .csv file, got {path!r}")
    if not Path(path).is_file():
        raise UserError(f"graph={path}: there is no such file")
    try:
        import numpy as np

        if path.endswith(".csv"):
            with open(path, newline="", encoding="utf-8-sig") as file:
                matrix = np.array([row for row in csv.reader(file) if row], np.float64)
        else:
            with open(path, "rb") as file:
                stored = np.load(file)  # allow_pickle is off
                matrix = stored if path.endswith(".npy") else stored["graph"]
        graph = torch.from_numpy(matrix.astype(np.float64))
    except Exception as error:  # of zipfile, csv or NumPy, as the damage may be
        raise UserError(f"graph={path} cannot be read as a matrix of numbers ({error})") from None
    expected = f"graph={path} must be [{num_outputs}, {num_outputs}]"
    if list(graph.shape) != [num_outputs, num_outputs]:
        raise UserError(f"{expected}, got {list(graph.shape)}")
    sums = (graph.sum(1) - 1).abs()
    if not (graph >= 0).all() or graph.diagonal().any() or not (sums <= 1e-4).all():
        raise UserError(
            f"{expected}, of numbers >= 0, with rows that sum to 1 and zeros on the diagonal"
        )
    return graph
