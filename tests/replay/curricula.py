"""MentorNet and truncated GCE on the inputs of a trace."""

import re

import torch

from losses import GCE, MentorNet
from losses.mentornet import nearest_percentile
from losses.task import cross_entropy

CURRICULA = {  # what the authors call them
    "vstar_mentornet_pd": "predefined",
    "vstar_self_paced": "self_paced",
    "vstar_spcl_linear": "spcl_linear",
    "vstar_hard_example_mining": "hard",
    "vstar_focal_loss": "focal",
}


def step_of(loss, inputs):
    """Losses [B] of a batch, and the gradient of their mean for the output."""
    output = torch.as_tensor(inputs["output"]).float().requires_grad_()
    target, index = (torch.as_tensor(inputs[name]) for name in ("target", "index"))
    losses = loss(output, target, index)
    losses.mean().backward()
    return cross_entropy(output.detach(), target), losses.detach(), output.grad


class RecordedMentorNet(MentorNet):
    """MentorNet with the progress of a trace, and the samples that were spared there."""

    recorded_percent, kept = 0, None

    def percent(self):
        return self.recorded_percent

    def _spared(self, size):
        assert self.num_spared(size) == int(self.kept.sum())
        return self.kept.float()


class ReplayMentorNet:
    def __init__(self, about, constants):
        hyper = about["hyper"]
        total = re.search(r"step / (\d+)", about["arrays"]["percent"]["meaning"])
        numbers = [float(number) for number in hyper["example_dropout"]]
        rates, percents = numbers[::2], numbers[1::2]
        self.loss = RecordedMentorNet(
            cross_entropy,
            about["N"],
            None,
            epochs=1,
            steps_per_epoch=int(total[1]),
            curriculum=CURRICULA[hyper["vstar"]],
            percentile=hyper["percentile"],
            decay=hyper["decay"],
            burn_in=hyper["burn_in_epoch"],
            fixed_after_burn_in=hyper["fixed_epoch_after_burn_in"],
            example_dropout=tuple(zip(rates, percents, strict=True)),
        )

    def step(self, inputs):
        loss = self.loss
        percent = int(inputs["percent"])
        loss.recorded_percent = min(percent, loss.burn_in) if loss.fixed_after_burn_in else percent
        # theirs is rounded down from a float: 57 after 29 of 50 steps
        assert 0 <= MentorNet.percent(loss) - loss.recorded_percent <= 1
        loss.kept = torch.as_tensor(inputs["kept"])
        losses, weighted, gradient = step_of(loss, inputs)
        return {
            "percentile_loss": nearest_percentile(losses, loss.percentile),
            "moving_average": loss.m,
            "weights_before_dropout": loss.weights(losses, losses - loss.m),
            "weights": weighted / losses,
            "loss": weighted.mean(),
            "losses": losses,
            "grad_output": gradient,
        }


class ReplayTruncatedGCE:
    """The traces hold no given labels but those of each batch, so they are set as they come."""

    def __init__(self, about, constants):
        hyper = about["hyper"]
        self.given = torch.zeros(about["N"], dtype=torch.int64)
        self.loss = GCE(
            cross_entropy,
            about["N"],
            q=hyper["q"],
            k=hyper["k"],
            prune_from=hyper["start_prune"],
            prune_every=hyper["every"],
        )

    def start_epoch(self, epoch, inputs):
        output = torch.as_tensor(inputs["prune_output"]).float()
        self.loss.set_epoch(epoch - 1)
        self.loss.end_epoch(lambda: (output, self.given, torch.arange(len(output))))
        self.loss.set_epoch(epoch)
        return {"weight": self.loss.kept(self.loss.pruning_loss).double()}

    def step(self, inputs):
        self.given[torch.as_tensor(inputs["index"])] = torch.as_tensor(inputs["target"])
        _, losses, gradient = step_of(self.loss, inputs)
        return {"loss": losses.mean(), "losses": losses, "grad_output": gradient}


METHODS = {"mentornet": ReplayMentorNet, "truncated_gce": ReplayTruncatedGCE}
