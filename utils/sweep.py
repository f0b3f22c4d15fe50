"""Many runs: an array of SLURM jobs, or a loop on this machine; and what has become of them.

    python -m utils.sweep status examples/mnist.sbatch      (or bash examples/mnist.sbatch --status)
    python -m utils.sweep status runs/mnist                 of all runs in a folder

A sweep is a list of cells, a line each: the arguments of main.py, or those of several runs in
order, joined by " && ". The launchers in examples/ write the list, and hand it and their own
arguments to ``run`` here. It starts no PyTorch itself.
"""

import argparse
import collections
import contextlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from utils.config import run_dir
from utils.errors import UserError
from utils.run_state import FAILED, INTERRUPTED, STATES, read_summary, run_state, summary_time

ONLY = {"missing": ("missing", "interrupted"), "failed": ("failed",)}  # what --only chooses
LISTED = (
    "DATASET",
    "METHODS",
    "KIND",
    "FRACTIONS",
    "SEEDS",
    "TASKS",
    "SELECTION",
    "TRIALS",
    "STAGE",
    "PROCESSES",
)  # what a relaunch repeats
MAX_ARRAY_SIZE = 1001  # SLURM's default


@dataclass
class Cell:
    """One line of the list: the arguments of one run after another, and where each writes."""

    number: int
    runs: list[list[str]]
    directories: list[Path]

    def state(self) -> tuple[str, str]:
        """That of its first run that is not done, with what there is to say of it."""
        for place, directory in enumerate(self.directories):
            name, detail = run_state(directory)
            if name == "missing" and place:
                return (
                    "interrupted",
                    f"{self.directories[place - 1]} is done, {directory} not begun",
                )
            if name != "done":
                return name, detail
        return name, detail

    def seconds(self) -> float:
        """Spent on training so far."""
        return sum(read_summary(directory).get("seconds") or 0 for directory in self.directories)


def read_cells(lines: list[str], overrides: list[str]) -> list[Cell]:
    """The cells of a list, with further overrides for every run.

    Raises ValueError or FileNotFoundError where there are none, a line names no params file, or two
    runs would write one directory.
    """
    if not lines:
        raise UserError("the list of cells is empty: look at METHODS, FRACTIONS and SEEDS")
    cells, taken = [], {}
    for number, line in enumerate(lines):
        runs = [[*shlex.split(part), *overrides] for part in line.split(" && ")]
        directories = []
        for arguments in runs:
            try:
                directories.append(Path(run_dir(arguments[0], arguments[1:])))
            except (ValueError, TypeError, AttributeError) as error:
                raise UserError(f"cell {number}, {shlex.join(arguments)}: {error}") from None
            if directories[-1] in taken:
                raise UserError(
                    f"cells {taken[directories[-1]]} and {number} would both write {directories[-1]}: give one of "
                    f"them a run_dir= of its own"
                )
            taken[directories[-1]] = number
        cells.append(Cell(number, runs, directories))
    return cells


def choose(text: str | None, count: int) -> list[int]:
    """The numbers that "3-7,9" names, all of ``count`` if it is None.

    Raises ValueError for others.
    """
    if text is None:
        return list(range(count))
    numbers = []
    for part in text.split(","):
        if not re.fullmatch(r"\d+(-\d+)?", part):
            raise UserError(f"cells are written 3-7,9; got {text!r}")
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    if not numbers or max(numbers) >= count:
        raise UserError(f"there is no cell {text}: the list has {count}, 0 to {count - 1}")
    return numbers


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2,5"."""
    parts = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(parts)


def python_command(environment: dict) -> list[str]:
    """What main.py is started with: python; torchrun for several ``PROCESSES``; srun and torchrun
    for several nodes.

    Raises ValueError where there are several nodes and MASTER_ADDR or MASTER_PORT is missing.
    """
    processes, nodes = (
        environment.get("PROCESSES", "1"),
        int(environment.get("SLURM_JOB_NUM_NODES", 1)),
    )
    if not processes.isdigit() or int(processes) < 1:
        raise UserError(
            f"PROCESSES must be how many processes a machine is to run, got {processes!r}"
        )
    if processes == "1" and nodes == 1:
        return [sys.executable]
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    if nodes == 1:
        return [*torchrun, "--standalone"]
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise UserError(
            f"this job has {nodes} nodes, and {' and '.join(missing)} must say where they meet: see "
            f"examples/multi_node.sbatch; or ask for one node"
        )
    meeting = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    cpus = (
        [f"--cpus-per-task={environment['SLURM_CPUS_PER_TASK']}"]
        if "SLURM_CPUS_PER_TASK" in environment
        else []
    )
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        *cpus,
        "--kill-on-bad-exit=0",
        "--wait=120",
        sys.executable,
        "-m",
        "utils.sweep",
        "relay",
        *torchrun,
        f"--nnodes={nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={environment['SLURM_JOB_ID']}",
        f"--rdzv-endpoint={meeting}",
    ]


def relay(command: list[str]) -> int:
    """Run torchrun as a task of srun, which signals every process of it.

    SIGUSR1, of which torchrun would die, as SIGTERM.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # torchrun inherits that
    child = subprocess.Popen(command)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: child.send_signal(signal.SIGTERM))
    return child.wait()


class Runner:
    """Runs cells, one or several at a time, and passes on the signals that it gets.

    SIGUSR1, SIGTERM and Ctrl-C ask the runs to save and end; no other cell is begun after that. A
    second Ctrl-C reaches the runs by themselves.
    """

    def __init__(self, environment: dict):
        self.environment, self.command = environment, python_command(environment)
        self.children: set[subprocess.Popen] = set()
        self.signal: int | None = None
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def _pass_on(self, number, frame):
        if self.signal != signal.SIGTERM:  # SLURM's last word
            self.signal = number
        for child in list(self.children):
            self._stop(child)

    def _stop(self, child):
        """SIGTERM, whatever came: torchrun does not pass SIGUSR1 on, and a terminal has already
        sent Ctrl-C itself.

        But srun would kill its tasks on SIGTERM: it passes on SIGUSR1.
        """
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGUSR1 if self.command[0] == "srun" else signal.SIGTERM)

    def run(self, cell: Cell, output, slot: int = 0) -> tuple[str, str]:
        """Run what is not done of a cell, writing what it says to ``output``.

        Its state then, and what there is to say.
        """
        for arguments, directory in zip(cell.runs, cell.directories, strict=True):
            name, detail = run_state(directory)
            if name == "done":
                continue
            if name == "running":
                return name, f"{directory} is being written by {detail}: left alone"
            before = summary_time(directory)
            code, reason = self._call([*self.command, "main.py", *arguments], output, slot)
            name, detail = run_state(directory)
            if name == "done":
                continue
            told = (
                read_summary(directory).get("interrupted") and summary_time(directory) != before
            )  # torchrun's own code is 1
            if self.signal or code == INTERRUPTED or told:
                return "interrupted", detail
            if name != "running":  # by somebody else: that is none of its business
                directory.mkdir(parents=True, exist_ok=True)
                (directory / FAILED).write_text(f"{reason}\n")
            return "failed", reason
        return "done", cell.state()[1]

    def _call(self, command, output, slot):
        """The exit code of a command, and if it has failed why, as far as its last lines tell."""
        if self.signal:
            return INTERRUPTED, ""
        print(f"$ {shlex.join(command)}", file=output, flush=True)
        last = collections.deque(maxlen=200)
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._environment(slot),
        ) as child:
            self.children.add(child)
            if self.signal:  # it came in between
                self._stop(child)
            for line in child.stdout:
                print(line, end="", file=output, flush=True)
                last.append(line.strip())
            code = child.wait()
            self.children.discard(child)
        if code < 0:
            return code, f"killed by {signal.Signals(-code).name}"
        return code, ": ".join(filter(None, [f"exit code {code}", why(last)]))

    def _environment(self, slot):
        # torchrun kills what has not saved after so many seconds: nearly all that SLURM gives
        environment = {
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "110",
            **self.environment,
            "PYTHONUNBUFFERED": "1",
        }
        if slot and environment.get("CUDA_VISIBLE_DEVICES"):
            devices = environment["CUDA_VISIBLE_DEVICES"].split(",")
            environment["CUDA_VISIBLE_DEVICES"] = devices[(slot - 1) % len(devices)]
        return environment


def why(said: Iterable[str]) -> str:
    """The line of a run's last ones that tells best why it failed.

    Its own message, or that of an exception, or the last.
    """
    said = [line for line in said if line]
    own = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    raised = [
        line
        for line in said
        if re.match(r"(\[rank\d+\]: )?[\w.]*(?<!ChildFailed)(Error|Exception)\b", line)
    ]
    return (own[:1] or raised[-1:] or said[-1:] or [""])[0]


def devices() -> str:
    """The GPUs of this machine, "0,1,..."; "" where there are none."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60
        ).stdout
        return ",".join(
            str(number)
            for number in range(sum(line.startswith("GPU ") for line in said.splitlines()))
        )
    return ""


def run_here(runner: Runner, cells: list[Cell], jobs: int, name: str) -> int:
    """Run cells one after another, ``jobs`` at a time; the exit code: 0 where all are done."""
    environment = runner.environment
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
        if "CUDA_VISIBLE_DEVICES" not in environment and (found := devices()):
            environment["CUDA_VISIBLE_DEVICES"] = found
    slots = collections.deque(range(1, jobs + 1))
    Path("logs").mkdir(exist_ok=True)

    def one(cell):
        if runner.signal:
            return "interrupted"
        slot, began = slots.popleft(), time.monotonic()
        log = Path("logs", f"{name}_bash_{cell.number}.out")
        try:
            with open(log, "a") as output:
                ended, detail = runner.run(cell, output, slot if jobs > 1 else 0)
        finally:
            slots.append(slot)
        print(
            f"cell {cell.number}: {ended} in {time.monotonic() - began:.0f} s, {detail} ({log})",
            flush=True,
        )
        return ended

    with ThreadPoolExecutor(jobs) as pool:
        ended = collections.Counter(pool.map(one, cells))
    print(", ".join(f"{ended[key]} {key}" for key in STATES if ended[key]) or "nothing to run")
    if runner.signal:
        print(
            "stopped by a signal; the same command goes on where it stopped, or --only missing",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0 if set(ended) <= {"done"} else 1


def run_task(runner: Runner, cell: Cell) -> int:
    """Run the cell of a SLURM array's task, and put it back into the queue where it was interrupted
    but not cancelled.
    """
    restarts, environment = (
        int(runner.environment.get("SLURM_RESTART_COUNT", 0)),
        runner.environment,
    )
    cores, processes = (
        int(environment.get("SLURM_CPUS_PER_TASK", 1)),
        int(environment.get("PROCESSES", 1)),
    )
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    patience = (
        300 if restarts else 0
    )  # the lock of a node that has died may last as long as the file server's lease
    while patience and cell.state()[0] == "running" and not runner.signal:
        time.sleep(1)
        patience -= 1
    print(
        f"cell {cell.number} on {os.uname().nodename}, restarted {restarts} times: {cell.directories[-1]}",
        flush=True,
    )
    ended, detail = runner.run(cell, sys.stdout)
    print(f"cell {cell.number}: {ended}, {detail}", flush=True)
    if ended == "interrupted" and runner.signal != signal.SIGTERM:
        limit = int(environment.get("MAX_RESTARTS", 100))
        if restarts >= limit:
            print(
                f"it has been restarted {restarts} times; not again (MAX_RESTARTS={limit})",
                file=sys.stderr,
            )
            return 1
        if not requeue(f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"):
            print(
                "this task could not be put back into the queue: submit it again, to go on where it stopped",
                file=sys.stderr,
            )
            return INTERRUPTED
        for _ in range(300):  # until SLURM ends this job
            if runner.signal == signal.SIGTERM:
                break
            time.sleep(0.1)
    return {"done": 0, "interrupted": INTERRUPTED}.get(ended, 1)


def requeue(job: str) -> bool:
    """Put this task of an array back into the queue, if SLURM lets us.

    By its place in the array: the number of the last task is that of the array, and would put back
    all, those done among them.
    """

    def deaf():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which SLURM sends to the whole job at once

    return (
        subprocess.run(["scontrol", "requeue", job], preexec_fn=deaf, check=False).returncode == 0
    )


def print_status(cells: list[Cell], launcher: str = "", overrides: Iterable[str] = ()):
    """A line a cell, the counts, the hours of training, and, of a launcher, the commands that run
    what is not done.
    """
    by_state, total = {name: [] for name in STATES}, 0.0
    for cell in cells:
        (name, detail), hours = cell.state(), cell.seconds() / 3600
        by_state[name].append(cell.number)
        total += hours
        print(
            f"{cell.number:>5}  {name:<11}  {hours:>7.2f} h  {cell.directories[-1]}  {detail}".rstrip()
        )
    counts = ", ".join(f"{len(numbers)} {name}" for name, numbers in by_state.items() if numbers)
    print(f"{len(cells)} cells: {counts}; {total:.2f} hours of training")
    for what, states in ONLY.items():
        numbers = sorted(number for name in states for number in by_state[name])
        if numbers and launcher:
            print(
                f"to run what is {what} (give sbatch your options, e.g. --gres=gpu:1):",
                *relaunch(numbers, what, launcher, overrides, max_array_size() - 1),
                sep="\n  ",
            )


def relaunch(
    numbers: list[int], what: str, launcher: str, overrides: Iterable[str], largest: int
) -> list[str]:
    """The commands that run these cells.

    Under bash, and with sbatch, in arrays that end at index ``largest``.
    """
    chosen = [f"{name}={shlex.quote(os.environ[name])}" for name in LISTED if name in os.environ]
    commands = [[*chosen, "bash", launcher, "--only", what, *map(shlex.quote, overrides)]]
    throttle = re.search(
        r"^#SBATCH --array=[^%\s]*(%\d+)", Path(launcher).read_text(), re.MULTILINE
    )
    for first in range(0, max(numbers) + 1, largest + 1):
        block = [number - first for number in numbers if first <= number <= first + largest]
        if block:
            array = ranges(block) + (throttle[1] if throttle else "")
            commands.append(
                [
                    *[f"OFFSET={first}"] * (first > 0),
                    *chosen,
                    "sbatch",
                    f"--array={array}",
                    launcher,
                    *map(shlex.quote, overrides),
                ]
            )
    return [" ".join(command) for command in commands]


def max_array_size() -> int:
    """One more than the largest index of an array in this cluster."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=5
        ).stdout
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", said, re.MULTILINE)
        if found:
            return int(found[1])
    return MAX_ARRAY_SIZE


def status_of(path: str) -> int:
    """Print the status of the cells of a launcher, or of the runs in a folder."""
    if Path(path).is_file():
        return subprocess.run(["bash", path, "--status"], check=False).returncode
    found = sorted(
        {file.parent for name in ("config.yaml", FAILED) for file in Path(path).rglob(name)}
    )
    if not found:
        raise UserError(f"there is no run in {path}")
    print_status([Cell(number, [], [directory]) for number, directory in enumerate(found)])
    return 0


def run(options, others: list[str]) -> int:
    """What a launcher does: see examples/common.sh."""
    overrides = [text for text in others if "=" in text and not text.startswith("-")]
    if len(overrides) < len(others):
        unknown = " ".join(text for text in others if text not in overrides)
        raise UserError(
            f"not known: {unknown}; a launcher takes --cells, --only, --jobs, --dry-run, --status, --help and "
            f"key=value for every run"
        )
    environment, runner = dict(os.environ), None
    if options.status or options.dry_run:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which common.sh has switched off
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    else:
        runner = Runner(environment)
    if options.jobs < 1 or (options.jobs > 1 and environment.get("PROCESSES", "1") != "1"):
        raise UserError(
            f"--jobs must be at least 1, and 1 where a cell has several PROCESSES, got {options.jobs}"
        )
    cells = read_cells(
        [line.strip() for line in Path(options.list).read_text().splitlines() if line.strip()],
        overrides,
    )
    if options.status:
        print_status(cells, options.launcher, overrides)
        return 0
    task = environment.get("SLURM_ARRAY_TASK_ID")
    numbers = choose(
        options.cells if task is None else str(int(environment.get("OFFSET", 0)) + int(task)),
        len(cells),
    )
    chosen = [cells[number] for number in numbers]
    if (
        options.only and environment.get("SLURM_RESTART_COUNT", "0") == "0"
    ):  # a task that was put back has been chosen already
        chosen = [cell for cell in chosen if cell.state()[0] in ONLY[options.only]]
    if options.dry_run:
        for cell in chosen:
            print(
                f"{cell.number}: "
                + " && ".join(
                    shlex.join([*python_command(environment), "main.py", *arguments])
                    for arguments in cell.runs
                )
            )
        return 0
    if task is not None:
        return run_task(runner, chosen[0]) if chosen else 0
    return run_here(runner, chosen, options.jobs, Path(options.launcher).stem)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status").add_argument("path", help="a launcher, or a folder of runs")
    launch = commands.add_parser("run", add_help=False)
    launch.add_argument("--launcher", required=True)
    launch.add_argument("--list", required=True)
    launch.add_argument("--cells")
    launch.add_argument("--only", choices=ONLY)
    launch.add_argument("--jobs", type=int, default=1)
    launch.add_argument("--dry-run", action="store_true")
    launch.add_argument("--status", action="store_true")
    if arguments[:1] == ["relay"]:  # what examples/multi_node.sbatch starts on each node
        return relay(arguments[1:])
    options, others = parser.parse_known_args(arguments)
    try:
        return run(options, others) if options.command == "run" else status_of(options.path)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
