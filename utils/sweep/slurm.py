"""What SLURM is told: the arrays that run these cells, and to put a job back into the queue."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.errors import UserError
from utils.sweep.cells import ranges

# What a launcher reads, and a command that launches it again must repeat.
LAUNCHER_VARIABLES = (
    "DATASET",
    "METHODS",
    "KIND",
    "FRACTIONS",
    "NOISES",
    "SEEDS",
    "TASKS",
    "COUNTS",
    "FOURS",
    "PARAMS",
    "FOLDS",
    "RUN",
    "SELECTION",
    "RESTARTS",
    "RESTART_TAU",
    "SELECT_EPOCHS",
    "TRIALS",
    "STAGE",
    "UNDER",
    "SEARCHED",
    "RUNS",
    "PROCESSES",
)
OF_GRID = {"DATASET", "METHODS", "KIND", "FRACTIONS", "SEEDS"}  # what grid in common.sh reads
AT_A_TIME = 8  # tasks of an array, unless it says otherwise
MAX_ARRAY_SIZE = 1001  # SLURM's default


def integer(environment: dict, name: str, default: int) -> int:
    """A variable that a user may set to a whole number."""
    text = environment.get(name, str(default))
    if not re.fullmatch(r"\d+", text):
        raise UserError(f"{name} must be a whole number, got {text!r}")
    return int(text)


def not_read(launcher: Path, environment: dict) -> list[str]:
    """Which of LAUNCHER_VARIABLES are set, though this launcher does not read them."""
    text = launcher.read_text()
    known = {"PROCESSES", *re.findall(r"\$\{([A-Z_]+):?[-+]", text)}
    if re.search(r"\bgrid\b", text):
        known |= OF_GRID - set(re.findall(r"^([A-Z_]+)=", text, re.MULTILINE))
    return [name for name in LAUNCHER_VARIABLES if environment.get(name) and name not in known]


def max_array_size() -> int:
    """One more than the largest index of an array in this cluster."""
    show = ["scontrol", "show", "config"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        config = subprocess.run(show, capture_output=True, text=True, timeout=5).stdout
        size = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
        if size:
            return int(size[1])
    return MAX_ARRAY_SIZE


def arrays(
    numbers: list[int], largest: int, at_a_time: int = AT_A_TIME
) -> Iterator[tuple[int, str]]:
    """The arrays that run these cells, each its OFFSET and the value of --array.

    Task i of one runs cell OFFSET + i. No index is above ``largest``.
    """
    for offset in range(0, max(numbers) + 1, largest + 1):
        block = [number - offset for number in numbers if offset <= number <= offset + largest]
        if block:
            yield offset, f"{ranges(block)}%{at_a_time}"


def sbatch_command(array: str, launcher: str, overrides: Iterable[str], options=()) -> list[str]:
    """``options``: further ones of sbatch."""
    return ["sbatch", f"--array={array}", *options, launcher, *overrides]


def show_command(command: list[str], offset: int = 0) -> str:
    """A command as a user would type it, with the variables that choose the cells."""
    variables = {"OFFSET": str(offset)} if offset else {}
    variables |= {name: os.environ[name] for name in LAUNCHER_VARIABLES if name in os.environ}
    assigned = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " ".join([*assigned, shlex.join(command)])


def submit(
    numbers: list[int], launcher: str, overrides: list[str], options: list[str], dry_run: bool
) -> int:
    """Submit these cells, or print the commands that would; the exit code.

    ``options`` are those of sbatch. ``--array=%4`` among them sets how many tasks run at a time.
    """
    at_a_time, options = _split_array(options)
    _check_export(options)
    if not numbers:
        print("nothing to run")
        return 0
    for offset, array in arrays(sorted(set(numbers)), max_array_size() - 1, at_a_time):
        command = sbatch_command(array, launcher, overrides, options)
        if dry_run:
            print(show_command(command, offset))
            continue
        Path("logs").mkdir(exist_ok=True)  # sbatch would not make it
        environment = os.environ | {"OFFSET": str(offset)}
        code = subprocess.run(command, env=environment, check=False).returncode
        if code:
            return code
    return 0


def _check_export(options: list[str]):
    """Raise UserError if tasks would not get what says their cells: METHODS, OFFSET and others."""
    values = [option.partition("=")[2] for option in options if option.startswith("--export=")]
    exported = values[-1] if values else os.environ.get("SBATCH_EXPORT", "ALL")
    if "ALL" not in exported.split(","):
        where = "--export" if values else "SBATCH_EXPORT"
        raise UserError(
            f"{where}={exported} keeps from the tasks the variables that say which cells they are, "
            f"so that they would run others: write --export=ALL, or --export=ALL,{exported}"
        )


def _split_array(options: list[str]) -> tuple[int, list[str]]:
    """How many tasks may run at a time, and the other options."""
    at_a_time, others = AT_A_TIME, []
    for option in options:
        name, _, value = option.partition("=")
        if name not in ("--array", "-a"):
            others.append(option)
        elif re.fullmatch(r"%[1-9]\d*", value):
            at_a_time = int(value[1:])
        else:
            raise UserError(
                f"--submit numbers the array itself: choose cells by --cells, and how many run "
                f"at a time by --array=%4; got {option}"
            )
    return at_a_time, others


def requeue(job: str) -> bool:
    """Put a job back into the queue, if SLURM lets us.

    ``job`` of a task is <array>_<task>: the number of an array's last task is that of the array,
    and would put back all tasks, those that are done too.
    """

    def ignore_sigterm():  # which SLURM sends to the whole job at once
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    command = ["scontrol", "requeue", job]
    return subprocess.run(command, preexec_fn=ignore_sigterm, check=False).returncode == 0
