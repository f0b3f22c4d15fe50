"""What the trials of a search are drawn from.

A trial is drawn from its number and the name of each key alone: all methods try the same learning
rates and weight decays, and more trials leave the first ones as they are; but those of mnist_mlp,
published with its learning rate, draw only what is the method's own. Nothing of what a search on
test images has put into a params file is tried.
"""

import random
from collections.abc import Callable

from utils.config import resolve
from utils.errors import UserError


def log_uniform(low: float, high: float) -> Callable:
    """Draws uniformly on a logarithmic scale, to three digits."""
    return lambda generator, epochs: float(f"{low * (high / low) ** generator.random():.3g}")


def uniform(low: float, high: float) -> Callable:
    """Draws uniformly, to three digits."""
    return lambda generator, epochs: float(f"{generator.uniform(low, high):.3g}")


def choice(*values) -> Callable:
    """Draws one of the values."""
    return lambda generator, epochs: generator.choice(values)


def epoch(low: float, high: float) -> Callable:
    """Draws a whole epoch between these fractions of a run."""
    return lambda generator, epochs: generator.randint(round(low * epochs), round(high * epochs))


COMMON = {
    "optimizer.lr": log_uniform(0.001, 0.3),
    "optimizer.weight_decay": log_uniform(1e-5, 1e-2),
}
SMALL_LOSSES = {"loss.forget_rate_scale": uniform(0.5, 1.1), "loss.num_gradual": epoch(0.1, 0.6)}
# by the name of the params file; DiscrimLoss's are the ranges that its authors searched, widened
SPACES = {
    "plain": {},
    "discrimloss": {
        "loss.a": uniform(0.1, 0.5),
        "loss.p": uniform(0.2, 2),
        "loss.q": epoch(0.1, 0.9),
        "loss.suppression_epochs": choice(0, 1, 2, 3),
        "loss.sigma_lr": log_uniform(0.01, 10),
        "loss.sigma_decay": choice(0.0),
        "loss.log_sigma_low": choice(-3.0, 0.05, 0.1, 0.2, 0.4, 0.7),
    },
    "superloss": {"loss.tau": choice("null", "ema"), "loss.lam": log_uniform(0.1, 10)},
    "data_parameters": {
        "loss.level": choice("instance", "class", "both"),
        "loss.instance_lr": log_uniform(0.01, 10),
        "loss.class_lr": log_uniform(0.01, 10),
    },
    # its gradients do not shrink as the network fits, so that it diverges at the others' rates
    # where there is no BatchNorm
    "gradient_rescaling": {
        "optimizer.lr": log_uniform(1e-4, 0.03),
        "loss.beta": log_uniform(0.5, 16),
        "loss.lam": choice(0.0, 0.5, 1.0, 2.0),
    },
    "gce": {"loss.q": uniform(0.1, 1)},
    "truncated_gce": {
        "loss.q": uniform(0.1, 1),
        "loss.k": uniform(0.1, 0.6),
        "loss.prune_from": epoch(0.1, 0.7),
    },
    "rsl": {"dataset.selection.beta": uniform(0, 0.4)},
    "co_teaching": SMALL_LOSSES,
    "co_teaching_plus": SMALL_LOSSES | {"loss.warmup_epochs": epoch(0, 0.3)},
    "jocor": SMALL_LOSSES | {"loss.lam": uniform(0.1, 0.95)},
    "decoupling": {"loss.floor": uniform(0, 0.5)},
    "selfie": {
        "loss.warm_up": epoch(0.3, 0.6),
        "loss.q": choice(2, 3),
        "loss.eps": uniform(0, 0.5),
    },
    "joint_optimization": {
        "loss.alpha": log_uniform(0.1, 5),
        "loss.beta": log_uniform(0.1, 5),
        "loss.begin": epoch(0.2, 0.6),
    },
    "mentornet": {"loss.percentile": uniform(0.3, 0.9), "loss.decay": uniform(0, 0.95)},
    "forward_correction": {
        "loss.estimate_epochs": epoch(0.1, 0.5),
        "loss.percentile": uniform(80, 100),
    },
    "two_stage": {
        "loss.select_epochs": epoch(0.1, 0.5),
        "loss.share": uniform(0.1, 0.7),
        "loss.max_weight": log_uniform(1, 100),
    },
}

# of 200 epochs with Adam, in which a network begins to learn wrong labels by heart after the tenth
MNIST_MLP = {
    "discrimloss": SPACES["discrimloss"] | {"loss.q": epoch(0.025, 0.5)},
    "selfie": SPACES["selfie"] | {"loss.warm_up": epoch(0.025, 0.2), "loss.q": choice(3, 5)},
    "joint_optimization": SPACES["joint_optimization"] | {"loss.begin": epoch(0.05, 0.2)},
}


def space_of(dataset: str, method: str) -> dict[str, Callable]:
    """Key -> what draws its values. mnist_mlp is published with its learning rate, which stays.

    Raises:
        UserError: there is none for this method.
    """
    if method not in SPACES:
        raise UserError(f"there is no search space for {method!r}; choose from {', '.join(SPACES)}")
    if dataset == "mnist_mlp":
        return MNIST_MLP.get(method, SPACES[method])
    return COMMON | SPACES[method]


def draw(dataset: str, method: str, trial: int) -> list[str]:
    """The overrides of a trial."""
    space = space_of(dataset, method)
    epochs = resolve(f"params/{dataset}/{method}.yaml", [])["epochs"]
    return [f"{key}={space[key](random.Random(f'{key} {trial}'), epochs)}" for key in space]
