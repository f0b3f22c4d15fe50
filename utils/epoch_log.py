"""What a run reports of its epochs: metrics.csv, summary.json, a line each, a progress bar."""

import csv
import functools
import importlib.metadata
import math
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.device import device_name
from utils.distributed import main_process_only, rank, world_size
from utils.epoch_rules import apply_rules
from utils.files import atomic_write
from utils.metrics import Metric
from utils.run_directory import update_summary, write_json
from utils.run_state import read_summary

COLUMNS = (  # metrics.csv begins with these
    "epoch",
    "lr",
    "train_loss",
    "train_metric",
    "test_metric",
    "seconds",
    "images_per_second",
)


class EpochLog:
    """The rows of a run's metrics.csv, and what follows from them.

    The rows are part of the checkpoint (``state_dict``): with the first row after a resumption,
    metrics.csv no longer holds those of the epochs that are trained again. Of several processes the
    first alone writes.

    Args:
        path: of the run's directory.
        config: of the run.
        data, noise: the datasets.base.Dataset and datasets.noise.Noise of the run.
        metric: of the test set.
        selection: the report of a selection of samples, or None.
        unreadable: files that cannot be read: path -> why; the loaders add to it.
        origins: of each file of another run that this one depends on, what left it.
    """

    def __init__(
        self,
        path: Path,
        config: dict,
        *,
        data,
        noise,
        metric: Metric,
        selection: dict | None,
        unreadable: dict[str, str],
        origins: dict[str, dict],
    ):
        self.path, self.config, self.data, self.noise = path, config, data, noise
        self.metric, self.selection, self.unreadable = metric, selection, unreadable
        self.origins = origins
        self.rows: list[dict] = []
        self.restarts, self.scalars = 0, None

    def state_dict(self) -> dict:
        return {"rows": self.rows, "restarts": self.restarts}

    def load_state_dict(self, state: dict):
        for row in state["rows"]:
            numbers = all(isinstance(value, (int, float)) for value in row.values())
            if not numbers or not set(COLUMNS) <= row.keys():
                raise ValueError("its rows are not those of metrics.csv")
        self.rows, self.restarts = state["rows"], state["restarts"] + 1

    @main_process_only
    def add_row(self, row: dict):
        """Add an epoch to metrics.csv and summary.json, and print it in a line."""
        columns = [key for key in COLUMNS if key in row]
        columns += [key for key in row if key not in COLUMNS]
        self.rows.append({key: row[key] for key in columns})
        with atomic_write(self.path / "metrics.csv") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            for logged in self.rows:
                writer.writerow({key: _digits(value) for key, value in logged.items()})
        self._write_scalars()
        self.write_summary()
        trained = f"  {self.metric.name} {row['train_metric']:.2f}"
        if math.isnan(row["train_metric"]):
            trained = ""
        print(
            f"epoch {row['epoch']:>3}  lr {row['lr']:.3g}  train loss {row['train_loss']:.4f}"
            f"{trained}  test {row['test_metric']:.2f}  "
            f"{row['images_per_second']:.0f} images/s",
            flush=True,
        )

    def _write_scalars(self):
        """If ``tensorboard``, add the new row as scalars; the first time, all earlier rows too."""
        if not self.config["tensorboard"]:
            return
        new = self.rows[-1:]
        if self.scalars is None:
            from torch.utils.tensorboard import SummaryWriter

            self.scalars, new = SummaryWriter(self.path / "tensorboard", purge_step=0), self.rows
        for row in new:
            for key in row.keys() - {"epoch"}:
                self.scalars.add_scalar(key, row[key], row["epoch"])
        self.scalars.flush()

    @main_process_only
    def note_interruption(self, signal: str, epoch: int, step: int):
        """Say, also in summary.json, that a signal ended the run, which goes on from there."""
        self.write_summary()
        update_summary(self.path, interrupted=signal)
        print(f"{signal}: saved at epoch {epoch}, step {step}; the same command goes on from there")

    @main_process_only
    def note_error(self, error: str):
        """Say in summary.json what ended the run."""
        if not read_summary(self.path):
            self.write_summary()
        update_summary(self.path, error=error)

    def close(self):
        """Close what is still open."""
        if self.scalars:
            self.scalars.close()

    def progress(self, loader, epoch: int, step: int) -> tqdm:
        """A progress bar over the batches of ``epoch`` from ``step`` on.

        In the first process, if there is a terminal.
        """
        return tqdm(
            loader,
            f"epoch {epoch}",
            initial=step,
            unit=" images",
            unit_scale=self.config["batch_size"],
            postfix=self.latest(),
            leave=False,
            disable=None if rank() == 0 else True,
        )

    def latest(self) -> dict:
        """What a progress bar shows of the epoch before, if there was one."""
        return {"test_metric": self.rows[-1]["test_metric"]} if self.rows else {}

    def write_summary(self, **finished):
        """Write summary.json.

        Args:
            finished: ``detection``, ``recovery`` and ``learning``, given once the run is finished.
        """
        config, corrupted = self.config, self.noise.corrupted
        kind = config["noise"]["kind"]
        change = None
        if corrupted is not None and not self.data.classes:
            change = float(np.abs(self.noise.given - self.noise.true).mean())
        seconds = sum(row["seconds"] for row in self.rows)
        images = sum(row["seconds"] * row["images_per_second"] for row in self.rows)
        summary = {
            "finished": bool(finished),
            "data": str(self.data),
            "metric": self.metric.name,
            **self._by_rule(),
            "noise": {
                "kind": kind,
                "requested": None if ":" in kind else config["noise"]["fraction"],
                "realised": None if corrupted is None else float(corrupted.mean()),
                "mean_change": change,
                "seed": config["noise"]["seed"],
                "sha256": self.noise.sha256,
            },
            "validation": self._validation(),
            "selection": self.selection,
            "origins": self.origins,
            "detection": None,
            "recovery": None,
            "learning": None,
            **finished,
            "seconds": seconds,
            "images_per_second": images / seconds if seconds else None,
            "epochs": len(self.rows),
            "seed": config["seed"],
            "restarts": self.restarts,
            "processes": world_size(),
            "device": device_name(config["device"]),
            "slurm": slurm(),
            "unreadable_images": {
                "count": len(self.unreadable),
                "paths": sorted(self.unreadable)[:100],
            },
            "error": None,
            "interrupted": None,
            "versions": versions(),
            "commit": commit(),
        }
        write_json(self.path / "summary.json", summary)

    def _by_rule(self):
        """``test``: the metric by every epoch rule; and other metrics at the same epochs."""
        columns = {key: [row.get(key, math.nan) for row in self.rows] for key in self._columns()}
        test, validation = columns.pop("test_metric", []), columns.get("validation_metric")
        rules = functools.partial(apply_rules, test, validation, self.metric.higher_is_better)
        parts = tuple(f"{part}_" for part in ("test", *self.data.more_tests))
        others = {key: rules(values) for key, values in columns.items() if key.startswith(parts)}
        return {"test": rules(), "at_the_same_epochs": others}

    def _columns(self):
        return dict.fromkeys(key for row in self.rows for key in row)

    def _validation(self):
        """What the epoch of the rule ``validated`` is chosen on, or what stands for the test part.

        That is what is held out, where there is no test part.
        """
        settings = self.config["validation"]
        if settings["folds"] is not None:
            held_out = {"folds": settings["folds"], "fold": settings["fold"]}
        elif settings["fraction"]:
            held_out = {"fraction": settings["fraction"]}
        else:
            own = {"fraction": 0, "labels": "the dataset's own"}
            return own if self.data.validation else None
        stands_for = {} if len(self.data.test) else {"part": "test"}
        return held_out | {"labels": "true" if settings["clean"] else "given"} | stands_for


def _digits(value):
    return f"{value:.6g}" if isinstance(value, float) else value


def slurm() -> dict | None:
    """The job of SLURM that this process belongs to, and how often it was requeued.

    None outside SLURM.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return {
        "job": f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"],
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
    }


def versions() -> dict:
    """The versions of Python and of the packages that numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
        "numpy": np.__version__,
    }


@functools.cache
def commit() -> str | None:
    """The git commit of this code, with -dirty if tracked files were changed.

    None outside a repository.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    command = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
