"""Runs cells: in a loop, in one SLURM job, as a task of an array; and passes signals on."""

import collections
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from utils.errors import UserError
from utils.escapes import in_a_line
from utils.run_state import (
    INTERRUPTED,
    OTHER,
    STATES,
    foreign_files,
    read_summary,
    summary_time,
    write_failed,
)
from utils.sweep.cells import Cell
from utils.sweep.slurm import integer, requeue


def python_command(environment: dict) -> list[str]:
    """What starts main.py: python; or torchrun, for several ``PROCESSES``; or srun, for nodes."""
    processes = environment.get("PROCESSES", "1")
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", 1))
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
            f"this job has {nodes} nodes, and {' and '.join(missing)} must say where they meet: "
            f"see examples/multi_node.sbatch; or ask for one node"
        )
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    if "SLURM_CPUS_PER_TASK" in environment:
        srun.append(f"--cpus-per-task={environment['SLURM_CPUS_PER_TASK']}")
    srun += ["--kill-on-bad-exit=0", "--wait=120"]
    torchrun += [
        f"--nnodes={nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={environment['SLURM_JOB_ID']}",
        f"--rdzv-endpoint={environment['MASTER_ADDR']}:{environment['MASTER_PORT']}",
    ]
    return [*srun, sys.executable, "-m", "utils.sweep", "relay", *torchrun]


def relay(command: list[str]) -> int:
    """Run torchrun as a task of srun, and pass SIGUSR1 on as SIGTERM; the exit code.

    srun signals every process of a task, and torchrun would die of SIGUSR1.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # torchrun inherits that
    child = subprocess.Popen(command)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: child.send_signal(signal.SIGTERM))
    return child.wait()


class CellRunner:
    """Runs cells, one or several at a time, and passes on the signals that it gets.

    SIGUSR1, SIGTERM and Ctrl-C ask the runs to save and end; no other cell is begun after that. A
    second Ctrl-C reaches the runs by themselves.
    """

    def __init__(self, environment: dict):
        self.environment, self.command = environment, python_command(environment)
        self.children: set[subprocess.Popen] = set()
        self.signal: int | None = None
        self.restarts = integer(environment, "SLURM_RESTART_COUNT", 0)
        self.max_restarts = integer(environment, "MAX_RESTARTS", 100)
        # The lock of a node that has died may last as long as the file server's lease.
        self.patience = 300 if self.restarts else 0  # seconds
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def _pass_on(self, number, frame):
        if self.signal != signal.SIGTERM:  # SLURM's last word
            self.signal = number
        for child in list(self.children):
            self._stop(child)

    def _stop(self, child):
        """Ask a child to save and end.

        By SIGTERM, whatever came: torchrun does not pass SIGUSR1 on, and a terminal has already
        sent Ctrl-C itself. But srun would kill its tasks on SIGTERM: it passes on SIGUSR1.
        """
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGUSR1 if child.args[0] == "srun" else signal.SIGTERM)

    def run(self, cell: Cell, output, slot: int = 0) -> tuple[str, str]:
        """Run what is not done of a cell; its state then, and the reason or progress.

        Args:
            output: the file that the runs' output goes to.
            slot: which of several cells at a time it is, from 1; 0 if it is alone.
        """
        for position in range(len(cell.runs)):
            state, detail = self._run(cell, position, output, slot)
            if state != "done":
                break
        return state, detail

    def _run(self, cell, position, output, slot):
        directory = cell.directories[position]
        state, detail = self._state_when_unlocked(cell, position)
        if state == "done":
            return state, detail
        if state == OTHER:
            return state, f"{directory} is left as it is: {detail}"
        if state == "running":
            return state, f"{directory} is being written by {detail}: left alone"
        before = summary_time(directory)
        commands = cell.commands(position, self.command)
        # what has begun has been prepared
        for command in commands[-1:] if state == "interrupted" else commands:
            code, reason = self._call(command, output, slot)
            if code:
                break
        state, detail = cell.run_state(position)
        if state in ("done", OTHER):
            return state, detail
        # torchrun's own exit code is 1, whatever those of its processes are
        saved = False
        with contextlib.suppress(OSError):  # if it is damaged, nothing was saved
            saved = read_summary(directory).get("interrupted") and summary_time(directory) != before
        if self.signal or code == INTERRUPTED or saved:
            return "interrupted", detail
        with contextlib.suppress(OSError):  # which may have been the failure
            # if it is running, another process has it, and this failure is not the run's
            if state != "running" and not foreign_files(directory):
                directory.mkdir(parents=True, exist_ok=True)
                write_failed(directory, reason)
        return "failed", reason

    def _state_when_unlocked(self, cell, position):
        while self.patience and cell.run_state(position)[0] == "running" and not self.signal:
            time.sleep(1)
            self.patience -= 1
        return cell.run_state(position)

    def _call(self, command, output, slot):
        """The exit code of a command, and if it has failed why, as far as its last lines tell."""
        if self.signal:
            return INTERRUPTED, ""
        print(f"$ {shlex.join(command)}", file=output, flush=True)
        last_lines = collections.deque(maxlen=200)
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
                last_lines.append(line.strip())
            code = child.wait()
            self.children.discard(child)
        if code < 0:
            return code, f"killed by {signal.Signals(-code).name}"
        reason = ": ".join(filter(None, [f"exit code {code}", failure_reason(last_lines)]))
        return code, in_a_line(reason, 1000)

    def _environment(self, slot):
        # torchrun kills what has not saved after so many seconds: nearly all that SLURM gives
        environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "110"} | self.environment
        environment["PYTHONUNBUFFERED"] = "1"
        if slot and environment.get("CUDA_VISIBLE_DEVICES"):
            devices = environment["CUDA_VISIBLE_DEVICES"].split(",")
            environment["CUDA_VISIBLE_DEVICES"] = devices[(slot - 1) % len(devices)]
        return environment


def failure_reason(lines: Iterable[str]) -> str:
    """The line of a failed run's last ones that tells most.

    It is the message of main.py, or else the last exception, or else the last line.
    """
    lines = [line for line in lines if line]
    messages = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    exception = re.compile(r"(\[rank\d+\]: )?[\w.]*(?<!ChildFailed)(Error|Exception)\b")
    raised = [line for line in lines if exception.match(line)]
    return (messages[:1] or raised[-1:] or lines[-1:] or [""])[0]


def gpu_numbers() -> str:
    """The GPUs of this machine, "0,1,..."; "" if there are none."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60
        ).stdout
        count = sum(line.startswith("GPU ") for line in listing.splitlines())
        return ",".join(str(number) for number in range(count))
    return ""


def run_here(runner: CellRunner, cells: list[Cell], jobs: int, log_name: str) -> int:
    """Run cells one after another, ``jobs`` at a time; the exit code: 0 if all are done.

    Each has a log of its own, logs/<log_name>_<number>.out.
    """
    environment = runner.environment
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
        if "CUDA_VISIBLE_DEVICES" not in environment and gpu_numbers():
            environment["CUDA_VISIBLE_DEVICES"] = gpu_numbers()
    slots = collections.deque(range(1, jobs + 1))
    Path("logs").mkdir(exist_ok=True)

    def run_cell(cell):
        if runner.signal:
            return "interrupted"
        slot, began = slots.popleft(), time.monotonic()
        log = Path("logs", f"{log_name}_{cell.number}.out")
        try:
            with open(log, "a") as output:
                state, detail = runner.run(cell, output, slot if jobs > 1 else 0)
        finally:
            slots.append(slot)
        seconds = time.monotonic() - began
        print(f"cell {cell.number}: {state} in {seconds:.0f} s, {detail} ({log})", flush=True)
        return state

    with ThreadPoolExecutor(jobs) as pool:
        counts = collections.Counter(pool.map(run_cell, cells))
    shown = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    print(shown or "nothing to run")
    if runner.signal:
        print(
            "stopped by a signal; the same command goes on where it stopped, or --only missing",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0 if set(counts) <= {"done"} else 1


def run_job(runner: CellRunner, cells: list[Cell], jobs: int) -> int:
    """Run cells in one SLURM job that is no array; the exit code.

    Their logs have the names that those of an array's tasks have.
    """
    environment = runner.environment
    share_cores(environment, jobs)
    log_name = f"{environment['SLURM_JOB_NAME']}_{environment['SLURM_JOB_ID']}"
    code = run_here(runner, cells, jobs, log_name)
    if code == INTERRUPTED and runner.signal != signal.SIGTERM:
        return put_back(runner, environment["SLURM_JOB_ID"])
    return code


def run_task(runner: CellRunner, cell: Cell) -> int:
    """Run the cell of a SLURM array's task; the exit code."""
    environment = runner.environment
    share_cores(environment, jobs=1)
    print(
        f"cell {cell.number} on {os.uname().nodename}, restarted {runner.restarts} times: "
        f"{cell.directories[-1]}",
        flush=True,
    )
    state, detail = runner.run(cell, sys.stdout)
    print(f"cell {cell.number}: {state}, {detail}", flush=True)
    if state == "interrupted" and runner.signal != signal.SIGTERM:  # which says: cancelled
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
        return put_back(runner, job)
    return {"done": 0, "interrupted": INTERRUPTED}.get(state, 1)


def share_cores(environment: dict, jobs: int):
    """Give each process of a SLURM job its share of the job's cores, unless the user has."""
    cores = int(environment.get("SLURM_CPUS_PER_TASK", 1))
    processes = jobs * int(environment.get("PROCESSES", 1))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))


def put_back(runner: CellRunner, job: str) -> int:
    """Put an interrupted job back into the queue, at most MAX_RESTARTS times; the exit code."""
    if runner.restarts >= runner.max_restarts:
        print(
            f"it has been restarted {runner.restarts} times; not again "
            f"(MAX_RESTARTS={runner.max_restarts})",
            file=sys.stderr,
        )
        return 1
    if requeue(job):
        for _ in range(300):  # until SLURM ends this job
            if runner.signal == signal.SIGTERM:
                break
            time.sleep(0.1)
    else:
        print(
            "this task could not be put back into the queue: submit it again, to go on where it "
            "stopped",
            file=sys.stderr,
        )
    return INTERRUPTED
