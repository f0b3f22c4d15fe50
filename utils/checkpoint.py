"""Checkpoints that survive a crash, and signals that ask a run to stop."""

import contextlib
import hashlib
import io
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable
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
from utils.escapes import in_a_line, printable
from utils.files import atomic_write, check_regular, open_regular
from utils.seed import restore_rng_state, rng_state

# What later versions of this project and of PyTorch have added, and do without.
MAY_BE_MISSING = re.compile(
    r"record\.(lr|dynamics|samples\.(seen|plain_pull))|schedule\._\w+|optimizer\.param_groups\.\d+"
    r"\.(maximize|foreach|capturable|differentiable|fused|decoupled_weight_decay)"
    r"|(model|objective)\.(.+\.)?rescale\.(scale|shift)"
)


class Checkpoint:
    """The state of all parts of a run, in one file.

    ``checkpoint.pt`` is the newest. The one before stays as ``checkpoint.previous.pt``, in case the
    newest is damaged or does not fit. Files are written atomically, and verified when they are
    read. Of several processes the first alone writes: the parts are equal in all of them, and the
    states of their random numbers, which are not, are all saved.

    Args:
        directory: of the run.
        fits: whether the run, with its parts restored, can go on from an epoch and a step.
        parts: anything with ``state_dict`` and ``load_state_dict``; None is left out.
    """

    budget = 0.02  # the largest part of the time that checkpoints which are not needed may take
    patience = 1800  # seconds after which one is written, whatever it costs

    def __init__(
        self, directory: Path, fits: Callable[[int, int], bool] = lambda epoch, step: True, **parts
    ):
        self.saved, self.cost = -math.inf, 0.0  # when, and how many seconds it took
        self.newest = directory / "checkpoint.pt"
        self.previous, self.fits = directory / "checkpoint.previous.pt", fits
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
            if os.path.lexists(self.newest):
                os.replace(self.newest, self.previous)

    def load(self) -> tuple[int, int] | None:
        """Restore all parts; returns (epoch, step), or None if there is no checkpoint.

        Raises OSError if no checkpoint can be used, or the processes do not all see the same one.
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
            if not os.path.lexists(path):
                continue
            check_regular(path)  # else it could not be written over
            try:
                state = _read(path)
            except Exception as error:  # of pickle, zip or torch, as the damage may be
                errors.append(f"{path} is damaged ({in_a_line(error)})")
                continue
            try:
                self._restore(state)
            except Exception as error:  # whatever a part raises over what is not its own
                reason = f"{type(error).__name__}: {error}"
                errors.append(f"{path} does not fit this run ({in_a_line(reason)})")
                continue
            for message in errors:
                print(f"warning: {printable(message)}; going on from {path.name}", file=sys.stderr)
            return state["epoch"], state["step"]
        if errors:
            advice = f"nothing to resume from: remove {self.newest.parent} to start again"
            raise OSError("\n".join([*errors, advice]))
        return None

    def _restore(self, state):
        if not isinstance(state, dict):
            raise ValueError(f"it must hold the parts of a run, got {type(state).__name__}")
        for name, part in self.parts.items():
            _check_same_kind(part.state_dict(), state[name], name)
            part.load_state_dict(state[name])
        epoch, step = state["epoch"], state["step"]
        if not (isinstance(epoch, int) and isinstance(step, int) and self.fits(epoch, step)):
            raise ValueError(f"there is no epoch {epoch}, step {step} to go on from")
        random_states = state["rng"]
        if not isinstance(random_states, list):
            random_states = [random_states]  # an older checkpoint holds that of one process
        if not random_states:
            raise ValueError("there are no states of random numbers")
        if rank() < len(random_states):
            restore_rng_state(random_states[rank()])
        else:  # fewer processes have saved it
            torch.manual_seed(rank())


def _check_same_kind(fresh, loaded, name: str):
    """Raise ValueError if a state lacks a value of a fresh one, or has it of another kind."""
    if isinstance(fresh, torch.Tensor):
        same = isinstance(loaded, torch.Tensor) and loaded.shape == fresh.shape
    elif isinstance(fresh, (int, float)):
        same = isinstance(loaded, (int, float))
    else:
        same = isinstance(loaded, type(fresh))
    if not same:
        raise ValueError(f"{name} is of another type or shape")
    if isinstance(fresh, dict):
        for key, value in fresh.items():
            if key in loaded:
                _check_same_kind(value, loaded[key], f"{name}.{key}")
            elif not MAY_BE_MISSING.fullmatch(f"{name}.{key}"):
                raise ValueError(f"{name}.{key} is missing")
    elif isinstance(fresh, (list, tuple)):
        for position, (value, other) in enumerate(zip(fresh, loaded, strict=False)):
            _check_same_kind(value, other, f"{name}.{position}")


def _read(path):
    """The state in a checkpoint: what torch.save wrote, followed by its SHA-256.

    torch.load itself checks no checksum.
    """
    with open_regular(path) as file:
        content = file.read()
    state, digest = content[:-32], content[-32:]
    if hashlib.sha256(state).digest() != digest:
        raise ValueError("its content does not match its checksum")
    return torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)


class StopRequest:
    """Remembers, while it is entered, that SIGTERM, SIGUSR1 or Ctrl-C has arrived, and says so.

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
        message = f"\n{signal.Signals(number).name}: the run is saved after the next step"
        if not is_distributed():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            message += "; Ctrl-C now ends it at once"
        if rank() == 0:
            # print() must not be called within itself; nobody may read what is printed
            with contextlib.suppress(OSError):
                os.write(2, f"{message}\n".encode())

    def agreed(self) -> str | None:
        """The signal that any of the processes has received, or None.

        All that ask at the same step get the same answer.
        """
        number = max(all_gather_objects(int(self.received)))
        return signal.Signals(number).name if number else None

    def __exit__(self, *error):
        for number, handler in self.former.items():
            signal.signal(number, handler)
