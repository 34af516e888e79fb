"""Tumbling windows: fixed size, no overlap, aligned to the epoch (plus an offset)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from streamgauge.transforms.config import MICROSECONDS, Config, Duration, format_duration, user_error


class TumblingOptions(Config):
    """Windows of one size that do not overlap: [start, start + size)."""

    short: ClassVar[str] = "size"
    size: Duration = Field(description="Length of a window; whole milliseconds.")
    offset: Duration = Field(0, description="Shifts the windows' starts from the epoch; smaller than size.")

    @field_validator("size", "offset")
    @classmethod
    def _whole_milliseconds(cls, value: int) -> int:
        if value % MICROSECONDS["ms"]:
            raise user_error(f"{format_duration(value)} is not a whole number of milliseconds")
        return value

    def model_post_init(self, context: object) -> None:
        if self.size <= 0:
            raise user_error("a window's size must be longer than 0")
        if self.offset >= self.size:
            raise user_error(f"offset {format_duration(self.offset)} must be smaller than size {format_duration(self.size)}")


class Tumbling:
    """A slice is a whole window.

    >>> import datetime
    >>> hour = Tumbling(TumblingOptions(size="1h"))
    >>> hour.slice_starts(np.array([0, 3_599_999_999, 3_600_000_000, -1]))
    array([          0,           0,  3600000000, -3600000000])
    """

    Options = TumblingOptions

    def __init__(self, options: TumblingOptions) -> None:
        self.slice_size = options.size
        self.offset = options.offset

    def slice_starts(self, event_times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return event_times - (event_times - self.offset) % self.slice_size

    def describe(self) -> str:
        return f"tumbling {format_duration(self.slice_size)}" + (f" offset {format_duration(self.offset)}" if self.offset else "")
