"""Co-teaching and Decoupling on the inputs of a trace.

The traces hold outputs [2, B, C]; the methods take what a model returns, [B, 2, C].
"""

import torch
from torch import nn

from datasets.base import Batch
from losses import CoTeaching, Decoupling
from losses.small_loss import exchange, smallest
from losses.task import cross_entropy
from losses.two_networks import disagree


class Outputs(nn.Module):
    """A model that returns what it is told to."""

    def forward(self, inputs):
        return inputs


class Replay:
    """Runs the objective on the outputs of a step: in float32, as a run would."""

    def __init__(self, objective):
        self.objective = objective

    def forward(self, inputs):
        """(outputs of both networks, targets, loss and its gradient [2, B, C])."""
        outputs = torch.from_numpy(inputs["output"]).float().transpose(0, 1).requires_grad_()
        target, index = (torch.from_numpy(inputs[key]) for key in ("target", "index"))
        loss = self.objective(Outputs(), Batch(outputs, target, index))
        loss.backward()
        answers = {"loss": loss, "grad_output": outputs.grad.transpose(0, 1)}
        return outputs.detach().unbind(1), target, answers


class ReplayCoTeaching(Replay):
    def __init__(self, about, constants):
        hyper = about["hyper"]
        super().__init__(
            CoTeaching(
                cross_entropy,
                about["N"],
                hyper["forget_rate"],
                Outputs(),
                schedule="paper" if "paper" in hyper["schedule_rule"] else "code",
                num_gradual=hyper["num_gradual"],
                exponent=hyper["exponent"],
                epoch_offset=hyper["epoch_offset"],
            )
        )

    def step(self, inputs):
        epoch, rate = int(inputs["epoch"]), self.objective.forget_rate
        self.objective.set_epoch(epoch)
        outputs, target, answers = self.forward(inputs)
        losses = [cross_entropy(output, target) for output in outputs]
        count = rate.num_kept(epoch, len(target))
        kept = torch.zeros(2, len(target), dtype=torch.bool)
        for number in range(2):
            kept[number, smallest(losses[number], count)] = True
        loss_1, loss_2 = exchange(*losses, count)
        return answers | {
            "forget_rate": rate.at(epoch),
            "num_kept": count,
            "kept": kept,
            "loss_1": loss_1,
            "loss_2": loss_2,
        }


class ReplayDecoupling(Replay):
    def __init__(self, about, constants):
        hyper = about["hyper"]
        super().__init__(
            Decoupling(
                cross_entropy,
                about["N"],
                Outputs(),
                floor=hyper["min_batch_fraction"],
                balance=hyper["balanced"],
                init_steps=hyper["init_steps"],
            )
        )

    def step(self, inputs):
        outputs = torch.from_numpy(inputs["output"]).float().unbind(0)
        weights = self.objective.weights(*outputs, torch.from_numpy(inputs["target"]))
        outputs, target, answers = self.forward(inputs)
        losses = [(weights * cross_entropy(output, target)).sum() for output in outputs]
        return answers | {
            "disagree": disagree(*outputs),
            "update": weights > 0,
            "loss_1": losses[0],
            "loss_2": losses[1],
        }


METHODS = {"co_teaching": ReplayCoTeaching, "decoupling": ReplayDecoupling}
