"""Files that are written as a whole or not at all, and files of others, which may be anything."""

import hashlib
import json
import math
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import yaml

# Bytes that are read at most, far above what a run writes: whoever left the file may not be honest.
LARGEST_TEXT = 64 * 2**20
LARGEST_JSON = 16 * 2**20
LARGEST_YAML = 4 * 2**20  # each byte of which may take 200 of memory
LARGEST_ARRAYS = 4 * 2**30  # of all arrays that are asked for, unpacked
MOST_NODES = 1_000_000  # values in a YAML file, with its aliases written out
YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@contextmanager
def atomic_write(path: Path, mode: str = "w"):
    """Open a temporary file, and rename it to ``path`` once it is complete and on disk.

    If anything goes wrong before that, e.g. the disk is full, ``path`` stays as it was and no
    temporary file is left behind.

    Raises OSError if ``path`` is there and no regular file: a device would be replaced by a file,
    and so would a link, e.g. /dev/stdout.
    """
    options = {}
    if "b" not in mode:
        options = {"encoding": "utf-8", "errors": "surrogateescape"}  # fits the name of any file
    if os.path.lexists(path):
        check_regular(path)
    # The name is fixed: the lock of a run's directory makes sure that there is one writer.
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # of a killed process; or a link to some other file
    try:
        with open(temporary, mode.replace("w", "x"), **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_regular(path: Path):
    """Raise OSError if there is no such file, or it is a link, a folder, a device or a FIFO."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        raise OSError(f"{path} is a link, which is not followed: name the file itself")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is no regular file")


def open_regular(path: Path, mode: str = "rb") -> BinaryIO:
    """Open a file that is there, "rb" or "r+b", if it is a regular one and no link.

    Anything else may keep us waiting for ever, or show or change a file that is elsewhere.
    """
    check_regular(path)
    access = os.O_RDWR if "+" in mode else os.O_RDONLY
    descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return open(descriptor, mode)


def read_bytes(path: Path, limit: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file; raises OSError if it is none, or longer than ``limit``."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"{path} has more than {limit:,} bytes")
    return content


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, which may be larger than the memory; links are followed."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_text(path: Path, limit: int = LARGEST_TEXT) -> str:
    """The text in a regular file; raises OSError if it is none, or longer than ``limit``."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise OSError(f"{path} is no text ({error})") from None


def read_json(path: Path) -> dict:
    """A JSON file that holds keys and values; raises OSError if it is none."""
    try:
        return _checked(json.loads(read_text(path, LARGEST_JSON)))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path} cannot be read ({error})") from None


def read_yaml(path: Path) -> dict:
    """A YAML file that holds keys and values; raises OSError if it is none.

    One whose aliases stand for too much is none: a kilobyte of them can stand for gigabytes.
    """
    try:
        loader = YAML(read_text(path, LARGEST_YAML))
        try:
            node = loader.get_single_node()
            if _written_out(node, {}) > MOST_NODES:
                raise ValueError(f"it stands for more than {MOST_NODES:,} values")
            return _checked(None if node is None else loader.construct_document(node))
        finally:
            loader.dispose()
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # in one line
        raise OSError(f"{path} cannot be read ({reason})") from None


def _written_out(node, known: dict[int, float]) -> float:
    """How many nodes a node stands for; infinitely many if it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in children for part in pair]
        known[id(node)] = 1 + sum(_written_out(child, known) for child in children)
    return known[id(node)]


def _checked(content) -> dict:
    """The content of a file, if it is keys and values as JSON has them; else raises ValueError."""
    if not isinstance(content, dict):
        raise ValueError(f"it must hold keys and values, got {type(content).__name__}")
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise ValueError("all its keys must be texts")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, int) and abs(value) >= 2**64:
            raise ValueError("it has a whole number of more than 64 bits")
        elif value is not None and not isinstance(value, (str, int, float)):
            raise ValueError(f"it has a value of type {type(value).__name__}")
    return content


def read_arrays(
    path: Path, names: tuple[str, ...] | None = None, limit: int = LARGEST_ARRAYS
) -> dict[str, np.ndarray]:
    """These arrays of an .npz, or all.

    Raises OSError if it is none, if it lacks one, or if they take more than ``limit`` bytes.
    """
    with open_regular(path) as file:
        try:
            with np.load(file, allow_pickle=False) as stored:
                names = stored.files if names is None else names
                size = sum(stored.zip.getinfo(f"{name}.npy").file_size for name in names)
                if size > limit:
                    raise ValueError(f"its arrays have more than {limit:,} bytes")
                return {name: stored[name] for name in names}
        except Exception as error:  # of NumPy, zipfile or zlib, as the damage may be
            reason = str(error).strip("'\"") or type(error).__name__
            raise OSError(f"{path} cannot be read ({reason})") from None


def write_arrays(path: Path, **arrays):
    """Write these arrays as an .npz."""
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def map_array(path: Path, mode: str = "r") -> np.memmap:
    """The array in an .npy, memory-mapped: "r", or "r+" to change it.

    Raises OSError if it is none, or not as long as its header says.
    """
    check_regular(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # "r+" would append zeros
        if not isinstance(array, np.memmap):
            raise ValueError("it is no .npy")
        if path.stat().st_size != array.offset + array.nbytes:
            raise ValueError("it is longer than its header says")
        return array if mode == "r" else np.load(path, mmap_mode=mode, allow_pickle=False)
    except Exception as error:  # whatever a text in the place of a header may raise
        raise OSError(f"{path} cannot be read ({error})") from None
