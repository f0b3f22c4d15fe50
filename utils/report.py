"""Finished runs side by side: a table under every epoch rule, and a picture.

    python -m utils.report runs/demo/plain runs/demo/discrimloss --figure runs/demo/comparison.png
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
import yaml

from utils import sweep
from utils.plots import draw_comparison, method_name


def table(directories: list[Path]) -> pd.DataFrame:
    """One row a run: its method, noise, test metric under every rule, and how well it found the incorrect labels.

    Raises ValueError naming a directory that holds no finished run.
    """
    rows = []
    for directory in directories:
        summary = sweep.summary(directory)
        if not summary.get("finished"):
            raise ValueError(f"{directory} holds no finished run")
        config = yaml.safe_load((directory / "config.yaml").read_text())
        realised = summary["noise"]["realised"]
        rows.append({
            "method": method_name(directory),
            "dataset": config["dataset"]["name"],
            "wrong labels": "unknown" if realised is None else f"{100 * realised:.1f} % ({summary['noise']['kind']})",
            "seed": summary["seed"],
            **{rule: summary["test"][rule] for rule in ("last", "mean_last_5", "best", "validated")},
            "memorised": summary["detection"]["memorised_fraction"],
            "AUROC": summary["detection"]["auroc"],
            "seconds": summary["seconds"],
        })
    return pd.DataFrame(rows).dropna(axis="columns", how="all")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="directories of finished runs")
    parser.add_argument("--figure", type=Path, help="draw the runs into this .png or .svg")
    options = parser.parse_args(arguments)
    try:
        print(table(options.runs).to_string(index=False, float_format=lambda value: f"{value:.2f}"))
        if options.figure:
            draw_comparison(options.runs, options.figure)
            print(f"drawn: {options.figure}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
