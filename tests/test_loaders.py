"""Loaders, against naive loops: of inputs in memory, of image files, and all those of a dataset."""

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torchvision.io import ImageReadMode, decode_image, write_png
from torchvision.transforms.v2 import functional

from datasets import csv, folder
from datasets.base import Dataset, Split
from datasets.files import FileLoader
from datasets.loader import make_loaders
from datasets.memory import MemoryLoader, crop_and_flip, pad
from datasets.noise import Noise
from datasets.selection import Selection
from datasets.splits import split_rows
from datasets.streams import batch_slices, shuffled
from tests.test_datasets import random_images, write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """train/ and test/ with tiny images of two classes. Not to be changed."""
    return write_tree(tmp_path_factory.mktemp("tree"))


def generator_states():
    """Of every global generator that iterating could disturb."""
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state().tolist()
    return torch_state, random.getstate(), numpy_state[1].tolist(), numpy_state[2]


def same(first, second):
    """Whether two lists of batches are equal, bit for bit."""
    return len(first) == len(second) and all(
        torch.equal(getattr(batch, part), getattr(other, part))
        for batch, other in zip(first, second, strict=True)
        for part in ("input", "target", "index")
    )


def rows_in(loader):
    return torch.cat([batch.index for batch in loader]).tolist()


def labels_of(dataset, given=None, true=None):
    """Given labels, the dataset's own unless told otherwise; the truth is unknown unless given."""
    given = dataset.train.targets.numpy() if given is None else given
    if true is None:
        true = np.full_like(given, -1 if dataset.classes else np.nan)
    return Noise(given, true, len(dataset.classes), "", "none", 0.0)


def loaders_of(
    dataset, given=None, selection=None, validation_fraction=0.0, clean=False, true=None, **options
):
    """All loaders of a dataset with these labels."""
    options = {"batch_size": 16, "device": "cpu", "seed": 0} | options
    noise = labels_of(dataset, given, true)
    validation = {"fraction": validation_fraction, "clean": clean}
    parts = split_rows(noise, validation=validation, seed=options["seed"])
    return make_loaders(dataset, noise, parts, selection, **options)


# Images in memory


def memory_loader(count=23, rows=None, size=8, shuffle=True, **options):
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
    } | options
    images = pad(random_images(count, 3, size, size), arguments["crop_padding"], "zeros")
    return MemoryLoader(images, 10 * torch.arange(count), rows, **arguments)


def pixels(batches):
    return (torch.cat([batch.input for batch in batches]) * 255).round().to(torch.uint8)


def share_changed(batches, images):
    """What part of the images in these batches differs from those that they come from."""
    return (pixels(batches) != images[rows_in(batches)]).flatten(1).any(1).float().mean()


@pytest.mark.parametrize(("crop", "flip"), [(True, True), (True, False), (False, True)])
def test_crop_and_flip_equals_a_loop(crop, flip):
    padding, height, width = 4 if crop else 0, 6, 9
    generator = torch.Generator().manual_seed(0)
    images = random_images(20, 3, height, width)
    index = torch.randint(20, (50,), generator=generator)
    top_left = torch.randint(2 * padding + 1, (50, 2), generator=generator)
    mirrored = torch.rand(50, generator=generator) < 0.5
    got = crop_and_flip(
        torch.nn.functional.pad(images, [padding] * 4),
        index,
        (height, width),
        top_left=top_left if crop else None,
        mirrored=mirrored if flip else None,
    )
    samples = zip(index.tolist(), top_left.tolist(), mirrored.tolist(), strict=True)
    expected = []
    for sample, (top, left), mirror in samples:
        image = torch.zeros(3, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
        image[:, padding : padding + height, padding : padding + width] = images[sample]
        image = image[:, top : top + height, left : left + width]
        expected.append(image.flip(2) if flip and mirror else image)
    assert got.dtype == torch.uint8 and torch.equal(got, torch.stack(expected))


def test_normalisation_equals_torchvisions():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    every_value = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, -1, -1)
    targets, rows = torch.zeros(2, dtype=int), torch.arange(2)
    loader = MemoryLoader(
        every_value, targets, rows, batch_size=2, device="cpu", mean=mean, std=std
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
    got = pixels(loader)[:, 0]
    images = random_images(count, 3, size, size)[rows_in(loader), 0]
    padded = torch.nn.functional.pad(images, [4] * 4)
    crops = padded.unfold(1, size, 1).unfold(2, size, 1)  # [N, 9, 9, 8, 8]
    straight, mirrored = (
        (crops == view[:, None, None]).all(-1).all(-1) for view in (got, got.flip(2))
    )
    hits = torch.stack([straight, mirrored], 1)  # [N, 2, 9, 9]
    assert (hits.sum((1, 2, 3)) == 1).all()  # every output is one crop of its own image
    per_offset = hits.sum((0, 1))
    assert per_offset.shape == (9, 9) and per_offset.min() > 0
    assert abs(per_offset - count / 81).max() < 5 * (count / 81) ** 0.5
    assert abs(mirrored.sum() - count / 2) < 4 * (count / 4) ** 0.5
    crop, mirroring = hits.any(1).flatten(1).long().argmax(1), mirrored.flatten(1).any(1)
    for drawn in (crop, mirroring):  # batches of one epoch draw their own
        assert not torch.equal(drawn[:300], drawn[300:600])


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
    loader, whole = memory_loader(), memory_loader()
    loader.set_epoch(1, first_batch=2)
    whole.set_epoch(1)
    for number, batch in enumerate(whole):
        assert loader.rows_of(number) == whole.rows_of(number) == batch.index.tolist()


def test_a_reflected_margin_is_torchs():
    images = random_images(5, 3, 6, 9)
    expected = torch.nn.functional.pad(images.float(), [4] * 4, "reflect").byte()
    assert torch.equal(pad(images, 4, "reflect"), expected)
    for mode in ("reflect", "zeros"):
        assert torch.equal(pad(images, 0, mode), images)


# Image files


def file_loader(tree, num_workers=0, train=True, **options):
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
    } | options
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
        assert len(loader) == 3 and [len(batch.input) for batch in batches] == [3, 3, 2]
        for number, batch in enumerate(batches):
            assert batch.input.shape[1:] == (3, 16, 16)
            assert torch.equal(batch.target, 10 * batch.index)
            assert loader.rows_of(number) == batch.index.tolist()
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
        torch.cat([batch.input for batch in batches])[np.argsort(rows_in(batches))]
        for batches in (expected, other)
    ]
    assert (views[0] != views[1]).flatten(1).any(1).all()  # of every image


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
    images = torch.cat([batch.input for batch in first])
    for path, got in zip(source.train.inputs, images, strict=True):
        image = decode_image(path, mode=ImageReadMode.RGB)
        resized = functional.resize(image, [32], antialias=True)  # 32 of 28 as 256 of 224
        scaled = functional.center_crop(resized, [28]).float() / 255
        expected = torchvision.transforms.functional.normalize(scaled, source.mean, source.std)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_iterating_leaves_the_global_generators_alone(tree):
    for loader in (memory_loader(), file_loader(tree), file_loader(tree, train=False)):
        states = generator_states()
        loader.set_epoch(1)
        assert list(loader)
        assert generator_states() == states


def test_images_of_a_table_are_loaded(tree, tmp_path):
    paths = sorted(path.relative_to(tree) for path in (tree / "train").rglob("*.*"))
    lines = ["path,label", *(f"{path},{path.parent.name}" for path in paths)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    data = csv(
        str(tmp_path / "labels.csv"),
        root=str(tree),
        test_file=str(tmp_path / "labels.csv"),
        image_size=16,
        num_workers=0,
    )
    loaders = loaders_of(data, batch_size=4)
    assert len(list(loaders.train)) == 2 and sorted(rows_in(loaders.train)) == list(range(8))


# Files that cannot be read


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
@pytest.mark.parametrize("name", ["0.png", "1.jpg"])
def test_damaged_images_of_more_than_one_percent_are_an_error_that_names_them(
    name, damage, tmp_path
):
    path = write_tree(tmp_path) / "train" / "cat" / name
    contents = {"empty": b"", "text": b"<html>404</html>", "cut": path.read_bytes()[:150]}
    path.write_bytes(contents[damage])
    loaders = loaders_of(folder(str(tmp_path), image_size=8, num_workers=0), batch_size=8)
    assert len(next(iter(loaders.train)).index) == 7  # a single one is left out, however few
    (path.parent / "2.png").write_bytes(b"")
    message = re.escape("2 of 8 image files cannot be read, more than 1%")
    for loader in (loaders.train, loaders.train_plain):
        with pytest.raises(OSError, match=message) as caught:
            list(loader)
        assert str(path) in str(caught.value)
    assert len(list(loaders.evaluation["test"])) == 1


def test_bytes_flipped_within_a_png_name_it_and_crash_nothing(tmp_path, capsys):
    path = write_tree(tmp_path) / "train" / "cat" / "0.png"
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 4  # the pixels, on which a decoder in C may run astray
    for position in range(start, len(content) - 16, 7):
        content[position] ^= 0xFF
    path.write_bytes(content)
    loaders = loaders_of(folder(str(tmp_path), image_size=8, num_workers=0), batch_size=8)
    list(loaders.train)
    assert f"{path} cannot be read as an image" in capsys.readouterr().err


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("memory_limit", "cache"), [(0, None), (10**6, None), (0, "cache")])
def test_a_damaged_image_among_many_is_left_out_and_counted(
    num_workers, memory_limit, cache, tmp_path, capsys
):
    paths = [str(tmp_path / f"{number}.png") for number in range(100)]
    for number, path in enumerate(paths):
        write_png(torch.full((3, 10, 12), number, dtype=torch.uint8), path)
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
    loaders = loaders_of(dataset, batch_size=30)
    others = [row for row in range(100) if row != 17]
    for _ in range(2):
        batches = list(loaders.train)
        assert sorted(rows_in(batches)) == others
        assert sum(len(batch.input) for batch in batches) == 99
        for batch in batches:  # each image is the one of its row
            assert torch.equal(batch.input.mean((1, 2, 3)).round().long(), batch.index)
            assert torch.equal(batch.target, batch.index % 2)
    assert loaders.train.missing == {17} and loaders.unreadable.keys() == {paths[17]}
    assert rows_in(loaders.evaluation["test"]) == others
    warning = f"warning: {paths[17]} cannot be read as an image and is left out"
    assert capsys.readouterr().err.count(warning) == 1


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
    held_out = list(loaders.evaluation["validation"])
    assert same(list(again.evaluation["validation"]), held_out)
    assert set(rows_in(other.evaluation["validation"])) != set(rows_in(held_out))


def test_without_a_validation_part_all_is_trained_on(dataset, given):
    loaders = loaders_of(dataset, given)
    assert set(loaders.evaluation) == {"test"}
    assert sorted(rows_in(loaders.train)) == rows_in(loaders.train_plain) == list(range(COUNT))
    test = list(loaders.evaluation["test"])
    assert rows_in(test) == list(range(30))
    assert torch.equal(torch.cat([batch.target for batch in test]), dataset.test.targets)


def test_only_the_training_loader_shuffles_and_augments(dataset, given):
    loaders = loaders_of(dataset, given, validation_fraction=0.2)
    for loader, split in (
        (loaders.train_plain, dataset.train),
        (loaders.evaluation["validation"], dataset.train),
        (loaders.evaluation["test"], dataset.test),
    ):
        first = list(loader)
        assert torch.equal(pixels(first), split.inputs[rows_in(loader)])
        loader.set_epoch(1)
        assert same(list(loader), first)
    order = rows_in(loaders.train)
    assert share_changed(loaders.train, dataset.train.inputs) > 0.8
    assert {len(batch.index) for batch in loaders.train} == {16}
    loaders.train.set_epoch(1)
    assert rows_in(loaders.train) != order


def test_a_clean_validation_part_has_true_labels_and_is_stratified_by_them(dataset, given):
    true = dataset.train.targets.numpy()
    loaders = loaders_of(dataset, given, validation_fraction=0.2, clean=True, true=true)
    held_out = list(loaders.evaluation["validation"])
    rows = rows_in(held_out)
    assert torch.cat([batch.target for batch in held_out]).tolist() == true[rows].tolist()
    assert np.bincount(true[rows]).tolist() == [20] * 4
    assert all(batch.target.tolist() == given[batch.index].tolist() for batch in loaders.train)
    with pytest.raises(ValueError, match=r"validation\.clean=true needs true labels"):
        loaders_of(dataset, given, validation_fraction=0.2, clean=True)


def test_the_recording_loader_has_every_row_once_and_augments_if_told(dataset, given):
    for augment in (True, False):
        loaders = loaders_of(
            dataset, given, validation_fraction=0.2, record_losses=True, augment_recording=augment
        )
        assert sorted(rows_in(loaders.recording)) == sorted(rows_in(loaders.train))
        changed = share_changed(loaders.recording, dataset.train.inputs)
        assert changed > 0.8 if augment else changed == 0
    first = list(loaders_of(dataset, given, record_losses=True).recording)
    loaders = loaders_of(dataset, given, record_losses=True)
    loaders.set_epoch(1, 3)
    assert not same(list(loaders.recording), first) and len(list(loaders.train)) == 25 - 3
    assert loaders_of(dataset, given).recording is None


def test_loaders_of_files_evaluate_the_same_way(tree):
    given = np.array([0, 1] * 4)
    data = folder(str(tree), image_size=8, num_workers=0)
    loaders = loaders_of(data, given, batch_size=3, validation_fraction=0.25)
    held_out, train = rows_in(loaders.evaluation["validation"]), rows_in(loaders.train)
    assert sorted(given[held_out]) == [0, 1] and sorted(held_out + train) == list(range(8))
    for loader in (loaders.train_plain, *loaders.evaluation.values()):
        first = list(loader)
        loader.set_epoch(1)
        assert same(list(loader), first)
    assert all(batch.target.tolist() == given[batch.index].tolist() for batch in loaders.train)
    before = list(loaders.train)
    loaders.train.set_epoch(1)
    assert not same(list(loaders.train), before)


# A selection, and unlabelled samples


def a_third():
    """A third of the samples, with weights from 0.7 to 1."""
    index = np.arange(0, COUNT, 3)
    return Selection(index, np.linspace(0.7, 1, len(index)))


def test_a_selection_is_what_is_trained_on(dataset, given):
    loaders = loaders_of(dataset, given, a_third())
    assert sorted(rows_in(loaders.train)) == list(range(0, COUNT, 3))
    assert rows_in(loaders.train_plain) == list(range(COUNT))


def test_unlabelled_views_are_of_all_that_was_not_selected(dataset, given):
    dataset = replace(dataset, crop_padding=0, flip=False)  # so that a view tells its sample
    unlabelled = {"num_views": 3, "steps_per_epoch": 60}
    loaders = loaders_of(dataset, given, a_third(), validation_fraction=0.25, unlabelled=unlabelled)
    labelled, held_out = set(range(0, COUNT, 3)), set(rows_in(loaders.evaluation["validation"]))
    seen = []
    for batch in loaders.train:
        extra = batch.extra
        assert set(batch.index.tolist()) <= labelled
        assert extra.input.shape == (3, 16, 3, 8, 8) and extra.target is None
        for view in extra.input:
            assert torch.equal((255 * view).round().byte(), dataset.train.inputs[extra.index])
        assert len(set(extra.index.tolist())) == 16
        seen += extra.index.tolist()
    rest = set(range(COUNT)) - labelled - held_out
    assert len(loaders.train) == 60 and len(seen) == 60 * 16 and set(seen) == rest
    whole = len(rest) // 16 * 16
    assert len(set(seen[:whole])) == whole  # none twice before the others have come


def test_views_are_augmented_each_in_its_own_way(dataset, given):
    unlabelled = {"num_views": 2, "steps_per_epoch": 2}
    (batch, *_) = loaders_of(dataset, given, a_third(), unlabelled=unlabelled).train
    first, second = batch.extra.input
    assert (first != second).flatten(1).any(1).float().mean() > 0.8


def test_labelled_samples_are_drawn_by_weight(dataset, given):
    index = np.arange(40)
    selection = Selection(index, np.where(index < 20, 1.0, 0.25))
    unlabelled = {"num_views": 1, "steps_per_epoch": 500}
    rows = np.array(rows_in(loaders_of(dataset, given, selection, unlabelled=unlabelled).train))
    assert len(rows) == 8_000 and set(rows) == set(index)
    share = (rows < 20).mean()
    assert abs(share - 0.8) < 5 * (0.8 * 0.2 / 8_000) ** 0.5


@pytest.mark.parametrize("kind", ["memory", "files"])
@pytest.mark.parametrize("first_batch", [0, 1, 4])
def test_both_streams_go_on_from_a_batch_in_the_middle(dataset, given, tree, kind, first_batch):
    unlabelled = {"num_views": 2, "steps_per_epoch": 5}
    if kind == "memory":
        arguments, options = (dataset, given, a_third()), {"seed": 3}
    else:
        selection = Selection(np.arange(3), np.ones(3))
        arguments = folder(str(tree), image_size=8, num_workers=0), None, selection
        options = {"batch_size": 2}
    whole, resumed = (
        loaders_of(*arguments, unlabelled=unlabelled, **options).train for _ in range(2)
    )
    whole.set_epoch(2)
    resumed.set_epoch(2, first_batch)
    expected, got = list(whole)[first_batch:], list(resumed)
    assert same(got, expected) and len(got) == 5 - first_batch
    for batch, other in zip(got, expected, strict=True):
        assert torch.equal(batch.extra.input, other.extra.input)
        assert torch.equal(batch.extra.index, other.extra.index)
    assert resumed.rows_of(4) == expected[-1].index.tolist()
    whole.set_epoch(3, first_batch)
    assert not torch.equal(next(iter(whole)).extra.input, expected[0].extra.input)


def test_views_without_a_selection_or_with_too_large_a_one_are_errors(dataset, given):
    unlabelled = {"num_views": 2, "steps_per_epoch": 5}
    with pytest.raises(ValueError, match=r"dataset\.selection\.history"):
        loaders_of(dataset, given, unlabelled=unlabelled)
    large = Selection(np.arange(COUNT - 10), np.ones(COUNT - 10))
    with pytest.raises(ValueError, match="leaves 10 samples unlabelled, fewer than a batch of 16"):
        loaders_of(dataset, given, large, unlabelled=unlabelled)
    with pytest.raises(ValueError, match="no pass to divide: set chunk_steps=null"):
        loaders_of(dataset, given, a_third(), unlabelled=unlabelled, chunk_steps=2)
