from __future__ import annotations

from pathlib import Path

from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from hypothesis import given
from hypothesis import strategies as st

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
    mark.idle(9.9)
    assert mark.current == MIN_TIMESTAMP, "not idle yet"
    mark.idle(10.0)
    assert mark.current.micros == 498 * SECOND - 1000


def test_all_idle_stays_where_it_is(tmp_path: Path) -> None:
    mark = watermark(tmp_path, "a", idle="0s")
    mark.idle(1000)
    assert mark.current == MIN_TIMESTAMP, "never the wall clock"
