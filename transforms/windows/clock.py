"""Wall clocks: windows of whole days begin at midnight of a time zone, and last 23 or 25 hours when its clock is put forward or back."""

from __future__ import annotations

import zoneinfo
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field

from streamgauge.transforms.config import MICROSECONDS, Duration, did_you_mean, format_duration, user_error
from streamgauge.transforms.windows.base import Times

DAY = MICROSECONDS["d"]


def _whole_milliseconds(value: int) -> int:
    if value % MICROSECONDS["ms"]:
        raise user_error(f"{format_duration(value)} is not a whole number of milliseconds")
    return value


def _longer_than_nothing(value: int) -> int:
    if value <= 0:
        raise user_error("must be longer than 0")
    return value


def _known_zone(name: str | None) -> str | None:
    if name is not None and name not in zoneinfo.available_timezones():
        # Abbreviations look alike and are hours apart: none is proposed.
        places = sorted(zone for zone in zoneinfo.available_timezones() if "/" in zone or zone == "UTC")
        raise user_error(f"unknown time zone '{name}'{did_you_mean(name, places)}; write it like Europe/Berlin")
    return name


Milliseconds = Annotated[Duration, AfterValidator(_whole_milliseconds)]
"""Microseconds, but whole milliseconds of them: the grain of Flink's clock."""

Size = Annotated[Milliseconds, AfterValidator(_longer_than_nothing)]
"""As Milliseconds, more than nothing."""

TimeZone = Annotated[
    str | None, AfterValidator(_known_zone), Field(description="Name of a time zone, such as Europe/Berlin: windows of whole days begin at its midnight. Without: UTC.")
]


def check_days(name: str, value: int, timezone: str | None) -> None:
    """Raises a user's error unless it is whole days where there is a time zone."""
    if timezone is not None and value % DAY:
        raise user_error(f"with a timezone, {name} must be whole days; {format_duration(value)} is not. Hours need none: shift them by `offset` where a zone is off by minutes")


class Clock:
    """Converts between instants (microseconds since the epoch, UTC) and readings of a wall clock (microseconds since 1970-01-01 00:00 there).

    A reading that a clock shows twice means the earlier instant; one that it leaves out, the instant at which it jumps.

    >>> berlin = Clock("Europe/Berlin")
    >>> int(berlin.wall(np.array([0]))[0]) // 3_600_000_000
    1
    """

    def __init__(self, timezone: str | None) -> None:
        self.timezone = timezone

    def wall(self, instants: Times) -> Times:
        if self.timezone is None:
            return instants
        there = pa.array(instants).cast(pa.timestamp("us", tz=self.timezone))
        return np.asarray(pc.local_timestamp(there).cast(pa.int64()))

    def instant(self, walls: Times) -> Times:
        if self.timezone is None:
            return walls
        naive = pa.array(walls).cast(pa.timestamp("us"))
        return np.asarray(pc.assume_timezone(naive, self.timezone, ambiguous="earliest", nonexistent="latest").cast(pa.int64()))


def floor(times: Times, size: int, offset: int) -> Times:
    """The last multiple of ``size``, counted from ``offset``, that is not after each time."""
    return times - (times - offset) % size
