"""The same image or text several times, and classes of one sample."""

import os
import shutil

import numpy as np
import pytest
import torch

import datasets.copies
from datasets import csv, folder, text
from datasets.base import split_off
from datasets.copies import copies_of_files
from datasets.noise import inject
from datasets.selection.rules import how_many, select, with_names
from datasets.splits import split_rows
from tests.test_datasets import write_tree
from utils.errors import UserError


@pytest.fixture
def images(tmp_path):
    """Forty files of one size whose ends are equal too, with a table of them."""
    (tmp_path / "im").mkdir()
    for number in range(40):
        content = b"%4d" % number + bytes(5000)
        (tmp_path / f"im/{number}.png").write_bytes(content)
    return tmp_path


def table(images, numbers, labels="ab", name="t.csv"):
    rows = [f"im/{number}.png,{labels[number % len(labels)]}" for number in numbers]
    (images / name).write_text("\n".join(["path,label", *rows]))
    return str(images / name)


def test_copies_are_equal_in_every_byte(images):
    paths = [str(images / f"im/{number}.png") for number in range(40)]
    assert copies_of_files(paths) == list(range(40))
    shutil.copy(paths[3], images / "copy.png")
    (images / "link.png").symlink_to(paths[5])
    os.link(paths[5], images / "hard.png")
    for name in ("empty.png", "nothing.png"):
        (images / name).touch()
    more = ["copy.png", "link.png", "hard.png", "empty.png", "nothing.png", "gone.png", "gone.png"]
    paths += [str(images / name) for name in more]
    assert copies_of_files(paths) == [*range(40), 3, 5, 5, 43, 44, 45, 46]


def test_so_many_images_that_reading_them_takes_minutes_are_not_read(images, monkeypatch, capsys):
    monkeypatch.setattr(datasets.copies, "MOST_TO_READ", 30)
    monkeypatch.setattr(datasets.copies, "_end", lambda path: pytest.fail("read"))
    shutil.copy(images / "im/3.png", images / "copy.png")
    paths = [str(images / f"im/{number}.png") for number in range(40)]
    assert copies_of_files([*paths, str(images / "copy.png")]) == list(range(41))
    assert "copies are not looked for among more than 30 images" in capsys.readouterr().err


def test_a_split_without_copies_is_what_it_was():
    from sklearn.model_selection import train_test_split

    targets = torch.arange(60) % 3
    expected = train_test_split(range(60), test_size=0.2, stratify=targets, random_state=0)
    assert split_off(targets, 0.2, range(60), "abc") == tuple(map(sorted, expected))


def test_copies_in_a_table_stay_on_one_side(images):
    data = csv(table(images, [*range(40)] * 2), root=str(images))
    assert len(data.train) == 64 and len(data.test) == 16
    assert set(data.train.inputs).isdisjoint(data.test.inputs)
    assert data.note == "40 copies are on the same side of the split as what they repeat"
    assert [data.train.inputs[row] for row in data.original] == data.train.inputs
    once = csv(table(images, range(40)), root=str(images))
    assert set(once.test.inputs) == set(data.test.inputs) and not once.note


def test_copies_in_a_folder_stay_on_one_side(tmp_path, capsys):
    write_tree(tmp_path)
    shutil.rmtree(tmp_path / "test")
    for path in list(tmp_path.glob("train/*/*")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    data = folder(str(tmp_path), test_fraction=0.25)
    names = [
        {path.replace("copy of ", "") for path in part.inputs} for part in (data.train, data.test)
    ]
    assert len(data.train) == 12 and len(data.test) == 4 and names[0].isdisjoint(names[1])
    assert not capsys.readouterr().err


def test_copies_of_texts_stay_on_one_side(tmp_path, tiny_bert, capsys):
    rows = [f"cut {chr(97 + number % 20)},{'xy'[number % 2]}" for number in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    data = text(str(tmp_path / "t.csv"), encoder=tiny_bert)
    assert len(data.test) == 12 and set(data.train.texts).isdisjoint(data.test.texts)
    assert not capsys.readouterr().err
    text(str(tmp_path / "t.csv"), encoder=tiny_bert, test_file=str(tmp_path / "t.csv"))
    warned = capsys.readouterr().err
    assert warned.startswith(
        "warning: 20 texts are in the training part and in the test part, e.g."
    )
    assert warned.endswith("'cut a' (x) and 'cut a' (x)\n") and warned.count("\n") == 1


def test_an_image_in_both_parts_or_under_two_labels_is_named(tmp_path, capsys):
    write_tree(tmp_path)
    shutil.copy(tmp_path / "train/dog/3.jpg", tmp_path / "test/dog/same.jpg")
    shutil.copy(tmp_path / "train/cat/1.jpg", tmp_path / "train/dog/7.jpg")
    shutil.copy(tmp_path / "train/cat/1.jpg", tmp_path / "train/dog/8.jpg")
    folder(str(tmp_path))
    assert capsys.readouterr().err.splitlines() == [
        f"warning: 1 images are in the training part and in the test part, e.g. "
        f"{tmp_path}/train/dog/3.jpg (dog) and {tmp_path}/test/dog/same.jpg (dog)",
        f"warning: 1 images are in the training part under two labels, e.g. "
        f"{tmp_path}/train/cat/1.jpg (cat) and {tmp_path}/train/dog/7.jpg (dog)",
    ]


def noise_of(data):
    options = {"kind": "none", "fraction": 0.0, "seed": 0, "dataset": "csv", "trusted": False}
    return inject(data.train.targets, num_classes=len(data.classes), true=data.true, **options)


def test_copies_stay_on_one_side_of_the_validation_split(images):
    test = table(images, [38, 39], name="u.csv")
    for repeated in (2, 1):
        file = table(images, [*range(38)] * repeated)
        data = csv(file, root=str(images), test_file=test)
        options = {"validation": {"fraction": 0.25}, "seed": 1}
        parts = split_rows(noise_of(data), original=data.original, **options)
        paths = [{data.train.inputs[row] for row in rows} for rows in (parts.rows, parts.held_out)]
        assert paths[0].isdisjoint(paths[1]) and len(parts.held_out) == 10 * repeated
        assert sorted([*parts.rows, *parts.held_out]) == list(range(38 * repeated))
    before = split_rows(noise_of(data), **options)  # as without knowing of copies
    assert np.array_equal(before.rows, parts.rows)
    assert np.array_equal(before.held_out, parts.held_out)


# Classes of one sample


def test_a_class_too_small_to_be_split_is_named(images, tmp_path):
    labels = ["cat", "dog"] * 19 + ["cat", "zebra"]
    message = (
        "cannot be split off class by class: without copies, only one sample has the label zebra"
    )
    with pytest.raises(UserError, match=message):
        csv(table(images, [*range(40), 39, 39], labels), root=str(images))  # and copies of it
    with pytest.raises(UserError, match=message):
        write_tree(tmp_path / "tree")
        shutil.rmtree(tmp_path / "tree/test")
        (tmp_path / "tree/train/zebra").mkdir()
        shutil.copy(images / "im/0.png", tmp_path / "tree/train/zebra")
        folder(str(tmp_path / "tree"))
    file = table(images, range(40), labels)
    data = csv(file, root=str(images), test_file=table(images, [38], labels, "u.csv"))
    message = r"validation\.fraction=0.2 cannot be held out by class: .* the label zebra; more"
    for kwargs in ({"classes": data.classes}, {"classes": data.classes, "original": data.original}):
        with pytest.raises(UserError, match=message):
            split_rows(noise_of(data), validation={"fraction": 0.2}, seed=0, **kwargs)


def test_a_class_too_small_for_trusted_samples_or_a_selection_is_named():
    classes, targets = ["cat", "dog", "zebra"], torch.tensor([0, 1] * 19 + [2])
    noise = inject(targets, kind="none", fraction=0, seed=0, num_classes=3, dataset="")
    options = {"validation": {"fraction": 0}, "trusted": {"count": 6}, "seed": 0}
    with pytest.raises(UserError, match="takes 2 samples of class zebra, which has only 1"):
        split_rows(noise, classes=classes, **options)
    with (
        pytest.raises(UserError, match="nothing would be kept of class zebra: keep"),
        with_names(classes),
    ):
        how_many(np.zeros(39), noise, np.arange(39), keep_fraction=0.5)
    with (
        pytest.raises(UserError, match="class zebra is left empty: 1 samples"),
        with_names(classes),
    ):
        select(np.zeros(39), targets.numpy(), [3, 3, 0])
