"""Tables as people write them: rows that do not fit, stray quotes, labels that look alike."""

import gzip
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from datasets import csv, text, wikihow
from datasets.label_files import read_labels
from datasets.tables import is_table, read_table, visible
from utils.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def images(tmp_path):
    """Forty files, which a table may list; nothing here decodes them."""
    (tmp_path / "im").mkdir()
    for number in range(40):
        (tmp_path / f"im/{number}.png").write_bytes(b"image %d" % number)
    return tmp_path


def write(folder, lines, head="path,label", name="t.csv"):
    (folder / name).write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return str(folder / name)


def classes_of(folder, labels, **options):
    """The classes of a table of forty images with these labels, again and again."""
    lines = [f"im/{number}.png,{labels[number % len(labels)]}" for number in range(40)]
    return csv(write(folder, lines), root=str(folder), **options).classes


# Rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["a,b", "c,d,checked"],
            r"t\.csv has 3 fields in line 3 \(1 such rows\), and its head .*2",
        ),
        (["a,b,checked"] * 5, r"has 3 fields in line 2 \(5 such rows\), .*: path, label"),
        (["a,b", "", "so, so good,b"], "has 3 fields in line 4"),
        (["a,b", "c"], "has 1 fields in line 3"),
        (
            ['"a\nb",c', '"so good,b', 'c,"d" e'],
            r"at the row that begins in line 4 .*must be closed",
        ),
        (['a,"b'], "at the row that begins in line 2"),
    ],
)
def test_a_row_that_does_not_fit_the_head_is_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path, rows))


def test_empty_cells_beyond_the_head_and_blank_lines_are_none(tmp_path):
    table = read_table(write(tmp_path, ["a,b,,", "", ",", '"c\nd", e,', "f,g"], "path,label,"))
    assert table.path.tolist() == ["a", "c\nd", "f"] and table.label.tolist() == ["b", " e", "g"]
    assert table.index.tolist() == [2, 5, 7]  # as an editor counts them


def test_a_column_that_is_there_twice_is_named(tmp_path):
    with pytest.raises(UserError, match="has the column 'label' more than once"):
        read_table(write(tmp_path, ["a,b,c"], "path,label,label"))


def test_compressed_tables_are_read(tmp_path):
    plain = Path(write(tmp_path, ["a,b"]))
    with gzip.open(tmp_path / "t.csv.gz", "wb") as file:
        file.write(plain.read_bytes())
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
        archive.write(plain, "t.csv")
    for name in ("t.csv", "t.csv.gz", "t.csv.zip"):
        assert is_table(Path(name)) and not is_table(Path(name.replace("csv", "png")))
        assert read_table(tmp_path / name).to_dict("records") == [{"path": "a", "label": "b"}]
    (tmp_path / "long.csv").write_text("path,label\na," + "b" * 200_000)
    assert len(read_table(tmp_path / "long.csv").label.iloc[0]) == 200_000


def test_what_is_not_encoded_in_utf_8_is_named(images, tmp_path):
    rows = [f"im/{number}.png,cat" for number in range(2000)]  # more than is decoded at once
    rows[1990] = "im/1990.png,caf\xe9"
    table = images / "t.csv"
    table.write_bytes("\n".join(["path,label", *rows]).encode("cp1252"))
    message = r"t\.csv is not encoded in UTF-8, in the row that begins in line 1992 \(1 such rows\)"
    for paths in (None, "path"):
        with pytest.raises(UserError, match=rf"{message}: save it as UTF-8"):
            read_table(table, paths=paths)
    with pytest.raises(UserError, match="save it as UTF-8"):
        read_labels(f"{table}#label", 2000, 2)
    table.write_bytes("path,label\nim/0.png,cat\nim/caf\xe9.png,cat".encode("cp1252"))
    with pytest.raises(
        FileNotFoundError, match=r"in line 3; .*t\.csv is not encoded in UTF-8: save"
    ):
        csv(str(table), root=str(images))
    table.write_text("path,label\nim/0.png,cat", encoding="utf-16")
    with pytest.raises(UserError, match=r"not encoded in UTF-8, in the row that begins in line 1 "):
        read_table(table, paths="path")


def test_semicolons_separate_where_the_head_has_no_comma(images, tmp_path):
    rows = ['im/0.png;"a;b"', "im/1.png;a, b"]
    table = read_table(write(tmp_path, rows, "\ufeffpath;label"))
    assert table.label.tolist() == ["a;b", "a, b"] and table.attrs["separator"] == ";"
    assert read_table(write(tmp_path, ["a;b,c"], '"path;x",label')).columns.tolist() == [
        "path;x",
        "label",
    ]
    with pytest.raises(UserError, match=r"3 fields in line 2 .*with a semicolon in it needs quot"):
        read_table(write(tmp_path, ["a;b;c"], "path;label"))
    with pytest.raises(UserError, match="separated by tabs: write it with commas or semicolons"):
        read_table(write(tmp_path, ["a\tb"], "path\tlabel"))
    lines = [f"im/{number}.png;{'ab'[number % 2]}" for number in range(40)]
    data = csv(write(images, lines, "path;label"), root=str(images))
    assert data.classes == ["a", "b"] and len(data.train) == 32


def test_rows_that_a_quote_has_swallowed_are_pointed_at(tmp_path, capsys):
    rows = [f"hello {number},{'pq'[number % 2]}os" for number in range(60)]
    rows[10], rows[50] = '"so good,pos', 'very bad",qos'
    assert len(read_table(write(tmp_path, rows))) == 20
    warned = capsys.readouterr().err
    assert warned.count("\n") == 1 and "39 lines within quoted fields look like rows" in warned
    assert "the row that begins in line 12" in warned
    read_table(write(tmp_path, ['"so good,\nso, so good\nand, so on",pos', "bad,qos"] * 5))
    assert not capsys.readouterr().err


def test_every_table_is_read_so(images, tiny_bert):
    extra = write(images, [f"im/{number}.png,ab,x" for number in range(40)])
    with pytest.raises(UserError, match="has 3 fields in line 2"):
        csv(extra, root=str(images))
    texts = write(images, ["so, so good,a"] * 9, "text,label")
    with pytest.raises(UserError, match="has 3 fields in line 2"):
        text(texts, encoder=tiny_bert)
    (images / "wikihow/goal").mkdir(parents=True)
    for name in ("train.csv", "val.csv"):
        head = ",".join(f"c{number}" for number in range(10))
        write(images / "wikihow/goal", ["0,1,2,3,how, so,to,,a,b,0"], head, name)
    with pytest.raises(UserError, match=r"train\.csv has 11 fields in line 2"):
        wikihow("goal", encoder=tiny_bert, data_root=str(images))


def test_a_line_is_named_as_an_editor_counts_it(images):
    rows = [f"im/{number}.png,{number}\n" for number in range(20)]
    with pytest.raises(UserError, match="got 'many' in line 42"):
        csv(write(images, [*rows, "im/30.png,many"]), root=str(images), task="regression")
    with pytest.raises(UserError, match="has no label in line 42"):
        csv(write(images, [*rows, "im/30.png, "]), root=str(images))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png in line 42"):
        csv(write(images, [*rows, "nowhere.png,1"]), root=str(images))


def test_cells_that_labels_of_noise_have_too_many_are_pointed_at(tmp_path, capsys):
    file = write(tmp_path, ["1,0", "cells,2,1", "3,1"], "name,given", "labels.csv")
    with pytest.raises(UserError, match="class numbers"):
        read_labels(file, 3, 2)
    assert "1 rows have more fields than the head, the first of them in line 3" in (
        capsys.readouterr().err
    )


# Labels


def test_what_cannot_be_seen_makes_no_class(images, tmp_path):
    assert classes_of(images, ["cat", "cat ", "dog", " dog"]) == ["cat", "dog"]
    assert classes_of(images, ["caf\u00e9", "cafe\u0301", "tea"]) == ["caf\u00e9", "tea"]
    assert classes_of(images, ["ice cream", "ice\u00a0cream", "ice  cream", "tea"]) == [
        "ice cream",
        "tea",
    ]
    assert visible("\u200bcat\ufeff") == "cat"


def test_what_is_trained_and_tested_on_is_written_alike(images, tiny_bert):
    rows = [f"im/{number}.png,{'ab'[number % 2]}e\u0301" for number in range(10)]
    test_file = write(images, ["im/11.png,ae\u0301 ", "im/12.png,b\u00e9"], name="test.csv")
    data = csv(write(images, rows), root=str(images), test_file=test_file)
    assert data.test.targets.tolist() == [0, 1] and data.classes == ["a\u00e9", "b\u00e9"]
    rows = [f"t {number},{'ab '[number % 3]}e\u0301, ae\u0301" for number in range(10)]
    data = text(write(images, rows, "text,label,true_label"), encoder=tiny_bert, test_fraction=0.3)
    assert data.classes == ["a\u00e9", "b\u00e9", "\u00e9"] and data.true.tolist() == [0] * 7


def test_numbers_are_classes_by_their_value(images):
    assert classes_of(images, ["1", "1.0", "2"]) == ["1", "2"]
    assert classes_of(images, ["1.0", "10.0", "2.0"]) == ["1.0", "10.0", "2.0"]  # as they stand
    assert classes_of(images, ["10", "9"]) == ["9", "10"]
    assert classes_of(images, ["9" * 5000, "1"]) == ["1", "9" * 5000]  # beyond what int reads


def test_the_order_of_classes_does_not_depend_on_the_hash_seed(images):
    labels = ["1", "01", "2", "02", "3", "03"]
    assert classes_of(images, labels) == ["01", "1", "02", "2", "03", "3"]
    code = (
        "from datasets.tables import number_labels\n"
        f"labels = number_labels({labels}, None, None, file='', test_file=None, by_value=True)\n"
        "print(labels.classes)"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(["01", "1", "02", "2", "03", "3"])


def test_classes_that_differ_in_capital_letters_are_pointed_at(images, capsys):
    assert classes_of(images, ["Cat", "cat", "dog"]) == ["Cat", "cat", "dog"]
    assert "the classes 'Cat' and 'cat' differ in capital letters alone" in capsys.readouterr().err
