"""Sweeps: what the launchers list and submit, the state of each cell, and the loop under bash."""

import fcntl
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from experiment import SCHEMAS
from tests.fixtures import make_run
from utils.config import load
from utils.run_state import run_state
from utils.sweep.cells import Cell, choose, ranges, read_cells
from utils.sweep.runner import CellRunner, failure_reason, python_command
from utils.sweep.slurm import LAUNCHER_VARIABLES
from utils.sweep.status import print_status, relaunch

ROOT = Path(__file__).parents[1]
LAUNCHERS = sorted(path.name for path in (ROOT / "examples").glob("*.sbatch"))
COUNTS = {
    "cifar10": 120,
    "cifar100": 120,
    "cifar10_features": 900,
    "clothing1m": 15,
    "digitsum": 75,
    "folds": 5,
    "joint_optimization": 3,
    "mnist": 150,
    "mnist_ablations": 50,
    "mnist_cnn9": 150,
    "mnist_imbalance": 100,
    "mnist_mlp": 240,
    "multi_node": 3,
    "rsl": 3,
    "search": 56,
    "selfie": 3,
    "sweep": 24,
    "trusted": 27,
    "two_stage": 3,
    "utkface": 150,
    "wikihow": 18,
}
QUICK = ["model=mlp", "model.hidden=[8]", "threads=1", "device=cpu"]


def launch(*arguments, cwd=ROOT, **environment):
    """Exit code, output and complaints of a launcher under bash."""
    clean = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    done = subprocess.run(
        ["bash", *map(str, arguments)],
        cwd=cwd,
        env=clean | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    return done.returncode, done.stdout, done.stderr


def test_what_a_launcher_reads_is_repeated_by_commands_that_launch_it_again():
    for launcher in sorted((ROOT / "examples").glob("*.sbatch")):
        names = re.findall(r"\$\{([A-Z_]+):?[-+]", launcher.read_text())
        assert set(names) <= {*LAUNCHER_VARIABLES, "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID"}


@pytest.mark.parametrize(
    ("launcher", "unread"),
    [("sweep", []), ("mnist", ["DATASET"]), ("mnist_mlp", ["DATASET", "KIND", "FRACTIONS"])],
)
def test_a_variable_that_a_launcher_does_not_read_is_said(launcher, unread):
    variables = {"METHODS": "plain", "KIND": "pair", "FRACTIONS": "0.4", "SEEDS": "1"}
    variables["DATASET"] = "digits"
    path = f"examples/{launcher}.sbatch"
    code, _, complaints = launch(path, "--dry-run", **variables)
    expected = [f"warning: {name} is set, which {path} does not read" for name in unread]
    assert code == 0 and complaints.splitlines() == expected


def test_every_launcher_is_here():
    assert {name.removesuffix(".sbatch") for name in LAUNCHERS} == set(COUNTS)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_lists_and_submits_its_cells(name):
    code, listed, complaints = launch(f"examples/{name}", "--dry-run", "data_root=/data")
    assert code == 0 and not complaints
    lines = listed.splitlines()
    assert len(lines) == COUNTS[name.removesuffix(".sbatch")]
    for number, line in enumerate(lines):
        start, commands = line.split(": ", 1)
        assert int(start) == number
        for command in commands.split(" && "):
            python, script, params, *overrides = shlex.split(command)
            assert python == sys.executable
            if script == "-m":
                assert params == "utils.mentor" and overrides[1].startswith(overrides[0])
                continue
            assert script == "main.py"
            assert overrides[-1] == "data_root=/data"
            assert load(params, overrides, SCHEMAS)["data_root"] == "/data"
    code, command, _ = launch(f"examples/{name}", "--submit", "--dry-run", "data_root=/data")
    assert code == 0
    assert command == f"sbatch --array=0-{len(lines) - 1}%8 examples/{name} data_root=/data\n"

    script = (ROOT / "examples" / name).read_text()
    options = " ".join(re.findall(r"^#SBATCH ([^#\n]+)", script, re.MULTILINE)).split()
    common = "--signal=B:USR1@120 --requeue --open-mode=append --output=logs/%x_%A_%a.out"
    own = {"--job-name", "--cpus-per-task", "--time"}
    several_nodes = {"--nodes", "--ntasks-per-node"} if name == "multi_node.sbatch" else set()
    assert f"#SBATCH {common}\n" in script and f"--job-name={Path(name).stem}" in options
    differing = {option.split("=")[0] for option in options if option not in common}
    assert differing == own | several_nodes
    code, manual, _ = launch(f"examples/{name}", "--help")
    assert code == 0 and f"examples/{name}" in manual and "--cells 3-7,9" in manual
    assert "source" not in manual and "set -euo" not in manual


def test_a_launcher_may_be_called_from_anywhere(tmp_path):
    for cwd, path in (
        (ROOT / "examples", "sweep.sbatch"),
        (tmp_path, ROOT / "examples/sweep.sbatch"),
    ):
        chosen = {"METHODS": "plain", "FRACTIONS": "0.123", "SEEDS": "1"}
        code, status, _ = launch(path, "--status", "run_dir=", cwd=cwd, **chosen)
        assert code == 0 and "bash examples/sweep.sbatch --only missing" in status
        assert launch(path, "--help", cwd=cwd)[0] == 0


def test_what_the_environment_chooses():
    arguments = ["--dry-run", "--cells", "1,3-4", "loss.q=0.5"]
    chosen = {"DATASET": "mnist", "METHODS": "gce", "KIND": "pair"}
    chosen |= {"FRACTIONS": "0.1 0.3", "SEEDS": "4 5 6"}
    _, listed, _ = launch("examples/sweep.sbatch", *arguments, **chosen)
    assert [line.split("main.py ")[1] for line in listed.splitlines()] == [
        f"params/mnist/gce.yaml noise.kind=pair noise.fraction={fraction} seed={seed} loss.q=0.5"
        for fraction, seed in (("0.3", 4), ("0.3", 5), ("0.1", 6))
    ]
    _, listed, _ = launch(
        "examples/rsl.sbatch", "--dry-run", SEEDS="1", SELECTION="dataset.selection.beta=0.3"
    )
    recording, *selecting = (command.split() for command in listed.split(" && "))
    # not where a run of Plain belongs that records nothing
    folder = "runs/digits/rsl_recording/pair-0.4/seed1"
    assert recording[-2:] == ["record_losses=true", f"run_dir={folder}"]
    assert [command[-2:] for command in selecting] == [
        [f"dataset.selection.history={folder}/losses.npy", "dataset.selection.beta=0.3"]
    ] * 2
    for name, chosen, directories, overrides in (
        (
            "selfie",
            {"RESTART_TAU": "0.1"},
            ["selfie", "selfie_restart1", "selfie_restart2"],
            "loss.tau=0.1",
        ),
        ("joint_optimization", {}, ["joint_optimization", "joint_optimization_step2"], ""),
        (
            "two_stage",
            {"SELECT_EPOCHS": "7"},
            ["two_stage_selection", "two_stage_fresh"],
            "loss.select_epochs=0",
        ),
    ):
        _, listed, _ = launch(f"examples/{name}.sbatch", "--dry-run", SEEDS="1", **chosen)
        commands = listed.strip().split(" && ")
        folders = [f"runs/digits/{name}/symmetric-0.4/seed1" for name in directories]
        assert [command.split(" run_dir=")[1].split()[0] for command in commands] == folders
        for before, command in zip(folders, commands[1:], strict=False):
            assert f" targets={before}/labels.npz " in command and overrides in command
    _, listed, _ = launch("examples/clothing1m.sbatch", "--dry-run", "--cells", "0", PROCESSES="4")
    assert (
        f"{sys.executable} -m torch.distributed.run --nproc-per-node=4 --standalone main.py "
        f"params/clothing1m" in listed
    )


@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        (["--cells", "24"], {}, "there is no cell 24: the list has 24, 0 to 23"),
        (["--cells", "3-"], {}, "cells are written 3-7,9"),
        (["--cells", "5-3"], {}, "there is no cell 5-3"),
        (["--array=3"], {}, "not known: --array=3; a launcher takes --cells"),
        (["--submit", "gpu"], {}, "not known: gpu; a launcher takes --cells"),
        (["--submit", "--array=0-3%2"], {}, "--submit numbers the array itself"),
        (["--submit", "--jobs", "2"], {}, "--jobs is for a loop"),
        (["--jobs", "0"], {}, "--jobs must be at least 1"),
        (
            ["--jobs", "2"],
            {"PROCESSES": "2"},
            "--jobs must be at least 1, and 1 where a cell has several PROCESSES",
        ),
        (
            [],
            {"METHODS": "plain plian"},
            "no params file params/digits/plian.yaml; in that folder: params/digits/base.yaml",
        ),
        (
            [],
            {"SEEDS": "1 2 1"},
            "cells 0 and 16 would both write runs/digits/plain/symmetric-0/seed1: give one of them",
        ),
        (["run_dir=runs/x"], {}, "would both write runs/x"),
        ([], {"SEEDS": " "}, "the list of cells is empty"),
        (
            [],
            {"DATASET": "cifar100", "FRACTIONS": "0.8"},
            "has parameters for the noise fractions 0.0, 0.2, 0.4, 0.6, got 0.8",
        ),
        ([], {"PROCESSES": "two"}, "PROCESSES must be how many"),
        (
            [],
            {"SLURM_JOB_NUM_NODES": "2"},
            "this job has 2 nodes, and MASTER_ADDR and MASTER_PORT must say where they meet",
        ),
        ([], {"SLURM_ARRAY_TASK_ID": "20", "OFFSET": "10"}, "there is no cell 30"),
        (["--cells", "3"], {"SLURM_ARRAY_TASK_ID": "2"}, "--cells is not for an array"),
        (["--submit", "--export=NONE"], {}, "write --export=ALL, or --export=ALL,NONE"),
        (["--submit", "--dry-run"], {"SBATCH_EXPORT": "PATH"}, "SBATCH_EXPORT=PATH keeps from"),
        ([], {"SLURM_ARRAY_TASK_ID": "1", "OFFSET": "x"}, "OFFSET must be a whole number, got 'x'"),
        ([], {"MAX_RESTARTS": "-1"}, "MAX_RESTARTS must be a whole number, got '-1'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(arguments, environment, message):
    code, printed, complaints = launch("examples/sweep.sbatch", *arguments, **environment)
    assert code == 2 and not printed
    assert complaints.startswith("error: ") and message in complaints


def test_several_nodes_meet_by_torchrun_under_srun():
    command = python_command(
        {
            "PROCESSES": "4",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_ID": "17",
            "MASTER_ADDR": "n1",
            "MASTER_PORT": "20017",
            "SLURM_CPUS_PER_TASK": "16",
        }
    )
    assert shlex.join(command) == (
        f"srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=16 --kill-on-bad-exit=0 "
        f"--wait=120 {sys.executable} -m utils.sweep relay {sys.executable} -m "
        f"torch.distributed.run --nproc-per-node=4 --nnodes=2 --rdzv-backend=c10d --rdzv-id=17 "
        f"--rdzv-endpoint=n1:20017"
    )


def test_numbers_and_relaunching(monkeypatch, tmp_path):
    assert choose("3-5,1", 6) == [3, 4, 5, 1] and choose(None, 2) == [0, 1]
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    monkeypatch.setenv("SEEDS", "1 2")
    for name in set(LAUNCHER_VARIABLES) - {"SEEDS"}:
        monkeypatch.delenv(name, raising=False)
    launcher = tmp_path / "x.sbatch"
    assert relaunch([4, 5, 1001, 2003], "missing", str(launcher), ["a=b c"], largest=1000) == [
        f"SEEDS='1 2' bash {launcher} --only missing 'a=b c'",
        f"SEEDS='1 2' sbatch --array=4-5%8 {launcher} 'a=b c'",
        f"OFFSET=1001 SEEDS='1 2' sbatch --array=0%8 {launcher} 'a=b c'",
        f"OFFSET=2002 SEEDS='1 2' sbatch --array=1%8 {launcher} 'a=b c'",
    ]


@pytest.fixture
def cluster(tmp_path):
    """A PATH with an sbatch that writes down how it was called, and arrays of up to ten tasks."""
    programs = tmp_path / "bin"
    programs.mkdir()
    calls = tmp_path / "calls"
    for name, script in (
        ("sbatch", f'echo "OFFSET=$OFFSET SEEDS=$SEEDS ${{*@Q}}" >> {calls}; exit ${{CODE:-0}}'),
        ("scontrol", "echo 'MaxArraySize            = 10'"),
    ):
        (programs / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (programs / name).chmod(0o755)
    return f"{programs}:{os.environ['PATH']}", calls


def test_a_launcher_submits_itself_in_as_many_arrays_as_it_takes(cluster):
    path, calls = cluster
    options = ["--gres=gpu:1", "--comment=a b", "data_root=/my data", "--array=%4"]
    # fractions that nobody has run
    chosen = {"FRACTIONS": "0.121 0.122 0.123 0.124", "SEEDS": "1 2 3"}

    def submit(*arguments, **environment):
        environment |= chosen | {"PATH": path}
        call = ["examples/sweep.sbatch", "--submit", *arguments]
        code, printed, complaints = launch(*call, **environment)
        assert not complaints
        made = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return code, printed.splitlines(), made

    tail = "'--gres=gpu:1' '--comment=a b' 'examples/sweep.sbatch' 'data_root=/my data'"
    code, _, made = submit(*options)
    assert code == 0 and made == [
        f"OFFSET=0 SEEDS=1 2 3 '--array=0-9%4' {tail}",
        f"OFFSET=10 SEEDS=1 2 3 '--array=0-9%4' {tail}",
        f"OFFSET=20 SEEDS=1 2 3 '--array=0-3%4' {tail}",
    ]
    code, printed, made = submit("--cells", "3,1,22", "--only", "missing", "--dry-run")
    variables = "FRACTIONS='0.121 0.122 0.123 0.124' SEEDS='1 2 3'"
    assert code == 0 and not made
    assert printed == [
        f"{variables} sbatch --array=1,3%8 examples/sweep.sbatch",
        f"OFFSET=20 {variables} sbatch --array=2%8 examples/sweep.sbatch",
    ]
    assert submit("--only", "failed") == (0, ["nothing to run"], [])
    code, _, made = submit(CODE="1")  # sbatch has said why
    assert code == 1 and len(made) == 1


def test_the_states_of_a_run(tmp_path):
    assert run_state(tmp_path / "none") == ("missing", "")
    (tmp_path / "config.yaml").write_text("")
    assert run_state(tmp_path) == ("interrupted", "after 0 epochs")
    summary = {
        "finished": False,
        "epochs": 3,
        "interrupted": "SIGUSR1",
        "error": None,
        "metric": "mae",
        "test": {"last": 2.0, "best": 1.0, "validated": None},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert run_state(tmp_path) == ("interrupted", "after 3 epochs by SIGUSR1")
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"error": "OSError: disk\nfull"}))
    assert run_state(tmp_path) == ("failed", "OSError: disk")
    (tmp_path / "failed.txt").write_text("killed by SIGKILL\n")
    assert run_state(tmp_path) == ("failed", "killed by SIGKILL")
    with open(tmp_path / ".lock", "w") as lock:
        lock.write("process 7 on here")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_state(tmp_path) == ("running", "process 7 on here")
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"finished": True}))
    assert run_state(tmp_path) == ("done", "mae last 2.00 best 1.00")


@pytest.fixture
def runner():
    """A CellRunner, whose handlers of signals go with it."""
    former = {
        number: signal.getsignal(number)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    }
    yield CellRunner({"CUDA_VISIBLE_DEVICES": "4,6"})
    for number, handler in former.items():
        signal.signal(number, handler)


def test_a_run_of_another_configuration_is_not_the_cells(runner, tmp_path, capsys):
    line = f"params/digits/plain.yaml epochs=15 run_dir={tmp_path}/r"
    lines = [line, f"{line} run_dir={tmp_path}/begun"]
    finished = load("params/digits/plain.yaml", shlex.split(line)[1:], SCHEMAS)
    make_run(tmp_path / "r", [92.0] * 15)
    (tmp_path / "begun").mkdir()
    for name, config in (("r", finished), ("begun", finished | {"seed": 2})):
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    assert [cell.state()[0] for cell in read_cells(lines[:1], ["threads=2"])] == ["done"]
    cells = read_cells(lines, ["optimizer.lr=5", "model=mlp"])
    runner.command = ["false"]  # nothing is started
    changed = "model.name: cnn before, mlp now; optimizer.lr: 0.1 before, 5 now"
    for cell, named in zip(cells, (changed, "seed: 2 before, 1 now"), strict=True):
        state, detail = runner.run(cell, io.StringIO())
        assert state == "other configuration" and named in detail
    assert not (tmp_path / "r/failed.txt").exists()
    print_status(cells, "mine.sbatch")
    status = capsys.readouterr().out
    assert "2 cells: 2 other configuration; 0.00 hours" in status and changed in status
    assert "done" not in status and "92" not in status and "to run what" not in status
    assert "give these runs a run_dir= of their own" in status


def test_a_run_that_main_py_goes_on_with_is_the_cells(tmp_path):
    line = f"params/folder/plain.yaml dataset.root=2024 epochs=2 run_dir={tmp_path}/r"
    (cell,) = read_cells([line], [])
    begun = load("params/folder/plain.yaml", shlex.split(line)[1:], SCHEMAS)
    assert begun["dataset"]["root"] == "2024"
    make_run(tmp_path / "r", [92.0] * 2)
    (tmp_path / "r/config.yaml").write_text(yaml.safe_dump(begun))
    assert cell.state()[0] == "done"
    (moved,) = read_cells([line], ["dataset.root=/elsewhere/2024"])
    assert moved.state()[0] == "other configuration"  # unless it is known what the data were
    (tmp_path / "r/data.json").write_text("{}")
    assert moved.state()[0] == "done"
    (tmp_path / "r/config.yaml").write_text(yaml.safe_dump(begun | {"extended": [{"epochs": 1}]}))
    assert cell.state()[0] == "done"
    (longer,) = read_cells([line], ["epochs=4"])
    assert longer.state() == ("interrupted", "finished after 2 of now 4 epochs")
    (other,) = read_cells([line], ["epochs=4", "batch_size=7"])
    assert other.state()[0] == "other configuration"
    (tmp_path / "r/config.yaml").write_text("model: cnn")  # of somebody else
    assert longer.state()[0] == "other configuration"


def test_the_status_of_a_launcher_is_that_of_its_cells_with_these_keys(custom, tmp_path):
    launcher = custom(f"params/digits/plain.yaml epochs=2 run_dir={tmp_path}/r")
    make_run(tmp_path / "r", [92.0] * 2)
    begun = load("params/digits/plain.yaml", ["epochs=2", f"run_dir={tmp_path}/r"], SCHEMAS)
    (tmp_path / "r/config.yaml").write_text(yaml.safe_dump(begun | {"precision": "bf16"}))
    command = [sys.executable, "-m", "utils.sweep", "status"]

    def status(*arguments):
        call = [*command, *map(str, arguments)]
        return subprocess.run(call, cwd=ROOT, capture_output=True, text=True)

    assert "1 cells: 1 other configuration" in status(launcher).stdout
    assert "1 cells: 1 done" in status(launcher, "precision=bf16").stdout
    done = status(tmp_path, "precision=bf16")
    assert done.returncode == 2 and "of the runs in a folder nothing is chosen" in done.stderr


def test_where_processes_meet_is_not_where_others_were_submitted(cluster):
    path, calls = cluster
    (Path(path.split(":")[0]) / "sbatch").write_text(
        f'#!/usr/bin/env bash\necho "${{MASTER_ADDR:-none}}" >> {calls}\n'
    )
    interactive = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "login", "PATH": path}
    assert launch("examples/multi_node.sbatch", "--submit", **interactive)[0] == 0
    assert calls.read_text() == "none\n"


def test_each_job_gets_a_device_of_its_own(runner):
    devices = [runner._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in (1, 2, 3)]
    assert devices == ["4", "6", "4"]
    assert runner._environment(0)["CUDA_VISIBLE_DEVICES"] == "4,6"


def test_an_interruption_of_old_does_not_hide_a_failure(runner, tmp_path):
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "summary.json").write_text('{"finished": false, "interrupted": "SIGUSR1"}')
    cell = Cell(0, [["x"]], [tmp_path])
    saved = f'echo \'{{"interrupted": "SIGTERM"}}\' > {tmp_path}/summary.json; exit 1'
    for script, expected in (
        ("echo error: no such key; exit 1", ("failed", "exit code 1: no such key")),
        ("exit 75", ("interrupted",)),
        (saved, ("interrupted",)),
        ("kill -9 $$", ("failed", "killed by SIGKILL")),
    ):
        runner.command = ["bash", "-c", script]
        (tmp_path / "failed.txt").unlink(missing_ok=True)
        assert runner.run(cell, io.StringIO())[: len(expected)] == expected, script
        assert (tmp_path / "failed.txt").exists() == (expected[0] == "failed")


def test_the_reason_is_the_line_that_tells_most():
    assert failure_reason(["a", "error: disk full", "", "error: later", "Traceback"]) == "disk full"
    lines = [
        "[rank1]: torch.OutOfMemoryError: CUDA",
        "[rank1]:   at",
        "x.ChildFailedError: ",
        "===",
    ]
    assert failure_reason(lines) == "[rank1]: torch.OutOfMemoryError: CUDA"
    assert failure_reason(["a", "b", ""]) == "b" and failure_reason([]) == ""


@pytest.fixture
def custom(tmp_path):
    """A launcher outside examples/ that lists these cells."""

    def make(*lines):
        launcher = tmp_path / "mine.sbatch"
        listed = "\n".join(f"echo '{line}'" for line in lines)
        launcher.write_text(
            f'source {ROOT}/examples/common.sh\nmine() {{\n{listed}\n}}\nsweep mine "$@"\n'
        )
        return launcher

    return make


def test_a_failed_cell_stays_failed_and_stops_no_other(custom, tmp_path):
    launcher = custom(
        f"params/digits/gce.yaml run_dir={tmp_path}/1 epochs=2 loss.q=7",
        f"params/digits/plain.yaml run_dir={tmp_path}/2a epochs=2 record_losses=true && "
        f"params/digits/rsl.yaml "
        f"run_dir={tmp_path}/2b epochs=2 dataset.selection.history={tmp_path}/2a/losses.npy",
    )
    reason = "exit code 2: GCE: q must lie in (0, 1], got 7"
    code, printed, _ = launch(launcher, *QUICK)
    assert code == 1 and printed.splitlines()[-1] == "1 done, 1 failed"
    assert "cell 0: failed in" in printed and reason in printed
    code, status, _ = launch(launcher, "--status", *QUICK)
    assert code == 0 and re.findall(r"^ *\d+  (\w+)", status, re.MULTILINE) == ["failed", "done"]
    assert reason in status and "2 cells: 1 done, 1 failed; 0.00 hours" in status
    assert f"bash {launcher} --only failed {shlex.join(QUICK)}" in status
    assert f"sbatch --array=0%8 {launcher} {shlex.join(QUICK)}" in status
    assert launch(launcher, "--only", "missing", *QUICK)[1] == "nothing to run\n"
    command = [sys.executable, "-m", "utils.sweep", "status", tmp_path]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "3 cells: 2 done, 1 failed" in listed.stdout
    code, printed, _ = launch(launcher, "--only", "failed", *QUICK, "loss.q=0.5")  # mended
    assert code == 0 and printed.startswith("cell 0: done")
    assert not (tmp_path / "1/failed.txt").exists()
    assert "error: GCE: q must lie" in (ROOT / "logs/mine_bash_0.out").read_text()
    for path in (ROOT / "logs").glob("mine_bash_*.out"):
        path.unlink()


def test_what_prepares_a_run_is_run_before_it_and_its_failure_is_the_run_s(custom, tmp_path):
    recording = "params/digits/mentornet.yaml epochs=2 record_losses=true trusted.train=given"
    launcher = custom(
        *(
            f"{recording} trusted.count={count} trusted.per_class=false "
            f"run_dir={tmp_path}/{count}-first && "
            f"-m utils.mentor {tmp_path}/{count}-first {tmp_path}/{count}.npz && "
            f"params/digits/mentornet_dd.yaml epochs=2 loss.mentor={tmp_path}/{count}.npz "
            f"run_dir={tmp_path}/{count}"
            for count in (40, 1)
        )
    )
    code, printed, _ = launch(launcher, *QUICK)
    assert code == 1 and printed.splitlines()[-1] == "1 done, 1 failed"
    assert (tmp_path / "40/summary.json").exists() and not (tmp_path / "1.npz").exists()
    assert "and a mentor learns from both kinds" in (tmp_path / "1/failed.txt").read_text()
    for path in (ROOT / "logs").glob("mine_bash_*.out"):
        path.unlink()


def test_a_command_that_prepares_no_run_is_refused(custom, tmp_path):
    for line in ("params/digits/plain.yaml && -m utils.mentor a b.npz", "-m utils.mentor a b.npz"):
        code, _, complaint = launch(custom(line), "--dry-run")
        assert code == 2 and "-m utils.mentor a b.npz prepares no run" in complaint


@pytest.mark.parametrize("processes, number", [("1", signal.SIGUSR1), ("2", signal.SIGTERM)])
def test_a_signal_to_the_loop_reaches_the_run(custom, tmp_path, processes, number):
    launcher = custom(
        *(f"params/digits/plain.yaml run_dir={tmp_path}/{cell} epochs=300" for cell in (0, 1))
    )
    environment = os.environ | {"PYTHON": sys.executable, "PROCESSES": processes}
    loop = subprocess.Popen(
        ["bash", launcher, *QUICK], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while not (tmp_path / "0/metrics.csv").exists():
        assert time.monotonic() < end and loop.poll() is None
        time.sleep(0.05)
    loop.send_signal(number)
    printed, _ = loop.communicate(timeout=120)
    assert loop.returncode == 75 and printed.splitlines()[-1] == "2 interrupted"
    assert "cell 0: interrupted in" in printed
    summary = json.loads((tmp_path / "0/summary.json").read_text())
    assert summary["interrupted"] == "SIGTERM" and summary["error"] is None
    assert summary["processes"] == int(processes)
    assert not (tmp_path / "1").exists() and not (tmp_path / "0/failed.txt").exists()
    (ROOT / "logs/mine_bash_0.out").unlink()
