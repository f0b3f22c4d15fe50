"""CleanNet: which labels look like their class (Lee et al., CVPR 2018)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Predict, SampleLoss, check_classification, check_index
from .distributed import broadcast, gather
from .errors import UserError, check_interval
from .trusted_pairs import find_head

BATCH = 32  # verified samples of a step, and as many others
DROPS = (1 / 3, 2 / 3)  # of the steps, after which the learning rate is a tenth


class CleanNet(SampleLoss):
    """w_i l_i, where w_i says how much sample i resembles the class that its label names.

    After epoch ``begin``, and again every so many, a network of its own compares the features v of
    every sample, what the last layer of the classifier gets, with K = ``num_references`` that
    stand for the class of its label: the centres of a k-means of all under that label (arXiv
    1711.07131; the authors' code is github.com/kuanghuei/clean-net):

        phi_q = query encoder of v, phi_s = reference encoder of the K references
        s     = cos(phi_q, phi_s)
        w     = max(s, 0);  of a verified sample 1 or 0
        l     = cross-entropy of the given label

    It learns from verified samples, those of which it is known whether the given label is right
    (r = 1) or wrong (r = 0), and from as many others, with the loss

        r (1 - s) + negative_weight (1 - r) max(0, s - margin) + beta |v - decoded phi_q|^2

    where r of the others is 1 if s >= margin, and their first two terms count ``gamma``. Until
    then all w are 1. Classification only.

    The run needs ``trusted.train=given``: verified samples are compared by their given labels.

    Args:
        task_loss: cross_entropy.
        num_outputs: C.
        given: given labels [N].
        verified: [N], 1 if a given label is known to be right, 0 if wrong, -1 if not known.
        model: the classifier, which ends in a linear layer of C outputs.
        epochs: of the whole training; at least one has to follow ``begin``.
        begin: after which epoch, counted from 1, weights are first computed.
        every: after how many epochs again; from memory, the paper does so once or twice.
        num_references: K.
        steps: of SGD with momentum 0.9 on 32 verified and 32 other samples; the learning rate falls
            to a tenth after one and after two thirds.
        rate: that learning rate.
        normalisation: of v, before all else: "log" is log(1 + v), "l2" divides by the norm.
        negative_weight, margin, beta, gamma, decay: as above; decay is of the weight matrices.

    State: weight, given label and verification of each sample, 20 bytes per sample.

    Confirmed against traces of the authors' code: the networks and the loss. Deviations: 1. They
    are fitted as a part of the run, on the features of the classifier that is trained, with fewer
    steps; the authors have features of a fixed one, and 60,000 steps or more. 2. The weight max(s,
    0) is from memory, and that verified samples have 0 or 1 our choice. 3. A class with fewer than
    K samples repeats some. 4. Random numbers follow from the epoch, so runs of other seeds share
    the initial comparing network.

    Raises:
        UserError: a regression task loss, a model that ends otherwise, an argument out of range,
            verified samples of one kind alone.
        IndexError: on the CPU, an index outside [0, N).
    """

    drops_samples = True
    follows_epochs = True

    def __init__(
        self,
        task_loss: Callable,
        num_outputs: int,
        given: Tensor,
        verified: Tensor,
        model: nn.Module,
        epochs: int,
        *,
        begin: int = 10,
        every: int = 20,
        num_references: int = 32,
        steps: int = 1000,
        rate: float = 0.01,
        normalisation: Literal["log", "l2", "none"] = "log",
        negative_weight: float = 5.0,
        margin: float = 0.1,
        beta: float = 0.1,
        gamma: float = 0.1,
        decay: float = 1e-4,
    ):
        super().__init__(task_loss)
        check_classification("CleanNet", task_loss)
        for name, value, interval in (
            ("begin", begin, "[1, inf)"),
            ("every", every, "[1, inf)"),
            ("num_references", num_references, "[1, 10000]"),
            ("steps", steps, "[1, inf)"),
            ("rate", rate, "(0, inf)"),
            ("negative_weight", negative_weight, "[0, inf)"),
            ("margin", margin, "[0, 1]"),
            ("beta", beta, "[0, inf)"),
            ("gamma", gamma, "[0, inf)"),
            ("decay", decay, "[0, inf)"),
        ):
            check_interval(name, value, interval)
        if normalisation not in NORMALISATIONS:
            known = ", ".join(NORMALISATIONS)
            raise UserError(f"normalisation must be one of {known}, got {normalisation!r}")
        if begin >= epochs:
            raise UserError(
                f"begin must be less than {epochs}, the epochs of the training, or no weight is "
                f"ever used, got {begin}"
            )
        if not (verified == 1).any() or not (verified == 0).any():
            raise UserError(
                "CleanNet learns from verified samples with right and with wrong labels, and there "
                "are not both: raise trusted.count"
            )
        self.begin, self.every, self.num_references = begin, every, num_references
        self.steps, self.rate, self.normalisation = steps, rate, normalisation
        self.decay, self.num_outputs = decay, num_outputs
        self.terms = {
            "negative_weight": negative_weight,
            "margin": margin,
            "beta": beta,
            "gamma": gamma,
        }
        self.inputs = Inputs(find_head("CleanNet", model, num_outputs))
        self.register_buffer("given", given.to(torch.int64, copy=True))
        self.register_buffer("verified", verified.to(torch.int64, copy=True))
        self.register_buffer("weight", torch.ones(len(given)))

    def forward(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        check_index(self, index, target, len(self.given))
        return self.weight[index] * self.task_loss(output, target)

    def end_epoch(self, predict: Predict):
        since = self.epoch + 1 - self.begin
        if since >= 0 and since % self.every == 0:
            features, index = self._features(predict)
            similarity = self._compare(features, self.given[index.to(self.given.device)], index)
            weight = similarity.clamp_min(0).to(self.weight)
            self.weight.index_copy_(0, index.to(self.weight.device), broadcast(weight))
            self.weight.copy_(torch.where(self.verified < 0, self.weight, self.verified))

    def _features(self, predict):
        """v [n, F] of all training samples, and their indices, in that order."""
        self.inputs.wanted = True
        try:
            _, _, index = predict()
        finally:
            self.inputs.wanted = False
        (features,) = gather(torch.cat([part.float().cpu() for part in self.inputs.kept]))
        self.inputs.kept.clear()
        order = index.argsort()
        return features[order], index[order]

    @torch.enable_grad()
    def _compare(self, features, labels, index):
        """s [n], of a network that is fitted to these samples; random numbers stay as they were."""
        device = self.weight.device
        normalised = NORMALISATIONS[self.normalisation](features).to(device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.epoch)
            references = class_references(
                normalised, labels, self.num_outputs, self.num_references, seed=self.epoch
            )
            network = CleanNetwork(normalised.shape[1]).to(device)
            known = self.verified[index.to(device)]
            self._fit(network, normalised, labels, references, known)
            with torch.no_grad():
                parts = zip(normalised.split(1024), labels.split(1024), strict=True)
                return torch.cat([network(*part, references)[0] for part in parts])

    def _fit(self, network, features, labels, references, known):
        optimizer = torch.optim.SGD(
            [
                {"params": network.matrices(), "weight_decay": self.decay},
                {"params": [p for p in network.parameters() if p.ndim < 2]},
            ],
            lr=self.rate,
            momentum=0.9,
        )
        milestones = [max(1, round(drop * self.steps)) for drop in DROPS]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
        pools = [rows for rows in ((known >= 0).nonzero(), (known < 0).nonzero()) if len(rows)]
        for _ in range(self.steps):
            rows = torch.cat([pool[torch.randint(len(pool), (BATCH,))] for pool in pools])[:, 0]
            similarity, decoded = network(features[rows], labels[rows], references)
            losses = comparison_losses(
                similarity, features[rows], decoded, known[rows], **self.terms
            )
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            schedule.step()

    def sample_score(self) -> Tensor:
        """Minus the weight, [N]; -1 before the first are computed."""
        return -self.weight


class Inputs:
    """What a layer is given, kept while it is wanted.

    The hook is there from the beginning: a model that is compiled ignores later ones.
    """

    def __init__(self, layer: nn.Module):
        self.wanted, self.kept = False, []

        def keep(module, inputs):
            if self.wanted:
                self.kept.append(inputs[0].detach())

        layer.register_forward_pre_hook(keep)


class CleanNetwork(nn.Module):
    """Both encoders: how similar samples are to the class that their label names.

    All layers end in tanh. The query encoder has 256 and 128 units, and a decoder of 256; the
    reference encoder 512 and 256 for each reference, of which attention makes one of 128.
    """

    def __init__(self, num_features: int):
        super().__init__()
        sizes = [num_features, 256, 128, 256, num_features]
        self.query = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))
        sizes = [num_features, 512, 256, 256]
        self.reference = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))
        self.summary = nn.Linear(256, 128)
        self.context = nn.Parameter(torch.randn(256) / 16)

    def matrices(self) -> list[Tensor]:
        """The weight matrices."""
        return [parameter for parameter in self.parameters() if parameter.ndim == 2]

    def embed_query(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """phi_q [B, 128] of features [B, F], and these decoded from it [B, F]."""
        first, second, third, fourth = self.query
        embedded = torch.tanh(second(torch.tanh(first(features))))
        return embedded, torch.tanh(fourth(torch.tanh(third(embedded))))

    def embed_references(self, references: Tensor) -> Tensor:
        """phi_s [C, 128] of references [C, K, F]."""
        first, second, third = self.reference
        hidden = torch.tanh(second(torch.tanh(first(references))))
        attention = (torch.tanh(third(hidden)) @ self.context).softmax(1)
        return torch.tanh(self.summary((attention.unsqueeze(2) * hidden).sum(1)))

    def forward(
        self, features: Tensor, labels: Tensor, references: Tensor
    ) -> tuple[Tensor, Tensor]:
        """s [B] of samples with these labels, and their features decoded [B, F]."""
        query, decoded = self.embed_query(features)
        classes, position = labels.unique(return_inverse=True)
        own = self.embed_references(references[classes])[position]
        return F.cosine_similarity(own, query, dim=1), decoded


NORMALISATIONS = {
    # features may be a little below 0, behind other activations than ReLU
    "log": lambda features: features.clamp_min(-0.999).log1p(),
    "l2": lambda features: F.normalize(features, dim=1),
    "none": lambda features: features,
}


def comparison_losses(
    similarity: Tensor,
    features: Tensor,
    decoded: Tensor,
    verified: Tensor,
    *,
    negative_weight: float,
    margin: float,
    beta: float,
    gamma: float,
) -> Tensor:
    """The loss of each sample [B]; verified [B] is 1, 0, or -1 if it is not known."""
    known = verified >= 0
    right = torch.where(known, verified == 1, similarity.detach() >= margin)
    apart = torch.where(right, 1 - similarity, negative_weight * (similarity - margin).relu())
    apart = torch.where(known, apart, gamma * apart)
    return apart + beta * (features - decoded).square().sum(1)


def class_references(
    features: Tensor, labels: Tensor, num_outputs: int, count: int, seed: int
) -> Tensor:
    """Features [C, K, F] that stand for each class: centres of a k-means of those under its label.

    As the authors': 50 iterations, a tolerance of 1e-4, the best of 10 starts. A class without
    samples has zeros.
    """
    from sklearn.cluster import KMeans  # takes a second to import

    references = torch.zeros(num_outputs, count, features.shape[1], device=features.device)
    for number in range(num_outputs):
        members = features[labels == number].cpu()
        centres = members
        if len(members) > count:
            kmeans = KMeans(count, n_init=10, max_iter=50, tol=1e-4, random_state=seed)
            centres = torch.from_numpy(kmeans.fit(members.numpy()).cluster_centers_)
        if len(members):
            repeated = centres.repeat(-(-count // len(centres)), 1)[:count]
            references[number] = repeated.to(references)
    return references
