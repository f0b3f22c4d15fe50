"""A sweep under a real SLURM, interrupted in every way, equals an undisturbed one under bash.

Runs where SLURM_TESTS=1.
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
    for name in ("datasets", "losses", "models", "utils", "params", "examples", "main.py"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, directory / name)
    (directory / "logs").mkdir()
    return directory


def metrics(directory):
    """metrics.csv as it is, but for what was measured in seconds."""
    with open(directory / "metrics.csv") as file:
        return [
            {
                key: value
                for key, value in row.items()
                if key not in ("seconds", "images_per_second")
            }
            for row in csv.DictReader(file)
        ]


def until(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.1)


def test_an_interrupted_array_equals_the_bash_loop(slurm, tmp_path):
    array, loop = copy_of_the_tree(tmp_path / "array"), copy_of_the_tree(tmp_path / "loop")
    options = [*OPTIONS, f"data_root={tmp_path}"]  # not needed; tells our processes from others

    def call(*command, cwd=array):
        return subprocess.run(
            command, cwd=cwd, env=slurm, capture_output=True, text=True, timeout=500
        ).stdout.strip()

    def epochs(cell):
        path = array / CELLS[cell] / "metrics.csv"
        return len(path.read_text().splitlines()) - 1 if path.exists() else 0

    def states():
        return re.findall(
            r"^ *\d+  (\w+)",
            call("bash", "examples/sweep.sbatch", "--status", *options),
            re.MULTILINE,
        )

    def in_queue(job):
        return call("squeue", "-h", "-j", job)

    assert states() == ["missing"] * 6
    job = call(
        "sbatch",
        "--parsable",
        "--array=0-5%2",
        "--cpus-per-task=1",
        "examples/sweep.sbatch",
        *options,
    )
    until(lambda: epochs(0), "cell 0 to train")
    assert states()[0] == "running" and states()[2:] == ["missing"] * 4
    # What SLURM does before the time limit; scancel would repeat it while the job is on its way
    # back into the queue
    call("timeout", "1", "scancel", "--batch", "--signal=USR1", f"{job}_0")
    until(lambda: epochs(1), "cell 1 to train")
    call("scontrol", "requeue", f"{job}_1")
    until(lambda: epochs(2), "cell 2 to train")
    subprocess.run(
        ["pkill", "-KILL", "-f", f"main.py .*plain.yaml .*seed=2 .*{tmp_path}"], check=True
    )
    until(lambda: epochs(3), "cell 3 to train")
    call("scancel", f"{job}_3")
    until(lambda: epochs(4), "cell 4 to train")
    call(
        "srun", "--partition=urgent", "--ntasks=1", "--cpus-per-task=2", "true"
    )  # needs the whole node: preempts
    until(lambda: not in_queue(job), "the array to end", 500)

    log = (array / f"logs/sweep_{job}_0.out").read_text()
    assert "SIGTERM: saved at epoch" in log and "restarted 1 times" in log  # in one log
    status = call("bash", "examples/sweep.sbatch", "--status", *options)
    assert states() == ["done", "done", "failed", "interrupted", "done", "done"], status
    assert "killed by SIGKILL" in status and "6 cells: 4 done, 1 interrupted, 1 failed" in status
    (again,) = re.findall(r"sbatch (--array=3)%8 examples/sweep.sbatch (.*)$", status, re.MULTILINE)
    assert again[1].split() == options
    restarts = re.findall(r'"restarts": (\d)', (array / CELLS[0] / "summary.json").read_text())
    assert restarts == ["1", "1"]  # of the run, and of the job

    job = call(
        "sbatch", "--parsable", again[0], "--cpus-per-task=1", "examples/sweep.sbatch", *options
    )
    retried = call("bash", "examples/sweep.sbatch", "--only", "failed", *options)
    assert retried.startswith("cell 2: done") and retried.endswith("1 done")
    until(lambda: not in_queue(job), "cell 3 to end")
    assert states() == ["done"] * 6

    undisturbed = call("bash", "examples/sweep.sbatch", "--jobs", "2", *options, cwd=loop)
    assert undisturbed.endswith("6 done"), undisturbed
    for cell in CELLS:
        assert metrics(array / cell) == metrics(loop / cell) and len(metrics(loop / cell)) == 24


def test_what_cannot_be_run_says_why(slurm, tmp_path):
    tree, log = copy_of_the_tree(tmp_path / "tree"), tmp_path / "log"

    def submit(*arguments, cwd=tree, **environment):
        """The exit code of a job, and what it has written."""
        log.unlink(missing_ok=True)
        job = subprocess.run(
            ["sbatch", "--parsable", "--cpus-per-task=1", f"--output={log}", *arguments],
            cwd=cwd,
            check=True,
            env=slurm | environment,
            capture_output=True,
            text=True,
        ).stdout.strip()
        show = ["scontrol", "show", "job", "-o", job]
        shown = re.compile(r"JobState=(COMPLETED|FAILED).*ExitCode=(\d+):")
        until(
            lambda: shown.search(
                subprocess.run(show, env=slurm, capture_output=True, text=True).stdout
            ),
            "the job to end",
        )
        said = subprocess.run(show, env=slurm, capture_output=True, text=True).stdout
        return int(shown.search(said)[2]), log.read_text()

    code, said = submit("--array=7", "examples/sweep.sbatch", OFFSET="3")
    assert code == 2 and "there is no cell 10: the list has 6, 0 to 5" in said
    code, said = submit("--array=0", "examples/sweep.sbatch", "epochs=0")
    assert code == 1 and "cell 0: failed, exit code 2: epochs must be at least 1, got 0" in said
    code, said = submit("--array=0", str(tree / "examples/sweep.sbatch"), cwd=tmp_path)
    assert code == 2 and "call sbatch in the root of the repository" in said
    with open(tree / CELLS[0] / ".lock", "a") as lock:  # another task has this run
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, said = submit("--array=0", "examples/sweep.sbatch")
    assert code == 1 and f"cell 0: running, {CELLS[0]} is being written by" in said
    assert sorted(path.name for path in (tree / CELLS[0]).iterdir()) == [
        ".lock",
        "failed.txt",
    ]  # of the one before
