"""What a run was begun with: written into its directory once, and compared when it is resumed."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from utils.distributed import main_process_only
from utils.errors import UserError
from utils.escapes import in_a_cell
from utils.files import (
    atomic_write,
    file_sha256,
    map_array,
    read_arrays,
    read_json,
    write_arrays,
)
from utils.run_state import DATA, read_config


def write_or_compare(path: Path, description: str, keys: tuple[str, ...], **arrays):
    """Write a .npz file, or compare these keys of one that is there.

    A key that neither an older file nor the new arrays have counts as equal.

    Raises UserError if they differ, OSError if that file is damaged.
    """
    arrays = {key: value for key, value in arrays.items() if value is not None}
    if not os.path.lexists(path):
        write_arrays(path, **arrays)
        return
    try:
        before = read_arrays(path)
    except OSError as error:
        raise OSError(f"{error}: put it back, or remove {path.parent} to start again") from None
    for key in keys:
        if key not in before and key not in arrays:
            continue
        in_both = key in before and key in arrays
        if not in_both or not np.array_equal(before[key], arrays[key]):
            raise UserError(
                f"the {description} are not those that {path} says the run was begun with; "
                "choose another run_dir="
            )


def write_config(directory: Path, config: dict):
    """config.yaml: the resolved configuration."""
    with atomic_write(directory / "config.yaml") as file:
        yaml.safe_dump(config, file, sort_keys=False)


def write_noise(
    directory: Path,
    noise,
    trusted: np.ndarray,
    targets: np.ndarray | None,
    listing: str | None = None,
):
    """noise.npz: the labels of the training set.

    Args:
        noise: a datasets.noise.Noise.
        trusted: positions of the samples whose true labels the method uses.
        targets: the labels that another run left, which this one trains on.
        listing: of the files, as of ``list_files``, if the lists of the data do not say which.

    Raises UserError if the run was begun with others.
    """
    write_or_compare(
        directory / "noise.npz",
        "labels",
        ("sha256", "trusted", "targets"),
        given=noise.given,
        true=noise.true,
        index=np.arange(len(noise.given)),
        num_classes=noise.num_classes,
        transition=noise.transition if noise.num_classes <= 1000 else None,
        sha256=noise.sha256,
        trusted=trusted if len(trusted) else None,
        targets=targets,
        files_sha256=None if listing is None else _sha256(listing),
    )


def list_files(train: Sequence, test: Sequence) -> str | None:
    """split.csv: which files are the training and the test part; None if they are no files.

    An image that cannot be read is none of them if features take the place of images.
    """
    if not all(isinstance(name, str) for name in (*train[:1], *test[:1])):
        return None
    content = io.StringIO()
    folders = {os.path.dirname(os.path.abspath(name)) for name in (*train, *test)}
    root = os.path.commonpath(folders)
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["part", "path"])
    for part, names in (("train", train), ("test", test)):
        writer.writerows([part, in_a_cell(os.path.relpath(name, root))] for name in names)
    return content.getvalue()


def _sha256(text):
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def check_samples(directory: Path, train: Sequence, test: Sequence):
    """Raise UserError if these are not the files that a finished run was trained and tested on.

    Of a run of an older version split.csv knows it, if the files were split by the program.
    """
    before, split = read_arrays(directory / "noise.npz"), directory / "split.csv"
    known = before.get("files_sha256")
    if known is None and split.exists():
        known = file_sha256(split)
    same = len(before["given"]) == len(train)
    if same and known is not None:
        same = str(known) == _sha256(list_files(train, test) or "")
    if not same:
        raise UserError(
            f"the samples of {directory} are not those that it was trained on, though its lists "
            "are the same: images that could not be read can be now, or the other way round "
            "(unreadable_images in its summary.json), or what were copies of each other are none "
            "now; put them back as they were, or train again"
        )


def write_data(directory: Path, contents: dict[str, dict]):
    """data.json: how many samples each part of the data has by class, and a hash of their list.

    Args:
        contents: of datasets.contents.

    Raises UserError if the run was begun with others.
    """
    changed = changes(directory, contents)
    if changed:
        raise UserError(
            f"the data are not those that {directory / DATA} says the run was begun with: "
            f"{changed}; choose another run_dir="
        )
    if contents and not (directory / DATA).exists():
        with atomic_write(directory / DATA) as file:
            json.dump(contents, file, indent=1)


def changes(directory: Path, contents: dict[str, dict]) -> str:
    """What has changed in the data since a run was begun, in words; "" if nothing is known to have.

    Raises UserError if data.json cannot be read.
    """
    path = directory / DATA
    if not path.exists():  # of an older run, or of data that cannot change
        return ""
    try:
        before, found = read_json(path), []
        if "recording" not in contents:  # which a finished run needs no more
            before.pop("recording", None)
        for part in sorted(before.keys() | contents.keys()):
            old, new = before.get(part), contents.get(part)
            if old is None or new is None:
                found.append(f"{part} is {'new' if old is None else 'gone'}")
            elif old != new:
                found += _changed_classes(part, old["classes"], new["classes"])
    except OSError as error:
        raise UserError(str(error)) from None
    except (AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(found[:5]) + more


def _changed_classes(part, old, new):
    counts = [
        (name, old.get(name, 0), new.get(name, 0)) for name in sorted(old.keys() | new.keys())
    ]
    if counts == [("", 1, 1)]:  # a single file
        return [f"{part} is another file, or has been changed"]
    return [
        f"{part} had {before} samples{f' of class {name}' if name else ''} and has {now}"
        for name, before, now in counts
        if before != now
    ] or [f"{part} has other samples, labels or sizes of files, or another order"]


def write_selection(directory: Path, selection):
    """selection.npz: the samples that are trained on, a datasets.selection.Selection.

    Raises UserError if the run was begun with others.
    """
    known = ("counts", "precision", "recall", "precision_per_class", "recall_per_class")
    report = selection.report
    write_or_compare(
        directory / "selection.npz",
        "selected samples",
        ("index", "weight"),
        index=selection.index,
        weight=selection.weight,
        mean_loss=selection.mean_loss,
        **{key: np.array(report[key], float) for key in known if key in report},
    )


def write_split(directory: Path, listing: str):
    """split.csv: what ``list_files`` says.

    Raises UserError if the run was begun with others.
    """
    path = directory / "split.csv"
    if not os.path.lexists(path):
        with atomic_write(path) as file:
            file.write(listing)
    elif file_sha256(path) != _sha256(listing):
        raise UserError(f"the files are no longer those that {path} lists: choose another run_dir=")


def create_recordings(
    directory: Path,
    names: Sequence[str],
    num_epochs: int,
    num_samples: int,
    *,
    longer: bool = False,
):
    """Files [E, N], losses.npy and perhaps margins.npy, all NaN, that are not there.

    ``longer``: those that are may have fewer epochs, and get the others.

    Raises:
        UserError: losses.npy is gone from a run that has recorded some. Margins may be: older runs
            recorded none.
        OSError: one is damaged.
    """
    advice = f"put it back, or remove {directory} to start again"
    for name in names:
        path = directory / name
        if os.path.lexists(path):
            before = _read_recording(path, (num_epochs, num_samples), advice, longer)
            if len(before) < num_epochs:
                more = np.full((num_epochs - len(before), num_samples), np.nan, np.float32)
                with atomic_write(path, "wb") as file:
                    np.save(file, np.concatenate([before, more]))
            continue
        if name == "losses.npy" and any(directory.glob("checkpoint*.pt")):
            raise UserError(
                f"{path} is gone, and with it the losses of the epochs that are over: {advice}"
            )
        with atomic_write(path, "wb") as file:
            np.save(file, np.full((num_epochs, num_samples), np.nan, np.float32))


def _read_recording(path, shape, advice, longer):
    try:
        before = map_array(path)
    except OSError as error:
        raise OSError(f"{error}: {advice}") from None
    fits = before.shape == shape or (longer and before.shape[1:] == shape[1:])
    if not fits or before.dtype != np.float32:
        raise OSError(
            f"{path} must hold the {path.stem} of {shape[0]} epochs and {shape[1]} samples, got "
            f"{before.dtype} {list(before.shape)}: {advice}"
        )
    return before


@main_process_only
def check_losses(directory: Path, epoch: int, rows: np.ndarray):
    """Raise OSError if losses.npy lacks an epoch before ``epoch``, e.g. as it is an old copy.

    ``rows``: positions of the samples that are recorded.
    """
    history = map_array(directory / "losses.npy")
    missing = np.isnan(history[:epoch, rows[:100]]).all(axis=1)
    if missing.any():
        raise OSError(
            f"{directory / 'losses.npy'} lacks the losses of epoch {missing.argmax()}, which is "
            f"over: put the newest back, or remove {directory} to start again"
        )


def record(path: Path, epoch: int, values: np.ndarray, index: np.ndarray):
    """Write the values of these samples into the row of an epoch; those of others stay NaN."""
    history = map_array(path, "r+")
    history[epoch, index] = values
    history.flush()


def origin(path: Path) -> dict:
    """What left a file: the configuration of its run, or if there is none, the file's own hash."""
    try:
        config = read_config(path.parent)
    except OSError:  # damaged
        config = None
    return {"sha256": file_sha256(path)} if config is None else {"config": config}
