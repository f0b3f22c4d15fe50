"""SELFIE, Joint Optimization and the two stages of Ding et al. on the inputs of a trace.

The traces hold no given labels but those of each batch, so they are set as they come.
"""

import torch
from torch.nn import functional as F
from torch.optim import SGD

from losses import SELFIE, JointOptimization, TwoStage
from losses.joint_optimization import imbalance
from losses.task import cross_entropy
from losses.two_stage import normalised
from utils.schedules import RampUpAndDown


def tensors(inputs):
    """The arrays of a step, outputs as float32 that want a gradient."""
    step = {name: torch.as_tensor(value) for name, value in inputs.items()}
    step["output"] = step["output"].float().requires_grad_()
    return step


class ReplaySELFIE:
    def __init__(self, about, constants):
        hyper, size = about["hyper"], about["N"]
        self.loss = SELFIE(
            cross_entropy,
            size,
            about["C"],
            torch.zeros(size, dtype=torch.int64),
            None,
            tau=hyper["noise_rate"],
            warm_up=max(hyper["warm_up_epochs"], hyper["history_length"]),
            q=hyper["history_length"],
            eps=hyper["threshold"],
        )
        self.loss.warm_up = hyper["warm_up_epochs"]
        self.loss.num_votes.fill_(self.loss.q)  # the authors' queues are full of zeros, and count

    def step(self, inputs):
        step, loss = tensors(inputs), self.loss
        output, target, index = step["output"], step["target"], step["index"]
        loss.given[index] = target
        if step["restart"]:
            loss.votes.zero_()
            loss.tau = min(loss.tau, 1 - (loss.corrected >= 0).double().mean().item())
        loss.set_epoch(int(step["epoch_in_run"]))
        warm_up = loss.epoch < loss.warm_up
        clean = torch.zeros(len(index), dtype=torch.bool)
        if not warm_up:
            clean = loss._clean(cross_entropy(output.detach(), target))
        losses = loss(output, target, index)
        losses.mean().backward()
        corrected = loss.corrected[index]
        refurbishable = (corrected >= 0) & (not warm_up)
        selected = clean | refurbishable | warm_up
        label = torch.where(corrected >= 0, corrected, target)
        return {
            "noise_rate": loss.tau,
            "num_clean": len(index) if warm_up else clean.sum(),
            "clean": clean,
            "refurbishable": refurbishable,
            "selected": selected,
            "used_target": torch.where(selected, label, -1),
            "loss": losses.mean(),
            "losses": losses * selected.sum() / len(index),
            "grad_output": output.grad,
            "votes": loss.votes,
            "num_votes": loss.num_votes - loss.q,
            "corrected": loss.corrected,
        }


class ReplayJointOptimization:
    def __init__(self, about, constants):
        hyper, size = about["hyper"], about["N"]
        self.loss = JointOptimization(
            cross_entropy,
            size,
            about["C"],
            torch.zeros(size, dtype=torch.int64),
            alpha=hyper["alpha"],
            beta=hyper["beta"],
            begin=max(hyper["begin"], hyper["window"]),
            window=hyper["window"],
            prior=hyper["prior"],
        )
        self.loss.begin = hyper["begin"]

    def step(self, inputs):
        step, loss = tensors(inputs), self.loss
        output, target, index = step["output"], step["target"], step["index"]
        loss.set_epoch(int(step["epoch"]))
        if not loss.replaced:
            loss.soft_target[index] = F.one_hot(target, loss.num_outputs).float()
        goal = loss.soft_target[index].clone()
        value = loss(output, target, index).mean()
        value.backward()
        log_p = output.detach().log_softmax(1)
        return {
            "soft_target_used": goal,
            "loss": value,
            "loss_c": -(goal * log_p).sum(1).mean(),
            "loss_p": imbalance(log_p, loss.prior),
            "loss_e": -(log_p.exp() * log_p).sum(1).mean(),
            "grad_output": output.grad,
        }

    def end_epoch(self, epoch):
        loss = self.loss
        loss.end_epoch(None)
        if loss.replaced and loss.begin < loss.window:  # the authors average empty places too
            loss.soft_target *= min(epoch + 1, loss.window) / loss.window
        last = (loss.num_predictions.long() - 1) % loss.window
        return {
            "predictions": loss.ring[torch.arange(len(last)), last],
            "soft_target": loss.soft_target,
            "hard_target": loss.soft_target.argmax(1),
            "updated": loss.replaced,
        }


class ReplayTwoStage:
    """Stage 2, whose trusted labels stage 1 has left: a target that is not certain is none."""

    def __init__(self, about, constants):
        hyper, size = about["hyper"], about["N"]
        self.loss = TwoStage(
            cross_entropy,
            size,
            about["C"],
            torch.zeros(size, dtype=torch.int64),
            select_epochs=0,
            decay=hyper["prediction_decay"],
            max_weight=hyper["unsup_weight_max"],
            ramp_epochs=hyper["rampup_length"],
        )
        self.trusted_share = hyper["num_trusted"] / size
        self.schedule = RampUpAndDown(
            SGD([torch.zeros(1, requires_grad=True)], lr=1.0),
            hyper["num_epochs"],
            up=hyper["rampup_length"],
            down=hyper["rampdown_length"],
        )

    def start_epoch(self, epoch, inputs):
        self.seen = torch.zeros_like(self.loss.average)
        self.executed = torch.zeros_like(self.loss.drawn)
        self.loss.set_epoch(epoch)
        return {"lr_factor": self.schedule.get_last_lr()[0]}

    def step(self, inputs):
        step, loss = tensors(inputs), self.loss
        output, target, index = step["output"], step["target"], step["index"]
        label = F.one_hot(target, loss.num_outputs).float()
        unknown = torch.full_like(label, 1 / loss.num_outputs)
        soft = torch.where(step["trusted"].unsqueeze(1), label, unknown)
        goal = normalised(loss.average[index])
        losses = loss(output, soft, index)
        losses.mean().backward()
        prediction = output.detach().softmax(1)
        self.seen[index], self.executed[index] = prediction, True
        labelled = torch.where(step["trusted"], cross_entropy(output.detach(), target), 0)
        return {
            "unsup_weight": loss.weight(),
            "soft_target_used": goal,
            "loss": losses.mean(),
            "losses": losses,
            "loss_labelled": labelled.mean(),
            "loss_unlabelled": (prediction - goal).square().mean(),
            "grad_output": output.grad,
        }

    def end_epoch(self, epoch):
        loss = self.loss
        loss.end_epoch(None)
        loss.trusted_share.fill_(self.trusted_share)  # of all samples, drawn so far or not
        self.schedule.optimizer.step()
        self.schedule.step()
        return {
            "epoch_predictions": self.seen,
            "executed": self.executed,
            "ensemble": loss.average,
            "soft_target": normalised(loss.average),
        }


METHODS = {
    "selfie": ReplaySELFIE,
    "joint_optimization": ReplayJointOptimization,
    "temporal_ensembling": ReplayTwoStage,
}
