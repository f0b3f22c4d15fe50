"""Checkpoints that survive.

Written atomically, verified when read, the previous one kept; and signals that ask to stop.
"""

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
from utils.files import atomic_write
from utils.seed import restore_rng_state, rng_state


class Checkpoint:
    """The state of a run's parts, anything with ``state_dict`` and ``load_state_dict``, in one
    file.

    ``checkpoint.pt`` is the newest; ``checkpoint.previous.pt``, the one before, stays in case the
    newest is damaged. Of several processes the first writes; the parts are the same in all, but for
    their random numbers, which are all saved.
    """

    budget = 0.02  # of the time, at most, that goes into checkpoints that are not needed
    patience = 1800  # seconds that may pass without one, whatever it takes

    def __init__(self, directory: Path, **parts):
        self.saved, self.cost = -math.inf, 0.0  # when, and how many seconds it took
        self.newest, self.previous = (
            directory / "checkpoint.pt",
            directory / "checkpoint.previous.pt",
        )
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def save(self, epoch: int, step: int, needed: bool = True):
        """Save where the run stands: the next batch to train on is ``step`` of ``epoch``. Returns
        when that is on disk.

        What is not ``needed`` is saved unless that would take more than ``budget`` of the time
        since the last one.
        """
        start = time.monotonic()
        if not all_gather_objects(
            needed or start - self.saved >= min(self.cost / self.budget, self.patience)
        )[0]:
            return
        self._write(epoch, step, all_gather_objects(rng_state()))
        barrier()  # torchrun kills the others soon after the first that ends
        self.saved = time.monotonic()
        self.cost = self.saved - start

    @main_process_only
    def _write(self, epoch, step, random_states):
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"epoch": epoch, "step": step, "rng": random_states}
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

        Raises OSError where there are checkpoints, but none that can be read; or not all processes
        see the same.
        """
        with fail_together():
            found = self._load()
        if len(set(all_gather_objects(found))) > 1:
            raise OSError(
                f"the processes do not all see the same {self.newest}: run_dir must lie on a file system that all "
                f"nodes share"
            )
        return found

    def _load(self):
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
                states = (
                    state["rng"] if isinstance(state["rng"], list) else [state["rng"]]
                )  # older ones hold one
                if rank() < len(states):
                    restore_rng_state(states[rank()])
                else:  # it was saved by fewer processes
                    torch.manual_seed(rank())
                return state["epoch"], state["step"]
        if errors:
            raise OSError(
                "\n".join(
                    [*errors, f"nothing to resume from: remove {self.newest.parent} to start again"]
                )
            )
        return None


def _read(path):
    """The state in a checkpoint.

    What torch.save wrote, followed by its SHA-256, since torch.load looks at no checksum.
    """
    content = path.read_bytes()
    state, digest = content[:-32], content[-32:]
    if hashlib.sha256(state).digest() != digest:
        raise ValueError("its content does not match its checksum")
    return torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)


class StopRequest:
    """While entered, remembers that SIGTERM, SIGUSR1 or Ctrl-C arrived, for the loop to look at
    between two steps.

    A second Ctrl-C interrupts at once, unless there are several processes: to those torchrun passes
    on the first one.
    """

    received: int = 0

    def __enter__(self):
        self.former = {
            number: signal.signal(number, self._remember)
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        }
        return self

    def _remember(self, number, frame):
        self.received = number
        if not is_distributed():
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self) -> str | None:
        """The signal that this process or any other has received, or None.

        The same in all that ask at the same step.
        """
        number = max(all_gather_objects(int(self.received)))
        return signal.Signals(number).name if number else None

    def __exit__(self, *error):
        for number, handler in self.former.items():
            signal.signal(number, handler)
