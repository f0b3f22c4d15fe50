"""What one epoch of training shows of every sample, kept on the device until it is asked for."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from utils.detection import easy_hard_incorrect
from utils.distributed import world_size
from utils.metrics import Metric
from utils.training_dynamics import TrainingDynamics


class TrainingRecord:
    """The losses, metrics and gradients of an epoch of training, by sample.

    The *weight* of a sample is how much harder it pulls at the model than under the task loss
    alone: the L1 norm of d loss / d output over that of d task loss / d output. It means the same
    for every method. The weight of a group is the ratio of the sums.

    Args:
        task_loss: ``(output, target) -> losses [B]``.

    State, per sample: last loss, metric and both gradient norms, the sum of all its losses, whether
    this epoch has seen it, 21 bytes; and of classes the ``TrainingDynamics``.
    """

    check_every = 50  # steps between two reads from the device, each of which waits for it

    def __init__(self, num_samples: int, task_loss: Callable, metric: Metric, device: torch.device):
        self.task_loss, self.metric = task_loss, metric
        names = ("loss", "metric", "pull", "plain_pull", "loss_total")
        self.samples = {name: torch.zeros(num_samples, device=device) for name in names}
        self.samples["seen"] = torch.zeros(num_samples, dtype=torch.bool, device=device)
        self.dynamics = None
        if metric.name == "accuracy":
            self.dynamics = TrainingDynamics(num_samples, device)
        self.loss_sum, self.seconds, self.images, self.lr = 0.0, 0.0, 0, math.nan
        self.recent: list[tuple] = []  # steps that are not in the sums yet
        # Numbers of outputs that wait for a read. On a CPU 16 MiB: glibc maps tensors of more than
        # 32 MiB anew each time, which takes longer than what is computed from them.
        self.most_pending = 2**22 if torch.device(device).type == "cpu" else 2**25
        self.observed = False  # whether the objective shows what the model says of each sample

    def start(self, step: int, lr: float):
        """Start the clock; at step 0, forget the epoch before, and note the learning rate."""
        if step == 0:
            self.loss_sum, self.seconds, self.images, self.lr = 0.0, 0.0, 0, lr
            self.samples["seen"].fill_(False)
        self.clock = time.perf_counter()

    @property
    def is_due(self) -> bool:
        """Whether enough has come together to be checked."""
        pending = sum(outputs[0].numel() for _, _, _, *outputs in self.recent if outputs)
        return len(self.recent) >= self.check_every or pending > self.most_pending

    def stop(self, epoch: int, loader):
        """Check the last steps, which waits for the device, and stop the clock."""
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
            grad = torch.zeros_like(output) if output.grad is None else output.grad
            shown = output.detach(), grad * len(index), target, index
            self.recent.append((step, len(index), loss.detach(), *shown))

    @torch.no_grad()
    def check(self, epoch: int, loader):
        """Add the steps since the last check to the sums: the only place where the host waits.

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
            self.samples["metric"][index] = self.metric.compute(output, target)
            for name, gradient in (("pull", grad), ("plain_pull", plain_grad)):
                self.samples[name][index] = gradient.float().abs().reshape(len(index), -1).sum(1)
            self.samples["loss_total"][index] += self.samples["loss"][index]
            self.samples["seen"][index] = True
            if self.dynamics:
                self.dynamics.update(output.detach(), target, index)
        for step, size, value in zip(steps, sizes, torch.stack(values).tolist(), strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(self._not_finite(epoch, step, loader))
            self.loss_sum += size * value
            self.images += size

    def _not_finite(self, epoch, step, loader):
        rows = loader.rows_of(step)
        finite = self.samples["loss"].cpu()[rows].isfinite().tolist()
        bad = [row for row, good in zip(rows, finite, strict=True) if not good] or rows
        more = f" and {len(bad) - 20} more" if len(bad) > 20 else ""
        return (
            f"the loss is not finite in epoch {epoch}, step {step}; samples "
            f"{', '.join(map(str, bad[:20]))}{more}. The last good checkpoint is untouched. "
            "Look at these inputs, or lower optimizer.lr or the method's own rates"
        )

    def end_epoch(self, corrupted: np.ndarray | None) -> dict[str, float]:
        """The epoch in numbers, over the samples that it has seen.

        ``lr`` is that of its first step; ``mass_incorrect`` is the share of incorrect labels in the
        sum of all gradient norms. If the objective does not show what the model says of each
        sample, train_metric is NaN and there are no weights.

        Args:
            corrupted: [N]; None if the truth is not known.
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
                row[f"weight_{name}"] = _ratio(pull[mask], plain[mask])
            row["mass_incorrect"] = _ratio(pull[groups["incorrect"]], pull)
        return row

    def mean_loss(self, passes: int) -> np.ndarray:
        """The mean training loss of each sample, [N]: the sum divided by the number of passes."""
        return (self.samples["loss_total"] / passes).cpu().numpy()

    def state_dict(self) -> dict:
        return {
            "samples": self.samples,
            "dynamics": self.dynamics and self.dynamics.samples,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "images": self.images,
            "lr": self.lr,
        }

    def load_state_dict(self, state: dict):
        self.loss_sum, self.images = state["loss_sum"], state["images"]
        self.seconds = state["seconds"]
        self.lr = state.get("lr", math.nan)  # older checkpoints lack it, "seen" and "plain_pull"
        for name, values in state["samples"].items():
            self.samples[name].copy_(values)
        for name, values in (state.get("dynamics") or {}).items():  # older checkpoints have none
            self.dynamics.samples[name].copy_(values)


def _ratio(part: np.ndarray, whole: np.ndarray) -> float:
    """The ratio of the sums; NaN if the whole is 0."""
    return float(part.sum() / whole.sum()) if whole.any() else math.nan
