"""What must cost nothing.

No wait for the device in a step, no work that grows with the dataset, no memory with the epochs.
"""

import contextlib
import gc
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import losses
import main
from experiment import SCHEMAS, Experiment
from losses.base import SampleLoss
from losses.task import cross_entropy
from utils import optimizers
from utils.build import build
from utils.checkpoint import StopRequest
from utils.config import load
from utils.run_directory import RunDirectory
from utils.training_record import TrainingRecord

ARGUMENTS = {"SuperLoss": {"tau": 0.5}, "GradientRescaling": {"beta": 2.0, "lam": 0.5}}
SCORING = [name for name in losses.__all__ if issubclass(getattr(losses, name), SampleLoss)]
INTO_A_TABLE = {
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::index_copy_",
    "aten::scatter_",
    "aten::put_",
    "aten::detach",
    "aten::alias",
}  # whose result is the table, of which they touch a part


class Watch(TorchDispatchMode):
    """Which operations are run, and which of them read a number from the device, or write a tensor
    of a certain size.
    """

    def __init__(self, size: int = -1):
        super().__init__()
        self.size, self.read, self.large, self.count = size, 0, [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name, self.count = function._schema.name, self.count + 1
        self.read += name == "aten::_local_scalar_dense"
        tensors = [
            one
            for one in (result if isinstance(result, (tuple, list)) else [result])
            if isinstance(one, torch.Tensor)
        ]
        if any(one.numel() == self.size for one in tensors) and name not in INTO_A_TABLE:
            self.large.append(name)
        return result


def made(name, num_samples, **arguments):
    spec = {"name": name} | ARGUMENTS.get(name, {}) | arguments
    return build(losses, spec, task_loss=cross_entropy, num_samples=num_samples, num_outputs=5)


@pytest.mark.parametrize("name", SCORING)
def test_a_step_of_a_loss_touches_the_batch_alone(name):
    """After the first one, no operation has a result as long as the dataset, but those that write
    into its table.
    """
    loss, counts = made(name, 10_007), []
    for step in range(3):
        index = torch.arange(8) + 8 * step
        output = torch.randn(8, 5, requires_grad=True)
        with Watch(size=10_007) as watch:
            loss(output, torch.arange(8) % 5, index).mean().backward()
        counts.append(watch.count)
        assert step == 0 or not watch.large
    assert counts[1] == counts[2]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        *((name, {}, r"(\d+) bytes a sample") for name in SCORING),
        (
            "DiscrimLoss",
            {"bias_correction": "visits"},
            r"(\d+) with ``bias_correction=\"visits\"``",
        ),
    ],
)
def test_the_docstring_says_how_many_bytes_a_sample_are_kept(name, arguments, said):
    """And nothing is kept of each where it says nothing."""
    sizes = [
        sum(state.nbytes for state in made(name, n, **arguments).buffers()) for n in (1000, 3000)
    ]
    stated = re.search(said, " ".join(getattr(losses, name).__doc__.split()))
    assert sizes[1] - sizes[0] == 2000 * (int(stated[1]) if stated else 0)


@pytest.mark.parametrize("name", SCORING)
def test_a_step_of_a_loss_reads_nothing_from_the_device(name, monkeypatch):
    monkeypatch.setattr(
        f"losses.{getattr(losses, name).__module__.split('.')[-1]}.check_index",
        lambda *_: None,
        raising=False,
    )
    loss = made(name, 100)
    output = torch.randn(8, 5, requires_grad=True)
    with Watch() as watch:
        for step in range(5):  # check_index looks at its indices on the CPU alone
            loss(output, torch.arange(8) % 5, torch.arange(8) + 8 * step).mean().backward()
    assert watch.read == 0


def small_run(tmp_path, *overrides):
    config = load(
        "params/digits/discrimloss.yaml",
        ["model.width=2", f"run_dir={tmp_path}/run", "threads=1", "batch_size=32", *overrides],
        SCHEMAS,
    )
    directory = RunDirectory(config)
    run = Experiment(config, directory)
    run.epoch, run.step, run.forward = 0, 0, run.model
    return run


@pytest.mark.parametrize("method", ["Plain", "DiscrimLoss"])
def test_an_epoch_reads_from_the_device_only_where_it_looks_at_the_losses(
    tmp_path, monkeypatch, method
):
    monkeypatch.setattr("losses.discrimloss.check_index", lambda *_: None)
    monkeypatch.setattr(TrainingRecord, "check_every", 10)
    run = small_run(tmp_path, f"loss={method}")
    with Watch() as watch, StopRequest() as stop:
        main.train_epoch(run, stop)
    looks = -(-len(run.loaders.train) // 10)
    assert len(run.loaders.train) == 41 and looks == 5
    assert (
        watch.read <= looks + 1
    )  # loss.item() of the progress bar; the losses themselves come home in one tensor


@contextlib.contextmanager
def no_waiting(device):
    """Nothing may wait for the GPU, or on a CPU read what it would have to wait for."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        with Watch() as watch:
            yield
        assert watch.read == 0


@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
@pytest.mark.parametrize(
    "method",
    [
        "Plain",
        "DiscrimLoss",
        "SuperLoss",
        "DataParameters",
        "GCE",
        "{name: GCE, k: 0.5}",
        "{name: MentorNet, curriculum: self_paced, example_dropout: [[0.5, 100]]}",
        "{name: ForwardCorrection, transition: estimate, estimate_epochs: 1}",
    ],
)
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, method, device):
    looking = ("discrimloss", "data_parameters", "gce", "mentornet", "forward_correction")
    for module in looking:
        monkeypatch.setattr(
            f"losses.{module}.check_index", lambda *_: None
        )  # which looks at indices on a CPU alone
    run = small_run(
        tmp_path, f"loss={method}", f"device={device}", "optimizer.lr=0.01", "clip_norm=1"
    )
    run.loaders.set_epoch(0, 0)
    batches = iter(run.loaders.train)
    for step in range(6):
        with (
            no_waiting(device) if step else contextlib.nullcontext()
        ):  # the first allocates, and chooses algorithms
            batch = next(batches)
            loss = run.objective(run.forward, batch)
            run.optimizer.zero_grad()
            loss.backward()
            optimizers.step(run.optimizer, 1.0)
            run.objective.after_step(run.model)
            run.record.update(step, loss, batch, run.objective.scored)


def tensors():
    """How many tensors there are, and their bytes."""
    gc.collect()
    sizes = [
        one.numel() * one.element_size()
        for one in gc.get_objects()
        if issubclass(type(one), torch.Tensor)
    ]
    return len(sizes), sum(sizes)


def test_nothing_grows_with_the_epochs(tmp_path):
    run, held = small_run(tmp_path, "epochs=60"), []
    with StopRequest() as stop:
        for run.epoch in range(50):
            run.step = 0
            main.train_epoch(run, stop)
            main.end_epoch(run)
            if run.epoch in (4, 49):
                held.append(tensors())
    assert held[0] == held[1] and held[0][0] > 20
