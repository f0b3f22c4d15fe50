"""The cells of a sweep: what each runs, where it writes, and which of them are chosen."""

import contextlib
import itertools
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from utils.config import complete, differences, extension, resolve
from utils.errors import UserError
from utils.run_state import DATA, OTHER, read_config, read_summary, run_state
from utils.settings import PLACES

# What each value of --only chooses: states of cells.
ONLY = {"missing": ("missing", "interrupted"), "failed": ("failed",)}


@dataclass
class Cell:
    """One line of the list: the arguments of one run after another, and where each writes.

    ``configs``: what each is to run. If there are none, whatever the directories hold is theirs.
    ``before``: commands by the position of the run that they prepare, arguments of python.
    """

    number: int
    runs: list[list[str]]
    directories: list[Path]
    configs: list[dict] = field(default_factory=list)
    before: dict[int, list[list[str]]] = field(default_factory=dict)

    def commands(self, position: int, python: list[str]) -> list[list[str]]:
        """The commands of a run: what prepares it, and itself, which ``python`` starts."""
        prepared = [[sys.executable, *arguments] for arguments in self.before.get(position, [])]
        return [*prepared, [*python, "main.py", *self.runs[position]]]

    def changed(self, position: int) -> list[str]:
        """The keys in which the run that a directory holds differs from the one of the cell."""
        return self._compared(position)[0]

    def _compared(self, position):
        """``changed``, and what changes if the run, which is finished, goes on for more epochs.

        As main.py compares them, which knows data by what they hold.
        """
        begun, directory = None, self.directories[position]
        with contextlib.suppress(OSError):  # damaged, which its state says
            begun = read_config(directory) if self.configs else None
        if begun is None:
            return [], {}
        config, free = self.configs[position], PLACES if (directory / DATA).exists() else ()
        changed = differences(begun, config, (*free, "extended"))
        if changed and run_state(directory)[0] == "done":
            more = extension(begun, config, self.runs[position], free)
            if more:
                return [], more
        return changed, {}

    def run_state(self, position: int) -> tuple[str, str]:
        """The state of one of its runs, and the reason or the progress.

        A directory that holds a run of another configuration says nothing about this one; a
        finished one of fewer epochs is to go on.
        """
        changed, more = self._compared(position)
        if changed:
            return OTHER, "; ".join(changed)
        if more:
            epochs = self.configs[position]["epochs"]
            return "interrupted", f"finished after {more['epochs']} of now {epochs} epochs"
        return run_state(self.directories[position])

    def state(self) -> tuple[str, str]:
        """The state of its first run that is not done, and the reason or the progress."""
        previous = None
        for position, directory in enumerate(self.directories):
            state, detail = self.run_state(position)
            if state == "missing" and previous:
                return "interrupted", f"{previous} is done, {directory} not begun"
            if state != "done":
                break
            previous = directory
        return state, detail

    def seconds(self) -> float:
        """Spent on training so far, of this configuration, as far as that is known."""
        total = 0.0
        for position, directory in enumerate(self.directories):
            with contextlib.suppress(OSError):  # damaged, which the state says
                if not self.changed(position):
                    total += read_summary(directory).get("seconds") or 0
        return total


def read_cells(lines: list[str], overrides: list[str]) -> list[Cell]:
    """The cells of a list, with further overrides for every run.

    Raises:
        UserError: the list is empty, or a line is wrong, or two runs would write one directory.
        FileNotFoundError: a line names no params file.
    """
    if not lines:
        raise UserError("the list of cells is empty: look at METHODS, FRACTIONS and SEEDS")
    cells, writers = [], {}
    for number, line in enumerate(lines):
        try:
            commands = [shlex.split(part) for part in line.split(" && ")]
        except ValueError as error:  # a quotation mark without its partner
            raise UserError(f"cell {number}, {line}: {error}") from None
        runs, before = [], {}
        for command in commands:
            if command[:1] == ["-m"]:
                before.setdefault(len(runs), []).append(command)
            else:
                runs.append([*command, *overrides])
        if len(runs) in before:
            last = shlex.join(before[len(runs)][-1])
            raise UserError(f"cell {number}: {last} prepares no run, for none comes after it")
        configs = [_config(number, arguments) for arguments in runs]
        directories = [Path(config["run_dir"]) for config in configs]
        for directory in directories:
            if directory in writers:
                raise UserError(
                    f"cells {writers[directory]} and {number} would both write {directory}: "
                    f"give one of them a run_dir= of its own"
                )
            writers[directory] = number
        cells.append(Cell(number, runs, directories, configs, before))
    return cells


def _config(number: int, arguments: list[str]) -> dict:
    try:
        config = complete(resolve(arguments[0], arguments[1:]), arguments[0])
        Path(config["run_dir"])
        return config
    # The arguments are merged but not checked here: values of wrong types raise anything.
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"cell {number}, {shlex.join(arguments)}: {error}") from None


def choose(text: str | None, count: int) -> list[int]:
    """The numbers that "3-7,9" names, each below ``count``; all of them if it is None."""
    if text is None:
        return list(range(count))
    numbers = []
    for part in text.split(","):
        if not re.fullmatch(r"\d+(-\d+)?", part):
            raise UserError(f"cells are written 3-7,9; got {text!r}")
        first, _, last = part.partition("-")
        # no further than one beyond the list, which is enough to be named below
        numbers += range(min(int(first), count), min(int(last or first), count) + 1)
    if not numbers or max(numbers) >= count:
        raise UserError(f"there is no cell {text}: the list has {count}, 0 to {count - 1}")
    return numbers


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2,5"."""
    parts = []
    # The difference between a number and its position is the same within a row of neighbours.
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        row = [number for _, number in group]
        parts.append(str(row[0]) if len(row) == 1 else f"{row[0]}-{row[-1]}")
    return ",".join(parts)
