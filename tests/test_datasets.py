"""Datasets from small files of their official formats, and loaders against naive loops.

Nothing here reaches the network.
"""

import hashlib
import pickle
import random
import re
import struct
import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits
from torchvision.io import ImageReadMode, decode_image, write_jpeg, write_png
from torchvision.transforms.v2 import functional

from datasets import cifar10, cifar100, csv, digits, folder, mnist
from datasets.base import Dataset, Split
from datasets.files import FileLoader
from datasets.loader import make_loaders
from datasets.memory import MemoryLoader, crop_and_flip, pad
from datasets.noise import Noise, inject
from datasets.selection import Selection
from datasets.splits import Parts, split_rows
from datasets.streams import batch_slices, shuffled


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
    return torch.randint(
        256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def generator_states():
    """Of every global generator that iterating could disturb."""
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        np.random.get_state()[2],
    )


def same(first, second):
    """Whether two lists of batches are equal, bit for bit."""
    return len(first) == len(second) and all(
        torch.equal(a.input, b.input)
        and torch.equal(a.target, b.target)
        and torch.equal(a.index, b.index)
        for a, b in zip(first, second, strict=True)
    )


def rows_in(loader):
    return torch.cat([batch.index for batch in loader]).tolist()


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
    assert (dataset.in_channels, dataset.image_size, len(dataset.classes), dataset.trusted) == (
        1,
        8,
        10,
        True,
    )


def test_digits_parts_are_disjoint_and_cover_the_source():
    source, dataset = load_digits(), digits()
    rows = torch.cat(
        [
            torch.cat([split.inputs.flatten(1).long(), split.targets.unsqueeze(1)], 1)
            for split in (dataset.train, dataset.test)
        ]
    )
    expected = [
        [*np.round(image.ravel() * 255 / 16).astype(int).tolist(), int(target)]
        for image, target in zip(source.images, source.target, strict=True)
    ]
    assert sorted(rows.tolist()) == sorted(expected)


def test_digits_parts_are_stratified():
    dataset = digits()
    counts = torch.stack(
        [split.targets.bincount(minlength=10) for split in (dataset.train, dataset.test)]
    ).double()
    shares = counts.sum(0) * torch.tensor([[1_297], [500]]) / 1_797
    assert (counts - shares).abs().max() <= 2


def test_digits_statistics_are_those_of_the_training_images():
    dataset = digits()
    pixels = dataset.train.inputs.double() / 255
    assert abs(pixels.mean() - dataset.mean[0]) < 1e-3 and abs(pixels.std() - dataset.std[0]) < 1e-3


# MNIST


@pytest.fixture
def mnist_root(tmp_path):
    """A folder with MNIST's four files, of 7 and 4 images.

    Its images and labels are in ``mnist_arrays``.
    """
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, (images, labels) in mnist_arrays().items():
        (raw / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x803, *images.shape) + images.numpy().tobytes()
        )
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2I", 0x801, len(labels)) + bytes(labels)
        )
    return tmp_path


def mnist_arrays():
    return {
        "train": (random_images(7, 28, 28), [5, 0, 4, 1, 9, 2, 1]),
        "t10k": (random_images(4, 28, 28, seed=1), [7, 2, 1, 0]),
    }


def test_mnist_is_read_from_its_files(mnist_root, requested):
    dataset = mnist(str(mnist_root))
    for split, (images, labels) in zip(
        (dataset.train, dataset.test), mnist_arrays().values(), strict=True
    ):
        assert split.inputs.dtype == torch.uint8 and torch.equal(split.inputs, images.unsqueeze(1))
        assert split.targets.dtype == torch.int64 and split.targets.tolist() == labels
    assert (dataset.in_channels, dataset.image_size, dataset.crop_padding, dataset.flip) == (
        1,
        28,
        0,
        False,
    )
    assert (
        dataset.mean == (0.1307,)
        and dataset.std == (0.3081,)
        and dataset.classes == list("0123456789")
    )
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


CIFAR = {  # what is different: files of the training and of the test part, and the keys in them
    "cifar10": (
        cifar10,
        torchvision.datasets.CIFAR10,
        [f"data_batch_{part}" for part in range(1, 6)],
        "test_batch",
        "batches.meta",
        "labels",
        "label_names",
        10,
    ),
    "cifar100": (
        cifar100,
        torchvision.datasets.CIFAR100,
        ["train"],
        "test",
        "meta",
        "fine_labels",
        "fine_label_names",
        100,
    ),
}


@pytest.fixture(params=CIFAR)
def cifar(request, tmp_path, monkeypatch):
    """(dataset function, root, folder, rows of the training part, of the test part).

    Small files, their md5 made known.
    """
    load, source, train, test, meta, labels_key, names_key, num_classes = CIFAR[request.param]
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
        write(
            name,
            {
                "data": data,
                labels_key: labels,
                "coarse_labels": [0, 0, 0],
                "filenames": ["a.png"] * 3,
            },
        )
    write(
        meta,
        {
            names_key: [f"class{number}" for number in range(num_classes)],
            "coarse_label_names": ["other"] * 20,
        },
    )
    monkeypatch.setattr(source, "train_list", [[name, md5[name]] for name in train])
    monkeypatch.setattr(source, "test_list", [[test, md5[test]]])
    monkeypatch.setattr(source, "meta", source.meta | {"md5": md5[meta]})
    return load, tmp_path, directory, [parts[name] for name in train], [parts[test]]


def test_cifar_is_read_from_its_files(cifar, requested):
    load, root, _, *expected = cifar
    dataset = load(str(root))
    for split, parts in zip((dataset.train, dataset.test), expected, strict=True):
        rows = np.concatenate([data for data, _ in parts])
        assert split.inputs.dtype == torch.uint8 and split.inputs.shape == (len(rows), 3, 32, 32)
        assert split.inputs.is_contiguous()
        # a row holds 1,024 red, 1,024 green and 1,024 blue pixels, line by line
        np.testing.assert_array_equal(split.inputs.numpy(), rows.reshape(-1, 3, 32, 32))
        assert split.targets.dtype == torch.int64 and split.targets.tolist() == [
            label for _, part in parts for label in part
        ]
    num_classes = 10 if load is cifar10 else 100
    assert dataset.classes == [f"class{number}" for number in range(num_classes)]
    assert (dataset.in_channels, dataset.image_size, dataset.trusted) == (3, 32, True)
    assert not requested


def test_cifar_is_augmented_unless_told_otherwise(cifar):
    load, root, *_ = cifar
    augmented, plain = load(str(root)), load(str(root), augment=False)
    assert (augmented.crop_padding, augmented.flip, plain.crop_padding, plain.flip) == (
        4,
        True,
        0,
        False,
    )


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


@pytest.mark.parametrize("damage", ["flipped", "cut", "absent"])
@pytest.mark.parametrize("which", ["first", "test", "meta"])
def test_damaged_cifar_names_the_folder_and_the_files(cifar, which, damage, requested):
    load, root, directory, *_ = cifar
    path = next(
        path
        for path in sorted(directory.iterdir())
        if {
            "first": path.name in ("data_batch_1", "train"),
            "test": path.name in ("test_batch", "test"),
            "meta": path.name.endswith("meta"),
        }[which]
    )
    content = path.read_bytes()
    path.write_bytes(
        content[:-1] if damage == "cut" else content[:50] + bytes([content[50] ^ 1]) + content[51:]
    )
    with pytest.raises(FileNotFoundError, match="Put there: cifar-10") as caught:
        if damage == "absent":
            path.rename(root / "moved")
        load(str(root))
    assert path.name in str(caught.value) and names_all(caught.value, root, directory)
    assert not requested


# folder


FILES = {"train": {"cat": 3, "dog": 5}, "test": {"cat": 2, "dog": 1}}
TREE_LABELS = np.array([0] * 3 + [1] * 5)


def all_of(labels):
    """Nothing held out."""
    return Parts(np.arange(len(labels)), np.arange(0), labels)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """train/ and test/ with tiny images of two classes, PNG and JPEG, grey and colour, of several
    sizes. Not to be changed.
    """
    return write_tree(tmp_path_factory.mktemp("tree"))


def write_tree(root):
    seed = 0
    for part, classes in FILES.items():
        for name, count in classes.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                seed += 1
                image = random_images(3, 20 + seed % 4, 30 - seed % 5, seed=seed)
                if number % 2:
                    write_jpeg(image, str(root / part / name / f"{number}.jpg"))
                else:
                    write_png(
                        image[:1] if number == 2 else image,
                        str(root / part / name / f"{number}.png"),
                    )
    return root


def test_folder_reads_classes_and_paths(tree):
    dataset = folder(str(tree), image_size=16, num_workers=1)
    assert dataset.classes == ["cat", "dog"]
    assert dataset.train.targets.tolist() == [0] * 3 + [
        1
    ] * 5 and dataset.test.targets.tolist() == [0] * 2 + [1]
    assert len(dataset.train) == len(dataset.train.inputs) == 8 and len(dataset.test.inputs) == 3
    assert dataset.train.inputs[3] == str(tree / "train" / "dog" / "0.png")
    assert dataset.train.inputs[4] == str(tree / "train" / "dog" / "1.jpg")
    assert (dataset.in_channels, dataset.image_size, dataset.num_workers) == (3, 16, 1)
    assert (
        not dataset.trusted
        and dataset.mean == (0.485, 0.456, 0.406)
        and dataset.std == (0.229, 0.224, 0.225)
    )


def test_folder_without_train_says_what_it_reads(tmp_path):
    (write_tree(tmp_path) / "train").rename(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'train'} is not a folder")):
        folder(root=str(tmp_path))


def test_folder_without_test_splits_a_part_off(tmp_path):
    (write_tree(tmp_path) / "test").rename(tmp_path / "other")
    dataset, again = (folder("elsewhere", root=str(tmp_path), test_fraction=0.25) for _ in range(2))
    assert dataset.test.targets.tolist() == [0, 1] and dataset.test.inputs == again.test.inputs
    assert sorted(dataset.train.inputs + dataset.test.inputs) == sorted(
        map(str, tmp_path.glob("train/*/*"))
    )
    with pytest.raises(ValueError, match=r"test_fraction must lie in \(0, 1\), got 1"):
        folder(root=str(tmp_path), test_fraction=1.0)
    with pytest.raises(ValueError, match="cannot be split off"):
        folder(root=str(tmp_path), test_fraction=0.01)


def test_folder_with_different_classes_names_those_that_differ(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "hog")
    with pytest.raises(ValueError, match="only in one of them: dog, hog"):
        folder(str(tmp_path))


def test_folder_with_an_empty_class_names_it(tmp_path):
    (write_tree(tmp_path) / "train" / "bird").mkdir()
    with pytest.raises(FileNotFoundError, match="bird"):
        folder(str(tmp_path))


@pytest.mark.parametrize(
    "arguments", [{"image_size": 7}, {"num_workers": -1}, {"crop_scale": 0.0}, {"crop_scale": 1.1}]
)
def test_folder_refuses_numbers_out_of_range(arguments, tree):
    with pytest.raises(
        ValueError, match="image_size must be at least 8, num_workers at least 0 and crop_scale in"
    ):
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
    assert (
        dataset.classes == ["9", "10"] and dataset.true is None and not dataset.trusted
    )  # numbers in their order
    assert dataset.train.targets.tolist() == [1] * 5 + [
        0,
        0,
        1,
    ] and dataset.test.targets.tolist() == [0]
    assert dataset.train.inputs[0] == str(tree / "train/dog/0.png") and dataset.test.inputs == [
        str(tree / "test/cat/0.png")
    ]
    assert (dataset.image_size, dataset.crop_scale, dataset.flip) == (16, 0.5, False)
    loaders = loaders_of(dataset, dataset.train.targets.numpy(), batch_size=4)
    assert len(list(loaders.train)) == 2 and sorted(rows_in(loaders.train)) == list(range(8))


def test_csv_with_true_labels_tests_on_them(tree):
    names = ["dog"] * 5 + ["cat"] * 3
    lines = [
        f"{line.split(',')[0]},{'dog' if row in (2, 6) else name},{name}"
        for row, (line, name) in enumerate(zip(LINES[1:], names, strict=True))
    ]
    dataset = csv(
        table(tree, ["path,label,true_label", *lines]), root=str(tree), test_fraction=0.25
    )
    assert dataset.classes == ["cat", "dog"] and len(dataset.train) == 6 and len(dataset.test) == 2
    noise = inject(
        dataset.train.targets,
        kind="none",
        fraction=0.0,
        seed=0,
        num_classes=2,
        dataset="csv",
        trusted=False,
        true=dataset.true,
    )
    expected = {str(tree / line.split(",")[0]): line.split(",")[1:] for line in lines}
    for path, given, true in zip(dataset.train.inputs, noise.given, noise.true, strict=True):
        assert [dataset.classes[given], dataset.classes[true]] == expected[path]
    for path, true in zip(dataset.test.inputs, dataset.test.targets, strict=True):
        assert dataset.classes[true] == expected[path][1]
    with pytest.raises(ValueError, match=r"set noise\.kind=none"):
        inject(
            dataset.train.targets,
            kind="symmetric",
            fraction=0.4,
            seed=0,
            num_classes=2,
            dataset="csv",
            trusted=False,
            true=dataset.true,
        )


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
    ],
)
def test_csv_files_that_are_wrong(tree, lines, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        csv(table(tree, lines), root=str(tree))


def test_csv_files_that_do_not_fit_or_are_not_there(tree):
    with pytest.raises(FileNotFoundError, match="there is no file nowhere"):
        csv("nowhere.csv")
    with pytest.raises(
        ValueError, match=r"test\.csv has labels that .*labels\.csv does not have: bird"
    ):
        csv(
            table(tree, LINES),
            root=str(tree),
            test_file=table(tree, ["path,label", "test/cat/0.png,bird"], "test.csv"),
        )


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
@pytest.mark.parametrize("name", ["0.png", "1.jpg"])
def test_damaged_images_of_more_than_one_percent_are_an_error_that_names_them(
    name, damage, tmp_path
):
    path = write_tree(tmp_path) / "train" / "cat" / name
    path.write_bytes(
        {"empty": b"", "text": b"<html>404</html>", "cut": path.read_bytes()[:150]}[damage]
    )
    loaders = make_loaders(
        folder(str(tmp_path), image_size=8, num_workers=0),
        noise_of(TREE_LABELS),
        all_of(TREE_LABELS),
        batch_size=8,
        device="cpu",
        seed=0,
    )
    for loader in (loaders.train, loaders.train_plain):
        with pytest.raises(
            OSError, match=re.escape("1 of 8 image files cannot be read, more than 1%")
        ) as caught:
            list(loader)
        assert str(path) in str(caught.value)
    assert len(list(loaders.evaluation["test"])) == 1


def test_bytes_flipped_within_a_png_name_it_and_crash_nothing(tmp_path):
    path = write_tree(tmp_path) / "train" / "cat" / "0.png"
    content = bytearray(path.read_bytes())
    for position in range(
        content.index(b"IDAT") + 4, len(content) - 16, 7
    ):  # the pixels, where a decoder of C may run astray
        content[position] ^= 0xFF
    path.write_bytes(content)
    loaders = make_loaders(
        folder(str(tmp_path), image_size=8, num_workers=0),
        noise_of(TREE_LABELS),
        all_of(TREE_LABELS),
        batch_size=8,
        device="cpu",
        seed=0,
    )
    with pytest.raises(OSError, match=re.escape(str(path))):
        list(loaders.train)


@pytest.mark.parametrize(
    "num_workers, memory_limit, cache",
    [
        (0, 0, None),
        (2, 0, None),
        (0, 10**6, None),
        (2, 10**6, None),
        (0, 0, "cache"),
        (2, 0, "cache"),
    ],
)
def test_a_damaged_image_among_many_is_left_out_and_counted(
    num_workers, memory_limit, cache, tmp_path, capsys
):
    paths = []
    for number in range(100):
        paths.append(str(tmp_path / f"{number}.png"))
        write_png(torch.full((3, 10, 12), number, dtype=torch.uint8), paths[-1])
    Path(paths[17]).write_bytes(b"not an image")
    split = Split(paths, torch.arange(100) % 2)
    dataset = Dataset(
        split,
        split,
        classes=["a", "b"],
        in_channels=3,
        image_size=8,
        mean=(0.0,) * 3,
        std=(1 / 255,) * 3,
        num_workers=num_workers,
        memory_limit=memory_limit,
        cache=cache and tmp_path / cache,
    )
    labels = split.targets.numpy()
    loaders = make_loaders(
        dataset, noise_of(labels), all_of(labels), batch_size=30, device="cpu", seed=0
    )
    others = [row for row in range(100) if row != 17]
    for _ in range(2):
        batches = list(loaders.train)
        assert (
            sorted(rows_in(batches)) == others and sum(len(batch.input) for batch in batches) == 99
        )
        for batch in batches:  # each image is the one of its row
            assert torch.equal(batch.input.mean((1, 2, 3)).round().long(), batch.index)
            assert torch.equal(batch.target, batch.index % 2)
    assert loaders.train.missing == {17} and loaders.unreadable.keys() == {paths[17]}
    assert rows_in(loaders.evaluation["test"]) == others
    assert (
        capsys.readouterr().err.count(
            f"warning: {paths[17]} cannot be read as an image and is left out"
        )
        == 1
    )


# Images in memory


def memory_loader(count=23, rows=None, size=8, shuffle=True, **others):
    """With pixels as they are, divided by 255, unless told otherwise.

    Labels are the row times 10.
    """
    rows = torch.arange(count) if rows is None else rows
    arguments = {
        "batch_size": 5,
        "device": "cpu",
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "crop_padding": 4,
        "flip": True,
        "draw": shuffled(rows) if shuffle else None,
    } | others
    images = pad(random_images(count, 3, size, size), arguments["crop_padding"], "zeros")
    return MemoryLoader(images, 10 * torch.arange(count), rows, **arguments)


def pixels(batches):
    return (torch.cat([batch.input for batch in batches]) * 255).round().to(torch.uint8)


@pytest.mark.parametrize(("crop", "flip"), [(True, True), (True, False), (False, True)])
def test_crop_and_flip_equals_a_loop(crop, flip):
    padding, height, width = 4 if crop else 0, 6, 9
    generator = torch.Generator().manual_seed(0)
    images = random_images(20, 3, height, width)
    index = torch.randint(20, (50,), generator=generator)
    top_left = torch.randint(2 * padding + 1, (50, 2), generator=generator)
    mirrored = torch.rand(50, generator=generator) < 0.5
    padded = torch.nn.functional.pad(images, [padding] * 4)
    got = crop_and_flip(
        padded,
        index,
        (height, width),
        top_left=top_left if crop else None,
        mirrored=mirrored if flip else None,
    )

    expected = []
    for sample, (top, left), mirror in zip(
        index.tolist(), top_left.tolist(), mirrored.tolist(), strict=True
    ):
        image = torch.zeros(3, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
        image[:, padding : padding + height, padding : padding + width] = images[sample]
        image = image[:, top : top + height, left : left + width]
        expected.append(image.flip(2) if flip and mirror else image)
    assert got.dtype == torch.uint8 and torch.equal(got, torch.stack(expected))


def test_normalisation_equals_torchvisions():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    every_value = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, -1, -1)
    loader = MemoryLoader(
        every_value,
        torch.zeros(2, dtype=int),
        torch.arange(2),
        batch_size=2,
        device="cpu",
        mean=mean,
        std=std,
    )
    (batch,) = loader
    for got, image in zip(batch.input, every_value, strict=True):
        scaled = torchvision.transforms.functional.to_tensor(image.permute(1, 2, 0).numpy())
        expected = torchvision.transforms.functional.normalize(scaled, mean, std)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_every_crop_occurs_and_half_of_the_images_are_mirrored():
    count, size = 2_000, 8
    loader = memory_loader(count, size=size, batch_size=300)
    got = pixels(loader)
    images = torch.nn.functional.pad(
        random_images(count, 3, size, size)[rows_in(loader), :1], [4] * 4
    ).squeeze(1)
    crops = images.unfold(1, size, 1).unfold(2, size, 1)  # [N, 9, 9, 8, 8]
    found = torch.stack(
        [
            (crops == view.unsqueeze(1).unsqueeze(1)).all(-1).all(-1)
            for view in (got[:, 0], got[:, 0].flip(2))
        ],
        1,
    )  # [N, 2, 9, 9]
    assert (found.sum((1, 2, 3)) == 1).all()  # every output is one crop of its own image
    per_offset = found.sum((0, 1))
    assert per_offset.shape == (9, 9) and per_offset.min() > 0
    assert abs(per_offset - count / 81).max() < 5 * (count / 81) ** 0.5
    assert abs(found[:, 1].sum() - count / 2) < 4 * (count / 4) ** 0.5
    for what in (
        found.any(1).flatten(1).long().argmax(1),
        found[:, 1].flatten(1).any(1),
    ):  # crop and mirroring, [N]
        first, second = what[:300], what[300:600]
        assert not torch.equal(first, second)  # batches of one epoch draw their own


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [
        (12, 5, [5, 5, 2]),
        (10, 5, [5, 5]),
        (11, 5, [5, 6]),
        (3, 5, [3]),
        (1, 5, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_a_last_batch_of_one_sample_joins_the_one_before(count, size, sizes):
    assert [len(range(count)[part]) for part in batch_slices(count, size)] == sizes


def test_every_epoch_has_each_row_once_in_another_order():
    rows = torch.tensor([3, 1, 4, 15, 9, 2, 6, 5, 20, 8, 7, 11])
    loader, orders = memory_loader(rows=rows), []
    for epoch in range(4):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert [len(batch.index) for batch in batches] == [5, 5, 2] and len(loader) == 3
        assert all(torch.equal(batch.target, 10 * batch.index) for batch in batches)
        orders.append(tuple(rows_in(loader)))
        assert sorted(orders[-1]) == sorted(rows.tolist())
    assert len({*orders, tuple(rows.tolist())}) == 5


def test_without_shuffling_rows_come_in_their_order_as_they_are():
    rows = torch.tensor([3, 1, 4, 15, 9, 2])
    loader = memory_loader(rows=rows, shuffle=False, crop_padding=0, flip=False)
    for epoch in (0, 3):
        loader.set_epoch(epoch)
        assert rows_in(loader) == rows.tolist()
        assert torch.equal(pixels(loader), random_images(23, 3, 8, 8)[rows])


def test_augmentation_differs_between_epochs():
    loader = memory_loader(shuffle=False)
    first = pixels(loader)
    loader.set_epoch(1)
    differs = (pixels(loader) != first).flatten(1).any(1)
    assert differs.float().mean() > 0.8


def test_batches_are_a_function_of_seed_and_epoch():
    loader = memory_loader(seed=1)
    loader.set_epoch(3)
    expected = list(loader)
    assert same(list(loader), expected)
    loader.set_epoch(4)
    assert not same(list(loader), expected)
    torch.manual_seed(99)
    again, other = memory_loader(seed=1), memory_loader(seed=2)
    again.set_epoch(3)
    other.set_epoch(3)
    assert same(list(again), expected) and not same(list(other), expected)


@pytest.mark.parametrize("first_batch", [0, 1, 4, 5])
def test_an_epoch_goes_on_from_a_batch_in_its_middle(first_batch):
    loader, resumed = memory_loader(), memory_loader()
    loader.set_epoch(2)
    resumed.set_epoch(2, first_batch=first_batch)
    assert same(list(resumed), list(loader)[first_batch:])
    resumed.set_epoch(3)  # the next one is whole again
    assert len(list(resumed)) == 5


def test_rows_of_a_batch_are_its_index():
    loader = memory_loader()
    loader.set_epoch(1, first_batch=2)
    whole = memory_loader()
    whole.set_epoch(1)
    for number, batch in enumerate(whole):
        assert loader.rows_of(number) == whole.rows_of(number) == batch.index.tolist()


# Image files


def file_loader(tree, num_workers=0, train=True, **others):
    source, rows = folder(str(tree)), torch.arange(8)
    arguments = {
        "batch_size": 3,
        "device": "cpu",
        "mean": source.mean,
        "std": source.std,
        "image_size": 16,
        "draw": shuffled(rows) if train else None,
        "augment": train,
        "num_workers": num_workers,
    } | others
    return FileLoader(source.train.inputs, 10 * torch.arange(8), rows, **arguments)


def test_batches_of_files_do_not_depend_on_the_number_of_workers(tree):
    alone, workers = file_loader(tree), file_loader(tree, num_workers=2)
    states = generator_states()
    for epoch, first_batch in ((0, 0), (1, 1)):
        alone.set_epoch(epoch)
        workers.set_epoch(epoch, first_batch=first_batch)
        assert same(list(workers), list(alone)[first_batch:])
    assert generator_states() == states


def test_every_epoch_of_files_has_each_row_once_in_another_order(tree):
    loader, orders = file_loader(tree), set()
    for epoch in range(4):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert [batch.input.shape for batch in batches] == [
            (3, 3, 16, 16),
            (3, 3, 16, 16),
            (2, 3, 16, 16),
        ]
        assert len(loader) == 3 and all(
            torch.equal(batch.target, 10 * batch.index) for batch in batches
        )
        assert [loader.rows_of(number) for number in range(3)] == [
            batch.index.tolist() for batch in batches
        ]
        assert sorted(rows_in(loader)) == list(range(8))
        orders.add(tuple(rows_in(loader)))
    assert len(orders) == 4


def test_batches_of_files_are_a_function_of_seed_and_epoch(tree):
    loader = file_loader(tree, seed=1)
    loader.set_epoch(3)
    expected = list(loader)
    loader.set_epoch(4)
    assert not same(list(loader), expected)
    torch.manual_seed(99)
    again, other = file_loader(tree, seed=1), file_loader(tree, seed=2)
    again.set_epoch(3)
    other.set_epoch(3)
    assert same(list(again), expected) and not same(list(other), expected)
    views = [
        {
            row: view
            for batch in batches
            for row, view in zip(batch.index.tolist(), batch.input, strict=True)
        }
        for batches in (expected, other)
    ]
    assert not any(torch.equal(views[0][row], views[1][row]) for row in range(8))


@pytest.mark.parametrize("first_batch", [0, 1, 2, 3])
def test_an_epoch_of_files_goes_on_from_a_batch_in_its_middle(first_batch, tree):
    loader, resumed = file_loader(tree), file_loader(tree)
    loader.set_epoch(2)
    resumed.set_epoch(2, first_batch=first_batch)
    assert same(list(resumed), list(loader)[first_batch:])
    resumed.set_epoch(3)
    assert len(list(resumed)) == 3


def test_augmentation_of_files_differs_between_epochs_and_samples(tmp_path):
    path = str(tmp_path / "brighter_to_the_right.png")
    write_png(random_images(3, 20, 25) // 6 + 8 * torch.arange(25, dtype=torch.uint8), path)
    loader = FileLoader(
        [path] * 50,
        torch.zeros(50, dtype=int),
        torch.arange(50),
        batch_size=50,
        device="cpu",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        image_size=16,
        num_workers=0,
        augment=True,
    )
    views = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        (batch,) = loader
        views += list(batch.input)
    for number, view in enumerate(views):  # all hundred are of the same image
        assert not any(torch.equal(view, other) for other in views[:number])
    mirrored = sum(view[:, :, 0].mean() > view[:, :, -1].mean() for view in views)
    assert abs(mirrored - 50) < 4 * 5


def test_files_are_evaluated_as_they_are(tree):
    loader = file_loader(tree, train=False, image_size=28)
    first = list(loader)
    loader.set_epoch(5)
    assert same(list(loader), first)
    assert rows_in(loader) == list(range(8))
    source = folder(str(tree))
    for path, got in zip(
        source.train.inputs, torch.cat([batch.input for batch in first]), strict=True
    ):
        image = decode_image(path, mode=ImageReadMode.RGB)
        image = functional.center_crop(
            functional.resize(image, [32], antialias=True), [28]
        )  # 32 of 28 as 256 of 224
        expected = torchvision.transforms.functional.normalize(
            image.float() / 255, source.mean, source.std
        )
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_iterating_leaves_the_global_generators_alone(tree):
    for loader in (memory_loader(), file_loader(tree), file_loader(tree, train=False)):
        states = generator_states()
        loader.set_epoch(1)
        assert list(loader)
        assert generator_states() == states


# Loaders of a dataset


COUNT = 400


@pytest.fixture
def dataset():
    return Dataset(
        Split(random_images(COUNT, 3, 8, 8), torch.arange(COUNT) % 4),
        Split(random_images(30, 3, 8, 8, seed=1), torch.arange(30) % 4),
        classes=list("abcd"),
        in_channels=3,
        image_size=8,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        crop_padding=2,
        flip=True,
    )


@pytest.fixture
def given():
    """Noisy labels, the classes of unequal size."""
    return np.random.default_rng(0).choice(4, COUNT, p=[0.4, 0.3, 0.2, 0.1])


def noise_of(given, true=None):
    true = np.full_like(given, -1) if true is None else true
    return Noise(given, true, np.eye(given.max() + 1), "", "none", 0.0)


def loaders_of(
    dataset, given, selection=None, validation_fraction=0.0, clean=False, true=None, **others
):
    noise = noise_of(given, true)
    validation = {"fraction": validation_fraction, "clean": clean}
    parts = split_rows(noise, validation=validation, seed=others.get("seed", 0))
    return make_loaders(
        dataset,
        noise,
        parts,
        selection,
        **({"batch_size": 16, "device": "cpu", "seed": 0} | others),
    )


def test_validation_and_training_part_are_disjoint_and_cover_all(dataset, given):
    loaders = loaders_of(dataset, given, validation_fraction=0.2)
    train, validation = rows_in(loaders.train), rows_in(loaders.evaluation["validation"])
    assert len(validation) == 80 and sorted(train + validation) == list(range(COUNT))
    assert sorted(rows_in(loaders.train_plain)) == sorted(train)


def test_validation_part_is_stratified_by_given_label(dataset, given):
    held_out = rows_in(loaders_of(dataset, given, validation_fraction=0.2).evaluation["validation"])
    assert abs(np.bincount(given[held_out]) - 0.2 * np.bincount(given)).max() <= 1


def test_validation_part_keeps_its_noisy_labels_and_is_drawn_from_the_seed(dataset, given):
    loaders, again, other = (
        loaders_of(dataset, given, validation_fraction=0.2, seed=seed) for seed in (0, 0, 1)
    )
    for loader in (loaders.train, loaders.train_plain, loaders.evaluation["validation"]):
        assert all(batch.target.tolist() == given[batch.index].tolist() for batch in loader)
    assert same(list(again.evaluation["validation"]), list(loaders.evaluation["validation"]))
    assert set(rows_in(other.evaluation["validation"])) != set(
        rows_in(loaders.evaluation["validation"])
    )


def test_without_a_validation_part_all_is_trained_on(dataset, given):
    loaders = loaders_of(dataset, given)
    assert set(loaders.evaluation) == {"test"}
    assert sorted(rows_in(loaders.train)) == rows_in(loaders.train_plain) == list(range(COUNT))
    assert rows_in(loaders.evaluation["test"]) == list(range(30))
    assert (
        torch.cat([batch.target for batch in loaders.evaluation["test"]]).tolist()
        == dataset.test.targets.tolist()
    )


def test_only_the_training_loader_shuffles_and_augments(dataset, given):
    loaders = loaders_of(dataset, given, validation_fraction=0.2)
    parts = loaders.evaluation
    for loader, images in (
        (loaders.train_plain, dataset.train.inputs),
        (parts["validation"], dataset.train.inputs),
        (parts["test"], dataset.test.inputs),
    ):
        first = list(loader)
        assert torch.equal(pixels(first), images[rows_in(loader)])
        loader.set_epoch(1)
        assert same(list(loader), first)
    order = rows_in(loaders.train)
    assert (pixels(loaders.train) != dataset.train.inputs[order]).flatten(1).any(
        1
    ).float().mean() > 0.8
    assert {len(batch.index) for batch in loaders.train} == {16}
    loaders.train.set_epoch(1)
    assert rows_in(loaders.train) != order


def test_a_clean_validation_part_has_true_labels_and_is_stratified_by_them(dataset, given):
    true = dataset.train.targets.numpy()
    loaders = loaders_of(dataset, given, validation_fraction=0.2, clean=True, true=true)
    held_out = rows_in(loaders.evaluation["validation"])
    assert (
        torch.cat([batch.target for batch in loaders.evaluation["validation"]]).tolist()
        == true[held_out].tolist()
    )
    assert np.bincount(true[held_out]).tolist() == [20] * 4
    assert all(batch.target.tolist() == given[batch.index].tolist() for batch in loaders.train)
    with pytest.raises(ValueError, match=r"validation\.clean=true needs true labels"):
        split_rows(noise_of(given), validation={"fraction": 0.2, "clean": True}, seed=0)


def test_a_reflected_margin_is_torchs(dataset):
    images = random_images(5, 3, 6, 9)
    expected = torch.nn.functional.pad(images.float(), [4] * 4, "reflect").byte()
    assert torch.equal(pad(images, 4, "reflect"), expected)
    assert torch.equal(pad(images, 0, "reflect"), images) and torch.equal(
        pad(images, 0, "zeros"), images
    )


def test_the_recording_loader_has_every_row_once_and_augments_if_told(dataset, given):
    for augment in (True, False):
        loaders = loaders_of(
            dataset, given, validation_fraction=0.2, record_losses=True, augment_recording=augment
        )
        rows = rows_in(loaders.recording)
        assert sorted(rows) == sorted(rows_in(loaders.train))
        differs = (
            (pixels(loaders.recording) != dataset.train.inputs[rows])
            .flatten(1)
            .any(1)
            .float()
            .mean()
        )
        assert differs > 0.8 if augment else differs == 0
    first = list(loaders_of(dataset, given, record_losses=True).recording)
    loaders = loaders_of(dataset, given, record_losses=True)
    loaders.set_epoch(1, 3)
    assert not same(list(loaders.recording), first) and len(list(loaders.train)) == 25 - 3
    assert loaders_of(dataset, given).recording is None


def chosen(given):
    """A third of the samples, with weights from 0.7 to 1."""
    index = np.arange(0, COUNT, 3)
    return Selection(index, np.linspace(0.7, 1, len(index)))


def test_a_selection_is_what_is_trained_on(dataset, given):
    loaders = loaders_of(dataset, given, chosen(given))
    assert sorted(rows_in(loaders.train)) == list(range(0, COUNT, 3))
    assert rows_in(loaders.train_plain) == list(range(COUNT))


def test_unlabelled_views_are_of_all_that_was_not_selected(dataset, given):
    dataset = replace(
        dataset, crop_padding=0, flip=False
    )  # so that a view tells which sample it is of
    loaders = loaders_of(
        dataset,
        given,
        chosen(given),
        validation_fraction=0.25,
        unlabelled={"num_views": 3, "steps_per_epoch": 60},
    )
    labelled, held_out = set(range(0, COUNT, 3)), set(rows_in(loaders.evaluation["validation"]))
    code = {tuple(image.flatten().tolist()): row for row, image in enumerate(dataset.train.inputs)}
    seen = []
    for batch in loaders.train:
        assert set(batch.index.tolist()) <= labelled and batch.extra.input.shape == (3, 16, 3, 8, 8)
        views = [
            [code[tuple(image.flatten().tolist())] for image in (255 * view).round().byte()]
            for view in batch.extra.input
        ]
        assert views[0] == views[1] == views[2] == batch.extra.index.tolist()
        assert batch.extra.target is None and len(set(views[0])) == 16
        seen.append(views[0])
    rest = set(range(COUNT)) - labelled - held_out
    assert len(loaders.train) == len(seen) == 60 and set(np.concatenate(seen)) == rest
    passes = len(rest) // 16
    assert (
        len(set(np.concatenate(seen[:passes]))) == 16 * passes
    )  # none twice before the others have come
    assert not labelled & rest and not held_out & rest and len(labelled | held_out | rest) == COUNT


def test_views_are_augmented_each_in_its_own_way(dataset, given):
    (batch, *_) = loaders_of(
        dataset, given, chosen(given), unlabelled={"num_views": 2, "steps_per_epoch": 2}
    ).train
    assert (batch.extra.input[0] != batch.extra.input[1]).flatten(1).any(1).float().mean() > 0.8


def test_labelled_samples_are_drawn_by_weight(dataset, given):
    index = np.arange(40)
    selection = Selection(index, np.where(index < 20, 1.0, 0.25))
    loaders = loaders_of(
        dataset, given, selection, unlabelled={"num_views": 1, "steps_per_epoch": 500}
    )
    rows = np.array(rows_in(loaders.train))
    assert len(rows) == 8_000 and set(rows) == set(index)
    share = (rows < 20).mean()
    assert abs(share - 0.8) < 5 * (0.8 * 0.2 / 8_000) ** 0.5


@pytest.mark.parametrize("kind", ["memory", "files"])
@pytest.mark.parametrize("first_batch", [0, 1, 4])
def test_both_streams_go_on_from_a_batch_in_the_middle(dataset, given, tree, kind, first_batch):
    def loader():
        if kind == "memory":
            return loaders_of(
                dataset,
                given,
                chosen(given),
                unlabelled={"num_views": 2, "steps_per_epoch": 5},
                seed=3,
            ).train
        labels = np.array([0, 1] * 4)
        selection = Selection(np.arange(3), np.ones(3))
        return loaders_of(
            folder(str(tree), image_size=8, num_workers=0),
            labels,
            selection,
            unlabelled={"num_views": 2, "steps_per_epoch": 5},
            batch_size=2,
        ).train

    whole, resumed = loader(), loader()
    whole.set_epoch(2)
    resumed.set_epoch(2, first_batch)
    expected = list(whole)
    got = list(resumed)
    assert same(got, expected[first_batch:]) and len(got) == 5 - first_batch
    assert all(
        torch.equal(one.extra.input, other.extra.input)
        for one, other in zip(got, expected[first_batch:], strict=True)
    )
    assert resumed.rows_of(2) == expected[2].index.tolist()
    whole.set_epoch(3)
    assert not torch.equal(next(iter(whole)).extra.input, expected[0].extra.input)


def test_views_without_a_selection_or_with_too_large_a_one_are_errors(dataset, given):
    with pytest.raises(ValueError, match=r"dataset\.selection\.history"):
        loaders_of(dataset, given, unlabelled={"num_views": 2, "steps_per_epoch": 5})
    index = np.arange(COUNT - 10)
    with pytest.raises(ValueError, match="leaves 10 samples unlabelled, fewer than a batch of 16"):
        loaders_of(
            dataset,
            given,
            Selection(index, np.ones(len(index))),
            unlabelled={"num_views": 2, "steps_per_epoch": 5},
        )


def test_loaders_of_files_evaluate_the_same_way(tree):
    dataset = folder(str(tree), image_size=8, num_workers=0)
    given = np.array([0, 1] * 4)
    loaders = loaders_of(dataset, given, batch_size=3, validation_fraction=0.25)
    held_out, train = rows_in(loaders.evaluation["validation"]), rows_in(loaders.train)
    assert sorted(given[held_out]) == [0, 1] and sorted(held_out + train) == list(range(8))
    for loader in (
        loaders.train_plain,
        loaders.evaluation["validation"],
        loaders.evaluation["test"],
    ):
        first = list(loader)
        loader.set_epoch(1)
        assert same(list(loader), first)
    assert all(batch.target.tolist() == given[batch.index].tolist() for batch in loaders.train)
    before = list(loaders.train)
    loaders.train.set_epoch(1)
    assert not same(list(loaders.train), before)
