"""Small-loss selection on MNIST, by the mean loss (RSL) and by that of one epoch (vanilla): what is
selected and learned.

    python -m benchmarks.small_loss data_root=<folder with MNIST> threads=1

For each noise and seed: cross-entropy with recorded losses; cross-entropy on RSL's selection; on
the vanilla selection at the epoch where its precision is highest, which only the true labels tell;
and Weighted MixMatch on RSL's selection. The learning rates are those of params/mnist, 0.02 on a
selection and 0.1 without; Plain at 0.02 is the control.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.selection import compare, estimate_noise_rate, rank_losses, read_noise

ROOT = Path(__file__).parents[1]


def train(params: str, directory: Path, *overrides: str) -> dict:
    """The summary of one run, of a process of its own."""
    subprocess.run(
        [
            sys.executable,
            "main.py",
            f"params/mnist/{params}.yaml",
            f"run_dir={directory}",
            *overrides,
        ],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads((directory / "summary.json").read_text())


def cell(kind: str, fraction: str, seed: int, runs: Path, options: list[str]) -> list[dict]:
    """Rows of the table: what was selected and what came out, for one noise and seed."""
    here = runs / f"{kind}-{fraction}" / f"seed{seed}"
    common = [f"noise.kind={kind}", f"noise.fraction={fraction}", f"seed={seed}", *options]
    plain = train("plain", here / "plain", "record_losses=true", *common)
    history = np.load(here / "plain/losses.npy")
    common.append(f"dataset.selection.history={here / 'plain/losses.npy'}")
    rsl = train("rsl", here / "rsl", *common)
    table = compare(
        history, read_noise(here / "plain"), np.arange(history.shape[1]), rsl["selection"]["counts"]
    )
    vanilla = table[table.rule == "epoch"]
    best = vanilla.loc[vanilla.precision.idxmax()]
    slow = train("plain", here / "plain-slow", "optimizer.lr=0.02", *common[:-1])
    runs_of = {
        "Plain": plain,
        "Plain, lr 0.02": slow,
        "RSL": rsl,
        "vanilla, its best epoch": train(
            "rsl", here / "vanilla", f"dataset.selection.criterion={best.criterion}", *common
        ),
        "RSL + MixMatch": train("rsl_mixmatch", here / "mixmatch", *common),
    }
    rows = []
    for name, summary in runs_of.items():
        selection = summary["selection"] or {}
        rows.append(
            {
                "noise": f"{kind} {fraction}",
                "seed": seed,
                "method": name,
                "criterion": selection.get("criterion"),
                "last": summary["test"]["last"],
                "mean_last_5": summary["test"]["mean_last_5"],
                "best": summary["test"]["best"],
                **{key: selection.get(key) for key in ("precision", "recall")},
                **{
                    f"precision {label}": value
                    for label, value in enumerate(selection.get("precision_per_class", []))
                },
            }
        )
    last = vanilla.iloc[-1]
    rows.append(
        {
            "noise": f"{kind} {fraction}",
            "seed": seed,
            "method": "vanilla, last epoch (not trained on)",
            "criterion": last.criterion,
            "precision": last.precision,
            "recall": last.recall,
        }
    )
    rows[0]["estimated noise rate"] = estimate_noise_rate(rank_losses(history, "mean"))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noise", nargs="+", default=["pair:0.45", "symmetric:0.4"])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/benchmark-small-loss")
    parser.add_argument("--out", type=Path, default=ROOT / "results/mnist/small_loss.csv")
    parser.add_argument(
        "options", nargs="*", help="overrides for every run, e.g. data_root=/data threads=1"
    )
    arguments = parser.parse_intermixed_args()
    rows = []
    for noise in arguments.noise:
        for seed in range(1, arguments.seeds + 1):
            rows += cell(*noise.split(":"), seed, arguments.runs, arguments.options)
            table = pd.DataFrame(rows)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            table.round(5).to_csv(arguments.out, index=False)
        shown = table[table.noise == noise.replace(":", " ")].groupby("method", sort=False)
        shown = shown[["last", "mean_last_5", "best", "precision", "recall"]].agg(["mean", "std"])
        print(f"{noise}, n = {arguments.seeds}\n{shown.round(4).to_string()}", flush=True)
