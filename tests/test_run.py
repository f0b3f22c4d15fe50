"""Whole runs through main.py: what they leave behind, how they resume, and how they fail."""

import contextlib
import hashlib
import importlib.util
import io
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import losses
import main
from tests.conftest import TINY
from utils.checkpoint import Checkpoint, StopRequest, atomic_write
from utils.mentor import main as fit_mentor
from utils.report.__main__ import main as report
from utils.run_directory import RunDirectory
from utils.run_state import lock_owner, read_summary, run_state
from utils.scores import IN_TRAINING
from utils.training_record import TrainingRecord

ROOT = Path(__file__).parents[1]
PLAIN = {"params": "params/digits/plain.yaml"}
METHODS = sorted(
    path.stem
    for path in (ROOT / "params/digits").glob("*.yaml")
    if path.stem not in ("base", "plain_slow")
)
SHORT = {  # so that all phases of a method fit into three epochs of 11 steps
    "rsl_mixmatch": ["loss.epoch_steps=11"],
    "forward_correction": ["loss.estimate_epochs=1"],
    "truncated_gce": ["loss.k=0.2", "loss.prune_from=2", "loss.prune_every=1"],
    "selfie": ["loss.warm_up=1", "loss.q=1"],
    "joint_optimization": ["loss.begin=2", "loss.window=2"],
    "two_stage": ["loss.select_epochs=1"],
    "learning_to_reweight": ["batch_size=115"],  # of 1,197 samples
    "trusted_only": ["batch_size=9"],  # of 100
    "mentornet_dd": ["batch_size=115"],
    "label_cleaning": ["batch_size=115", "loss.warm_up=1"],
    "noisy_clean_crf": ["batch_size=115"],
    "teacher": ["batch_size=9"],
    "cleannet": ["loss.begin=1", "loss.every=1", "loss.steps=3", "loss.num_references=2"],
    "fine_tuned": ["batch_size=9"],
}
RECORD = [
    "record_losses=true",
    "dataset.crop_padding=1",
    "validation.fraction=0.2",
    "validation.clean=true",
]


def weights(directory):
    """The content of the newest checkpoint of a run."""
    return torch.load(directory / "checkpoint.pt", weights_only=True)


def arrays(path):
    """The content of a .npz file, which is closed again."""
    with np.load(path) as content:
        return dict(content)


def equal(first, second):
    """Whether two nested states are exactly equal, but for wall-clock times."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        keys = first.keys() - {"seconds", "images_per_second", "restarts"}
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in keys)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    both_nan = first != first and second != second
    return first == second or both_nan


def assert_same_arrays(first_path, second_path):
    """Two .npz files hold the same, to the last bit."""
    first, second = arrays(first_path), arrays(second_path)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], name)


def assert_finite_model(directory):
    """The parameters in the newest checkpoint are all finite."""
    for name, value in weights(directory)["model"].items():
        assert value.isfinite().all(), name


def interrupt_at(monkeypatch, step, number=signal.SIGTERM):
    """Send this process a signal after so many steps of training, counted over the epochs."""
    update = TrainingRecord.update
    steps = itertools.count()

    def interrupting(self, *arguments):
        update(self, *arguments)
        if next(steps) == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainingRecord, "update", interrupting)


def start(*arguments, **options):
    """main.py in a process of its own, which has printed its first two lines: it trains."""
    process = subprocess.Popen(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    for _ in range(2):
        process.stdout.readline()
    return process


def write_images(folder, classes, image_of, *, train, test):
    """Write train/ and test/ with so many images of each class: image_of(class, number)."""
    from torchvision.io import write_png

    for part, count in (("train", train), ("test", test)):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                image = image_of(name, number).to(torch.uint8)
                write_png(image, str(folder / part / name / f"{number}.png"))


def test_a_run_leaves_what_the_readme_lists(run):
    code, directory, stdout, stderr = run("validation.fraction=0.2", "loss=Plain")
    assert code == 0
    assert not stderr
    expected = {
        ".lock",
        "config.yaml",
        "metrics.csv",
        "noise.npz",
        "samples.npz",
        "suspects.csv",
        "checkpoint.pt",
        "checkpoint.previous.pt",
        "summary.json",
        "curves.png",
        "samples.png",
        "suspects.png",
        "hardest.png",
        "held_out.npz",
        "test.npz",
        "network.pt",
        "network.json",
    }
    assert {path.name for path in directory.iterdir()} == expected

    rows = pd.read_csv(directory / "metrics.csv")
    first_columns = "epoch,lr,train_loss,train_metric,test_metric,seconds,images_per_second"
    assert ",".join(rows.columns[:7]) == first_columns
    assert list(rows.epoch) == [0, 1, 2]
    assert (rows.seconds > 0).all()
    sample_weights = rows.filter(like="weight_")
    assert sample_weights.columns.tolist() == ["weight_easy", "weight_hard", "weight_incorrect"]
    np.testing.assert_allclose(sample_weights, 1, rtol=1e-5)  # in Plain every sample counts fully

    summary = read_summary(directory)
    test = summary["test"]
    assert summary["finished"]
    assert summary["metric"] == "accuracy"
    assert summary["epochs"] == 3
    assert summary["restarts"] == 0
    assert test["last"] == pytest.approx(rows.test_metric.iloc[-1], rel=1e-5)
    assert test["best"] == pytest.approx(rows.test_metric.max(), rel=1e-5)
    assert test["best_epoch"] == rows.test_metric.idxmax()
    chosen_epoch = rows.validation_metric.idxmax()
    assert test["validated"] == pytest.approx(rows.test_metric[chosen_epoch], rel=1e-5)
    assert summary["noise"]["realised"] == pytest.approx(0.4, abs=0.001)
    assert summary["noise"]["requested"] == 0.4
    assert set(summary["detection"]) == {
        "auroc",
        "average_precision",
        "hard_vs_incorrect_auroc",
        "memorised_fraction",
        "flag_precision",
        "flag_recall",
    }
    assert all(0 <= value <= 1 for value in summary["detection"].values())

    noise = arrays(directory / "noise.npz")
    assert noise["given"].shape == noise["true"].shape == (1297,)
    assert noise["transition"].shape == (10, 10)
    assert str(noise["sha256"]) == summary["noise"]["sha256"]
    samples = arrays(directory / "samples.npz")
    own = {"index", "given", "true", "loss", "score", "predicted", "flagged", "quality"}
    probabilities = {"given_probability", "predicted_probability", "second", "second_probability"}
    assert set(samples) == own | probabilities | set(IN_TRAINING)
    held_out = arrays(directory / "held_out.npz")
    assert set(held_out) == own | probabilities | {"mean_loss", "self_confidence"}
    assert sorted([*held_out["index"], *samples["index"]]) == list(range(1297))
    assert len(samples["index"]) == 1297 - 260
    assert (np.diff(samples["index"]) > 0).all()
    assert (samples["given"] == noise["given"][samples["index"]]).all()
    tested = arrays(directory / "test.npz")
    assert tested["index"].tolist() == list(range(500))
    assert tested["loss"].shape == (500,)
    accuracy = 100 * (tested["predicted"] == tested["target"]).mean()
    assert accuracy == pytest.approx(summary["test"]["last"])
    suspects = pd.read_csv(directory / "suspects.csv")
    assert suspects.quality.is_monotonic_increasing and set(suspects.part) == {
        "train",
        "validation",
    }
    assert len(suspects) == 1000
    trained = suspects[suspects.part == "train"]
    assert trained.score.is_monotonic_decreasing
    assert trained["index"].iloc[0] == samples["index"][samples["score"].argmax()]
    first_columns = "rank,index,path,given_label,predicted_label,score,loss"
    assert ",".join(suspects.columns[:7]) == first_columns
    assert suspects["rank"].tolist() == list(range(1, 1001))
    assert (directory / "suspects.png").stat().st_size > 10_000

    lines = stdout.strip().splitlines()
    assert lines[0] == f"{directory}: 1,297 training, 500 test samples in 10 classes"
    assert len(lines) == 5  # no progress bar, because the output is not a terminal
    assert all("images/s" in line for line in lines[1:4])


def test_train_loss_and_metric_are_those_of_a_naive_loop(run):
    # at this learning rate the network stays what it was
    _, directory, *_ = run("loss=Plain", "optimizer.lr=1e-12", "epochs=1")
    samples = arrays(directory / "samples.npz")
    rows = pd.read_csv(directory / "metrics.csv")
    assert rows.train_loss[0] == pytest.approx(samples["loss"].mean(), rel=1e-4)
    accuracy = 100 * (samples["predicted"] == samples["given"]).mean()
    assert rows.train_metric[0] == pytest.approx(accuracy, rel=1e-4)
    np.testing.assert_allclose(samples["mean_loss"], samples["loss"], rtol=1e-4)
    # Plain keeps no score of its own
    np.testing.assert_array_equal(samples["score"], samples["mean_loss"])


def prepare(run, method):
    """Options and overrides of a run of the method: 11 steps an epoch.

    The history that RSL selects by is recorded first.
    """
    overrides = [
        "model=cnn",
        "model.width=2",
        "schedule=StepLR",
        "schedule.step_size=1",
        "schedule.gamma=0.5",
    ]
    if method.startswith("rsl"):
        _, recording, *_ = run("record_losses=true", "model=cnn", **PLAIN, name="recording")
        overrides += [f"dataset.selection.history={recording}/losses.npy", "batch_size=64"]
    if method == "mentornet_dd":
        history = ["record_losses=true", "trusted.count=100", "trusted.train=given"]
        _, recording, *_ = run(*history, **PLAIN, name="recording")
        assert fit_mentor([str(recording), f"{recording}.npz"]) == 0
        overrides.append(f"loss.mentor={recording}.npz")
    if method == "distillation":
        _, teacher, *_ = run(params="params/digits/teacher.yaml", name="teacher")
        overrides.append(f"targets={teacher}/labels.npz")
    overrides += SHORT.get(method, [])
    return {"params": f"params/digits/{method}.yaml"}, overrides


@pytest.mark.parametrize("method", METHODS)
def test_resume_equals_no_interruption(run, monkeypatch, method):
    options, overrides = prepare(run, method)
    code, whole, *_ = run(*overrides, **options, name="whole")
    assert code == 0
    for step in (3, 7, 10):  # within an epoch of 11 steps, at the last step of one, in the last one
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            code, broken, *_ = run(*overrides, **options)
            assert code == main.INTERRUPTED
    assert (weights(broken)["epoch"], weights(broken)["step"]) == (2, 1)
    assert not read_summary(broken)["finished"]
    code, *_ = run(*overrides, **options)
    assert code == 0
    assert equal(weights(whole), weights(broken))
    assert_same_arrays(whole / "samples.npz", broken / "samples.npz")
    assert read_summary(broken)["restarts"] == 3
    assert read_summary(broken)["test"] == read_summary(whole)["test"]


def test_a_run_that_is_killed_epochs_after_its_checkpoint_equals_no_interruption(run, monkeypatch):
    options = ["epochs=6", "record_losses=true", "model=cnn", "model.width=2"]
    _, whole, *_ = run(*options, name="whole")
    end_epoch = main.end_epoch

    def killed(training):
        end_epoch(training)
        if training.epoch == 3:
            raise FloatingPointError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "budget", 1e-9)  # saved after the first epoch and at the end
        patch.setattr(main, "end_epoch", killed)
        code, broken, *_ = run(*options)
    assert code == 1
    assert weights(broken)["epoch"] == 1
    assert len(pd.read_csv(broken / "metrics.csv")) == 4
    code, *_ = run(*options)
    assert code == 0
    assert equal(weights(whole), weights(broken))
    expected = np.load(whole / "losses.npy")
    assert np.array_equal(expected, np.load(broken / "losses.npy"), equal_nan=True)
    times = ["seconds", "images_per_second"]
    expected = pd.read_csv(whole / "metrics.csv").drop(columns=times)
    pd.testing.assert_frame_equal(pd.read_csv(broken / "metrics.csv").drop(columns=times), expected)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_signals_save_and_exit_75(run, monkeypatch, number):
    former = signal.getsignal(number)
    interrupt_at(monkeypatch, 4, number)
    code, directory, stdout, _ = run()
    assert code == 75
    assert f"{number.name}: saved at epoch 0, step 5" in stdout
    assert weights(directory)["step"] == 5
    assert signal.getsignal(number) == former


def test_a_signal_is_answered_before_there_is_a_step(capfd):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.agreed() == "SIGUSR1"
        answer = "\nSIGUSR1: the run is saved after the next step; Ctrl-C now ends it at once\n"
        assert capfd.readouterr().err == answer
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_is_remembered_where_nobody_reads_what_is_said():
    reader, writer = os.pipe()
    os.close(reader)
    code = (
        "import os, signal\n"
        "from utils.checkpoint import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(stop.agreed())\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=writer, text=True)
    os.close(writer)
    assert done.stdout == "SIGINT\n" and done.returncode == 0


def test_a_finished_run_says_so_and_does_nothing(run):
    run()
    code, directory, stdout, _ = run()
    before = (directory / "checkpoint.pt").stat().st_mtime_ns
    assert code == 0
    assert "is finished: test accuracy: last" in stdout
    assert len(stdout.splitlines()) == 1
    assert (directory / "checkpoint.pt").stat().st_mtime_ns == before


def test_a_run_that_has_learned_nothing_says_so_and_so_does_the_report(run, capsys):
    options = ["optimizer.lr=0", "noise.kind=symmetric", "noise.fraction=0.4"]
    code, directory, _, printed = run(*options, params="params/digits/plain.yaml")
    assert code == 0
    warning = json.loads((directory / "summary.json").read_text())["learning"]["warning"]
    assert "it has learned nothing" in warning and f"warning: {warning}" in printed
    report(["--format", "markdown", str(directory)])
    assert "Learned nothing" in capsys.readouterr().out
    code, directory, _, printed = run("epochs=4", name="other", params="params/digits/plain.yaml")
    assert "warning" not in printed
    report([str(directory)])
    assert "Learned nothing" not in capsys.readouterr().out


def test_another_configuration_is_an_error_that_names_the_keys(run):
    run()
    code, _, _, stderr = run("batch_size=64", "loss.beta=0.5")
    assert code == 2
    assert "batch_size: 128 before, 64 now" in stderr
    assert "loss.beta: not set before, 0.5 now" in stderr
    assert run("threads=2")[0] == 0  # where and on what it runs may change


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "one bit":  # of a weight: the file opens, and only its checksum tells
        content[len(content) // 2] ^= 1
    else:  # of a name in the directory of the archive, at its end
        content[content.rindex(b"PK\x01\x02") + 50] ^= 0x80
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "empty", "one bit", "directory"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(run, monkeypatch, how):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 24)
        _, directory, *_ = run()
    _, whole, *_ = run(name="whole")
    damage(directory / "checkpoint.pt", how)
    code, _, _, stderr = run()
    assert code == 0
    assert "checkpoint.pt is damaged" in stderr
    assert "going on from checkpoint.previous.pt" in stderr
    assert equal(weights(whole), weights(directory))


def replace_state(path, change):
    """Change the content of a checkpoint, whose checksum is right again."""
    state = torch.load(path, weights_only=True)
    changed = change(state)
    state = state if changed is None else changed
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


class Code:
    """What a pickle runs when it is read."""

    def __reduce__(self):
        return os.mkdir, (os.environ["MADE_BY_CODE"],)


UNFIT = {
    "a part is missing": lambda state: without(state, "record"),
    "the step is missing": lambda state: without(state, "step"),
    "a weight is missing": lambda state: state.update(
        model=without(state["model"], next(iter(state["model"])))
    ),
    "a weight has another shape": lambda state: state["model"].update(
        {key: torch.zeros(3) for key in state["model"]}
    ),
    "the state of a parameter has another shape": lambda state: state["optimizer"]["state"].update(
        {0: {"momentum_buffer": torch.zeros(3)}}
    ),
    "the epoch of the schedule is missing": lambda state: state.update(
        schedule=without(state["schedule"], "last_epoch")
    ),
    "the momentum of a parameter is missing": lambda state: state["optimizer"].update(
        state=without(state["optimizer"]["state"], 0)
    ),
    "no parameters": lambda state: state["optimizer"].update(param_groups=[]),
    "a learning rate that is a text": lambda state: state["optimizer"]["param_groups"][0].update(
        lr="0.1"
    ),
    "the samples are others": lambda state: state["record"]["samples"].update(loss=torch.ones(5)),
    "the record is a list": lambda state: state.update(record=[1]),
    "an epoch that is none": lambda state: state.update(epoch=7),
    "an epoch that is a text": lambda state: state.update(epoch="2"),
    "an epoch that the log does not have": lambda state: state.update(epoch=1),
    "a step that is none": lambda state: state.update(step=11),
    "rows that are none": lambda state: state["log"].update(rows=[{"epoch": 0}, {}]),
    "rows that are a text": lambda state: state["log"].update(rows="ab"),
    "a list": lambda state: [state],
    "a tensor": lambda state: torch.zeros(3),
    "random numbers that are none": lambda state: state.update(rng=[]),
    "random numbers of another kind": lambda state: state.update(rng=[{"cpu": torch.ones(3)}]),
    "code": lambda state: {"model": Code()},
}


def test_a_checkpoint_that_does_not_fit_falls_back_to_the_one_before(run, monkeypatch, tmp_path):
    options = ["schedule=StepLR", "schedule.step_size=1"]
    monkeypatch.setenv("MADE_BY_CODE", str(tmp_path / "made"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 24)
        _, directory, *_ = run(*options)
    _, whole, *_ = run(*options, name="whole")
    saved = {path.name: path.read_bytes() for path in directory.iterdir()}
    for what, change in UNFIT.items():
        for name, content in saved.items():
            (directory / name).write_bytes(content)
        replace_state(directory / "checkpoint.pt", change)
        with monkeypatch.context() as patch:
            patch.setattr("experiment.Experiment.finish", lambda self: None)
            code, _, _, stderr = run(*options)
        assert code == 0, what
        assert re.search(r"checkpoint\.pt (does not fit this run|is damaged) \(.", stderr), what
        assert stderr.endswith("going on from checkpoint.previous.pt\n"), what
        assert stderr.count("\n") == 1, what
        assert equal(weights(whole), weights(directory)), what
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_that_is_no_file_is_left_alone(run, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 24)
        _, directory, *_ = run()
    path = directory / "checkpoint.pt"
    path.rename(tmp_path / "elsewhere")
    for make in (lambda: path.symlink_to(tmp_path / "elsewhere"), lambda: os.mkfifo(path)):
        make()
        code, _, _, stderr = run()
        assert code == 1
        assert re.search(r"error: .*checkpoint\.pt is (a link|no regular file)", stderr)
        assert stderr.count("\n") == 1
        path.unlink()


def test_two_checkpoints_that_do_not_fit_are_an_error_and_nothing_is_lost(run, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 24)
        _, directory, *_ = run()
    paths = [directory / name for name in ("checkpoint.pt", "checkpoint.previous.pt")]
    for path in paths:
        replace_state(path, lambda state: state.update(step=11))
    before = [path.read_bytes() for path in paths]
    code, _, _, stderr = run()
    assert code == 1
    assert "there is no epoch 2, step 11 to go on from" in stderr
    assert "nothing to resume from: remove" in stderr
    assert [path.read_bytes() for path in paths] == before


def test_two_damaged_checkpoints_are_an_error_and_nothing_is_lost(run, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 24)
        _, directory, *_ = run()
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        damage(directory / name, "truncated")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    code, _, _, stderr = run()
    assert code == 1
    assert "nothing to resume from: remove" in stderr
    after = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert before.keys() == after.keys()
    for name in before.keys() - {".lock", "summary.json"}:
        assert before[name] == after[name], name
    summary_before = json.loads(before["summary.json"])
    summary_after = json.loads(after["summary.json"])
    assert summary_after.pop("error").startswith("OSError: ")
    assert summary_before.pop("error") is None
    assert summary_before.pop("interrupted") == "SIGTERM"
    assert summary_after.pop("interrupted") is None
    assert summary_before == summary_after


@contextlib.contextmanager
def full_disk(after):
    """While entered, no file may grow beyond so many bytes."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_checkpoints_that_are_not_needed_take_two_percent_of_the_time(tmp_path, monkeypatch):
    clock = 0.0
    written = []
    checkpoint = Checkpoint(tmp_path, model=torch.nn.Linear(2, 2))
    monkeypatch.setattr("utils.checkpoint.time.monotonic", lambda: clock)

    def write(*_):
        nonlocal clock
        clock += 3  # seconds that it takes
        written.append(clock)

    monkeypatch.setattr(checkpoint, "_write", write)
    for epoch in range(61):  # after one that took 3 seconds, the next is due 150 seconds later
        checkpoint.save(epoch, 0, needed=epoch in (40, 60))
        clock += 5
    assert written == [3, 3 + 150 + 3, 40 * 5 + 9, 60 * 5 + 12]


def test_a_failed_write_leaves_the_checkpoint_before_it(tmp_path):
    checkpoint = Checkpoint(tmp_path, model=torch.nn.Linear(400, 400))
    checkpoint.save(1, 0)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with full_disk(after=100_000), pytest.raises(OSError, match="too large"):
        checkpoint.save(2, 0)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert checkpoint.load() == (1, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_full_disk_ends_the_run_and_it_can_be_resumed(run):
    with full_disk(after=30_000):  # enough for configuration and noise, not for a checkpoint
        code, directory, _, stderr = run()
    assert code == 1
    assert "File too large" in stderr
    assert "Traceback" not in stderr
    assert "File too large" in read_summary(directory)["error"]
    assert run()[0] == 0
    assert not list(directory.glob(".*.tmp"))
    assert read_summary(directory)["error"] is None


def test_an_error_while_writing_keeps_the_old_content(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "file") as file:
        file.write("half")
        raise ZeroDivisionError
    assert (tmp_path / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_directory_that_cannot_be_written_is_an_error(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, _, stderr = run(f"run_dir={tmp_path}/file/run")
    assert code == 2
    assert f"{tmp_path}/file/run" in stderr


def test_two_processes_cannot_write_one_run(run, tmp_path):
    arguments = [PLAIN["params"], *TINY, "epochs=100000", f"run_dir={tmp_path}/run"]
    with start(*arguments) as other:
        try:
            code, directory, _, stderr = run("epochs=100000", **PLAIN)
            assert code == 2
            assert f"another process (process {other.pid} on" in stderr
            other.send_signal(signal.SIGTERM)
            assert other.wait(20) == 75
        finally:
            other.kill()
    assert weights(directory)["epoch"] > 0


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("discrimloss", []),
        ("plain", RECORD),
        ("rsl_mixmatch", []),
        ("co_teaching_plus", []),
        ("selfie", []),
        ("joint_optimization", []),
    ],
)
def test_kill_9_at_any_moment_loses_at_most_what_came_after_the_last_checkpoint(
    run, tmp_path, method, more
):
    options, overrides = prepare(run, method)
    overrides += [*more, "epochs=30"]
    for pause in (0.1, 0.25):
        with start(options["params"], *TINY, f"run_dir={tmp_path}/run", *overrides) as process:
            time.sleep(pause)
            process.kill()
    code, directory, *_ = run(*overrides, **options)
    assert code == 0
    _, whole, *_ = run(*overrides, **options, name="whole")
    assert equal(weights(whole), weights(directory))
    if more:
        expected = np.load(whole / "losses.npy")
        np.testing.assert_array_equal(np.load(directory / "losses.npy"), expected)


def test_recorded_losses_are_those_of_the_network_after_each_epoch(run):
    _, directory, *_ = run("record_losses=true", "validation.fraction=0.2", **PLAIN)
    history = np.load(directory / "losses.npy")
    samples = arrays(directory / "samples.npz")
    assert history.shape == (3, 1297)
    assert history.dtype == np.float32
    recorded = np.isfinite(history)  # the held-out samples are NaN
    np.testing.assert_array_equal(np.flatnonzero(recorded[0]), samples["index"])
    np.testing.assert_allclose(history[-1, samples["index"]], samples["loss"], rtol=1e-5)
    assert (recorded.sum(1) == len(samples["index"])).all()
    assert (history[0] != history[1]).any()


def test_recording_goes_on_after_an_interruption_and_disturbs_nothing(run, monkeypatch):
    _, whole, *_ = run(*RECORD, **PLAIN, name="whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12)  # in the second epoch of nine steps
        _, broken, *_ = run(*RECORD, **PLAIN)
    recorded = np.isfinite(np.load(broken / "losses.npy")).any(1)
    assert recorded.tolist() == [True, False, False]
    assert run(*RECORD, **PLAIN)[0] == 0
    np.testing.assert_array_equal(np.load(whole / "losses.npy"), np.load(broken / "losses.npy"))
    _, without, *_ = run(*RECORD, "record_losses=false", **PLAIN, name="without")
    assert equal(weights(whole), weights(without))
    assert not (without / "losses.npy").exists()
    assert read_summary(whole)["validation"] == {"fraction": 0.2, "labels": "true"}


def test_losses_are_recorded_with_the_augmentation_of_training_unless_switched_off(run):
    histories = []
    for name, option in (("default", []), ("plain", ["augment_recording=false"])):
        _, directory, *_ = run("record_losses=true", "dataset.crop_padding=1", *option, name=name)
        history = np.load(directory / "losses.npy")
        histories.append(history)
        exact = np.isclose(history[-1], arrays(directory / "samples.npz")["loss"], rtol=1e-4)
        assert exact.all() == (name == "plain")
    assert abs(histories[0] - histories[1]).mean() > 0.01


def test_a_history_that_is_gone_is_an_error_while_its_run_goes_on(run, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12)
        _, directory, *_ = run("record_losses=true")
    (directory / "losses.npy").unlink()
    code, _, _, stderr = run("record_losses=true")
    assert code == 2
    assert "losses.npy is gone" in stderr


def test_a_loss_that_is_not_finite_names_epoch_step_and_samples(run, monkeypatch):
    forward = losses.Plain.forward

    def poisoned(self, output, target, index):
        values = forward(self, output, target, index)
        return torch.where((index == 77) & (self.epoch == 1), torch.nan, values)

    monkeypatch.setattr(losses.Plain, "forward", poisoned)
    code, directory, _, stderr = run(**PLAIN)
    assert code == 1
    assert "Traceback" not in stderr
    pattern = r"the loss is not finite in epoch 1, step (\d+);.* samples ([\d, ]+)(?: and|\.)"
    named = re.search(pattern, stderr)
    assert named, stderr
    assert 0 <= int(named[1]) < 11
    assert len(named[2].split(",")) == 20
    assert weights(directory)["epoch"] == 1
    assert_finite_model(directory)
    assert "not finite" in read_summary(directory)["error"]
    monkeypatch.undo()


def test_labels_that_changed_since_the_run_began_are_an_error(run, tmp_path, monkeypatch):
    labels = tmp_path / "labels.npz"
    np.savez(labels, given=np.zeros(1297, int))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12)
        run(f"noise.kind=file:{labels}", **PLAIN)
    np.savez(labels, given=np.ones(1297, int))
    code, _, _, stderr = run(f"noise.kind=file:{labels}", **PLAIN)
    assert code == 2
    assert "the labels are not those" in stderr


def test_a_folder_of_images_end_to_end(run, tmp_path):
    generator = torch.Generator().manual_seed(0)
    shades = {"bright": 160, "dark": 20}

    def image_of(name, number):
        return shades[name] + torch.randint(0, 60, (3, 20, 24), generator=generator)

    write_images(tmp_path / "images", shades, image_of, train=12, test=4)
    options = [
        f"data_root={tmp_path}/images",
        "dataset.image_size=16",
        "dataset.num_workers=0",
        "schedule=null",
        "batch_size=8",
        "optimizer.lr=0.01",
        "epochs=4",
    ]
    code, directory, *_ = run(*options, params="params/folder/discrimloss.yaml")
    assert code == 0
    summary = read_summary(directory)
    assert summary["test"]["last"] == 100
    assert summary["noise"]["realised"] is None
    assert summary["detection"]["auroc"] is None
    suspects = pd.read_csv(directory / "suspects.csv")
    assert suspects.part.value_counts().to_dict() == {"train": 24, "test": 8}
    assert suspects.true_label.isna().all()
    assert all((tmp_path / "images" / path).is_file() for path in suspects.path)

    options += ["noise.kind=symmetric", "noise.fraction=0.25"]
    code, directory, *_ = run(*options, params="params/folder/plain.yaml", name="noisy")
    summary = read_summary(directory)
    assert code == 0
    assert summary["noise"]["realised"] == 0.25
    assert summary["detection"]["auroc"] is not None


def test_a_signal_to_every_process_of_the_job_still_saves(tmp_path):
    """A cluster sends it so: the workers that read images get it too."""

    def image_of(name, number):
        return torch.full((3, 32, 32), number)

    write_images(tmp_path / "images", "ab", image_of, train=40, test=40)
    arguments = [
        "params/folder/plain.yaml",
        *TINY,
        f"run_dir={tmp_path}/run",
        "epochs=100000",
        f"data_root={tmp_path}/images",
        "dataset.image_size=16",
        "batch_size=4",
        "schedule=null",
        "optimizer.lr=1e-4",
    ]
    # once it has started, an epoch is over, and the next one reads images
    with start(*arguments, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            os.killpg(process.pid, signal.SIGTERM)
            assert process.wait(30) == 75, process.stderr.read()
        finally:
            process.kill()
    assert weights(tmp_path / "run")["epoch"] > 0


def test_an_image_whose_name_is_not_utf8_ends_up_in_suspects(run, tmp_path):
    def image_of(name, number):
        return torch.full((3, 16, 16), 50 * number)

    write_images(tmp_path / "images", "ab", image_of, train=4, test=4)
    folder = os.fsencode(tmp_path / "images/train/a")
    os.rename(folder + b"/0.png", folder + b"/\xff.png")
    code, directory, *_ = run(
        f"data_root={tmp_path}/images",
        "dataset.image_size=16",
        "dataset.num_workers=0",
        "schedule=null",
        "epochs=1",
        "optimizer.lr=1e-3",
        params="params/folder/plain.yaml",
    )
    assert code == 0
    assert b"/a/\xff.png" in (directory / "suspects.csv").read_bytes()


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=resnet50"],
        ["task=regression", "task_loss=mse"],
        ["model=mlp", "dataset=digits", "model.image_size=9"],
    ],
)
def test_a_model_or_task_that_does_not_fit_the_dataset_is_named_before_training(run, overrides):
    code, directory, _, stderr = run(*overrides, **PLAIN)
    assert code == 2
    assert stderr.startswith("error: ")
    assert "Traceback" not in stderr
    assert not (directory / "config.yaml").exists()


def test_a_network_that_diverges_in_the_last_step_is_not_saved(run):
    code, directory, _, stderr = run("optimizer.lr=1e30", "batch_size=1297", "epochs=2", **PLAIN)
    assert code == 1
    assert "not finite" in stderr
    if (directory / "checkpoint.pt").exists():
        assert_finite_model(directory)


def test_regression_task_losses_are_refused_by_a_classification_task(run):
    code, directory, _, stderr = run("task_loss=smooth_l1")
    assert code == 2
    assert "'smooth_l1' is not known for classification" in stderr
    # so that the corrected command does not meet another configuration
    assert not (directory / "config.yaml").exists()


@pytest.mark.parametrize(
    "option", ["precision=bf16", "channels_last=false", "noise.kind=none", "noise.kind=pair"]
)
def test_options_run(run, option):
    code, directory, *_ = run(option, "model=cnn", "model.width=4", "epochs=1", name=option)
    assert code == 0
    assert read_summary(directory)["finished"]


def test_discrimloss_beats_plain_and_finds_the_wrong_labels(run):
    """The point of it all, on real digits with 40 % wrong labels."""
    results = {}
    for method in ("plain", "discrimloss"):
        params = f"params/digits/{method}.yaml"
        code, directory, *_ = run(
            "model=cnn", "model.width=32", "epochs=60", params=params, name=method
        )
        assert code == 0
        results[method] = read_summary(directory)
    plain, discrimloss = results["plain"], results["discrimloss"]
    assert discrimloss["test"]["last"] > plain["test"]["last"] + 10
    assert discrimloss["detection"]["auroc"] > 0.99
    memorised_by_plain = plain["detection"]["memorised_fraction"]
    assert discrimloss["detection"]["memorised_fraction"] < memorised_by_plain / 2


def test_a_process_that_was_forked_does_not_hold_the_lock(tmp_path):
    config = {"run_dir": str(tmp_path), "tensorboard": False}
    with RunDirectory(config):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        assert run_state(tmp_path)[0] == "running"
    message = f"another process \\(process {os.getpid()} on .*is writing"
    try:
        # the child lets go of the lock as soon as it runs, not 30 s later
        deadline = time.monotonic() + 10
        while lock_owner(tmp_path):
            assert time.monotonic() < deadline
        with RunDirectory(config), pytest.raises(ValueError, match=message):
            RunDirectory(config)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_tensorboard_shows_what_metrics_csv_holds(run, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = ["tensorboard=true", "model=cnn", "epochs=3"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 15)
        run(*overrides)
    code, directory, *_ = run(*overrides)  # goes on
    rows = pd.read_csv(directory / "metrics.csv")
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    assert code == 0
    names = set(rows) - {"epoch"}
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [0, 1, 2]
        assert [scalar.value for scalar in scalars] == pytest.approx(rows[name].tolist(), rel=1e-4)


def test_without_the_package_tensorboard_is_a_clear_error(run, monkeypatch):
    find_spec = importlib.util.find_spec

    def without_tensorboard(name, *rest):
        return None if name == "tensorboard" else find_spec(name, *rest)

    monkeypatch.setattr("importlib.util.find_spec", without_tensorboard)
    code, directory, _, stderr = run("tensorboard=true", "model=cnn")
    assert code == 2
    message = "tensorboard=true needs a package that is not here: pip install tensorboard"
    assert stderr == f"error: {message}\n"
    assert not directory.exists()
