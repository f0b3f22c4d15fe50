"""labels.npz: the labels that a run leaves for another one to train on."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import read_arrays, write_arrays


def write_labels(path: Path, labels: Tensor, sha256: str):
    """Write labels [N], or distributions [N, C], of all training samples.

    ``sha256`` is the hash of the given labels, which identifies the data set and its noise.
    """
    array = labels.numpy(force=True)
    write_arrays(path, index=np.arange(len(array)), labels=array, given_sha256=sha256)


def read_labels(path: str, *, num_samples: int, num_classes: int, sha256: str) -> Tensor:
    """What ``write_labels`` wrote, checked.

    Class numbers [N] (int64) or distributions [N, C] (float32); numbers [N] if num_classes is 0.

    Raises:
        FileNotFoundError: no such file.
        UserError: it cannot be read, is of other data, or does not hold labels.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"targets={path}: there is no such file; it is labels.npz in the directory of a "
            "finished run whose method makes labels"
        )
    try:
        arrays = read_arrays(Path(path).resolve(), ("labels", "given_sha256"))
        labels, given_sha256 = arrays["labels"], str(arrays["given_sha256"])
    except OSError as error:
        raise UserError(f"targets={path} cannot be read as labels.npz of a run ({error})") from None
    shapes = [(num_samples,), (num_samples, num_classes)] if num_classes else [(num_samples,)]
    if labels.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise UserError(
            f"targets={path} holds labels {list(labels.shape)}, and this training set needs "
            f"{expected}: it is of another data set"
        )
    if given_sha256 != sha256:
        raise UserError(
            f"targets={path} was made from other given labels: use the same dataset, noise and "
            "noise.seed in both runs"
        )
    _check_values(path, labels, num_classes)
    if num_classes and labels.ndim == 1:
        return torch.from_numpy(labels.astype(np.int64))
    return torch.from_numpy(labels.astype(np.float32))


def _check_values(path, labels, num_classes):
    if labels.dtype.kind not in "iuf" or not np.isfinite(labels).all():
        raise UserError(f"targets={path} must hold finite numbers, got {labels.dtype}")
    if labels.ndim == 2:
        if labels.min() < 0 or np.abs(labels.sum(1) - 1).max() > 1e-3:
            raise UserError(f"targets={path} must hold distributions: rows >= 0 that sum to 1")
    elif num_classes:
        whole = labels == np.floor(labels)
        if not whole.all() or labels.min() < 0 or labels.max() >= num_classes:
            raise UserError(f"targets={path} must hold class numbers in [0, {num_classes})")
