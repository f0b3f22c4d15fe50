"""Processes that read images, when one of them dies or has no memory: an end, and no waiting."""

import errno
import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

import datasets.files
from datasets.images import decode
from tests.test_datasets import write_tree
from utils.run_state import read_summary
from utils.workers import leave_signals_to_the_main_process, signals_held, workers_end_too


@pytest.fixture
def read_images(run, tmp_path):
    """Starts a run whose images two processes read."""
    write_tree(tmp_path / "images")
    options = [f"data_root={tmp_path}/images", "dataset.image_size=8", "dataset.num_workers=2"]

    def call():
        return run(*options, "batch_size=2", "schedule=null", params="params/folder/plain.yaml")

    return call


def test_a_worker_that_is_killed_ends_the_run_which_goes_on_when_started_again(
    read_images, monkeypatch, tmp_path
):
    def killed(path):
        if get_worker_info() and path.endswith("test/dog/0.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(path)

    monkeypatch.setattr(datasets.files, "decode", killed)
    start = time.monotonic()
    code, directory, _, complaints = read_images()
    assert code == 1 and time.monotonic() - start < 60
    complaint, warning = complaints.splitlines()[::-1]
    assert "lower dataset.num_workers" in complaint and warning.startswith("warning: half of the 2")
    assert complaint.startswith("error: a process that reads images has died")
    assert not multiprocessing.active_children()
    assert "dataset.num_workers" in read_summary(directory)["error"]
    monkeypatch.undo()
    code, directory, _, complaints = read_images()
    assert code == 0 and read_summary(directory)["finished"], complaints


def test_a_worker_without_shared_memory_says_so(read_images, monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>\nin C++")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    code, _, _, complaints = read_images()
    assert code == 1 and complaints.count("\n") == 2
    assert "has no shared memory for a batch (unable to allocate" in complaints
    assert not multiprocessing.active_children()


def test_workers_that_cannot_be_started_are_an_error_that_says_what_to_do(read_images, monkeypatch):
    def full(loader):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DataLoader, "__iter__", full)
    code, _, _, complaints = read_images()
    assert code == 1 and "cannot be started ([Errno 28] No space left on device)" in complaints
    assert "lower dataset.num_workers" in complaints


def wait():
    leave_signals_to_the_main_process(0)
    time.sleep(100)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_worker_outlives_a_run_that_fails(error):
    process = multiprocessing.get_context("fork").Process(target=wait, daemon=True)
    with pytest.raises(error), workers_end_too():
        process.start()
        raise error
    process.join(20)
    assert process.exitcode == -signal.SIGKILL


def signalled_as_it_starts():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as PyTorch's own handler: the end
    os.kill(os.getpid(), signal.SIGTERM)
    leave_signals_to_the_main_process(0)


@pytest.mark.parametrize("held", [True, False])
def test_a_signal_while_a_worker_starts_does_not_end_it(held):
    worker = multiprocessing.get_context("fork").Process(target=signalled_as_it_starts)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    if held:
        with signals_held():
            worker.start()
    else:
        worker.start()
    worker.join(30)
    assert worker.exitcode == (0 if held else -signal.SIGTERM)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
