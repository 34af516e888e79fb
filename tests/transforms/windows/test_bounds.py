"""Bounds of windows: against plain Python, one event at a time, with time zones by zoneinfo."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamgauge.transforms.config import MICROSECONDS, problems
from streamgauge.transforms.windows import WINDOWS
from tests.examples import examples

S, M, H, D = (MICROSECONDS[unit] for unit in "smhd")
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
TIMES = st.integers(-(10**15), 4 * 10**15)
ZONES = ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Beirut"]


def window(kind: str, **options: Any) -> Any:
    plugin = WINDOWS.load(kind)
    return plugin(plugin.Options(**options))


def one(method: Any, time: int) -> int:
    return int(method(np.array([time]))[0])


def windows_of(time: int, size: int, every: int, offset: int) -> list[tuple[int, int]]:
    """All sliding windows with this time, straight from the definition."""
    last = time - (time - offset) % every
    return sorted((start, start + size) for start in range(last, time - size, -every))


@settings(max_examples=examples(150), deadline=None)
@given(TIMES, st.integers(1, 60), st.integers(1, 60), st.integers(0, 59), st.sampled_from([S, M, H]))
def test_sliding(time: int, size: int, every: int, offset: int, unit: int) -> None:
    size, every = max(size, every) * unit, min(size, every) * unit
    offset = offset * unit % every
    made = window("sliding", size=size, every=every, offset=offset)
    wanted = windows_of(time, size, every, offset)
    start = one(made.slice_starts, time)
    end = one(made.slice_ends, start)
    assert start <= time < end
    assert end - start == made.slice_size
    assert one(made.first_ends, start) == wanted[0][1]
    assert one(made.last_ends, start) == wanted[-1][1] <= end + made.span
    ends, found = one(made.first_ends, start), []
    while ends <= one(made.last_ends, start):
        found.append((made.start_of(ends), ends))
        ends = made.next_end(ends)
    assert found == wanted
    assert windows_of(start, size, every, offset) == windows_of(end - 1, size, every, offset) == wanted, "a slice is in a window wholly or not at all"
    first = made.first_open(time)
    assert first + size > time >= first + size - every


@settings(max_examples=examples(200), deadline=None)
@given(TIMES, st.sampled_from([(D, M), (H, 10 * S), (D, D), (7 * D, D), (50 * S, S)]), st.integers(0, 20))
def test_cumulative(time: int, bounds: tuple[int, int], offset: int) -> None:
    size, every = bounds
    offset *= S
    made = window("cumulative", size=size, every=every, offset=offset % size)
    period = time - (time - offset) % size
    step = (time - period) // every
    start = one(made.slice_starts, time)
    assert (start, one(made.slice_ends, start)) == (period + step * every, period + (step + 1) * every)
    assert (one(made.first_ends, start), one(made.last_ends, start)) == (period + (step + 1) * every, period + size)
    assert made.next_end(time) == period + (step + 1) * every
    assert made.start_of(made.next_end(time)) == made.first_open(time) == period
    assert made.next_end(period + size - 1) == period + size
    assert made.start_of(period + size) == period


def day_of(time: int, zone: str) -> tuple[int, int]:
    """Midnight before and after, by the clocks of a time zone."""
    tz = ZoneInfo(zone)
    local = (EPOCH + timedelta(microseconds=time)).astimezone(tz)

    def begin(date: Any) -> int:
        candidates = [datetime(date.year, date.month, date.day, tzinfo=tz, fold=fold).astimezone(timezone.utc) for fold in (0, 1)]
        midnight = min(candidates)
        if midnight.astimezone(tz).date() != date:  # the clock leaves midnight out
            midnight = max(candidates)
        return (midnight - EPOCH) // timedelta(microseconds=1)

    return begin(local.date()), begin(local.date() + timedelta(days=1))


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(0, 2 * 10**15), st.sampled_from(ZONES))
def test_days_of_a_time_zone(time: int, zone: str) -> None:
    made = window("tumbling", size="1d", timezone=zone)
    start = one(made.slice_starts, time)
    assert (start, one(made.slice_ends, start)) == day_of(time, zone)


def test_a_day_in_berlin_across_daylight_saving() -> None:
    made = window("tumbling", size="1d", timezone="Europe/Berlin")
    spring = int((datetime(2026, 3, 29, 12, tzinfo=timezone.utc) - EPOCH).total_seconds()) * S
    autumn = int((datetime(2026, 10, 25, 12, tzinfo=timezone.utc) - EPOCH).total_seconds()) * S
    assert [(one(made.slice_ends, one(made.slice_starts, time)) - one(made.slice_starts, time)) // H for time in (spring, autumn)] == [23, 25]
    to_date = window("cumulative", size="1d", every="30m", timezone="Europe/Berlin")
    start = one(made.slice_starts, autumn)
    ends, steps = start, 0
    while ends < one(made.slice_ends, start):
        ends, steps = to_date.next_end(ends), steps + 1
        assert to_date.start_of(ends) == start
    assert (steps, ends) == (50, one(made.slice_ends, start))
    week = window("sliding", size="7d", every="1d", timezone="Europe/Berlin")
    end = one(week.first_ends, one(week.slice_starts, autumn))
    assert (end - week.start_of(end)) // H == 7 * 24 + 1


def test_global() -> None:
    made = window("global")
    assert one(made.slice_starts, -5) == one(made.slice_starts, 10**15) == 0
    assert one(made.slice_ends, 0) > 9 * 10**15


MISTAKES = [
    ("tumbling", {"size": "0s"}, "longer than 0"), ("tumbling", {"size": "1500us"}, "not a whole number of milliseconds"),
    ("tumbling", {"size": "1h", "offset": "1h"}, "offset 1h must be smaller than size 1h"), ("tumbling", {"size": "1h", "timezone": "Europe/Berlin"}, "must be whole days"),
    ("tumbling", {"size": "1d", "timezone": "Europe/Berln"}, "did you mean 'Europe/Berlin'"), ("sliding", {"size": "1m"}, "missing"),
    ("sliding", {"size": "1m", "every": "2m"}, "events between two windows would be in none"), ("sliding", {"size": "1d", "every": "1ms"}, "more than the 10,000"),
    ("sliding", {"size": "7m", "every": "41ms"}, "is made of 420,000 slices of 1ms"), ("sliding", {"size": "7d", "every": "1h", "timezone": "Asia/Tokyo"}, "every must be whole days"),
    ("cumulative", {"size": "1d", "every": "7h"}, "every 7h does not divide size 1d"), ("cumulative", {"size": "1d", "every": "40m", "timezone": "Asia/Tokyo"}, "divide 30m"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "message"), MISTAKES)
def test_mistakes(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        window(kind, **options)
    assert message in " ".join(text for _, text in problems(error.value))
