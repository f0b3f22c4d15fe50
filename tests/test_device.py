"""Where a run computes."""

import os

import pytest
import torch

from utils.device import choose_device
from utils.errors import UserError


@pytest.fixture
def two_gpus(monkeypatch):
    """As if there were two; the device that is chosen, as PyTorch is told."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    return chosen


@pytest.mark.parametrize("name, number", [("cuda", 0), ("auto", 0), ("cuda:1", 1)])
def test_a_gpu_has_a_number(two_gpus, name, number):
    # PyTorch 2.11 takes no other in set_device
    assert choose_device(name)[0] == torch.device("cuda", number)
    assert two_gpus == [torch.device("cuda", number)]


def test_a_gpu_that_is_not_there(two_gpus):
    with pytest.raises(UserError, match="PyTorch sees 2 CUDA devices here"):
        choose_device("cuda:2")
    assert not two_gpus


def test_the_same_bits_each_time_if_that_is_asked_for(two_gpus, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    chosen = []
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", lambda *a, **k: chosen.append((a, k))
    )
    choose_device("cuda")
    assert torch.backends.cudnn.benchmark and not chosen and not os.environ
    choose_device("cuda", deterministic=True)
    assert not torch.backends.cudnn.benchmark
    assert chosen == [((True,), {"warn_only": True})]
    assert os.environ == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
