"""Texts: classes from a CSV file and wikiHow's multiple choice, with a tiny encoder."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from datasets import text, wikihow
from datasets.text import embed, tokenize
from models import text_encoder
from utils.judged import judge
from utils.pretrained import load_pretrained

ROOT = Path(__file__).parents[1]


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)
    return str(path)


@pytest.fixture
def washing(tmp_path):
    """60 texts of two classes, which a word tells apart, and 20 to test."""
    for name, count in (("train", 60), ("test", 20)):
        write(
            tmp_path / f"{name}.csv",
            text=[f"{('cut', 'wash')[i % 2]} the {'abcdefgh'[i % 8]}" for i in range(count)],
            label=[("Cutting", "Washing")[i % 2] for i in range(count)],
        )
    return tmp_path


def test_transformers_imports_beside_our_folder_of_datasets():
    """It takes ours for Hugging Face's package of that name."""
    code = (
        "import datasets, transformers; from transformers import AutoModel, AutoTokenizer; "
        "assert datasets.digits"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_transformers_is_imported_where_texts_are_and_nowhere_else():
    code = "import sys, main, utils.report; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# Classes


def test_tokens_are_those_of_the_tokenizer(washing, tiny_bert):
    test_file = str(washing / "test.csv")
    data = text("train.csv", encoder=tiny_bert, data_root=str(washing), test_file=test_file)
    assert data.classes == ["Cutting", "Washing"] and not data.trusted
    assert data.train.targets.tolist() == [0, 1] * 30
    assert len(data.train) == 60 and len(data.test) == 20 and data.train.inputs.dtype == torch.int32
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    for row in range(60):
        expected = tokenizer(data.train.texts[row])["input_ids"]
        numbers, types = data.train.inputs[row]
        assert numbers[: len(expected)].tolist() == expected
        assert not numbers[len(expected) :].any() and not types.any()


def test_long_texts_are_cut_and_compressed_files_and_other_columns_read(
    tmp_path, tiny_bert, capsys
):
    columns = {
        "step": [f"a b c d e {end}" for end in "fghijklmno"],
        "cat": list("xy") * 5,
        "truth": ["x"] * 10,
    }
    write(tmp_path / "steps.csv.gz", other=[0] * 10, **columns)
    data = text(
        "steps.csv.gz",
        encoder=tiny_bert,
        data_root=str(tmp_path),
        text_column="step",
        label_column="cat",
        true_column="truth",
        max_length=5,
        test_fraction=0.2,
    )
    assert data.train.inputs.shape == (8, 2, 5) and len(data.test) == 2
    assert "10 of 10 texts fill 5 tokens; what goes beyond is cut off" in capsys.readouterr().err
    assert data.true.tolist() == [0] * 8
    assert data.test.targets.tolist() == [0, 0]  # tested on what is true
    (tmp_path / "steps.csv.gz").write_bytes((tmp_path / "steps.csv.gz").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"steps\.csv\.gz cannot be read as CSV"):
        text("steps.csv.gz", encoder=tiny_bert, data_root=str(tmp_path))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"file": "nowhere.csv"}, FileNotFoundError, "there is no file nowhere.csv, here or under"),
        (
            {"text_column": "sentence"},
            ValueError,
            "has no column 'sentence'; set dataset.text_column to one of text, label",
        ),
        ({"max_length": 2}, ValueError, "max_length must be at least 3"),
        ({"encoder": None}, ValueError, "set model.path"),
        (
            {"test_file": "other.csv"},
            ValueError,
            "other.csv has labels that train.csv does not have: Painting",
        ),
        ({"test_file": "empty.csv"}, ValueError, "empty.csv has no label in line 3"),
        ({"test_file": "nowhere.csv"}, FileNotFoundError, "dataset.test_file: there is no file"),
        (
            {"true_column": "label", "file": "empty.csv"},
            ValueError,
            "empty.csv has no label in line 3",
        ),
    ],
)
def test_what_is_wrong_with_texts_is_said(washing, tiny_bert, arguments, error, message):
    write(washing / "other.csv", text=["a"], label=["Painting"])
    write(washing / "empty.csv", text=["a", "b"], label=["Cutting", ""])
    with pytest.raises(error, match=message):
        text(**{"file": "train.csv", "encoder": tiny_bert, "data_root": str(washing)} | arguments)


def test_a_model_that_is_nowhere_is_said(monkeypatch, tmp_path):
    def offline(path, local_files_only=False):
        raise OSError("cannot connect")

    monkeypatch.setattr(AutoModel, "from_pretrained", offline)
    message = r"encoder bert-base-cased is neither a folder .*cannot connect"
    with pytest.raises(FileNotFoundError, match=message):
        load_pretrained("AutoModel", "bert-base-cased")


@pytest.mark.parametrize("pooling", ["pooler", "mean", "first"])
def test_the_encoder_is_that_of_transformers(tiny_bert, pooling):
    """Each text by itself, unpadded, through the encoder and the head."""
    torch.manual_seed(0)
    model = text_encoder(3, path=tiny_bert, pooling=pooling).eval()
    encoder = AutoModel.from_pretrained(tiny_bert).eval()
    texts = ["cut the a", "wash", "a b c d e f g"]
    output = model(tokenize(tiny_bert, texts, max_length=20))
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    for row, words in enumerate(texts):
        states = encoder(**tokenizer(words, return_tensors="pt"))
        by_pooling = {
            "pooler": states.pooler_output[0],
            "first": states.last_hidden_state[0, 0],
            "mean": states.last_hidden_state[0].mean(0),
        }
        pooled = by_pooling[pooling]
        torch.testing.assert_close(output[row], model.head(pooled), rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing(tiny_bert):
    model = text_encoder(3, path=tiny_bert).eval()
    tokens = tokenize(tiny_bert, ["cut the a", "wash"], max_length=20)
    encoder = model.encoder.forward
    pad = torch.nn.functional.pad

    def padded(input_ids, attention_mask, **types):  # which _score has cut to the longest text
        return encoder(input_ids=pad(input_ids, (0, 9)), attention_mask=pad(attention_mask, (0, 9)))

    model.encoder.forward = padded
    longer = model(tokens)
    model.encoder.forward = encoder
    torch.testing.assert_close(longer, model(tokens))


def test_features_are_the_mean_states_of_length_one(tiny_bert):
    texts = ["cut the a", "wash"]
    encoder = AutoModel.from_pretrained(tiny_bert).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    features = embed(tiny_bert, tokenize(tiny_bert, texts, max_length=20))
    for row, words in enumerate(texts):
        mean = encoder(**tokenizer(words, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(features[row], mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_who_looks_at_texts_does_not_embed_them_again(run, washing, tiny_bert, monkeypatch):
    options = [f"dataset.file={washing}/train.csv", f"dataset.encoder={tiny_bert}", "epochs=1"]
    code, directory, _, complaints = run(*options, params="params/text/plain_frozen.yaml")
    assert code == 0, complaints
    monkeypatch.setattr(sys.modules["datasets.text"], "embed", None)
    judged = judge(directory)
    suspects = pd.read_csv(directory / "suspects.csv")
    assert judged.names == suspects.text.tolist() and judged.kind == "text"


def test_fine_tuning_with_wrong_labels(run, washing, tiny_bert):
    options = [
        f"dataset.file={washing}/train.csv",
        f"dataset.test_file={washing}/test.csv",
        "noise.kind=symmetric",
        "noise.fraction=0.2",
        "model=text_encoder",
        f"model.path={tiny_bert}",
        "model.pooling=mean",
        "optimizer.lr=3e-3",
        "batch_size=10",
        "epochs=10",
    ]
    code, directory, _, complaints = run(*options, params="params/text/discrimloss.yaml")
    assert code == 0, complaints
    summary = json.loads((directory / "summary.json").read_text())
    suspects = pd.read_csv(directory / "suspects.csv")
    assert summary["test"]["best"] == 100 and summary["noise"]["realised"] == 0.2
    assert list(suspects)[2] == "text" and set(suspects.given_label) == {"Cutting", "Washing"}
    wrong = suspects.given_label != suspects.true_label
    assert wrong[:12].mean() > 0.7
    about_washing = suspects.text.str.startswith("wash")
    assert (about_washing == (suspects.true_label == "Washing")).all()
    rows = pd.read_csv(directory / "metrics.csv")
    # a tenth of warm-up, then in a straight line to 0
    expected = [0, *(3e-3 * (10 - epoch) / 9 for epoch in range(1, 10))]
    assert rows.lr.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_frozen_encoder_with_a_trained_head(run, washing, tiny_bert):
    options = [
        f"dataset.file={washing}/train.csv",
        f"dataset.test_file={washing}/test.csv",
        f"dataset.encoder={tiny_bert}",
        "model.hidden=[]",
        "noise.kind=symmetric",
        "noise.fraction=0.2",
        "optimizer.lr=0.03",
        "epochs=30",
    ]
    code, directory, _, complaints = run(*options, params="params/text/discrimloss_frozen.yaml")
    assert code == 0, complaints
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["test"]["best"] == 100 and summary["detection"]["auroc"] > 0.8
    assert not (directory / "suspects.png").exists()


# Multiple choice


SWAG = ["", "video-id", "fold-ind", "startphrase", "sent1", "sent2", "gold-source"]


def write_wikihow(root, endings=4, count=40, empty=0):
    """Questions of which the ending with the word of the context is right."""
    generator = random.Random(0)
    for name in ("train", "val"):
        rows = []
        for number in range(count):
            word, right = generator.choice(["cut", "wash"]), generator.randrange(endings)
            other = "wash" if word == "cut" else "cut"
            words = [other] * endings
            words[right] = word
            choices = [f"{word} {chr(97 + number % 26)}" for word in words] + [""] * empty
            question = "the _" if number % 3 else "the"
            rows.append([number, "video", number, word, word, question, "gold", *choices, right])
        ending_names = [f"ending{position}" for position in range(endings + empty)]
        table = pd.DataFrame(rows, columns=[*SWAG, *ending_names, "label"])
        (root / "wikihow" / "goal").mkdir(parents=True, exist_ok=True)
        table.to_csv(root / "wikihow" / "goal" / f"{name}.csv", index=False)


def test_a_question_is_as_many_pairs_as_it_has_endings(tmp_path, tiny_bert):
    write_wikihow(tmp_path)
    data = wikihow("goal", encoder=tiny_bert, data_root=str(tmp_path), seed=3)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 40)
    assert data.classes == list("0123")
    table = pd.read_csv(tmp_path / "wikihow/goal/train.csv")
    order = list(range(40))
    random.Random(3).shuffle(order)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    assert data.train.targets.tolist() == table.label[order[:36]].tolist()
    assert data.validation.targets.tolist() == table.label[order[36:]].tolist()
    inputs = [*data.train.inputs, *data.validation.inputs]
    for row, choices in zip(order, inputs, strict=True):
        line = table.iloc[row]
        for choice, (numbers, types) in enumerate(choices):
            ending = line[f"ending{choice}"]
            question = f"{line.sent2} {ending}"
            if "_" in line.sent2:
                question = line.sent2.replace("_", ending)
            expected = tokenizer(line.sent1, question, return_token_type_ids=True)
            length = len(expected["input_ids"])
            assert numbers[:length].tolist() == expected["input_ids"]
            assert types[:length].tolist() == expected["token_type_ids"] and types.any()
            assert not numbers[length:].any() and not types[length:].any()


def test_two_endings_and_endings_that_are_empty(tmp_path, tiny_bert):
    write_wikihow(tmp_path, endings=2, empty=2)
    data = wikihow("goal", encoder=tiny_bert, data_root=str(tmp_path))
    assert data.classes == ["0", "1"] and data.train.inputs.shape[:2] == (36, 2)


def test_each_choice_is_scored_by_itself(tiny_bert):
    torch.manual_seed(0)
    model = text_encoder(4, path=tiny_bert, choices=True).eval()
    endings = [f"the {letter}" for letter in "abcdefgh"]
    tokens = tokenize(tiny_bert, ["cut"] * 8, endings, max_length=20).unflatten(0, (2, 4))
    output = model(tokens)
    assert output.shape == (2, 4) and model.head.out_features == 1
    swapped = model(tokens[:, [1, 0, 2, 3]])
    torch.testing.assert_close(swapped, output[:, [1, 0, 2, 3]])


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda table: table.drop(columns=["ending2", "ending3", "ending1"]),
            "must have SWAG's columns",
        ),
        (
            lambda table: table.assign(label=4),
            "the label in line 2 must be the number of one of 4 endings, got '4'",
        ),
    ],
)
def test_files_of_another_format_are_said(tmp_path, tiny_bert, damage, message):
    write_wikihow(tmp_path)
    path = tmp_path / "wikihow/goal/train.csv"
    damage(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(ValueError, match=message):
        wikihow("goal", encoder=tiny_bert, data_root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"wikihow/step/train.csv was not found"):
        wikihow("step", encoder=tiny_bert, data_root=str(tmp_path))


def test_a_run_of_multiple_choice_in_chunks_that_is_resumed(run, tmp_path, tiny_bert, monkeypatch):
    """36 questions in batches of 4 are 9 steps, or chunks of 4, 4 and 1."""
    from tests.test_run import equal, interrupt_at, weights

    write_wikihow(tmp_path)
    options = [
        f"data_root={tmp_path}",
        "model=text_encoder",
        "model.choices=true",
        f"model.path={tiny_bert}",
        "batch_size=4",
        "epochs=2",
        "chunk_steps=4",
        "record_losses=true",
        "noise.kind=symmetric",
        "noise.fraction=0.25",
    ]
    params = "params/wikihow/discrimloss.yaml"
    code, whole, _, complaints = run(*options, params=params, name="whole")
    assert code == 0, complaints
    rows = pd.read_csv(whole / "metrics.csv")
    summary = json.loads((whole / "summary.json").read_text())
    assert rows.epoch.tolist() == list(range(6)) and rows.validation_metric.notna().all()
    assert np.load(whole / "losses.npy").shape == (6, 36) and summary["noise"]["realised"] == 0.25
    assert (rows.images_per_second * rows.seconds).round().tolist() == [16, 16, 4] * 2
    assert rows.lr[0] == pytest.approx(5e-5) and (rows.lr.diff()[1:] < 0).all()
    interrupt_at(monkeypatch, 11)
    code, again, *_ = run(*options, params=params, name="again")
    assert code == 75
    monkeypatch.undo()
    assert run(*options, params=params, name="again")[0] == 0
    assert equal(weights(whole), weights(again))
