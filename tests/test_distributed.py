"""A run in two processes equals a run in one, for every method: weights, state and record.

So does a run that is interrupted in one process and resumed in two, or the other way round.
"""

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from datasets import files, loader
from datasets.base import Dataset, Split
from datasets.noise import inject
from datasets.splits import split_rows
from tests import toy_methods
from tests.test_run import arrays, interrupt_at, weights
from tests.two_processes import without_pictures
from utils.run_state import read_summary

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
# An MLP with few units: if a unit is within rounding of ReLU's corner, the runs part ways.
TINY = ["features=null", "model=mlp", "model.hidden=[16]", "model.batch_norm=false"]
TINY += ["epochs=3", "threads=1", "device=cpu"]
HISTORY = ["validation.fraction=0.1", "dataset.selection.history={runs}/recording/losses.npy"]
DIGITSUM = ["model=digitsum_lstm", "model.hidden=16", "batch_size=2048", "optimizer.lr=1e-3"]
METHODS = {  # params file and overrides; 11 steps an epoch
    "plain": ["plain"],
    "discrimloss": ["discrimloss"],
    "superloss": ["superloss"],
    "data_parameters": ["data_parameters"],
    "gradient_rescaling": ["gradient_rescaling"],
    "gce": ["gce"],
    "mentornet": ["mentornet", "loss.example_dropout=[[0.5, 50], [0.05, 50]]"],
    "truncated_gce": ["truncated_gce", "loss.k=0.2", "loss.prune_from=2", "loss.prune_every=1"],
    "forward_correction": [
        "forward_correction",
        "loss.transition=estimate",
        "loss.estimate_epochs=1",
    ],
    "superloss_ema": ["superloss", "loss.tau=ema"],
    "discrimloss_visits": ["discrimloss", "loss.bias_correction=visits", "loss.threshold=mean"],
    "data_parameters_both": ["data_parameters", "loss.level=both", "clip_norm=1.0"],
    "recording": ["plain", "record_losses=true", "validation.fraction=0.1"],
    "rsl": ["rsl", *HISTORY],
    "rsl_mixmatch": ["rsl_mixmatch", *HISTORY, "batch_size=64", "loss.epoch_steps=5"],
    "selfie": ["selfie", "loss.warm_up=1", "loss.q=1", "loss.reuse=false"],
    "joint_optimization": ["joint_optimization", "loss.begin=2", "loss.window=2"],
    "two_stage": ["two_stage", "loss.select_epochs=1", "loss.ramp_epochs=1"],
    "co_teaching": ["co_teaching", "loss.num_gradual=2"],
    "co_teaching_plus": ["co_teaching_plus", "loss.num_gradual=2", "loss.warmup_epochs=1"],
    "jocor": ["jocor", "loss.num_gradual=2"],
    "decoupling": ["decoupling", "loss.balance=true", "loss.init_steps=14"],
    "learning_to_reweight": ["learning_to_reweight", "batch_size=110"],
    "label_cleaning": ["label_cleaning", "batch_size=110", "loss.warm_up=1"],
    "noisy_clean_crf": ["noisy_clean_crf", "batch_size=110", "loss.hidden=2"],
    "cleannet": ["cleannet", "loss.begin=2", "loss.steps=5", "loss.num_references=2"],
    "teacher": ["teacher"],
    "distillation": ["distillation", "targets={runs}/teacher/labels.npz"],
    "two_networks": ["plain", "loss=ToyTwoNetworks", "evaluate_networks=mean"],
    "trusted": ["plain", "loss=ToyTrusted", "trusted.count=50"],
    "relabelling": ["plain", "loss=ToyRelabelling"],
    "own_parameters": ["plain", "loss=ToyOwnParameters", "loss.lr=0.01"],
    "dropping": ["plain", "loss=ToyDropping"],
    "regression": ["../digitsum/discrimloss", *DIGITSUM, "epochs=1"],
}


def command(method, runs, *more):
    """The arguments of main.py for a small run of that method in the folder ``runs``."""
    params, *overrides = METHODS[method]
    overrides = [override.format(runs=runs) for override in overrides]
    return [f"params/digits/{params}.yaml", *TINY, *overrides, f"run_dir={runs}/{method}", *more]


def torchrun(folder, jobs):
    """Run the jobs in two processes: the exit codes of both, job by job, and standard error."""
    jobs_file = folder / "jobs.json"
    jobs_file.write_text(json.dumps(jobs))
    completed = subprocess.run(
        [*TORCHRUN, "-m", "tests.two_processes", jobs_file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    stderr = completed.stderr
    assert completed.returncode == 0, f"{stderr[:6000]}\n[...]\n{stderr[-3000:]}"
    return json.loads(jobs_file.with_suffix(".codes").read_text()), stderr


def write_images(folder, count):
    """Write a train/ and a test/ folder with ``count`` dark and ``count`` light images each."""
    for part, (label, base) in itertools.product(("train", "test"), (("dark", 0), ("light", 120))):
        (folder / part / label).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (40, 40), (base + number,) * 3)
            image.save(folder / part / label / f"{number}.png")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two folders with a run of every method: made in one process, and in two."""
    alone = tmp_path_factory.mktemp("one")
    shared = tmp_path_factory.mktemp("two")
    with without_pictures(), toy_methods.registered():
        for method in METHODS:
            assert main.main(command(method, alone)) == 0
    codes, stderr = torchrun(shared, [command(method, shared) for method in METHODS])
    assert codes == [[0, 0]] * len(METHODS)
    # three epochs are too few for some to learn anything
    lines = [line for line in stderr.splitlines() if "no better than chance" not in line]
    assert "warn" not in "\n".join(lines).lower()
    return alone, shared


def tensors(state, path=""):
    """(path, tensor) of every number in a nested state but for times and random states."""
    if isinstance(state, dict):
        for key in state.keys() - {"seconds", "images_per_second", "restarts", "rng"}:
            yield from tensors(state[key], f"{path}.{key}")
    elif isinstance(state, (list, tuple)):
        for position, item in enumerate(state):
            yield from tensors(item, f"{path}[{position}]")
    elif isinstance(state, (torch.Tensor, int, float)):
        yield path, torch.as_tensor(state)


def assert_equal(first_run, second_run):
    """The checkpoints of two runs agree: what they record to 1e-5, all other state to 1e-6."""
    first = dict(tensors(weights(first_run)))
    second = dict(tensors(weights(second_run)))
    assert first.keys() == second.keys()
    assert len(first) > 10
    for path, tensor in first.items():
        tolerance = 1e-5 if path.startswith((".record", ".log")) else 1e-6
        torch.testing.assert_close(
            tensor,
            second[path],
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, path=path: f"{path}: {text}",
        )


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one(both, method):
    alone, shared = (runs / method for runs in both)
    assert_equal(alone, shared)
    alone_summary, shared_summary = read_summary(alone), read_summary(shared)
    assert alone_summary["processes"] == 1
    assert shared_summary["processes"] == 2
    for rule in ("last", "mean_last_5", "mean_last_10", "best", "best_epoch"):
        expected = alone_summary["test"][rule]
        np.testing.assert_allclose(shared_summary["test"][rule], expected, rtol=1e-5)
    alone_samples, shared_samples = arrays(alone / "samples.npz"), arrays(shared / "samples.npz")
    assert list(alone_samples) == list(shared_samples)
    for name, expected in alone_samples.items():
        # quality is dealt out by rank, and two scores that are nearly equal may change places
        tolerance = 1e-3 if name == "quality" else 1e-5
        np.testing.assert_allclose(
            shared_samples[name], expected, rtol=tolerance, atol=tolerance, err_msg=name
        )
    if method == "recording":
        expected = np.load(alone / "losses.npy")
        np.testing.assert_allclose(np.load(shared / "losses.npy"), expected, rtol=1e-5, atol=1e-5)
    assert (alone / "suspects.csv").is_file()
    assert (shared / "suspects.csv").is_file()


def test_a_run_changes_hands(both, tmp_path, monkeypatch):
    """A signal to one process stops both at the same step; one process may go on, or two."""
    method = "discrimloss"
    one_then_two = tmp_path / "one_then_two"
    two_then_one = tmp_path / "two_then_one"
    two_then_two = tmp_path / "two_then_two"
    one_then_two.mkdir()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 15)
        assert main.main(command(method, one_then_two)) == main.INTERRUPTED
    jobs = [
        command(method, one_then_two),
        [{"stop": [1, 4, signal.SIGUSR1]}, *command(method, two_then_one)],
        [{"stop": [0, 10, signal.SIGTERM]}, *command(method, two_then_two)],
        command(method, two_then_two),
    ]
    codes, _ = torchrun(tmp_path, jobs)
    assert codes == [[0, 0], [75, 75], [75, 75], [0, 0]]
    summary = read_summary(two_then_one / method)
    assert summary["interrupted"] == "SIGUSR1"
    assert not summary["finished"]
    assert summary["error"] is None
    checkpoint = weights(two_then_one / method)
    assert (checkpoint["epoch"], checkpoint["step"], len(checkpoint["rng"])) == (0, 5, 2)

    assert main.main(command(method, two_then_one)) == 0
    alone, shared = (runs / method for runs in both)
    for resumed in (one_then_two / method, two_then_one / method):
        assert_equal(alone, resumed)
        assert read_summary(resumed)["interrupted"] is None
    expected = dict(tensors(weights(shared)))
    resumed = dict(tensors(weights(two_then_two / method)))
    assert expected.keys() == resumed.keys()
    for path, tensor in expected.items():  # equal to the last bit
        assert torch.equal(tensor.nan_to_num(), resumed[path].nan_to_num()), path


def test_what_processes_exchange_and_what_they_refuse(both, tmp_path):
    run_dir = tmp_path / "run"
    images = tmp_path / "images"
    write_images(images, count=110)
    unreadable = images / "train/dark/7.png"
    unreadable.write_bytes(b"")
    digits = ["params/digits/plain.yaml", *TINY]
    folder = [
        "params/folder/discrimloss.yaml",
        *TINY,
        f"run_dir={run_dir}",
        f"dataset.root={images}",
        "dataset.image_size=16",
        "batch_size=64",
        "dataset.num_workers=1",
        "noise=none",
        "epochs=1",
    ]
    jobs = [
        [{"check": "check_gather"}],
        [{"check": "check_batch_norm"}],
        [{"check": "check_weights_of_trusted_samples"}],
        [*digits, f"run_dir={run_dir}", "batch_size=33"],
        [*digits, f"run_dir={run_dir}", "optimizer.learning=1"],
        [*digits, f"run_dir={both[1]}/plain", "seed=2"],
        folder,
    ]
    codes, stderr = torchrun(tmp_path, jobs)
    assert codes == [[0, 0], [0, 0], [0, 0], [2, 2], [2, 2], [2, 2], [0, 0]]
    for message in (
        "batch_size=33 is that of all 2 processes",
        "optimizer.learning",
        "another configuration",
    ):
        assert stderr.count(message) == 1, stderr
    expected = {"count": 1, "paths": [str(unreadable)]}
    assert read_summary(run_dir)["unreadable_images"] == expected
    index = arrays(run_dir / "samples.npz")["index"]
    assert len(index) == 219
    assert (np.diff(index) > 0).all()
    assert stderr.count("cannot be read as an image") <= 2


def pretend_rank_1(monkeypatch, world_size):
    """Let this process take itself for the second of ``world_size`` processes."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", str(world_size))


def test_a_share_that_cannot_be_read_is_empty(monkeypatch, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (40, 40)).save(good)
    bad.write_bytes(b"")
    pretend_rank_1(monkeypatch, world_size=2)
    file_loader = files.FileLoader(
        [str(good), str(bad), str(good), str(bad)],
        torch.zeros(4, dtype=torch.int64),
        torch.arange(4),
        batch_size=4,
        device="cpu",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        image_size=16,
        num_workers=0,
    )
    (batch,) = file_loader
    assert batch.input.shape == (0, 3, 16, 16)
    assert len(batch.index) == 0
    with pytest.raises(OSError, match="2 of 4 image files cannot be read"):
        file_loader.check()  # where the processes meet


def process_tree(process):
    """The numbers of a process and of all that descend from it."""
    numbers = [process]
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        for child in path.read_text().split():
            numbers += process_tree(int(child))
    return numbers


def test_a_signal_to_every_process_of_a_job_saves(tmp_path):
    """SLURM sends it so: to torchrun, which passes it on, its processes, and their workers."""
    write_images(tmp_path, count=40)
    arguments = [
        "params/folder/plain.yaml",
        *TINY,
        f"run_dir={tmp_path}/run",
        f"dataset.root={tmp_path}",
        "noise=none",
        "dataset.image_size=16",
        "dataset.num_workers=1",
        "batch_size=8",
        "epochs=300",
    ]
    job = subprocess.Popen(
        [*TORCHRUN, "main.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/metrics.csv").exists():
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.05)
    for process in process_tree(job.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    assert job.wait(timeout=120) == 1
    summary = read_summary(tmp_path / "run")
    assert summary["interrupted"] == "SIGTERM", summary
    assert summary["error"] is None


def test_half_a_rendezvous_is_refused(run, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    code, directory, _, stderr = run()
    assert code == 2
    assert not directory.exists()
    message = (
        "RANK, MASTER_ADDR are set as for one of several processes, "
        "but not LOCAL_RANK, WORLD_SIZE, MASTER"
    )
    assert message in stderr
    monkeypatch.delenv("RANK")
    assert run("epochs=1")[0] == 0  # an address alone means nothing


@pytest.mark.parametrize(
    ("world_size", "batch_size", "message"),
    [
        (4, 64, None),
        (3, 12, "the last batch of an epoch has 2 samples"),
        (4, 90, "cannot be divided"),
    ],
)
def test_batches_that_cannot_be_shared(monkeypatch, world_size, batch_size, message):
    pretend_rank_1(monkeypatch, world_size)
    images = torch.zeros(301 if world_size == 4 else 26, 1, 8, 8, dtype=torch.uint8)
    split = Split(images, torch.arange(len(images)) % 10)
    classes = list("0123456789")
    data = Dataset(split, split, classes, in_channels=1, image_size=8, mean=(0.5,), std=(0.5,))
    noise = inject(
        split.targets, kind="none", fraction=0.0, seed=0, num_classes=10, dataset="digits"
    )
    rows = split_rows(noise, validation={"fraction": 0.0}, seed=0)
    make_loaders = functools.partial(
        loader.make_loaders, data, noise, rows, batch_size=batch_size, device="cpu", seed=0
    )
    if message:
        with pytest.raises(ValueError, match=message):
            make_loaders()
    else:
        loaders = make_loaders()
        loaders.train.set_epoch(0, 0)
        sizes = [len(batch.index) for batch in loaders.train]
        assert sizes == [16, 16, 16, 16, 11]
        assert len(loaders.train.rows_of(4)) == 45
