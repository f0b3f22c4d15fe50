"""The suspects as one HTML page to decide on, which needs nothing else; page.html is its layout."""

import base64
import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from utils.decoding import check_regular
from utils.escapes import printable
from utils.files import atomic_write
from utils.judged import JOINED, Judged
from utils.review.listing import Listing, first_run, has_files, in_words, keys
from utils.run_state import read_summary

SIDE = 160  # pixels of the longer side of a thumbnail
AS_IT_IS = 64  # an image of at most so many pixels a side stays as it is
LARGEST = 8000  # bytes of a thumbnail
QUALITIES = (80, 65, 50, 35, 20)  # of JPEG, of which the first is taken that is small enough
LONGEST_TEXT = 2000  # characters of a text that are shown
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def write(judged: Judged, listing: Listing, path: Path, stop_below: float):
    """Write the page as a whole or not at all; ``stop_below``: a rate of hits in [0, 1]."""
    text = ENVIRONMENT.get_template("page.html").render(
        run=printable(judged.run.name),
        num_samples=len(judged.names),
        is_regression=not judged.classes,
        review=_content(judged, listing, path, stop_below),
    )
    with atomic_write(path) as file:
        file.write(text)


def _content(judged, listing, path, stop_below):
    """What the page shows, by column; of the rows of the random sample last."""
    rows = np.array([*listing.suspects, *listing.sample], np.int64)
    table = {name: column[rows] for name, column in judged.table.items()}
    all_keys = keys(judged)
    names = [all_keys[row] for row in rows]
    given = [in_words(judged, label) for label in table["given"]]
    numbers = {
        name: [_rounded(value) for value in table[name].tolist()]
        for name in ("score", "quality", "loss")
    }
    labels = ("given", "predicted") + ("second",) * bool(judged.classes)
    for name in labels:
        if judged.classes:
            numbers[name] = table[name].tolist()
            numbers[f"{name}_probability"] = [
                _rounded(value) for value in table[f"{name}_probability"].tolist()
            ]
        elif name == "given":
            numbers[name] = [float(in_words(judged, value)) for value in table[name]]
        else:  # more digits would make no better a suggestion
            numbers[name] = [_rounded(value) for value in table[name].tolist()]
    return {
        "storage": _storage(judged, names, given, len(listing.suspects)),
        "classes": judged.classes,
        "shown_classes": [printable(name) for name in judged.classes],
        "score_name": _score_name(judged),
        "stop_below": stop_below,
        "num_suspects": len(listing.suspects),
        "num_unsuspected": listing.num_unsuspected,
        "keys": names,
        "shown": [_shown(judged, row, all_keys) for row in rows],
        "links": [_link(judged, row, path) for row in rows],
        "parts": table["part"].tolist(),
        "flagged": [int(value) for value in table["flagged"]],
        "ranks": (rows + 1).tolist(),
        "pictures": _pictures(judged, rows.tolist()),
        **numbers,
    }


def _score_name(judged):
    if (judged.run / JOINED).exists():
        return "score"
    return judged.config.get("score") or f"{judged.config['loss']['name']} score"


def _rounded(value):
    """A number in four digits, or None, since JSON has no NaN."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _shown(judged, row, all_keys):
    name = judged.names[row] or all_keys[row]
    short = name if len(name) <= LONGEST_TEXT else f"{name[:LONGEST_TEXT]}..."
    return printable(short)


def _link(judged, row, path):
    """Where the original of an image lies, as seen from the page; "" if that is not known."""
    if not has_files(judged):
        return ""
    file = (judged.root or Path()) / judged.names[row]
    relative = os.path.relpath(file, path.parent)
    return quote(os.fsencode(relative))


def _storage(judged, names, given, num_suspects):
    """Under what a browser keeps the decisions: another one for other labels or another list."""
    sha256 = (read_summary(first_run(judged)).get("noise") or {}).get("sha256")
    digest = hashlib.sha256(f"{sha256}\n{num_suspects}\n".encode())
    for pair in zip(names, given, strict=True):
        digest.update("\0".join(pair).encode(errors="surrogateescape") + b"\n")
    return f"review-{digest.hexdigest()[:32]}"


def _pictures(judged, rows):
    """The images of these rows as data URIs; "" where there is none, or it cannot be read."""

    def code(row):
        image = _jpeg(judged, row) or judged.picture(row)
        return "" if image is None else thumbnail(image)

    if judged.kind != "images":
        return [""] * len(rows)
    with ThreadPoolExecutor() as pool:  # the decoders work without the interpreter's lock
        coded = pool.map(code, rows)
        return list(tqdm(coded, "pictures", len(rows), leave=False, disable=None))


def _jpeg(judged, row):
    """A JPEG file decoded at a fraction of its size, which takes a fraction of the time.

    None if it is another file, or cannot be read so.
    """
    if not has_files(judged):
        return None
    path = (judged.root or Path()) / judged.names[row]
    try:
        check_regular(path)
        with Image.open(path) as image:
            if image.format != "JPEG":
                return None
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # whatever comes of a damaged file: the slow way says what it is worth
        return None


def thumbnail(image: Image.Image) -> str:
    """A data URI of at most LARGEST bytes before it is coded; a small image stays as it is."""
    if max(image.size) <= AS_IT_IS:
        return data_uri(image, "png")
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    while True:
        for quality in QUALITIES:
            content = _coded(image, "jpeg", quality=quality, optimize=True)
            if len(content) <= LARGEST:
                return _as_uri(content, "jpeg")
        image = image.reduce(2)


def data_uri(image: Image.Image, form: str) -> str:
    """The image as it is, in this format."""
    return _as_uri(_coded(image, form), form)


def _coded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _as_uri(content, form):
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"
