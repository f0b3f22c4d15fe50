"""Many runs: an array of SLURM jobs, or a loop on this machine; and what has become of them.

    python -m utils.sweep status examples/mnist.sbatch key=value ...
                                            (or bash examples/mnist.sbatch --status key=value ...)
    python -m utils.sweep status runs/mnist                 of all runs in a folder

The launchers in examples/ call ``run``; ``bash examples/mnist.sbatch --help`` says what they take.
"""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

from utils.errors import UserError, end_with_the_reader
from utils.escapes import printable
from utils.sweep.cells import ONLY, Cell, choose, read_cells
from utils.sweep.runner import CellRunner, python_command, relay, run_here, run_job, run_task
from utils.sweep.slurm import integer, not_read, submit
from utils.sweep.status import print_status, status_of

COPY = "slurm_script"  # what sbatch calls its copy of a launcher


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["relay"]:  # what python_command starts on each of several nodes
        return relay(arguments[1:])
    options, others = make_parser().parse_known_args(arguments)
    try:
        if options.command == "run":
            return run(options, others)
        end_with_the_reader()
        return status_of(options.path, others)
    except (UserError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status").add_argument("path", help="a launcher, or a folder of runs")
    # no abbreviations: what is not an option of ours may be one of sbatch
    launch = commands.add_parser("run", add_help=False, allow_abbrev=False)
    launch.add_argument("--launcher", required=True)
    launch.add_argument("--list", required=True)
    launch.add_argument("--cells")
    launch.add_argument("--only", choices=ONLY)
    launch.add_argument("--jobs", type=int, default=1)
    launch.add_argument("--submit", action="store_true")
    launch.add_argument("--dry-run", action="store_true")
    launch.add_argument("--status", action="store_true")
    return parser


def run(options: argparse.Namespace, others: list[str]) -> int:
    """What a launcher does: see examples/common.sh."""
    overrides, sbatch_options = split_arguments(others, options.submit)
    environment = dict(os.environ)
    runner = None
    if options.status or options.dry_run or options.submit:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which common.sh has switched off
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_the_reader()
    else:
        runner = CellRunner(environment)
    check_jobs(options, environment)
    for name in not_read(Path(options.launcher), environment):
        text = f"warning: {name} is set, which {options.launcher} does not read"
        print(printable(text), file=sys.stderr)
    lines = [line.strip() for line in Path(options.list).read_text().splitlines()]
    cells = read_cells([line for line in lines if line], overrides)
    if options.status:
        print_status(cells, options.launcher, overrides)
        return 0
    task = None if options.submit else environment.get("SLURM_ARRAY_TASK_ID")
    chosen = choose_cells(cells, options, environment, task)
    if options.submit:
        numbers = [cell.number for cell in chosen]
        return submit(numbers, options.launcher, overrides, sbatch_options, options.dry_run)
    if options.dry_run:
        print_commands(chosen, python_command(environment))
        return 0
    if task is not None:
        return run_task(runner, chosen[0]) if chosen else 0
    if Path(options.launcher).name == COPY:
        return run_job(runner, chosen, options.jobs)
    return run_here(runner, chosen, options.jobs, f"{Path(options.launcher).stem}_bash")


def split_arguments(arguments: list[str], submit: bool) -> tuple[list[str], list[str]]:
    """The overrides, key=value, and the options of sbatch, --name=value."""
    overrides = [text for text in arguments if "=" in text and not text.startswith("-")]
    options = [text for text in arguments if submit and text.startswith("-")]
    unknown = [text for text in arguments if text not in overrides + options]
    if unknown:
        raise UserError(
            f"not known: {' '.join(unknown)}; a launcher takes --cells, --only, --jobs, --submit, "
            f"--dry-run, --status, --help and key=value for every run; with --submit also options "
            f"of sbatch, --name=value"
        )
    return overrides, options


def check_jobs(options: argparse.Namespace, environment: dict):
    several = environment.get("PROCESSES", "1") != "1"
    if options.jobs < 1 or (options.jobs > 1 and several):
        raise UserError(
            f"--jobs must be at least 1, and 1 where a cell has several PROCESSES, "
            f"got {options.jobs}"
        )
    if options.jobs > 1 and options.submit:
        raise UserError("--jobs is for a loop; with --submit, --array=%4 runs 4 cells at a time")


def choose_cells(
    cells: list[Cell], options: argparse.Namespace, environment: dict, task: str | None
) -> list[Cell]:
    """The cells of --cells and --only, or the one of this task of an array."""
    text = options.cells
    if task is not None:
        if text is not None:
            raise UserError("--cells is not for an array: its tasks are the cells, --array=3-7,9")
        text = str(integer(environment, "OFFSET", 0) + int(task))
    chosen = [cells[number] for number in choose(text, len(cells))]
    restarted = environment.get("SLURM_RESTART_COUNT", "0") != "0"
    if options.only is None or (task is not None and restarted):  # which has been chosen already
        return chosen
    states = ONLY[options.only]
    if restarted:  # what this job itself has begun; it may still be locked by a dead node
        states += ("interrupted", "running")
    return [cell for cell in chosen if cell.state()[0] in states]


def print_commands(cells: list[Cell], python: list[str]):
    for cell in cells:
        commands = [
            shlex.join(command)
            for position in range(len(cell.runs))
            for command in cell.commands(position, python)
        ]
        print(f"{cell.number}: {' && '.join(commands)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
