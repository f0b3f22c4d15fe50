"""A sweep under a real SLURM, interrupted in every way, equals an undisturbed one under bash.

Runs if SLURM_TESTS=1.
"""

import csv
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONS = ["epochs=24", "threads=1", "device=cpu"]
SWEEP = {
    "DATASET": "digits",
    "METHODS": "plain discrimloss",
    "FRACTIONS": "0.4",
    "SEEDS": "1 2 3",
    "PYTHON": sys.executable,
}
CELLS = [
    f"runs/digits/{method}/symmetric-0.4/seed{seed}"
    for seed in (1, 2, 3)
    for method in ("plain", "discrimloss")
]

REASON = (
    "it installs and starts SLURM: set SLURM_TESTS=1, as root on Debian or Ubuntu; .ci/run does"
)
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(os.environ.get("SLURM_TESTS") != "1", reason=REASON),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment for the commands of a SLURM of one node with two CPUs."""
    directory = tmp_path_factory.mktemp("slurm")
    script = [ROOT / "tests/slurm.sh"]
    subprocess.run([*script, "start", directory], check=True, timeout=300)
    yield os.environ | SWEEP | {"SLURM_CONF": str(directory / "slurm.conf")}
    subprocess.run([*script, "stop", directory], check=True)


def copy_of_the_tree(directory):
    """What a sweep needs, and nothing that another one has left."""
    for name in ("datasets", "losses", "models", "utils", "params", "examples"):
        shutil.copytree(ROOT / name, directory / name)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, directory)
    (directory / "logs").mkdir()
    return directory


def metrics(directory):
    """metrics.csv as it is, but for what was measured in seconds."""
    with open(directory / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds"], row["images_per_second"]
    return rows


def until(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.1)


def caller(directory, environment):
    """A function that runs a command in a directory, and returns what it prints."""

    def call(*command):
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, timeout=500
        )
        return done.stdout.strip()

    return call


def epochs(directory):
    path = directory / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def interrupt(call, job):
    """What SLURM does before the time limit.

    scancel would repeat it while the job is on its way back into the queue: hence the timeout.
    """
    call("timeout", "1", "scancel", "--batch", "--signal=USR1", job)


def test_an_interrupted_array_equals_the_bash_loop(slurm, tmp_path):
    array, loop = copy_of_the_tree(tmp_path / "array"), copy_of_the_tree(tmp_path / "loop")
    options = [*OPTIONS, f"data_root={tmp_path}"]  # not needed; tells our processes from others
    call = caller(array, slurm)

    def training(cell):
        until(lambda: epochs(array / CELLS[cell]), f"cell {cell} to train")

    def states():
        status = call("bash", "examples/sweep.sbatch", "--status", *options)
        return re.findall(r"^ *\d+  (\w+)", status, re.MULTILINE)

    def ended(job):
        until(lambda: not call("squeue", "-h", "-j", job), "the array to end", 500)

    assert states() == ["missing"] * 6
    submit = ["bash", "examples/sweep.sbatch", "--submit", "--array=%2"]
    job = call(*submit, "--parsable", "--cpus-per-task=1", *options)
    training(0)
    assert states()[0] == "running" and states()[2:] == ["missing"] * 4
    interrupt(call, f"{job}_0")
    training(1)
    call("scontrol", "requeue", f"{job}_1")
    training(2)
    pattern = f"main.py .*plain.yaml .*seed=2 .*{tmp_path}"
    subprocess.run(["pkill", "-KILL", "-f", pattern], check=True)
    training(3)
    call("scancel", f"{job}_3")
    training(4)
    # needs the whole node: preempts
    call("srun", "--partition=urgent", "--ntasks=1", "--cpus-per-task=2", "true")
    ended(job)

    log = (array / f"logs/sweep_{job}_0.out").read_text()
    assert "SIGTERM: saved at epoch" in log and "restarted 1 times" in log  # in one log
    status = call("bash", "examples/sweep.sbatch", "--status", *options)
    assert states() == ["done", "done", "failed", "interrupted", "done", "done"], status
    assert "killed by SIGKILL" in status and "6 cells: 4 done, 1 interrupted, 1 failed" in status
    (again,) = re.findall(r"sbatch (--array=3)%8 examples/sweep.sbatch (.*)$", status, re.MULTILINE)
    assert again[1].split() == options
    restarts = re.findall(r'"restarts": (\d)', (array / CELLS[0] / "summary.json").read_text())
    assert restarts == ["1", "1"]  # of the run, and of the job

    sbatch = ["sbatch", "--parsable", again[0], "--cpus-per-task=1"]
    job = call(*sbatch, "examples/sweep.sbatch", *options)
    retried = call("bash", "examples/sweep.sbatch", "--only", "failed", *options)
    assert retried.startswith("cell 2: done") and retried.endswith("1 done")
    ended(job)
    assert states() == ["done"] * 6

    run_here = ["bash", "examples/sweep.sbatch", "--jobs", "2"]
    undisturbed = caller(loop, slurm)(*run_here, *options)
    assert undisturbed.endswith("6 done"), undisturbed
    for cell in CELLS:
        assert metrics(array / cell) == metrics(loop / cell) and len(metrics(loop / cell)) == 24


def test_one_job_runs_all_cells_and_goes_on_after_an_interruption(slurm, tmp_path):
    tree = copy_of_the_tree(tmp_path / "tree")
    call = caller(tree, slurm | {"SEEDS": "1"})
    sbatch = ["sbatch", "--parsable", "--cpus-per-task=1", "examples/sweep.sbatch"]
    job = call(*sbatch, "--only", "missing", *OPTIONS)
    until(lambda: epochs(tree / CELLS[0]), "cell 0 to train")
    interrupt(call, job)
    until(lambda: not call("squeue", "-h", "-j", job), "the job to end", 300)
    assert [epochs(tree / cell) for cell in CELLS[:2]] == [24, 24]
    (log,) = (tree / "logs").glob(f"sweep_{job}_4294967294.out")  # SLURM's number of no task
    lines = log.read_text().splitlines()
    assert "2 interrupted" in lines and lines[-1] == "2 done", lines
    assert lines[0].startswith("cell 0: interrupted in ")
    assert "SIGTERM: saved at epoch" in (tree / f"logs/sweep_{job}_0.out").read_text()
    summary = (tree / CELLS[0] / "summary.json").read_text()
    assert re.findall(r'"restarts": (\d)', summary) == ["1", "1"]  # of the run, and of the job


def test_what_cannot_be_run_says_why(slurm, tmp_path):
    tree, log = copy_of_the_tree(tmp_path / "tree"), tmp_path / "log"

    def submit(*arguments, cwd=tree, **environment):
        """The exit code of a job, and what it has written."""
        log.unlink(missing_ok=True)
        call = caller(cwd, slurm | environment)
        sbatch = ["sbatch", "--parsable", "--cpus-per-task=1", f"--output={log}"]
        job = call(*sbatch, *arguments)
        end = re.compile(r"JobState=(COMPLETED|FAILED).*ExitCode=(\d+):")
        show = ["scontrol", "show", "job", "-o", job]
        until(lambda: end.search(call(*show)), "the job to end")
        return int(end.search(call(*show))[2]), log.read_text()

    code, output = submit("--array=7", "examples/sweep.sbatch", OFFSET="3")
    assert code == 2 and "there is no cell 10: the list has 6, 0 to 5" in output
    code, output = submit("--array=0", "examples/sweep.sbatch", "epochs=0")
    assert code == 1 and "cell 0: failed, exit code 2: epochs must be at least 1, got 0" in output
    code, output = submit("--array=0", str(tree / "examples/sweep.sbatch"), cwd=tmp_path)
    assert code == 2 and "call sbatch in the root of the repository" in output
    with open(tree / CELLS[0] / ".lock", "a") as lock:  # another task has this run
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, output = submit("--array=0", "examples/sweep.sbatch")
    assert code == 1 and f"cell 0: running, {CELLS[0]} is being written by" in output
    # failed.txt is that of epochs=0
    assert sorted(path.name for path in (tree / CELLS[0]).iterdir()) == [".lock", "failed.txt"]
