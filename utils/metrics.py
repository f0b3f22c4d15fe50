"""What is measured: while training, on the test set, and of the detection of incorrect labels."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from utils.distributed import gather, world_size
from utils.statistics import wrong_labels


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """100 where the largest logit [B, C] is that of the target [B], 0 elsewhere.

    [B], in percent.
    """
    return 100.0 * (output.argmax(1) == target)


def mae(output: Tensor, target: Tensor) -> Tensor:
    """|prediction - target|, [B]; its mean is the mean absolute error."""
    return (output.flatten() - target).abs()


METRICS = {"classification": accuracy, "regression": mae}


def further_metrics(output: Tensor, target: Tensor, metric: Callable) -> dict[str, float]:
    """What is reported beside the mean of ``metric``: rmse and r2 of a regression; top5, in
    percent, of more than 10 classes.

    r2 is NaN where all targets are equal.
    """
    if metric is mae:
        output, target = output.flatten().double(), target.double()
        squares = (output - target).square().mean()
        spread = (target - target.mean()).square().mean()
        return {
            "rmse": float(squares.sqrt()),
            "r2": float(1 - squares / spread) if spread > 0 else math.nan,
        }
    if output.shape[1] > 10:
        return {
            "top5": float(
                100 * (output.topk(5).indices == target.unsqueeze(1)).any(1).double().mean()
            )
        }
    return {}


class TrainingRecord:
    """What one epoch of training said of the whole set and of every sample, kept on the device
    until it is asked for.

    The *weight* of a sample is how much harder it pulls at the model than under the task loss
    alone: the L1 norm of d loss / d output over that of d task loss / d output, which means the
    same for every method. Of a group it is the ratio of the sums.

    Args:
        task_loss: ``(output, target) -> losses [B]``.
        metric: ``(output, target) -> [B]``.

    State, per sample: last loss, metric and both gradient norms, the sum of all its losses, and
    whether this epoch has seen it: 21 bytes.
    """

    check_every = (
        50  # steps between two looks at the losses from the host: each waits for the device
    )

    def __init__(
        self, num_samples: int, task_loss: Callable, metric: Callable, device: torch.device
    ):
        self.task_loss, self.metric = task_loss, metric
        names = ("loss", "metric", "pull", "plain_pull", "loss_total")
        self.samples = {name: torch.zeros(num_samples, device=device) for name in names}
        self.samples["seen"] = torch.zeros(num_samples, dtype=torch.bool, device=device)
        self.loss_sum, self.seconds, self.images, self.lr = 0.0, 0.0, 0, math.nan
        self.recent: list[tuple] = []  # steps that are not in the sums yet
        self.observed = False  # whether the objective shows what the model says of each sample

    def start(self, step: int, lr: float):
        """Start the clock; at step 0, forget the epoch before, and note the learning rate."""
        if step == 0:
            self.loss_sum, self.seconds, self.images, self.lr = 0.0, 0.0, 0, lr
            self.samples["seen"].fill_(False)
        self.clock = time.perf_counter()

    def stop(self, epoch: int, loader):
        """Check, which waits for the device, and stop the clock."""
        self.check(epoch, loader)
        self.seconds += time.perf_counter() - self.clock

    def update(self, step: int, loss: Tensor, batch, scored: tuple[Tensor, Tensor, Tensor] | None):
        """Remember one step, after its backward pass. Costs nothing yet.

        ``batch``: this process's share; ``scored``: outputs with their gradients retained, targets
        and indices of the whole batch, or None.
        """
        if scored is None:
            self.recent.append((step, len(batch.index) * world_size(), loss.detach()))
        else:
            output, target, index = scored
            self.recent.append(
                (
                    step,
                    len(index),
                    loss.detach(),
                    output.detach(),
                    output.grad * len(index),
                    target,
                    index,
                )
            )

    @torch.no_grad()
    def check(self, epoch: int, loader):
        """Work off the steps since the last check, of one epoch, in one go. The only place where
        the host waits.

        Raises FloatingPointError naming epoch, step and samples of the first loss that was NaN or
        infinite.
        """
        if not self.recent:
            return
        steps, sizes, values, *known = zip(*self.recent, strict=True)
        self.recent = []
        self.observed = bool(known)
        if known:
            output, grad, target, index = (torch.cat(part) for part in known)
            with torch.enable_grad():
                losses = self.task_loss(output.requires_grad_(), target)
                (plain_grad,) = torch.autograd.grad(losses.sum(), output)
            self.samples["loss"][index] = losses.detach()
            self.samples["metric"][index] = self.metric(output, target)
            for name, gradient in (("pull", grad), ("plain_pull", plain_grad)):
                self.samples[name][index] = gradient.float().abs().reshape(len(index), -1).sum(1)
            self.samples["loss_total"][index] += self.samples["loss"][index]
            self.samples["seen"][index] = True
        for step, size, value in zip(steps, sizes, torch.stack(values).tolist(), strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(self._not_finite(epoch, step, loader))
            self.loss_sum += size * value
            self.images += size

    def _not_finite(self, epoch, step, loader):
        rows = loader.rows_of(step)
        finite = self.samples["loss"].cpu()[rows].isfinite().tolist()
        bad = [row for row, good in zip(rows, finite, strict=True) if not good] or rows
        return (
            f"the loss is not finite in epoch {epoch}, step {step}; samples {', '.join(map(str, bad[:20]))}"
            f"{f' and {len(bad) - 20} more' if len(bad) > 20 else ''}. The last good checkpoint is untouched. "
            f"Look at these inputs, or lower optimizer.lr or the method's own rates"
        )

    def end_epoch(self, corrupted: np.ndarray | None) -> dict[str, float]:
        """The epoch in numbers, of the samples that it has seen; ``corrupted`` [N] where that is
        known.

        lr is that of its first step; mass_incorrect is the part that incorrect labels have in the
        sum of all gradient norms. train_metric is NaN, and there are no weights, where the
        objective does not show what the model says of each.
        """
        row = {
            "lr": self.lr,
            "train_loss": self.loss_sum / self.images,
            "train_metric": float("nan"),
            "seconds": self.seconds,
            "images_per_second": self.images / self.seconds,
        }
        if not self.observed:
            return row
        seen = self.samples["seen"]
        loss, metric, pull, plain = (
            self.samples[name][seen] for name in ("loss", "metric", "pull", "plain_pull")
        )
        row["train_metric"] = float(metric.double().mean())
        if corrupted is not None:
            plain, pull = plain.cpu().numpy(), pull.cpu().numpy()
            groups = easy_hard_incorrect(loss.cpu().numpy(), corrupted[seen.cpu().numpy()])
            for name, mask in groups.items():
                row[f"weight_{name}"] = (
                    float(pull[mask].sum() / plain[mask].sum())
                    if plain[mask].any()
                    else float("nan")
                )
            row["mass_incorrect"] = (
                float(pull[groups["incorrect"]].sum() / pull.sum()) if pull.any() else float("nan")
            )
        return row

    def mean_loss(self, passes: int) -> np.ndarray:
        """Of each sample [N], the sum of its training losses divided by the number of passes over
        the data.
        """
        return (self.samples["loss_total"] / passes).cpu().numpy()

    def state_dict(self) -> dict:
        return {
            "samples": self.samples,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "images": self.images,
            "lr": self.lr,
        }

    def load_state_dict(self, state: dict):
        self.loss_sum, self.seconds, self.images = (
            state["loss_sum"],
            state["seconds"],
            state["images"],
        )
        self.lr = state.get("lr", math.nan)  # older checkpoints lack it, "seen" and "plain_pull"
        for name, values in state["samples"].items():
            self.samples[name].copy_(values)


def easy_hard_incorrect(loss: np.ndarray, corrupted: np.ndarray) -> dict[str, np.ndarray]:
    """Masks.

    Incorrect labels; hard, the correct ones whose loss is in the top half of all; easy, the other
    correct ones.
    """
    top_half = loss >= np.median(loss)
    return {"easy": ~corrupted & ~top_half, "hard": ~corrupted & top_half, "incorrect": corrupted}


@torch.no_grad()
def check_fit(
    model: nn.Module, task_loss: Callable, inputs: Tensor, targets: Tensor, device: torch.device
):
    """Raise ValueError where the model cannot take such inputs, or its outputs not be compared with
    such targets.
    """
    try:
        task_loss(model.eval()(inputs.to(device)), targets.to(device))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ValueError(
            f"the model does not fit the dataset, with inputs of {list(inputs.shape[1:])}, {inputs.dtype}: "
            f"{error}"
        ) from None


@torch.no_grad()
def predict(model: nn.Module, loader, autocast) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of the model in evaluation mode, with targets and indices, for all of a loader, on
    the CPU.

    Several processes share the work, and all get all of it, in another order.

    Raises FloatingPointError where they are not finite.
    """
    model.eval()
    parts = []
    for batch in loader:
        with autocast():
            output = model(batch.input)
        parts.append((output.float(), batch.target, batch.index))
    output, target, index = gather(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))
    if not output.isfinite().all():
        raise FloatingPointError(
            "the model's outputs are not finite any more. The last good checkpoint is untouched. "
            "Lower optimizer.lr or the method's own rates"
        )
    return output, target, index


def evaluate(model: nn.Module, loaders: dict, metric: Callable, autocast) -> dict[str, float]:
    """Of each loader, ``<name>_metric``, the mean of the metric in evaluation mode, and its
    ``further_metrics``.
    """
    row = {}
    for name, loader in loaders.items():
        output, target, _ = predict(model, loader, autocast)
        row[f"{name}_metric"] = float(metric(output, target).double().mean())
        row |= {
            f"{name}_{key}": value for key, value in further_metrics(output, target, metric).items()
        }
    return row


def prediction_table(
    output: Tensor, target: Tensor, index: Tensor, task_loss: Callable
) -> dict[str, np.ndarray]:
    """test.npz.

    A row per sample, by index: index, target, loss, and predicted: a class, or a number.
    """
    order = index.argsort()
    output, target = output[order], target[order]
    predicted = output.argmax(1) if output.ndim == 2 and output.shape[1] > 1 else output.flatten()
    return {
        "index": index[order].numpy(),
        "target": target.numpy(),
        "loss": task_loss(output, target).numpy(),
        "predicted": predicted.numpy(),
    }


def sample_table(
    trained: dict[str, np.ndarray],
    true: np.ndarray,
    *,
    mean_loss: np.ndarray,
    score: Tensor | None,
    ranked: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """samples.npz: a row per training sample, by index, from their ``prediction_table``.

    loss and predicted are those of the finished model, without augmentation; mean_loss is the mean
    training loss over all epochs (over the last ones only, a network that has learned the labels by
    heart tells nothing apart); score is the method's own, or mean_loss where it keeps none. Where
    samples were selected, both are the losses that were ranked: the run itself knows nothing of the
    others. true is -1, or in regression NaN, where it is not known.
    """
    index = trained["index"]
    mean_loss, score = (mean_loss, score) if ranked is None else (ranked, None)
    mean_loss = mean_loss[index]
    score = mean_loss if score is None else score.cpu().numpy()[index]
    return {
        "index": index,
        "given": trained["target"],
        "true": true[index],
        "loss": trained["loss"],
        "mean_loss": mean_loss,
        "score": score,
        "predicted": trained["predicted"],
        "flagged": flag(score),
    }


def detection(table: dict[str, np.ndarray]) -> dict:
    """How well incorrect labels are told from correct ones; every value None where the truth is
    unknown or all is one class.

    auroc and average_precision of the score; hard_vs_incorrect_auroc: the same among the samples
    whose loss is in the top half, where hard and incorrect ones meet; memorised_fraction: of the
    incorrect samples, how many are predicted as the wrong label they were given; precision and
    recall of the flag.

    In regression a label is incorrect if it was changed at all, and memorised if the prediction is
    nearer to the given than to the true one. Besides: large_change, the standard deviation of the
    true labels, and large_change_auroc, where only labels changed by more than that count as
    incorrect.
    """
    given, true, score, predicted = (table[key] for key in ("given", "true", "score", "predicted"))
    names = [
        "auroc",
        "average_precision",
        "hard_vs_incorrect_auroc",
        "memorised_fraction",
        "flag_precision",
        "flag_recall",
    ]
    numbers = true.dtype.kind == "f"
    if numbers:
        names += ["large_change", "large_change_auroc"]
    corrupted = wrong_labels(given, true)
    if corrupted is None or corrupted.all() or not corrupted.any():
        return dict.fromkeys(names)
    top = table["loss"] >= np.median(table["loss"])
    memorised = (
        np.abs(predicted - given) < np.abs(predicted - true) if numbers else predicted == given
    )
    values = [
        _auroc(corrupted, score),
        average_precision_score(corrupted, score),
        _auroc(corrupted[top], score[top]),
        memorised[corrupted].mean(),
        precision_score(corrupted, table["flagged"], zero_division=0),
        recall_score(corrupted, table["flagged"]),
    ]
    if numbers:
        values += [true.std(), _auroc(np.abs(given - true) > true.std(), score)]
    return {
        name: None if value is None else float(value)
        for name, value in zip(names, values, strict=True)
    }


def _auroc(positive, score):
    return roc_auc_score(positive, score) if positive.any() and not positive.all() else None


def flag(score: np.ndarray) -> np.ndarray:
    """Which scores belong to the upper of two groups: a mixture of two Gaussians, cut where the
    upper one takes over.

    It always finds two groups, also where there is one; look at the distribution before trusting
    it.
    """
    if np.ptp(score) == 0:
        return np.zeros(len(score), bool)
    column = ((score - score.mean()) / score.std()).reshape(-1, 1)
    sample = np.random.default_rng(0).permutation(len(column))[
        :100_000
    ]  # of a huge set, a part is enough to fit
    mixture = GaussianMixture(
        2, random_state=0, means_init=np.percentile(column, [10, 90]).reshape(-1, 1)
    ).fit(column[sample])
    upper = int(np.argmax(mixture.means_))
    return (mixture.predict(column) == upper) & (column[:, 0] > mixture.means_[1 - upper, 0])
