"""A run's directory: who may write it, and the files in it."""

import contextlib
import csv
import fcntl
import functools
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from tqdm import tqdm

from utils.config import differences
from utils.detection import measure_detection, wrong_labels
from utils.device import device_name
from utils.distributed import (
    OtherProcessFailed,
    all_gather_objects,
    fail_together,
    main_process_only,
    rank,
    world_size,
)
from utils.epoch_rules import apply_rules
from utils.errors import UserError
from utils.files import atomic_write
from utils.metrics import Metric
from utils.plots import draw_curves, draw_samples, draw_suspects, draw_targets
from utils.run_state import FAILED, LOCK, read_summary

COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_metric",
    "test_metric",
    "seconds",
    "images_per_second",
)  # metrics.csv begins so
# suspects.csv lists at least these many of the most suspicious samples, and all that are flagged
NUM_SUSPECTS = 1000


class RunDirectory:
    """The directory of one run: its lock, its configuration, and the rows of its metrics.csv.

    The rows are part of the checkpoint (``state_dict``): with the first row after a resumption,
    metrics.csv no longer holds those of the epochs that are trained again. Of several processes the
    first alone locks it and writes.

    Raises:
        ValueError: it is the directory of a run with another configuration, or another process is
            writing it.
        OSError: it cannot be written.
    """

    def __init__(self, config: dict):
        self.path, self.config = Path(config["run_dir"]), config
        self.rows: list[dict] = []
        self.restarts, self.noise, self.lock, self.unreadable = 0, None, None, {}
        self.scalars = None
        if config["tensorboard"] and importlib.util.find_spec("tensorboard") is None:
            raise UserError(
                "tensorboard=true needs a package that is not here: pip install tensorboard"
            )
        with fail_together():
            self._open()
        self.finished = all_gather_objects(bool(self.summary().get("finished")))[0]

    @main_process_only
    def _open(self):
        self._compare_config()
        if self.summary().get("finished"):
            print(f"{self.path} is finished: {self.describe()}")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            self._compare_config()  # again: another process may have begun in between
            (self.path / FAILED).unlink(missing_ok=True)
            if self.summary():  # of an attempt before this one
                self._write_json(self.summary() | {"error": None, "interrupted": None})

    def _compare_config(self):
        path = self.path / "config.yaml"
        if path.exists():
            changed = differences(yaml.safe_load(path.read_text()), self.config)
            if changed:
                lines = "\n  ".join(changed)
                raise UserError(
                    f"{self.path} holds a run with another configuration:\n  {lines}\n"
                    f"choose another run_dir=, or remove that one"
                )

    def _lock(self):
        lock = open(self.path / LOCK, "a+")  # noqa: SIM115  the kernel lets go of it when the process ends, however it ends
        for _ in range(20):  # somebody may be looking whether it is held, or about to let go of it
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError as error:
                lock.close()
                raise OSError(
                    f"{self.path} lies on a file system without locks ({error}), which keep two processes from "
                    f"writing one run: choose another run_dir=; on Lustre, have it mounted with -o flock"
                ) from None
        else:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise UserError(
                f"another process ({owner}) is writing {self.path}; wait for it, or choose another run_dir="
            )
        self.lock = lock
        os.register_at_fork(
            after_in_child=lock.close
        )  # else processes that read images could hold it for longer
        self.lock.truncate(0)
        self.lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self.lock.flush()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """Say in summary.json what ended the run, if an error did, and let another process write
        here.
        """
        failed = isinstance(error, (Exception, OtherProcessFailed)) and not isinstance(
            error, BrokenPipeError
        )
        if (
            failed and rank() and not isinstance(error, (RuntimeError, OtherProcessFailed))
        ):  # those: of another one's end
            with contextlib.suppress(OSError):
                (self.path / FAILED).write_text(f"process {rank()}: {kind.__name__}: {error}\n")
        if (
            failed and self.noise is not None
        ):  # not where only the reader of the output has gone: the launcher was killed
            with contextlib.suppress(OSError):  # the disk may be what is wrong
                if not self.summary():
                    self.write_summary()
                self._write_json(self.summary() | {"error": f"{kind.__name__}: {error}"})
        if self.scalars:
            self.scalars.close()
        if self.lock:
            self.lock.close()

    def state_dict(self) -> dict:
        return {"rows": self.rows, "restarts": self.restarts}

    def load_state_dict(self, state: dict):
        self.rows, self.restarts = state["rows"], state["restarts"] + 1

    def summary(self) -> dict:
        """summary.json as it is, {} where there is none."""
        return read_summary(self.path)

    @main_process_only
    def begin(
        self, data, noise, metric: Metric, epochs: int, selection, unreadable: dict[str, str]
    ):
        """Write config.yaml and noise.npz, once all is built and nothing wrong with it; ``metric``:
        of the test set.

        ``unreadable`` is where files that cannot be read will be noted. With a selection of samples
        selection.npz too, and with ``record_losses`` a losses.npy without losses. Raises ValueError
        if the run was begun with other labels or another selection, e.g. because a file has
        changed.
        """
        self.data, self.noise, self.metric, self.selection, self.unreadable = (
            data,
            noise,
            metric,
            selection,
            unreadable,
        )
        print(f"{self.path}: {data}", flush=True)
        with atomic_write(self.path / "config.yaml") as file:
            yaml.safe_dump(self.config, file, sort_keys=False)
        self._write_or_compare(
            "noise.npz",
            "labels",
            ["sha256"],
            given=noise.given,
            true=noise.true,
            index=np.arange(len(noise.given)),
            transition=noise.transition,
            sha256=noise.sha256,
        )
        if data.made_split:
            self._write_split()
        if selection is not None:
            known = ("counts", "precision", "recall", "precision_per_class", "recall_per_class")
            self._write_or_compare(
                "selection.npz",
                "selected samples",
                ["index", "weight"],
                index=selection.index,
                weight=selection.weight,
                mean_loss=selection.mean_loss,
                **{
                    key: np.array(selection.report[key], float)
                    for key in known
                    if key in selection.report
                },
            )
        losses = self.path / "losses.npy"
        if self.config["record_losses"] and not losses.exists():
            if any(self.path.glob("checkpoint*.pt")):
                raise UserError(
                    f"{losses} is gone, and with it the losses of the epochs that are over: put it back, or "
                    f"remove {self.path} to start again"
                )
            with atomic_write(losses, "wb") as file:
                np.save(file, np.full((epochs, len(noise.given)), np.nan, np.float32))

    def _write_split(self):
        """split.csv.

        Which files are the training and the test part; raises ValueError where that has changed
        since.
        """
        path, content = self.path / "split.csv", io.StringIO()
        parts = {"train": self.data.train.inputs, "test": self.data.test.inputs}
        root = os.path.commonpath(
            [os.path.dirname(os.path.abspath(name)) for names in parts.values() for name in names]
        )
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow(["part", "path"])
        writer.writerows(
            [part, os.path.relpath(name, root)] for part, names in parts.items() for name in names
        )
        if not path.exists():
            with atomic_write(path) as file:
                file.write(content.getvalue())
        elif path.read_text(encoding="utf-8", errors="surrogateescape") != content.getvalue():
            raise UserError(
                f"the files are no longer those that {path} lists: choose another run_dir="
            )

    def _write_or_compare(self, name, what, keys, **arrays):
        """Write a file of arrays, or raise ValueError where there is one that differs in these of
        them.
        """
        path = self.path / name
        if not path.exists():
            with atomic_write(path, "wb") as file:
                np.savez_compressed(file, **arrays)
            return
        with np.load(path) as before:
            same = all(np.array_equal(before[key], arrays[key]) for key in keys)
        if not same:
            raise UserError(
                f"the {what} are not those that {path} says the run was begun with; choose another run_dir="
            )

    @main_process_only
    def add_losses(
        self,
        epoch: int,
        task_loss: Callable,
        output: torch.Tensor,
        target: torch.Tensor,
        index: torch.Tensor,
    ):
        """Write the losses of these samples into the row of ``epoch`` of losses.npy [E, N].

        Held-out samples stay NaN.
        """
        history = np.load(self.path / "losses.npy", mmap_mode="r+")
        history[epoch, index.numpy()] = task_loss(output, target).numpy()
        history.flush()

    @main_process_only
    def add_row(self, row: dict):
        """Add an epoch to metrics.csv and summary.json, and print it in a line."""
        columns = [key for key in COLUMNS if key in row] + [
            key for key in row if key not in COLUMNS
        ]
        self.rows.append({key: row[key] for key in columns})
        with atomic_write(self.path / "metrics.csv") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {
                    key: f"{value:.6g}" if isinstance(value, float) else value
                    for key, value in row.items()
                }
                for row in self.rows
            )
        self._write_scalars()
        self.write_summary()
        trained = (
            ""
            if np.isnan(row["train_metric"])
            else f"  {self.metric.name} {row['train_metric']:.2f}"
        )
        print(
            f"epoch {row['epoch']:>3}  lr {row['lr']:.3g}  train loss {row['train_loss']:.4f}{trained}  test "
            f"{row['test_metric']:.2f}  {row['images_per_second']:.0f} images/s",
            flush=True,
        )

    def _write_scalars(self):
        """With ``tensorboard`` the columns of metrics.csv as scalars, those of the epochs before
        this process too.
        """
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
    def interrupted(self, number: str, epoch: int, step: int):
        """Say, also in summary.json, that the signal of that name ended the run, which goes on from
        there.
        """
        self.write_summary()
        self._write_json(self.summary() | {"interrupted": number})
        print(f"{number}: saved at epoch {epoch}, step {step}; the same command goes on from there")

    def progress(self, loader, epoch: int, step: int) -> tqdm:
        """A progress bar over the batches of ``epoch`` from ``step`` on, in the first process and
        where there is a terminal.
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

    @main_process_only
    def finish(self, tested: dict[str, np.ndarray], table: dict[str, np.ndarray]):
        """Write what is known of every test sample and every training sample, the pictures and the
        finished summary.
        """
        order = np.argsort(-table["score"], kind="stable")
        self._write_samples(table, order)
        with atomic_write(self.path / "test.npz", "wb") as file:
            np.savez_compressed(file, **tested)
        if self.data.is_images:
            self._draw_sheets(table, order)
        draw_curves(self.path, self.metric)
        draw_samples(self.path)
        if not self.data.classes:
            draw_targets(self.path)
        self.write_summary(detected=measure_detection(table))
        print(f"{self.path}: {self.describe()}")

    def _draw_sheets(self, table, order):
        """The most suspicious samples, and, where the truth is known, the correct ones that the
        network finds hardest.
        """
        hardest = np.argsort(-table["loss"], kind="stable")
        incorrect = wrong_labels(table["given"], table["true"])
        sheets = {"suspects.png": order} | (
            {} if incorrect is None else {"hardest.png": hardest[~incorrect[hardest]]}
        )
        for name, rows in sheets.items():
            first = {key: values[rows[:64]] for key, values in table.items()}
            draw_suspects(self.path / name, first, self._label, self.data.train.inputs)

    def _label(self, label) -> str:
        """A label in words; "" where it is unknown."""
        if self.data.classes:
            return self.data.classes[label] if label >= 0 else ""
        return "" if np.isnan(label) else f"{label:.6g}"

    def _write_samples(self, table, order):
        """samples.npz, a row per training sample.

        And suspects.csv, the most suspicious of them, in words, in this order.
        """
        with atomic_write(self.path / "samples.npz", "wb") as file:
            np.savez_compressed(file, **table)
        part = self.data.train
        shown, names = (
            ("text", part.texts)
            if part.texts
            else ("path", part.inputs if isinstance(part.inputs, list) else None)
        )
        with atomic_write(self.path / "suspects.csv") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(
                [
                    "rank",
                    "index",
                    shown,
                    "given_label",
                    "predicted_label",
                    "score",
                    "loss",
                    "mean_loss",
                    "flagged",
                    "true_label",
                ]
            )
            for rank, row in enumerate(
                order[: max(NUM_SUSPECTS, int(table["flagged"].sum()))], start=1
            ):
                index = table["index"][row]
                given, predicted, true = (
                    self._label(table[key][row]) for key in ("given", "predicted", "true")
                )
                numbers = [f"{table[key][row]:.6g}" for key in ("score", "loss", "mean_loss")]
                writer.writerow(
                    [
                        rank,
                        index,
                        names[index] if names else "",
                        given,
                        predicted,
                        *numbers,
                        int(table["flagged"][row]),
                        true,
                    ]
                )

    def write_summary(self, detected: dict | None = None):
        """summary.json; ``detected`` is given once the run is finished."""
        kind = self.config["noise"]["kind"]
        corrupted = self.noise.corrupted
        columns = pd.DataFrame(self.rows).to_dict("list")
        rule = functools.partial(
            apply_rules,
            columns.get("test_metric", []),
            columns.get("validation_metric"),
            self.metric.higher_is_better,
        )
        parts = tuple(f"{part}_" for part in ("test", *self.data.more_tests))
        seconds = sum(row["seconds"] for row in self.rows)
        images = sum(row["seconds"] * row["images_per_second"] for row in self.rows)
        self._write_json(
            {
                "finished": detected is not None,
                "data": str(self.data),
                "metric": self.metric.name,
                "test": rule(),
                "at_the_same_epochs": {
                    key: rule(values=values)
                    for key, values in columns.items()
                    if key.startswith(parts) and key != "test_metric"
                },
                "noise": {
                    "kind": kind,
                    "requested": None if ":" in kind else self.config["noise"]["fraction"],
                    "realised": None if corrupted is None else float(corrupted.mean()),
                    "mean_change": None
                    if corrupted is None or self.data.classes
                    else float(np.abs(self.noise.given - self.noise.true).mean()),
                    "seed": self.config["noise"]["seed"],
                    "sha256": self.noise.sha256,
                },
                "validation": self._validation(),
                "selection": None if self.selection is None else self.selection.report,
                "detection": detected,
                "seconds": seconds,
                "images_per_second": images / seconds if seconds else None,
                "epochs": len(self.rows),
                "seed": self.config["seed"],
                "restarts": self.restarts,
                "processes": world_size(),
                "device": device_name(self.config["device"]),
                "slurm": slurm(),
                "unreadable_images": {
                    "count": len(self.unreadable),
                    "paths": sorted(self.unreadable)[:100],
                },
                "error": None,
                "interrupted": None,
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "torchvision": importlib.metadata.version("torchvision"),
                    "numpy": np.__version__,
                },
                "commit": commit(),
            }
        )

    def _validation(self):
        """What the epoch of ``validated`` is chosen on."""
        if self.config["validation"]["fraction"]:
            return {
                "fraction": self.config["validation"]["fraction"],
                "labels": "true" if self.config["validation"]["clean"] else "given",
            }
        return {"fraction": 0, "labels": "the dataset's own"} if self.data.validation else None

    def _write_json(self, summary):
        with atomic_write(self.path / "summary.json") as file:
            json.dump(summary, file, indent=1)

    def describe(self) -> str:
        """A finished run in one line."""
        summary = self.summary()
        test, auroc = summary["test"], (summary["detection"] or {}).get("auroc")
        rules = "  ".join(
            f"{rule} {value:.2f}"
            for rule, value in test.items()
            if rule != "best_epoch" and value is not None
        )
        return f"test {summary['metric']}: {rules}" + (
            f"; AUROC of incorrect labels {auroc:.4f}" if auroc is not None else ""
        )


def slurm() -> dict | None:
    """The job of SLURM that this process belongs to, and how often SLURM has put it back into the
    queue; None outside one.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return {
        "job": f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"],
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
    }


@functools.cache
def commit() -> str | None:
    """The git commit of this code, with -dirty where tracked files were changed.

    None outside a repository.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        return subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
