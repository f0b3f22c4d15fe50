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
import models
from datasets.base import Batch
from datasets.noise_kinds import KINDS
from experiment import SCHEMAS
from losses.base import SampleLoss
from losses.mentor import Mentor
from losses.task import get_task_loss
from models.several import build_several
from tests.toy_methods import ALL
from utils import optimizers, schedules
from utils.build import build
from utils.config import load, without_own_rate
from utils.mentor import write_mentor
from utils.params_file import Loader

ROOT = Path(__file__).parents[1]
PACKAGES = {"datasets", "losses", "models", "utils"}
PARAMS = sorted(
    path.relative_to(ROOT) for path in ROOT.glob("params/*/*.yaml") if path.stem != "base"
)
README = (ROOT / "README.md").read_text()


SOURCES = {  # module name -> file, of everything that is not a test
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in (*sorted(PACKAGES), "benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
} | {"main": ROOT / "main.py", "experiment": ROOT / "experiment.py"}


def names_in(node, path):
    """The full names that a statement of a file imports; none if it is no import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parents = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
    module = ".".join([*parents, *filter(None, [node.module])])
    return [f"{module}.{alias.name}" for alias in node.names]


def imported(path, only_at_the_top=False):
    """The names of our own modules that a file imports."""
    tree = ast.parse(path.read_text())
    for node in tree.body if only_at_the_top else ast.walk(tree):
        for name in names_in(node, path):
            known = name if name in SOURCES else name.rpartition(".")[0]
            if known in SOURCES:
                yield known
            elif name.split(".")[0] == "tests":
                yield name


# Commands that read a finished run with its data or its network, and what they share.
ON_TOP = ("utils.judged", "utils.folds", "utils.review", "utils.predict")
READ_RUNS = ("experiment", "datasets", "models")
# What the losses stand on: as they install alone, it is in their package, below utils.
FOUNDATION = ("losses.errors", "losses.distributed", "losses.ramp", "losses.mentor")


def within(module, package):
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_imports_only_what_lies_below_it(module):
    """main -> experiment -> { datasets | models } -> utils -> FOUNDATION; report and sweep on top.

    ON_TOP is above experiment. The losses import one another alone.
    """
    allowed = {
        "losses": (),
        "utils": ("utils", *FOUNDATION),
        "main": ("experiment", "utils"),
        "experiment": ("datasets", "losses", "models", "utils"),
        "datasets": ("utils",),
        "models": ("utils",),
        "benchmarks": (*SOURCES, "tests.fixtures"),
        "examples": ("losses", "utils"),
    }
    package = module.split(".")[0]
    on_top = any(within(module, other) for other in ON_TOP)
    for name in imported(SOURCES[module]):
        others = (
            package,
            *allowed[package],
            *(READ_RUNS if on_top else ()),
        )
        assert any(within(name, other) for other in others), f"{module} imports {name}"
        used = any(within(name, other) for other in ON_TOP)
        assert on_top or package == "benchmarks" or not used
        for part in ("utils.report", "utils.sweep"):
            entry = module == "utils.search"  # which only starts the random search of utils.sweep
            inside = within(module, part) or package in ("benchmarks", "main", "experiment")
            assert inside or entry or not within(name, part), f"{module} imports {name}"
        assert module in ("main", "experiment") or not within(name, "utils.report.__main__")


def test_no_modules_import_one_another_in_a_circle():
    graph = {
        module: set(imported(path, only_at_the_top=True)) - {module}
        for module, path in SOURCES.items()
    }
    while graph:
        free = [module for module, names in graph.items() if not names & graph.keys()]
        assert free, f"in a circle: {sorted(graph)}"
        for module in free:
            del graph[module]


@pytest.mark.parametrize("module", sorted(name for name in SOURCES if within(name, "losses")))
def test_a_loss_imports_pytorch_alone(module):
    """Relatively, so that it works under the name ``discrimloss`` too; others only in functions."""
    path = SOURCES[module]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        outside = not (isinstance(node, ast.ImportFrom) and node.level)
        for name in names_in(node, path) if outside else ():
            first = name.split(".")[0]
            lazy = first in ("numpy", "sklearn") and node not in tree.body
            assert first in sys.stdlib_module_names or first == "torch" or lazy, name


def test_what_the_losses_stand_on_can_be_read_without_pytorch():
    code = "import sys; import utils.errors; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


TESTED = {"test_gpu": {"benchmarks.gpu"}}  # benchmarks that have a test of their own


def test_tests_and_benchmarks_share_fixtures_and_nothing_else():
    for path in sorted((ROOT / "tests").glob("*.py")):
        of_benchmarks = {name for name in imported(path) if within(name, "benchmarks")}
        assert of_benchmarks <= TESTED.get(path.stem, set()), path
    for module, path in SOURCES.items():
        if within(module, "benchmarks"):
            shared = [name for name in imported(path) if within(name, "tests")]
            assert all(within(name, "tests.fixtures") for name in shared), path


UNCLEAR = {"of", "said", "told", "place", "beside", "one", "asked", "produce", "to", "wide"}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_names_explain_themselves(module):
    names = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    assert not names & UNCLEAR


def test_the_loop_fits_a_screen():
    """Forward, backward and step stand one after another in main.py."""
    text = (ROOT / "main.py").read_text()
    functions = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }
    assert sum(functions[name] for name in ("train", "train_epoch", "end_epoch")) <= 100
    assert max(len(line) for line in text.splitlines()) <= 100
    forward, backward, step = (
        text.index(call)
        for call in ("run.objective(run.forward", "loss.backward()", "optimizers.step(run.optim")
    )
    assert forward < backward < step < forward + 400


def test_own_loop_is_short_runs_and_works():
    path = ROOT / "examples" / "own_loop.py"
    assert len(path.read_text().splitlines()) < 30
    command = [sys.executable, "-m", "examples.own_loop"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    correct, found = (float(number) for number in re.findall(r"([\d.]+) %", printed))
    assert correct > 90 and found > 90
    assert path.read_text() in (ROOT / "docs" / "extend.md").read_text()  # which shows it


def test_every_dataset_has_the_methods_of_this_list():
    by_dataset = {
        dataset: sorted(path.stem for path in PARAMS if path.parent.name == dataset)
        for dataset in {path.parent.name for path in PARAMS}
    }
    methods = {
        "cleannet",
        "co_teaching",
        "co_teaching_plus",
        "data_parameters",
        "decoupling",
        "discrimloss",
        "distillation",
        "forward_correction",
        "gce",
        "gradient_rescaling",
        "jocor",
        "joint_optimization",
        "joint_optimization_step2",
        "label_cleaning",
        "learning_to_reweight",
        "mentornet",
        "mentornet_dd",
        "noisy_clean_crf",
        "plain",
        "rsl",
        "rsl_mixmatch",
        "selfie",
        "superloss",
        "teacher",
        "truncated_gce",
        "two_stage",
    }
    two_networks = (
        "co_teaching co_teaching_plus decoupling discrimloss forward_correction gce jocor "
        "mentornet plain superloss"
    )
    for dataset in ("digits", "mnist"):
        assert set(by_dataset[dataset]) >= {"trusted_only", "trusted_too", "fine_tuned"}
    for dataset in ("digits", "mnist", "cifar10", "cifar100"):
        assert set(by_dataset.pop(dataset)) >= methods
    assert {dataset: " ".join(names) for dataset, names in by_dataset.items()} == {
        "cifar10_features": (
            "co_teaching co_teaching_plus data_parameters decoupling discrimloss "
            "forward_correction gce gradient_rescaling jocor joint_optimization mentornet plain "
            "plain_slow rsl selfie superloss truncated_gce two_stage"
        ),
        "cifar10_resnet20": "co_teaching discrimloss gce plain plain_slow superloss",
        "cifar10_small": "co_teaching co_teaching_plus discrimloss plain",
        "mnist_cnn9": two_networks,
        "mnist_mlp": " ".join(sorted([*two_networks.split(), "joint_optimization", "selfie"])),
        "mnist_imbalance": "learning_to_reweight plain",
        "folder": "discrimloss finetune plain rsl small",
        "csv": "discrimloss finetune plain rsl small",
        "text": "discrimloss discrimloss_frozen plain plain_frozen",
        "digitsum": "discrimloss plain superloss",
        "clothing1m": "discrimloss plain superloss",
        "utkface": "discrimloss discrimloss_l2 plain plain_l2 superloss superloss_l2",
        "webvision": "discrimloss plain",
        "wikihow": "discrimloss plain",
    }


INPUTS = {"digits": (1, 8), "mnist": (1, 28)}  # channels and size, of others 3 and 32


@pytest.mark.parametrize("path", PARAMS, ids=str)
def test_every_params_file_builds_at_every_fraction(path, tiny_bert, tmp_path):
    text = (ROOT / path).read_text()
    command = re.search(rf"^#   python main\.py ({path}.*)$", text, re.MULTILINE)
    assert text.startswith("# ") and command, "its header names the command"
    rows = [
        key for key in (yaml.load(text, Loader).get("by_fraction") or {0.4: {}}) if key != "default"
    ]
    for fraction in rows:
        config = load(str(ROOT / path), [f"noise.fraction={fraction}"], SCHEMAS)
        regression = config["task"] == "regression"
        task_loss = get_task_loss(config["task"], config["task_loss"], config["task"])
        outputs, target = (1, torch.rand(4)) if regression else (10, torch.arange(4))
        if config["loss"].get("curriculum") == "learned":
            write_mentor(tmp_path / "mentor.npz", Mentor())
            config["loss"]["mentor"] = str(tmp_path / "mentor.npz")
        networks = getattr(getattr(losses, config["loss"]["name"]), "networks", 1)
        network = build_several(lambda outputs=outputs: torch.nn.Linear(3, outputs), networks)
        loss = build(
            losses,
            without_own_rate(losses, config["loss"]),
            task_loss=task_loss,
            num_samples=50,
            num_outputs=outputs,
            given=torch.arange(50) % outputs,
            trusted_labels=torch.arange(50) % outputs,
            verified=torch.arange(50) % 3 - 1,
            noise_rate=fraction,
            noise_transition=torch.eye(outputs).double(),
            model=network,
            epochs=config["epochs"],
            steps_per_epoch=7,
        )
        if isinstance(loss, SampleLoss):
            assert loss(torch.randn(4, outputs), target, torch.arange(4)).isfinite().all()
        else:
            index, num_views = torch.arange(4), loss.unlabelled.get("num_views")
            extra = num_views and Batch(torch.randn(num_views, 4, 3), None, index)
            if loss.trusted_batch_size:
                assert config["trusted"]["count"] >= loss.trusted_batch_size
                extra = Batch(torch.randn(4, 3), target, index)
            assert loss(network, Batch(torch.randn(4, 3), target, index, extra)).isfinite()
    channels, size = INPUTS.get(config["dataset"]["name"], (3, 32))
    spec = {key: value for key, value in config["model"].items() if key != "pretrained"}
    if "path" in spec:
        model = build(models, spec | {"path": tiny_bert}, num_outputs=10)
    else:
        with torch.device("meta"):
            model = build(models, spec, num_outputs=outputs, in_channels=channels, image_size=size)
    optimizer = build(optimizers, config["optimizer"], params=model.parameters())
    assert config["schedule"] is None or build(
        schedules,
        config["schedule"],
        optimizer=optimizer,
        epochs=config["epochs"],
        steps_per_epoch=7,
    )
    assert config["noise"]["kind"].partition(":")[0] in {*KINDS, "human", "none"}


def test_the_context_is_what_the_constructors_ask_for():
    """A fact that no constructor asks for would be a misspelling."""
    import inspect

    for section, package in (("dataset", datasets), ("model", models), ("loss", ALL)):
        taken = {
            name
            for public in package.__all__
            for name in inspect.signature(getattr(package, public)).parameters
        }
        assert set(SCHEMAS[section].facts) <= taken


@pytest.mark.parametrize("name", losses.__all__)
def test_the_readme_lists_every_method(name):
    assert re.search(rf"^\|.*`{name}`", README, re.MULTILINE)


@pytest.mark.parametrize("name", [*datasets.__all__, *models.__all__, *KINDS])
def test_the_page_of_the_configuration_lists_every_dataset_model_and_noise(name):
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert re.search(rf"^\|.*`{name}`", page, re.MULTILINE)
