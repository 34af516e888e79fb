"""Sliding windows: one of a size begins every so often, and they overlap. (Beam, Flink: sliding or hopping windows.)"""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from streamgauge.transforms.config import Config, format_duration, user_error
from streamgauge.transforms.windows.base import Times
from streamgauge.transforms.windows.clock import Clock, Milliseconds, Size, TimeZone, check_days, floor
from streamgauge.transforms.windows.tumbling import describe_alignment

MAX_SLICES = 10_000
"""Slices of a window that are kept in state, each with a row a key."""


def check_slices(size: int, every: int) -> None:
    """Raises a user's error when windows of this size, one every so often, have more slices than state holds."""
    step = math.gcd(size, every)
    if size // step > MAX_SLICES:
        raise user_error(
            f"a window of {format_duration(size)} every {format_duration(every)} is made of {size // step:,} slices of {format_duration(step)}, "
            f"more than the {MAX_SLICES:,} that state holds for each key; take an `every` that divides the size into fewer"
        )


class SlidingOptions(Config):
    """Windows of one size, of which one begins every ``every``: [start, start + size).

    Events are aggregated once, in slices as long as the greatest common divisor of both: what an event costs does not depend on size / every.
    """

    size: Size = Field(description="Length of a window; whole milliseconds.")
    every: Size = Field(description="Time between the starts of two windows; at most the size. It need not divide the size, but then slices are shorter than it.")
    offset: Milliseconds = Field(0, description="Shifts the windows' starts from the epoch (or from midnight); smaller than every.")
    timezone: TimeZone = None

    def model_post_init(self, context: object) -> None:
        size, every = format_duration(self.size), format_duration(self.every)
        if self.every > self.size:
            raise user_error(f"every {every} is longer than size {size}: events between two windows would be in none; use tumbling: {every}, or a size of at least {every}")
        if self.offset >= self.every:
            raise user_error(f"offset {format_duration(self.offset)} must be smaller than every {every}")
        check_days("size", self.size, self.timezone)
        check_days("every", self.every, self.timezone)
        check_slices(self.size, self.every)


class Sliding:
    """A slice is as long as the greatest common divisor of size and every.

    >>> sliding = Sliding(SlidingOptions(size="10s", every="4s"))
    >>> sliding.slice_size, sliding.first_ends(np.array([4_000_000])).tolist(), sliding.last_ends(np.array([4_000_000])).tolist()
    (2000000, [6000000], [14000000])
    """

    Options = SlidingOptions
    key = "window_start"

    def __init__(self, options: SlidingOptions) -> None:
        self._size, self._every = options.size, options.every
        self._clock = Clock(options.timezone)
        self.slice_size = math.gcd(options.size, options.every)
        self.offset = options.offset
        self.span = self._size - self.slice_size + (0 if options.timezone is None else self.slice_size)

    def slice_starts(self, event_times: Times) -> Times:
        return self._clock.instant(floor(self._clock.wall(event_times), self.slice_size, self.offset))

    def slice_ends(self, starts: Times) -> Times:
        return self._clock.instant(self._wall(starts) + self.slice_size)

    def first_ends(self, starts: Times) -> Times:
        # The first start from which a window reaches the slice's end.
        least = self._wall(starts) + self.slice_size - self._size
        return self._clock.instant(-floor(-least, self._every, -self.offset) + self._size)

    def last_ends(self, starts: Times) -> Times:
        return self._clock.instant(floor(self._wall(starts), self._every, self.offset) + self._size)

    def next_end(self, moment: int) -> int:
        ends = floor(self._clock.wall(np.array([moment])), self._every, self.offset + self._size) + self._every
        return int(self._clock.instant(ends)[0])

    def start_of(self, end: int) -> int:
        return int(self._clock.instant(floor(self._clock.wall(np.array([end])), self._every, self.offset + self._size) - self._size)[0])

    def first_open(self, moment: int) -> int:
        return self.start_of(self.next_end(moment))

    def describe(self) -> str:
        return f"sliding {format_duration(self._size)} every {format_duration(self._every)}" + describe_alignment(self.offset, self._clock.timezone)

    def _wall(self, starts: Times) -> Times:
        # A clock that leaves out the hour of midnight starts a day later than it says.
        return floor(self._clock.wall(starts), self.slice_size, self.offset)
