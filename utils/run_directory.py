"""The directory of one run: which configuration it holds, and which process may write it."""

import contextlib
import fcntl
import importlib.util
import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from utils.config import differences, extension
from utils.distributed import (
    OtherProcessFailed,
    all_gather_objects,
    fail_together,
    main_process_only,
    rank,
)
from utils.errors import UserError
from utils.escapes import printable
from utils.files import atomic_write, check_regular
from utils.params_file import flatten
from utils.run_state import (
    DATA,
    FAILED,
    LOCK,
    foreign_files,
    read_config,
    read_summary,
    write_failed,
)
from utils.settings import PLACES


class RunDirectory:
    """Holds the lock of a run's directory while it is entered.

    Of several processes the first alone locks it and writes.

    Args:
        config: of the run.
        arguments: what it was made of, the params file and the overrides: with these a finished run
            may go on for more epochs.

    Attributes:
        path: of the directory.
        finished: whether it holds a finished run; then nothing is locked.
        log: the EpochLog of the run, once that is built.

    Raises:
        UserError: it holds a run with another configuration, or files of something else; or another
            process is writing it.
        OSError: it cannot be written, or its files are damaged.
    """

    def __init__(self, config: dict, arguments: Sequence[str] = ()):
        self.path, self.config, self.arguments = Path(config["run_dir"]), config, arguments
        self.lock = self.log = None
        self._extends = False  # a finished run, which goes on for more epochs
        self.new_folders: list[Path] = []  # that are made for this run, the innermost first
        if config["tensorboard"] and importlib.util.find_spec("tensorboard") is None:
            raise UserError(
                "tensorboard=true needs a package that is not here: pip install tensorboard"
            )
        with fail_together():
            self._open()
        finished = bool(read_summary(self.path).get("finished")) and not self._extends
        extended = config.get("extended")
        self.finished, config["extended"] = all_gather_objects((finished, extended))[0]

    @main_process_only
    def _open(self):
        self._compare_config()
        if read_summary(self.path, complete=True).get("finished") and not self._extends:
            return
        self.new_folders = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        self._compare_config()  # again: another process may have begun in between
        (self.path / FAILED).unlink(missing_ok=True)
        update_summary(self.path, error=None, interrupted=None)  # of an earlier attempt

    def _compare_config(self):
        foreign = foreign_files(self.path)
        if foreign:
            more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
            raise UserError(
                f"{self.path} is not the directory of a run, which has a config.yaml, and it is "
                f"not empty: it holds {', '.join(foreign[:5])}{more}; choose another run_dir="
            )
        try:
            begun = read_config(self.path)
        except OSError as error:
            raise UserError(f"{error}: put it back, or remove {self.path} to start again") from None
        if begun is None:
            return
        # of these the content is compared, so that data may be moved
        free = PLACES if (self.path / DATA).exists() else ()
        earlier = begun.get("extended")
        changed = differences(begun, self.config, (*free, "extended"))
        if changed and read_summary(self.path).get("finished"):
            more = extension(begun, self.config, self.arguments, free)
            if more:
                self._extend(more, earlier or [])
                return
        if changed:
            lines = "\n  ".join(changed)
            raise UserError(
                f"{self.path} holds a run with another configuration:\n  {lines}\n"
                f"choose another run_dir=, or remove that one"
            )
        self.config["extended"] = earlier

    def _extend(self, before, earlier):
        if not self._extends:  # it is compared twice
            now = flatten(self.config)
            words = ", ".join(f"{key}={now[key]} (was {old})" for key, old in before.items())
            print(printable(f"{self.path} is finished, and goes on: {words}"), flush=True)
        self._extends, self.config["extended"] = True, [*earlier, before]

    def _lock(self):
        path = self.path / LOCK
        if os.path.lexists(path):
            check_regular(path)
        # the kernel releases it when the process ends, however it ends
        lock = open(path, "a+", errors="replace")  # noqa: SIM115
        for _ in range(20):  # another process may be testing it, or about to release it
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same_file(lock, path):
                    break
                lock.close()  # a run that was refused has removed it
                self.path.mkdir(parents=True, exist_ok=True)
                lock = open(path, "a+", errors="replace")  # noqa: SIM115
            except BlockingIOError:
                time.sleep(0.1)
            except OSError as error:
                lock.close()
                raise OSError(
                    f"{self.path} lies on a file system without locks ({error}), which keep two "
                    "processes from writing one run: choose another run_dir=; on Lustre, have it "
                    "mounted with -o flock"
                ) from None
        else:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise UserError(
                f"another process ({owner}) is writing {self.path}; wait for it, or choose "
                "another run_dir="
            )
        self.lock = lock
        # else processes that read images could hold it for longer
        os.register_at_fork(after_in_child=lock.close)
        self.lock.truncate(0)
        self.lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self.lock.flush()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """Note in summary.json which error ended the run, if one did, and release the lock."""
        failed = isinstance(error, (Exception, OtherProcessFailed))
        if isinstance(error, BrokenPipeError):
            failed = False  # only the reader of the output has gone: the launcher was killed
        # RuntimeError: what a process gets if another one has gone
        if failed and rank() and not isinstance(error, (RuntimeError, OtherProcessFailed)):
            with contextlib.suppress(OSError):
                write_failed(self.path, f"process {rank()}: {kind.__name__}: {error}")
        if failed and self.log is not None:
            with contextlib.suppress(OSError):  # the disk may be what is wrong
                self.log.note_error(f"{kind.__name__}: {error}")
        if self.log is not None:
            self.log.close()
        elif failed and self.lock:
            self._leave_nothing()
        if self.lock:
            self.lock.close()

    def _leave_nothing(self):
        """Remove the lock and the folders that were made for a run that was refused."""
        if os.listdir(self.path) == [LOCK]:
            with contextlib.suppress(OSError):  # another process may have begun a run in there
                (self.path / LOCK).unlink()
                for folder in self.new_folders:
                    folder.rmdir()


def _is_same_file(file, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def update_summary(directory: Path, **changes):
    """Change some entries of summary.json, if there is one."""
    summary = read_summary(directory)
    if summary:
        write_json(directory / "summary.json", summary | changes)


def write_json(path: Path, content: dict):
    """Write a JSON file, as a whole or not at all."""
    with atomic_write(path) as file:
        json.dump(content, file, indent=1)
