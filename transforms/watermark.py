"""The watermark of a split: the newest event time seen, less the allowed disorder."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_right
from typing import Any

from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from streamgauge.transforms.config import MICROSECONDS
from streamgauge.transforms.event_time import TimeOptions
from streamgauge.transforms.record import JobRecord

_MS = MICROSECONDS["ms"]
_LOOK_EVERY_SECONDS = 0.5
_STEP_SECONDS = 0.02
_KEPT_SECONDS = 30.0
"""Of the past, what is kept, and in what steps: it has to reach back to where a split was last seen at its end."""


def reported(newest: int, disorder: int) -> int:
    """The watermark that is reported, in microseconds.

    Flink counts in milliseconds and closes a window when the watermark reaches its last millisecond. Whole milliseconds,
    one less: so a window closes only when ``newest - disorder`` has truly passed its end.

    >>> reported(10_000_999, 0)
    9999000
    """
    return (newest - disorder) // _MS * _MS - _MS


class _Newest:
    """The newest event time of each source, as far as this process and the job's record know, and what it was some seconds ago."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], list[tuple[float, int]]] = {}
        self._looked: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def see(self, key: tuple[str, str], newest: int) -> None:
        with self._lock:
            now = time.monotonic()
            seen = self._seen.setdefault(key, [])
            if seen and newest <= seen[-1][1]:
                return
            if len(seen) > 1 and now - seen[-2][0] < _STEP_SECONDS:
                seen.pop()
            seen.append((now, newest))
            del seen[: max(bisect_right(seen, now - _KEPT_SECONDS, key=_when) - 1, 0)]

    def at(self, moment: float, key: tuple[str, str], record: JobRecord) -> int | None:
        """The newest event time at a moment of ``time.monotonic``, or less; None when nothing is known."""
        if time.monotonic() - self._looked.get(key, -math.inf) > _LOOK_EVERY_SECONDS:
            self._looked[key] = time.monotonic()
            known = [values["newest"] for values in record.all("splits") if values["source"] == key[1] and values["newest"] is not None]
            if known:
                self.see(key, max(known))
        with self._lock:
            seen = self._seen.get(key, [])
            place = bisect_right(seen, moment, key=_when)
            return seen[place - 1][1] if place else None


def _when(seen: tuple[float, int]) -> float:
    return seen[0]


_NEWEST = _Newest()


class SplitWatermark:
    """Advances a Beam watermark estimator for one split.

    Attributes:
        newest: largest event time seen in this call, microseconds; None before the first.
    """

    def __init__(self, source: str, split: str, options: TimeOptions, estimator: Any, record: JobRecord) -> None:
        self._key = (str(record.folder), source)
        self._options = options
        self._estimator = estimator
        self._record = record
        current = self.current
        self.newest: int | None = None if current <= MIN_TIMESTAMP else current.micros + options.disorder + _MS

    @property
    def current(self) -> Timestamp:
        return self._estimator.current_watermark() or MIN_TIMESTAMP

    def advance(self, newest: int) -> None:
        """An event of this time was read."""
        self.newest = newest if self.newest is None else max(self.newest, newest)
        _NEWEST.see(self._key, newest)
        self._set(reported(newest, self._options.disorder))

    def idle(self, seconds: float, confirmed: float) -> None:
        """The source has confirmed for so long that there is nothing more, the last time at ``confirmed`` (``time.monotonic``)."""
        if seconds * MICROSECONDS["s"] >= self._options.idle:
            self.follow(confirmed)

    def follow(self, confirmed: float) -> None:
        """Go where the newest event of the whole source was when there was nothing more here.

        What came since then may come to all splits at once, and those read first are no measure for the others. Nor is the wall clock: a replay of old
        events must not become late.
        """
        newest = _NEWEST.at(confirmed, self._key, self._record)
        if newest is not None:
            self._set(reported(newest, self._options.disorder))

    def _set(self, micros: int) -> None:
        watermark = Timestamp(micros=micros)
        if watermark > self.current:
            self._estimator.set_watermark(watermark)
