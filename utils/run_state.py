"""What has become of a run, read from its directory: trainer, sweep and report all ask here.

A run directory tells by four things: summary.json (how far it is, whether it is finished), its lock
(whether a process is writing it), failed.txt (how the last attempt ended, if it was neither
finished nor interrupted) and config.yaml (that it was begun).
"""

import contextlib
import fcntl
import json
from pathlib import Path

import yaml

YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of what this program has written
INTERRUPTED = 75  # exit code of a run that was stopped and has saved (EX_TEMPFAIL): run it again
FAILED = "failed.txt"  # how the last attempt ended, if it was neither finished nor interrupted
LOCK = ".lock"
OTHER = "other configuration"  # of a sweep's cell: its directory holds a run of another one
STATES = ("done", "running", "interrupted", "failed", "missing", OTHER)


def run_state(directory: Path) -> tuple[str, str]:
    """One of STATES but OTHER, and the reason or the progress in a few words."""
    summary, failed = read_summary(directory), directory / FAILED
    if summary.get("finished"):
        shown = (
            f"{rule} {summary['test'][rule]:.2f}"
            for rule in ("last", "best", "validated")
            if summary["test"][rule] is not None
        )
        return "done", f"{summary['metric']} {' '.join(shown)}"
    owner = lock_owner(directory)
    if owner:
        return "running", owner
    if failed.exists():
        return "failed", failed.read_text().strip()
    if summary.get("error"):
        return "failed", summary["error"].splitlines()[0]
    if (directory / "config.yaml").exists():
        signal = f" by {summary['interrupted']}" if summary.get("interrupted") else ""
        return "interrupted", f"after {summary.get('epochs', 0)} epochs{signal}"
    return "missing", ""


def read_summary(directory: Path) -> dict:
    """summary.json; {} if there is none."""
    path = directory / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def read_config(directory: Path) -> dict | None:
    """config.yaml, what the run was begun with; None if there is none."""
    path = directory / "config.yaml"
    return yaml.load(path.read_text(), YAML) if path.exists() else None


def summary_time(directory: Path) -> int:
    """When summary.json was last written, in ns; 0 if there is none."""
    path = directory / "summary.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def lock_owner(directory: Path) -> str:
    """Which process is writing the run; "" if none is."""
    with contextlib.suppress(FileNotFoundError), open(directory / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return lock.read().strip() or "another process"
    return ""


def describe(summary: dict) -> str:
    """A finished run in one line."""
    shown = (
        f"{rule} {value:.2f}"
        for rule, value in summary["test"].items()
        if rule != "best_epoch" and value is not None
    )
    line = f"test {summary['metric']}: {'  '.join(shown)}"
    auroc = (summary["detection"] or {}).get("auroc")
    return line if auroc is None else f"{line}; AUROC of incorrect labels {auroc:.4f}"
