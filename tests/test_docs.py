"""The pages: their commands can be run, their links resolve, and they say what is there."""

import argparse
import ast
import importlib.util
import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import losses
import utils.sweep.__main__ as sweep
from experiment import SCHEMAS
from utils.config import load
from utils.settings import DEFAULTS

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "results/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"([A-Z]+=(\"[^\"]*\"|\S+)\s)*(python|bash|sbatch|torchrun|make)\s+\S")
# what stands for what the reader has to give; no other <...> is left in a command
PLACEHOLDERS = {
    "<method>": "plain",
    "<k>": "1",
    "<number>": "3",
    "<dataset>": "mnist",
    "<launcher>": "examples/mnist.sbatch",
    "<those>": "0-3",
    "<task>": "step",
}
OF_THE_SHELL = {"head", "xdg-open", "python3", "source", "pip"}


def text_of(name):
    return (ROOT / name).read_text()


def blocks(name, *languages):
    """The fenced blocks of a page in these languages."""
    return [code for language, code in FENCE.findall(text_of(name)) if language in languages]


def commands(name):
    """All commands of a page: the lines of its blocks, and what its sentences quote."""
    lines = [line for code in blocks(name, "", "bash") for line in code.splitlines() if line]
    sentences = FENCE.sub("", text_of(name))
    for quoted in re.findall(r"`([^`]+)`", sentences):
        if COMMAND.match(quoted):
            lines.append(" ".join(quoted.split()))
    for line in lines:
        for placeholder, value in PLACEHOLDERS.items():
            line = line.replace(placeholder, value)
        yield from line.split(" && ")


class Parsed(Exception):
    """The arguments of a command are in order: it is not run any further."""


@pytest.fixture
def only_parse(monkeypatch):
    """Commands end with Parsed once they have read their arguments."""

    def ending(original):
        def parse(self, *arguments, **keywords):
            original(self, *arguments, **keywords)
            raise Parsed

        return parse

    for name in ("parse_args", "parse_intermixed_args"):
        original = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, ending(original))


def check_main(arguments):
    """Arguments of main.py resolve to a configuration."""
    params, *overrides = (argument for argument in arguments if argument != "--help")
    load(str(ROOT / params), overrides, SCHEMAS)


def check_module(module, arguments, monkeypatch):
    """A module takes these arguments."""
    assert importlib.util.find_spec(module)
    if not arguments or module == "pytest":
        return
    if module == "utils.sweep":
        options, others = sweep.make_parser().parse_known_args(arguments)
        assert options and not others
        return
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with warnings.catch_warnings(), pytest.raises(Parsed):
        warnings.simplefilter("ignore", RuntimeWarning)  # this process has imported it already
        runpy.run_module(module, run_name="__main__")


def check_launcher(environment, arguments):
    """A launcher lists its cells, or the call of sbatch, and each cell has a configuration."""
    looks_only = {"--dry-run", "--status", "--help"} & set(arguments)
    command = ["bash", *arguments, *([] if looks_only else ["--dry-run"])]
    # a later stage lists its cells only after the first has run
    for later in ("STAGE", "UNDER", "SEARCHED"):
        environment.pop(later, None)
    environment = os.environ | environment | {"PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, f"{command}: {done.stderr}"
    for line in done.stdout.splitlines()[:3]:
        if " main.py " in line:
            check_main(shlex.split(line.split(" && ")[0].split(" main.py ")[1]))


def check(command, monkeypatch):
    words = shlex.split(re.sub(r"<[^<>]*>", "FOLDER", command))
    environment = {}
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        key, _, environment[key] = words.pop(0).partition("=")
    program, *arguments = words
    if program == "torchrun":
        program, arguments = "python", [word for word in arguments if "--nproc" not in word]
    if program == "sbatch":
        arguments = arguments[[word.endswith(".sbatch") for word in arguments].index(True) :]
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", text_of("Makefile"), re.MULTILINE)
    elif program == "python" and arguments[0] == "main.py":
        check_main(arguments[1:])
    elif program == "python" and arguments[0] == "-m":
        check_module(arguments[1], arguments[2:], monkeypatch)
    elif program in ("bash", "sbatch"):
        if arguments[0].endswith(".sbatch"):
            check_launcher(environment, arguments)
        else:
            assert (ROOT / arguments[0]).is_file()
    else:
        assert program in OF_THE_SHELL
        for number, word in enumerate(arguments):
            if word == "-r":
                assert (ROOT / arguments[number + 1]).is_file()


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_can_be_run(name, only_parse, monkeypatch):
    """Configurations resolve, launchers list their cells, modules take their arguments."""
    monkeypatch.chdir(ROOT)
    for command in commands(name):
        try:
            check(command, monkeypatch)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{name}: {command}: {error}") from error


@pytest.mark.parametrize("name", PAGES)
def test_the_python_of_a_page_names_what_there_is(name):
    for code in blocks(name, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                module = node.module.replace("discrimloss", "losses")  # its name once installed
                assert names <= {*dir(__import__(module, fromlist=names))}


def test_the_params_file_of_the_page_of_the_configuration_is_one(tmp_path):
    shutil.copy(ROOT / "params" / "mnist" / "base.yaml", tmp_path)
    (code,) = blocks("docs/configuration.md", "yaml")
    (tmp_path / "method.yaml").write_text(code)

    def loss(fraction):
        config = load(str(tmp_path / "method.yaml"), [f"noise.fraction={fraction}"], SCHEMAS)
        return config["loss"]

    assert loss(0.2)["a"] == loss(0.4)["a"] != loss(0.6)["a"]  # like: 0.2, and default
    assert loss(0.2)["q"] != loss(0.4)["q"]


@pytest.mark.parametrize("name", PAGES)
def test_every_block_says_what_it_is(name):
    assert {language for language, _ in FENCE.findall(text_of(name))} <= {
        "",
        "bash",
        "python",
        "text",
        "yaml",
    }
    assert text_of(name).count("\n```") % 2 == 0


def anchors(path):
    """The anchors of the headings of a page, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_links_to_exists(name):
    here = ROOT / name
    targets = re.findall(r"\]\(([^)]+)\)", FENCE.sub("", here.read_text()))
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        if not target.startswith("http"):
            assert not path or (here.parent / path).exists(), target
            assert not anchor or anchor in anchors(here.parent / path if path else here), target


def test_the_readme_is_short_and_leads_to_every_page():
    text = text_of("README.md")
    assert len(text.splitlines()) <= 150
    for name in PAGES[1:]:
        assert f"]({name}" in text, name


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("docs/")])
def test_a_longer_page_begins_with_its_contents(name):
    text = FENCE.sub("", text_of(name))
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    contents = text[: text.index("\n## ")]
    listed = set(re.findall(r"\]\(#([^)]+)\)", contents))
    missing = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads} - listed
    assert len(heads) < 4 or not missing


def flat(settings, prefix=""):
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_the_page_of_the_configuration_has_every_key_and_its_default():
    rows = dict(
        re.findall(r"^\| (`[^|]*) \|([^|]*)\|", text_of("docs/configuration.md"), re.MULTILINE)
    )
    listed = {key: shown for keys, shown in rows.items() for key in re.findall("`([^`]+)`", keys)}
    for key in (*flat(DEFAULTS), "dataset.selection", "base", "by_fraction"):
        assert key in listed, key
    for key in ("epochs", "batch_size", "seed", "record_losses", "device", "precision", "task"):
        assert listed[key].strip(" `") == str(DEFAULTS[key]).lower(), key


def test_the_page_of_the_methods_has_a_section_with_the_keys_of_each():
    sections = dict(
        re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text_of("docs/methods.md"), re.DOTALL | re.M)
    )
    shared = {"forget_rate", "forget_rate_scale", "schedule", "num_gradual", "exponent"}
    facts = {"task_loss", *SCHEMAS["loss"].facts}
    for name in losses.__all__:
        keys = (
            inspect.signature(getattr(losses, name)).parameters.keys()
            - facts
            - shared
            - {"epoch_offset"}
        )
        missing = [key for key in keys if f"`{key}`" not in sections[name]]
        assert not missing, f"{name}: {missing}"


def test_the_page_of_a_runs_files_has_what_a_run_leaves(run):
    code, directory, *_ = run("record_losses=true", "epochs=2")
    text = text_of("docs/files-of-a-run.md")
    assert code == 0
    for path in directory.iterdir():
        assert f"`{path.name}`" in text or path.name.startswith("."), path.name
