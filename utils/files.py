"""Files that are complete or not there at all."""

import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, mode: str = "w"):
    """Open a temporary file, and rename it to ``path`` once it is complete and on disk.

    If anything goes wrong before that, e.g. the disk is full, ``path`` stays as it was and no
    temporary file is left behind.
    """
    options = {}
    if "b" not in mode:
        options = {"encoding": "utf-8", "errors": "surrogateescape"}  # fits the name of any file
    # The name is fixed: the lock of a run's directory makes sure that there is one writer.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
