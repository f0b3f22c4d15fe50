"""Are the labels that suspects.csv lists first wrong? Digits written out as image files, with
errors planted among them.

    python -m benchmarks.suspects --seeds 5 threads=1

A folder of your own is read in the same way. Precision at N: of the first N suspects, how many are
among the N planted errors.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from torchvision.io import write_png

from datasets import digits

ROOT = Path(__file__).parents[1]
# for images of 8x8: a small network from scratch, and crops that leave most of a digit
OPTIONS = [
    "model=cnn",
    "optimizer.lr=0.1",
    "epochs=30",
    "schedule=null",
    "dataset.image_size=8",
    "dataset.num_workers=0",
    "dataset.crop_scale=0.7",
    "dataset.flip=false",
]


def write_digits(root: Path, fraction: float, seed: int) -> list[str]:
    """train/<class>/<number>.png and test/..., with this fraction of the training images under
    another class: their paths.
    """
    dataset, generator, planted = digits(), np.random.default_rng(seed), []
    chosen = set(
        generator.permutation(len(dataset.train))[: round(fraction * len(dataset.train))].tolist()
    )
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        for number, (image, target) in enumerate(
            zip(split.inputs, split.targets.tolist(), strict=True)
        ):
            wrong = part == "train" and number in chosen
            label = (target + generator.integers(1, 10)) % 10 if wrong else target
            path = root / part / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(image, str(path))
            planted += [str(path)] * wrong
    return planted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--methods", nargs="+", default=["discrimloss", "plain"])
    parser.add_argument("--out", type=Path, default=ROOT / "results/digits/suspects.csv")
    parser.add_argument(
        "options", nargs="*", help="overrides for every run, e.g. threads=1 epochs=10"
    )
    arguments = parser.parse_intermixed_args()
    rows = []
    for seed in range(1, arguments.seeds + 1):
        for method in arguments.methods:
            with tempfile.TemporaryDirectory() as directory:
                planted = write_digits(Path(directory, "images"), arguments.fraction, seed)
                command = [
                    sys.executable,
                    "main.py",
                    f"params/folder/{method}.yaml",
                    f"dataset.root={directory}/images",
                    f"run_dir={directory}/run",
                    f"seed={seed}",
                    *OPTIONS,
                    *arguments.options,
                ]
                subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                first = pd.read_csv(Path(directory, "run/suspects.csv")).path[: len(planted)]
            rows.append(
                {
                    "method": method,
                    "seed": seed,
                    "planted": len(planted),
                    "precision at 50": first[:50].isin(planted).mean(),
                    "precision at planted": first.isin(planted).mean(),
                }
            )
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.round(5).to_csv(arguments.out, index=False)
    print(
        table.groupby("method")[["precision at 50", "precision at planted"]]
        .agg(["mean", "std"])
        .round(4)
        .to_string()
    )
