"""Where in a split to begin so that every event from some event time on is read: what a replay needs to know of a source.

A *fact* is a position and the newest event time among all events before it. Facts are about the source and not about a run: what a bundle
that failed has noted stays true.
"""

from __future__ import annotations

import threading
from bisect import bisect_left

from streamgauge.transforms.config import MICROSECONDS

SPACING = MICROSECONDS["s"]
"""Event time between two facts, at least; only the last one is nearer."""

LIMIT = 512
"""Facts of a split. Beyond it every other one of the older half goes: the older, the sparser."""


class PositionIndex:
    """The facts of one split.

    Attributes:
        begin: where the split was first read from; nothing before it counts.
        facts: (position, newest event time before it in microseconds), both growing.
        position: up to where events were seen; None before the first call of ``resume``.
        disorder: the largest with which the split was read, microseconds.

    >>> index = PositionIndex(0)
    >>> index.resume(0, None)
    >>> for position, newest in ((10, 1_000_000), (20, 2_000_000), (30, 9_000_000)):
    ...     index.add(position, newest)
    >>> index.start_before(2_000_001), index.start_before(2_000_000), index.start_before(0)
    (20, 10, 0)
    """

    def __init__(self, begin: int, facts: list[tuple[int, int]] | None = None, disorder: int = 0) -> None:
        self.begin = begin
        self.facts = facts or []
        self.disorder = disorder
        self.position: int | None = None

    def resume(self, position: int, bound: int | None) -> None:
        """Reading goes on at ``position``; no event before it is newer than ``bound`` (None: there was none)."""
        if not self.facts or position > self.facts[-1][0]:
            self.add(position, bound)
        self.position = position

    def add(self, position: int, newest: int | None) -> None:
        """Reading came to ``position``; the newest of the events since the last call was of this time (None: there was none)."""
        self.position = position
        known = self.facts[-1] if self.facts else None
        if known is not None:
            newest = known[1] if newest is None else max(newest, known[1])
        if newest is None or (known is not None and position <= known[0]):
            return
        if len(self.facts) > 1 and self.facts[-1][1] - self.facts[-2][1] < SPACING:
            self.facts[-1] = (position, newest)
        else:
            self.facts.append((position, newest))
            if len(self.facts) > LIMIT:
                half = LIMIT // 2
                self.facts = self.facts[:half:2] + self.facts[half:]

    def start_before(self, moment: int | None) -> int:
        """The last known position before which every event is older than ``moment``; None: where the split begins."""
        older = 0 if moment is None else bisect_left(self.facts, moment, key=lambda fact: fact[1])
        return self.facts[older - 1][0] if older else self.begin


class Indexes:
    """The indexes of a process, by split. One is taken out while it is used; that of a bundle that failed is gone."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, str], PositionIndex] = {}
        self._lock = threading.Lock()

    def take(self, key: tuple[str, str], position: int) -> PositionIndex | None:
        """The index, if it stands at ``position``: else the split was read elsewhere meanwhile."""
        with self._lock:
            found = self._free.pop(key, None)
        return found if found is not None and found.position == position else None

    def put_back(self, key: tuple[str, str], index: PositionIndex) -> None:
        with self._lock:
            self._free[key] = index
