"""Files that must not be lost, and files that may hold anything: one line says what is wrong."""

import io
import os
import stat

import numpy as np
import pytest
import yaml

from tests.fixtures import make_run
from tests.test_run import interrupt_at
from utils.files import atomic_write, map_array, read_arrays
from utils.report.__main__ import main as report
from utils.run_directory import RunDirectory
from utils.run_state import write_failed
from utils.sweep.cells import Cell
from utils.sweep.runner import CellRunner

PLAIN = {"params": "params/digits/plain.yaml"}


def content_of(folder):
    """Name -> content of every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "names",
    [
        ["metrics.csv", "test.npz", "samples.npz", "suspects.csv", "failed.txt", "thesis.tex"],
        ["failed.txt"],
        [".lock"],
        ["summary.json"],
        ["losses.npy"],
    ],
    ids=len,
)
def test_a_folder_of_the_users_own_is_no_place_for_a_run(run, tmp_path, names):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("precious")
    before = content_of(folder)
    code, _, _, stderr = run(f"run_dir={folder}", **PLAIN)
    assert code == 2 and stderr.count("\n") == 1
    assert "is not the directory of a run" in stderr and sorted(names)[0] in stderr
    assert content_of(folder) == before


def test_what_a_run_leaves_before_its_configuration_is_no_obstacle(tmp_path):
    config = {"run_dir": str(tmp_path / "run"), "tensorboard": False}
    for reason in (None, "exit code 2: no such key", "killed by SIGKILL", "process 1: OSError: x"):
        with RunDirectory(config) as directory:
            (directory.path / ".config.yaml.tmp").write_text("dataset:")
        if reason is not None:
            write_failed(directory.path, reason)
    with RunDirectory(config):
        assert not (directory.path / "failed.txt").exists()


def test_a_lock_that_is_a_link_does_not_empty_its_target(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for begun in (False, True):
        folder = tmp_path / f"run{begun}"
        folder.mkdir()
        config = {"run_dir": str(folder), "tensorboard": False}
        if begun:
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / ".lock").symlink_to(tmp_path / "thesis.tex")
        with pytest.raises((OSError, ValueError), match=r"\.lock is a link"):
            RunDirectory(config)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_failed_cell_leaves_nothing_in_a_folder_that_is_no_run(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "failed.txt").write_text("precious")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    runner = CellRunner({})
    runner.command = ["false"]
    assert runner.run(Cell(0, [["x"]], [folder]), io.StringIO())[0] == "failed"
    assert content_of(folder) == {"failed.txt": b"precious"}


def test_only_regular_files_are_written_over(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "stdout").symlink_to("/dev/stdout")
    for name in ("fifo", "link", "stdout"):
        before = os.lstat(tmp_path / name)
        complaint = "is a link" if stat.S_ISLNK(before.st_mode) else "is no regular file"
        with pytest.raises(OSError, match=complaint), atomic_write(tmp_path / name) as file:
            file.write("x")
        assert os.lstat(tmp_path / name) == before
    # a link in the place of the temporary file
    (tmp_path / ".new.tmp").symlink_to(target)
    with atomic_write(tmp_path / "new") as file:
        file.write("x")
    assert (tmp_path / "new").read_text() == "x" and target.read_text() == "precious"


def test_the_page_does_not_replace_a_special_file(tmp_path, capsys):
    make_run(tmp_path / "runs/a", [90.0, 91.0])
    os.mkfifo(tmp_path / "page.html")
    assert report([str(tmp_path / "runs"), "--html", str(tmp_path / "page.html")]) == 2
    assert "page.html is no regular file" in capsys.readouterr().err
    assert (tmp_path / "page.html").is_fifo()


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda content: content[:1000], "losses.npy cannot be read"),
        (lambda content: content + b"x", "longer than its header says"),
        (lambda content: b"", "losses.npy cannot be read"),
        (lambda content: content.replace(b"3, 1297", b"1, 3891"), "must hold the losses of 3 epoc"),
        (lambda content: content[:128] + content[-5188:] * 3, "lacks the losses of epoch 0"),
    ],
    ids=["truncated", "longer", "empty", "shape", "old"],
)
def test_recorded_losses_that_are_damaged_are_an_error(run, monkeypatch, damage, complaint):
    options = ["record_losses=true", "model=mlp"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12)
        code, directory, *_ = run(*options, **PLAIN)
        assert code == 75
    path = directory / "losses.npy"
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    code, _, _, stderr = run(*options, **PLAIN)
    assert code in (1, 2) and complaint in stderr and stderr.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["noise.npz", "config.yaml", "summary.json"])
def test_a_damaged_file_of_an_interrupted_run_is_named(run, monkeypatch, name):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12)
        _, directory, *_ = run(**PLAIN)
    whole = (directory / name).read_bytes()
    contents = [b"", b"PK\3\4" + b"x" * 100, b"[]", b"null", b"\xff", b"{a"]
    contents += [] if name == "config.yaml" else [whole[:200]]  # which is another configuration
    for content in contents:
        (directory / name).write_bytes(content)
        code, _, _, stderr = run(**PLAIN)
        assert code == 2 and stderr.count("\n") == 1 and f"{directory / name} " in stderr, content
        assert (directory / name).read_bytes() == content
    (directory / name).unlink()
    os.mkfifo(directory / name)
    code, _, _, stderr = run(**PLAIN)
    assert code == 2 and f"{name} is no regular file" in stderr


def test_arrays_are_read_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(10**6), b=np.arange(3))
    assert read_arrays(path, ("b",), limit=1000)["b"].tolist() == [0, 1, 2]
    with pytest.raises(OSError, match="more than 1,000 bytes"):
        read_arrays(path, limit=1000)
    with pytest.raises(OSError, match="cannot be read"):
        read_arrays(path, ("c",))
    np.savez(path, a=np.array([print], object))
    with pytest.raises(OSError, match="allow_pickle"):
        read_arrays(path)
    np.save(tmp_path / "a.npy", np.array([[1, 2]]))
    with pytest.raises(OSError, match="cannot be read"):
        read_arrays(tmp_path / "a.npy")
    with pytest.raises(OSError, match=r"it is no \.npy"):
        map_array(path)
    assert map_array(tmp_path / "a.npy").tolist() == [[1, 2]]
    os.symlink(tmp_path / "a.npy", tmp_path / "link.npy")
    with pytest.raises(OSError, match="is a link"):
        map_array(tmp_path / "link.npy", "r+")
