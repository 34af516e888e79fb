from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgauge.transforms.batch import EVENT_TIME
from streamgauge.transforms.event_time import EventTime, TimeOptions
from streamgauge.transforms.formats.base import Parsed
from streamgauge.transforms.sources.base import RawBatch

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
UNITS = {"s": 10**6, "ms": 10**3, "us": 1}


def apply(values: pa.Array, **options: str) -> Parsed:
    schema = pa.schema([("t", values.type)])
    raw = RawBatch(pa.array([b"x"] * len(values), pa.binary()), np.arange(len(values)), len(values))
    return EventTime(TimeOptions(field="t", **options), schema).apply(raw, Parsed(pa.record_batch([values], schema=schema)))


def usable(micros: int | None) -> bool:
    if micros is None:
        return False
    try:
        return 2 <= (EPOCH + timedelta(microseconds=micros)).year <= 9998
    except OverflowError:
        return False


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)), st.sampled_from(["s", "ms", "us", "ns"]))
def test_numbers_become_microseconds_or_rejects(values: list[int | None], unit: str) -> None:
    parsed = apply(pa.array(values, pa.int64()), unit=unit)
    micros = [None if v is None else (v // 1000 if unit == "ns" else v * UNITS[unit]) for v in values]
    kept = [i for i, value in enumerate(micros) if usable(value)]
    assert parsed.events.column(EVENT_TIME).cast(pa.int64()).to_pylist() == [micros[i] for i in kept]
    assert parsed.rejects.indices == [i for i in range(len(values)) if i not in kept]
    assert set(parsed.rejects.error_types) <= {"no_event_time"}
    assert (list(range(len(values))) if parsed.rows is None else parsed.rows.tolist()) == kept


@given(st.lists(st.none() | st.floats()))
def test_fractions_are_cut_and_nonsense_rejected(values: list[float | None]) -> None:
    parsed = apply(pa.array(values, pa.float64()), unit="s")
    assert parsed.events.num_rows + len(parsed.rejects) == len(values)


def test_the_brokers_time_stamp_serves_without_a_field() -> None:
    schema = pa.schema([("x", pa.int64())])
    raw = RawBatch(pa.array([b"1", b"2", b"3"], pa.binary()), np.arange(3), 3, timestamps=np.array([5, -1, 7]))
    parsed = EventTime(TimeOptions(), schema).apply(raw, Parsed(pa.record_batch({"x": pa.array([1, 3])}), np.array([0, 2])))
    assert parsed.events.column(EVENT_TIME).cast(pa.int64()).to_pylist() == [5, 7]
    parsed = EventTime(TimeOptions(), schema).apply(raw, Parsed(pa.record_batch({"x": pa.array([1, 2, 3])})))
    assert parsed.rejects.indices == [1]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (pa.int64(), {"field": "t"}, "say its unit"),
        (pa.timestamp("us", "UTC"), {"field": "t", "unit": "ms"}, "leave `unit` out"),
        (pa.string(), {"field": "t"}, "expected a timestamp or a number"),
        (pa.int64(), {"field": "tt", "unit": "ms"}, "did you mean 't'"),
    ],
)
def test_a_field_that_is_no_time_is_refused(kind: pa.DataType, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EventTime(TimeOptions(**options), pa.schema([("t", kind)]))
