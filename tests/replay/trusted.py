"""The methods that learn from trusted labels on the inputs of a trace."""

import torch
from torch import nn

from datasets.base import Batch
from losses import Distillation, LearningToReweight
from losses.cleannet import NORMALISATIONS, CleanNetwork, comparison_losses
from losses.label_cleaning import clean, cleaning_losses
from losses.noisy_clean_crf import bound, joint_losses, joint_scores
from losses.task import cross_entropy


class LookAhead(LearningToReweight):
    """Takes the trusted loss where a step of decay alone leads, as the authors' legacy path."""

    @torch.no_grad()
    def trusted_gradient(self, network, trusted):
        weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
        before = [weight.clone() for weight in weights]
        torch._foreach_mul_(weights, 1 - self.trusted_decay)
        gradient = super().trusted_gradient(network, trusted)
        torch._foreach_copy_(weights, before)
        return gradient


class ReplayLearningToReweight:
    """The network of the trace, which is given its parameters before each step."""

    def __init__(self, about, constants):
        hyper = about["hyper"]
        sizes, hidden = (8, 6, 5), "w2" in about["model"]
        first = nn.Linear(sizes[0], sizes[1] if hidden else sizes[2])
        layers = [first, nn.Tanh(), nn.Linear(*sizes[1:])] if hidden else [first]
        self.network, self.linear = nn.Sequential(*layers), layers[::2]
        self.decay = hyper["weight_decay_in_the_trusted_loss"]
        legacy = "legacy" in hyper["path"] or hyper.get("legacy", False)
        method = LookAhead if legacy else LearningToReweight
        self.loss = method(
            cross_entropy,
            about["N"],
            trusted_batch_size=hyper["trusted_batch"],
            trusted_decay=self.decay,
        )
        self.raw = "raw_weights" in about["arrays"]
        self.inputs, self.trusted_inputs = (
            torch.from_numpy(constants[name]).float() for name in ("inputs", "clean_inputs")
        )
        self.trusted_target = torch.from_numpy(constants["clean_targets"])

    def step(self, inputs):
        inputs = {name: torch.as_tensor(value) for name, value in inputs.items()}
        with torch.no_grad():
            for number, layer in enumerate(self.linear, start=1):
                layer.weight.copy_(inputs[f"param_w{number}"].T)
                layer.bias.copy_(inputs[f"param_b{number}"])
        index, chosen = inputs["index"], inputs["clean_index"]
        trusted = Batch(self.trusted_inputs[chosen], self.trusted_target[chosen], chosen)
        batch = Batch(self.inputs[index], inputs["target"], index, trusted)
        alignment = self.loss.alignment(self.network, batch)
        self.network.zero_grad()
        loss = self.loss(self.network, batch)
        loss.backward()
        squares = sum(layer.weight.detach().square().sum() for layer in self.linear)
        answers = {
            "weights": self.loss.weights(self.network, batch),
            "loss": loss,
            "losses": cross_entropy(self.network(batch.input), batch.target),
            "total_loss": loss + self.decay / 2 * squares,
        }
        if self.raw:
            answers["raw_weights"] = alignment
        for number, layer in enumerate(self.linear, start=1):
            answers[f"grad_w{number}"] = (layer.weight.grad + self.decay * layer.weight).T
            answers[f"grad_b{number}"] = layer.bias.grad
        return answers


def floats(inputs, *names):
    """These arrays of a step, as float32 that wants a gradient."""
    return [torch.as_tensor(inputs[name]).float().requires_grad_() for name in names]


class ReplayLabelCleaning:
    def __init__(self, about, constants):
        self.multi_label = about["hyper"]["kind"] == "multi"
        self.clean_weight = about["hyper"]["clean_weight"]

    def step(self, inputs):
        noisy, true, residual, output = floats(inputs, "noisy", "true", "residual", "output")
        cleaned = clean(noisy, residual)
        verified = torch.as_tensor(inputs["verified"])
        to_clean, to_classify, target = cleaning_losses(
            output, cleaned, true, verified, multi_label=self.multi_label
        )
        loss = (self.clean_weight * to_clean + to_classify).mean()
        loss.backward()
        return {
            "cleaned": cleaned,
            "soft_target": target,
            "loss_clean": to_clean.mean(),
            "loss_classify": to_classify.mean(),
            "loss": loss,
            "grad_residual": residual.grad,
            "grad_output": output.grad,
        }


class ReplayDistillation:
    def __init__(self, about, constants):
        hyper = about["hyper"]
        self.method = Distillation(
            cross_entropy,
            about["C"],
            torch.zeros(about["batch"], dtype=torch.int64),
            lam=hyper["lam"],
            temperature=hyper["temperature"],
        )
        self.method.beta = hyper["beta"]
        if hyper["beta"]:
            self.method.graph = torch.from_numpy(constants["graph"]).float()

    def step(self, inputs):
        (output,) = floats(inputs, "output")
        given = torch.as_tensor(inputs["target"])
        teacher = torch.as_tensor(inputs["teacher_output"]).float().softmax(1)
        self.method.given.copy_(given)
        losses = self.method(output, teacher, torch.arange(len(output)))
        losses.mean().backward()
        return {
            "soft_target": self.method.mixture(teacher, given),
            "losses": losses,
            "loss": losses.mean(),
            "grad_output": output.grad,
        }


class ReplayNoisyCleanCRF:
    def __init__(self, about, constants):
        """All that a step needs is in its inputs."""

    def step(self, inputs):
        names = ("a", "b", "W", "c", "V")
        parts = floats(inputs, *names)
        scores = joint_scores(*parts)
        target, true = (torch.as_tensor(inputs[name]) for name in ("target", "clean_target"))
        auxiliary, alpha = floats(inputs, "aux")[0].detach().log(), float(inputs["alpha"])
        unverified, q = bound(scores, target, auxiliary, alpha)
        verified = joint_losses(scores, target, true)
        losses = torch.where(torch.as_tensor(inputs["verified"]), verified, unverified)
        losses.mean().backward()
        posterior = bound(scores, target, auxiliary, 0.0)[1]
        return {
            "log_z": scores.flatten(1).logsumexp(1),
            "posterior": posterior,
            "q": q,
            "losses": losses,
            "loss": losses.mean(),
            "prediction": scores.logsumexp(2).softmax(1),
            **{f"grad_{name}": part.grad for name, part in zip(names, parts, strict=True)},
        }


class ReplayCleanNet:
    """The networks with the weights that the trace describes by a formula."""

    def __init__(self, about, constants):
        self.hyper = hyper = about["hyper"]
        name = {"log": "log", "l2norm": "l2"}.get(hyper["embed_norm"], "none")
        self.normalise = NORMALISATIONS[name]
        references = torch.from_numpy(constants["references"]).float()
        flat = self.normalise(references.flatten(0, 1))
        self.references = flat.view_as(references)
        self.network = CleanNetwork(references.shape[2])
        layers = [*self.network.query, *self.network.reference, self.network.summary]
        with torch.no_grad():
            for k, layer in enumerate(layers):
                a, b = torch.arange(layer.in_features)[:, None], torch.arange(layer.out_features)
                a, b = a.double(), b.double()
                weight = torch.sin(0.7 * a + 1.3 * b * (k + 1) + 0.37 * k + 0.11 * a * b)
                layer.weight.copy_((weight / layer.in_features**0.5).T)
                layer.bias.copy_(hyper["bias_scale"] * torch.cos(b))
            context = torch.sin(1.7 * torch.arange(256, dtype=torch.float64)) / 4
            self.network.context.copy_(context)

    def step(self, inputs):
        (query,) = floats(inputs, "query")
        target = torch.as_tensor(inputs["target"])
        features = self.normalise(query)
        similarity, decoded = self.network(features, target, self.references)
        known, right = (torch.as_tensor(inputs[name]) for name in ("verified", "verified_label"))
        terms = ("negative_weight", "margin", "beta", "gamma")
        hyper = {"negative_weight": self.hyper["neg_weight"]} | self.hyper
        losses = comparison_losses(
            similarity,
            features,
            decoded,
            torch.where(known > 0, right, -1.0),
            **{name: hyper[name] for name in terms},
        )
        squares = sum(matrix.square().sum() for matrix in self.network.matrices())
        loss = losses.mean() + self.hyper["weight_decay"] / 2 * squares
        loss.backward()
        return {
            "similarity": similarity,
            "phi_s": self.network.embed_references(self.references)[target],
            "phi_q": self.network.embed_query(features)[0],
            "reconstructed": decoded,
            "losses": losses,
            "loss": loss,
            "grad_query": query.grad,
        }


METHODS = {
    "cleannet": ReplayCleanNet,
    "l2rw": ReplayLearningToReweight,
    "label_cleaning": ReplayLabelCleaning,
    "distillation": ReplayDistillation,
    "vahdat_crf": ReplayNoisyCleanCRF,
}
