"""The job's record: a folder in which a running job says what it read and wrote, and finds its signals.

One small JSON file a split or writer, replaced atomically. It serves people and tools (live view, ``streamgauge verify``,
drain); exactly-once does not rest on it: positions are restored from Flink's checkpoint, never from here. (Only a job that goes on with another
number of shards asks here which windows have begun, see sharding.py.)
The folder must be one that all workers share.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import quote

from streamgauge.transforms.files import replace_text

WRITE_EVERY_SECONDS = 0.5

DEAD_LETTERS = "dead_letters"
"""Folder of the dead letters that a job gives no other place."""


class JobRecord:
    """Reads and writes the record of one job; ``folder`` None keeps nothing."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)
        # Neither a process number nor an address in memory will do: both are given again, and what the one before had counted would be overwritten.
        self._writer = uuid.uuid4().hex
        self._written: dict[tuple[str, str], float] = {}
        self._paths: dict[tuple[str, str], Path] = {}
        self._drain = None if self.folder is None else self.folder / "drain"

    def put(
        self, kind: str, name: str, values: dict[str, Any], *, now: bool = False, every: float = WRITE_EVERY_SECONDS, synced: bool = False
    ) -> None:
        """Store ``values`` as ``kind``/``name``; at most every ``every`` seconds a name unless ``now``; on disk if ``synced``.

        Raises:
            OSError: a full disk, say. Only with ``now``: the others are told again soon.
        """
        if self.folder is None:
            return
        clock = time.monotonic()
        if not now and clock - self._written.get((kind, name), float("-inf")) < every:
            return
        self._written[kind, name] = clock
        path = self._path(kind, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, json.dumps({"name": name, **values}), synced=synced)
        except OSError:
            if now:
                raise

    def put_own(self, kind: str, label: str, values: dict[str, Any], *, now: bool = False) -> None:
        """Store what this object alone counts, beside what others count under the same ``label``. Raises as `put`."""
        self.put(kind, f"{label}-{self._writer}", values, now=now)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """What is stored as ``kind``/``name``."""
        try:
            found: dict[str, Any] | None = None if self.folder is None else json.loads(self._path(kind, name).read_text())
        except FileNotFoundError:
            return None
        return found

    def _path(self, kind: str, name: str) -> Path:
        found = self._paths.get((kind, name))
        if found is None:
            assert self.folder is not None
            found = self._paths[kind, name] = self.folder / kind / f"{quote(name, safe='')}.json"
        return found

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Everything stored under ``kind``, by name."""
        if self.folder is None:
            return []
        return [json.loads(path.read_text()) for path in sorted((self.folder / kind).glob("[!.]*.json"))]

    def keep_only(self, kind: str, names: Collection[str]) -> None:
        """Forget what is stored under ``kind`` and other names."""
        if self.folder is not None:
            kept = {self._path(kind, name) for name in names}
            for path in (self.folder / kind).glob("*.json"):
                if path not in kept:
                    path.unlink(missing_ok=True)

    def ask_to_drain(self) -> None:
        """Tell the readers to end their splits where they are: all windows then close."""
        if self._drain is None:
            raise ValueError("a job without a record folder cannot be drained")
        self._drain.parent.mkdir(parents=True, exist_ok=True)
        self._drain.touch()

    def draining(self) -> bool:
        """Whether readers shall end."""
        return self._drain is not None and os.path.exists(self._drain)  # asked at each batch: cheaper than Path.exists

    def keep_reading(self) -> None:
        """Take back `ask_to_drain`."""
        if self._drain is not None:
            self._drain.unlink(missing_ok=True)

    def clear(self, *, dead_letters: bool = True) -> None:
        """Forget what an earlier run left, its dead letters included unless told otherwise."""
        if self.folder is None:
            return
        if dead_letters:
            shutil.rmtree(self.folder / DEAD_LETTERS, ignore_errors=True)
        for path in self.folder.glob("*/*.json"):
            path.unlink(missing_ok=True)
        self.keep_reading()
