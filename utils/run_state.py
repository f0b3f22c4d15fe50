"""What has become of a run, read from its directory: trainer, sweep and report all ask here.

A run directory tells by four things: summary.json (how far it is, whether it is finished), its lock
(whether a process is writing it), failed.txt (how the last attempt ended, if it was neither
finished nor interrupted) and config.yaml (that it was begun).
"""

import contextlib
import fcntl
import os
import re
from pathlib import Path

from utils.errors import UserError
from utils.escapes import in_a_line
from utils.files import atomic_write, open_regular, read_bytes, read_json, read_yaml

INTERRUPTED = 75  # exit code of a run that was stopped and has saved (EX_TEMPFAIL): run it again
FAILED = "failed.txt"  # how the last attempt ended, if it was neither finished nor interrupted
LOCK = ".lock"
DATA = "data.json"  # what the data of the run were, if they are somebody's own
# What a run may leave before its config.yaml, and what is in it: so that these are told apart from
# a user's own files of the same names.
BEFORE_CONFIG = {
    LOCK: r"(process \d+ on .*)?",
    FAILED: r"(exit code -?\d+|killed by SIG\w+|process \d+: ).*",
    ".config.yaml.tmp": ".*",
}
OTHER = "other configuration"  # of a sweep's cell: its directory holds a run of another one
STATES = ("done", "running", "interrupted", "failed", "missing", OTHER)
KINDS = {  # what the entries of summary.json are that are read here, if they are there
    "finished": bool,
    "metric": str,
    "test": dict,
    "detection": dict,
    "seconds": (int, float),
    "epochs": int,
    "error": str,
    "interrupted": str,
}


def run_state(directory: Path) -> tuple[str, str]:
    """One of STATES but OTHER, and the reason or the progress in a few words, in one line.

    A run whose files are damaged has failed.
    """
    try:
        state, detail = _state(directory)
    except OSError as error:
        state, detail = "failed", str(error)
    return state, in_a_line(detail)


def _state(directory):
    summary = read_summary(directory, complete=True)
    if summary.get("finished"):
        shown = (
            f"{rule} {summary['test'][rule]:.2f}"
            for rule in ("last", "best", "validated")
            if summary["test"].get(rule) is not None
        )
        return "done", f"{summary['metric']} {' '.join(shown)}"
    owner = lock_owner(directory)
    if owner:
        return "running", owner
    if os.path.lexists(directory / FAILED):
        return "failed", read_failed(directory)
    if summary.get("error"):
        return "failed", summary["error"].splitlines()[0]
    if os.path.lexists(directory / "config.yaml"):
        signal = f" by {summary['interrupted']}" if summary.get("interrupted") else ""
        return "interrupted", f"after {summary.get('epochs', 0)} epochs{signal}"
    return "missing", ""


def read_summary(directory: Path, complete: bool = False) -> dict:
    """summary.json; {} if there is none.

    Raises OSError if it is damaged; if it is to be ``complete``, also if it is that of a finished
    run and does not say how good that is.
    """
    path = directory / "summary.json"
    if not os.path.lexists(path):
        return {}
    try:
        summary = read_json(path)
        wrong = _wrong_entries(summary)
        if complete and summary.get("finished"):
            wrong += [key for key in ("metric", "test") if summary.get(key) is None]
        if wrong:
            raise ValueError(f"is not that of a run: see {', '.join(sorted(wrong))}")
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path} ")
        raise OSError(f"{path} {reason}; remove it, and the run writes it anew") from None
    return summary


def finished_config(directory: Path) -> dict:
    """The configuration of a finished run.

    Raises UserError if it is not finished, or no run; OSError if its files are damaged.
    """
    config = read_config(directory)
    if config is None:
        folds = any(Path(directory).glob("fold*/config.yaml"))
        of_folds = ", but of folds: take one of them, e.g. fold0" if folds else ""
        raise UserError(
            f"{directory} is not the directory of a run: there is no config.yaml{of_folds}"
        )
    if not read_summary(directory).get("finished"):
        raise UserError(f"{directory} is not finished: run its command again, and it goes on")
    return config


def _wrong_entries(summary):
    """What is there, and not of the type that it should be."""
    present = {key: value for key, value in summary.items() if value is not None}
    wrong = [key for key in KINDS.keys() & present if not isinstance(present[key], KINDS[key])]
    for section in {"test", "detection"} & present.keys() - set(wrong):
        for key, value in present[section].items():
            if value is not None and not isinstance(value, (int, float)):
                wrong.append(f"{section}.{key}")
    return wrong


def foreign_files(directory: Path) -> list[str]:
    """The names of the files that make a folder no directory of a run; none if it is one, or empty.

    Raises OSError if a file that a run may have left is a link, a device or a FIFO.
    """
    # listed once: another process may be writing its first files
    names = sorted(os.listdir(directory)) if directory.is_dir() else []
    if "config.yaml" in names:
        return []
    return [name for name in names if not _is_ours(directory / name)]


def _is_ours(path):
    if path.name not in BEFORE_CONFIG:
        return False
    try:
        content = read_bytes(path).decode(errors="replace").strip()
    except FileNotFoundError:  # another process has just removed it
        return True
    return re.fullmatch(BEFORE_CONFIG[path.name], content, re.DOTALL) is not None


def write_failed(directory: Path, reason: str):
    """Write failed.txt: how the last attempt ended."""
    with atomic_write(directory / FAILED) as file:
        file.write(f"{reason}\n")


def read_failed(directory: Path) -> str:
    """How the last attempt ended; "" if it was not by a failure."""
    path = directory / FAILED
    return read_bytes(path).decode(errors="replace").strip() if os.path.lexists(path) else ""


def read_config(directory: Path) -> dict | None:
    """config.yaml, what the run was begun with; None if there is none.

    Raises OSError if it is damaged.
    """
    path = directory / "config.yaml"
    return read_yaml(path) if os.path.lexists(path) else None


def summary_time(directory: Path) -> int:
    """When summary.json was last written, in ns; 0 if there is none."""
    path = directory / "summary.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def lock_owner(directory: Path) -> str:
    """Which process is writing the run; "" if none is."""
    with contextlib.suppress(FileNotFoundError), open_regular(directory / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return lock.read().decode(errors="replace").strip() or "another process"
        except OSError:  # a file system without locks, on which no run begins
            return ""
    return ""


def describe(summary: dict) -> str:
    """A finished run in one line."""
    shown = (
        f"{rule} {value:.2f}"
        for rule, value in summary["test"].items()
        if rule != "best_epoch" and value is not None
    )
    line = in_a_line(f"test {summary['metric']}: {'  '.join(shown)}")
    auroc = (summary.get("detection") or {}).get("auroc")
    return line if auroc is None else f"{line}; AUROC of incorrect labels {auroc:.4f}"
