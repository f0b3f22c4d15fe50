"""How long the report takes over three thousand runs, and how much memory.

    python -m benchmarks.report --out results/report.csv

The runs are made up in the format of real ones: five methods at five noise fractions with 120
seeds, 120 epochs each. Every form is timed in a process of its own, without the start of Python.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from tests.fixtures import make_sweep

ROOT = Path(__file__).parents[1]
FORMS = {
    "text": [],
    "csv": ["--format", "csv"],
    "hard": ["--hard"],
    "html": ["--html", "{}/report.html"],
    "log": ["--log", "{}/log"],
    "from the log": ["--format", "csv"],
}
# not ru_maxrss, which a process inherits from the one that starts it
MEASURE = """
import sys, time
start = time.monotonic()
from utils.report.__main__ import main
main(sys.argv[1:])
seconds = time.monotonic() - start
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak.split()[1]) / 1024, file=sys.stderr)
"""


def measure(source: Path, options: list[str]) -> tuple[float, float]:
    """Seconds and MiB that the report of these runs takes."""
    command = [sys.executable, "-c", MEASURE, str(source), *options]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    seconds, megabytes = map(float, done.stderr.split()[-2:])
    return seconds, megabytes


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--out", type=Path, default=ROOT / "results/report.csv")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_sweep(Path(folder, "runs"), arguments.seeds, arguments.epochs)
        for name, options in FORMS.items():
            source = Path(folder, "log" if name == "from the log" else "runs")
            seconds, megabytes = measure(source, [text.format(folder) for text in options])
            row = {
                "form": name,
                "runs": 25 * arguments.seeds,
                "epochs": arguments.epochs,
                "seconds": round(seconds, 2),
                "megabytes": round(megabytes),
            }
            rows.append(row)
            print(row, flush=True)
        size = sum(path.stat().st_size for path in Path(folder, "log").iterdir())
        print(f"the compact log: {size / 2**20:.1f} MiB")
    pd.DataFrame(rows).to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
