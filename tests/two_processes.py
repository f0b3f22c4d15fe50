"""What the tests run in each of two processes: torchrun --nproc-per-node=2 -m tests.two_processes
jobs.json.

A job is the arguments of main.py, which may begin with {"stop": [rank, step, signal]}; or {"check":
the name of one here}.
"""

import contextlib
import copy
import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

import main
from tests import toy_methods
from utils.distributed import (
    all_gather_objects,
    data_parallel,
    gather,
    process_group,
    rank,
    rank_slice,
)
from utils.training_record import TrainingRecord


def stop(at_rank, at_step, number):
    """Send the process of that rank a signal after so many steps."""
    update, steps = TrainingRecord.update, iter(range(10**6))

    def interrupting(self, *arguments):
        update(self, *arguments)
        if next(steps) == at_step and rank() == at_rank:
            os.kill(os.getpid(), number)

    return patch.object(TrainingRecord, "update", interrupting)


def without_pictures():
    """Leaves out the slowest part of a small run."""
    return patch("utils.exports.PICTURES", ())


def check_gather():
    """Shares of any size come together, those of a batch in its order, and gradients find their way
    back.
    """
    for total in (7, 2, 1):
        batch = torch.arange(total * 3.0).view(total, 3)
        own = batch[rank_slice(slice(0, total))].clone().requires_grad_()
        whole, numbers = gather(own, torch.arange(total)[rank_slice(slice(0, total))])
        assert torch.equal(whole, batch) and torch.equal(numbers, torch.arange(total))
        (whole * batch).sum().backward()
        assert torch.equal(own.grad, 2 * own.detach())  # DistributedDataParallel halves it
    (uneven,) = gather(torch.full((5 if rank() else 1,), float(rank()), dtype=torch.bfloat16))
    assert uneven.tolist() == [0, 1, 1, 1, 1, 1] and uneven.dtype == torch.bfloat16
    assert gather(torch.tensor([rank() == 0]))[0].tolist() == [True, False]
    assert all_gather_objects({"rank": rank()}) == [{"rank": 0}, {"rank": 1}]


def check_batch_norm():
    """In float64, networks with every BatchNorm in them.

    Outputs, gradients and running statistics are those of one process.
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
    alone, shared = copy.deepcopy(model), data_parallel(model, torch.device("cpu"))
    for images in torch.randn(3, 9, 2, 6, 6, dtype=torch.float64):
        expected, (output,) = alone(images), gather(shared(images[rank_slice(slice(0, 9))]))
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
        for network, said in ((alone, expected), (shared, output)):
            network.zero_grad()
            said.square().sum(1).exp().mean().backward()
    for (name, own), its in zip(alone.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(
            its.grad,
            own.grad,
            rtol=1e-10,
            atol=1e-12,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    assert alone.state_dict().keys() == model.state_dict().keys()
    for own, its in zip(alone.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(its, own, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shared.eval()(images), alone.eval()(images), rtol=1e-12, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        assert shared.train().float()(images.float()).dtype == torch.bfloat16
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32, torch.int64}


def do(arguments) -> int:
    """The exit code of a job."""
    first = arguments[0] if isinstance(arguments[0], dict) else {}
    if "check" in first:
        globals()[first["check"]]()
        return 0
    with without_pictures(), stop(*first["stop"]) if first else contextlib.nullcontext():
        try:
            return main.main(arguments[1:] if first else arguments)
        except SystemExit as error:
            return error.code


if __name__ == "__main__":
    jobs = Path(sys.argv[1])
    with process_group(), toy_methods.registered():
        codes = [all_gather_objects(do(arguments)) for arguments in json.loads(jobs.read_text())]
    if rank() == 0:
        jobs.with_suffix(".codes").write_text(json.dumps(codes))
