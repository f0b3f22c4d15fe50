"""The suspects of a finished run: look at them, decide, and mend the labels.

    python -m utils.review runs/photos
        runs/photos/review.html, to decide on in a browser; it saves decisions.csv
    python -m utils.review runs/photos --apply decisions.csv
        runs/photos/labels_fixed.csv, and how many labels were wrong
    python main.py params/csv/discrimloss.yaml dataset.file=runs/photos/labels_fixed.csv \\
        dataset.root=photos
        and train again
    python -m utils.review runs/photos --export labelstudio
        the same list for other tools: labelstudio, fiftyone, cleanlab, csv
    python -m utils.review runs/photos --apply labelstudio_export.json
        what was annotated in Label Studio and exported as JSON

The page lists the most suspicious samples, and a random sample of those that nobody suspects, from
which --apply estimates how many wrong labels are left. Decisions are rows of path, given, decision
(keep, relabel, drop or unsure), label and time; what is no file is called train/<number> or
test/<number> there. Of data in memory, --apply writes labels_fixed.npz, for
noise.kind=file:<run>/labels_fixed.npz.
"""

import argparse
import sys
from pathlib import Path

from utils.command_line import add_places, moved
from utils.errors import UserError
from utils.escapes import printable


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        check(options)
        review(options)
    except (UserError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    return 0


def check(options: argparse.Namespace):
    """Raise UserError for options that do not go together."""
    if options.output and not options.export:
        raise UserError("--output names the file of --export, which is not given")
    if options.apply and options.export:
        raise UserError("--apply and --export are two commands: give one of them")
    if options.count is not None and options.count < 1:
        raise UserError(f"--count must be at least 1, got {options.count}")


def review(options: argparse.Namespace):
    """Write the page, apply decisions, or export, as the options have it."""
    from utils.judged import judge  # takes seconds: only once the options are known to be good
    from utils.review import page
    from utils.review.decisions import read_decisions
    from utils.review.exchange import OUTPUTS, export
    from utils.review.listing import make_listing, write_listing
    from utils.review.mend import describe, how_to_train, mend

    judged = judge(options.run, moved(options))
    if options.apply:
        written, report = mend(judged, read_decisions(judged, options.apply))
        lines = [*describe(report), f"to train on them: {how_to_train(judged, written)}"]
        print(printable("\n".join(lines)))
    else:
        listing = make_listing(judged, options.count)
        if options.export:
            output = options.output or options.run / OUTPUTS[options.export]
            written = export(judged, listing, options.export, output)
        else:
            written = [options.run / "review.html"]
            page.write(judged, listing, written[0], options.stop_below)
        if options.export in (None, "labelstudio"):
            write_listing(judged, listing)
    sizes = (f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in written)
    print(printable(f"written: {', '.join(sizes)}"))


def rate(text: str) -> float:
    """A number in [0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a rate in [0, 1] is wanted, got {text!r}")
    return value


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        "python -m utils.review",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("run", type=Path, help="the directory of a finished run")
    add("--count", type=int, help="how many suspects are listed (2000; of a small set about half)")
    add(
        "--stop-below",
        type=rate,
        default=0.1,
        metavar="RATE",
        help="the page advises to stop once less than this part of the last 50 labels that were "
        "decided on was wrong (0.1)",
    )
    add(
        "--apply",
        type=Path,
        action="append",
        metavar="FILE",
        help="decisions.csv, or a JSON export of Label Studio; may be given several times",
    )
    add("--export", choices=("labelstudio", "fiftyone", "cleanlab", "csv"))
    add("--output", type=Path, metavar="FILE", help="of --export; else a file in the run")
    add_places(command)
    return command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
