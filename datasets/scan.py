"""Which image files a folder holds, and what else there is."""

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from datasets.tables import visible
from utils.errors import UserError
from utils.escapes import printable

ENDINGS = (  # of the formats that Pillow reads without the help of another program
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".jp2"),
    *(".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
)
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # of the formats
OF_OTHERS = ("__MACOSX", "@eaDir")  # folders that archives and network drives add


@dataclass
class Scan:
    """The images of a folder of class folders."""

    classes: list[str]
    paths: list[str]
    targets: list[int]
    left_out: Counter = field(default_factory=Counter)  # what: how many
    empty: list[str] = field(default_factory=list)  # class folders without an image: no classes


def scan(part: Path) -> Scan:
    """The images in the class folders of ``part`` and in the folders in these.

    In the order of torchvision's ImageFolder. Class folders whose names look alike are one class.
    Hidden names are left out; each folder is entered once, however many links lead to it.

    Raises:
        FileNotFoundError: no class folder, or none with an image.
        UserError: two names of one folder as different classes.
    """
    left_out, folders = Counter(), {}
    for entry in sorted(os.scandir(part), key=lambda entry: entry.name):
        if is_hidden(entry.name):
            left_out["hidden"] += 1
        elif entry.is_dir():
            folders.setdefault(visible(entry.name), []).append(entry.path)
        else:
            left_out["outside of the class folders"] += 1
    if not folders:
        raise FileNotFoundError(f"{part} holds no class folders: it must hold <class>/<image>")
    whole = part.resolve()
    entered = {_identity(os.stat(folder)): str(folder) for folder in (whole, *whole.parents)}
    for name in folders:
        for folder in folders[name]:
            other = entered.setdefault(_identity(os.stat(folder)), folder)
            if other != folder:
                raise UserError(f"{folder} and {other} are one folder, and cannot be two classes")
    classes, paths, targets, empty = [], [], [], []
    for name in sorted(folders):
        images = [path for folder in folders[name] for path in _images(folder, entered, left_out)]
        if not images:
            empty.append(name)
            continue
        paths += images
        targets += [len(classes)] * len(images)
        classes.append(name)
    if not classes:
        raise FileNotFoundError(
            f"{part} has class folders without an image: {', '.join(empty[:10])}; remove them, or "
            f"put images there ({' '.join(ENDINGS)})"
        )
    return Scan(classes, paths, targets, left_out, empty)


def all_images(folder: Path) -> list[str]:
    """Paths of all images in a folder and in the folders in it, without hidden ones."""
    return _images(str(folder), {_identity(os.stat(folder)): str(folder)}, Counter())


def _images(folder, entered, left_out):
    """Paths of the images in a class folder, those of each folder together."""
    by_folder, waiting = {}, [folder]
    while waiting:
        current = waiting.pop()
        names = by_folder.setdefault(current, [])
        for entry in sorted(os.scandir(current), key=lambda entry: entry.name):
            if is_hidden(entry.name):
                left_out["hidden"] += 1
                continue
            try:
                status = entry.stat()
            except OSError:  # a link to nothing: if it is called an image, it is said to be missing
                status = None
            if status and stat.S_ISDIR(status.st_mode):
                if entered.setdefault(_identity(status), entry.path) == entry.path:
                    waiting.append(entry.path)
                else:
                    left_out["links to folders that are read anyway"] += 1
            elif status and not stat.S_ISREG(status.st_mode):
                left_out["that are no regular files"] += 1
            elif is_image(entry.path):
                names.append(entry.name)
            else:
                left_out[os.path.splitext(entry.name)[1].lower() or "without an ending"] += 1
    folders = sorted(by_folder.items())
    return [os.path.join(current, name) for current, names in folders for name in sorted(names)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's own."""
    return name.startswith(".") or name in OF_OTHERS


def is_image(path: str) -> bool:
    """Whether a file is an image by the ending of its name, or without one by its first bytes."""
    if os.path.splitext(path)[1]:
        return path.lower().endswith(ENDINGS)
    try:
        with open(path, "rb") as file:
            first = file.read(12)
    except OSError:
        return False
    return first.startswith(BEGINNINGS) or first[8:] == b"WEBP" or first[4:] == b"ftypavif"


def describe(left_out: Counter) -> str:
    """What was left out, in words; "" if that is nothing."""
    if not left_out:
        return ""
    most = [f"{count} {what}" for what, count in left_out.most_common(6)]
    more = sum(left_out.values()) - sum(count for _, count in left_out.most_common(6))
    return printable("left out: " + ", ".join(most + [f"{more} others"] * bool(more)))


def _identity(status):
    return status.st_dev, status.st_ino
