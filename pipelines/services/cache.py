"""Where downloaded and generated files live, and how processes that share them keep apart."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def cache_folder() -> Path:
    """`$STREAMGAUGE_CACHE`, else `$XDG_CACHE_HOME/streamgauge`, else `~/.cache/streamgauge`; created."""
    own = os.environ.get("STREAMGAUGE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else (Path(base) if base else Path.home() / ".cache") / "streamgauge"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on `path` between processes and threads; the kernel frees it if we die.

    Args:
        path: the lock file, created if missing and never deleted.
        waiting: called once when another holder is found.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
