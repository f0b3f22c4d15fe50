"""One thread: the tests' networks are too small to share, and two busy cores make spinning threads wait for each other."""

import pytest
import torch

import main

torch.set_num_threads(1)

TINY = ["model=mlp", "model.hidden=[16]", "epochs=3", "threads=1", "device=cpu"]


@pytest.fixture
def run(tmp_path, capsys):
    """run(*overrides, params=..., name=...) -> (exit code, run directory, printed, complaints) of a tiny run on digits."""
    def call(*overrides, params="params/digits/discrimloss.yaml", name="run"):
        directory = tmp_path / name
        capsys.readouterr()
        code = main.main([params, *TINY, f"run_dir={directory}", *overrides])
        printed = capsys.readouterr()
        return code, directory, printed.out, printed.err
    return call
