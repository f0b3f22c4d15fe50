"""What a run thinks of its labels, in the fields of other tools."""

import csv
import json
import os
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from utils.errors import UserError
from utils.escapes import in_a_cell
from utils.files import atomic_write
from utils.judged import Judged
from utils.review.listing import Listing, has_files, in_words, keys
from utils.review.page import data_uri

CONTROL, FLAG = "label", "review"  # names of the controls in Label Studio


def export(judged: Judged, listing: Listing, form: str, path: Path) -> list[Path]:
    """Write the file, and whatever else the tool needs; returns what was written.

    Args:
        form: one of FORMS.

    Raises UserError if one of these files is there already.
    """
    files = FORMS[form](judged, listing, path)
    for other in files:
        if os.path.lexists(other):
            raise UserError(f"{other} is there already: remove it, or name another --output")
    path.parent.mkdir(parents=True, exist_ok=True)
    for other, content in files.items():
        with atomic_write(other) as file:
            file.write(content) if isinstance(content, str) else content(file)
    return list(files)


def label_studio(judged: Judged, listing: Listing, path: Path) -> dict:
    """Tasks with predictions, and the labelling interface that they are for, as .xml.

    Images are read from Label Studio's local storage. Its root is the folder that holds that of the
    data, since a storage of Label Studio must lie below it. Images in memory are part of the tasks.
    """
    kind, value = _shown_as(judged)
    table, names, tasks = judged.table, keys(judged), []
    for number, row in enumerate([*listing.suspects, *listing.sample]):
        is_suspect = number < len(listing.suspects)
        data = {
            kind: value(row),
            "path": names[row],
            "given": in_words(judged, table["given"][row]),
            "list": "suspects" if is_suspect else "random sample",
            "rank": row + 1,
            "quality": _number(table["quality"][row]),
        }
        tasks.append({"data": data, "predictions": [_prediction(judged, row, kind)]})
    interface = path.with_suffix(".xml")
    return {path: lambda file: _dump(tasks, file), interface: _interface(judged, kind)}


def _shown_as(judged):
    """The tag that shows a sample, and what it is given of a row."""
    if has_files(judged):
        folder = "" if judged.root is None else judged.root.resolve().name
        paths = [os.path.join(folder, name) for name in judged.names]
        return "image", lambda row: f"/data/local-files/?d={quote(os.fsencode(paths[row]))}"
    if judged.kind == "images":
        return "image", lambda row: data_uri(judged.picture(row), "png")
    return "text", lambda row: judged.names[row]


def _prediction(judged, row, kind):
    label = judged.table["predicted"][row]
    if judged.classes:
        what = {"type": "choices", "value": {"choices": [in_words(judged, label)]}}
        score = _number(judged.table["predicted_probability"][row])
    else:
        what = {"type": "number", "value": {"number": float(in_words(judged, label))}}
        score = _number(1 - judged.table["quality"][row])
    result = {"id": f"row{row}", "from_name": CONTROL, "to_name": kind, **what}
    return {"model_version": judged.run.name, "score": score, "result": [result]}


def _interface(judged, kind):
    tag = "Image" if kind == "image" else "Text"
    lines = ["<View>", f'  <{tag} name="{kind}" value="${kind}"/>']
    lines.append('  <Header value="given: $given"/>')
    if judged.classes:
        lines.append(f'  <Choices name="{CONTROL}" toName="{kind}" choice="single">')
        lines += [f"    <Choice value={quoteattr(name)}/>" for name in judged.classes]
        lines.append("  </Choices>")
    else:
        lines.append(f'  <Number name="{CONTROL}" toName="{kind}"/>')
    lines.append(f'  <Choices name="{FLAG}" toName="{kind}" choice="single">')
    lines += [f'    <Choice value="{word}"/>' for word in ("drop", "unsure")]
    return "\n".join([*lines, "  </Choices>", "</View>", ""])


def fifty_one(judged: Judged, listing: Listing, path: Path) -> dict:
    """All samples as those of a FiftyOneDataset: its folder is that of the file, samples.json.

    Raises UserError if there are no image files.
    """
    if not has_files(judged):
        raise UserError(
            f"--export fiftyone is for image files, and {judged.run} was not trained on any: use "
            f"--export csv"
        )
    if path.name != "samples.json":
        raise UserError(f"--output must be called samples.json for fiftyone, got {path}")
    table, samples = judged.table, []
    for row, name in enumerate(judged.names):
        given, predicted = (
            _as_label(judged, table[column][row]) for column in ("given", "predicted")
        )
        if judged.classes:
            predicted["confidence"] = float(table["predicted_probability"][row])
        samples.append(
            {
                "filepath": os.path.abspath((judged.root or Path()) / name),
                "tags": [str(table["part"][row])],
                "metadata": None,
                "ground_truth": given,
                "predictions": predicted,
                "mistakenness": _number(1 - table["quality"][row]),
            }
        )
    return {path: lambda file: _dump({"samples": samples}, file)}


def _as_label(judged, label):
    if judged.classes:
        return {"_cls": "Classification", "label": in_words(judged, label)}
    return {"_cls": "Regression", "value": float(label)}


def cleanlab(judged: Judged, listing: Listing, path: Path) -> dict:
    """A row a sample in the order of the data, with the columns of cleanlab's find_label_issues."""
    if not judged.classes:
        raise UserError("--export cleanlab is for classes, and this is a regression: use csv")
    parts, index = judged.table["part"], judged.table["index"]
    order = sorted(range(len(index)), key=lambda row: (parts[row] == "test", index[row]))
    table = judged.table
    heads = ["is_label_issue", "label_quality", "given_label", "predicted_label"]
    names = keys(judged)

    def write(file):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*heads, "given_class", "predicted_class", "part", "path"])
        for row in order:
            given, predicted = int(table["given"][row]), int(table["predicted"][row])
            numbers = [bool(table["flagged"][row]), f"{table['quality'][row]:.6g}"]
            classes = [judged.classes[given], judged.classes[predicted]]
            texts = map(in_a_cell, [*classes, str(parts[row]), names[row]])
            writer.writerow([*numbers, given, predicted, *texts])

    return {path: write}


def table_of_all(judged: Judged, listing: Listing, path: Path) -> dict:
    """All that is known of every sample, the most suspicious first."""
    table, names = judged.table, keys(judged)
    labels = [name for name in ("given", "predicted", "second", "true") if name in table]
    numbers = [name for name in table if name not in (*labels, "part", "index", "flagged")]

    def write(file):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rank", "path", "part", "index", *labels, *numbers, "flagged"])
        for row in range(len(names)):
            texts = [_known(judged, table[name][row]) for name in labels]
            values = [f"{table[name][row]:.6g}" for name in numbers]
            first = [row + 1, in_a_cell(names[row]), table["part"][row], table["index"][row]]
            writer.writerow([*first, *map(in_a_cell, texts), *values, int(table["flagged"][row])])

    return {path: write}


def _known(judged, label):
    """A label in words; "" if it is not known."""
    unknown = label < 0 if judged.classes else label != label
    return "" if unknown else in_words(judged, label)


def _number(value):
    """A number, or None, since JSON has no NaN."""
    return float(value) if value == value else None


def _dump(content, file):
    json.dump(content, file, indent=1)


FORMS = {
    "labelstudio": label_studio,
    "fiftyone": fifty_one,
    "cleanlab": cleanlab,
    "csv": table_of_all,
}
OUTPUTS = {  # within the run's directory, unless another file is named
    "labelstudio": "labelstudio.json",
    "fiftyone": "fiftyone/samples.json",
    "cleanlab": "cleanlab.csv",
    "csv": "judged.csv",
}
