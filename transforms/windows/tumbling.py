"""Tumbling windows: fixed size, no overlap, aligned to the epoch (plus an offset) or to a time zone's days."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from streamgauge.transforms.config import Config, format_duration, user_error
from streamgauge.transforms.windows.base import Times
from streamgauge.transforms.windows.clock import Clock, Milliseconds, Size, TimeZone, check_days, floor


class TumblingOptions(Config):
    """Windows of one size that do not overlap: [start, start + size)."""

    short: ClassVar[str] = "size"
    size: Size = Field(description="Length of a window; whole milliseconds.")
    offset: Milliseconds = Field(0, description="Shifts the windows' starts from the epoch (or from midnight); smaller than size.")
    timezone: TimeZone = None

    def model_post_init(self, context: object) -> None:
        if self.offset >= self.size:
            raise user_error(f"offset {format_duration(self.offset)} must be smaller than size {format_duration(self.size)}")
        check_days("size", self.size, self.timezone)


class Tumbling:
    """A slice is a whole window.

    >>> hour = Tumbling(TumblingOptions(size="1h"))
    >>> hour.slice_starts(np.array([0, 3_599_999_999, 3_600_000_000, -1]))
    array([          0,           0,  3600000000, -3600000000])
    """

    Options = TumblingOptions
    key = "window_start"
    span = 0

    def __init__(self, options: TumblingOptions) -> None:
        self.slice_size = options.size
        self.offset = options.offset
        self._clock = Clock(options.timezone)

    def slice_starts(self, event_times: Times) -> Times:
        return self._clock.instant(floor(self._clock.wall(event_times), self.slice_size, self.offset))

    def slice_ends(self, starts: Times) -> Times:
        if self._clock.timezone is None:
            return starts + self.slice_size
        return self._clock.instant(floor(self._clock.wall(starts), self.slice_size, self.offset) + self.slice_size)

    def last_ends(self, starts: Times) -> Times:
        return self.slice_ends(starts)

    def first_open(self, moment: int) -> int:
        return int(self.slice_starts(np.array([moment]))[0])

    def describe(self) -> str:
        return f"tumbling {format_duration(self.slice_size)}" + describe_alignment(self.offset, self._clock.timezone)


def describe_alignment(offset: int, timezone: str | None) -> str:
    """`` offset 5m in Europe/Berlin``, or nothing."""
    return (f" offset {format_duration(offset)}" if offset else "") + (f" in {timezone}" if timezone else "")
