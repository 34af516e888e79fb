"""Window: which slices does a row belong to, which windows does a slice complete."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Window(Protocol):
    """A configured window. Picklable. All times are microseconds since the epoch, UTC.

    Attributes:
        slice_size: length of a slice in microseconds; a multiple of 1 ms, the grain of Flink's clock.
        offset: start of one of the slices.
    """

    slice_size: int
    offset: int

    def slice_starts(self, event_times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The start of the slice of each event time."""

    def describe(self) -> str:
        """Such as ``tumbling 1h``."""
