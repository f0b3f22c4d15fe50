"""The command line of main.py: a params file, then key=value; what it prints for a newcomer.

And options that other commands share.
"""

import argparse
import shlex
from pathlib import Path

import yaml

from utils.build import defaults
from utils.config import Schema, left_to_defaults, load, recorder
from utils.errors import UserError, end_with_the_reader
from utils.escapes import in_a_line, printable
from utils.files import read_text
from utils.params_file import flatten
from utils.settings import DEFAULTS, PLACES

# what a recording run must have in common with the run that selects by it
OF_THE_DATA = (
    "dataset",
    "data_root",
    "features",
    "model",
    "task",
    "task_loss",
    "trusted",
    "targets",
)
MOVABLE = ("data_root", *PLACES)  # where the data of a run are
PARAMS = Path(__file__).parents[1] / "params"


def parse(arguments: list[str], manual_text: str, schemas: dict[str, Schema]) -> dict:
    """The configuration that a command line asks for: a params file, then key=value.

    Exits after printing --help.

    Raises:
        UserError, FileNotFoundError: as ``load``; and if there is no history to select from, naming
            the command that makes it.
    """
    wants_help = bool({"-h", "--help"} & set(arguments))
    arguments = [argument for argument in arguments if argument not in ("-h", "--help")]
    if wants_help or (arguments and Path(arguments[0]).is_dir()):
        end_with_the_reader()
    if not arguments and wants_help:
        print(manual(manual_text, DEFAULTS, schemas))
        print(f"\n{_folders()}")
        raise SystemExit(0)
    if arguments and Path(arguments[0]).is_dir():
        print(_listing(Path(arguments[0])))
        raise SystemExit(0)
    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        raise UserError(
            "the first argument is a params file, e.g. params/digits/discrimloss.yaml; "
            f"--help prints the manual. {_folders()}"
        )
    config = load(arguments[0], arguments[1:], schemas)
    for note in left_to_defaults(arguments[0], arguments[1:]):
        print(note)
    if wants_help:
        print(manual(manual_text, config, schemas))
        raise SystemExit(0)
    selection = config["dataset"].get("selection")
    # samples.npz is written at the end of a run, which then needs no history any more
    finished = Path(config["run_dir"], "samples.npz").exists()
    if selection is not None and not finished and not Path(selection["history"]).is_file():
        raise FileNotFoundError(_no_history(config, recorder(arguments[0]), arguments[1:]))
    return config


def _folders():
    """What to name next, for whoever does not know the params files."""
    names = ", ".join(sorted(path.parent.name for path in PARAMS.glob("*/base.yaml")))
    return f"python main.py params/<folder> lists the files for a dataset: {names}"


def _listing(folder):
    """The params files of a folder, each with the first sentence of its header.

    Raises UserError if there are none.
    """
    paths = [path for path in sorted(folder.glob("*.yaml")) if path.name != "base.yaml"]
    if not paths:
        raise UserError(f"{folder} is a folder without params files. {_folders()}")
    width = max(len(str(path)) for path in paths)
    lines = []
    for path in paths:
        first, *_ = read_text(path).split("\n", 1)
        sentence = first.removeprefix("#").strip().split(". ")[0].rstrip(".")
        lines.append(f"{path!s:{width}}  {in_a_line(sentence)}")
    return printable("\n".join(lines))


def _no_history(config, params_file, overrides):
    """The message that says how to record the losses that a selection needs."""
    data = [text for text in overrides if text.split("=")[0].split(".")[0] in OF_THE_DATA]
    data = [text for text in data if not text.startswith("dataset.selection")]
    noise, validation = config["noise"], config["validation"]
    held_out = [
        f" validation.{key}={_show(value)}"
        for key, value in validation.items()
        if value != DEFAULTS["validation"][key]
    ]
    return (
        f"there is no history of losses {config['dataset']['selection']['history']} to select "
        "from. Record it with the same dataset and labels, e.g.\n"
        f"  python main.py {params_file} record_losses=true seed={config['seed']} "
        f"noise.seed={noise['seed']} {shlex.quote('noise.kind=' + noise['kind'])} "
        f"noise.fraction={noise['fraction']}"
        f"{''.join(held_out)}{''.join(f' {shlex.quote(text)}' for text in data)}\n"
        "and name it with dataset.selection.history=<its run directory>/losses.npy, if that is "
        "elsewhere"
    )


def manual(text: str, config: dict, schemas: dict[str, Schema]) -> str:
    """The manual, and each key that the command line may set with its value here."""
    values = flatten(config)
    if config["dataset"].get("selection") is None:
        values = {"dataset.selection": None} | values
    for section, (package, facts) in schemas.items():
        prefix, given = section, config.get(section)
        if section == "selection":
            prefix, given = "dataset.selection", config["dataset"].get("selection")
        if given is None:
            continue
        constructor = package if section == "selection" else getattr(package, given["name"])
        inner = defaults(constructor, given, facts)
        values |= {f"{prefix}.{key}": value for key, value in inner.items()}
    order = {key: position for position, key in enumerate(config)}
    sections_together = sorted(values.items(), key=lambda item: order[item[0].split(".")[0]])
    lines = [f"  {key}={_show(value)}" for key, value in sections_together]
    return "\n".join([text.strip(), "", "keys, with their values here:", *lines])


def _show(value):
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def add_places(command: argparse.ArgumentParser):
    """Options of a command that reads the data of a run, for where these are now."""
    for key in MOVABLE:
        option = key.removeprefix("dataset.").replace("_", "-")
        about = f"{key} of the run, if it has been moved"
        command.add_argument(f"--{option}", dest=key, metavar="PATH", help=about)


def moved(options: argparse.Namespace) -> dict[str, str]:
    """What such options say: key -> path, of those that are given."""
    paths = {key: getattr(options, key) for key in MOVABLE}
    return {key: path for key, path in paths.items() if path is not None}
