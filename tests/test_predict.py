"""What a finished network says of new images and texts, and where else it can be used."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from datasets import csv
from tests.fixtures import write_digits
from utils import predict
from utils.predict import load_network

SMALL = ["model=cnn", "dataset.image_size=16", "dataset.num_workers=0", "dataset.flip=false"]
SMALL += ["batch_size=32", "epochs=2", "features=null"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of 150 digits, and a finished run on it."""
    import main

    folder = tmp_path_factory.mktemp("predict")
    write_digits(folder / "photos", 0.0, seed=0, num_training=150, num_test=40)
    options = [f"dataset.root={folder}/photos", f"run_dir={folder}/run", "threads=1", *SMALL]
    assert main.main(["params/folder/plain.yaml", *options]) == 0
    return folder


def test_predictions_of_a_folder_are_those_of_the_run(trained, tmp_path, capsys):
    photos, run = trained / "photos", trained / "run"
    code = predict.main([str(run), str(photos / "test"), "--output", str(tmp_path / "p.csv")])
    assert code == 0 and "40 predictions" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "p.csv", dtype={"label": str})
    assert list(table) == [
        *("path", "label", "probability", "label_2", "probability_2"),
        *("label_3", "probability_3"),
    ]
    tested = dict(np.load(run / "test.npz"))
    names = sorted(str(path.relative_to(photos / "test")) for path in photos.glob("test/*/*.png"))
    expected = dict(zip(names, tested["index"], strict=True))  # folder lists them in this order
    for row in table.itertuples():
        index = expected[row.path]
        assert int(row.label) == tested["predicted"][index]
        assert row.probability == pytest.approx(tested["predicted_probability"][index], abs=1e-4)
        assert row.probability_2 == pytest.approx(tested["second_probability"][index], abs=1e-4)
    again = predict.main([str(run), str(photos / "test"), "--output", str(tmp_path / "p.csv")])
    assert again == 2 and "is there already" in capsys.readouterr().err


def test_tables_files_and_images_that_cannot_be_read(trained, tmp_path, capsys):
    photos = trained / "photos"
    image = next(photos.glob("test/3/*.png"))
    (tmp_path / "broken.png").write_bytes(b"no image")
    names = [str(image.relative_to(photos)), "nowhere.png"]
    pd.DataFrame({"path": names}).to_csv(tmp_path / "t.csv", index=False)
    inputs = [str(tmp_path / "t.csv"), "--root", str(photos), str(tmp_path / "broken.png")]
    assert predict.main([str(trained / "run"), *inputs]) == 0
    printed = capsys.readouterr()
    rows = printed.out.splitlines()
    assert rows[1].startswith(f"{photos}/{names[0]},") and rows[2] == f"{photos}/nowhere.png,,,,,,"
    assert rows[3].endswith("broken.png,,,,,,") and printed.err.count("cannot be read") == 2
    assert predict.main([str(trained / "run"), str(tmp_path / "broken.png")]) == 2


def test_of_several_inputs_each_image_has_a_name_of_its_own(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = next((trained / "photos").glob("test/3/*.png"))
    for folder in ("day1", "day2"):
        Path(folder).mkdir()
        shutil.copy(image, f"{folder}/0.png")
        Path(folder, "t.csv").write_text("path\n0.png\n")

    def names(*inputs):
        assert predict.main([str(trained / "run"), *inputs]) == 0
        return [row.split(",")[0] for row in capsys.readouterr().out.splitlines()[1:]]

    for inputs in (["day1/", "day2/"], ["day1/t.csv", "day2/t.csv"], ["day1", "day2/0.png"]):
        assert names(*inputs) == ["day1/0.png", "day2/0.png"]
    assert names("day1") == names("day1/t.csv") == ["0.png"]
    assert names("day1/0.png") == ["day1/0.png"]


def test_a_table_of_images_is_read_as_that_of_a_training_is(trained, tmp_path, capsys):
    image = next((trained / "photos").glob("test/3/*.png"))
    (tmp_path / "t.csv").write_text(f"label, path\n3, {image}\n3,  {image}\n")
    assert csv(str(tmp_path / "t.csv"), test_fraction=0, task="regression").train.inputs
    capsys.readouterr()
    assert predict.main([str(trained / "run"), str(tmp_path / "t.csv")]) == 0
    printed = capsys.readouterr()
    assert printed.out.count(f"{image},") == 2 and not printed.err
    pd.DataFrame({"path": [image] * 2, "label": 3}).to_csv(tmp_path / "t.csv.gz", index=False)
    assert predict.main([str(trained / "run"), str(tmp_path / "t.csv.gz")]) == 0
    assert capsys.readouterr() == printed


@pytest.mark.parametrize("content", ["path\n", ""])
def test_a_table_without_rows_is_named(trained, tmp_path, capsys, content):
    (tmp_path / "t.csv").write_text(content)
    command = [str(trained / "run"), str(tmp_path / "t.csv"), "--output", str(tmp_path / "p.csv")]
    assert predict.main(command) == 2 and not (tmp_path / "p.csv").exists()
    complaint = capsys.readouterr().err
    assert "t.csv has no rows: there is nothing" in complaint and complaint.count("\n") == 1


@pytest.mark.parametrize(
    "inputs, message",
    [
        (["nowhere"], "there is no file or folder nowhere"),
        (["{here}"], "holds no images"),
        ([], "name images, folders or tables"),
        (["x.png", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["--export", "{here}/m.h5"], "writes .pt2 or .onnx"),
    ],
)
def test_what_cannot_be_predicted_is_said(trained, tmp_path, capsys, inputs, message):
    inputs = [text.format(here=tmp_path) for text in inputs]
    assert predict.main([str(trained / "run"), *inputs]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint and complaint.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_the_output_is_made_before_anything_is_predicted(
    trained, tmp_path, capsys, monkeypatch
):
    photos = str(trained / "photos/test/3")
    output = tmp_path / "new" / "folder" / "p.csv"
    assert predict.main([str(trained / "run"), photos, "--output", str(output)]) == 0
    assert len(pd.read_csv(output)) == len(list((trained / "photos/test/3").iterdir()))
    assert [path.name for path in output.parent.iterdir()] == ["p.csv"]
    exported = tmp_path / "other" / "m.pt2"
    assert predict.main([str(trained / "run"), "--export", str(exported)]) == 0
    assert exported.exists()
    capsys.readouterr()

    monkeypatch.setattr(predict, "decode_each", lambda *_: pytest.fail("predicts already"))
    (tmp_path / "file").write_text("")
    for folder in (f"{tmp_path}/file", "/proc"):  # where nothing can be written
        assert predict.main([str(trained / "run"), photos, "--output", f"{folder}/p.csv"]) == 2
        assert folder in capsys.readouterr().err


def test_a_run_that_is_not_finished_or_damaged_is_refused(trained, tmp_path, capsys):
    assert predict.main([str(tmp_path), "x.png"]) == 2
    assert "is not the directory of a run" in capsys.readouterr().err
    (tmp_path / "folds" / "fold0").mkdir(parents=True)
    (tmp_path / "folds" / "fold0" / "config.yaml").write_text("seed: 1\n")
    assert predict.main([str(tmp_path / "folds"), "x.png"]) == 2
    assert "of folds: take one of them, e.g. fold0" in capsys.readouterr().err
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run/network.pt").write_bytes(b"PK\x03\x04 damaged")
    assert predict.main([str(tmp_path / "run"), str(trained / "photos/test")]) == 2
    assert "network.pt cannot be read" in capsys.readouterr().err
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "run/network.pt")
    assert predict.main([str(tmp_path / "run"), str(trained / "photos/test")]) == 2
    assert "those of another network" in capsys.readouterr().err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    (tmp_path / "run/summary.json").write_text(json.dumps(summary | {"finished": False}))
    assert predict.main([str(tmp_path / "run"), "x.png"]) == 2
    assert "is not finished" in capsys.readouterr().err


def test_an_exported_network_answers_as_the_run_did(trained, tmp_path, capsys):
    network, use = load_network(trained / "run")
    images = torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images.float())
    np.testing.assert_allclose(expected.sum(1), 1, rtol=1e-5)
    assert predict.main([str(trained / "run"), "--export", str(tmp_path / "m.pt2")]) == 0
    exported = torch.export.load(tmp_path / "m.pt2").module()
    torch.testing.assert_close(exported(images.float()), expected, rtol=1e-4, atol=1e-5)
    labels = json.loads((tmp_path / "labels.json").read_text())
    assert labels["classes"] == [str(digit) for digit in range(10)] == use["classes"]
    assert labels["input"] == ["batch", 3, 16, 16] and labels["center_crop"] == 16
    assert predict.main([str(trained / "run"), "--export", str(tmp_path / "m.pt2")]) == 2
    assert "is there already" in capsys.readouterr().err

    import onnxruntime as runtime

    assert predict.main([str(trained / "run"), "--export", str(tmp_path / "m.onnx")]) == 0
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    (answers,) = session.run(None, {"pixels": images.float().numpy()})
    np.testing.assert_allclose(answers, expected, rtol=1e-3, atol=1e-4)


def test_images_in_memory_are_predicted_from_files(run, tmp_path):
    """A network for digits of 8x8 pixels, on the same digits as files of that size."""
    _, directory, *_ = run(params="params/digits/plain.yaml")
    write_digits(tmp_path / "photos", 0.0, seed=0)
    output = tmp_path / "p.csv"
    assert (
        predict.main([str(directory), str(tmp_path / "photos/test"), "--output", str(output)]) == 0
    )
    table, tested = pd.read_csv(output), dict(np.load(directory / "test.npz"))
    numbers = table.path.str.extract(r"(\d+)\.png")[0].astype(int)
    agree = table.label.to_numpy() == tested["predicted"][numbers]
    assert len(table) == 500 and agree.mean() > 0.99


def test_texts_are_predicted_by_a_run_on_texts(run, tiny_bert, tmp_path, capsys):
    texts = [f"{('cut', 'wash')[row % 2]} the {'abcdefgh'[row % 8]}" for row in range(40)]
    labels = [("Cutting", "Washing")[row % 2] for row in range(40)]
    pd.DataFrame({"text": texts, "label": labels}).to_csv(tmp_path / "train.csv", index=False)
    _, directory, *_ = run(
        *(f"dataset.file={tmp_path}/train.csv", "model=text_encoder", f"model.path={tiny_bert}"),
        params="params/text/plain.yaml",
    )
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "new.csv", index=False)
    output = tmp_path / "p.csv"
    assert predict.main([str(directory), str(tmp_path / "new.csv"), "--output", str(output)]) == 0
    table = pd.read_csv(output)
    assert list(table)[:3] == ["text", "label", "probability"] and len(table) == len(texts)
    assert set(table.label) <= {"Cutting", "Washing"} and table.probability.between(0.5, 1).all()
    (tmp_path / "new.csv").write_text("text\n")
    assert predict.main([str(directory), str(tmp_path / "new.csv")]) == 2
    assert "new.csv has no rows: there is nothing to predict" in capsys.readouterr().err


def test_a_run_begins_with_the_weights_of_another(run):
    _, first, *_ = run(params="params/digits/plain.yaml", name="first")
    options = [f"init_from={first}", "optimizer.lr=0.000001", "epochs=1"]
    code, second, *_ = run(*options, params="params/digits/plain.yaml", name="second")
    assert code == 0
    before, after = (json.loads((path / "summary.json").read_text()) for path in (first, second))
    assert after["test"]["last"] == pytest.approx(before["test"]["last"], abs=1)
    assert after["origins"]["init_from"]["config"]["loss"]["name"] == "Plain"
    options = [f"init_from={first}", "model.hidden=[8]"]
    code, third, _, complaint = run(*options, params="params/digits/plain.yaml", name="third")
    assert code == 2 and "are those of another network" in complaint and not third.exists()
