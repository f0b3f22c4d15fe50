"""Finished runs as tables and pictures: every epoch rule side by side, and beside them the
published number with a verdict.

    python -m utils.report runs/                                      all that is finished under runs/
    python -m utils.report runs/ --table mnist --format markdown      or latex, csv; --table rsl: the selections
    python -m utils.report runs/ --hard                               hard against incorrect samples
    python -m utils.report runs/mnist --grid last                     methods by noise fractions, one rule for the epoch
    python -m utils.report runs/ --where "fraction == 0.4" --against Plain
    python -m utils.report runs/ --figures pictures --html report.html
    python -m utils.report runs/mnist --log results/mnist             a compact log, which is read like runs/
    python -m utils.report --update README.md results/README.md       rewrite the tables between their markers

Means are over seeds, +- the standard deviation (ddof 1). The verdict on a published number is that
of an equivalence test (TOST): "reproduced" where the difference of the means lies within the margin
at 5 %; else "above" or "below" where it is not zero, else "too few seeds to tell". "above" is
larger: better for an accuracy, worse for an error.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path

from utils.epoch_rules import RULES
from utils.errors import UserError
from utils.files import atomic_write
from utils.report.collect import Runs, collect, write_log
from utils.report.tables import (
    MARGINS,
    choose,
    left_out,
    parse_margin,
    render,
    summarise,
    tables,
)

ROOT = Path(__file__).parents[2]
MARKER = re.compile(r"(<!-- report (?P<arguments>.*?) -->\n).*?(<!-- end of report -->)", re.DOTALL)


def update(path: Path) -> bool:
    """Rewrite what stands between ``<!-- report ARGUMENTS -->`` and ``<!-- end of report -->``;
    whether that changed it.

    Raises ValueError where a marker lacks its other half.
    """
    before = path.read_text()
    if re.findall(r"<!-- (report|end of report)\b", before) != ["report", "end of report"] * len(
        MARKER.findall(before)
    ):
        raise UserError(
            f"{path}: each <!-- report ARGUMENTS --> needs its <!-- end of report --> before the next one"
        )
    after = MARKER.sub(renewed, before)
    if after != before:
        with atomic_write(path) as file:
            file.write(after)
    return after != before


def renewed(found: re.Match) -> str:
    """A marked part as it should be."""
    return found[1] + produce(shlex.split(found["arguments"])) + found[3]


def produce(arguments: list[str]) -> str:
    """The markdown table that these arguments of the command line ask for, of compact logs in this
    repository.
    """
    options = parser().parse_args(arguments)
    if options.summary:
        return render(
            summarise(
                ROOT / options.summary, options.by, options.columns, options.median, options.where
            ),
            "markdown",
        )
    runs = collect([ROOT / path for path in options.runs])
    if runs.skipped or runs.unfinished or runs.table.empty:
        named = ", ".join(map(str, options.runs))
        raise UserError(
            f"{named}: a table is to show all of a log, but there are\n{left_out(runs)}"
        )
    return asked(choose(runs, options.table, options.where), options, "markdown")


def asked(runs: Runs, options: argparse.Namespace, form: str) -> str:
    """The tables that these options ask for."""
    return tables(
        runs, form, MARGINS | dict(options.margin), options.hard, options.grid, options.against
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m utils.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "runs", nargs="*", type=Path, help="folders with runs in them, or with compact logs"
    )
    made.add_argument("--table", metavar="NAME", help="a dataset, or rsl")
    made.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text")
    made.add_argument(
        "--margin",
        type=parse_margin,
        action="append",
        default=[],
        metavar="METRIC=MARGIN",
        help="how far from the published number still counts as reproduced: accuracy=0.5 (points), mae=5%%",
    )
    instead = made.add_mutually_exclusive_group()
    instead.add_argument(
        "--hard", action="store_true", help="how far hard and incorrect samples are told apart"
    )
    instead.add_argument(
        "--grid",
        choices=RULES,
        help="a row a method, a column a noise fraction, by this rule for the epoch",
    )
    instead.add_argument(
        "--against",
        metavar="METHOD",
        help="how far the others' last epoch is from this one's, in units of the metric; not in csv",
    )
    made.add_argument(
        "--where",
        metavar="CONDITION",
        help="only these rows of the runs (by the columns of runs.csv, and label, the method as it is shown) or "
        'of the file to summarise, e.g. "fraction == 0.4"',
    )
    made.add_argument(
        "--figures",
        type=Path,
        metavar="FOLDER",
        help="draw everything into this folder, .png and .svg",
    )
    made.add_argument(
        "--html", type=Path, metavar="FILE", help="all of it in one page that needs no network"
    )
    made.add_argument(
        "--log",
        type=Path,
        metavar="FOLDER",
        help="write these runs as a compact log, small enough to commit",
    )
    made.add_argument(
        "--summary",
        type=Path,
        metavar="FILE",
        help="instead of runs, any CSV file: its --columns, averaged over the rows that agree in --by",
    )
    made.add_argument("--by", nargs="+", default=[], metavar="COLUMN")
    made.add_argument("--columns", nargs="+", default=[], metavar="COLUMN[:DIGITS]")
    made.add_argument(
        "--median", action="store_true", help="of a summary: median [lowest, highest]"
    )
    made.add_argument(
        "--update",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="rewrite the tables between the markers of markdown files",
    )
    return made


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.update:
            for path in options.update:
                print(f"{path}: {'rewritten' if update(path) else 'unchanged'}")
            return 0
        if options.summary:
            print(
                render(
                    summarise(
                        options.summary, options.by, options.columns, options.median, options.where
                    ),
                    options.format,
                ),
                end="",
            )
            return 0
        if not options.runs:
            raise UserError(
                "say which folders to read, e.g. runs/ or results/mnist; --help says the rest"
            )
        runs = collect(options.runs)
        if runs.table.empty:
            print(left_out(runs), end="", file=sys.stderr)
            raise UserError(f"there is no finished run in {', '.join(map(str, options.runs))}")
        whole, runs = runs, choose(runs, options.table, options.where)
        print(asked(runs, options, options.format), end="")
        if options.log:
            print("written:", *write_log(runs, options.log), file=sys.stderr)
        if options.figures or options.html:
            from utils.report import figures  # matplotlib takes its time

            if options.figures:
                print(
                    "drawn:",
                    *(picture.path for picture in figures.draw(runs, options.figures)),
                    file=sys.stderr,
                )
            if options.html:
                from utils.report import page

                page.write(runs, options.html, MARGINS | dict(options.margin))
                print(f"written: {options.html}", file=sys.stderr)
        print(left_out(whole), end="", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
