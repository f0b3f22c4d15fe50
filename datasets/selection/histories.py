"""What another run has recorded: its labels, and the losses of every sample."""

from pathlib import Path

import numpy as np

from datasets.noise import Noise
from utils import files
from utils.errors import UserError


def read_settings(directory: Path) -> dict:
    """``dataset`` (its name), ``selection`` and the noise's ``kind, fraction, seed`` of a run.

    Raises OSError or UserError if its config.yaml cannot be read.
    """
    path = directory / "config.yaml"
    try:
        config = files.read_yaml(path.resolve())
        return {
            "dataset": config["dataset"]["name"],
            "selection": config["dataset"].get("selection") or {},
            **{key: config["noise"][key] for key in ("kind", "fraction", "seed")},
        }
    except (AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def read_noise(directory: Path) -> Noise:
    """The labels that the run of this directory trains on.

    Raises FileNotFoundError or UserError if they cannot be read.
    """
    for name in ("noise.npz", "config.yaml"):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory} has no {name}, so it is not the directory of a run, whose labels it "
                f"says"
            )
    settings = read_settings(directory)
    stored = read_arrays(directory / "noise.npz", "given", "true", "transition", "sha256")
    given, true, transition, sha256 = stored
    return Noise(given, true, transition, str(sha256), settings["kind"], settings["fraction"])


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of a .npz; raises UserError if they cannot be read."""
    try:
        arrays = files.read_arrays(path.resolve(), names)
    except OSError as error:
        raise UserError(str(error)) from None
    return [arrays[name] for name in names]


def read_history(
    path: str | Path | None, noise: Noise, rows: np.ndarray | None = None
) -> np.ndarray:
    """The recorded losses [E, N], memory-mapped, of a run with the same labels.

    Args:
        rows: what that run has to have trained on.

    Raises:
        FileNotFoundError: no such history, or not in a run's directory.
        UserError: a history of other labels or another validation split, or damaged.
    """
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no history {path}: it is losses.npy of a run with record_losses=true"
        )
    directory = Path(path).parent
    recorded = read_noise(directory)
    try:
        history = files.map_array(Path(path).resolve())
    except OSError as error:
        raise UserError(str(error)) from None
    if history.ndim != 2 or history.dtype.kind != "f" or len(history) == 0:
        raise UserError(
            f"{path} must hold losses [E, N], got {history.dtype} {list(history.shape)}"
        )
    if history.shape[1] != len(noise.given) or recorded.sha256 != noise.sha256:
        settings = read_settings(directory)
        raise UserError(
            f"{path} was recorded with other labels: dataset {settings['dataset']}, "
            f"{history.shape[1]} samples, noise {settings['kind']} {settings['fraction']}, "
            f"noise.seed {settings['seed']}; this run has {len(noise.given)} samples, noise "
            f"{noise.kind} {noise.fraction}. Use the same dataset, noise and noise.seed in both"
        )
    others = [] if rows is None else np.setdiff1d(np.arange(history.shape[1]), rows)
    if np.isfinite(history[0, others]).any():
        raise UserError(
            f"{path} was recorded with another validation split: use the same validation.fraction, "
            f"validation.clean and noise.seed in both runs"
        )
    return history
