"""The watermark of a split: the newest event time seen, less the allowed disorder."""

from __future__ import annotations

import time
from typing import Any

from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from streamgauge.transforms.config import MICROSECONDS
from streamgauge.transforms.event_time import TimeOptions
from streamgauge.transforms.record import JobRecord

_MS = MICROSECONDS["ms"]
_LOOK_EVERY_SECONDS = 0.5


def reported(newest: int, disorder: int) -> int:
    """The watermark that is reported, in microseconds.

    Flink counts in milliseconds and closes a window when the watermark reaches its last millisecond. Whole milliseconds,
    one less: so a window closes only when ``newest - disorder`` has truly passed its end.

    >>> reported(10_000_999, 0)
    9999000
    """
    return (newest - disorder) // _MS * _MS - _MS


class _Newest:
    """The newest event time of each source, as far as this process and the job's record know."""

    def __init__(self) -> None:
        self._here: dict[tuple[str, str], int] = {}
        self._there: dict[tuple[str, str], tuple[float, int | None]] = {}

    def see(self, key: tuple[str, str], newest: int) -> None:
        self._here[key] = max(newest, self._here.get(key, newest))

    def get(self, key: tuple[str, str], record: JobRecord) -> int | None:
        looked, there = self._there.get(key, (float("-inf"), None))
        if time.monotonic() - looked > _LOOK_EVERY_SECONDS:
            known = [values["newest"] for values in record.all("splits") if values["source"] == key[1] and values["newest"] is not None]
            there = max(known, default=None)
            self._there[key] = (time.monotonic(), there)
        return max((value for value in (self._here.get(key), there) if value is not None), default=None)


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

    def idle(self, seconds: float) -> None:
        """The source has confirmed for so long that there is nothing more."""
        if seconds * MICROSECONDS["s"] >= self._options.idle:
            self.follow()

    def follow(self) -> None:
        """Go where the newest event of the whole source is, never where the wall clock is: a replay of old events must not become late."""
        newest = _NEWEST.get(self._key, self._record)
        if newest is not None:
            self._set(reported(newest, self._options.disorder))

    def _set(self, micros: int) -> None:
        watermark = Timestamp(micros=micros)
        if watermark > self.current:
            self._estimator.set_watermark(watermark)
