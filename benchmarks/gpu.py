"""What is to be measured on one GPU, the most valuable first, as far as the minutes reach.

    bash benchmarks/gpu.sh --minutes 11 --data DIR --out DIR
    bash benchmarks/gpu.sh --dry-cpu --out DIR      # each item at toy size on the CPU

An item is begun if its estimate fits into what is left of the minutes; the estimate is replaced by
the time that the slowest of its kind has taken here. After each item what there is is written into
the folder of --out: items.csv (what was done, how long it took, what was left), tests.txt,
failures.txt, throughput.csv, the compact log of the finished runs, and unfinished.csv, the epochs
of the others. What runs when the minutes are over, or four times as long as expected, is asked to
save and ends; called again, with the same --work, the queue goes on where it stood. What failed is
tried again then, and none of its kind is begun before. Folders are relative to the repository.

1. sanity: tests on the GPU: no step waits for it, bf16, resumed runs are the same bit for bit;
   beside them, warm: what 2 and 3 compile, which is kept for them
2. CIFAR-10N, the worst labels, preact ResNet-18, 30 epochs: Plain, also at a tenth of the rate, and
   at that with ten times the weight decay, DiscrimLoss, SuperLoss, GCE, one seed each
3. throughput: WRN-28-10, ResNet-18 and LeNet, the bare model, ours and, without compilation only,
   the usual loop; with the utilisation of the device
4. CIFAR-10N, two more seeds; MNIST, five seeds: the table of the paper
5. CIFAR-10, 40 % permuted, WRN-28-10, as many epochs as the time allows

Items of 1, and runs of 2 and 4, share the GPU, --jobs of them at a time: a single run keeps an H200
busy for a third of the time. Items that are timed have the GPU to themselves. benchmarks/README.md
says how the data get to a machine that takes them in pieces.
"""

import argparse
import contextlib
import csv
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from utils.files import atomic_write
from utils.run_state import read_summary
from utils.sweep.runner import failure_reason

ROOT = Path(__file__).parents[1]
GRACE = 20  # seconds that what is asked to save may take, of the minutes
CIFAR10N = ["noise.kind=human:worse", "model=preact_resnet18", "epochs=30"]
CIFAR10N += ["schedule={name: CosineAnnealingLR, T_max: 100% of epochs}"]
FAST = ["precision=bf16", "compile=true", "device=cuda"]
TOY = ["dataset={name: digits}", "noise={kind: symmetric, fraction: 0.4}", "model={name: mlp}"]
TOY += ["epochs=2", "schedule=null", "threads=1", "device=cpu"]
TINY_NETWORKS = {
    "wrn28_10": ["model={name: cnn, width: 4}"],
    "resnet18": ["model={name: cnn, width: 2}"],
}
# kinds, by the first word, that share the GPU with those of the same number
TOGETHER = {"sanity": 1, "warm": 1, "cifar10n": 2, "mnist": 2}
COLUMNS = ["item", "kind", "state", "seconds", "estimate"]


class Item(NamedTuple):
    """``kind``: items of one kind take about as long; ``seconds``: None if it takes what is left.

    ``command``: arguments of python.
    """

    name: str
    kind: str
    seconds: float | None
    command: list[str]


def group(item: Item) -> int | None:
    """Which items run side by side: those with the same number, one after another in the queue."""
    return TOGETHER.get(item.kind.split()[0])


def make_items(data: str, work: Path, toy: bool) -> list[Item]:
    """The queue, in order; at toy size, one item of each kind."""
    items = [
        *_sanity(toy),
        *_warm(data, work, toy),
        *_human_labels(data, work, toy, seeds=[1]),
        *_throughput(work, toy),
        *_human_labels(data, work, toy, seeds=[2, 3]),
        *_mnist(data, work, toy),
        *_wide_resnet(data, work, toy),
    ]
    first = {}
    for item in items:
        first.setdefault(item.kind, item)
    return list(first.values()) if toy else items


def _sanity(toy):
    tests = ["tests/test_cost.py", "tests/test_gpu.py", "-k", "cpu" if toy else "cuda"]
    if toy:
        tests = ["tests/test_gpu.py", "-k", "cpu and plain"]
    yield Item("sanity", "sanity", 40, ["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests])


def _warm(data, work, toy):
    own = [*CIFAR10N, "epochs=1"]
    yield _run("warm CIFAR-10N", "warm run", 60, "cifar10/plain", work / "warm", own, data, toy)
    yield from _throughput(work, toy, warm=True)


def _throughput(work, toy, warm=False):
    """``warm``: only what is to be compiled, and only as much as it takes to compile it."""
    kind = "warm" if warm else "throughput"
    for compiled in ["true"] if warm else ["false", "true"]:
        for name, params, steps, own in (
            ("resnet18", "cifar10/discrimloss", 100, ["model=resnet18", "noise.fraction=0.4"]),
            ("wrn28_10", "cifar10/discrimloss", 50, ["noise.fraction=0.4"]),
            ("lenet", "mnist/discrimloss", 390, ["noise.fraction=0.4"]),
        ):
            size = ["--synthetic", str(128 * steps), "--steps", str(steps), "--rounds", "3"]
            if toy or warm:
                size = ["--synthetic", "256", "--steps", "2", "--rounds", "1"]
            options = ["precision=bf16", f"compile={compiled}", "device=cuda"]
            if toy:
                options = [*TINY_NETWORKS.get(name, []), "threads=1", "device=cpu"]
            command = ["-m", "benchmarks.throughput", f"params/{params}.yaml", *size]
            command += ["--only", "bare", "ours", *["usual"] * (compiled == "false")]
            out = work / f"{kind}_{name}_{compiled}.csv"
            command += ["--usual-precision", "fp32", "--out", str(out)]
            command += [*own, *options]
            title = f"{kind} {name}, compile={compiled}"
            yield Item(title, f"{kind} {name} {compiled}", 50, command)


def _run(name, kind, seconds, params, directory, own, data, toy):
    options = [*own, *(TOY if toy else [*FAST, f"data_root={data}"]), f"run_dir={directory}"]
    return Item(name, kind, seconds, ["main.py", f"params/{params}.yaml", *options])


def _human_labels(data, work, toy, seeds):
    for seed in seeds:
        for method, params, own in (
            ("plain", "plain", []),
            ("plain_slow", "plain_slow", []),
            ("control", "plain_slow", ["optimizer.weight_decay=0.005", "label=control"]),
            ("discrimloss", "discrimloss", ["noise.fraction=0.4", "loss.q=50% of epochs"]),
            ("superloss", "superloss", []),
            ("gce", "gce", []),
        ):
            options = [*CIFAR10N, f"seed={seed}", *own]
            directory = work / f"runs/cifar10n/{method}/seed{seed}"
            name = f"CIFAR-10N, {method}, seed {seed}"
            yield _run(name, "cifar10n", 290, f"cifar10/{params}", directory, options, data, toy)


def _mnist(data, work, toy):
    methods = ("plain", "discrimloss", "superloss", "gce", "data_parameters")
    for seed in (1, 2, 3, 4, 5):
        for fraction in (0.4, 0.8, 0.2, 0.6, 0.0):
            for method in methods:
                directory = work / f"runs/mnist/{method}/{fraction}/seed{seed}"
                options = [f"noise.fraction={fraction}", f"seed={seed}"]
                name = f"MNIST, {method}, {fraction}, seed {seed}"
                yield _run(name, "mnist", 90, f"mnist/{method}", directory, options, data, toy)


def _wide_resnet(data, work, toy):
    directory = work / "runs/cifar10/discrimloss/seed1"
    options = ["noise.fraction=0.4", "seed=1"]
    name = "CIFAR-10, discrimloss, WRN-28-10"
    yield _run(name, "wide", None, "cifar10/discrimloss", directory, options, data, toy)


class Queue:
    """The items of a working folder, and what has become of them."""

    def __init__(self, items: list[Item], work: Path, minutes: float, jobs: int = 1):
        self.items, self.work, self.end = items, work, time.monotonic() + 60 * minutes
        self.jobs, self.lock, self.gathering = jobs, threading.Lock(), threading.Lock()
        self.children = set()
        self.rows, self.bad_kinds = {}, set()  # by item; what has failed in this call
        with contextlib.suppress(FileNotFoundError), open(work / "items.csv") as file:
            self.rows = {row["item"]: row for row in csv.DictReader(file)}

    def estimate(self, item: Item) -> float | None:
        """Seconds that are still to come: as the slowest of its kind took, or as expected.

        What a run has taken already counts; all else begins anew.
        """
        if item.seconds is None:
            return None
        taken = [
            float(row["seconds"])
            for row in self.rows.values()
            if row["kind"] == item.kind and row["state"] == "done"
        ]
        before = self._seconds(item) if item.command[0] == "main.py" else 0
        return max(max(taken, default=item.seconds) - before, 0)

    def run(self, out: Path):
        """Run what fits, and write what it found into ``out`` after each item."""
        for together, items in itertools.groupby(self.items, group):
            with ThreadPoolExecutor(self.jobs if together else 1) as pool:
                try:
                    list(pool.map(lambda item: self._run(item, out), items))  # raises what one does
                except BaseException:  # Ctrl-C: the pool waits for its threads
                    self.end = 0
                    for child in list(self.children):
                        child.terminate()
                    raise
        self.gather(out)

    def _run(self, item, out):
        with self.lock:
            done = self.rows.get(item.name, {}).get("state") == "done"
            if done or item.kind in self.bad_kinds:
                return
            left, estimate = self.end - time.monotonic() - GRACE, self.estimate(item)
            if left < max(estimate or 0, 2 * GRACE):
                if item.name not in self.rows:
                    self._note(item, "left: no time", 0)
                return
        print(f"{item.name}: {left:.0f} s left", flush=True)
        begun = time.monotonic()
        state = self._call(item, left if estimate is None else min(left, 4 * estimate + 60))
        seconds = time.monotonic() - begun
        print(f"{item.name}: {state}", flush=True)
        with self.lock:
            self._note(item, state, self._seconds(item) + seconds)
            if state.startswith("failed"):
                self.bad_kinds.add(item.kind)  # the next of its kind would, too
        with self.gathering:
            if time.monotonic() < self.end:  # else once, by the caller
                self.gather(out)

    def _seconds(self, item):
        return float(self.rows.get(item.name, {}).get("seconds", 0))

    def _call(self, item, limit) -> str:
        path = self.work / f"output{self.items.index(item)}.txt"
        with open(path, "w") as output:
            child = subprocess.Popen(
                [sys.executable, *item.command],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.children.add(child)
            try:
                code = child.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                child.terminate()  # a run saves, and ends
                code = None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=GRACE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # its workers, and itself if it hangs
            child.wait()
            self.children.discard(child)
        lines = path.read_text(errors="replace").splitlines()
        if item.kind == "sanity":
            shutil.copy(path, self.work / "tests.txt")
        path.unlink()
        if code == 0:
            return "done"
        with self.lock, open(self.work / "failures.txt", "a") as file:
            print(f"{item.name}: {code}", *lines[-60:], sep="\n", file=file)
        if code is None:
            return "interrupted"
        return f"failed with exit code {code}: {failure_reason(lines)[:200]}"

    def _note(self, item, state, seconds):
        row = [item.name, item.kind, state, f"{seconds:.0f}", item.seconds or ""]
        self.rows[item.name] = dict(zip(COLUMNS, row, strict=True))
        with atomic_write(self.work / "items.csv") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows.values())

    def gather(self, out: Path):
        """Copy what there is to take home: eight small files."""
        measured = [pd.read_csv(path) for path in sorted(self.work.glob("throughput_*.csv"))]
        if measured:
            with atomic_write(out / "throughput.csv") as file:
                pd.concat(measured).to_csv(file, index=False)
        for name in ("items.csv", "tests.txt", "failures.txt"):
            if (self.work / name).exists():
                shutil.copy(self.work / name, out / name)
        begun, finished = [], False
        for path in sorted((self.work / "runs").rglob("metrics.csv")):
            if read_summary(path.parent).get("finished"):
                finished = True
            else:
                begun.append(pd.read_csv(path).assign(run=path.parent.relative_to(self.work)))
        (out / "unfinished.csv").unlink(missing_ok=True)
        if begun:
            with atomic_write(out / "unfinished.csv") as file:
                pd.concat(begun).to_csv(file, index=False)
        if finished:
            command = [sys.executable, "-m", "utils.report", self.work / "runs"]
            command += ["--log", out / "runs"]
            done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
            if done.returncode:
                print(done.stderr, file=sys.stderr)


def main(arguments: list[str]):
    parser = argparse.ArgumentParser(
        "bash benchmarks/gpu.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=11, help="of this call, all in all")
    parser.add_argument("--data", default="data", help="where MNIST and CIFAR-10 are")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="what a later call goes on from: runs/gpu")
    kinds = ("sanity", "warm", "cifar10n", "throughput", "mnist", "wide")
    parser.add_argument("--only", nargs="+", choices=kinds, help="items of these kinds")
    jobs = {"type": int, "choices": range(1, 33), "default": 4, "metavar": "N"}
    parser.add_argument("--jobs", **jobs, help="runs that share the GPU; default: 4")
    parser.add_argument("--dry-cpu", action="store_true", help="each item at toy size, on the CPU")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: not without its children
    work = (options.work or ROOT / f"runs/gpu{'_dry' * options.dry_cpu}").resolve()
    for folder in (work, options.out):
        folder.mkdir(parents=True, exist_ok=True)
    items = make_items(options.data, work, options.dry_cpu)
    if options.only:
        items = [item for item in items if item.kind.split()[0] in options.only]
    queue = Queue(items, work, options.minutes, options.jobs)
    queue.run(options.out.resolve())
    states = [row["state"].split()[0] for row in queue.rows.values()]
    print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))


if __name__ == "__main__":
    main(sys.argv[1:])
