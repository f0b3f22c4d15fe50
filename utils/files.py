"""Files that are whole or not there."""

import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, mode: str = "w"):
    """Open a temporary file beside ``path``, and rename it to ``path`` once it is whole and on
    disk.

    Whatever goes wrong before that, a full disk among it, leaves ``path`` as it was and no
    temporary file behind.
    """
    text = (
        {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape"}
    )  # which can write any file's name
    temporary = path.with_name(
        f".{path.name}.tmp"
    )  # one writer a run directory: the lock sees to it
    try:
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
