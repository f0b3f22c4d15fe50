"""How long the report takes over a thousand runs, and how much memory: runs made up in the format
of real ones.

    python -m benchmarks.report --out results/report.csv

Five methods at five noise fractions with 40 seeds, 120 epochs each. Every form is timed in a
process of its own, without the start of Python.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from utils.config import DEFAULTS, merge
from utils.epoch_rules import apply_rules

ROOT = Path(__file__).parents[1]
FORMS = {
    "text": [],
    "csv": ["--format", "csv"],
    "hard": ["--hard"],
    "html": ["--html", "{}/report.html"],
    "log": ["--log", "{}/log"],
    "from the log": ["--format", "csv"],
}


def make_run(
    directory: Path,
    values: list[float],
    *,
    validation: list[float] | None = None,
    realised: float | None = 0.36,
    detection: dict | None = None,
    **overrides,
):
    """A finished run in ``directory`` whose test metric over the epochs is ``values``, as
    ``main.py`` would leave it.

    ``overrides``: sections and keys of the configuration, merged over the defaults.
    """
    directory.mkdir(parents=True)
    config = merge(DEFAULTS, overrides)
    config["noise"]["seed"] = config["noise"]["seed"] or config["seed"]
    config["run_dir"] = str(directory)
    numbers = config["task"] == "regression"
    rows = pd.DataFrame(
        {
            "epoch": range(len(values)),
            "lr": 0.1,
            "train_loss": 1.0,
            "train_metric": 50.0,
            "test_metric": values,
            "seconds": 1.0,
            "images_per_second": 1000.0,
            "weight_easy": 1.0,
            "weight_hard": 0.5,
            "weight_incorrect": 0.1,
            "mass_incorrect": 0.25,
        }
    )
    if validation:
        rows["validation_metric"] = validation
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    rows.to_csv(directory / "metrics.csv", index=False)
    (directory / "summary.json").write_text(
        json.dumps(
            {
                "finished": True,
                "metric": "mae" if numbers else "accuracy",
                "test": apply_rules(values, validation, not numbers),
                "at_the_same_epochs": {},
                "noise": {
                    "kind": config["noise"]["kind"],
                    "requested": config["noise"]["fraction"],
                    "realised": realised,
                },
                "selection": None,
                "detection": detection or {"auroc": 0.9, "memorised_fraction": 0.1},
                "seconds": float(len(values)),
                "epochs": len(values),
                "seed": config["seed"],
                "processes": 1,
                "device": "cpu",
                "commit": None,
            }
        )
    )


def make_sweep(
    folder: Path, seeds: int, epochs: int, fractions: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8)
):
    """MNIST, five methods by these fractions."""
    generator = np.random.default_rng(0)
    for place, method in enumerate(("Plain", "SuperLoss", "DiscrimLoss", "DataParameters", "GCE")):
        for fraction in fractions:
            for seed in range(seeds):
                curve = (
                    98
                    - 5 * fraction
                    + place / 10
                    - 3 * np.exp(-np.arange(epochs) / 9)
                    + generator.normal(0, 0.2, epochs)
                )
                make_run(
                    folder / method / f"permute-{fraction}" / f"seed{seed}",
                    curve.round(2).tolist(),
                    seed=seed,
                    dataset={"name": "mnist"},
                    model={"name": "lenet"},
                    loss={"name": method},
                    realised=0.9 * fraction,
                    noise={"kind": "permute", "fraction": fraction, "seed": seed},
                    epochs=epochs,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--out", type=Path, default=ROOT / "results/report.csv")
    arguments = parser.parse_args()
    measure = (
        "import resource, sys, time; start = time.monotonic(); from utils import report; "
        "report.main(sys.argv[1:]); "
        "print(time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / "
        "1024, file=sys.stderr)"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_sweep(Path(folder, "runs"), arguments.seeds, arguments.epochs)
        for name, options in FORMS.items():
            source = f"{folder}/log" if name == "from the log" else f"{folder}/runs"
            done = subprocess.run(
                [sys.executable, "-c", measure, source, *(text.format(folder) for text in options)],
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
            )
            seconds, megabytes = map(float, done.stderr.split()[-2:])
            rows.append(
                {
                    "form": name,
                    "runs": 25 * arguments.seeds,
                    "epochs": arguments.epochs,
                    "seconds": round(seconds, 2),
                    "megabytes": round(megabytes),
                }
            )
            print(rows[-1], flush=True)
        size = sum(path.stat().st_size for path in Path(folder, "log").iterdir())
        print(f"the compact log: {size / 2**20:.1f} MiB")
    pd.DataFrame(rows).to_csv(arguments.out, index=False)
