"""The trained network of a finished run: network.pt, its weights, and network.json, its use."""

import io
import json
from pathlib import Path

import torch
from torch import nn

from utils.errors import UserError
from utils.files import atomic_write, read_json
from utils.run_state import finished_config

WEIGHTS, USE = "network.pt", "network.json"


def write_network(directory: Path, model: nn.Module, use: dict):
    """Write the weights of a network, and what has to be known to use it."""
    buffer = io.BytesIO()  # written to a file, torch.save hides why it failed
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, buffer)
    with atomic_write(directory / WEIGHTS, "wb") as file:
        file.write(buffer.getbuffer())
    with atomic_write(directory / USE) as file:
        json.dump(use, file, indent=1)


def describe_use(config: dict, data, networks: int) -> dict:
    """What has to be known to use a network: how to build it, its classes and its inputs.

    Args:
        config: of the run.
        data: the datasets.base.Dataset that it was trained on.
        networks: how many the method trains.
    """
    return {
        "model": config["model"],
        "facts": {
            "num_outputs": data.num_outputs,
            "in_channels": data.in_channels,
            "image_size": data.image_size,
        },
        "networks": networks,
        "evaluate_networks": config["evaluate_networks"],
        "classes": data.classes,
        "dataset": config["dataset"],
        "mean": list(data.mean),
        "std": list(data.std),
        "features": config["features"],
        "files": isinstance(data.train.source, list),  # else images in memory, of one size
    }


def check_finished(directory: Path):
    """Raise UserError if this is not the directory of a finished run that has left its network."""
    finished_config(directory)
    if not (directory / WEIGHTS).exists():
        raise UserError(
            f"{directory} was finished by a version that left no {WEIGHTS}: it has to be run anew"
        )


def read_use(directory: Path) -> dict:
    """network.json of a finished run.

    Raises UserError as ``check_finished``, OSError if it is damaged.
    """
    check_finished(directory)
    use = read_json(directory / USE)
    if not isinstance(use, dict) or not {"model", "facts", "classes", "dataset"} <= use.keys():
        raise OSError(f"{directory / USE} is damaged: it does not say how the network is built")
    return use


def load_weights(model: nn.Module, directory: Path):
    """Give a network the weights that a finished run has left.

    Raises UserError if they do not fit, OSError if they are damaged.
    """
    check_finished(directory)
    path = directory / WEIGHTS
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        tensors = isinstance(state, dict) and all(map(torch.is_tensor, state.values()))
        if not tensors:
            raise ValueError("it holds no weights")
    except Exception as error:  # of zipfile, pickle or PyTorch, as the damage may be
        reason = str(error).split("\n")[0]
        raise OSError(f"{path} cannot be read ({reason})") from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n")[1:3]).strip()
        raise UserError(
            f"the weights of {path} are those of another network, or for other classes: {reason}"
        ) from None
