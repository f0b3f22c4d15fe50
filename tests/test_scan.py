"""What lies in folders of images besides images, and links that lead around in circles."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from datasets import folder, utkface, webvision
from datasets.scan import is_image, scan
from tests.test_datasets import write_tree
from utils.errors import UserError


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path)


def test_the_images_are_those_of_torchvision_in_its_order(tree):
    for name in ("x y/1.png", "x/1.PNG", "x-y/2.Tiff", "x/10.png", "x/z/a.webp"):
        (tree / "train/cat" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "train/cat" / name).touch()
    found, expected = scan(tree / "train"), ImageFolder(str(tree / "train"))
    assert found.classes == expected.classes and found.targets == expected.targets
    assert found.paths == [path for path, _ in expected.samples] and not found.left_out


def test_what_is_hidden_or_no_image_is_left_out_and_counted(run, tree):
    shutil.copytree(tree / "train/cat", tree / "train/.ipynb_checkpoints")
    for name in ("cat/._0.png", "dog/.DS_Store", "__MACOSX/cat/0.png", "dog/a.txt", "dog/b.txt"):
        (tree / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "train" / name).write_bytes(b"x")
    (tree / "test/list.csv").touch()
    (tree / "test/dog/README").touch()
    note = "left out: 4 hidden, 2 .txt, 1 outside of the class folders, 1 without an ending"
    data = folder(str(tree))
    assert data.classes == ["cat", "dog"] and len(data.train) == 8 and data.note == note
    options = [f"data_root={tree}", "dataset.image_size=8", "dataset.num_workers=0", "epochs=1"]
    code, _, printed, _ = run(*options, "schedule=null", params="params/folder/plain.yaml")
    assert code == 0 and f"8 training, 3 test samples in 2 classes; {note}\n" in printed


def test_an_ending_that_is_no_text_can_be_printed(tree):
    (tree / "train/cat" / os.fsdecode(b"0.\xff")).touch()
    assert folder(str(tree)).note == r"left out: 1 .\udcff"


def test_every_ending_that_pillow_reads_is_an_image(tree):
    image, cats = Image.new("RGB", (9, 9), "red"), tree / "train/cat"
    for name, options in {
        "a.gif": {},
        "b.jfif": {"format": "JPEG"},
        "c.AVIF": {"format": "AVIF"},
        "d.jp2": {},
        "e.tga": {},
        "photo": {"format": "PNG"},
        "scan": {"format": "TIFF"},
        "web": {"format": "WEBP"},
        "new": {"format": "AVIF"},
    }.items():
        image.save(cats / name, **options)
    (cats / "Makefile").write_text("all:\n")
    found = scan(tree / "train")
    assert len(found.paths) == 8 + 9 and found.left_out == {"without an ending": 1}
    assert not is_image(str(tree / "nowhere"))


def test_no_folder_is_entered_twice(tree):
    cats = tree / "train/cat"
    for name, target in (
        ("x", "."),
        ("y", "."),
        ("up", ".."),
        ("top", "../../.."),
        ("z", "../dog"),
    ):
        (cats / name).symlink_to(target)
    (cats / "self").symlink_to("self")
    (tree / "more").mkdir()
    (cats / "0.png").rename(tree / "more/9.png")
    (cats / "more").symlink_to(tree / "more")  # from elsewhere, as it is meant
    (tree / "train/dog/more").symlink_to(tree / "more")
    found = scan(tree / "train")
    assert sorted(os.path.relpath(path, tree / "train") for path in found.paths[:3]) == [
        "cat/1.jpg",
        "cat/2.png",
        "cat/more/9.png",
    ]
    assert len(found.paths) == 8 and found.left_out["links to folders that are read anyway"] == 6
    for name in ("b", "a"):
        (cats / name).symlink_to(tree / "others")
    (tree / "others").mkdir()
    Image.new("L", (8, 8)).save(tree / "others/4.png")
    found = scan(tree / "train")  # whatever the order of the file system
    assert f"{cats}/a/4.png" in found.paths and f"{cats}/b/4.png" not in found.paths
    (tree / "train/puppy").symlink_to("dog")
    with pytest.raises(UserError, match=r"puppy and .*dog are one folder, and cannot be two"):
        scan(tree / "train")


def test_what_is_no_regular_file_is_not_opened(tree):
    os.mkfifo(tree / "train/cat/zz.png")
    os.mkfifo(tree / "train/cat/zz")
    (tree / "train/cat/zero.png").symlink_to("/dev/zero")
    (tree / "train/cat/gone.png").symlink_to("gone")  # said to be missing when it is read
    found = scan(tree / "train")
    assert found.left_out == {"that are no regular files": 3}
    assert len(found.paths) == 9 and str(tree / "train/cat/gone.png") in found.paths


def test_class_folders_that_look_alike_are_one_class(tree):
    (tree / "train/cat").rename(tree / "train/cafe\u0301")
    (tree / "train/caf\u00e9 ").mkdir()
    (tree / "train/cafe\u0301/0.png").rename(tree / "train/caf\u00e9 /0.png")
    (tree / "test/cat").rename(tree / "test/caf\u00e9")
    data = folder(str(tree))
    assert data.classes == ["caf\u00e9", "dog"]
    assert data.train.targets.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert data.test.targets.tolist() == [0, 0, 1]


def test_folders_without_images_are_named_and_left_out(tree, capsys):
    for part in ("train", "test"):
        (tree / part / "bird/.cache").mkdir(parents=True)
    data = folder(str(tree))
    assert data.classes == ["cat", "dog"]
    assert data.train.targets.tolist() == [0] * 3 + [1] * 5
    warnings = capsys.readouterr().err
    for part in ("train", "test"):
        message = f"{tree / part} has class folders without an image, which are left out: bird\n"
        assert f"warning: {message}" in warnings
    shutil.rmtree(tree / "train/cat")
    shutil.rmtree(tree / "train/dog")
    with pytest.raises(FileNotFoundError, match="class folders without an image: bird; remove"):
        scan(tree / "train")
    with pytest.raises(FileNotFoundError, match="holds no class folders"):
        scan(tree / "test/cat")


def test_class_folders_need_no_train_folder(run, tree, capsys):
    root = tree / "train"
    (root / "bird").mkdir()
    data = folder("elsewhere", root=str(root), test_fraction=0.25)
    assert data.classes == ["cat", "dog"] and len(data.train) + len(data.test) == 8
    assert all(path.startswith(f"{root}/") for path in data.train.inputs + data.test.inputs)
    assert "without an image, which are left out: bird" in capsys.readouterr().err
    options = [f"dataset.root={root}", "dataset.image_size=8", "dataset.num_workers=0", "epochs=1"]
    options += ["schedule=null", "dataset.test_fraction=0.25"]
    code, _, printed, _ = run(*options, params="params/folder/plain.yaml")
    assert code == 0 and "6 training, 2 test samples in 2 classes\n" in printed
    (root / "cat/0.png").unlink()
    _, _, _, complaints = run(*options, params="params/folder/plain.yaml")
    assert "train had 3 samples of class cat and has 2" in complaints


def test_folders_beside_train_and_test_are_named_and_not_read(tree, capsys):
    shutil.copytree(tree / "train/cat", tree / "cat")
    assert folder("elsewhere", root=str(tree)).train.inputs == folder(str(tree)).train.inputs
    warning = f"{tree} holds train/, which is read; its other folders are not: cat\n"
    assert capsys.readouterr().err == f"warning: {warning}"
    (tree / "train").rename(tree / "dog")
    with pytest.raises(FileNotFoundError, match=r"test/ without train/: .* neither of these"):
        folder("elsewhere", root=str(tree))
    shutil.rmtree(tree / "test")
    assert folder("elsewhere", root=str(tree)).classes == ["cat", "dog"]
    with pytest.raises(FileNotFoundError, match=r"train is not a folder"):
        folder(str(tree))  # data_root, where other data sets are


def test_hidden_files_are_left_out_everywhere(tmp_path):
    for name in ("26_1_0_1.jpg", "27_1_0_1.jpg", ".ipynb_checkpoints/26_1_0_1.jpg", "._28_1.jpg"):
        (tmp_path / "UTKFace" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "UTKFace" / name).touch()
    data = utkface(str(tmp_path))
    assert len(data.train) + len(data.test) == 2 and not data.note
    web, imagenet = tmp_path / "webvision", tmp_path / "imagenet/val"
    (web / "info").mkdir(parents=True)
    (web / "info/synsets.txt").write_text("n1 tench\nn2 goldfish\n")
    for name in ("train_filelist_google.txt", "val_filelist.txt"):
        (web / "info" / name).write_text("a.jpg 0\nb.jpg 1\n")
    for name in ("n1/1.JPEG", "n1/._1.JPEG", "n2/2.JPEG"):
        (imagenet / name).parent.mkdir(parents=True, exist_ok=True)
        (imagenet / name).touch()
    data = webvision(str(tmp_path), num_classes=2)
    names = [Path(path).name for path in data.more_tests["imagenet"].inputs]
    assert names == ["1.JPEG", "2.JPEG"]
