"""Whether two folders of runs hold the same numbers, bit for bit: for changes that must not show.

    python -m benchmarks.same_results BEFORE AFTER

Compares, run by run, metrics.csv but for what was measured in seconds, and every array of
samples.npz, test.npz, noise.npz, selection.npz and losses.npy. Exit code 1 if anything differs.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

TIMES = ["seconds", "images_per_second"]
FILES = ("samples.npz", "test.npz", "noise.npz", "selection.npz", "losses.npy")


def differences(before: Path, after: Path) -> list[str]:
    """What differs between two directories of runs."""
    lines = []
    old, new = (
        pd.read_csv(folder / "metrics.csv").drop(columns=TIMES) for folder in (before, after)
    )
    if not old.equals(new):
        columns = [name for name in old if name not in new or not old[name].equals(new[name])]
        lines.append(f"metrics.csv: {', '.join(columns) or 'other columns'}")
    for name in FILES:
        if (before / name).exists() != (after / name).exists():
            lines.append(f"{name} is in one of them only")
        elif (before / name).exists():
            old, new = arrays(before / name), arrays(after / name)
            lines += [
                f"{name}: {key}"
                for key in sorted({*old, *new})
                if key not in old or key not in new or not equal(old[key], new[key])
            ]
    return lines


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name."""
    content = np.load(path)
    return {"": content} if isinstance(content, np.ndarray) else dict(content)


def equal(old: np.ndarray, new: np.ndarray) -> bool:
    """Of one type, and equal bit for bit; NaN equals NaN."""
    return old.dtype == new.dtype and np.array_equal(old, new, equal_nan=old.dtype.kind == "f")


def main(before: Path, after: Path) -> int:
    names = sorted(path.parent.relative_to(before) for path in before.rglob("metrics.csv"))
    if not names:
        sys.exit(f"error: there are no runs in {before}")
    bad = 0
    for name in names:
        missing = not (after / name / "metrics.csv").exists()
        lines = ["missing"] if missing else differences(before / name, after / name)
        bad += bool(lines)
        print(f"{name}: {'; '.join(lines) or 'equal'}")
    return int(bad > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    sys.exit(main(**vars(parser.parse_args())))
