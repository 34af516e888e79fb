"""Window: which slices does a row belong to, which windows does a slice complete.

A *slice* is the part of event time that is aggregated once: it is part of one window or of several, wholly or not at all (Li et al., "No
pane, no gain", SIGMOD Record 2005). So an event costs the same however many windows it is in.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]
"""Microseconds since the epoch, UTC."""


class Window(Protocol):
    """A configured window of event time. Picklable. All times are microseconds since the epoch, UTC.

    Attributes:
        slice_size: usual length of a slice in microseconds; a multiple of 1 ms, the grain of Flink's clock.
        offset: start of one of the slices.
        span: how long after its end a slice may still be part of an unfinished window, at most; 0 where a slice is a whole window.
        key: the bound that tells windows of one key apart: ``window_start`` or ``window_end``.
    """

    slice_size: int
    offset: int
    span: int
    key: str

    def slice_starts(self, event_times: Times) -> Times:
        """The start of the slice of each event time."""

    def slice_ends(self, starts: Times) -> Times:
        """The end of each slice, by its start."""

    def last_ends(self, starts: Times) -> Times:
        """The end of the last window that each slice is part of."""

    def first_open(self, moment: int) -> int:
        """Start of the first window that ends after ``moment``."""

    def describe(self) -> str:
        """Such as ``tumbling 1h``."""


class SlicedWindow(Window, Protocol):
    """Windows of several slices. No two of them have the same end."""

    def first_ends(self, starts: Times) -> Times:
        """The end of the first window that each slice is part of."""

    def next_end(self, moment: int) -> int:
        """The first end of a window after ``moment``."""

    def start_of(self, end: int) -> int:
        """The start of the window with this end."""


def is_sliced(window: object) -> bool:
    """Whether its windows are made of several slices."""
    return hasattr(window, "first_ends")


def is_session(window: object) -> bool:
    """Whether its windows begin and end where the events say, see session.py."""
    return hasattr(window, "pieces")
