"""UTKFace, Clothing1M and WebVision, from small files in the layout of their releases."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.io import write_jpeg

from datasets import clothing1m, utkface, webvision
from datasets.clothing1m import balanced
from datasets.images import Decoded, decode_all
from datasets.loader import make_loaders
from datasets.splits import split_rows
from tests.test_loaders import labels_of, loaders_of
from utils import schedules


def photograph(path, shade, size=(40, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = torch.randint(0, 20, (3, *size), generator=torch.Generator().manual_seed(shade))
    write_jpeg((noise + shade).clamp(0, 255).to(torch.uint8), str(path), quality=95)


# UTKFace: the brightness of a picture is the age


@pytest.fixture
def faces(tmp_path):
    folder = tmp_path / "UTKFace"
    for number in range(60):
        age = 1 + 2 * number
        name = f"{age}_{number % 2}_{number % 5}_201701161745{number:05}.jpg.chip.jpg"
        photograph(folder / name, 2 * age)
    # without a race, as three of the release
    photograph(folder / "sub/61_1_20170109142408075.jpg.chip.jpg", 122)
    photograph(folder / "face.jpg", 0)
    photograph(folder / "400_1_1_2017.jpg", 0)
    return tmp_path


def ages_of(paths):
    return [float(Path(path).name.split("_")[0]) for path in paths]


def test_ages_come_from_the_names_and_the_split_from_its_seed(faces):
    data = utkface(str(faces), num_workers=0)
    assert (len(data.train), len(data.test), data.task) == (55, 6, "regression")
    for split in (data.train, data.test):
        assert split.targets.dtype == torch.float32
        assert ages_of(split.inputs) == split.targets.tolist()
    assert data.note == "2 files without an age in their names left out" and data.note in str(data)
    assert set(data.train.inputs).isdisjoint(data.test.inputs)
    assert utkface(str(faces)).test.inputs == data.test.inputs
    assert utkface(str(faces), split_seed=1).test.inputs != data.test.inputs
    # in mixed order, as noise.kind=permute needs it
    assert len(data.train.targets.diff().sign().unique()) > 1
    with pytest.raises(FileNotFoundError, match="no images with an age in their names"):
        utkface(str(faces / "nowhere"))
    photograph(faces / "UTKFace/copies" / Path(data.train.inputs[0]).name, 0)
    with pytest.raises(ValueError, match="files of the same name in different folders"):
        utkface(str(faces))


def face_loaders(faces, **options):
    data = utkface(str(faces), num_workers=0, image_size=16, **options)
    return loaders_of(data, batch_size=20)


def test_decoded_images_give_the_batches_that_files_give(faces):
    kept, read = face_loaders(faces), face_loaders(faces, memory_limit=0)
    assert isinstance(kept.train.files.images, Decoded)
    assert isinstance(read.train.files.images, list)
    batches = [*kept.train, *kept.evaluation["test"]]
    others = [*read.train, *read.evaluation["test"]]
    for first, second in zip(batches, others, strict=True):
        assert torch.equal(first.input, second.input) and torch.equal(first.target, second.target)
    size = 3 * 40 * 40 * 61
    paths = [*kept.train.files.paths, *kept.evaluation["test"].files.paths]
    assert decode_all(paths, size - 1) is paths and isinstance(decode_all(paths, size), Decoded)


def test_test_images_are_cropped_alike_in_each_epoch_but_for_the_authors(faces):
    for crop, same in (("centre", True), ("authors", False)):
        loaders, epochs = face_loaders(faces, test_crop=crop), []
        for epoch in range(2):
            loaders.set_epoch(epoch, 0)
            epochs.append(torch.cat([batch.input for batch in loaders.evaluation["test"]]))
        assert torch.equal(*epochs) == same


SMALL = [
    "model=imagenet_resnet18",
    "model.pretrained=false",
    "dataset.image_size=32",
    "dataset.num_workers=0",
    "dataset.crop_scale=0.9",
    "batch_size=18",
]


@pytest.mark.parametrize("method", ["discrimloss", "discrimloss_l2", "plain", "superloss"])
def test_a_run_on_faces(run, faces, method):
    options = [f"data_root={faces}", *SMALL, "epochs=2", "optimizer.lr=0.01"]
    params = f"params/utkface/{method}.yaml"
    code, directory, printed, complaints = run(*options, name=method, params=params)
    assert code == 0, complaints
    assert "55 training, 6 test samples; 2 files without an age in their names left out" in printed
    split = pd.read_csv(directory / "split.csv")
    assert split.part.value_counts().to_dict() == {"train": 55, "test": 6}
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["metric"] == "mae"
    assert summary["noise"]["realised"] == pytest.approx(0.4, abs=0.04)
    files = {"targets.png", "suspects.png", "suspects.csv", "samples.npz"}
    assert files <= {path.name for path in directory.iterdir()}
    suspects = pd.read_csv(directory / "suspects.csv")
    assert ages_of(suspects.path) == suspects.true_label.tolist()
    assert (suspects.given_label != suspects.true_label).sum() > 15


def test_a_run_that_was_killed_before_its_summary_ends_as_if_it_had_not_been(run, faces):
    options = [f"data_root={faces}", *SMALL, "epochs=2", "dataset.test_crop=authors"]
    options += ["dataset.crop_scale=0.3", "dataset.image_size=16", "model=cnn", "model.width=4"]
    directory = run(*options, params="params/utkface/plain.yaml")[1]
    whole = dict(np.load(directory / "test.npz"))
    summary = json.loads((directory / "summary.json").read_text())
    (directory / "summary.json").write_text(json.dumps(summary | {"finished": False}))
    (directory / "test.npz").unlink()
    assert run(*options, params="params/utkface/plain.yaml")[0] == 0
    again = np.load(directory / "test.npz")  # the crops of the last epoch, not of the first
    for name, values in whole.items():
        np.testing.assert_array_equal(again[name], values)


def test_a_network_learns_ages_from_faces(run, faces):
    code, directory, *_ = run(
        f"data_root={faces}",
        *SMALL,
        "model=cnn",
        "model.width=8",
        "dataset.image_size=16",
        "epochs=25",
        "optimizer={name: Adam, lr: 3e-3}",
        "schedule=null",
        "noise.kind=none",
        params="params/utkface/plain.yaml",
    )
    rows = pd.read_csv(directory / "metrics.csv")
    assert code == 0
    assert rows.test_metric.min() < 20 < rows.test_metric[0]  # the mean age is 60, guessed from 0
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["at_the_same_epochs"]["test_r2"]["best"] > 0


def test_a_changed_folder_is_noticed_and_a_moved_one_is_not(run, faces):
    options = [*SMALL, "epochs=1", "noise.kind=none", "batch_size=55"]
    directory = run(f"data_root={faces}", *options, params="params/utkface/plain.yaml")[1]
    summary = json.loads((directory / "summary.json").read_text())
    (directory / "summary.json").write_text(json.dumps(summary | {"finished": False}))
    (faces / "moved").mkdir()
    (faces / "UTKFace").rename(faces / "moved/UTKFace")
    assert run(f"data_root={faces}/moved", *options, params="params/utkface/plain.yaml")[0] == 0

    (directory / "summary.json").write_text(json.dumps(summary | {"finished": False}))
    old = next(path for path in (faces / "moved/UTKFace").iterdir() if path.name.startswith("25_"))
    old.rename(old.with_name("25_0_0_2.jpg"))
    code, _, _, complaints = run(
        f"data_root={faces}/moved", *options, params="params/utkface/plain.yaml"
    )
    assert code == 2 and "the files are no longer those" in complaints


def test_a_table_of_numbers_is_a_regression(run, faces):
    """Ages of one's own in a CSV file, some of them known to be wrong."""
    names = sorted(path.name for path in (faces / "UTKFace").glob("*_*_*_*.chip.jpg"))
    ages = ages_of(names)
    labels = [age + 40 * (row % 5 == 0) for row, age in enumerate(ages)]
    table = pd.DataFrame({"path": names, "label": labels, "true_label": ages})
    table.to_csv(faces / "ages.csv", index=False)
    options = [
        f"dataset.file={faces}/ages.csv",
        f"dataset.root={faces}/UTKFace",
        "dataset.image_size=16",
        "epochs=1",
        "dataset.num_workers=0",
        "optimizer.lr=1e-3",
        "schedule=null",
    ]
    task = ["dataset.task=regression", "task=regression", "task_loss=smooth_l1"]
    code, directory, _, complaints = run(*options, *task, params="params/csv/discrimloss.yaml")
    assert code == 0, complaints
    summary = json.loads((directory / "summary.json").read_text())
    suspects = pd.read_csv(directory / "suspects.csv")
    assert summary["metric"] == "mae"
    assert summary["noise"]["realised"] == pytest.approx(0.2, abs=0.07)
    assert set((suspects.given_label - suspects.true_label).unique()) == {0, 40}
    assert "mean_change" in summary["noise"] and (directory / "suspects.png").exists()
    table.assign(label=["young", *table.label[1:]]).to_csv(faces / "ages.csv", index=False)
    params = "params/csv/discrimloss.yaml"
    code, _, _, complaints = run(*options, *task, params=params, name="other")
    message = "must have numbers as labels for dataset.task=regression, got 'young' in line 2"
    assert code == 2 and message in complaints


# Schedules by the batch


def rates(schedule, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule, values = schedule(optimizer), []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedules.step(schedule, after="epoch")  # nothing
        schedules.step(schedule, after="batch")
    return values


def test_the_rate_of_utkface_is_a_saw_tooth():
    saw = rates(lambda optimizer: schedules.ExponentialPerBatch(optimizer, 167), 3 * 167)
    assert saw == pytest.approx([0.1 * math.exp(-0.01 * (step % 167)) for step in range(3 * 167)])
    assert saw[166] == pytest.approx(0.019, abs=1e-4) and saw[167] == 0.1
    falling = rates(
        lambda optimizer: schedules.ExponentialPerBatch(optimizer, 167, restart="never"), 3 * 167
    )
    assert falling[167] == pytest.approx(0.0188, abs=1e-4)
    assert falling[334] == pytest.approx(0.0035, abs=1e-4)


def test_the_rate_of_fine_tuning_rises_and_falls_in_straight_lines():
    line = rates(lambda optimizer: schedules.LinearPerBatch(optimizer, 10, 4), 40)
    assert line == pytest.approx([0.1 * (40 - step) / 40 for step in range(40)])
    warm = rates(lambda optimizer: schedules.LinearPerBatch(optimizer, 10, 4, warmup=0.1), 40)
    assert warm[:5] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    assert warm[-1] == pytest.approx(0.1 / 36)
    with pytest.raises(ValueError, match="warmup"):
        schedules.LinearPerBatch(torch.optim.SGD([torch.zeros(1)]), 10, 4, warmup=1.0)


def test_the_rate_of_co_teaching_is_constant_and_falls_in_equal_steps():
    """As the authors' code has it for each epoch, and beta1 too."""
    text = (Path(__file__).parent / "golden/methods/co_teaching_schedule.json").read_text()
    plans = json.loads(text)["adam_plans"]
    assert plans
    for plan in plans:
        optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=plan["lr"])
        schedule = schedules.ConstantThenLinear(
            optimizer,
            3,
            plan["n_epoch"],
            constant_epochs=plan["epoch_decay_start"],
            late_beta1=0.1,
        )
        for lr, beta1 in zip(plan["lr_plan"], plan["beta1_plan"], strict=True):
            for _ in range(3):
                (group,) = optimizer.param_groups
                assert group["lr"] == pytest.approx(lr, rel=1e-12)
                assert group["betas"] == (beta1, 0.999)
                optimizer.step()
                schedules.step(schedule, after="epoch")  # nothing
                schedules.step(schedule, after="batch")
        assert group["lr"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"constant_epochs": 4}, r"constant_epochs must lie in \[0, 4\), the epochs .* got 4"),
        ({"constant_epochs": -1}, "got -1"),
        ({"late_beta1": 1.0}, r"late_beta1 must lie in \[0, 1\), got 1.0"),
        ({"late_beta1": math.nan}, "got nan"),
        ({"late_beta1": 0.1}, "SGD has no beta1: leave it out"),
    ],
)
def test_an_impossible_schedule_is_named(arguments, message):
    optimizer = torch.optim.SGD([torch.zeros(1)])
    with pytest.raises(ValueError, match=message):
        schedules.ConstantThenLinear(optimizer, 10, 4, **{"constant_epochs": 2} | arguments)


# Clothing1M: the layout of the release


def write_clothing(data_root, train=140, lists="annotations", inside="images/"):
    """A release of ``train`` noisy images, the n-th of class n % 14 and of a shade to match."""
    root = data_root / "clothing1m"
    (root / lists).mkdir(parents=True, exist_ok=True)
    labels, first = {"noisy": "", "clean": ""}, 0
    for name, count in {"noisy_train": train, "clean_val": 28, "clean_test": 14}.items():
        paths = ""
        for number in range(first, first + count):
            path = f"images/{number % 10}/{number}.jpg"
            paths += f"{path}\n"
            labels[name.split("_")[0]] += f"{path} {number % 14}\n"
            file = root / path.replace("images/", inside)
            photograph(file, 17 * (number % 14), size=(20, 24))
        (root / lists / f"{name}_key_list.txt").write_text(paths)
        first += count
    for kind, lines in labels.items():
        (root / lists / f"{kind}_label_kv.txt").write_text(lines)


@pytest.mark.parametrize("lists, inside", [("annotations", "images/"), (".", "")])
def test_clothing1m_is_read_from_its_lists(tmp_path, lists, inside):
    write_clothing(tmp_path, lists=lists, inside=inside)
    data = clothing1m(str(tmp_path), per_class=6, seed=5)
    assert (len(data.train), len(data.validation), len(data.test)) == (84, 28, 14)
    assert torch.bincount(data.train.targets).tolist() == [6] * len(data.classes) == [6] * 14
    assert len(set(data.train.inputs)) == 84 and not data.trusted
    for split in (data.train, data.validation, data.test):
        labels = [int(Path(path).stem) % 14 for path in split.inputs]
        assert labels == split.targets.tolist()
    assert all(Path(path).is_file() for path in data.train.inputs)
    assert len(clothing1m(str(tmp_path), per_class=None).train) == 140
    with pytest.raises(ValueError, match="per_class=11, but T-Shirt has only 10 images"):
        clothing1m(str(tmp_path), per_class=11)


def test_clothes_that_people_have_checked_are_the_verified_part(tmp_path):
    write_clothing(tmp_path)
    assert clothing1m(str(tmp_path), per_class=6).verified is None
    lists = tmp_path / "clothing1m/annotations"
    images = [f"images/0/{1000 + number}.jpg" for number in range(28)]
    (lists / "clean_train_key_list.txt").write_text("\n".join(images))
    with open(lists / "clean_label_kv.txt", "a") as labels:
        labels.writelines(f"{path} {number % 14}\n" for number, path in enumerate(images))
    for number, path in enumerate(images):
        photograph(tmp_path / "clothing1m" / path, 17 * (number % 14), size=(20, 24))
    data = clothing1m(str(tmp_path), per_class=6, num_workers=0, image_size=16)
    assert data.verified.targets.tolist() == [*range(14), *range(14)]
    assert data.verified.inputs == [str(tmp_path / "clothing1m" / path) for path in images]
    assert "28 verified, 28 validation" in str(data) and len(data.train) == 84

    noise = labels_of(data)
    for count in (0, 14):
        trusted, validation = {"count": count}, {"fraction": 0.0}
        parts = split_rows(
            noise, validation=validation, trusted=trusted, seed=0, verified=data.verified
        )
        loaders = make_loaders(
            data, noise, parts, batch_size=40, trusted_batch_size=10, device="cpu", seed=0
        )
        for batch in loaders.train:
            assert batch.extra.target.tolist() == (batch.extra.index % 14).tolist()
            shades = 255 * (batch.extra.input.mean((2, 3)) * 0.3113 + 0.6959)[:, 0]
            assert (shades - 17 * batch.extra.target).abs().max() < 20


def test_the_balanced_part_is_what_the_authors_take():
    labels = [number % 14 for number in range(200)]
    order, full, expected = list(range(200)), dict.fromkeys(range(14), 0), []
    random.seed(9)
    random.shuffle(order)
    for row in order:
        if full[labels[row]] < 5:
            full[labels[row]] += 1
            expected.append(row)
    assert balanced(labels, 5, seed=9) == expected


def test_lists_with_labels_of_their_own_and_without_any(tmp_path):
    write_clothing(tmp_path, lists=".")
    listing = tmp_path / "clothing1m/clean_val_key_list.txt"
    listing.write_text("images/0/0.jpg 3\nimages/1/1.jpg 13\n")
    assert clothing1m(str(tmp_path), per_class=2).validation.targets.tolist() == [3, 13]
    listing.write_text("images/0/0.jpg 3\nimages/1/1.jpg 14\n")
    message = r"clean_val_key_list.txt, line 2: images/1/1.jpg has no label from 0 to 13"
    with pytest.raises(ValueError, match=message):
        clothing1m(str(tmp_path), per_class=2)
    listing.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"clean_val_key_list.txt cannot be read as text"):
        clothing1m(str(tmp_path), per_class=2)
    listing.unlink()
    with pytest.raises(FileNotFoundError, match=r"clean_val_key_list.txt was not found.*data_root"):
        clothing1m(str(tmp_path), per_class=2)


def test_a_run_on_clothes_with_a_damaged_one(run, tmp_path):
    write_clothing(tmp_path, train=154)
    (tmp_path / "clothing1m/images/3/13.jpg").write_bytes(b"")
    options = [
        f"data_root={tmp_path}",
        "dataset.per_class=11",
        "dataset.image_size=16",
        "dataset.num_workers=2",
        "model=imagenet_resnet18",
        "epochs=1",
        "batch_size=44",
    ]
    params = "params/clothing1m/discrimloss.yaml"
    code, directory, printed, complaints = run(*options, params=params)
    assert code == 0 and "154 training, 28 validation, 14 test samples in 14 classes" in printed
    assert "13.jpg cannot be read as an image and is left out" in complaints
    summary = json.loads((directory / "summary.json").read_text())
    paths = [str(tmp_path / "clothing1m/images/3/13.jpg")]
    assert summary["unreadable_images"] == {"count": 1, "paths": paths}
    assert summary["test"]["validated"] is not None and summary["noise"]["realised"] is None
    with np.load(directory / "samples.npz") as samples:
        assert len(samples["index"]) == 153

    for name in ("0/10", "1/11"):
        (tmp_path / f"clothing1m/images/{name}.jpg").write_bytes(b"")
    code, _, _, complaints = run(*options, params="params/clothing1m/plain.yaml", name="worse")
    assert code == 1 and "of 154 image files cannot be read, more than 1%" in complaints


def test_a_resumed_run_with_a_damaged_image_is_as_if_nothing_had_happened(
    run, tmp_path, monkeypatch
):
    """It was left out before the signal, after which the process does not know of it."""
    from tests.test_run import equal, interrupt_at, weights

    write_clothing(tmp_path, train=154)
    (tmp_path / "clothing1m/images/3/13.jpg").write_bytes(b"")
    options = [
        f"data_root={tmp_path}",
        "dataset.per_class=11",
        "dataset.image_size=16",
        "dataset.num_workers=0",
        "seed=2",
        "model=cnn",
        "model.width=4",
        "epochs=2",
        "batch_size=10",
        "record_losses=true",
    ]
    params = "params/clothing1m/discrimloss.yaml"
    assert run(*options, params=params, name="whole")[0] == 0
    interrupt_at(monkeypatch, 29)  # in the last but one step of the second epoch
    assert run(*options, params=params, name="again")[0] == 75
    monkeypatch.undo()
    assert run(*options, params=params, name="again")[0] == 0
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert equal(weights(whole), weights(again))
    np.testing.assert_array_equal(np.load(whole / "losses.npy"), np.load(again / "losses.npy"))
    first, second = (pd.read_csv(path / "metrics.csv") for path in (whole, again))
    times = ["seconds", "images_per_second"]
    assert first.drop(columns=times).equals(second.drop(columns=times))


def test_a_selection_leaves_out_what_could_not_be_read(run, tmp_path):
    write_clothing(tmp_path, train=154)
    (tmp_path / "clothing1m/images/3/13.jpg").write_bytes(b"")
    options = [
        f"data_root={tmp_path}",
        "dataset.per_class=11",
        "dataset.image_size=16",
        "dataset.num_workers=0",
        "model=imagenet_resnet18",
        "epochs=1",
        "batch_size=44",
    ]
    params = "params/clothing1m/plain.yaml"
    code, first, *_ = run(*options, "record_losses=true", params=params, name="first")
    losses = np.load(first / "losses.npy")
    assert code == 0 and np.isnan(losses).sum() == 1
    selection = f"dataset.selection={{history: {first}/losses.npy, keep_fraction: 0.5}}"
    code, second, _, complaints = run(*options, selection, params=params, name="second")
    assert code == 0, complaints
    with np.load(second / "selection.npz") as stored:
        assert not np.isnan(losses[0, stored["index"]]).any() and len(stored["index"]) == 14 * 5


# WebVision: the layout of the release


def write_webvision(data_root, classes=3):
    """Images of these classes and of another one, the shade of each class its own."""
    root = data_root / "webvision"
    (root / "info").mkdir(parents=True)
    train, test, synsets = "", "", ""
    for label in range(classes + 1):
        paths = [f"google/q{label:04}/{label}_{number}.jpg" for number in range(6)]
        train += "".join(f"{path} {label}\n" for path in paths)
        test += f"val{label:06}.jpg {label}\n"
        synsets += f"n{label:08} thing {label}, other name\n"
        imagenet = data_root / "imagenet/val" / f"n{label:08}"
        for path in (
            *(root / path for path in paths),
            root / "val_images_256" / f"val{label:06}.jpg",
            *(imagenet / f"ILSVRC2012_val_{number}.JPEG" for number in range(2)),
        ):
            photograph(path, 60 * label, size=(20, 24))
    (root / "info/synsets.txt").write_text(synsets)
    (root / "info/train_filelist_google.txt").write_text(train)
    (root / "info/val_filelist.txt").write_text(test)


def test_webvision_is_read_from_its_lists(tmp_path):
    write_webvision(tmp_path)
    data = webvision(str(tmp_path), num_classes=3)
    assert data.classes == ["thing 0", "thing 1", "thing 2"]
    assert (len(data.train), len(data.test)) == (18, 3)
    assert data.more_tests["imagenet"].targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.train.inputs[6] == str(tmp_path / "webvision/google/q0001/1_0.jpg")
    assert data.train.targets[6] == 1
    with pytest.raises(ValueError, match="names 4 classes, fewer than num_classes=50"):
        webvision(str(tmp_path))
    (tmp_path / "imagenet/val/n00000003").rename(tmp_path / "imagenet/val/other")
    with pytest.raises(FileNotFoundError, match="has no images of n00000003"):
        webvision(str(tmp_path), num_classes=4)
    (tmp_path / "imagenet").rename(tmp_path / "elsewhere")
    assert not webvision(str(tmp_path), num_classes=3).more_tests
    names = ["n1 crane, a bird", "n2 tench", "n3 crane, a machine", "n4 tench, not among three"]
    (tmp_path / "webvision/info/synsets.txt").write_text("\n".join(names))
    data = webvision(str(tmp_path), num_classes=3)
    assert data.classes == ["crane (n1)", "tench", "crane (n3)"]


def test_a_run_on_webvision_is_tested_on_both(run, tmp_path):
    write_webvision(tmp_path)
    options = [
        f"data_root={tmp_path}",
        "dataset.num_classes=3",
        "dataset.image_size=16",
        "dataset.num_workers=0",
        "model=imagenet_resnet18",
        "epochs=2",
    ]
    code, directory, printed, complaints = run(*options, params="params/webvision/plain.yaml")
    assert code == 0, complaints
    assert "18 training, 3 test, 6 imagenet samples in 3 classes" in printed
    rows = pd.read_csv(directory / "metrics.csv")
    summary = json.loads((directory / "summary.json").read_text())
    expected = rows.imagenet_metric[summary["test"]["best_epoch"]]
    got = summary["at_the_same_epochs"]["imagenet_metric"]["best"]
    assert got == pytest.approx(expected, rel=1e-5)
