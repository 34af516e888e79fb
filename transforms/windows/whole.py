"""The global window: all of time."""

from __future__ import annotations

import numpy as np

from streamgauge.transforms.config import Config
from streamgauge.transforms.windows.base import Times

END = 9_214_646_400_000_000
"""2262-01-01: the last new year that stores which count nanoseconds can hold, in microseconds."""


class GlobalOptions(Config):
    """One window for all of time: `window: global`. Its rows have 1970-01-01 and 2262-01-01 as bounds; they are final when the job is drained
    or its input ends, so `emit` must say when there are results before."""


class Global:
    """One slice without an end.

    >>> Global(GlobalOptions()).slice_starts(np.array([-5, 7]))
    array([0, 0])
    """

    Options = GlobalOptions
    key = "window_start"
    span = 0
    slice_size = END
    offset = 0

    def __init__(self, options: GlobalOptions) -> None:
        pass

    def slice_starts(self, event_times: Times) -> Times:
        return np.zeros(len(event_times), np.int64)

    def slice_ends(self, starts: Times) -> Times:
        return np.full(len(starts), END)

    def last_ends(self, starts: Times) -> Times:
        return self.slice_ends(starts)

    def first_open(self, moment: int) -> int:
        return 0

    def describe(self) -> str:
        return "global"
