"""Files that are whole at any moment."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def replace_text(path: Path, text: str, *, synced: bool = False) -> None:
    """Writes a file beside ``path``, then puts it there: readers find the old text or the new one, whoever writes at the same time. Its folder must be there.

    The name of the file in between starts with a dot. What may not be lost with the machine is ``synced``: it is on disk then.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with unfinished.open("w") as file:
        file.write(text)
        if synced:
            file.flush()
            os.fsync(file.fileno())
    unfinished.replace(path)
    if synced:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
