"""Data that change after a run: a finished one says so too, unless they have only moved."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from datasets.contents import contents
from tests.test_datasets import write_tree
from utils.errors import UserError

FOLDER = [
    "dataset.image_size=8",
    "dataset.num_workers=0",
    "dataset.crop_scale=1",
    "schedule=null",
    "epochs=1",
]


@pytest.fixture
def finished(run, tmp_path):
    """Starts the same run on a folder of images again and again: its code and what it printed."""
    write_tree(tmp_path / "a")

    def call(*options, root="a"):
        params = "params/folder/plain.yaml"
        code, _, printed, complaints = run(
            f"data_root={tmp_path / root}", *FOLDER, *options, params=params
        )
        return code, printed + complaints

    assert call()[0] == 0
    return call


def test_moved_data_are_the_same(finished, tmp_path):
    (tmp_path / "a").rename(tmp_path / "b")
    code, printed = finished(root="b")
    assert code == 0 and "is finished: test accuracy" in printed and "warning" not in printed
    code, printed = finished(root="a")
    assert code == 0 and "is finished" in printed and "warning: the data are not there" in printed
    code, printed = finished(f"dataset.root={tmp_path}/b")  # named otherwise
    assert code == 0 and "is finished" in printed
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    next((tmp_path / "c/train").glob("*/*")).unlink()
    code, printed = finished(f"dataset.root={tmp_path}/c")
    assert code == 2 and "its data have changed since" in printed


def test_a_relabelled_image_is_noticed(finished, tmp_path):
    (tmp_path / "a/train/dog/1.jpg").rename(tmp_path / "a/train/cat/moved.jpg")
    code, printed = finished()
    assert code == 2 and printed.count("\n") == 1
    assert (
        "is finished, but its data have changed since: train had 3 samples of class cat" in printed
    )
    assert (
        "and has 4, train had 5 samples of class dog and has 4; choose another run_dir" in printed
    )


@pytest.mark.parametrize("what", ["renamed", "mended", "another"])
def test_other_images_are_noticed(finished, tmp_path, what):
    path = tmp_path / "a/test/cat/0.png"
    if what == "renamed":
        path.rename(path.with_name("new.png"))
    elif what == "mended":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        (tmp_path / "b/test/cat/0.png").unlink()
    code, printed = finished(root="b" if what == "another" else "a")
    assert code == 2 and "its data have changed since: test had" in printed.replace(
        "test has other samples, labels or sizes of files", "test had"
    )


def test_an_unfinished_run_notices_the_same(finished, tmp_path):
    summary = tmp_path / "run/summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"finished": False}))
    path = tmp_path / "a/test/cat/0.png"
    path.rename(path.with_name("new.png"))
    code, printed = finished()
    assert code == 2 and "data.json says the run was begun with: test has other" in printed


def test_an_older_run_has_nothing_to_compare(finished, tmp_path):
    (tmp_path / "run/data.json").unlink()
    (tmp_path / "a/train/dog/1.jpg").unlink()
    assert finished()[0] == 0
    (tmp_path / "run/data.json").write_text('{"train')
    code, printed = finished()
    assert code == 2 and "data.json cannot be read" in printed


def test_labels_of_noise_in_a_file_that_was_corrected_are_noticed(run, tmp_path):
    labels = pd.DataFrame({"given": [0, 1] * 648 + [0]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    options = [f"noise.kind=file:{tmp_path}/labels.csv", "epochs=1"]
    assert run(*options)[0] == 0
    labels.assign(note="x").to_csv(tmp_path / "labels.csv", index=False)  # which is not read
    assert run(*options)[0] == 0
    labels.loc[7, "given"] = 0
    labels.to_csv(tmp_path / "labels.csv", index=False)
    code, _, _, complaints = run(*options)
    assert code == 2 and "noise.kind has other samples, labels or" in complaints


def test_targets_of_another_run_are_compared(tmp_path):
    path, spec = tmp_path / "labels.npz", {"name": "digits"}

    def now():
        return contents(
            spec, noise_kind="none", targets=str(path), recording=None, data_root="data"
        )

    np.savez_compressed(path, labels=np.arange(5))
    before = now()
    np.savez(path, labels=np.arange(5))
    assert before.keys() == {"targets"} and now() == before
    np.savez(path, labels=np.arange(1, 6))
    assert now() != before
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="cannot be read"):
        now()


def test_human_labels_are_the_same_in_every_container(tmp_path):
    labels = {"clean_label": np.arange(60) % 10, "worse_label": np.arange(60) % 7}

    def now():
        arguments = {"targets": None, "recording": None, "data_root": str(tmp_path)}
        return contents({"name": "cifar10"}, noise_kind="human:worse", **arguments)

    torch.save(labels, tmp_path / "CIFAR-10_human.pt")
    before = now()
    (tmp_path / "CIFAR-10_human.pt").unlink()
    for write in (np.savez, np.savez_compressed):
        small = {name: column.astype(np.uint8) for name, column in labels.items()}
        write(tmp_path / "CIFAR-10_human.npz", **small)
        assert before.keys() == {"noise.kind"} and now() == before
    np.savez(tmp_path / "CIFAR-10_human.npz", **small | {"worse_label": small["clean_label"]})
    assert now() != before


def contents_of(name, root, **arguments):
    spec = {"name": name, **arguments}
    return contents(spec, noise_kind="none", targets=None, recording=None, data_root=str(root))


def test_a_table_is_known_by_its_labels_and_images(tmp_path):
    write_tree(tmp_path / "a")
    rows = [f"{part}/cat/0.png,{label},cat" for part in ("train", "test") for label in "ab"]

    def write(*lines):
        (tmp_path / "t.csv").write_text("\n".join(["path,label,true_label", *lines]))
        return contents_of("csv", tmp_path / "a", file=str(tmp_path / "t.csv"))

    before = write(*rows)
    assert before["dataset.file"]["classes"] == {"a": 2, "b": 2}
    assert write("", *rows, "") == before
    assert write(rows[1], rows[0], *rows[2:]) != before
    assert write(*[row.replace("b,cat", "b,dog") for row in rows]) != before
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    write(*rows)
    assert contents_of("csv", tmp_path / "b", file=str(tmp_path / "t.csv")) == before
    (tmp_path / "a/test/cat/0.png").write_bytes(b"another")
    assert write(*rows) != before


def test_texts_are_known_without_their_tokens(tmp_path):
    def write(*lines, root=tmp_path):
        (root / "t.csv").write_text("\n".join(["text,label", *lines]))
        return contents_of("text", root, file="t.csv", encoder="nowhere")

    before = write("a,x", "b,y")
    assert before["dataset.file"]["classes"] == {"x": 1, "y": 1}
    assert write("a,x", "c,y") != before and write("a,x", "b,x") != before
    (tmp_path / "moved").mkdir()
    assert write("a,x", "b,y", root=tmp_path / "moved") == before


def test_lists_of_released_datasets_are_compared_as_they_are(tmp_path):
    files = {
        "clothing1m": ("clothing1m/noisy_label_kv.txt", {}),
        "webvision": ("webvision/info/synsets.txt", {"num_classes": 2}),
        "mnist": ("MNIST/raw/train-labels-idx1-ubyte", {}),
        "utkface": ("UTKFace/26_1_0_1.jpg", {}),
        "wikihow": ("wikihow/goal/val.csv", {"task": "goal"}),
    }
    for name in ("train_filelist_google", "val_filelist"):
        (tmp_path / "webvision/info").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"webvision/info/{name}.txt").touch()
    table = ",".join(f"c{number}" for number in range(10)) + "\n0,1,2,3,how,to,,a,b,0\n"
    (tmp_path / "wikihow/goal").mkdir(parents=True)
    (tmp_path / "wikihow/goal/train.csv").write_text(table)
    for name, (path, arguments) in files.items():
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(table)
        before = contents_of(name, tmp_path, **arguments)
        assert before and contents_of(name, tmp_path, **arguments) == before
        path.write_text(table.replace("a,b", "a,c c"))
        assert contents_of(name, tmp_path, **arguments) != before, name
    for name in ("digits", "cifar10", "cifar100", "digitsum"):  # generated, or checked when read
        assert contents_of(name, tmp_path) == {}


def test_a_run_on_a_selection_knows_the_recording_that_it_selects_by(run, tmp_path):
    for name, seed in (("first", 1), ("other", 2)):
        recorded = ("record_losses=true", f"seed={seed}", "noise.seed=1")
        assert run(*recorded, name=name, params="params/digits/plain.yaml")[0] == 0

    def select(recording):
        history = f"dataset.selection.history={tmp_path / recording}/losses.npy"
        return run(history, "noise.seed=1", name="rsl", params="params/digits/rsl.yaml")

    assert select("first")[0] == 0
    (tmp_path / "first").rename(tmp_path / "moved")
    code, directory, printed, _ = select("moved")  # the same content
    assert code == 0 and "is finished" in printed
    code, _, _, complaint = select("other")
    assert code == 2 and "recording is another file, or has been changed" in complaint
    origin = json.loads((directory / "summary.json").read_text())["origins"]["recording"]
    assert origin["config"]["record_losses"] and origin["config"]["seed"] == 1
    (tmp_path / "moved/losses.npy").unlink()
    assert select("moved")[0] == 0  # a finished run needs it no more
