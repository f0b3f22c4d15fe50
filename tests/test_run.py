"""Whole runs through main.py.

What they leave, that they resume as if nothing had happened, and what goes wrong cleanly.
"""

import contextlib
import importlib.util
import json
import os
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
from utils.checkpoint import Checkpoint, atomic_write
from utils.run_directory import RunDirectory
from utils.run_state import lock_owner, run_state
from utils.training_record import TrainingRecord

ROOT = Path(__file__).parents[1]
METHODS = sorted(
    path.stem
    for path in (ROOT / "params/digits").glob("*.yaml")
    if path.stem not in ("base", "plain_slow")
)


def weights(directory):
    return torch.load(directory / "checkpoint.pt", weights_only=True)


def arrays(path):
    """The content of a .npz, the file closed."""
    with np.load(path) as content:
        return dict(content)


def equal(first, second):
    """Exact equality of nested states; wall-clock times aside."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        keys = first.keys() - {"seconds", "images_per_second", "restarts"}
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in keys)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second or (first != first and second != second)


def interrupt_at(monkeypatch, step, number=signal.SIGTERM):
    """Send this process a signal after so many steps of training, counted over the epochs."""
    update, steps = TrainingRecord.update, iter(range(10**6))

    def interrupting(self, *arguments):
        update(self, *arguments)
        if next(steps) == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainingRecord, "update", interrupting)


def test_a_run_leaves_what_the_readme_lists(run):
    code, directory, printed, complaints = run("validation.fraction=0.2", "loss=Plain")
    assert code == 0 and not complaints
    files = {
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
        "test.npz",
    }
    assert {path.name for path in directory.iterdir()} == files | {".lock"}

    rows = pd.read_csv(directory / "metrics.csv")
    assert (
        ",".join(rows.columns[:7])
        == "epoch,lr,train_loss,train_metric,test_metric,seconds,images_per_second"
    )
    assert list(rows.epoch) == [0, 1, 2] and (rows.seconds > 0).all()
    assert rows.filter(like="weight_").columns.tolist() == [
        "weight_easy",
        "weight_hard",
        "weight_incorrect",
    ]
    np.testing.assert_allclose(
        rows.filter(like="weight_"), 1, rtol=1e-5
    )  # Plain: every sample counts as it does

    summary = json.loads((directory / "summary.json").read_text())
    test = summary["test"]
    assert (
        summary["finished"]
        and summary["metric"] == "accuracy"
        and summary["epochs"] == 3
        and summary["restarts"] == 0
    )
    assert test["last"] == pytest.approx(rows.test_metric.iloc[-1], rel=1e-5)
    assert (
        test["best"] == pytest.approx(rows.test_metric.max(), rel=1e-5)
        and test["best_epoch"] == rows.test_metric.idxmax()
    )
    assert test["validated"] == pytest.approx(
        rows.test_metric[rows.validation_metric.idxmax()], rel=1e-5
    )
    assert (
        summary["noise"]["realised"] == pytest.approx(0.4, abs=0.001)
        and summary["noise"]["requested"] == 0.4
    )
    assert set(summary["detection"]) == {
        "auroc",
        "average_precision",
        "hard_vs_incorrect_auroc",
        "memorised_fraction",
        "flag_precision",
        "flag_recall",
    }
    assert all(0 <= value <= 1 for value in summary["detection"].values())

    noise, samples = arrays(directory / "noise.npz"), arrays(directory / "samples.npz")
    assert noise["given"].shape == noise["true"].shape == (1297,) and noise["transition"].shape == (
        10,
        10,
    )
    assert str(noise["sha256"]) == summary["noise"]["sha256"]
    assert set(samples) == {
        "index",
        "given",
        "true",
        "loss",
        "mean_loss",
        "score",
        "predicted",
        "flagged",
    }
    assert len(samples["index"]) == 1297 - 260 and (np.diff(samples["index"]) > 0).all()
    assert (samples["given"] == noise["given"][samples["index"]]).all()
    tested = arrays(directory / "test.npz")
    assert tested["index"].tolist() == list(range(500)) and tested["loss"].shape == (500,)
    assert 100 * (tested["predicted"] == tested["target"]).mean() == pytest.approx(
        summary["test"]["last"]
    )
    suspects = pd.read_csv(directory / "suspects.csv")
    assert suspects.score.is_monotonic_decreasing and len(suspects) == 1000
    assert suspects["index"][0] == samples["index"][samples["score"].argmax()]
    assert (
        ",".join(suspects.columns[:7]) == "rank,index,path,given_label,predicted_label,score,loss"
    )
    assert suspects["rank"].tolist() == list(range(1, 1001))
    assert (directory / "suspects.png").stat().st_size > 10_000

    lines = printed.strip().splitlines()
    assert lines[0] == f"{directory}: 1,297 training, 500 test samples in 10 classes"
    assert len(lines) == 5 and all(
        "images/s" in line for line in lines[1:4]
    )  # no bar where the output is no terminal


def test_train_loss_and_metric_are_those_of_a_naive_loop(run):
    _, directory, *_ = run(
        "loss=Plain", "optimizer.lr=1e-12", "epochs=1"
    )  # the network stays what it was
    samples, rows = arrays(directory / "samples.npz"), pd.read_csv(directory / "metrics.csv")
    assert rows.train_loss[0] == pytest.approx(samples["loss"].mean(), rel=1e-4)
    assert rows.train_metric[0] == pytest.approx(
        100 * (samples["predicted"] == samples["given"]).mean(), rel=1e-4
    )
    np.testing.assert_allclose(samples["mean_loss"], samples["loss"], rtol=1e-4)
    np.testing.assert_array_equal(
        samples["score"], samples["mean_loss"]
    )  # Plain keeps no score of its own


def ready(run, method):
    """What to run for a method, [params and overrides], with a history recorded where it needs one.

    11 steps an epoch.
    """
    overrides = [
        "model=cnn",
        "model.width=2",
        "schedule=StepLR",
        "schedule.step_size=1",
        "schedule.gamma=0.5",
    ]
    if method.startswith("rsl"):
        _, recording, *_ = run(
            "record_losses=true", "model=cnn", params="params/digits/plain.yaml", name="recording"
        )
        overrides += [f"dataset.selection.history={recording}/losses.npy", "batch_size=64"]
    if method == "rsl_mixmatch":
        overrides += ["loss.epoch_steps=11"]
    return {"params": f"params/digits/{method}.yaml"}, overrides


@pytest.mark.parametrize("method", METHODS)
def test_resume_equals_no_interruption(run, monkeypatch, method):
    options, overrides = ready(run, method)
    code, whole, *_ = run(*overrides, **options, name="whole")
    assert code == 0
    for step in (
        3,
        7,
        10,
    ):  # within an epoch of 11 steps; at the last step of one; within the last one
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            code, broken, *_ = run(*overrides, **options)
            assert code == main.INTERRUPTED
    assert (weights(broken)["epoch"], weights(broken)["step"]) == (2, 1)
    assert not json.loads((broken / "summary.json").read_text())["finished"]
    code, *_ = run(*overrides, **options)
    assert code == 0 and equal(weights(whole), weights(broken))
    first, second = arrays(whole / "samples.npz"), arrays(broken / "samples.npz")
    assert all(np.array_equal(first[key], second[key]) for key in first)
    summary = json.loads((broken / "summary.json").read_text())
    assert (
        summary["restarts"] == 3
        and summary["test"] == json.loads((whole / "summary.json").read_text())["test"]
    )


def test_a_run_that_was_killed_epochs_after_its_checkpoint_ends_as_if_nothing_had_been(
    run, monkeypatch
):
    options = ["epochs=6", "record_losses=true", "model=cnn", "model.width=2"]
    _, whole, *_ = run(*options, name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "budget", 1e-9)  # after the first epoch and at the end
        end_epoch = main.end_epoch

        def killed(training):
            end_epoch(training)
            if training.epoch == 3:
                raise FloatingPointError("killed")

        patch.setattr(main, "end_epoch", killed)
        code, broken, *_ = run(*options)
    assert (
        code == 1
        and weights(broken)["epoch"] == 1
        and len(pd.read_csv(broken / "metrics.csv")) == 4
    )
    code, *_ = run(*options)
    assert code == 0 and equal(weights(whole), weights(broken))
    assert np.array_equal(
        np.load(whole / "losses.npy"), np.load(broken / "losses.npy"), equal_nan=True
    )
    first, second = (pd.read_csv(path / "metrics.csv") for path in (whole, broken))
    pd.testing.assert_frame_equal(
        *(rows.drop(columns=["seconds", "images_per_second"]) for rows in (first, second))
    )


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_signals_save_and_exit_75(run, monkeypatch, number):
    former = signal.getsignal(number)
    interrupt_at(monkeypatch, 4, number)
    code, directory, printed, _ = run()
    assert code == 75 and f"{number.name}: saved at epoch 0, step 5" in printed
    assert weights(directory)["step"] == 5
    assert signal.getsignal(number) == former


def test_a_finished_run_says_so_and_does_nothing(run):
    run()
    code, directory, printed, _ = run()
    before = (directory / "checkpoint.pt").stat().st_mtime_ns
    assert (
        code == 0
        and "is finished: test accuracy: last" in printed
        and len(printed.splitlines()) == 1
    )
    assert (directory / "checkpoint.pt").stat().st_mtime_ns == before


def test_another_configuration_is_an_error_that_names_the_keys(run):
    run()
    code, _, _, complaints = run("batch_size=64", "loss.beta=0.5")
    assert (
        code == 2
        and "batch_size: 128 before, 64 now" in complaints
        and "loss.beta: not set before, 0.5 now" in complaints
    )
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
    code, _, _, complaints = run()
    assert (
        code == 0
        and "checkpoint.pt is damaged" in complaints
        and "going on from checkpoint.previous.pt" in complaints
    )
    assert equal(weights(whole), weights(directory))


def test_two_damaged_checkpoints_are_an_error_and_nothing_is_lost(run, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 24)
        _, directory, *_ = run()
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        damage(directory / name, "truncated")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    code, _, _, complaints = run()
    assert code == 1 and "nothing to resume from: remove" in complaints
    after = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert before.keys() == after.keys()
    assert all(
        before[name] == after[name] for name in before if name not in (".lock", "summary.json")
    )
    first, second = json.loads(before["summary.json"]), json.loads(after["summary.json"])
    assert second.pop("error").startswith("OSError: ") and first.pop("error") is None
    assert (first.pop("interrupted"), second.pop("interrupted")) == (
        "SIGTERM",
        None,
    ) and first == second


@contextlib.contextmanager
def full_disk(after):
    """No file may grow beyond so many bytes."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_checkpoints_that_are_not_needed_take_two_percent_of_the_time(tmp_path, monkeypatch):
    clock = 0.0
    checkpoint = Checkpoint(tmp_path, model=torch.nn.Linear(2, 2))
    monkeypatch.setattr("utils.checkpoint.time.monotonic", lambda: clock)

    def write(*_):
        nonlocal clock
        clock += 3  # seconds that it takes
        written.append(clock)

    monkeypatch.setattr(checkpoint, "_write", write)
    written = []
    for epoch in range(61):  # 151 seconds are due after 150 more
        checkpoint.save(epoch, 0, needed=epoch in (40, 60))
        clock += 5
    assert written == [3, 3 + 150 + 3, 40 * 5 + 9, 60 * 5 + 12]


def test_a_failed_write_leaves_the_checkpoint_before_it(tmp_path):
    checkpoint = Checkpoint(tmp_path, model=torch.nn.Linear(400, 400))
    checkpoint.save(1, 0)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with full_disk(after=100_000), pytest.raises(OSError, match="too large"):
        checkpoint.save(2, 0)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before and checkpoint.load() == (1, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_full_disk_ends_the_run_and_it_can_be_resumed(run):
    with full_disk(after=30_000):  # enough for configuration and noise, not for a checkpoint
        code, directory, _, complaints = run()
    assert code == 1 and "File too large" in complaints and "Traceback" not in complaints
    assert "File too large" in json.loads((directory / "summary.json").read_text())["error"]
    assert run()[0] == 0 and not list(directory.glob(".*.tmp"))
    assert json.loads((directory / "summary.json").read_text())["error"] is None


def test_an_error_while_writing_keeps_the_old_content(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "file") as file:
        file.write("half")
        raise ZeroDivisionError
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_directory_that_cannot_be_written_is_an_error(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, _, complaints = run(f"run_dir={tmp_path}/file/run")
    assert code == 2 and f"{tmp_path}/file/run" in complaints


def test_two_processes_cannot_write_one_run(run, tmp_path):
    command = [
        sys.executable,
        "main.py",
        "params/digits/plain.yaml",
        *TINY,
        "epochs=100000",
        f"run_dir={tmp_path}/run",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            [other.stdout.readline() for _ in range(2)]  # it trains
            code, directory, _, complaints = run("epochs=100000", params="params/digits/plain.yaml")
            assert code == 2 and f"another process (process {other.pid} on" in complaints
            other.send_signal(signal.SIGTERM)
            assert other.wait(20) == 75
        finally:
            other.kill()
    assert weights(directory)["epoch"] > 0


RECORD = [
    "record_losses=true",
    "dataset.crop_padding=1",
    "validation.fraction=0.2",
    "validation.clean=true",
]


@pytest.mark.parametrize(
    ("method", "more"), [("discrimloss", []), ("plain", RECORD), ("rsl_mixmatch", [])]
)
def test_kill_9_at_any_moment_loses_at_most_what_came_after_the_last_checkpoint(
    run, tmp_path, method, more
):
    options, overrides = ready(run, method)
    overrides += [*more, "epochs=30"]
    command = [
        sys.executable,
        "main.py",
        options["params"],
        *TINY,
        f"run_dir={tmp_path}/run",
        *overrides,
    ]
    for pause in (0.1, 0.25):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            [process.stdout.readline() for _ in range(2)]
            time.sleep(pause)
            process.kill()
    code, directory, *_ = run(*overrides, **options)
    assert code == 0
    _, whole, *_ = run(*overrides, **options, name="whole")
    assert equal(weights(whole), weights(directory))
    if more:
        np.testing.assert_array_equal(
            np.load(whole / "losses.npy"), np.load(directory / "losses.npy")
        )


def test_recorded_losses_are_those_of_the_network_after_each_epoch(run):
    _, directory, *_ = run(
        "record_losses=true", "validation.fraction=0.2", params="params/digits/plain.yaml"
    )
    history, samples = np.load(directory / "losses.npy"), arrays(directory / "samples.npz")
    assert history.shape == (3, 1297) and history.dtype == np.float32
    np.testing.assert_array_equal(
        np.flatnonzero(np.isfinite(history[0])), samples["index"]
    )  # the held-out ones are NaN
    np.testing.assert_allclose(history[-1, samples["index"]], samples["loss"], rtol=1e-5)
    assert (np.isfinite(history).sum(1) == len(samples["index"])).all() and (
        history[0] != history[1]
    ).any()


def test_recording_goes_on_after_an_interruption_and_disturbs_nothing(run, monkeypatch):
    params = {"params": "params/digits/plain.yaml"}
    _, whole, *_ = run(*RECORD, **params, name="whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12)  # in the second epoch of nine steps
        _, broken, *_ = run(*RECORD, **params)
    done = np.isfinite(np.load(broken / "losses.npy")).any(1)
    assert done.tolist() == [True, False, False]
    assert run(*RECORD, **params)[0] == 0
    np.testing.assert_array_equal(np.load(whole / "losses.npy"), np.load(broken / "losses.npy"))
    _, without, *_ = run(*RECORD, "record_losses=false", **params, name="without")
    assert equal(weights(whole), weights(without)) and not (without / "losses.npy").exists()
    assert json.loads((whole / "summary.json").read_text())["validation"] == {
        "fraction": 0.2,
        "labels": "true",
    }


def test_losses_are_recorded_with_the_augmentation_of_training_unless_told_otherwise(run):
    histories = []
    for name, option in (("default", []), ("plain", ["augment_recording=false"])):
        _, directory, *_ = run("record_losses=true", "dataset.crop_padding=1", *option, name=name)
        histories.append(np.load(directory / "losses.npy"))
        exact = np.isclose(histories[-1][-1], arrays(directory / "samples.npz")["loss"], rtol=1e-4)
        assert exact.all() == (name == "plain")
    assert abs(histories[0] - histories[1]).mean() > 0.01


def test_a_history_that_is_gone_is_an_error_while_its_run_goes_on(run, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12)
        _, directory, *_ = run("record_losses=true")
    (directory / "losses.npy").unlink()
    code, _, _, complaints = run("record_losses=true")
    assert code == 2 and "losses.npy is gone" in complaints


def test_a_loss_that_is_not_finite_names_epoch_step_and_samples(run, monkeypatch):
    forward = losses.Plain.forward

    def poisoned(self, output, target, index):
        return torch.where(
            (index == 77) & (self.epoch == 1), torch.nan, forward(self, output, target, index)
        )

    monkeypatch.setattr(losses.Plain, "forward", poisoned)
    code, directory, _, complaints = run(params="params/digits/plain.yaml")
    assert (
        code == 1
        and "the loss is not finite in epoch 1, step" in complaints
        and "Traceback" not in complaints
    )
    step = int(complaints.split("step ")[1].split(";")[0])
    named = [
        int(word)
        for word in complaints.split("samples ")[1].split(" and ")[0].split(".")[0].split(",")
    ]
    assert 0 <= step < 11 and len(named) == 20
    assert weights(directory)["epoch"] == 1 and all(
        value.isfinite().all() for value in weights(directory)["model"].values()
    )
    assert "not finite" in json.loads((directory / "summary.json").read_text())["error"]
    monkeypatch.undo()


def test_labels_that_changed_since_the_run_began_are_an_error(run, tmp_path, monkeypatch):
    labels = tmp_path / "labels.npz"
    np.savez(labels, given=np.zeros(1297, int))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12)
        run(f"noise.kind=file:{labels}", params="params/digits/plain.yaml")
    np.savez(labels, given=np.ones(1297, int))
    code, _, _, complaints = run(f"noise.kind=file:{labels}", params="params/digits/plain.yaml")
    assert code == 2 and "the labels are not those" in complaints


def test_a_folder_of_images_end_to_end(run, tmp_path):
    from torchvision.io import write_png

    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 12), ("test", 4)):
        for name, shade in (("bright", 160), ("dark", 20)):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                image = (shade + torch.randint(0, 60, (3, 20, 24), generator=generator)).to(
                    torch.uint8
                )
                write_png(image, str(tmp_path / "images" / part / name / f"{i}.png"))
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
    summary = json.loads((directory / "summary.json").read_text())
    assert (
        summary["test"]["last"] == 100
        and summary["noise"]["realised"] is None
        and summary["detection"]["auroc"] is None
    )
    suspects = pd.read_csv(directory / "suspects.csv")
    assert (
        len(suspects) == 24
        and suspects.true_label.isna().all()
        and all(Path(path).is_file() for path in suspects.path)
    )

    options += ["noise.kind=symmetric", "noise.fraction=0.25"]
    code, directory, *_ = run(*options, params="params/folder/plain.yaml", name="noisy")
    summary = json.loads((directory / "summary.json").read_text())
    assert (
        code == 0
        and summary["noise"]["realised"] == 0.25
        and summary["detection"]["auroc"] is not None
    )


def test_a_signal_to_every_process_of_the_job_still_saves(tmp_path):
    """As a cluster sends it: the workers that read images get it too."""
    from torchvision.io import write_png

    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(40):
                write_png(
                    torch.full((3, 32, 32), i, dtype=torch.uint8),
                    str(tmp_path / "images" / part / name / f"{i}.png"),
                )
    command = [
        sys.executable,
        "main.py",
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
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            [process.stdout.readline() for _ in range(2)]  # an epoch is over; the next one reads
            os.killpg(process.pid, signal.SIGTERM)
            assert process.wait(30) == 75, process.stderr.read()
        finally:
            process.kill()
    assert weights(tmp_path / "run")["epoch"] > 0


def test_an_image_whose_name_is_not_utf8_ends_up_in_suspects(run, tmp_path):
    from torchvision.io import write_png

    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(4):
                image = torch.full((3, 16, 16), 50 * i, dtype=torch.uint8)
                write_png(image, str(tmp_path / "images" / part / name / f"{i}.png"))
    os.rename(
        os.fsencode(tmp_path / "images/train/a/0.png"),
        os.fsencode(tmp_path) + b"/images/train/a/\xff.png",
    )
    code, directory, *_ = run(
        f"data_root={tmp_path}/images",
        "dataset.image_size=16",
        "dataset.num_workers=0",
        "schedule=null",
        "epochs=1",
        "optimizer.lr=1e-3",
        params="params/folder/plain.yaml",
    )
    assert code == 0 and b"/a/\xff.png" in (directory / "suspects.csv").read_bytes()


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=resnet50"],
        ["task=regression", "task_loss=mse"],
        ["model=mlp", "dataset=digits", "model.image_size=9"],
    ],
)
def test_a_model_or_task_that_does_not_fit_the_dataset_is_named_before_training(run, overrides):
    code, directory, _, complaints = run(*overrides, params="params/digits/plain.yaml")
    assert code == 2 and complaints.startswith("error: ") and "Traceback" not in complaints
    assert not (directory / "config.yaml").exists()


def test_a_network_that_diverges_in_the_last_step_is_not_saved(run):
    code, directory, _, complaints = run(
        "optimizer.lr=1e30", "batch_size=1297", "epochs=2", params="params/digits/plain.yaml"
    )
    assert code == 1 and "not finite" in complaints
    assert not (directory / "checkpoint.pt").exists() or all(
        value.isfinite().all() for value in weights(directory)["model"].values()
    )


def test_regression_task_losses_are_refused_by_a_classification_task(run):
    code, directory, _, complaints = run("task_loss=smooth_l1")
    assert code == 2 and "'smooth_l1' is not known for classification" in complaints
    assert not (
        directory / "config.yaml"
    ).exists()  # so that the mended command does not meet another configuration


@pytest.mark.parametrize(
    "option", ["precision=bf16", "channels_last=false", "noise.kind=none", "noise.kind=pair"]
)
def test_options_run(run, option):
    code, directory, *_ = run(option, "model=cnn", "model.width=4", "epochs=1", name=option)
    assert code == 0 and json.loads((directory / "summary.json").read_text())["finished"]


def test_discrimloss_beats_plain_and_finds_the_wrong_labels(run):
    """The point of it all, on real digits with 40 % wrong labels."""
    results = {}
    for method in ("plain", "discrimloss"):
        params = f"params/digits/{method}.yaml"
        code, directory, *_ = run(
            "model=cnn", "model.width=32", "epochs=60", params=params, name=method
        )
        assert code == 0
        results[method] = json.loads((directory / "summary.json").read_text())
    assert results["discrimloss"]["test"]["last"] > results["plain"]["test"]["last"] + 10
    assert results["discrimloss"]["detection"]["auroc"] > 0.99
    assert (
        results["discrimloss"]["detection"]["memorised_fraction"]
        < results["plain"]["detection"]["memorised_fraction"] / 2
    )


def test_a_process_that_was_forked_does_not_hold_the_lock(tmp_path):
    config = {"run_dir": str(tmp_path), "tensorboard": False}
    with RunDirectory(config):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        assert run_state(tmp_path)[0] == "running"
    try:
        end = time.monotonic() + 10  # the child lets go of it as soon as it runs, not 30 s later
        while lock_owner(tmp_path):
            assert time.monotonic() < end
        with (
            RunDirectory(config),
            pytest.raises(
                ValueError, match=f"another process \\(process {os.getpid()} on .*is writing"
            ),
        ):
            RunDirectory(config)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_tensorboard_shows_what_metrics_csv_holds(run, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with monkeypatch.context() as patch:
        interrupt_at(patch, 15)
        run("tensorboard=true", "model=cnn", "epochs=3")
    code, directory, *_ = run("tensorboard=true", "model=cnn", "epochs=3")  # goes on
    rows = pd.read_csv(directory / "metrics.csv")
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    assert code == 0 and set(events.Tags()["scalars"]) == set(rows) - {"epoch"}
    for name in set(rows) - {"epoch"}:
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [0, 1, 2]
        assert [scalar.value for scalar in scalars] == pytest.approx(rows[name].tolist(), rel=1e-4)


def test_without_the_package_tensorboard_is_a_clear_error(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "tensorboard" else find(name, *rest),
    )
    code, directory, _, said = run("tensorboard=true", "model=cnn")
    assert (
        code == 2
        and said
        == "error: tensorboard=true needs a package that is not here: pip install tensorboard\n"
    )
    assert not directory.exists()
