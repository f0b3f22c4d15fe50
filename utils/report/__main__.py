"""Finished runs as tables and pictures, every epoch rule side by side, with published numbers.

    python -m utils.report runs/
        all that is finished in and under runs/
    python -m utils.report runs/ --table mnist --format markdown
        or latex, csv; --table rsl: the selections
    python -m utils.report runs/ --hard
        hard against incorrect samples
    python -m utils.report runs/mnist --grid last
        methods by noise fractions, one rule for the epoch
    python -m utils.report runs/ --where "fraction == 0.4" --against Plain
    python -m utils.report runs/ --figures pictures --html report.html
    python -m utils.report runs/mnist --log results/mnist
        a compact log, which is read like runs/
    python -m utils.report --update README.md results/README.md docs/*.md
        rewrite the tables between their markers

Means are over seeds, +- the standard deviation (ddof 1). The verdict on a published number is that
of an equivalence test (TOST): "reproduced" if the difference of the means lies within the margin at
5 %; else "above" or "below" if it is not zero, else "too few seeds to tell". "above" is larger:
better for an accuracy, worse for an error.
"""

import argparse
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

from utils.epoch_rules import RULES
from utils.errors import UserError, end_with_the_reader
from utils.escapes import printable
from utils.metrics import METRICS
from utils.report.collect import Results, choose, collect, left_out, over
from utils.report.compact_log import write_log
from utils.report.render import FORMS, render
from utils.report.summarise import summarise
from utils.report.tables import tables
from utils.report.update import update

ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.update:
            for path in options.update:
                print(f"{path}: {'rewritten' if update(path, markdown_table) else 'unchanged'}")
        elif options.summary:
            if options.over:
                raise UserError("--over is of runs, and not of a file to summarise")
            print(printable(summary_table(options, Path(), options.format)), end="")
        else:
            report(options)
    except (UserError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    return 0


def report(options: argparse.Namespace):
    """Print the tables of the runs that are named, and write whatever else is asked for."""
    check(options)
    if not options.runs:
        raise UserError(
            "say which folders to read, e.g. runs/ or results/mnist; --help says the rest"
        )
    everything = collect(options.runs)
    if everything.table.empty:
        print(left_out(everything), end="", file=sys.stderr)
        raise UserError(f"there is no finished run in {', '.join(map(str, options.runs))}")
    results = chosen(everything, options)
    everything = replace(everything, skipped=results.skipped)
    if options.log:
        paths = write_log(options.log, results.measured, results.epochs, results.configs)
        print("written:", *paths, file=sys.stderr)
    if options.figures:
        from utils.report import figures  # matplotlib takes its time

        against = (options.grid, options.against) if options.grid and options.against else None
        pictures = figures.draw(results, options.figures, against=against)
        print("drawn:", *(picture.path for picture in pictures), file=sys.stderr)
    if options.html:
        from utils.report import page

        page.write(results, options.html, dict(options.margin))
        print(f"written: {options.html}", file=sys.stderr)
    # last: whoever reads the tables may stop reading
    print(printable(result_tables(results, options, options.format)), end="")
    print(left_out(everything), end="", file=sys.stderr)


def check(options: argparse.Namespace):
    """Raise UserError for options that do not go together."""
    if options.hard and (options.grid or options.against):
        raise UserError("--hard is a table of its own, without --grid and --against")
    if options.over and (not options.grid or options.html or options.log):
        raise UserError("--over goes with --grid RULE and --figures, and not with --html or --log")
    if options.over and options.against:
        raise UserError("--against compares at the same noise, and does not go with --over")


def chosen(results: Results, options: argparse.Namespace) -> Results:
    """Those of --table and --where, along what --over says."""
    if options.over:  # so that a condition is on what is shown
        results = over(choose(results, options.table), options.over)
    results = choose(results, options.table, options.where)
    if options.against and options.against not in set(results.table.label):
        known = "; ".join(dict.fromkeys(results.table.label))
        raise UserError(f"--against {options.against!r}: there are {known}")
    return results


def result_tables(results: Results, options: argparse.Namespace, form: str) -> str:
    return tables(
        results,
        form,
        margins=dict(options.margin),
        hard=options.hard,
        grid_rule=options.grid,
        against=options.against,
    )


def summary_table(options: argparse.Namespace, root: Path, form: str) -> str:
    """The table of --summary, whose path is relative to ``root``."""
    table = summarise(
        root / options.summary,
        options.by,
        options.columns,
        median=options.median,
        condition=options.where,
    )
    return render(table, form)


def markdown_table(arguments: list[str]) -> str:
    """The markdown table for these arguments, of compact logs in this repository."""
    options = parser().parse_args(arguments)
    if options.summary:
        return summary_table(options, ROOT, "markdown")
    check(options)
    results = collect([ROOT / path for path in options.runs])
    if results.skipped or results.unfinished or results.table.empty:
        names = ", ".join(map(str, options.runs))
        raise UserError(
            f"{names}: a table is to show all of a log, but there are\n{left_out(results)}"
        )
    return result_tables(chosen(results, options), options, "markdown")


def parse_margin(text: str) -> tuple[str, float | str]:
    """ "accuracy=0.5" (points) or "mae=5%" (of the published value)."""
    match = re.fullmatch(rf"({'|'.join(METRICS)})=(\d*\.?\d+)(%?)", text)
    if not match or not 0 < float(match[2]) < math.inf:
        raise argparse.ArgumentTypeError(
            f"a margin is written accuracy=0.5 or mae=5%, got {text!r}"
        )
    return match[1], match[2] + match[3] if match[3] else float(match[2])


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        "python -m utils.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("runs", nargs="*", type=Path, help="folders with runs in them, or with compact logs")
    add("--table", metavar="NAME", help="a dataset, or rsl")
    add("--format", choices=FORMS, default="text")
    add(
        "--margin",
        type=parse_margin,
        action="append",
        default=[],
        metavar="METRIC=MARGIN",
        help="how far from the published number still counts as reproduced: accuracy=0.5 (points), "
        "mae=5%%",
    )
    add("--hard", action="store_true", help="how far hard and incorrect samples are told apart")
    add(
        "--grid",
        choices=RULES,
        help="a row a method, a column a noise fraction, by this rule for the epoch",
    )
    add(
        "--against",
        metavar="METHOD",
        help="how far the others' last epoch is from this one's, in units of the metric; "
        "not in csv. With --grid by its rule and under all noises, which --figures draws",
    )
    add(
        "--where",
        metavar="CONDITION",
        help="only these rows of the runs (by the columns of runs.csv, and label, the method as it "
        'is shown) or of the file to summarise, e.g. "fraction == 0.4"; known are ==, !=, <, <=, '
        ">, >=, in [...], and, or, not and parentheses",
    )
    add(
        "--over",
        metavar="KEY",
        help="with --grid: a column for each value of this key of the configuration, e.g. "
        "trusted.count, in the place of the noise fraction, which --where then knows as "
        "noise_fraction; --figures draws it",
    )
    add("--figures", type=Path, metavar="FOLDER", help="draw all into this folder, .png and .svg")
    add("--html", type=Path, metavar="FILE", help="all of it in one page that needs no network")
    add(
        "--log",
        type=Path,
        metavar="FOLDER",
        help="write these runs as a compact log, small enough to commit",
    )
    add(
        "--summary",
        type=Path,
        metavar="FILE",
        help="instead of runs, any CSV file: its --columns, averaged over the rows that agree "
        "in --by",
    )
    add("--by", nargs="+", default=[], metavar="COLUMN")
    add("--columns", nargs="+", default=[], metavar="COLUMN[:DIGITS]")
    add("--median", action="store_true", help="of a summary: median [lowest, highest]")
    add(
        "--update",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="rewrite the tables between the markers of markdown files",
    )
    return command


if __name__ == "__main__":
    end_with_the_reader()
    sys.exit(main(sys.argv[1:]))
