"""Open readers of a process, kept from one call to the next: a client is opened once a split, not once a bundle."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

from streamgauge.transforms.sources.base import Connector, RawBatch, Reader, Split

_UNUSED_SECONDS = 120.0

_RECENT_SECONDS = 0.3
"""A split not read for so long is not waited for: it has moved, or its calls take long anyway."""

_TRIES, _TRIES_SECONDS = 8, 1.0
"""So many bundles in so many seconds may hurry to meet others. Some runners never put two splits into one."""


class OpenReader:
    """A reader with what is known of its split in this process: counts since it was opened, idleness.

    Attributes:
        position: up to where batches were handed out; what was read may go further.
        ahead: a batch that was read and not handed out yet, and when; a thing of ``joint_reads.py``.
        bundle: number of the last bundle in which it was used.
        confirmed: when the source last confirmed that there is nothing more (``time.monotonic``).
    """

    def __init__(self, reader: Reader, position: int) -> None:
        self._reader = reader
        self.position = position
        self.ahead: tuple[Any, float] | None = None
        self.events = 0
        self.rejected = 0
        self.opened = time.time()
        self.used = time.monotonic()
        self.bundle = 0
        self.confirmed = -math.inf
        self._idle_since: float | None = None

    def read(self, max_records: int, max_bytes: int, timeout: float) -> RawBatch:
        """The next batch, handed out."""
        raw = self.fetch(max_records, max_bytes, timeout)
        self.hand_out(raw)
        return raw

    def fetch(self, max_records: int, max_bytes: int, timeout: float) -> RawBatch:
        """The next batch. It must be handed out before another one, or the reader be closed."""
        before = time.monotonic()
        raw = self._reader.read(max_records, max_bytes, timeout)
        if len(raw):
            self._idle_since = None
        elif raw.caught_up:
            # An empty read that says nothing does not unsay that the end was confirmed.
            self.confirmed = before if raw.caught_up_at is None else raw.caught_up_at
            self._idle_since = self.confirmed if self._idle_since is None else self._idle_since
        return raw

    def hand_out(self, raw: RawBatch) -> None:
        """Reading goes on behind this batch."""
        self.position = raw.next_position
        self.used = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """How long the source has confirmed that there is nothing more."""
        return 0.0 if self._idle_since is None else self.confirmed - self._idle_since

    def close(self) -> None:
        self._reader.close()


class OpenReaders:
    """Readers by split. One is taken out while it is used, so two threads never share it."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._free: dict[str, OpenReader] = {}
        self._bundle = 0
        self._tries, self._tries_since = 0, time.monotonic()
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

    def begin_bundle(self) -> bool:
        """Whether splits may rest after this one: those read last were all in one bundle, or have tried to be."""
        now = time.monotonic()
        with self._lock:
            self._bundle += 1
            if now - self._tries_since >= _TRIES_SECONDS:
                self._tries, self._tries_since = 0, now
            together = len({reader.bundle for reader in self._free.values() if now - reader.used < _RECENT_SECONDS}) < 2
            self._tries += not together
            return together or self._tries > _TRIES

    def take_free(self) -> dict[str, OpenReader]:
        """All that are not used now and have nothing read ahead, by split; to be given back or closed."""
        with self._lock:
            return {name: self._free.pop(name) for name, reader in [*self._free.items()] if reader.ahead is None}

    def give_back(self, readers: dict[str, OpenReader]) -> None:
        """Those of ``take_free``."""
        with self._lock:
            self._free.update(readers)

    def put_back(self, split: Split, reader: OpenReader) -> None:
        """Keep it for the next call; readers long unused (their split moved elsewhere) are closed."""
        now = time.monotonic()
        with self._lock:
            replaced = self._free.pop(split.id, None)
            stale = [name for name, other in self._free.items() if now - other.used > _UNUSED_SECONDS]
            closing = [self._free.pop(name) for name in stale]
            self._free[split.id] = reader
            reader.bundle = self._bundle
        for other in (*closing, *([replaced] if replaced else [])):
            other.close()

    def close(self) -> None:
        with self._lock:
            readers, self._free = list(self._free.values()), {}
        for reader in readers:
            reader.close()
