"""Checkpoints that survive a crash, and signals that ask a run to stop."""

import hashlib
import io
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch

from utils.distributed import (
    all_gather_objects,
    barrier,
    fail_together,
    is_distributed,
    main_process_only,
    rank,
)
from utils.escapes import printable
from utils.files import atomic_write
from utils.seed import restore_rng_state, rng_state


class Checkpoint:
    """The state of all parts of a run, in one file.

    ``checkpoint.pt`` is the newest. The one before stays as ``checkpoint.previous.pt``, in case the
    newest is damaged. Files are written atomically, and verified when they are read. Of several
    processes the first alone writes: the parts are equal in all of them, and the states of their
    random numbers, which are not, are all saved.

    Args:
        directory: of the run.
        parts: anything with ``state_dict`` and ``load_state_dict``; None is left out.
    """

    budget = 0.02  # the largest part of the time that checkpoints which are not needed may take
    patience = 1800  # seconds after which one is written, whatever it costs

    def __init__(self, directory: Path, **parts):
        self.saved, self.cost = -math.inf, 0.0  # when, and how many seconds it took
        self.newest = directory / "checkpoint.pt"
        self.previous = directory / "checkpoint.previous.pt"
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def save(self, epoch: int, step: int, needed: bool = True):
        """Save where the run stands, and return when that is on disk.

        A checkpoint that is not ``needed`` is skipped if it would take more than ``budget`` of the
        time since the last one, unless that is longer ago than ``patience``.

        Args:
            epoch, step: the next batch to train on.
        """
        start = time.monotonic()
        pause = min(self.cost / self.budget, self.patience)
        decision = needed or start - self.saved >= pause
        if not all_gather_objects(decision)[0]:
            return
        self._write(epoch, step, all_gather_objects(rng_state()))
        barrier()  # torchrun kills the other processes soon after the first one ends
        self.saved = time.monotonic()
        self.cost = self.saved - start

    @main_process_only
    def _write(self, epoch, step, random_states):
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"epoch": epoch, "step": step, "rng": random_states}
        buffer = io.BytesIO()  # written to a file, torch.save hides why it failed
        torch.save(state, buffer)
        with atomic_write(self.newest, "wb") as file:
            file.write(buffer.getbuffer())
            file.write(hashlib.sha256(buffer.getbuffer()).digest())
            file.flush()
            os.fsync(file.fileno())  # before the newest is moved away
            if self.newest.exists():
                os.replace(self.newest, self.previous)

    def load(self) -> tuple[int, int] | None:
        """Restore all parts; returns (epoch, step), or None if there is no checkpoint.

        Raises OSError if no checkpoint can be read, or the processes do not all see the same one.
        """
        with fail_together():
            position = self._load()
        if len(set(all_gather_objects(position))) > 1:
            raise OSError(
                f"the processes do not all see the same {self.newest}: run_dir must lie on a file "
                "system that all nodes share"
            )
        return position

    def _load(self):
        errors = []
        for path in (self.newest, self.previous):
            if not path.exists():
                continue
            try:
                state = _read(path)
            except (OSError, ValueError) as error:
                errors.append(f"{path} is damaged ({error})")
                continue
            for message in errors:
                print(f"warning: {printable(message)}; going on from {path.name}", file=sys.stderr)
            self._restore(state)
            return state["epoch"], state["step"]
        if errors:
            advice = f"nothing to resume from: remove {self.newest.parent} to start again"
            raise OSError("\n".join([*errors, advice]))
        return None

    def _restore(self, state):
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        random_states = state["rng"]
        if not isinstance(random_states, list):
            random_states = [random_states]  # an older checkpoint holds that of one process
        if rank() < len(random_states):
            restore_rng_state(random_states[rank()])
        else:  # fewer processes have saved it
            torch.manual_seed(rank())


def _read(path):
    """The state in a checkpoint: what torch.save wrote, followed by its SHA-256.

    torch.load itself checks no checksum.
    """
    content = path.read_bytes()
    state, digest = content[:-32], content[-32:]
    if hashlib.sha256(state).digest() != digest:
        raise ValueError("its content does not match its checksum")
    return torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)


class StopRequest:
    """Remembers, while it is entered, that SIGTERM, SIGUSR1 or Ctrl-C has arrived.

    The training loop asks between two steps. A second Ctrl-C interrupts at once, unless there are
    several processes: torchrun passes the first one on to them, so each would get it twice.
    """

    received: int = 0

    def __enter__(self):
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        self.former = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def _remember(self, number, frame):
        self.received = number
        if not is_distributed():
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self) -> str | None:
        """The signal that any of the processes has received, or None.

        All that ask at the same step get the same answer.
        """
        number = max(all_gather_objects(int(self.received)))
        return signal.Signals(number).name if number else None

    def __exit__(self, *error):
        for number, handler in self.former.items():
            signal.signal(number, handler)
