"""The job's record: a folder in which a running job says what it read and wrote, and finds its signals.

One small JSON file a split or writer, replaced atomically. It serves people and tools (live view, ``streamgauge verify``,
drain); exactly-once does not rest on it: positions are restored from Flink's checkpoint, never from here.
The folder must be one that all workers share.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

_WRITE_EVERY_SECONDS = 0.2

DEAD_LETTERS = "dead_letters"
"""Folder of the dead letters that a job gives no other place."""


class JobRecord:
    """Reads and writes the record of one job; ``folder`` None keeps nothing."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._written: dict[tuple[str, str], float] = {}

    def put(self, kind: str, name: str, values: dict[str, Any], *, now: bool = False) -> None:
        """Store ``values`` as ``kind``/``name``; at most every 0.2 s a name unless ``now``."""
        if self.folder is None:
            return
        clock = time.monotonic()
        if not now and clock - self._written.get((kind, name), -1.0) < _WRITE_EVERY_SECONDS:
            return
        self._written[kind, name] = clock
        path = self.folder / kind / f"{quote(name, safe='')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        temporary.write_text(json.dumps({"name": name, **values}))
        temporary.replace(path)

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Everything stored under ``kind``, by name."""
        if self.folder is None:
            return []
        return [json.loads(path.read_text()) for path in sorted((self.folder / kind).glob("[!.]*.json"))]

    def ask_to_drain(self) -> None:
        """Tell the readers to end their splits where they are: all windows then close."""
        if self.folder is None:
            raise ValueError("a job without a record folder cannot be drained")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "drain").touch()

    def draining(self) -> bool:
        """Whether readers shall end."""
        return self.folder is not None and (self.folder / "drain").exists()

    def clear(self) -> None:
        """Forget what an earlier run left, its dead letters included."""
        if self.folder is None:
            return
        shutil.rmtree(self.folder / DEAD_LETTERS, ignore_errors=True)
        for path in (*self.folder.glob("*/*.json"), self.folder / "drain"):
            path.unlink(missing_ok=True)
