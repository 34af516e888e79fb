"""Cumulative windows: from the start of a period, a step longer each time. (Day to date every minute; Flink SQL: CUMULATE.)"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from streamgauge.transforms.config import MICROSECONDS, Config, format_duration, user_error
from streamgauge.transforms.windows.base import Times
from streamgauge.transforms.windows.clock import DAY, Clock, Milliseconds, Size, TimeZone, check_days, floor
from streamgauge.transforms.windows.sliding import check_slices
from streamgauge.transforms.windows.tumbling import describe_alignment

_CLOCK_STEP = 30 * MICROSECONDS["m"]
"""Clocks are put forward and back by multiples of this."""


class CumulativeOptions(Config):
    """Windows that begin together, one a period, and end one after another: [start, start + every), [start, start + 2 every), ... [start, start + size).

    Rows of one period share their ``window_start``: their key has ``window_end`` instead.
    """

    size: Size = Field(description="Length of a period; whole milliseconds.")
    every: Size = Field(description="Time between the ends of two windows; divides the size.")
    offset: Milliseconds = Field(0, description="Shifts the periods' starts from the epoch (or from midnight); smaller than size.")
    timezone: TimeZone = None

    def model_post_init(self, context: object) -> None:
        size, every = format_duration(self.size), format_duration(self.every)
        if self.size % self.every:
            raise user_error(f"every {every} does not divide size {size}: the last window of a period would be shorter than the others")
        check_slices(self.size, self.every)
        if self.offset >= self.size:
            raise user_error(f"offset {format_duration(self.offset)} must be smaller than size {size}")
        check_days("size", self.size, self.timezone)
        if self.timezone is not None and self.every % DAY and _CLOCK_STEP % self.every:
            raise user_error(f"with a timezone, every must be whole days or divide 30m, by which days get longer and shorter; {every} does neither")


class Cumulative:
    """A slice is one step.

    >>> day = Cumulative(CumulativeOptions(size="1d", every="6h"))
    >>> [end // 3_600_000_000 for end in day.last_ends(np.array([0, 6 * 3_600_000_000])).tolist()], day.next_end(0) // 3_600_000_000
    ([24, 24], 6)
    """

    Options = CumulativeOptions
    key = "window_end"

    def __init__(self, options: CumulativeOptions) -> None:
        self._size = options.size
        self.slice_size = options.every
        self.offset = options.offset
        self._clock = Clock(options.timezone)
        # A day can be longer than it should.
        self.span = self._size - self.slice_size + (0 if options.timezone is None else DAY)

    def slice_starts(self, event_times: Times) -> Times:
        if not self.slice_size % DAY:
            return self._clock.instant(floor(self._clock.wall(event_times), self.slice_size, self.offset))
        begins = self._period(event_times)
        return begins + (event_times - begins) // self.slice_size * self.slice_size

    def slice_ends(self, starts: Times) -> Times:
        if not self.slice_size % DAY:
            return self._clock.instant(floor(self._clock.wall(starts), self.slice_size, self.offset) + self.slice_size)
        return starts + self.slice_size

    def first_ends(self, starts: Times) -> Times:
        return self.slice_ends(starts)

    def last_ends(self, starts: Times) -> Times:
        return self._clock.instant(floor(self._clock.wall(starts), self._size, self.offset) + self._size)

    def next_end(self, moment: int) -> int:
        return int(self.slice_ends(self.slice_starts(np.array([moment])))[0])

    def start_of(self, end: int) -> int:
        return int(self._period(np.array([end - 1]))[0])

    def first_open(self, moment: int) -> int:
        return int(self._period(np.array([moment]))[0])

    def describe(self) -> str:
        return f"cumulative {format_duration(self._size)} every {format_duration(self.slice_size)}" + describe_alignment(self.offset, self._clock.timezone)

    def _period(self, times: Times) -> Times:
        return self._clock.instant(floor(self._clock.wall(times), self._size, self.offset))
