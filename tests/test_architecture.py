"""The shape of the project.

Who imports whom, that every params file builds, and that README says what is there.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import datasets
import losses
import main
import models
from datasets import noise
from datasets.base import Batch
from losses.base import SampleLoss
from losses.task import get_task_loss
from utils.build import build
from utils.config import CONTEXT, Loader, load

ROOT = Path(__file__).parents[1]
PACKAGES = {"datasets", "losses", "models", "utils"}
PARAMS = sorted(
    path.relative_to(ROOT) for path in ROOT.glob("params/*/*.yaml") if path.stem != "base"
)
README = (ROOT / "README.md").read_text()


def imported(path):
    """Our own packages that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        yield from (
            name.split(".")[0] for name in names if name.split(".")[0] in PACKAGES | {"main"}
        )


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_import_only_themselves_and_utils(package):
    files = list((ROOT / package).glob("*.py"))
    assert len(files) > 3
    for path in files:
        assert set(imported(path)) <= {package, "utils"}, path


def test_main_can_be_read_at_a_sitting():
    lines = (ROOT / "main.py").read_text().splitlines()
    assert len(lines) <= 150
    loop = "\n".join(lines)
    assert (
        loop.index("run.objective(")
        < loop.index("loss.backward()")
        < loop.index("optimizers.step(run.optimizer")
    )


def test_own_loop_is_short_runs_and_works():
    path = ROOT / "examples" / "own_loop.py"
    assert len(path.read_text().splitlines()) < 30
    command = [sys.executable, "-m", "examples.own_loop"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    correct, found = (float(number) for number in re.findall(r"([\d.]+) %", printed))
    assert correct > 90 and found > 90
    assert path.read_text() in README  # which shows it


def test_every_dataset_has_the_methods_of_this_list():
    by_dataset = {
        dataset: sorted(path.stem for path in PARAMS if path.parent.name == dataset)
        for dataset in {path.parent.name for path in PARAMS}
    }
    methods = {
        "data_parameters",
        "discrimloss",
        "gce",
        "gradient_rescaling",
        "plain",
        "rsl",
        "rsl_mixmatch",
        "superloss",
    }
    for dataset in ("digits", "mnist", "cifar10", "cifar100"):
        assert set(by_dataset.pop(dataset)) >= methods
    assert {dataset: " ".join(names) for dataset, names in by_dataset.items()} == {
        "folder": "discrimloss plain rsl",
        "csv": "discrimloss plain",
        "text": "discrimloss discrimloss_frozen plain plain_frozen",
        "digitsum": "discrimloss plain superloss",
        "clothing1m": "discrimloss plain superloss",
        "utkface": "discrimloss discrimloss_l2 plain plain_l2 superloss superloss_l2",
        "webvision": "discrimloss plain",
        "wikihow": "discrimloss plain",
    }


INPUTS = {"digits": (1, 8), "mnist": (1, 28)}  # channels and size, of others 3 and 32


@pytest.mark.parametrize("path", PARAMS, ids=str)
def test_every_params_file_builds_at_every_fraction(path, tiny_bert):
    text = (ROOT / path).read_text()
    command = re.search(rf"^#   python main\.py ({path}.*)$", text, re.MULTILINE)
    assert text.startswith("# ") and command, "its header names the command"
    rows = [
        key for key in (yaml.load(text, Loader).get("by_fraction") or {0.4: {}}) if key != "default"
    ]
    for fraction in rows:
        config = load(str(ROOT / path), [f"noise.fraction={fraction}"], main.PACKAGES)
        regression = config["task"] == "regression"
        task_loss = get_task_loss(config["task"], config["task_loss"], config["task"])
        outputs, target = (1, torch.rand(4)) if regression else (10, torch.arange(4))
        loss = build(
            losses,
            config["loss"],
            task_loss=task_loss,
            num_samples=50,
            num_outputs=outputs,
            model=torch.nn.Linear(3, outputs),
            epochs=config["epochs"],
        )
        if isinstance(loss, SampleLoss):
            assert loss(torch.randn(4, outputs), target, torch.arange(4)).isfinite().all()
        else:
            index = torch.arange(4)
            views = Batch(torch.randn(loss.unlabelled["num_views"], 4, 3), None, index)
            batch = Batch(torch.randn(4, 3), target, index, views)
            assert loss(torch.nn.Linear(3, 10), batch).isfinite()
    channels, size = INPUTS.get(config["dataset"]["name"], (3, 32))
    spec = {key: value for key, value in config["model"].items() if key != "pretrained"}
    if "path" in spec:
        model = build(models, spec | {"path": tiny_bert}, num_outputs=10)
    else:
        with torch.device("meta"):
            model = build(models, spec, num_outputs=outputs, in_channels=channels, image_size=size)
    optimizer = build(main.optimizers, config["optimizer"], params=model.parameters())
    assert config["schedule"] is None or build(
        main.schedules,
        config["schedule"],
        optimizer=optimizer,
        epochs=config["epochs"],
        steps_per_epoch=7,
    )
    assert config["noise"]["kind"] == "none" or config["noise"]["kind"] in noise.KINDS


def test_the_context_is_what_the_constructors_ask_for():
    """A name in CONTEXT that no constructor takes would be a misspelling."""
    import inspect

    for section, package in (("dataset", datasets), ("model", models), ("loss", losses)):
        taken = {
            name
            for public in package.__all__
            for name in inspect.signature(getattr(package, public)).parameters
        }
        assert set(CONTEXT[section]) <= taken


@pytest.mark.parametrize("name", [*losses.__all__, *datasets.__all__, *models.__all__])
def test_the_readme_lists_every_method_dataset_and_model(name):
    assert re.search(rf"^\|.*`{name}`", README, re.MULTILINE)


def test_the_commands_of_the_readme_exist():
    commands = re.findall(r"^(?:\$ )?python (main\.py \S+|-m \S+|\S+\.py)", README, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        path = command.removeprefix("main.py ").removeprefix("-m ")
        module = ROOT / path.replace(".", "/")
        candidates = [ROOT / path, module.with_suffix(".py"), module / "__main__.py"]
        assert any(candidate.exists() for candidate in candidates), command


@pytest.mark.parametrize("name", ["README.md", "results/README.md"])
def test_what_a_page_links_to_exists(name):
    def anchors(path):
        heads = re.findall(
            r"^#+ (.*)$",
            re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE),
            re.MULTILINE,
        )
        return {
            re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads
        }  # as GitHub makes them

    here = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", here.read_text()):
        path, _, anchor = target.partition("#")
        if not target.startswith("http"):
            assert not path or (here.parent / path).exists(), target
            assert not anchor or anchor in anchors(here.parent / path if path else here), target
