"""What the tests run in each of two processes, which torchrun starts.

    torchrun --nproc-per-node=2 -m tests.two_processes jobs.json

The file lists jobs. Each is the list of arguments of main.py, which {"stop": [rank, step, signal]}
may precede, or [{"check": NAME}] with the name of a function in this file. The exit codes of both
processes, job by job, are written to jobs.codes.
"""

import contextlib
import copy
import itertools
import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

import main
from datasets.base import Batch
from losses import LearningToReweight
from losses.task import cross_entropy
from tests import toy_methods
from utils.distributed import (
    all_gather_objects,
    data_parallel,
    end_process,
    gather,
    process_group,
    rank,
    rank_slice,
)
from utils.training_record import TrainingRecord


def stop(at_rank, at_step, number):
    """While entered, the process of that rank gets a signal after so many steps."""
    update = TrainingRecord.update
    steps = itertools.count()

    def interrupting(self, *arguments):
        update(self, *arguments)
        if next(steps) == at_step and rank() == at_rank:
            os.kill(os.getpid(), number)

    return patch.object(TrainingRecord, "update", interrupting)


def without_pictures():
    """While entered, runs draw no pictures: the slowest part of a small one."""
    return patch("utils.exports.PICTURES", ())


def check_gather():
    """Shares of any size are put together in the order of the batch, and gradients flow back."""
    for total in (7, 2, 1):
        own_rows = rank_slice(slice(0, total))
        batch = torch.arange(total * 3.0).view(total, 3)
        share = batch[own_rows].clone().requires_grad_()
        gathered, numbers = gather(share, torch.arange(total)[own_rows])
        assert torch.equal(gathered, batch)
        assert torch.equal(numbers, torch.arange(total))
        (gathered * batch).sum().backward()
        assert torch.equal(share.grad, 2 * share.detach())  # DistributedDataParallel halves it
    (uneven,) = gather(torch.full((5 if rank() else 1,), float(rank()), dtype=torch.bfloat16))
    assert uneven.tolist() == [0, 1, 1, 1, 1, 1]
    assert uneven.dtype == torch.bfloat16
    assert gather(torch.tensor([rank() == 0]))[0].tolist() == [True, False]
    assert all_gather_objects({"rank": rank()}) == [{"rank": 0}, {"rank": 1}]


@contextlib.contextmanager
def alone():
    """While entered, this process takes itself for the only one."""
    with patch.dict(os.environ), patch("losses.distributed._initialised", lambda: False):
        del os.environ["RANK"]
        yield


def check_batch_norm():
    """A network with every kind of BatchNorm computes the same in two processes as in one.

    Outputs, gradients and running statistics are compared, in float64.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.Flatten(),
        nn.BatchNorm1d(64, affine=False),
        nn.Tanh(),
        nn.Linear(64, 3),
        nn.BatchNorm1d(3, momentum=None, eps=0.1),
    ).double()
    alone = copy.deepcopy(model)
    shared = data_parallel(model, torch.device("cpu"))
    for images in torch.randn(3, 9, 2, 6, 6, dtype=torch.float64):
        expected = alone(images)
        (output,) = gather(shared(images[rank_slice(slice(0, 9))]))
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
        for network, network_output in ((alone, expected), (shared, output)):
            network.zero_grad()
            network_output.square().sum(1).exp().mean().backward()
    for (name, expected), parameter in zip(
        alone.named_parameters(), model.parameters(), strict=True
    ):
        torch.testing.assert_close(
            parameter.grad,
            expected.grad,
            rtol=1e-10,
            atol=1e-12,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    assert alone.state_dict().keys() == model.state_dict().keys()
    for expected, buffer in zip(alone.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shared.eval()(images), alone.eval()(images), rtol=1e-12, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        assert shared.train().float()(images.float()).dtype == torch.bfloat16
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32, torch.int64}


def check_weights_of_trusted_samples():
    """Learning to reweight gives a sample the weight that it has in one process.

    With BatchNorms as on a CPU and as on a GPU, however the weights are differentiated.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    inputs, trusted = torch.randn(2, 12, 5, dtype=torch.float64)
    target, indices = torch.arange(12) % 3, torch.arange(12)
    share = rank_slice(slice(0, 12))

    def batch_of(rows):
        return Batch(
            inputs[rows],
            target[rows],
            indices[rows],
            Batch(trusted[rows], target[rows], indices[rows]),
        )

    with alone():
        expected = LearningToReweight(cross_entropy, 12).weights(model, batch_of(slice(None)))
    assert 0 < (expected > 0).sum() < 12
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    for network in (synchronised, data_parallel(model, torch.device("cpu"))):
        for meta in ("forward", "backward"):
            method = LearningToReweight(cross_entropy, 12, meta=meta)
            weights = method.weights(network, batch_of(share))
            torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-12)
            assert method.meta == meta


def run_job(arguments) -> int:
    """The exit code of a job."""
    options = {}
    if isinstance(arguments[0], dict):
        options, *arguments = arguments
    if "check" in options:
        globals()[options["check"]]()
        return 0
    signalled = stop(*options["stop"]) if "stop" in options else contextlib.nullcontext()
    with without_pictures(), signalled:
        try:
            return main.main(arguments)
        except SystemExit as error:
            return error.code


if __name__ == "__main__":
    jobs = Path(sys.argv[1])
    with process_group(), toy_methods.registered():
        codes = [all_gather_objects(run_job(job)) for job in json.loads(jobs.read_text())]
    if rank() == 0:
        jobs.with_suffix(".codes").write_text(json.dumps(codes))
    end_process(0)
