"""From suspects to mended labels: what is listed, the decisions, and what they change."""

import base64
import csv
import io
import json
import os
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import datasets
from datasets import digits, features
from datasets.label_files import read_labels
from experiment import SCHEMAS, build_data
from tests.fixtures import write_digits
from tests.review_runs import CLASSES, make_judged
from utils.config import load
from utils.errors import UserError
from utils.files import file_sha256
from utils.predict import find_images
from utils.review import page
from utils.review.decisions import Decision, find_class, read_decisions
from utils.review.exchange import OUTPUTS, export
from utils.review.listing import identifiers, in_words, keys, make_listing, write_listing
from utils.review.mend import describe, how_to_train, mend


@pytest.fixture
def judged(tmp_path):
    return make_judged(tmp_path / "run")


def write_rows(path: Path, rows, head="path,given,decision,label,time", end="\n"):
    path.write_bytes(end.join([head, *rows, ""]).encode())
    return path


def row_of(judged, name):
    return keys(judged).index(name)


def content_of(judged, count=2000, **options):
    """What the page of a run holds."""
    path = judged.run / "review.html"
    page.write(judged, make_listing(judged, count), path, options.get("stop_below", 0.1))
    return json.loads(script_of(path.read_text()))


def script_of(html):
    return re.search(r'<script type="application/json" id="review">(.*?)</script>', html)[1]


# What is listed


def test_the_sample_is_of_what_is_neither_listed_nor_flagged(tmp_path):
    flagged = np.zeros(300, bool)
    flagged[100:150] = True
    judged = make_judged(tmp_path / "run", 300, flagged=flagged)
    listing = make_listing(judged, 40)
    assert listing.suspects == list(range(40)) and len(set(listing.sample)) == 50
    assert listing.num_unsuspected == 210
    assert min(listing.sample) >= 40 and not flagged[listing.sample].any()
    assert listing.sample != sorted(listing.sample)  # the quality of one says nothing of the next
    assert listing == make_listing(judged, 40)
    other = make_listing(judged, 60).sample
    assert len(set(other) & set(listing.sample)) > 35  # if the list is made anew, and longer
    assert make_listing(judged, 300).sample == []
    usual, num_flagged = make_listing(judged), int(judged.table["flagged"].sum())
    assert len(usual.suspects) == num_flagged + (300 - num_flagged + 1) // 2
    assert len(usual.sample) == 50 and not set(usual.sample) & set(usual.suspects)


def test_a_sample_that_is_there_twice_is_looked_at_once(tmp_path):
    names = ["a.png", "b.png", "a.png", "a.png"]
    given = np.array([0, 1, 0, 2])
    judged = make_judged(tmp_path / "run", 4, names=names, given=given, flagged=np.zeros(4, bool))
    assert make_listing(judged, 9).suspects == [0, 1, 3]
    assert make_listing(judged, 2).sample == [3]


def test_what_is_no_path_is_called_by_its_part_and_position(tmp_path):
    judged = make_judged(tmp_path / "run", kind="text", num_test=1)
    names = sorted(keys(judged))
    assert names == sorted([f"train/{number}" for number in range(11)] + ["test/0"])
    judged = make_judged(tmp_path / "run", 4, num_test=0, names=["a", "b\n", "c\udcff", "d\u2028"])
    assert keys(judged) == ["a", *identifiers(judged)[1:]]


# The page


def test_the_page_needs_no_network_and_holds_what_is_listed(judged):
    content = content_of(judged, 5)
    html = (judged.run / "review.html").read_text()
    assert "http" not in html.replace("http-equiv", "") and "src=" not in script_free(html)
    assert content["num_suspects"] == 5 and len(content["keys"]) == 12
    assert content["keys"][:5] == [judged.names[row] for row in range(5)]
    assert content["ranks"][:5] == [1, 2, 3, 4, 5] and content["score_name"] == "DiscrimLoss score"
    assert content["links"][0].startswith("../photos/train/")
    assert all(uri.startswith("data:image/png;base64,") for uri in content["pictures"])


def script_free(html):
    return re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)


HOSTILE = [
    "</script><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "a\u2028b{{7*7}}",
]


def test_hostile_names_stay_text(tmp_path):
    names = [f"train/{name}/{number}.png" for number in range(4) for name in HOSTILE]
    judged = make_judged(tmp_path / "<b>run", classes=HOSTILE, names=names)
    content = content_of(judged)
    html = (judged.run / "review.html").read_text()
    assert content["classes"] == HOSTILE and "\\u2028" in content["shown_classes"][2]
    assert content["keys"][:2] == names[:2] and content["keys"][2] == identifiers(judged)[2]
    assert "\u2028" not in html and "<b>" not in html and "alert(1)</" not in html
    assert content["links"][1].count("%3Cimg") == 1

    class Tags(HTMLParser):
        kinds: list = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            self.kinds.append(tag)

    Tags().feed(html)
    assert Tags.kinds.count("script") == 2 and Tags.kinds.count("img") == 1


def test_a_thumbnail_is_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 600, 3), np.uint8)
    for image in (Image.fromarray(noise), Image.new("RGB", (900, 10)), Image.new("L", (65, 70))):
        uri = page.thumbnail(image)
        assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 8000 * 4 / 3 + 50
    assert page.thumbnail(Image.new("L", (28, 28))).startswith("data:image/png;base64,")


def test_an_image_that_cannot_be_read_leaves_its_name(judged):
    judged.picture = lambda row: None
    assert set(content_of(judged)["pictures"]) == {""}


def test_a_jpeg_is_decoded_small_and_turned_as_the_training_turns_it(judged):
    photo = Image.new("RGB", (3000, 1000), "red")
    photo.paste("blue", (0, 0, 1500, 1000))  # on the left, and once turned at the top
    tags = Image.Exif()
    tags[0x0112] = 6
    path = judged.root / judged.names[0]
    path.parent.mkdir(parents=True)
    photo.save(path, "JPEG", exif=tags)
    uri = content_of(judged)["pictures"][0]
    shown = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert uri.startswith("data:image/jpeg") and shown.size == (53, 160)
    (_, _, blue), (red, _, _) = shown.getpixel((25, 20)), shown.getpixel((25, 140))
    assert blue > 200 and red > 200
    path.write_bytes(path.read_bytes()[:500])
    assert content_of(judged)["pictures"][0].startswith("data:image/png")  # of the slow way


def test_the_browser_keeps_decisions_by_the_run_and_its_list(tmp_path):
    judged = make_judged(tmp_path / "run")
    first = content_of(judged, 5)["storage"]
    assert first == content_of(judged, 5)["storage"] != content_of(judged, 6)["storage"]
    summary = json.loads((judged.run / "summary.json").read_text())
    summary["noise"]["sha256"] = "6" * 64
    (judged.run / "summary.json").write_text(json.dumps(summary))
    assert content_of(judged, 5)["storage"] != first


def test_numbers_have_no_classes_and_few_digits(tmp_path):
    judged = make_judged(tmp_path / "run", kind="numbers", predicted=np.full(12, 3.14159265))
    content = content_of(judged)
    assert content["classes"] == [] and content["predicted"] == [3.142] * 12
    assert sorted(content["given"]) == [number + 0.5 for number in range(12)]
    assert "second" not in content


# Decisions


def apply(judged, *paths):
    return mend(judged, read_decisions(judged, list(paths)))


def decide(judged, **words):
    """Rows of a decisions.csv for samples by their position: keep, drop, unsure or a new label."""
    rows = []
    for place, word in words.items():
        row = row_of(judged, identifier(judged, int(place.removeprefix("n"))))
        given = judged.classes[judged.table["given"][row]]
        is_word = word in ("keep", "drop", "unsure")
        rows.append(
            [keys(judged)[row], given, word if is_word else "relabel", "" if is_word else word]
        )
    return [",".join([*row, "2026-01-01T00:00:00.000Z"]) for row in rows]


def identifier(judged, position):
    return next(name for name in keys(judged) if re.search(rf"\b0*{position}(\.png)?$", name))


def test_decisions_mend_all_labels_of_a_run_that_split_its_files(judged, tmp_path):
    file = write_rows(
        tmp_path / "d.csv", decide(judged, n0="owl", n1="drop", n2="keep", n3="unsure", n9="dog")
    )
    written, report = apply(judged, file)
    assert [path.name for path in written] == ["labels_fixed.csv", "labels_fixed.json"]
    table = pd.read_csv(written[0])
    assert list(table.columns) == ["path", "label"] and len(table) == 11  # the test part too
    labels = dict(zip(table.path, table.label, strict=True))
    assert labels.pop("train/cat/00.png") == "owl" and labels.pop("train/cat/09.png") == "dog"
    assert "train/dog/01.png" not in labels
    assert all(path.split("/")[1] == label for path, label in labels.items())
    assert table.path.tolist() == sorted(table.path, key=lambda path: path[-6:])
    assert report["decisions"] == {"keep": 1, "relabel": 2, "drop": 1, "unsure": 1}
    assert report["reviewed"]["decided"] == 4 and report["reviewed"]["wrong"] == 3
    assert json.loads(written[1].read_text()) == report
    assert report["sha256"] == {"labels_fixed.csv": file_sha256(written[0])}


def test_what_is_mended_can_be_trained_on(tmp_path):
    from datasets import csv as read_images

    names = [f"train/{CLASSES[number % 3]}/{number:02d}.png" for number in range(30)]
    root = tmp_path / "photos"
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number,) * 3).save(root / name)
    judged = make_judged(tmp_path / "run", 30)
    apply(
        judged,
        write_rows(tmp_path / "d.csv", decide(judged, n0="owl", n4="drop")),
    )
    data = read_images(str(judged.run / "labels_fixed.csv"), root=str(root))
    assert data.classes == CLASSES and len(data.train) + len(data.test) == 29


def test_a_test_part_of_its_own_is_mended_apart(tmp_path):
    config = {"dataset": {"name": "csv", "test_file": "test.csv"}}
    judged = make_judged(tmp_path / "run", config=config, made_split=False)
    written, _ = apply(judged, write_rows(tmp_path / "d.csv", decide(judged, n0="dog")))
    assert [path.name for path in written] == ["labels_fixed.csv", "labels_fixed.json"]
    assert len(pd.read_csv(written[0])) == 8
    for path in written:
        path.unlink()
    written, _ = apply(
        judged, write_rows(tmp_path / "d.csv", decide(judged, n10="cat", n11="drop"))
    )
    names = ["labels_fixed.csv", "labels_fixed_test.csv", "labels_fixed.json"]
    assert [path.name for path in written] == names
    expected = [f"dataset.file={written[0]}", f"dataset.root={judged.data.root}"]
    assert how_to_train(judged, written).split() == [*expected, f"dataset.test_file={written[1]}"]
    test = pd.read_csv(written[1])
    assert test.label.tolist() == ["owl", "cat", "cat"] and len(pd.read_csv(written[0])) == 8


@pytest.mark.parametrize("kind", ["images", "features", "texts"])
def test_a_test_part_that_is_tested_on_true_labels_keeps_those_given(tmp_path, tiny_bert, kind):
    true = ["cat" if number % 2 else "dog" for number in range(40)]
    given = ["owl" if number % 5 == 0 else label for number, label in enumerate(true)]
    names = [f"{number}.png" for number in range(40)]
    for number, name in enumerate(names):
        Image.new("L", (8, 8), number).save(tmp_path / name)
    rows = map(",".join, zip(names, given, true, strict=True))
    first = "text" if kind == "texts" else "path"
    table = str(write_rows(tmp_path / "t.csv", rows, f"{first},label,true_label"))
    config = {"dataset": {"name": "text" if kind == "texts" else "csv"}}
    judged = make_judged(tmp_path / "run", config=config)
    if kind == "texts":
        judged.data = datasets.text(table, encoder=tiny_bert)
    else:
        judged.data = datasets.csv(table, root=str(tmp_path), image_size=8)
    if kind == "features":
        options = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "device": "cpu"}
        judged.data = features.replace_images(
            judged.data, torch.nn.Flatten(), folder=tmp_path / "kept", **options
        )
    labels = judged.data.train.targets.numpy()
    np.savez(judged.run / "noise.npz", given=labels)
    judged.table = {"part": np.array(["train"]), "index": np.array([0]), "given": labels[:1]}
    written, _ = mend(judged, {0: Decision("keep", None, "line 2")})
    mended = pd.read_csv(written[0])
    assert dict(mended.to_numpy()) == dict(zip(names, given, strict=True))


@pytest.mark.parametrize("name", ["folder", "webvision"])
def test_a_test_part_that_no_table_lists_gets_one(tmp_path, name):
    config = {"dataset": {"name": name}}
    judged = make_judged(tmp_path / "run", made_split=False, config=config)
    written, _ = apply(judged, write_rows(tmp_path / "d.csv", decide(judged, n0="dog")))
    assert len(pd.read_csv(written[1])) == 4  # which no table has listed


def read_again(judged, file, params, *overrides):
    """The data that the printed arguments name, after the decisions of this file."""
    printed = how_to_train(judged, apply(judged, file)[0])
    return build_data(load(params, [*shlex.split(printed), *overrides], SCHEMAS))


@pytest.mark.parametrize("kind", ["files", "numbers"])
def test_the_printed_arguments_read_images_as_the_run_did(tmp_path, kind):
    test_file, root = tmp_path / "trusted test.csv", tmp_path / "photos"
    config = {"dataset": {"name": "csv", "test_file": str(test_file)}, "task_loss": "smooth_l1"}
    config["data_root"] = "data"
    judged = make_judged(tmp_path / "run", 30, kind=kind, config=config, made_split=False)
    for number, path in enumerate(judged.data.train.source + judged.data.test.source):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"image %d" % number)  # nothing here decodes them
    labels = [judged.classes[label] if judged.classes else label for label in range(2)]
    names = [str(Path(path).relative_to(root)) for path in judged.data.test.source[:2]]
    pairs = zip(names, labels, strict=True)
    write_rows(test_file, [f"{name},{label}" for name, label in pairs], "path,label")
    row = next(row for row, part in enumerate(judged.table["part"]) if part == "train")
    given = in_words(judged, judged.table["given"][row])
    file = write_rows(tmp_path / "d.csv", [f"{identifiers(judged)[row]},{given},drop,,"])
    data = read_again(judged, file, "params/csv/small.yaml")
    assert data.classes == judged.classes and data.task == judged.data.task
    assert len(data.train) == 25 and data.test.targets.tolist() == [0, 1]


def test_the_printed_arguments_read_texts_as_the_run_did(tmp_path, tiny_bert):
    columns = {"text_column": "review", "label_column": "1"}
    config = {"dataset": {"name": "text", "test_file": "trusted.csv", **columns}}
    config["data_root"] = str(tmp_path)
    judged = make_judged(tmp_path / "run", kind="text", config=config, made_split=False)
    write_rows(tmp_path / "trusted.csv", ["so so,dog"], "review,1")
    file = write_rows(tmp_path / "d.csv", ["train/5,owl,drop,,"])
    data = read_again(judged, file, "params/text/plain.yaml", f"model.path={tiny_bert}")
    assert len(data.train) == 7 and data.test.texts == ["so so"]
    assert data.classes == CLASSES and data.test.targets.tolist() == [1]


def test_texts_keep_the_columns_that_they_were_read_from(tmp_path):
    config = {"dataset": {"name": "text", "text_column": "review", "label_column": "stars"}}
    judged = make_judged(tmp_path / "run", kind="text", config=config)
    judged.data.train.texts[5] = 'so, "so"\ngood'
    file = write_rows(tmp_path / "d.csv", ["train/5,owl,relabel,cat,"])
    written, _ = apply(judged, file)
    table = pd.read_csv(written[0])
    assert list(table.columns) == ["review", "stars"] and len(table) == 12
    assert dict(zip(table.review, table.stars, strict=True))['so, "so"\ngood'] == "cat"


def test_what_is_not_decided_is_read_again_as_it_was(tmp_path, tiny_bert):
    texts = [" two\r, or", "a\rb", "a\r\nb\n", ' "c", d ', "=1+1", "e;f", "'g"]
    config = {"dataset": {"name": "text"}}
    judged = make_judged(tmp_path / "texts", kind="text", num_test=0, config=config)
    texts += judged.data.train.texts[len(texts) :]
    judged.data.train.texts[:] = texts
    file = write_rows(tmp_path / "d.csv", ["train/11,owl,keep,,"])
    (path, _), _ = apply(judged, file)
    data = datasets.text(str(path), encoder=tiny_bert, test_fraction=0)
    assert data.train.texts == texts

    numbers = [1234567.75, 0.1, 1 / 3, 16777215, 3e-20, 7]
    names = [" a.png", "b .png", "c,.png", '"d".png', "e\r.png", " f\n.png"]
    (tmp_path / "photos").mkdir()
    for name in names:
        (tmp_path / "photos" / name).write_text(name)
    judged = make_judged(tmp_path / "run", 6, kind="numbers", num_test=0)
    judged.data.train.inputs[:] = [str(tmp_path / "photos" / name) for name in names]
    judged.data.train.targets[:] = torch.tensor(numbers)
    judged.table["given"] = judged.data.train.targets.numpy()[judged.table["index"]]
    judged.names = [names[index] for index in judged.table["index"]]
    np.savez(judged.run / "noise.npz", given=judged.data.train.targets.numpy())
    (path, _), _ = apply(judged, write_rows(tmp_path / "d.csv", ["train/5,7,keep,,"]))
    data = datasets.csv(str(path), root=str(judged.root), task="regression", test_fraction=0)
    assert [data.name(file) for file in data.train.inputs] == names
    assert data.train.targets.tolist() == judged.data.train.targets.tolist()
    assert path.read_text().endswith(',"7"\n')  # and no more digits than it takes


def test_numbers_are_mended(tmp_path):
    judged = make_judged(tmp_path / "run", kind="numbers")
    rows = ["train/a/03.png;3,5;relabel;7,25;", "train/a/04.png;4,5;keep;;"]
    file = write_rows(tmp_path / "d.csv", rows, "path;given;decision;label;time")
    written, report = apply(judged, file)
    table = pd.read_csv(written[0], index_col="path").label
    assert table["train/a/03.png"] == 7.25 and table["train/a/04.png"] == 4.5 and len(table) == 12
    assert report["reviewed"]["wrong"] == 1
    bad = write_rows(tmp_path / "d.csv", ["train/a/03.png,3.5,relabel,old,"])
    with pytest.raises(UserError, match=r"line 2: the label must be a number, got 'old'"):
        read_decisions(judged, [bad])


@pytest.mark.parametrize("classes", [CLASSES, []])
def test_data_in_memory_become_labels_for_noise(tmp_path, classes):
    config = {"dataset": {"name": "mnist"}}
    judged = make_judged(tmp_path / "run", kind="memory", classes=classes, config=config)
    given = judged.data.train.targets.tolist()
    names = [classes[label] if classes else label for label in given]
    rows = [f"train/3,{names[3]},relabel,{'owl' if classes else 99},", f"train/4,{names[4]},drop,,"]
    written, _ = apply(judged, write_rows(tmp_path / "d.csv", rows))
    assert [path.name for path in written] == ["labels_fixed.npz", "labels_fixed.json"]
    kind, _, path = how_to_train(judged, written).partition(":")
    labels = read_labels(path, 8, len(classes))
    assert kind == "noise.kind=file" and labels.tolist() == [
        *given[:3],
        2 if classes else 99,
        *given[4:],
    ]
    with np.load(written[0]) as arrays:
        assert np.flatnonzero(arrays["dropped"]).tolist() == [4]


def test_samples_that_were_not_judged_keep_their_labels(judged, tmp_path):
    given = {
        name: CLASSES[label]
        for name, label in zip(judged.names, judged.table["given"], strict=True)
    }
    for name, column in judged.table.items():
        judged.table[name] = column[:7]
    names, judged.names = judged.names, judged.names[:7]
    file = write_rows(tmp_path / "d.csv", [f"{names[0]},{given[names[0]]},drop,,"])
    written, report = apply(judged, file)
    table = pd.read_csv(written[0])
    assert dict(zip(table.path, table.label, strict=True)) == {
        name: label for name, label in given.items() if name != names[0]
    }
    assert report["samples"] == 12


def test_what_is_left_is_estimated_from_the_random_sample(tmp_path):
    judged = make_judged(tmp_path / "run", 1000, num_test=0)
    listing = make_listing(judged, 100)
    write_listing(judged, listing)
    rows = []
    for number, row in enumerate([*listing.suspects[:20], *listing.sample[:40]]):
        given = judged.classes[judged.table["given"][row]]
        is_hit = number < 15 or 20 <= number < 24
        word = "drop" if is_hit else "unsure" if number == 19 else "keep"
        rows.append(f"{judged.names[row]},{given},{word},,")
    _, report = apply(judged, write_rows(tmp_path / "d.csv", rows))
    assert report["reviewed"]["decided"] == 19 and report["reviewed"]["wrong"] == 15
    assert report["reviewed"]["interval"] == pytest.approx([0.5667, 0.9149], abs=1e-3)  # Wilson
    left = report["unsuspected"]
    assert left["decided"] == 40 and left["wrong"] == 4 and left["of"] == 900
    assert left["left"] == pytest.approx(0.1 * 860)
    assert left["left_interval"] == pytest.approx([0.03958 * 860, 0.23052 * 860], abs=0.2)
    lines = describe(report)
    assert "of 19 reviewed suspects 15 had a wrong label: 78.9 % [56.7, 91.5]" in lines[1]
    assert "about 86 [34, 198] wrong labels are left" in lines[2]


def test_without_a_decided_sample_nothing_is_said_about_the_rest(judged, tmp_path):
    _, report = apply(judged, write_rows(tmp_path / "d.csv", decide(judged, n0="dog")))
    assert report["unsuspected"] is None and "not known" in describe(report)[-1]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_that_a_spreadsheet_has_written_works(judged, tmp_path, end):
    rows = [row.replace(",", ";") for row in decide(judged, n0="owl", n1="drop")]
    rows[0] = ";".join(f'"{cell}"' for cell in rows[0].split(";"))
    rows[1] = rows[1].replace("drop", "Drop ")
    head = "\ufeffpath;given;decision;label;time"
    file = write_rows(tmp_path / "d.csv", [*rows, ";;;;", ""], head, end)
    decisions = read_decisions(judged, [file])
    assert sorted((word, label) for word, label, _ in decisions.values()) == [
        ("drop", None),
        ("relabel", 2),
    ]


def test_names_that_a_spreadsheet_would_compute_come_back(tmp_path):
    judged = make_judged(
        tmp_path / "run", 4, classes=["=1+1", "-", "01"], names=["=a", "+b", "c", "d"]
    )
    row = row_of(judged, "=a")
    given = judged.classes[judged.table["given"][row]]
    other = next(name for name in ("=1+1", "01") if name != given)
    cell = {"=1+1": "'=1+1", "01": "1"}[other]  # as the page writes it, and as a spreadsheet does
    file = write_rows(tmp_path / "d.csv", [f"'=a,{given},relabel,{cell},"])
    assert read_decisions(judged, [file])[row].label == judged.classes.index(other)


def test_capitals_of_a_spreadsheet_are_those_of_the_one_class_that_fits(tmp_path):
    judged = make_judged(tmp_path / "run", classes=["False", "True", "a", "A"])
    row = next(row for row, label in enumerate(judged.table["given"]) if label == 1)
    file = write_rows(tmp_path / "d.csv", [f"{judged.names[row]},TRUE,relabel,FALSE ,"])
    assert read_decisions(judged, [file])[row].label == 0
    assert find_class(judged.classes, "a") == 2 and find_class(judged.classes, "A") == 3
    assert find_class(["a b", "A B"], "a B") is None


def test_empty_decisions_are_none_and_agreement_counts_once(judged, tmp_path):
    rows = decide(judged, n0="owl")
    first = write_rows(tmp_path / "a.csv", [*rows, *rows, "x,y,,,"])
    second = write_rows(tmp_path / "b.csv", rows)
    assert len(read_decisions(judged, [first, second])) == 1
    with pytest.raises(UserError, match=r"no decision in .*a\.csv"):
        read_decisions(judged, [write_rows(tmp_path / "a.csv", ["x,y,,,"])])


def test_decisions_that_were_saved_later_under_a_number_are_pointed_at(judged, tmp_path, capsys):
    names = ["decisions.csv", "decisions (2).csv", "decisions(3).csv", "decisions of Ann.csv"]
    files = [write_rows(tmp_path / name, decide(judged, n0="owl")) for name in names]
    for seconds, file in enumerate(files):
        os.utime(file, (seconds, seconds))
    for file in files[:2]:
        read_decisions(judged, [file])
        warned = capsys.readouterr().err
        assert warned.startswith(f"warning: {files[2]} was saved after {file}, and is not applied")
        assert warned.count("\n") == 1
    for given in (files[2:3], files[:3], files[3:]):
        read_decisions(judged, given)
    assert capsys.readouterr().err == ""


def test_relabelling_as_given_is_keeping(judged, tmp_path):
    file = write_rows(tmp_path / "d.csv", ["train/cat/00.png,cat,relabel,cat,"])
    assert next(iter(read_decisions(judged, [file]).values())).word == "keep"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["train/cat/00.png,cat,keep,,", "train/owl/08.pgn,owl,keep,,"],
            r"d\.csv, line 3: .*no sample 'train/owl/08\.pgn'; did you mean 'train/owl/08\.png'",
        ),
        (["x/1,a,keep,,", "x/2,a,keep,,"], r"line 2: .*2 such of 2.*about another run"),
        (
            ["train/cat/00.png,dog,keep,,"],
            r"line 2: .*is given 'dog' there, and 'cat' in .*about another run",
        ),
        (
            ["train/cat/00.png,cat,relabel,dgo,"],
            r"line 2: label: 'dgo' is not known; did you mean 'dog'\?",
        ),
        (["train/cat/00.png,cat,relable,dog,"], r"line 2: decision: 'relable'.*mean 'relabel'"),
        (["train/cat/00.png,cat,relabel,,"], r"line 2: the decision relabel needs the new label"),
        (["train/cat/00.png,cat,keep,dog,"], r"line 2: the decision is keep, and the label 'dog'"),
        (
            ["train/cat/00.png,cat,keep,,", "train/cat/00.png,cat,relabel,owl,"],
            r"d\.csv, line 3: .*is relabel as owl, and in .*d\.csv, line 2 it is keep",
        ),
        (["train/cat/00.png,cat"], r"has 2 fields in line 2"),
    ],
)
def test_what_is_wrong_with_decisions_is_named_and_nothing_is_written(
    judged, tmp_path, rows, message
):
    with pytest.raises(UserError, match=message):
        apply(judged, write_rows(tmp_path / "d.csv", rows))
    assert not list(judged.run.glob("labels_fixed*"))


def test_a_column_or_file_that_is_not_there_is_named(judged, tmp_path):
    file = write_rows(tmp_path / "d.csv", ["a,keep"], "path,decision")
    with pytest.raises(UserError, match="has no column 'given'; it has path, decision, and needs"):
        read_decisions(judged, [file])
    with pytest.raises(UserError, match=r"none\.csv: there is no such file"):
        read_decisions(judged, [tmp_path / "none.csv"])


@pytest.mark.parametrize("name", ["labels_fixed.csv", "labels_fixed.json"])
def test_no_file_is_written_over(judged, tmp_path, name):
    (judged.run / name).write_text("mine")
    file = write_rows(tmp_path / "d.csv", decide(judged, n0="owl"))
    with pytest.raises(UserError, match=rf"{name} is there already"):
        apply(judged, file)
    assert (judged.run / name).read_text() == "mine"
    assert len(list(judged.run.glob("labels_fixed*"))) == 1


# Other tools


def test_cleanlab_reads_what_is_exported(tmp_path):
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression

    judged = make_judged(tmp_path / "run", 60, num_test=12)
    (path,) = export(judged, make_listing(judged, 9), "cleanlab", tmp_path / "c.csv")
    table = pd.read_csv(path)
    train = table[table.part != "test"]
    assert train.path.tolist() == sorted(train.path, key=lambda name: name[-6:])
    labels = train.given_label.to_numpy()
    features = np.random.default_rng(0).normal(size=(48, 2)) + labels[:, None]
    learner = CleanLearning(LogisticRegression())
    learner.fit(features, labels, label_issues=train.iloc[:, :4])
    issues = learner.get_label_issues()
    assert issues.is_label_issue.tolist() == train.is_label_issue.tolist()
    assert (
        issues.is_label_issue.sum()
        == (judged.table["flagged"] & (judged.table["part"] != "test")).sum()
    )


def test_label_studio_gets_tasks_and_gives_back_annotations(judged, tmp_path):
    path = tmp_path / "tasks.json"
    written = export(judged, make_listing(judged, 5), "labelstudio", path)
    tasks = json.loads(path.read_text())
    assert written == [path, tmp_path / "tasks.xml"] and len(tasks) == 12
    data, (prediction,) = tasks[0]["data"], tasks[0]["predictions"]
    assert data["image"] == f"/data/local-files/?d=photos/{judged.names[0]}"
    assert data["path"] == judged.names[0] and data["list"] == "suspects"
    assert tasks[-1]["data"]["list"] == "random sample"
    assert prediction["score"] == pytest.approx(0.7)
    (result,) = prediction["result"]
    assert (result["from_name"], result["to_name"], result["type"]) == ("label", "image", "choices")

    def annotate(task, control, choice, **more):
        result = {"from_name": control, "to_name": "image", "type": "choices"}
        result["value"] = {"choices": [choice]}
        task["annotations"] = [{"was_cancelled": False, "result": [result], **more}]
        return task

    owls = [task for task in tasks if task["data"]["given"] == "cat"][:3]
    exported = [annotate(owls[0], "label", "owl"), annotate(owls[1], "label", "cat")]
    exported.append(annotate(owls[2], "review", "drop"))
    others = [task for task in tasks if task["data"]["given"] == "dog"]
    exported.append(annotate(others[0], "label", "owl", was_cancelled=True))
    exported.append({"data": others[1]["data"], "annotations": []})
    file = tmp_path / "export.json"
    file.write_text(json.dumps(exported))
    decisions = read_decisions(judged, [file])
    by_name = {judged.names[row]: (word, label) for row, (word, label, _) in decisions.items()}
    assert by_name == {
        owls[0]["data"]["path"]: ("relabel", 2),
        owls[1]["data"]["path"]: ("keep", None),
        owls[2]["data"]["path"]: ("drop", None),
    }


def test_numbers_of_label_studio_keep_their_digits(tmp_path):
    judged = make_judged(tmp_path / "run", kind="numbers")
    result = [{"from_name": "label", "value": {"number": 1234567.75}}]
    data = {"path": "train/3", "given": "3.5"}
    file = tmp_path / "e.json"
    file.write_text(json.dumps([{"data": data, "annotations": [{"result": result}]}]))
    (decision,) = read_decisions(judged, [file]).values()
    assert np.float32(decision.label) == np.float32(1234567.75)


def test_the_labelling_interface_fits_the_tasks(tmp_path):
    from xml.etree import ElementTree

    judged = make_judged(tmp_path / "run", classes=['"<a>"', "b&", "c"])
    export(judged, make_listing(judged, 5), "labelstudio", tmp_path / "t.json")
    view = ElementTree.parse(tmp_path / "t.xml").getroot()
    controls = {tag.get("name"): tag for tag in view if tag.tag == "Choices"}
    assert [choice.get("value") for choice in controls["label"]] == judged.classes
    assert [choice.get("value") for choice in controls["review"]] == ["drop", "unsure"]
    assert view.find("Image").get("value") == "$image"
    texts = make_judged(tmp_path / "texts", kind="text")
    export(texts, make_listing(texts, 5), "labelstudio", tmp_path / "u.json")
    assert ElementTree.parse(tmp_path / "u.xml").find("Text").get("value") == "$text"
    assert json.loads((tmp_path / "u.json").read_text())[0]["data"]["text"] == texts.names[0]


@pytest.mark.parametrize(
    "content", ["[", "{}", '[{"data": {}}]', '[{"id": 1, "image": "a", "label": "cat"}]', "[1]"]
)
def test_what_is_no_export_of_label_studio_is_refused(judged, tmp_path, content):
    file = tmp_path / "e.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"e\.json|no decision"):
        read_decisions(judged, [file])


def test_fiftyone_gets_a_dataset(judged, tmp_path):
    (path,) = export(judged, make_listing(judged, 5), "fiftyone", tmp_path / "samples.json")
    samples = json.loads(path.read_text())["samples"]
    assert len(samples) == 12 and Path(samples[0]["filepath"]).is_absolute()
    assert samples[0]["filepath"].endswith(judged.names[0])
    assert samples[0]["ground_truth"]["_cls"] == "Classification"
    assert samples[0]["predictions"]["confidence"] == pytest.approx(0.7)
    assert samples[0]["mistakenness"] == pytest.approx(0.99)
    with pytest.raises(UserError, match=r"must be called samples\.json"):
        export(judged, make_listing(judged, 5), "fiftyone", tmp_path / "s.json")
    with pytest.raises(UserError, match="is for image files"):
        texts = make_judged(tmp_path / "texts", kind="text")
        export(texts, make_listing(texts, 5), "fiftyone", tmp_path / "s.json")


@pytest.mark.parametrize("kind", ["files", "memory", "text", "numbers"])
def test_a_table_has_every_sample(tmp_path, kind):
    judged = make_judged(tmp_path / "run", kind=kind)
    (path,) = export(judged, make_listing(judged, 5), "csv", tmp_path / "all.csv")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 13)]
    assert [row["path"] for row in rows] == keys(judged) and {row["true"] for row in rows} == {""}
    assert float(rows[0]["quality"]) == pytest.approx(0.01) and rows[0]["flagged"] == "1"
    with pytest.raises(UserError, match="is there already"):
        export(judged, make_listing(judged, 5), "csv", tmp_path / "all.csv")


@pytest.mark.parametrize("form", ["csv", "cleanlab"])
def test_no_cell_of_a_table_is_a_formula(tmp_path, form):
    judged = make_judged(
        tmp_path / "run", 3, num_test=0, classes=["=c", "d"], names=["=a", "b", "c"]
    )
    (path,) = export(judged, make_listing(judged, 5), form, tmp_path / "all.csv")
    assert "'=a" in path.read_text() and "'=c" in path.read_text()
    assert not re.search(r"(^|,)\"?=", path.read_text(), re.MULTILINE)


# The command


@pytest.fixture
def command(monkeypatch, capsys, judged):
    from utils import judged as module
    from utils.review.__main__ import main

    monkeypatch.setattr(module, "judge", lambda run, moved: judged)

    def call(*arguments, code=0):
        assert main([str(argument) for argument in arguments]) == code
        printed = capsys.readouterr()
        assert code == 0 or printed.err.count("\n") == 1
        return printed.out if code == 0 else printed.err

    return call


def test_the_command_leads_from_the_page_to_mended_labels(command, judged, tmp_path):
    assert "review.html" in command(judged.run, "--count", 5)
    before = (judged.run / "review.html").read_text()
    command(judged.run, "--count", 6, "--stop-below", 0.3)
    content = json.loads(script_of((judged.run / "review.html").read_text()))
    assert before != (judged.run / "review.html").read_text() and content["stop_below"] == 0.3
    files = [
        write_rows(tmp_path / name, decide(judged, **rows))
        for name, rows in (("a.csv", {"n0": "owl"}), ("b.csv", {"n1": "drop"}))
    ]
    printed = command(judged.run, "--apply", files[0], "--apply", files[1])
    assert "2 of 12 samples are decided: 0 keep, 1 relabel, 1 drop" in printed
    assert "is there already" in command(judged.run, "--apply", files[0], code=2)


def test_joined_folds_are_reviewed_as_one_run(judged, tmp_path):
    storage = content_of(judged)["storage"]
    (judged.run / "fold0").mkdir()
    for name in ("noise.npz", "summary.json"):
        (judged.run / name).rename(judged.run / "fold0" / name)
    (judged.run / "folds.json").write_text('{"runs": ["fold0", "fold1"]}')
    judged.table["part"] = np.where(judged.table["part"] == "test", "test", "fold 1")
    content = content_of(judged)
    assert content["storage"] == storage and content["score_name"] == "score"
    assert set(content["parts"]) == {"test", "fold 1"}
    written, _ = apply(judged, write_rows(tmp_path / "d.csv", decide(judged, n0="owl")))
    assert len(pd.read_csv(written[0])) == 12


@pytest.mark.parametrize("form", OUTPUTS)
def test_the_command_exports(command, judged, form):
    assert str(judged.run / OUTPUTS[form]) in command(judged.run, "--export", form, "--count", 5)
    assert (judged.run / OUTPUTS[form]).exists()
    assert (judged.run / "review.json").exists() == (form == "labelstudio")


def test_the_command_refuses_what_it_cannot_do(command, judged, tmp_path):
    assert "--count must be at least 1" in command(judged.run, "--count", 0, code=2)
    assert "give one of them" in command(judged.run, "--apply", "a", "--export", "csv", code=2)
    assert "--output names the file" in command(judged.run, "--output", "a", code=2)
    assert not (judged.run / "review.html").exists()


def test_a_damaged_listing_is_named(judged, tmp_path):
    (judged.run / "review.json").write_text('{"sample": ["train/99"], "unsuspected": 3}')
    with pytest.raises(UserError, match=r"review\.json is not that of this run"):
        apply(judged, write_rows(tmp_path / "d.csv", decide(judged, n0="owl")))


# With real runs

TINY = ["model.width=4", "epochs=1", "batch_size=32", "model=cnn", "schedule=null"]
SMALL = ["dataset.image_size=8", "dataset.num_workers=0", "dataset.crop_scale=0.7"]


def review(*arguments):
    from utils.review.__main__ import main

    return main([str(argument) for argument in arguments])


def test_a_folder_is_trained_on_reviewed_mended_and_trained_on_again(run, tmp_path, monkeypatch):
    source = digits()
    for split, size in ((source.train, 100), (source.test, 1)):
        split.inputs, split.targets = split.inputs[:size], split.targets[:size]
    monkeypatch.setattr("tests.fixtures.digits", lambda: source)
    planted = write_digits(tmp_path / "photos", 0.05, seed=0)
    shutil.rmtree(tmp_path / "photos/test")
    options = [f"dataset.root={tmp_path / 'photos'}", *TINY, *SMALL]
    code, directory, *_ = run(*options, params="params/folder/discrimloss.yaml")
    assert code == 0 and review(directory, "--count", 60) == 0
    content = json.loads(script_of((directory / "review.html").read_text()))
    names = content["keys"]
    assert content["num_suspects"] == 60 < len(names)
    assert all(uri.startswith("data:image/png") for uri in content["pictures"])
    suspects = pd.read_csv(directory / "suspects.csv")
    assert suspects.path.tolist()[:60] == names[:60]
    rows = [f"{path},{Path(path).parent.name},drop,," for path in planted]
    assert review(directory, "--apply", write_rows(tmp_path / "d.csv", rows)) == 0
    table = pd.read_csv(directory / "labels_fixed.csv")
    assert len(table) == 95 and not set(table.path) & set(planted)
    options.append(f"dataset.file={directory / 'labels_fixed.csv'}")
    code, again, *_ = run(*options, params="params/csv/discrimloss.yaml", name="again")
    assert code == 0 and len(pd.read_csv(again / "split.csv")) == 95


def test_copies_that_are_none_any_more_are_split_otherwise(run, tmp_path, capsys):
    for number in range(40):
        Image.new("L", (8, 8), 6 * (number // 2)).save(tmp_path / f"{number}.png")  # two of each
    rows = [f"{number}.png,{'ab'[number // 2 % 2]}" for number in range(40)]
    table = write_rows(tmp_path / "t.csv", rows, "path,label")
    options = [f"dataset.file={table}", f"dataset.root={tmp_path}", *TINY, *SMALL]
    _, directory, *_ = run(*options, params="params/csv/plain.yaml")
    assert review(directory) == 0
    for number in range(0, 40, 4):
        path = tmp_path / f"{number}.png"
        path.write_bytes(path.read_bytes()[:-1] + b"!")  # as many bytes, read as the same image
    capsys.readouterr()
    assert review(directory) == 2
    assert "what were copies of each other are none now" in capsys.readouterr().err


def test_labels_of_data_in_memory_are_mended_and_trained_on_again(run, tmp_path):
    code, directory, *_ = run("epochs=1", "model.hidden=[4]")
    assert code == 0
    with np.load(directory / "noise.npz") as arrays:
        given, true = arrays["given"], arrays["true"]
    wrong = np.flatnonzero(given != true)[:50]
    rows = [f"train/{index},{given[index]},relabel,{true[index]}," for index in wrong]
    assert review(directory, "--apply", write_rows(tmp_path / "d.csv", rows)) == 0
    options = [f"noise.kind=file:{directory / 'labels_fixed.npz'}", "epochs=1", "model.hidden=[4]"]
    code, again, *_ = run(*options, name="again")
    with np.load(again / "noise.npz") as arrays:
        expected = given.copy()
        expected[wrong] = true[wrong]
        assert code == 0 and (arrays["given"] == expected).all()


def test_names_of_classes_are_labels_of_a_run(run, tmp_path):
    for number in range(20):
        Image.new("L", (8, 8), 10 * number).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{'ab'[number % 2]}" for number in range(20)]
    table = write_rows(tmp_path / "t.csv", rows, "path,label")
    names = write_rows(tmp_path / "n.csv", ["b"] * 16, "given")
    options = [f"dataset.file={table}", f"dataset.root={tmp_path}", *TINY, *SMALL]
    options.append(f"noise.kind=file:{names}")
    code, directory, *_ = run(*options, params="params/csv/plain.yaml")
    with np.load(directory / "noise.npz") as arrays:
        assert code == 0 and arrays["given"].tolist() == [1] * 16


def test_names_of_files_that_are_no_utf_8_are_mended_and_read_again(run, tmp_path):
    for name in (b"caf\xe9", b"dog"):
        folder = tmp_path / "photos" / os.fsdecode(name)
        folder.mkdir(parents=True)
        for number in range(15):
            path = folder / os.fsdecode(b"%d\xe9.png" % number)
            Image.new("L", (8, 8), 2 * number + len(name)).save(path)
    options = [f"dataset.root={tmp_path / 'photos'}", *TINY, *SMALL]
    code, directory, *_ = run(*options, params="params/folder/plain.yaml")
    assert code == 0
    file = write_rows(tmp_path / "d.csv", ["train/23,dog,relabel,caf\ufffd,"])
    assert review(directory, "--apply", file) == 0
    mended = directory / "labels_fixed.csv"
    data = datasets.csv(str(mended), root=str(tmp_path / "photos"))
    assert data.classes == ["caf\udce9", "dog"] and len(data.train) + len(data.test) == 30
    paths, names = find_images([mended], tmp_path / "photos")
    assert all(map(os.path.exists, paths)) and names[0].endswith("\udce9.png")


def test_a_run_that_is_not_finished_is_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("epochs: 3\n")
    assert review(tmp_path / "run") == 2 and review(tmp_path / "nowhere") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "is not finished" in first and "is not the directory of a run" in second
