"""The wheel: losses/ as ``discrimloss``, with PyTorch and nothing else of ours."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAIN = """
import sys
import warnings
from collections import namedtuple

import torch

import datasets
import utils
from discrimloss import CoTeaching, DiscrimLoss, SuperLoss
from discrimloss.task import cross_entropy

assert (utils.WHOSE, datasets.WHOSE) == ("theirs", "theirs")
assert not {"losses", "yaml", "sklearn", "pandas"} & sys.modules.keys()
assert SuperLoss.__module__ == "discrimloss.superloss"
torch.manual_seed(0)
target = torch.arange(200) % 3
images = torch.randn(200, 3) + 4 * torch.eye(3)[target]


def train(networks, loss_of, loss_function):
    optimizer = torch.optim.SGD(networks.parameters(), lr=1.0)
    for epoch in range(4):
        loss_function.set_epoch(epoch)
        for index in torch.randperm(200).split(40):
            optimizer.zero_grad()
            loss_of(images[index], target[index], index).backward()
            optimizer.step()


def accuracy(output):
    return (output.argmax(-1) == target).float().mean().item()


model = torch.nn.Linear(3, 3)
loss = DiscrimLoss(cross_entropy, num_samples=200)
train(model, lambda inputs, labels, index: loss(model(inputs), labels, index).mean(), loss)
assert accuracy(model(images)) > 0.9, accuracy(model(images))
assert loss.sample_score().isfinite().all() and loss.log_sigma.value.unique().numel() > 100


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.networks = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])

    def forward(self, inputs):
        return torch.stack([network(inputs) for network in self.networks], 1)


Batch = namedtuple("Batch", "input target index")
two = Two()
method = CoTeaching(cross_entropy, num_samples=200, noise_rate=0.1, model=two)
train(two, lambda *batch: method(two, Batch(*batch)), method)
first, second = two(images).unbind(1)
assert min(accuracy(first), accuracy(second)) > 0.9
assert not torch.equal(first, second) and method.sample_score().min() > 0
print("trained")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A wheel of this source, and the folder that it was installed into."""
    folder = tmp_path_factory.mktemp("package")
    source, target = folder / "source", folder / "installed"
    shutil.copytree(
        ROOT / "losses", source / "losses", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True)
    return wheel, target


def test_the_wheel_holds_nothing_but_the_package(installed):
    with zipfile.ZipFile(installed[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        text = wheel.read(metadata).decode()
    files = {path.name for path in (ROOT / "losses").iterdir() if path.suffix in (".py", ".typed")}
    assert "py.typed" in files
    assert names == {f"discrimloss/{name}" for name in files}
    required = [line for line in text.splitlines() if line.startswith("Requires-Dist:")]
    required = [line for line in required if "extra ==" not in line]
    assert len(required) == 1 and required[0].startswith("Requires-Dist: torch>=")


def test_the_package_trains_beside_other_packages_of_our_names(installed, tmp_path):
    for name in ("utils", "datasets"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text('WHOSE = "theirs"\n')
    (tmp_path / "train.py").write_text(TRAIN)
    done = subprocess.run(
        [sys.executable, "-W", "error", "train.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed[1])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


def test_every_method_can_be_imported_from_the_package(installed):
    code = (
        "import importlib.metadata, discrimloss\n"
        "from discrimloss import *\n"
        "print(importlib.metadata.version('discrimloss') == discrimloss.__version__)\n"
        "print(all(getattr(discrimloss, name).__name__ == name for name in discrimloss.__all__))\n"
        "print(set(discrimloss.__all__) <= set(dir(discrimloss)), hasattr(discrimloss, 'Nothing'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "True", "True", "False"]
