"""What must cost nothing, or little.

A step never waits for the device, its work does not grow with the dataset, and the memory does not
grow with the epochs. Starting costs little more than importing PyTorch.
"""

import contextlib
import gc
import math
import re
import resource
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import losses
import main
from datasets.base import Batch
from experiment import SCHEMAS, Experiment
from losses.base import SampleLoss
from losses.task import cross_entropy
from utils import optimizers
from utils.build import build
from utils.checkpoint import StopRequest
from utils.config import load
from utils.run_directory import RunDirectory
from utils.training_record import TrainingRecord

ROOT = Path(__file__).parents[1]
C = 5
ARGUMENTS = {"SuperLoss": {"tau": 0.5}, "GradientRescaling": {"beta": 2.0, "lam": 0.5}}
SCORING = [name for name in losses.__all__ if issubclass(getattr(losses, name), SampleLoss)]
TWO_NETWORKS = [
    name for name in losses.__all__ if getattr(getattr(losses, name), "networks", 1) == 2
]
# Their result is a table as long as the dataset, of which they touch a part.
INTO_A_TABLE = {
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::index_copy_",
    "aten::scatter_",
    "aten::put_",
    "aten::detach",
    "aten::alias",
}


# On a GPU each of these waits until a number, or the length of its result, is known.
READS = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "bincount",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "equal",
        "repeat_interleave",
    )
}


def waits_for_a_mask(name, args):
    """Whether indexing would wait on a GPU until it is known how many elements a mask selects.

    Not where one number is written through it, which PyTorch does without looking; here that goes
    for one on the GPU, too, which would wait.
    """
    if name not in {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}:
        return False
    masks = [item for item in args[1] if item is not None]
    if all(mask.dtype not in (torch.bool, torch.uint8) for mask in masks):
        return False
    return name == "aten::index" or args[2].numel() > 1


class Watch(TorchDispatchMode):
    """While entered, counts the operations that are run, and those that are slow.

    Attributes:
        count: how many operations were run.
        reads: how many of them read a number from the device, or a length, as indexing with a mask.
        large: names of those with a result of ``size`` elements that is not a table.
    """

    def __init__(self, size: int = -1):
        super().__init__()
        self.size = size
        self.count = self.reads = 0
        self.large = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        self.count += 1
        self.reads += name in READS or waits_for_a_mask(name, args)
        results = result if isinstance(result, (tuple, list)) else [result]
        for item in results:
            is_large = isinstance(item, torch.Tensor) and item.numel() == self.size
            if is_large and name not in INTO_A_TABLE:
                self.large.append(name)
        return result


def make_loss(name, num_samples, **arguments):
    spec = {"name": name} | ARGUMENTS.get(name, {}) | arguments
    facts = {"noise_rate": 0.4, "noise_transition": torch.eye(C), "epochs": 100}
    return build(
        losses,
        spec,
        task_loss=cross_entropy,
        num_samples=num_samples,
        num_outputs=C,
        given=torch.arange(num_samples) % C,
        trusted_labels=torch.arange(num_samples) % C,
        verified=torch.arange(num_samples) % 3 - 1,
        steps_per_epoch=5,
        model=torch.nn.Linear(C, C),
        **facts,
    )


def step(method, index):
    """Forward and backward of a method on outputs for these samples."""
    target = torch.arange(len(index)) % 5
    if isinstance(method, SampleLoss):
        output = torch.randn(len(index), 5, requires_grad=True)
        loss = method(output, target, index).mean()
    else:
        output = torch.randn(len(index), 2, 5, requires_grad=True)
        loss = method(torch.nn.Identity(), Batch(output, target, index))
    loss.backward()


@pytest.mark.parametrize("name", SCORING + TWO_NETWORKS)
def test_a_step_of_a_loss_touches_the_batch_alone(name):
    """After the first step, only operations that write into a table have a result as long."""
    num_samples = 10_007
    loss = make_loss(name, num_samples)
    counts = []
    for number in range(3):
        with Watch(size=num_samples) as watch:
            step(loss, torch.arange(8) + 8 * number)
        counts.append(watch.count)
        assert number == 0 or not watch.large
    assert counts[1] == counts[2]


BYTES = [(name, {}, r"(\d[\dCWq *+()]*) bytes per sample") for name in SCORING + TWO_NETWORKS]
BYTES_OF_VISITS = r"(\d+) with ``bias_correction=\"visits\"``"


@pytest.mark.parametrize(
    ("name", "arguments", "pattern"),
    [*BYTES, ("DiscrimLoss", {"bias_correction": "visits"}, BYTES_OF_VISITS)],
)
def test_the_docstring_says_how_many_bytes_a_sample_are_kept(name, arguments, pattern):
    """If it says nothing of them, nothing is kept."""
    small, large = (make_loss(name, num_samples, **arguments) for num_samples in (1000, 3000))
    kept = sum(state.nbytes for state in large.buffers())
    kept -= sum(state.nbytes for state in small.buffers())
    stated = re.search(pattern, " ".join(getattr(losses, name).__doc__.split()))
    assert kept == 2000 * (eval(stated[1], {"C": C, "W": 10, "q": 15}) if stated else 0)


def skip_check_index(monkeypatch):
    """Leave out the check of the indices, which a method makes on a CPU alone."""
    for name, module in list(sys.modules.items()):
        if name.startswith("losses."):
            monkeypatch.setattr(module, "check_index", lambda *_: None, raising=False)


@pytest.mark.parametrize("name", SCORING + TWO_NETWORKS)
def test_a_step_of_a_loss_reads_nothing_from_the_device(name, monkeypatch):
    skip_check_index(monkeypatch)
    loss = make_loss(name, 100)
    with Watch() as watch:
        for number in range(5):
            step(loss, torch.arange(8) + 8 * number)
    assert watch.reads == 0


def small_run(tmp_path, *overrides):
    options = ["model.width=2", f"run_dir={tmp_path}/run", "threads=1", "batch_size=32"]
    config = load("params/digits/discrimloss.yaml", [*options, *overrides], SCHEMAS)
    directory = RunDirectory(config)
    run = Experiment(config, directory)
    run.epoch, run.step, run.forward = 0, 0, run.model
    return run


@pytest.mark.parametrize("method", ["Plain", "DiscrimLoss"])
def test_an_epoch_reads_from_the_device_only_when_it_looks_at_the_losses(
    tmp_path, monkeypatch, method
):
    skip_check_index(monkeypatch)
    monkeypatch.setattr(TrainingRecord, "check_every", 10)
    run = small_run(tmp_path, f"loss={method}")
    with Watch() as watch, StopRequest() as stop:
        main.train_epoch(run, stop)
    looks = math.ceil(len(run.loaders.train) / 10)
    assert len(run.loaders.train) == 41
    assert looks == 5
    # each look reads the losses as one tensor; the progress bar needs loss.item()
    assert watch.reads <= looks + 1


@contextlib.contextmanager
def no_waiting(device):
    """While entered, nothing may wait for the GPU; on a CPU, nothing that would on a GPU."""
    if device == "cuda":
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
                torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        with Watch() as watch:
            yield
        assert watch.reads == 0


@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
@pytest.mark.parametrize(
    "method",
    [
        "Plain",
        "DiscrimLoss",
        "SuperLoss",
        "DataParameters",
        "GCE",
        "{name: GCE, k: 0.5, prune_from: 1, prune_every: 1}",
        "{name: MentorNet, curriculum: self_paced, example_dropout: [[0.5, 100]]}",
        "{name: ForwardCorrection, transition: estimate, estimate_epochs: 1}",
        "SELFIE",
        "{name: JointOptimization, begin: 1, window: 1}",
        "TwoStage",
        "{name: LearningToReweight, trusted_batch_size: 50}",
        "LabelCleaning",
        "{name: NoisyCleanCRF, hidden: 2}",
        *TWO_NETWORKS,
    ],
)
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, method, device):
    skip_check_index(monkeypatch)
    options = [f"device={device}", "optimizer.lr=0.01", "clip_norm=1", "trusted.count=50"]
    run = small_run(tmp_path, f"loss={method}", *options)
    run.model.train()
    run.loaders.set_epoch(0, 0)
    batches = iter(run.loaders.train)
    for step in range(6):
        # the first step allocates, and chooses algorithms
        with no_waiting(device) if step else contextlib.nullcontext():
            batch = next(batches)
            loss = run.objective(run.forward, batch)
            run.optimizer.zero_grad()
            loss.backward()
            optimizers.step(run.optimizer, 1.0)
            run.objective.after_step(run.model)
            run.record.update(step, loss, batch, run.objective.scored)


def tensors_alive():
    """How many tensors there are, and how many bytes they take."""
    gc.collect()
    # not isinstance, which would ask objects that pretend to be of another class
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    return len(tensors), sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_nothing_grows_with_the_epochs(tmp_path):
    run = small_run(tmp_path, "epochs=60")
    alive = {}
    with StopRequest() as stop:
        for run.epoch in range(50):
            run.step = 0
            main.train_epoch(run, stop)
            main.end_epoch(run)
            if run.epoch in (4, 49):
                alive[run.epoch] = tensors_alive()
    assert alive[4] == alive[49]
    assert alive[4][0] > 20


def test_importing_main_loads_no_library_that_a_run_may_not_need():
    lazy = {"sklearn", "scipy", "pandas", "matplotlib", "torchvision", "PIL", "transformers"}
    code = f"import sys, main; print(*sorted({lazy} & sys.modules.keys()))"
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert completed.stdout.split() == []


def cpu_seconds(*arguments):
    """The CPU time, user and system, of a Python process with these arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_costs_little_more_than_importing_pytorch():
    help_times, import_times = [], []
    for _ in range(3):  # in turn, because other work on the machine slows down both
        help_times.append(cpu_seconds("main.py", "--help"))
        import_times.append(cpu_seconds("-c", "import torch"))
    assert statistics.median(help_times) <= 1.3 * statistics.median(import_times)
