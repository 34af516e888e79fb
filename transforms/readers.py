"""Open readers of a process, kept from one call to the next: a client is opened once a split, not once a bundle."""

from __future__ import annotations

import threading
import time

from streamgauge.transforms.sources.base import Connector, RawBatch, Reader, Split

_UNUSED_SECONDS = 120.0


class OpenReader:
    """A reader with what is known of its split in this process: position, counts since it was opened, idleness."""

    def __init__(self, reader: Reader, position: int) -> None:
        self._reader = reader
        self.position = position
        self.events = 0
        self.rejected = 0
        self.opened = time.time()
        self.used = time.monotonic()
        self._idle_since: float | None = None

    def read(self, max_records: int, max_bytes: int, timeout: float) -> RawBatch:
        raw = self._reader.read(max_records, max_bytes, timeout)
        self.position = raw.next_position
        self.used = time.monotonic()
        if len(raw) or not raw.caught_up:
            # An empty read does not unsay that the end was confirmed; a broken connection never said so.
            self._idle_since = None if len(raw) else self._idle_since
        elif self._idle_since is None:
            self._idle_since = self.used
        return raw

    @property
    def idle_seconds(self) -> float:
        """How long the source has confirmed that there is nothing more."""
        return 0.0 if self._idle_since is None else time.monotonic() - self._idle_since

    def close(self) -> None:
        self._reader.close()


class OpenReaders:
    """Readers by split. One is taken out while it is used, so two threads never share it."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._free: dict[str, OpenReader] = {}
        self._lock = threading.Lock()

    def take(self, split: Split, position: int) -> OpenReader:
        """The open reader if it stands at ``position``, else a new one."""
        with self._lock:
            found = self._free.pop(split.id, None)
        if found is not None and found.position == position:
            return found
        if found is not None:
            found.close()
        return OpenReader(self._connector.open(split, position), position)

    def put_back(self, split: Split, reader: OpenReader) -> None:
        """Keep it for the next call; readers long unused (their split moved elsewhere) are closed."""
        now = time.monotonic()
        with self._lock:
            replaced = self._free.pop(split.id, None)
            stale = [name for name, other in self._free.items() if now - other.used > _UNUSED_SECONDS]
            closing = [self._free.pop(name) for name in stale]
            self._free[split.id] = reader
        for other in (*closing, *([replaced] if replaced else [])):
            other.close()

    def close(self) -> None:
        with self._lock:
            readers, self._free = list(self._free.values()), {}
        for reader in readers:
            reader.close()
