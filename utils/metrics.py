"""What is measured: while training, on the test set, and of the detection of incorrect labels."""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """100 where the largest logit [B, C] is that of the target [B], 0 elsewhere: [B], in percent."""
    return 100.0 * (output.argmax(1) == target)


def mae(output: Tensor, target: Tensor) -> Tensor:
    """|prediction - target|, [B]; its mean is the mean absolute error."""
    return (output.flatten() - target).abs()


METRICS = {"classification": accuracy, "regression": mae}


class TrainingRecord(nn.Module):
    """What one epoch of training said of the whole set and of every sample, kept on the device until it is asked for.

    The *weight* of a sample is how much harder it pulls at the model than under the task loss alone: the L1 norm of
    d loss / d output over that of d task loss / d output, which means the same for every method. Of a group it is the
    ratio of the sums.

    State, per sample: last loss, sum of losses over the epochs, the two norms: 16 bytes.
    """

    def __init__(self, num_samples: int, task_loss: Callable, metric: Callable):
        super().__init__()
        self.task_loss, self.metric = task_loss, metric
        for name, dtype in (("loss_sum", torch.float64), ("metric_sum", torch.float64), ("count", torch.int64)):
            self.register_buffer(name, torch.zeros((), dtype=dtype))
        self.register_buffer("first_bad", torch.tensor(-1))  # first step of the epoch with a non-finite loss
        self.register_buffer("seconds", torch.zeros((), dtype=torch.float64))
        for name in ("loss", "loss_total", "pull", "plain_pull"):
            self.register_buffer(name, torch.zeros(num_samples))

    def start_epoch(self):
        """Forget the sums of the epoch before."""
        for buffer in (self.loss_sum, self.metric_sum, self.count, self.seconds):
            buffer.zero_()
        self.first_bad.fill_(-1)

    def update(self, step: int, loss: Tensor, output: Tensor | None, batch):
        """Take in one batch, after its backward pass; ``output`` has its gradient retained, or is None. No host sync."""
        with torch.no_grad():
            size = len(batch.index)
            self.count += size
            self.loss_sum += size * loss.detach()
            self.first_bad = torch.where((self.first_bad < 0) & ~loss.isfinite(), step, self.first_bad)
            if output is None:
                return
            self.metric_sum += self.metric(output, batch.target).sum()
            self.pull[batch.index] = size * output.grad.abs().flatten(1).sum(1).float()
        detached = output.detach().float().requires_grad_()
        losses = self.task_loss(detached, batch.target)
        grad, = torch.autograd.grad(losses.sum(), detached)
        losses = losses.detach()
        self.loss[batch.index] = losses
        self.loss_total.index_add_(0, batch.index, losses)
        self.plain_pull[batch.index] = grad.abs().flatten(1).sum(1)

    def check_finite(self, epoch: int, loader):
        """Raise FloatingPointError naming epoch, step and samples of the first loss that was NaN or infinite. Syncs."""
        step = int(self.first_bad)
        if step >= 0:
            rows = loader.rows_of(step)
            losses = self.loss[torch.tensor(rows, device=self.loss.device)].cpu()
            bad = [row for row, finite in zip(rows, losses.isfinite().tolist(), strict=True) if not finite] or rows
            raise FloatingPointError(
                f"the loss is not finite in epoch {epoch}, step {step}; samples {', '.join(map(str, bad[:20]))}"
                f"{f' and {len(bad) - 20} more' if len(bad) > 20 else ''}. The last good checkpoint is untouched. "
                f"Look at these inputs, or lower optimizer.lr or the method's own rates")

    def mean_loss(self) -> float:
        """Mean loss of the epoch so far. Syncs."""
        return float(self.loss_sum / self.count)

    def summary(self, trained: np.ndarray, corrupted: np.ndarray | None) -> dict[str, float]:
        """The epoch in numbers, and where it is known which samples are corrupted [N], the weights of three groups."""
        seconds = float(self.seconds)
        row = {"train_loss": self.mean_loss(), "train_metric": float(self.metric_sum / self.count), "seconds": seconds,
               "images_per_second": int(self.count) / seconds}
        if corrupted is not None and self.plain_pull.any():
            loss, pull, plain = (buffer.cpu().numpy()[trained] for buffer in (self.loss, self.pull, self.plain_pull))
            for name, mask in easy_hard_incorrect(loss, corrupted[trained]).items():
                row[f"weight_{name}"] = float(pull[mask].sum() / plain[mask].sum()) if plain[mask].any() else float("nan")
        return row


def easy_hard_incorrect(loss: np.ndarray, corrupted: np.ndarray) -> dict[str, np.ndarray]:
    """Masks: incorrect labels; hard, the correct ones whose loss is in the top half of all; easy, the other correct ones."""
    top_half = loss >= np.median(loss)
    return {"easy": ~corrupted & ~top_half, "hard": ~corrupted & top_half, "incorrect": corrupted}


@torch.no_grad()
def predict(model: nn.Module, loader, autocast) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of the model in evaluation mode, with targets and indices, for all of a loader, on the CPU."""
    model.eval()
    parts = []
    for batch in loader:
        with autocast():
            output = model(batch.input)
        parts.append((output.float(), batch.target, batch.index))
    return tuple(torch.cat(part).cpu() for part in zip(*parts, strict=True))


def evaluate(model: nn.Module, loader, metric: Callable, autocast) -> float:
    """Mean of the metric over a loader, in evaluation mode."""
    output, target, _ = predict(model, loader, autocast)
    return float(metric(output, target).double().mean())


def by_rule(values: list[float], validated_on: list[float] | None, higher_is_better: bool) -> dict:
    """One test metric per epoch, under every rule by which papers choose the epoch.

    last; mean_last_5; best, chosen on the test set itself, which flatters; validated, at the best epoch of a held-out
    part of the training set (None without one). Of equal epochs the first. Every value None before the first epoch.
    """
    if not values:
        return dict.fromkeys(("last", "mean_last_5", "best", "best_epoch", "validated"))
    choose = np.argmax if higher_is_better else np.argmin
    best = int(choose(values))
    return {"last": values[-1], "mean_last_5": float(np.mean(values[-5:])), "best": values[best], "best_epoch": best,
            "validated": values[int(choose(validated_on))] if validated_on else None}


def sample_table(output: Tensor, target: Tensor, index: Tensor, *, task_loss: Callable, true: np.ndarray,
                 mean_loss: Tensor, score: Tensor | None) -> dict[str, np.ndarray]:
    """samples.npz: a row per training sample, by index.

    loss and predicted are those of the finished model, without augmentation; mean_loss is the mean training loss over all
    epochs (over the last ones only, a network that has learned the labels by heart tells nothing apart); score is the
    method's own, or mean_loss where it keeps none; true is -1 where it is not known.
    """
    order = index.argsort()
    output, target, index = output[order], target[order], index[order].numpy()
    mean_loss = mean_loss.cpu().numpy()[index]
    score = mean_loss if score is None else score.cpu().numpy()[index]
    predicted = output.argmax(1) if output.ndim == 2 and output.shape[1] > 1 else output.flatten()
    return {"index": index, "given": target.numpy(), "true": true[index], "loss": task_loss(output, target).numpy(),
            "mean_loss": mean_loss, "score": score, "predicted": predicted.numpy(), "flagged": flag(score)}


def detection(table: dict[str, np.ndarray]) -> dict:
    """How well incorrect labels are told from correct ones; every value None where the truth is unknown or all is one class.

    auroc and average_precision of the score; hard_vs_incorrect_auroc: the same among the samples whose loss is in the
    top half, where hard and incorrect ones meet; memorised_fraction: of the incorrect samples, how many are predicted as
    the wrong label they were given; precision and recall of the flag.
    """
    names = ("auroc", "average_precision", "hard_vs_incorrect_auroc", "memorised_fraction", "flag_precision", "flag_recall")
    given, score, corrupted = table["given"], table["score"], table["given"] != table["true"]
    if (table["true"] < 0).any() or corrupted.all() or not corrupted.any():
        return dict.fromkeys(names)
    top = table["loss"] >= np.median(table["loss"])
    mixed = corrupted[top].any() and not corrupted[top].all()
    values = (roc_auc_score(corrupted, score), average_precision_score(corrupted, score),
              roc_auc_score(corrupted[top], score[top]) if mixed else None,
              np.mean(table["predicted"][corrupted] == given[corrupted]),
              precision_score(corrupted, table["flagged"], zero_division=0), recall_score(corrupted, table["flagged"]))
    return {name: None if value is None else float(value) for name, value in zip(names, values, strict=True)}


def flag(score: np.ndarray) -> np.ndarray:
    """Which scores belong to the upper of two groups: a mixture of two Gaussians, cut where the upper one takes over.

    It always finds two groups, also where there is one; look at the distribution before trusting it.
    """
    if np.ptp(score) == 0:
        return np.zeros(len(score), bool)
    column = ((score - score.mean()) / score.std()).reshape(-1, 1)
    sample = np.random.default_rng(0).permutation(len(column))[:100_000]  # of a huge set, a part is enough to fit
    mixture = GaussianMixture(2, random_state=0, means_init=np.percentile(column, [10, 90]).reshape(-1, 1)).fit(column[sample])
    upper = int(np.argmax(mixture.means_))
    return (mixture.predict(column) == upper) & (column[:, 0] > mixture.means_[1 - upper, 0])
