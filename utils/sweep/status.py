"""What has become of each cell, and the commands that run the rest."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from utils.errors import UserError
from utils.escapes import in_a_line
from utils.run_state import FAILED, OTHER, STATES
from utils.sweep.cells import ONLY, Cell, ranges
from utils.sweep.slurm import arrays, max_array_size, sbatch_command, show_command


def print_status(cells: list[Cell], launcher: str = "", overrides: Iterable[str] = ()):
    """A line for each cell, the counts and the hours of training.

    If there is a launcher: the commands that run what is not done, too.
    """
    by_state = {state: [] for state in STATES}
    total = 0.0
    for cell in cells:
        state, detail = cell.state()
        hours = cell.seconds() / 3600
        by_state[state].append(cell.number)
        total += hours
        line = f"{cell.number:>5}  {state:<19}  {hours:>7.2f} h  {cell.directories[-1]}  {detail}"
        print(in_a_line(line.rstrip(), 1000))
    counts = ", ".join(f"{len(numbers)} {state}" for state, numbers in by_state.items() if numbers)
    print(f"{len(cells)} cells: {counts}; {total:.2f} hours of training")
    if by_state[OTHER]:
        print(
            f"cells {ranges(by_state[OTHER])} would write where a run of another configuration is: "
            f"give these runs a run_dir= of their own, or remove what is there"
        )
    for only, states in ONLY.items():
        numbers = sorted(number for state in states for number in by_state[state])
        if numbers and launcher:
            print(f"to run what is {only} (give sbatch your options, e.g. --gres=gpu:1):")
            for command in relaunch(numbers, only, launcher, overrides, max_array_size() - 1):
                print(f"  {command}")


def relaunch(
    numbers: list[int], only: str, launcher: str, overrides: Iterable[str], largest: int
) -> list[str]:
    """The commands that run these cells: under bash, and as arrays up to index ``largest``."""
    commands = [show_command(["bash", launcher, "--only", only, *overrides])]
    for offset, array in arrays(numbers, largest):
        commands.append(show_command(sbatch_command(array, launcher, overrides), offset))
    return commands


def status_of(path: str, arguments: list[str]) -> int:
    """Print the status of the cells of a launcher, or of the runs in a folder; the exit code.

    Args:
        arguments: key=value for every cell of a launcher.
    """
    if Path(path).is_file():
        return subprocess.run(["bash", path, "--status", *arguments], check=False).returncode
    if arguments:
        raise UserError(f"of the runs in a folder nothing is chosen: {' '.join(arguments)}")
    files = [file for name in ("config.yaml", FAILED) for file in Path(path).rglob(name)]
    directories = sorted({file.parent for file in files})
    if not directories:
        raise UserError(f"there is no run in {path}")
    print_status([Cell(number, [], [directory]) for number, directory in enumerate(directories)])
    return 0
