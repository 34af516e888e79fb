"""Files that are whole at any moment."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes a file beside ``path``, then puts it there: readers find the old text or the new one, whoever writes at the same time. Its folder must be there.

    The name of the file in between starts with a dot. Not synced to disk: for what may be lost with the machine.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    unfinished.write_text(text)
    unfinished.replace(path)
