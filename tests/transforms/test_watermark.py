from __future__ import annotations

import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from hypothesis import given
from hypothesis import strategies as st

from streamgauge.transforms import watermark as watermark_module
from streamgauge.transforms.event_time import TimeOptions
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.watermark import SplitWatermark, reported

SECOND = 1_000_000


def watermark(tmp: Path, split: str, idle: str = "10s", state: object = None) -> SplitWatermark:
    options = TimeOptions(disorder="2s", idle=idle)
    return SplitWatermark("source", split, options, ManualWatermarkEstimator(state), JobRecord(tmp))


@given(st.integers(-(10**15), 10**15), st.integers(0, 10**9), st.integers(1, 10**7))
def test_a_window_closes_only_when_the_newest_event_truly_passed_it(newest: int, disorder: int, size_ms: int) -> None:
    size = size_ms * 1000
    end = (newest // size) * size
    flink_closes = reported(newest, disorder) >= end - 1000
    assert not flink_closes or newest - disorder >= end


def test_it_trails_the_newest_event_and_never_goes_back(tmp_path: Path) -> None:
    mark = watermark(tmp_path, "a")
    assert mark.current == MIN_TIMESTAMP
    mark.advance(100 * SECOND)
    assert mark.current.micros == 98 * SECOND - 1000
    mark.advance(50 * SECOND)
    assert mark.current.micros == 98 * SECOND - 1000
    assert mark.newest == 100 * SECOND


def test_an_idle_split_follows_the_newest_event_of_the_others_in_any_process(tmp_path: Path) -> None:
    JobRecord(tmp_path).put("splits", "source/other", {"source": "source", "newest": 500 * SECOND}, now=True)
    JobRecord(tmp_path).put("splits", "elsewhere/x", {"source": "elsewhere", "newest": 900 * SECOND}, now=True)
    mark = watermark(tmp_path, "empty")
    mark.idle(9.9, math.inf)
    assert mark.current == MIN_TIMESTAMP, "not idle yet"
    mark.idle(10.0, math.inf)
    assert mark.current.micros == 498 * SECOND - 1000


def test_all_idle_stays_where_it_is(tmp_path: Path) -> None:
    mark = watermark(tmp_path, "a", idle="0s")
    mark.idle(1000, math.inf)
    assert mark.current == MIN_TIMESTAMP, "never the wall clock"


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(0, 10**9)), min_size=1, max_size=200), st.floats(0.0, 60.0))
def test_the_newest_event_of_a_moment_is_no_later_one_and_hardly_an_earlier_one(steps: list[tuple[float, int]], back: float) -> None:
    clock, key = [100.0], ("nowhere", "source")
    seen: list[tuple[float, int]] = []
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: clock[0])
        newest = watermark_module._Newest()
        for step, value in steps:
            clock[0] += step
            newest.see(key, value)
            seen.append((clock[0], value))
        moment = clock[0] - back
        found = newest.at(moment, key, JobRecord(folder))

    def until(end: float) -> int:
        return max((value for when, value in seen if when <= end), default=-1)

    known = -1 if found is None else found
    assert known <= until(moment)
    assert back > watermark_module._KEPT_SECONDS or known >= until(moment - watermark_module._STEP_SECONDS)


def test_what_came_since_the_end_was_confirmed_moves_no_idle_split(tmp_path: Path) -> None:
    busy, quiet = watermark(tmp_path, "busy"), watermark(tmp_path, "quiet", idle="0s")
    busy.advance(100 * SECOND)
    confirmed = time.monotonic()
    time.sleep(0.001)
    busy.advance(5_000 * SECOND)
    quiet.idle(1.0, confirmed)
    assert quiet.current.micros == 98 * SECOND - 1000
    quiet.idle(1.0, time.monotonic())
    assert quiet.current.micros == 4_998 * SECOND - 1000
