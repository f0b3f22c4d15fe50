"""Checkpoints that survive: written atomically, verified when read, the previous one kept; and signals that ask to stop."""

import hashlib
import io
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from utils.seed import restore_rng_state, rng_state


@contextmanager
def atomic_write(path: Path, mode: str = "w"):
    """Open a temporary file beside ``path``, and rename it to ``path`` once it is whole and on disk.

    Whatever goes wrong before that, a full disk among it, leaves ``path`` as it was and no temporary file behind.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape"}  # which can write any file's name
    temporary = path.with_name(f".{path.name}.tmp")  # one writer a run directory: the lock sees to it
    try:
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Checkpoint:
    """The state of a run's parts, anything with ``state_dict`` and ``load_state_dict``, in one file.

    ``checkpoint.pt`` is the newest; ``checkpoint.previous.pt``, the one before, stays in case the newest is damaged.
    """

    def __init__(self, directory: Path, **parts):
        self.newest, self.previous = directory / "checkpoint.pt", directory / "checkpoint.previous.pt"
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def save(self, epoch: int, step: int):
        """Save where the run stands: the next batch to train on is ``step`` of ``epoch``."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"epoch": epoch, "step": step, "rng": rng_state()}
        buffer = io.BytesIO()  # torch.save hides the reason when a write fails
        torch.save(state, buffer)
        with atomic_write(self.newest, "wb") as file:
            file.write(buffer.getbuffer())
            file.write(hashlib.sha256(buffer.getbuffer()).digest())
            file.flush()
            os.fsync(file.fileno())  # before the newest steps aside
            if self.newest.exists():
                os.replace(self.newest, self.previous)

    def load(self) -> tuple[int, int] | None:
        """Restore all parts; returns (epoch, step), or None where there is no checkpoint.

        Raises:
            ValueError: there are checkpoints, but none that can be read.
        """
        errors = []
        for path in (self.newest, self.previous):
            if path.exists():
                try:
                    state = _read(path)
                except (OSError, ValueError) as error:
                    errors.append(f"{path} is damaged ({error})")
                    continue
                for message in errors:
                    print(f"warning: {message}; going on from {path.name}", file=sys.stderr)
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
                restore_rng_state(state["rng"])
                return state["epoch"], state["step"]
        if errors:
            raise ValueError("\n".join([*errors, f"nothing to resume from: remove {self.newest.parent} to start again"]))
        return None


def _read(path):
    """The state in a checkpoint: what torch.save wrote, followed by its SHA-256, since torch.load looks at no checksum."""
    content = path.read_bytes()
    state, digest = content[:-32], content[-32:]
    if hashlib.sha256(state).digest() != digest:
        raise ValueError("its content does not match its checksum")
    return torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)


class StopRequest:
    """While entered, remembers that SIGTERM, SIGUSR1 or Ctrl-C arrived, for the loop to look at between two steps.

    A second Ctrl-C interrupts at once.
    """

    signal: str | None = None

    def __enter__(self):
        self.former = {number: signal.signal(number, self._remember)
                       for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        return self

    def _remember(self, number, frame):
        self.signal = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *error):
        for number, handler in self.former.items():
            signal.signal(number, handler)
