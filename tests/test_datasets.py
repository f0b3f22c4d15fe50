"""Datasets, from small files of their official formats. Nothing here reaches the network."""

import ast
import hashlib
import pickle
import re
import struct
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits
from torchvision.io import write_jpeg, write_png

from datasets import cifar10, cifar100, csv, digits, folder, mnist
from datasets.base import from_torchvision
from datasets.noise import inject


@pytest.fixture(autouse=True)
def requested(monkeypatch):
    """Every request fails, as it does offline; the addresses that were asked for."""
    addresses = []

    def urlopen(request, *_, **__):
        addresses.append(request.full_url)
        raise URLError("offline")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return addresses


def random_images(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def test_slow_packages_are_imported_where_they_are_used():
    """So that a run starts without those that it does not need."""
    slow = {"sklearn", "torchvision", "pandas", "matplotlib", "scipy", "PIL", "transformers"}
    files = sorted((Path(__file__).parents[1] / "datasets").rglob("*.py"))
    assert len(files) > 20
    for path in files:
        names = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
        assert not names & slow or path.name == "__main__.py", path


# digits


def test_digits_split_is_fixed():
    dataset = digits()
    for split, expected in (
        (dataset.train, "5457d35851d806e0ea4c735f72041b6c6630528bbe0c019db6014f1bc09d0239"),
        (dataset.test, "bd2e9b7c2aa9b6b52ed5f61da4f96cf75b12a927d78a249e36acc60a9df9c483"),
    ):
        assert hashlib.sha256(split.targets.numpy().astype("<i8").tobytes()).hexdigest() == expected
        assert split.inputs.dtype == torch.uint8 and split.inputs.shape == (len(split), 1, 8, 8)
        assert split.targets.dtype == torch.int64
    assert len(dataset.train) == 1_297 and len(dataset.test) == 500
    assert (dataset.in_channels, dataset.image_size) == (1, 8)
    assert len(dataset.classes) == 10 and dataset.trusted


def test_digits_parts_are_disjoint_and_cover_the_source():
    source, dataset = load_digits(), digits()
    parts = (dataset.train, dataset.test)
    images = torch.cat([part.inputs.flatten(1).long() for part in parts])
    targets = torch.cat([part.targets for part in parts])
    expected_images = np.round(source.images.reshape(-1, 64) * 255 / 16).astype(int)
    expected = np.column_stack([expected_images, source.target])
    assert sorted(torch.column_stack([images, targets]).tolist()) == sorted(expected.tolist())


def test_digits_parts_are_stratified():
    dataset = digits()
    parts = (dataset.train, dataset.test)
    counts = torch.stack([part.targets.bincount(minlength=10) for part in parts]).double()
    shares = counts.sum(0) * torch.tensor([[1_297], [500]]) / 1_797
    assert (counts - shares).abs().max() <= 2


def test_digits_statistics_are_those_of_the_training_images():
    dataset = digits()
    pixels = dataset.train.inputs.double() / 255
    assert abs(pixels.mean() - dataset.mean[0]) < 1e-3 and abs(pixels.std() - dataset.std[0]) < 1e-3


# MNIST


@pytest.fixture
def mnist_root(tmp_path):
    """A folder with MNIST's four files, of the images and labels in ``mnist_arrays``."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, (images, labels) in mnist_arrays().items():
        sizes = struct.pack(">4I", 0x803, *images.shape)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(sizes + images.numpy().tobytes())
        size = struct.pack(">2I", 0x801, len(labels))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(size + bytes(labels))
    return tmp_path


def mnist_arrays():
    return {
        "train": (random_images(7, 28, 28), [5, 0, 4, 1, 9, 2, 1]),
        "t10k": (random_images(4, 28, 28, seed=1), [7, 2, 1, 0]),
    }


def test_mnist_is_read_from_its_files(mnist_root, requested):
    dataset = mnist(str(mnist_root))
    parts = (dataset.train, dataset.test)
    for split, (images, labels) in zip(parts, mnist_arrays().values(), strict=True):
        assert split.inputs.dtype == torch.uint8 and torch.equal(split.inputs, images.unsqueeze(1))
        assert split.targets.dtype == torch.int64 and split.targets.tolist() == labels
    assert (dataset.in_channels, dataset.image_size) == (1, 28)
    assert dataset.crop_padding == 0 and not dataset.flip
    assert dataset.mean == (0.1307,) and dataset.std == (0.3081,)
    as_they_are = mnist(str(mnist_root), standardise=False)
    assert as_they_are.mean == (0,) and as_they_are.std == (1,)
    assert dataset.classes == list("0123456789")
    assert not requested


MNIST_LAYOUT = r"MNIST/raw/ with {train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte"


def test_missing_mnist_names_the_folder_and_the_files(tmp_path, requested):
    with pytest.raises(FileNotFoundError, match=re.escape(MNIST_LAYOUT)) as caught:
        mnist(str(tmp_path))
    assert f"data_root={tmp_path}" in str(caught.value)
    assert requested and all("mnist" in address for address in requested)


@pytest.mark.parametrize(
    "file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"]
)
@pytest.mark.parametrize("damage", ["cut", "empty", "absent"])
def test_damaged_mnist_names_the_folder_and_the_files(file, damage, mnist_root, requested):
    path = mnist_root / "MNIST" / "raw" / file
    content = path.read_bytes()
    path.unlink()
    if damage != "absent":
        path.write_bytes(content[:-3] if damage == "cut" else b"")
    with pytest.raises(FileNotFoundError, match=re.escape(MNIST_LAYOUT)) as caught:
        mnist(str(mnist_root))
    assert f"data_root={mnist_root}" in str(caught.value)
    assert damage == "absent" or not requested


# CIFAR


CIFAR = {  # what is different in them
    "cifar10": {
        "load": cifar10,
        "source": torchvision.datasets.CIFAR10,
        "train": [f"data_batch_{part}" for part in range(1, 6)],
        "test": "test_batch",
        "meta": "batches.meta",
        "labels_key": "labels",
        "names_key": "label_names",
        "num_classes": 10,
    },
    "cifar100": {
        "load": cifar100,
        "source": torchvision.datasets.CIFAR100,
        "train": ["train"],
        "test": "test",
        "meta": "meta",
        "labels_key": "fine_labels",
        "names_key": "fine_label_names",
        "num_classes": 100,
    },
}


@pytest.fixture(params=CIFAR)
def cifar(request, tmp_path, monkeypatch):
    """(dataset function, root, folder, parts of the training set, of the test set).

    Small files, their md5 made known.
    """
    different = CIFAR[request.param]
    source, num_classes = different["source"], different["num_classes"]
    train, test, meta = different["train"], different["test"], different["meta"]
    directory = tmp_path / source.base_folder
    directory.mkdir()
    parts, md5 = {}, {}

    def write(name, content):
        (directory / name).write_bytes(pickle.dumps(content, protocol=2))
        md5[name] = hashlib.md5((directory / name).read_bytes()).hexdigest()

    for seed, name in enumerate([*train, test]):
        data = random_images(3, 3_072, seed=seed).numpy()
        labels = [(3 * seed + row) * 7 % num_classes for row in range(3)]
        parts[name] = data, labels
        others = {"coarse_labels": [0, 0, 0], "filenames": ["a.png"] * 3}
        write(name, {"data": data, different["labels_key"]: labels, **others})
    names = [f"class{number}" for number in range(num_classes)]
    write(meta, {different["names_key"]: names, "coarse_label_names": ["other"] * 20})
    monkeypatch.setattr(source, "train_list", [[name, md5[name]] for name in train])
    monkeypatch.setattr(source, "test_list", [[test, md5[test]]])
    monkeypatch.setattr(source, "meta", source.meta | {"md5": md5[meta]})
    return different["load"], tmp_path, directory, [parts[name] for name in train], [parts[test]]


def test_cifar_is_read_from_its_files(cifar, requested):
    load, root, _, *expected = cifar
    dataset = load(str(root))
    for split, parts in zip((dataset.train, dataset.test), expected, strict=True):
        rows = np.concatenate([data for data, _ in parts])
        assert split.inputs.dtype == torch.uint8 and split.inputs.shape == (len(rows), 3, 32, 32)
        assert split.inputs.is_contiguous()
        # a row holds 1,024 red, 1,024 green and 1,024 blue pixels, line by line
        np.testing.assert_array_equal(split.inputs.numpy(), rows.reshape(-1, 3, 32, 32))
        assert split.targets.dtype == torch.int64
        assert split.targets.tolist() == [label for _, labels in parts for label in labels]
    num_classes = 10 if load is cifar10 else 100
    assert dataset.classes == [f"class{number}" for number in range(num_classes)]
    assert (dataset.in_channels, dataset.image_size, dataset.trusted) == (3, 32, True)
    assert not requested


def test_cifar_is_augmented_unless_told_otherwise(cifar):
    load, root, *_ = cifar
    augmented, plain = load(str(root)), load(str(root), augment=False)
    assert (augmented.crop_padding, augmented.flip) == (4, True)
    assert (plain.crop_padding, plain.flip) == (0, False)


def names_all(error, root, directory):
    names = [f"data_root={root}", directory.name, *(path.name for path in directory.iterdir())]
    return all(name in str(error) for name in names)


def test_missing_cifar_names_the_folder_and_the_files(cifar, requested, tmp_path):
    load, _, directory, *_ = cifar
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(FileNotFoundError, match="could not be downloaded") as caught:
        load(str(elsewhere))
    assert names_all(caught.value, elsewhere, directory)
    assert requested and all("cifar" in address for address in requested)


def test_of_several_processes_one_downloads(tmp_path):
    downloads = []

    class Slow:
        def __init__(self, root, train, download=False):
            file = Path(root, "slow", f"{train}")
            if download:
                file.parent.mkdir(exist_ok=True)
                time.sleep(0.1)  # while others look
                file.write_text("whole")
                downloads.append(train)
            if file.read_text() != "whole":
                raise RuntimeError("damaged")

    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(from_torchvision, Slow, tmp_path, "slow", "true") for _ in range(4)]
    assert all(len(task.result()) == 2 for task in tasks)
    assert sorted(downloads) == [False, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock-Slow", "slow"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "absent"])
@pytest.mark.parametrize("which", ["first", "test", "meta"])
def test_damaged_cifar_names_the_folder_and_the_files(cifar, which, damage, requested):
    load, root, directory, *_ = cifar
    names = {
        "first": ("data_batch_1", "train"),
        "test": ("test_batch", "test"),
        "meta": ("batches.meta", "meta"),
    }
    (path,) = (path for path in directory.iterdir() if path.name in names[which])
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else content)
    with pytest.raises(FileNotFoundError, match="Put there: cifar-10") as caught:
        if damage == "absent":
            path.rename(root / "moved")
        load(str(root))
    assert path.name in str(caught.value) and names_all(caught.value, root, directory)
    assert not requested


# folder


FILES = {"train": {"cat": 3, "dog": 5}, "test": {"cat": 2, "dog": 1}}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """train/ and test/ with tiny images of two classes. Not to be changed."""
    return write_tree(tmp_path_factory.mktemp("tree"))


def write_tree(root):
    """PNG and JPEG, grey and colour, of several sizes."""
    seed = 0
    for part, classes in FILES.items():
        for name, count in classes.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                seed += 1
                image = random_images(3, 20 + seed % 4, 30 - seed % 5, seed=seed)
                path = str(root / part / name / f"{number}")
                if number % 2:
                    write_jpeg(image, f"{path}.jpg")
                else:
                    write_png(image[:1] if number == 2 else image, f"{path}.png")
    return root


def test_folder_reads_classes_and_paths(tree):
    dataset = folder(str(tree), image_size=16, num_workers=1)
    assert dataset.classes == ["cat", "dog"]
    assert dataset.train.targets.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert dataset.test.targets.tolist() == [0, 0, 1]
    assert len(dataset.train) == len(dataset.train.inputs) == 8 and len(dataset.test.inputs) == 3
    assert dataset.train.inputs[3] == str(tree / "train" / "dog" / "0.png")
    assert dataset.train.inputs[4] == str(tree / "train" / "dog" / "1.jpg")
    assert (dataset.in_channels, dataset.image_size, dataset.num_workers) == (3, 16, 1)
    assert dataset.mean == (0.485, 0.456, 0.406) and dataset.std == (0.229, 0.224, 0.225)
    assert not dataset.trusted


def test_folder_without_train_says_what_it_reads(tmp_path):
    (write_tree(tmp_path) / "train").rename(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"holds test/ without train/: .*<class>/<image>"):
        folder(root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'train'} is not a folder")):
        folder(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"there is no folder phtos; .*<class>/<image>"):
        folder(root="phtos")
    cats = tmp_path / "other" / "cat"
    with pytest.raises(FileNotFoundError, match=re.escape(f"set dataset.root={cats.parent}")):
        folder(root=str(cats))


def test_folder_without_test_splits_a_part_off(tmp_path):
    (write_tree(tmp_path) / "test").rename(tmp_path / "other")
    dataset, again = (folder("elsewhere", root=str(tmp_path), test_fraction=0.25) for _ in range(2))
    assert dataset.test.targets.tolist() == [0, 1] and dataset.test.inputs == again.test.inputs
    paths = sorted(str(path) for path in tmp_path.glob("train/*/*"))
    assert sorted(dataset.train.inputs + dataset.test.inputs) == paths
    with pytest.raises(ValueError, match=r"test_fraction must lie in \[0, 1\), got 1"):
        folder(root=str(tmp_path), test_fraction=1.0)
    with pytest.raises(ValueError, match="cannot be split off"):
        folder(root=str(tmp_path), test_fraction=0.01)


def test_folder_with_different_classes_names_those_that_differ(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "hog")
    with pytest.raises(ValueError, match="only in one of them: dog, hog"):
        folder(str(tmp_path))


@pytest.mark.parametrize(
    "arguments", [{"image_size": 7}, {"num_workers": -1}, {"crop_scale": 0.0}, {"crop_scale": 1.1}]
)
def test_folder_refuses_numbers_out_of_range(arguments, tree):
    message = "image_size must be at least 8, num_workers at least 0 and crop_scale in"
    with pytest.raises(ValueError, match=message):
        folder(str(tree), **arguments)


# csv


def table(tree, lines, name="labels.csv"):
    (tree.parent / name).write_text("\n".join(lines) + "\n")
    return str(tree.parent / name)


LINES = [
    "path, label",
    *(f"train/dog/{number}.{'jpg' if number % 2 else 'png'}, 10" for number in range(5)),
    "train/cat/0.png, 9",
    "train/cat/1.jpg, 9",
    "train/cat/2.png, 10",
]


def test_csv_reads_paths_and_labels(tree):
    dataset = csv(
        table(tree, LINES),
        root=str(tree),
        test_file=table(tree, ["path,label", "test/cat/0.png,9"], "test.csv"),
        image_size=16,
        num_workers=0,
        crop_scale=0.5,
        flip=False,
    )
    assert dataset.classes == ["9", "10"]  # numbers in their order
    assert dataset.true is None and not dataset.trusted
    assert dataset.train.targets.tolist() == [1, 1, 1, 1, 1, 0, 0, 1]
    assert dataset.test.targets.tolist() == [0]
    assert dataset.train.inputs[0] == str(tree / "train/dog/0.png")
    assert dataset.test.inputs == [str(tree / "test/cat/0.png")]
    assert (dataset.image_size, dataset.crop_scale, dataset.flip) == (16, 0.5, False)


def test_csv_with_true_labels_tests_on_them(tree):
    paths = [line.split(",")[0] for line in LINES[1:]]
    true = ["dog"] * 5 + ["cat"] * 3
    given = ["dog" if row in (2, 6) else name for row, name in enumerate(true)]
    lines = [",".join(cells) for cells in zip(paths, given, true, strict=True)]
    file = table(tree, ["path,label,true_label", *lines])
    dataset = csv(file, root=str(tree), test_fraction=0.25)
    assert dataset.classes == ["cat", "dog"] and len(dataset.train) == 6 and len(dataset.test) == 2
    options = {"num_classes": 2, "dataset": "csv", "trusted": False, "true": dataset.true}
    noise = inject(dataset.train.targets, kind="none", fraction=0.0, seed=0, **options)
    rows = {str(tree / path): row for row, path in enumerate(paths)}
    for path, given_label, true_label in zip(
        dataset.train.inputs, noise.given, noise.true, strict=True
    ):
        assert dataset.classes[given_label] == given[rows[path]]
        assert dataset.classes[true_label] == true[rows[path]]
    for path, true_label in zip(dataset.test.inputs, dataset.test.targets, strict=True):
        assert dataset.classes[true_label] == true[rows[path]]
    with pytest.raises(ValueError, match=r"set noise\.kind=none"):
        inject(dataset.train.targets, kind="symmetric", fraction=0.4, seed=0, **options)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,class", "a,b"], "has no column 'label'; it has path, class"),
        (["path,label"], "lists no images"),
        (["path,label", "train/dog/0.png,"], "has no label in line 2"),
        (["path,label", ",dog"], "has no path in line 2"),
        (
            ["path,label", "train/dog/0.png,dog", "train/bird.png,dog"],
            "lists 1 images that are not there, the first .*bird",
        ),
        (["path,label", '"a,b'], "cannot be read as CSV"),
        (["path,label", "train/dog/0.png,dog"], "cannot be split off"),
        (
            [
                "path,label",
                *(f"train/dog/{n}.{'jpg' if n % 2 else 'png'},{n / 7}" for n in range(5)),
            ],
            "to be predicted, set dataset.task=regression task=regression",
        ),
    ],
)
def test_csv_files_that_are_wrong(tree, lines, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        csv(table(tree, lines), root=str(tree))


def test_csv_files_that_do_not_fit_or_are_not_there(tree):
    with pytest.raises(FileNotFoundError, match="there is no file nowhere"):
        csv("nowhere.csv")
    test_file = table(tree, ["path,label", "test/cat/0.png,bird"], "test.csv")
    message = r"test\.csv has labels that .*labels\.csv does not have: bird"
    with pytest.raises(ValueError, match=message):
        csv(table(tree, LINES), root=str(tree), test_file=test_file)
    compressed = tree.parent / "damaged.csv.gz"
    compressed.write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xff\xff")
    with pytest.raises(ValueError, match=r"damaged\.csv\.gz cannot be read as CSV"):
        csv(str(compressed), root=str(tree))
