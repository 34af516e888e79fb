"""Session windows: runs of events of one key with less than a gap between them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from streamgauge.transforms.config import MICROSECONDS, Config, Duration, format_duration, user_error
from streamgauge.transforms.windows.base import Times

LONGEST = 3_660 * MICROSECONDS["d"]
"""Event times lie within the years 2 to 9998: with durations up to this one no sum of them overflows."""


class SessionOptions(Config):
    """Sessions of a key: events with less than `gap` between each and the next. A window starts with the first event and ends `gap` after the last.

    With `max`, no session is longer than that (its window, from start to end). A run of events that would be longer is cut where event time is a
    multiple of `max` since the epoch, at each such border that it crosses: each part is a session, and one that goes on behind the border
    ends there. Where it is cut depends on the events alone, not on the order in which they come. (Azure Stream Analytics too looks at multiples of
    the maximal duration: "Session window", its SQL reference. Cutting `max` after the first event would let one early event move every later cut.)
    """

    short: ClassVar[str] = "gap"
    gap: Duration = Field(description="A session ends when there is no event for so long; whole milliseconds.")
    max: Duration | None = Field(None, description="Longest session, at least `gap`; whole milliseconds. Longer ones are cut at multiples of it. Default: no limit.")

    @field_validator("gap", "max")
    @classmethod
    def _fits(cls, value: int | None) -> int | None:
        if value is not None and (value <= 0 or value > LONGEST or value % MICROSECONDS["ms"]):
            raise user_error(f"{format_duration(value)}: expected whole milliseconds, from 1ms to {format_duration(LONGEST)}")
        return value

    def model_post_init(self, context: object) -> None:
        if self.max is not None and self.max < self.gap:
            raise user_error(f"max {format_duration(self.max)} must not be shorter than gap {format_duration(self.gap)}: a session of one event is that long")


class Session:
    """What belongs together, as functions of event times (microseconds since the epoch, UTC).

    A *chain* is all events of a key that are connected: each less than ``gap`` from the next. With ``max``, event time is divided into *cells*
    [n * max, (n + 1) * max); a *piece* is the part of a chain in one cell. A chain is one session when its window, from the first event to
    ``gap`` after the last, is no longer than ``max``; else each of its pieces is a session, which ends ``gap`` after its last event
    or at the cell's border, whichever is first.

    All of it is a function of the set of events. More events only ever connect: chains grow, and one that was cut stays so. Two sets
    of connected events that are connected with each other make one, in whatever order they are put together; cells are the same for all: so
    pieces can be merged in any order and grouping, like any other partial (sessions.py).

    >>> session = Session(SessionOptions(gap="30m", max="4h"))
    >>> session.describe()
    'session gap 30m max 4h'
    """

    Options = SessionOptions
    key = "window_start"

    def __init__(self, options: SessionOptions) -> None:
        self.gap = options.gap
        self.max = options.max

    def describe(self) -> str:
        return f"session gap {format_duration(self.gap)}" + (f" max {format_duration(self.max)}" if self.max is not None else "")

    def pieces(self, ids: npt.NDArray[np.int64], times: Times) -> npt.NDArray[np.int64]:
        """The piece of each event of a batch, numbered 0, 1, ... in the order of time within each key.

        Args:
            ids: the key of each event, numbers from 0 (``Groups.ids``); ``Groups.split`` takes what is returned.

        >>> Session(SessionOptions(gap="1ms", max="4ms")).pieces(np.array([0, 0, 1, 0, 0]), np.array([0, 999, 0, 1999, 4500])).tolist()
        [0, 0, 0, 1, 2]
        """
        numbers = np.zeros(len(times), np.int64)
        # Most batches are shorter than the gap: nothing to sort.
        if not len(times) or (int(times.max()) - int(times.min()) < self.gap and self.cells(times.max()) == self.cells(times.min())):
            return numbers
        order = _by_id_and_time(ids, times)
        ids, times = ids[order], times[order]
        same_id = ids[1:] == ids[:-1]
        apart = np.diff(times) >= self.gap
        if self.max is not None:
            apart |= np.diff(self.cells(times)) != 0
        after = np.concatenate([[0], np.cumsum(apart)])
        # Each key counts from 0: a batch in which no key has two pieces is all zeros, which `split` sees at once.
        starts = np.flatnonzero(np.concatenate([[True], ~same_id]))
        numbers[order] = after - np.repeat(after[starts], np.diff(starts, append=len(ids)))
        return numbers

    def cells(self, times: Times) -> Times:
        """The number of the cell of each time; 0 without ``max``."""
        return np.zeros_like(times) if self.max is None else times // self.max

    def borders(self, cells: Times) -> Times:
        """Where each cell ends. With ``max`` only."""
        assert self.max is not None
        return (cells + 1) * self.max

    def too_long(self, first: Times, last: Times) -> npt.NDArray[np.bool_]:
        """Which chains are cut, by the times of their first and last events."""
        return np.zeros(len(first), np.bool_) if self.max is None else last + self.gap - first > self.max

    def ends(self, last: Times, cells: Times, cut: npt.NDArray[np.bool_]) -> Times:
        """The window's end of each session: by its last event, its cell, and whether it is a piece of a chain that is cut."""
        ends = last + self.gap
        return ends if self.max is None else np.where(cut, np.minimum(ends, self.borders(cells)), ends)


def _by_id_and_time(ids: npt.NDArray[np.int64], times: Times) -> npt.NDArray[np.int64]:
    # A stable sort of 16-bit numbers is a radix sort; most batches have fewer keys than that, and many are sorted by time.
    order = None if (times[1:] >= times[:-1]).all() else np.argsort(times)
    if order is not None:
        ids = ids[order]
    by_id = np.argsort(ids.astype(np.uint16) if int(ids.max()) < 2**16 else ids, kind="stable")
    return by_id if order is None else order[by_id]
