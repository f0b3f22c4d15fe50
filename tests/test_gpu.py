"""What a GPU must do as well; and the queue of what is measured on one.

Each test is of the CPU, too: on a machine without a GPU it says that the test itself is right.
"""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
from benchmarks.gpu import Item, Queue, make_items
from tests.test_run import equal, interrupt_at, weights
from utils.run_state import read_summary

ROOT = Path(__file__).parents[1]
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
CONVOLUTIONS = ["model=cnn", "model.width=4"]


@pytest.fixture
def any_algorithms_afterwards():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("any_algorithms_afterwards")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["discrimloss", "co_teaching"])
def test_a_resumed_run_is_the_same_bit_for_bit(run, monkeypatch, device, method):
    options = {"params": f"params/digits/{method}.yaml"}
    overrides = [*CONVOLUTIONS, f"device={device}", "deterministic=true"]
    _, whole, *_ = run(*overrides, **options, name="whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 14)
        code, broken, *_ = run(*overrides, **options)
    assert code == main.INTERRUPTED
    assert run(*overrides, **options)[0] == 0
    assert equal(weights(whole), weights(broken))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["plain", "discrimloss", "superloss"])
def test_bf16_learns_as_much(run, device, method):
    overrides = [*CONVOLUTIONS, f"device={device}", "noise.fraction=0.2", "epochs=8"]
    ends = []
    for precision in ("fp32", "bf16"):
        params = f"params/digits/{method}.yaml"
        code, directory, *_ = run(
            *overrides, f"precision={precision}", params=params, name=precision
        )
        assert code == 0
        ends.append(read_summary(directory)["test"]["best"])
    assert min(ends) > 60 and abs(ends[0] - ends[1]) < 10


def rows_of(path):
    with open(path) as file:
        return {row["item"]: row for row in csv.DictReader(file)}


def test_the_queue_runs_what_fits_and_goes_on_where_it_stood(tmp_path):
    items = make_items("data", tmp_path / "work", toy=True)
    kept = [item for item in items if item.kind in ("throughput lenet false", "mnist")]
    kept.append(kept[1]._replace(name="the same again"))
    for folder in ("work", "out"):
        (tmp_path / folder).mkdir()
    Queue(kept, tmp_path / "work", minutes=0).run(tmp_path / "out")
    assert {row["state"] for row in rows_of(tmp_path / "out/items.csv").values()} == {
        "left: no time"
    }
    broken = kept[1]._replace(command=["-c", "raise SystemExit('no such thing')"])
    alike = broken._replace(name="another")
    Queue([broken, alike, kept[0]], tmp_path / "work", minutes=5).run(tmp_path / "out")
    rows = rows_of(tmp_path / "out/items.csv")
    assert rows[broken.name]["state"] == "failed with exit code 1: no such thing"
    assert "no such thing" in (tmp_path / "out/failures.txt").read_text()
    assert "another" not in rows  # of a kind that has just failed
    assert rows[kept[0].name]["state"] == "done" and float(rows[kept[0].name]["seconds"]) > 0
    assert (tmp_path / "out/throughput.csv").stat().st_size > 100
    (tmp_path / "elsewhere").mkdir()
    queue = Queue(kept[:2], tmp_path / "work", minutes=5)
    queue.run(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere/throughput.csv").exists()  # which an earlier call has made
    queue.run(tmp_path / "out")
    rows = rows_of(tmp_path / "out/items.csv")
    assert rows[kept[1].name]["state"] == "done"
    assert (tmp_path / "out/runs/runs.csv").exists()
    # the next one of its kind is expected to take as long as this one
    seconds = float(rows[kept[1].name]["seconds"])
    assert queue.estimate(kept[2]) == seconds != kept[2].seconds
    # a run goes on where it stood, a measurement begins anew
    assert queue.estimate(kept[1]) == 0 < queue.estimate(kept[0])


def test_runs_share_the_device_and_what_is_timed_has_it_alone(tmp_path):
    (tmp_path / "out").mkdir()
    meet = (
        "import pathlib, time\n"
        "own, other = (pathlib.Path('{folder}', name) for name in ('{name}', '{other}'))\n"
        "own.with_suffix('.begun').touch(), own.with_suffix('.on').touch()\n"
        "while not other.with_suffix('.begun').exists(): time.sleep(0.01)\n"
        "time.sleep(0.2)\n"
        "own.with_suffix('.on').unlink()\n"
    )
    alone = "import pathlib\nassert not list(pathlib.Path('{folder}').glob('*.on'))"
    runs = [
        Item(name, kind, 1, ["-c", meet.format(folder=tmp_path, name=name, other=other)])
        for name, other, kind in (("a", "b", "mnist"), ("b", "a", "cifar10n"))
    ]
    timed = Item("timed", "throughput", 1, ["-c", alone.format(folder=tmp_path)])
    queue = Queue([*runs, timed], tmp_path, minutes=1.5, jobs=2)
    queue.run(tmp_path / "out")
    assert {row["state"] for row in queue.rows.values()} == {"done"}
    assert not queue.children


def test_what_outlasts_the_queue_is_saved_and_goes_on(tmp_path, monkeypatch):
    for folder in ("work", "out"):
        (tmp_path / folder).mkdir()
    *_, item = make_items("data", tmp_path / "work", toy=True)
    directory = tmp_path / "work/runs/cifar10/discrimloss/seed1"
    assert item.seconds is None and f"run_dir={directory}" in item.command
    endless = item._replace(command=[*item.command, "epochs=100000"])
    queue = Queue([endless], tmp_path / "work", minutes=1.1)
    monkeypatch.setattr(queue, "_call", lambda item, limit: Queue._call(queue, item, 12))
    queue.run(tmp_path / "out")
    row = rows_of(tmp_path / "out/items.csv")[item.name]
    assert row["state"] == "interrupted" and float(row["seconds"]) > 10
    assert not read_summary(directory)["finished"]
    assert len((tmp_path / "out/unfinished.csv").read_text().splitlines()) > 3
    # what there is to come of an item that has begun
    assert queue.estimate(item._replace(seconds=60.0)) == 60 - float(row["seconds"])


def test_every_item_runs_at_toy_size(tmp_path):
    """But for the tests, which would call this one again, and the same once more, compiled."""
    items = make_items("data", tmp_path, toy=True)
    items = [item for item in items if item.kind != "sanity" and "true" not in item.kind]
    assert len(items) == 7
    for folder in ("work", "out"):
        (tmp_path / folder).mkdir()
    queue = Queue(items, tmp_path / "work", minutes=8)
    queue.run(tmp_path / "out")
    states = {item: row["state"] for item, row in rows_of(tmp_path / "out/items.csv").items()}
    assert set(states.values()) == {"done"}, states
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "the most valuable first" in done.stdout
