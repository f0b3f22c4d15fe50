"""Two processes are one.

The same weights, state and record, to rounding, for every method, also when a run changes hands.
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
from tests.test_run import interrupt_at, weights
from tests.two_processes import without_pictures

ROOT = Path(__file__).parents[1]
# An MLP with few units: where one is within rounding of ReLU's corner, two sums in another order
# part ways.
TINY = ["model=mlp", "model.hidden=[16]", "epochs=3", "threads=1", "device=cpu"]
HISTORY = ["validation.fraction=0.1", "dataset.selection.history={runs}/recording/losses.npy"]
METHODS = {  # params file, and what else; 11 steps an epoch
    **{
        name: [name]
        for name in (
            "plain",
            "discrimloss",
            "superloss",
            "data_parameters",
            "gradient_rescaling",
            "gce",
        )
    },
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
    "two_networks": ["plain", "loss=ToyTwoNetworks", "evaluate_networks=mean"],
    "trusted": ["plain", "loss=ToyTrusted", "trusted.count=50"],
    "relabelling": ["plain", "loss=ToyRelabelling"],
    "own_parameters": ["plain", "loss=ToyOwnParameters", "loss.lr=0.01"],
    "dropping": ["plain", "loss=ToyDropping"],
    "regression": [
        "../digitsum/discrimloss",
        "model=digitsum_lstm",
        "model.hidden=16",
        "batch_size=2048",
        "optimizer.lr=1e-3",
        "epochs=1",
    ],
}


def command(method, runs, *more):
    """The arguments of main.py for a small run of that method in ``runs``."""
    file, *options = METHODS[method]
    return [
        f"params/digits/{file}.yaml",
        *TINY,
        *(option.format(runs=runs) for option in options),
        f"run_dir={runs}/{method}",
        *more,
    ]


def torchrun(runs, jobs):
    """Do these in two processes: the exit codes of both, job by job, and the complaints."""
    listed = runs / "jobs.json"
    listed.write_text(json.dumps(jobs))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "tests.two_processes",
            listed,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stderr[:6000]}\n[...]\n{done.stderr[-3000:]}"
    return json.loads(listed.with_suffix(".codes").read_text()), done.stderr


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of the runs of all methods in one process and in two."""
    alone, shared = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with without_pictures(), toy_methods.registered():
        for method in METHODS:
            assert main.main(command(method, alone)) == 0
    codes, complaints = torchrun(shared, [command(method, shared) for method in METHODS])
    assert codes == [[0, 0]] * len(METHODS) and "warn" not in complaints.lower()
    return alone, shared


def tensors(state, where=""):
    """(where, tensor) for all numbers of a nested state, wall-clock times and random states aside."""
    if isinstance(state, dict):
        for key in state.keys() - {"seconds", "images_per_second", "restarts", "rng"}:
            yield from tensors(state[key], f"{where}.{key}")
    elif isinstance(state, (list, tuple)):
        for place, one in enumerate(state):
            yield from tensors(one, f"{where}[{place}]")
    elif isinstance(state, (torch.Tensor, int, float)):
        yield where, torch.as_tensor(state)


def assert_equal(first, second):
    """The checkpoints of two runs hold the same.

    The model and all state per sample to 1e-6, the record of it to 1e-5.
    """
    first, second = (
        dict(tensors(torch.load(run / "checkpoint.pt", weights_only=True)))
        for run in (first, second)
    )
    assert first.keys() == second.keys() and len(first) > 10
    for where, tensor in first.items():
        tolerance = 1e-5 if where.startswith((".record", ".log")) else 1e-6
        torch.testing.assert_close(
            tensor,
            second[where],
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, where=where: f"{where}: {text}",
        )


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one(both, method):
    alone, shared = (runs / method for runs in both)
    assert_equal(alone, shared)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (alone, shared)]
    assert [summary["processes"] for summary in summaries] == [1, 2]
    np.testing.assert_allclose(
        *(
            [summary["test"][rule] for rule in ("last", "mean_last_5", "best", "best_epoch")]
            for summary in summaries
        ),
        rtol=1e-5,
    )
    one, two = (np.load(run / "samples.npz") for run in (alone, shared))
    with one, two:
        assert one.files == two.files
        for key in one.files:
            np.testing.assert_allclose(one[key], two[key], rtol=1e-5, atol=1e-5)
    if method == "recording":
        np.testing.assert_allclose(
            *(np.load(run / "losses.npy") for run in (alone, shared)), rtol=1e-5, atol=1e-5
        )
    assert (alone / "suspects.csv").is_file() and (shared / "suspects.csv").is_file()


def test_a_run_changes_hands(both, tmp_path, monkeypatch):
    """A signal to one process stops both at the same step.

    What goes on from there may be one process, or two.
    """
    method = "discrimloss"
    (tmp_path / "one").mkdir()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 15)
        assert main.main(command(method, tmp_path / "one")) == main.INTERRUPTED
    stopped, signalled = {}, {"two": [1, 4, signal.SIGUSR1], "three": [0, 10, signal.SIGTERM]}
    for name in signalled:
        stopped[name] = [{"stop": signalled[name]}, *command(method, tmp_path / name)]
    codes, _ = torchrun(
        tmp_path,
        [
            command(method, tmp_path / "one"),
            stopped["two"],
            stopped["three"],
            command(method, tmp_path / "three"),
        ],
    )
    assert codes == [[0, 0], [75, 75], [75, 75], [0, 0]]
    summary = json.loads((tmp_path / "two" / method / "summary.json").read_text())
    assert (
        summary["interrupted"] == "SIGUSR1" and not summary["finished"] and summary["error"] is None
    )
    half_way = torch.load(tmp_path / "two" / method / "checkpoint.pt", weights_only=True)
    assert (half_way["epoch"], half_way["step"], len(half_way["rng"])) == (0, 5, 2)

    assert main.main(command(method, tmp_path / "two")) == 0
    alone, shared = (runs / method for runs in both)
    for name in ("one", "two"):
        assert_equal(alone, tmp_path / name / method)
        assert (
            json.loads((tmp_path / name / method / "summary.json").read_text())["interrupted"]
            is None
        )
    whole, resumed = (dict(tensors(weights(run))) for run in (shared, tmp_path / "three" / method))
    assert whole.keys() == resumed.keys()
    assert all(
        torch.equal(whole[key].nan_to_num(), resumed[key].nan_to_num()) for key in whole
    )  # to the last bit


def test_what_processes_exchange_and_what_they_refuse(both, tmp_path):
    runs = str(tmp_path / "run")
    images = tmp_path / "images"
    for part, label in itertools.product(("train", "test"), ("dark", "light")):
        (images / part / label).mkdir(parents=True)
        for number in range(110):
            Image.new("RGB", (40, 40), (number + 120 * (label == "light"),) * 3).save(
                images / part / label / f"{number}.png"
            )
    (images / "train/dark/7.png").write_bytes(b"")
    codes, complaints = torchrun(
        tmp_path,
        [
            [{"check": "check_gather"}],
            [{"check": "check_batch_norm"}],
            ["params/digits/plain.yaml", *TINY, f"run_dir={runs}", "batch_size=33"],
            ["params/digits/plain.yaml", *TINY, f"run_dir={runs}", "optimizer.learning=1"],
            ["params/digits/plain.yaml", *TINY, f"run_dir={both[1]}/plain", "seed=2"],
            [
                "params/folder/discrimloss.yaml",
                *TINY,
                f"run_dir={runs}",
                f"dataset.root={images}",
                "dataset.image_size=16",
                "batch_size=64",
                "dataset.num_workers=1",
                "noise=none",
                "epochs=1",
            ],
        ],
    )
    assert codes == [[0, 0], [0, 0], [2, 2], [2, 2], [2, 2], [0, 0]]
    for message in (
        "batch_size=33 is that of all 2 processes",
        "optimizer.learning",
        "another configuration",
    ):
        assert complaints.count(message) == 1, complaints
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["unreadable_images"] == {"count": 1, "paths": [str(images / "train/dark/7.png")]}
    with np.load(tmp_path / "run/samples.npz") as samples:
        assert len(samples["index"]) == 219 and (np.diff(samples["index"]) > 0).all()
    assert complaints.count("cannot be read as an image") <= 2


def test_a_share_that_cannot_be_read_is_empty(monkeypatch, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"")
    for name, value in (("RANK", 1), ("LOCAL_RANK", 1), ("WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    read = files.FileLoader(
        [str(tmp_path / "good.png"), str(tmp_path / "bad.png")],
        torch.zeros(2, dtype=torch.int64),
        torch.arange(2),
        batch_size=2,
        device="cpu",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        image_size=16,
        num_workers=0,
    )
    (batch,) = read
    assert batch.input.shape == (0, 3, 16, 16) and len(batch.index) == 0
    with pytest.raises(OSError, match="1 of 2 image files cannot be read"):
        read.check()  # where the processes meet


def family(process):
    """The numbers of a process and all that descend from it."""
    children = [
        path.read_text().split() for path in Path(f"/proc/{process}/task").glob("*/children")
    ]
    return [
        process,
        *(number for child in itertools.chain(*children) for number in family(int(child))),
    ]


def test_a_signal_to_every_process_of_a_job_saves(tmp_path):
    """As SLURM sends it.

    To torchrun, which passes it on, to its processes, and to their workers.
    """
    for part, label, number in itertools.product(("train", "test"), ("dark", "light"), range(40)):
        (tmp_path / part / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number + 120 * (label == "light"),) * 3).save(
            tmp_path / part / label / f"{number}.png"
        )
    job = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "main.py",
            "params/folder/plain.yaml",
            *TINY,
            f"run_dir={tmp_path}/run",
            f"dataset.root={tmp_path}",
            "noise=none",
            "dataset.image_size=16",
            "dataset.num_workers=1",
            "batch_size=8",
            "epochs=300",
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while not (tmp_path / "run/metrics.csv").exists():
        assert time.monotonic() < end and job.poll() is None
        time.sleep(0.05)
    for process in family(job.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    assert job.wait(timeout=120) == 1
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["interrupted"] == "SIGTERM" and summary["error"] is None


def test_half_a_rendezvous_is_refused(run, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    code, directory, _, complaints = run()
    assert code == 2 and not directory.exists()
    assert (
        "RANK, MASTER_ADDR are set as for one of several processes, but not LOCAL_RANK, WORLD_SIZE, MASTER"
        in complaints
    )
    monkeypatch.delenv("RANK")
    assert run("epochs=1")[0] == 0  # an address alone means nothing


@pytest.mark.parametrize(
    "world_size, batch_size, message",
    [
        (4, 64, None),
        (3, 12, "the last batch of an epoch has 2 samples"),
        (4, 90, "cannot be divided"),
    ],
)
def test_batches_that_cannot_be_shared(monkeypatch, world_size, batch_size, message):
    for name, value in (("RANK", 1), ("LOCAL_RANK", 1), ("WORLD_SIZE", world_size)):
        monkeypatch.setenv(name, str(value))
    images = torch.zeros(301 if world_size == 4 else 26, 1, 8, 8, dtype=torch.uint8)
    part = Split(images, torch.arange(len(images)) % 10)
    data = Dataset(
        part, part, list("0123456789"), in_channels=1, image_size=8, mean=(0.5,), std=(0.5,)
    )
    noise = inject(
        part.targets, kind="none", fraction=0.0, seed=0, num_classes=10, dataset="digits"
    )
    parts = split_rows(noise, validation={"fraction": 0.0}, seed=0)
    make = functools.partial(
        loader.make_loaders, data, noise, parts, batch_size=batch_size, device="cpu", seed=0
    )
    if message:
        with pytest.raises(ValueError, match=message):
            make()
    else:
        loaders = make()
        loaders.train.set_epoch(0, 0)
        sizes = [len(batch.index) for batch in loaders.train]
        assert sizes == [16, 16, 16, 16, 11] and len(loaders.train.rows_of(4)) == 45
