"""Runs and logs that somebody else has left, who may mean no good: report and status bear them."""

import os
import re
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from tests.fixtures import make_run
from tests.test_report import MNIST, change_summary, log_of
from utils.escapes import from_a_cell, in_a_cell, in_a_line, printable
from utils.exports import FinishedRun, write_suspects
from utils.metrics import METRICS
from utils.report.collect import collect
from utils.report.run_files import read_arrays
from utils.report.update import MARKER
from utils.run_state import run_state
from utils.sweep.__main__ import main as sweep

FILES = ("config.yaml", "summary.json", "metrics.csv", "failed.txt", "test.npz", "samples.npz")
HUGE = 10**400


@pytest.fixture
def runs(tmp_path):
    """A folder with a finished run in it, ``good``."""
    make_run(tmp_path / "runs/good", [96.0, 97.0], seed=1, **MNIST)
    return tmp_path / "runs"


def test_control_characters_are_escaped():
    assert printable("a\x1b[2J\x9b\t\n\u202e\udcffé") == "a\\x1b[2J\\x9b\t\n\\u202e\\udcffé"
    assert in_a_line("a\tb\r\nc") == "a\\tb\\r\\nc"
    assert in_a_line("x" * 400) == "x" * 297 + "..."


def test_cells_of_a_spreadsheet_are_no_formulas_and_numbers_stay_numbers():
    for text in ("=1+1", "@SUM(1)", "+1+1", "-1+cmd|' /C calc'!A0", "\t=1", "\r=1", "-a", "'=1"):
        assert in_a_cell(text) == f"'{text}" and from_a_cell(f"'{text}") == text
    for text in ("-1", "+0.5", "-1e-05", "-inf", "nan", "-", "-0.50 +- 0.02", "", "a=1", "'a"):
        assert in_a_cell(text) == from_a_cell(text) == text


def test_names_stay_names_in_every_format(run_report, runs, tmp_path):
    end = "<!-- end of report -->"
    name = f"A\x1b[2J\n\\input{{/etc/passwd}}\r%\n# {end}\n<script>\u2028=1"
    for seed, loss in ((1, name), (2, f"=1+{name}")):
        make_run(runs / f"evil{seed}", [96.0, 97.0], seed=seed, **MNIST, loss={"name": loss})
    (runs / "begun").mkdir()
    (runs / "begun/failed.txt").write_text("boo\033]0;title\007\nsecond line\n")
    for form in ("text", "markdown", "latex", "csv"):
        text, complaints = run_report(runs, "--format", form)
        assert not re.search("[\x00-\x08\x0b-\x1f\u2028]", text + complaints)
        assert not re.search(r"^\s*(\\input|#|<|second line)", text + complaints, re.MULTILINE)
        assert "4 finished runs" not in complaints and "3 finished runs" in complaints
        assert form != "markdown" or end not in text
        assert form != "csv" or ",'=1+A" in text
    run_report(runs, "--html", tmp_path / "page.html", "--figures", tmp_path / "pictures")
    assert "<script>\\u2028" not in (tmp_path / "page.html").read_text()
    readme = f"<!-- report x -->\n{run_report(runs, '--format', 'markdown')[0]}{end}\n"
    assert MARKER.fullmatch(readme.rstrip("\n"))


def test_a_log_of_hostile_names_is_read_like_the_runs(runs, tmp_path):
    for number, name in enumerate(("=1+1", "@x", "-2+3", "\tx", "'=1")):
        make_run(runs / f"{number}", [96.0, 97.0], seed=1, **MNIST, loss={"name": name})
    results = collect([runs])
    files = log_of(results, tmp_path / "log")
    assert ",'=1+1," in files["runs.csv"] and ",=1+1," not in files["runs.csv"]
    again = collect([tmp_path / "log"])
    assert set(again.table.label) == set(results.table.label) >= {"=1+1", "'=1"}
    assert log_of(again, tmp_path / "log") == files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["fifo", "link to a device", "link", "folder"])
def test_special_files_are_left_alone(runs, tmp_path, name, kind):
    make_run(runs / "evil", [96.0, 97.0], seed=2, **MNIST)
    (tmp_path / "secret").write_text("secret: [precious\n")
    path = runs / "evil" / name
    path.unlink(missing_ok=True)
    if name == "failed.txt":
        (runs / "evil/summary.json").unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if "device" in kind else tmp_path / "secret")
    results = collect([runs])
    skipped = dict(results.skipped)
    assert read_arrays(runs / "evil/test.npz", ("loss",), skipped) is None
    assert read_arrays(runs / "evil/samples.npz", ("loss",), skipped) is None
    complaints = f"{results.unfinished} {skipped}"
    assert f"evil/{name}" in complaints and "precious" not in complaints
    assert "precious" not in run_state(runs / "evil")[1]


def test_a_file_of_aliases_does_not_fill_the_memory(run_report, runs):
    make_run(runs / "evil", [96.0, 97.0], seed=2, **MNIST)
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 32)]
    for more in ("\n".join(lines), "b: &b [*b]", "c: &c {<<: [*c, *c]}", "d: " + "[" * 900):
        config = (runs / "good/config.yaml").read_text().replace("seed: 1", "seed: 2")
        (runs / "evil/config.yaml").write_text(f"{config}\n{more}\n")
        text, complaints = run_report(runs)
        assert "Plain" in text and "evil/config.yaml cannot be read" in complaints
        assert "1 finished runs, 0 not finished, 1 skipped" in complaints


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"name": {}}},
        {"loss": {"name": 3}},
        {"loss": {"name": ["a"]}},
        {"loss": {"name": "x" * 5000}},
        {"loss": []},
        {"model": {"name": ["cnn"]}},
        {"model": {"name": {}}},
        {"model": "cnn"},
        {"dataset": {"name": "a", "file": [1]}},
        {"dataset": {"name": "a", "selection": [1]}},
        {"noise": {"kind": 3, "fraction": 0.4}},
        {"noise": {"kind": "pair", "fraction": HUGE}},
        {"noise": {"kind": "pair", "fraction": float("nan")}},
        {"noise": {"kind": "pair", "fraction": float("inf")}},
        {"seed": HUGE},
        {"seed": None},
        {"seed": -1},
        {"seed": [1]},
        {"batch_size": HUGE},
        {"task": ["regression"]},
        {"threads": "all"},
        {3: {4: 5}},
    ],
    ids=repr,
)
def test_a_configuration_that_is_none_is_skipped(runs, changes):
    make_run(runs / "evil", [96.0, 97.0], seed=2, **MNIST)
    path = runs / "evil/config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    results = collect([runs])
    assert len(results.table) == 1 and list(results.skipped) == [str(runs / "evil")]


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": float("inf")},
        {"epochs": HUGE},
        {"epochs": "2"},
        {"seconds": HUGE},
        {"seconds": [1]},
        {"device": ["cpu"]},
        {"device": "x" * 10**6},
        {"commit": {}},
        {"metric": ["accuracy"]},
        {"test": {"last": 1e300, "best": 1.0}},
        {"test": {"last": [1], "best": 1.0}},
        {"test": []},
        {"noise": []},
        {"detection": {"auroc": HUGE}},
        {"detection": {"auroc": "0.9"}},
        {"detection": [1]},
        {"selection": {"precision": "x"}},
        {"selection": "x"},
        {"at_the_same_epochs": {"test_rmse": {"last": "x"}}},
        {"at_the_same_epochs": {f"test_{i}": {"last": 1.0} for i in range(2000)}},
        {"at_the_same_epochs": [1]},
        {"processes": "two"},
        {"finished": [0]},
    ],
    ids=lambda changes: repr(changes)[:60],
)
def test_a_summary_that_is_none_is_skipped(runs, changes):
    make_run(runs / "evil", [96.0, 97.0], seed=2, **MNIST)
    change_summary(runs / "evil", **changes)
    (runs / "evil/metrics.csv").unlink()
    results = collect([runs])
    assert len(results.table) == 1 and list(results.skipped) == [str(runs / "evil")]
    assert run_state(runs / "evil")[0] in ("done", "failed")


@pytest.mark.parametrize(
    "content",
    [
        "epoch,test_metric\n0,1e300\n1,2\n",
        "epoch,test_metric\n0,inf\n1,2\n",
        "epoch,test_metric,test_metric\n0,1,1\n1,2,2\n",
        "epoch,test_metric,config\n0,1,1\n1,2,2\n",
        "epoch,test_metric,label\n0,1,1\n1,2,2\n",
        "epoch,test_metric," + ",".join(f"test_{i}" for i in range(3000)) + "\n",
        "epoch,test_metric\n0," + "9" * 200_000 + "\n1,2\n",
        "epoch,test_metric\n0,1\0\n1,2\n",
        "",
    ],
    ids=lambda content: content[:40],
)
def test_epochs_that_are_none_are_left_out(runs, content):
    make_run(runs / "evil", [96.0, 97.0], seed=2, **MNIST)
    (runs / "evil/metrics.csv").write_text(content)
    results = collect([runs])
    assert len(results.table) == 2 and list(results.skipped) == [str(runs / "evil/metrics.csv")]
    assert len(results.epochs) == 2


@pytest.mark.parametrize(
    "column, value",
    [
        ("method", "a\x1b"),
        ("config", "x\x1b"),
        ("mass_incorrect", "x"),
        ("hard_test", "x"),
        ("device", "x" * 5000),
        ("seed", -1.5),
        ("seconds", 1e300),
        ("fraction", 7),
    ],
)
def test_a_log_that_is_none_is_skipped(run_report, runs, tmp_path, column, value):
    log_of(collect([runs]), tmp_path / "log")
    path = tmp_path / "log/runs.csv"
    pd.read_csv(path).assign(**{column: value}).to_csv(path, index=False)
    if column == "config":
        configs = yaml.safe_load((tmp_path / "log/configs.yaml").read_text())
        (tmp_path / "log/configs.yaml").write_text(yaml.safe_dump({value: configs.popitem()[1]}))
    text, complaints = run_report(runs, tmp_path / "log", "--hard")
    skipped = "the same configuration and seed" if column == "method" else "not the files of a run"
    assert skipped in complaints and "1 finished runs" in complaints and "\x1b" not in text


def test_a_picture_that_is_none_is_left_out(run_report, runs, tmp_path):
    for size in ((1, 3000), (30000, 1)):
        Image.new("1", size).save(runs / "good/suspects.png")
        _, complaints = run_report(runs, "--figures", tmp_path / "pictures")
        assert f"it has {size[0]} x {size[1]} pixels" in complaints
    (runs / "good/suspects.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    assert "suspects.png" in run_report(runs, "--figures", tmp_path / "pictures")[1]


def test_arrays_that_are_none_are_left_out(run_report, runs, tmp_path):
    names, path = ("score", "given", "true"), runs / "good/samples.npz"
    for array in (np.zeros((2, 3)), np.array([True, False]), np.array(0), np.array(["a"])):
        np.savez(path, **dict.fromkeys(names, array))
        assert "samples.npz" in run_report(runs, "--figures", tmp_path / "pictures")[1]
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, "
    header += b"'shape': (10000000000000,), }"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(f"{name}.npy", header.ljust(127) + b"\n" + bytes(10**6))
    assert "samples.npz" in run_report(runs, "--figures", tmp_path / "pictures")[1]


def test_one_damaged_run_does_not_hide_the_state_of_the_others(tmp_path, capsys):
    make_run(tmp_path / "good", [96.0, 97.0], seed=1, **MNIST)
    contents = ["null", "[]", "3", '{"finished": true}', '{"finished": fal', "[" * 100_000, "\0"]
    contents += [
        '{"finished": true, "metric": "accuracy", "test": {"last": [1]}}',
        '{"epochs": {}}',
    ]
    contents += ['{"finished": "\\u001b[2J"}', '{"error": 3}', '{"epochs": ' + "9" * 400 + "}"]
    for number, content in enumerate(contents):
        directory = tmp_path / f"evil{number}"
        directory.mkdir()
        (directory / "config.yaml").write_text("seed: 1")
        (directory / "summary.json").write_text(content)
        state, detail = run_state(directory)
        assert state == "failed" and "summary.json" in detail, content
        assert detail == in_a_line(detail)
    for name in (".lock", "failed.txt", "config.yaml"):
        (tmp_path / f"fifo{name}").mkdir()
        (tmp_path / f"fifo{name}/config.yaml").write_text("seed: 1")
        (tmp_path / f"fifo{name}" / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / f"fifo{name}" / name)
    assert sweep(["status", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall("^ *[0-9]+  (?:done|failed|interrupted) ", printed, re.MULTILINE)) == 16
    assert "done" in printed and "1 done" in printed


def test_main_names_the_summary_that_is_damaged(run):
    _, directory, *_ = run("epochs=1", params="params/digits/plain.yaml")
    for content in ('{"finished": true}', "null", '{"finished": fal'):
        (directory / "summary.json").write_text(content)
        code, _, _, stderr = run("epochs=1", params="params/digits/plain.yaml")
        assert code == 2 and stderr.count("\n") == 1
        assert f"{directory}/summary.json" in stderr and "remove it" in stderr
    (directory / "summary.json").unlink()
    assert run("epochs=1", params="params/digits/plain.yaml")[0] == 0


def finished_run(path, num_samples, classes, texts=None):
    """A FinishedRun of which all samples are flagged, without a dataset behind it."""
    index = np.arange(num_samples)
    numbers = dict.fromkeys(("score", "loss", "mean_loss"), index / num_samples)
    numbers["quality"] = 1 - numbers["score"]
    labels = dict.fromkeys(("given", "predicted", "true"), index % len(classes))
    samples = {"index": index, "flagged": index >= 0, **labels, **numbers}
    train = SimpleNamespace(texts=texts, source=None)
    data = SimpleNamespace(classes=classes, train=train)
    return FinishedRun(path, data, METRICS["accuracy"], samples, None, None, None, "")


def test_suspects_are_cells_that_no_spreadsheet_computes(tmp_path):
    classes = ("=1+1", "@x", "-2", "b")
    write_suspects(finished_run(tmp_path, 4, classes, ["+1+1", "\tx", "'=1", "text"]))
    table = pd.read_csv(tmp_path / "suspects.csv", dtype=str)
    assert table.given_label.tolist() == ["b", "-2", "'@x", "'=1+1"]
    assert table.text.tolist() == ["text", "''=1", "'\tx", "'+1+1"]
    assert table.score.astype(float).tolist() == [0.75, 0.5, 0.25, 0]


def test_suspects_are_limited_and_say_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("utils.exports.MAX_SUSPECTS", 1500)
    for number, lines in ((1200, 1200), (1501, 1500)):
        assert not capsys.readouterr().out
        write_suspects(finished_run(tmp_path, number, ("a", "b")))
        assert len(pd.read_csv(tmp_path / "suspects.csv")) == lines
    assert "lists the 1,500 most suspicious of 1,501 flagged samples" in capsys.readouterr().out
