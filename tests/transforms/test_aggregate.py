"""AggregateWindows as a transform: what is late, what each output holds. The oracle is plain Python."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms import AggregateWindows
from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE, POSITION, SPLIT, SPLIT_TYPE, BatchType, with_disorder
from streamgauge.transforms.reduce import Stored
from streamgauge.transforms.replay import ReplayPoint
from streamgauge.transforms.watermark import reported
from tests.collect import Collected
from tests.examples import examples

MS = 1000
FIELDS = pa.schema([
    pa.field(EVENT_TIME, EVENT_TIME_TYPE, nullable=False), pa.field(SPLIT, SPLIT_TYPE, nullable=False), pa.field(POSITION, pa.int64(), nullable=False),
    pa.field("key", pa.string()), pa.field("value", pa.int64()),
])
Event = tuple[int, str | None, int]


def run(events: list[Event], cuts: list[int], disorder: int, record: int = 1, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One split of events, ``record`` of them a position, cut into batches, with the watermarks that ReadEvents would report."""
    schema = with_disorder(FIELDS, disorder)
    edges = sorted({0, len(events), *(cut % (len(events) + 1) // record * record for cut in cuts)})
    elements = []
    for first, last in pairwise(edges):
        part = events[first:last]
        columns = [
            pa.array([time for time, _, _ in part]).cast(EVENT_TIME_TYPE),
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(part), np.int8)), pa.array(["s"])), pa.array([place // record for place in range(first, last)], pa.int64()),
            pa.array([key for _, key, _ in part], pa.string()), pa.array([value for _, _, value in part], pa.int64()),
        ]
        before = Timestamp(micros=reported(max(time for time, _, _ in events[:first]), disorder)) if first else MIN_TIMESTAMP
        elements.append(TimestampedValue(pa.record_batch(columns, schema=schema), before))
    results, late = Collected(), Collected()
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        batches = pipeline | beam.Create(range(len(elements)), reshuffle=False) | beam.Map(elements.__getitem__)
        batches.element_type = BatchType(schema)
        outputs = batches | AggregateWindows(
            **{"metric": "m", "window": {"tumbling": "100ms"}, "by": ["key"], "aggregates": {"total": {"sum": "value"}}, "late": True, **options}
        )
        _ = outputs["results"] | results
        _ = outputs["late"] | late
    return results.rows, late.rows


EVENTS = st.lists(st.tuples(st.integers(0, 1_500 * MS), st.none() | st.sampled_from("ab"), st.integers(-9, 9)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=examples(12))
@given(EVENTS, st.lists(st.integers(0, 100), max_size=6), st.sampled_from([0, 50 * MS, 300 * MS]), st.sampled_from([0, 100 * MS, 10_000 * MS]))
def test_every_event_is_in_one_result_or_late(events: list[Event], cuts: list[int], disorder: int, lateness: int) -> None:
    found, late = run(events, cuts, disorder, lateness=lateness)
    counts: Counter[tuple[int, str | None]] = Counter()
    totals: Counter[tuple[int, str | None]] = Counter()
    expected_late = []
    newest = None
    for position, (time, key, value) in enumerate(events):
        start = time // (100 * MS) * (100 * MS)
        newest = time if newest is None else max(newest, time)
        if start + 100 * MS + lateness <= reported(newest, disorder) + MS:
            expected_late.append(position)
        else:
            counts[start, key] += 1
            totals[start, key] += value
    assert sorted(row["position"] for row in late) == expected_late
    assert {row["split"] for row in late} <= {"s"}
    rows = {(round(row["window_start"].timestamp() * 1e6), row["key"]): row for row in found}
    assert len(rows) == len(found), "one row a key and window"
    assert {key: row["events"] for key, row in rows.items()} == dict(counts)
    assert {key: row["total"] for key, row in rows.items()} == {key: totals[key] for key in counts}
    assert all(row["final"] and row["revision"] == row["events"] and row["metric"] == "m" for row in found)


@settings(deadline=None, max_examples=examples(6))
@given(EVENTS, st.lists(st.integers(0, 100), max_size=6), st.integers(2, 5))
def test_late_events_of_one_record_have_keys_of_their_own(events: list[Event], cuts: list[int], record: int) -> None:
    _, one_each = run(events, [], 0)
    _, late = run(events, cuts, 0, record)
    assert sorted(row["position"] * record + row["item"] for row in late) == sorted(row["position"] for row in one_each)


@pytest.mark.parametrize("emit", ["on_change", {"every": "1s"}])
@pytest.mark.parametrize("window", ["global", {"tumbling": "36500d"}, {"sliding": {"size": "36500d", "every": "18250d"}}, {"session": "3000d"}])
def test_a_window_that_ends_in_the_future_is_final_when_the_input_ends(window: Any, emit: Any) -> None:
    now = int(Timestamp.now().micros) if "session" in window else 0
    rows, late = run([(now, "a", 1), (now + 5, "a", 2)], [1], 0, window=window, emit=emit)
    assert rows and not late
    assert {(row["total"], row["events"], row["final"]) for row in rows} == {(3, 2, True)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ["kee"]}, "did you mean 'key'"),
        ({"by": ["list"]}, "by 'list': a list<item: int64> cannot be a dimension"),
        ({"aggregates": {"x": {"sum": "key"}}}, "needs a number; field 'key' is string"),
        ({"aggregates": {"key": "count"}}, "'key' is there twice"),
        ({"aggregates": {"events": "count"}}, "'events' is there twice"),
        ({"aggregates": {"x": {"median": "value"}}}, "unknown aggregate 'median'"),
        ({"aggregates": {}}, "at least 1 item"),
        ({"lateness": "soon"}, "is not a duration"),
        ({"emit": {"every": "1ms"}}, "at least 10ms"),
        ({"shards": 0}, "greater than or equal to 1"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(options: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"by": ["key"], "aggregates": {"n": "count"}}
    pipeline = beam.Pipeline(runner=FnApiRunner())
    batches = pipeline | beam.Create([1])
    batches.element_type = BatchType(FIELDS.append(pa.field("list", pa.list_(pa.int64()))))
    with pytest.raises(ValueError, match=message):
        _ = batches | AggregateWindows(metric="m", window={"tumbling": "1s"}, **{**good, **options})


def test_other_elements_are_refused() -> None:
    with pytest.raises(TypeError, match="takes EventBatches"):
        _ = beam.Pipeline(runner=FnApiRunner()) | beam.Create([1]) | AggregateWindows(metric="m", window={"tumbling": "1s"}, aggregates={"n": "count"})


def test_what_a_replay_leaves_as_it_is() -> None:
    """Of windows before the cutoff: up to where the earlier run was it is stored, behind that it is late, also in a split that is new."""
    splits = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1, 0], pa.int8()), pa.array(["s", "new"]))
    events = pa.record_batch({SPLIT: splits, POSITION: pa.array([4, 5, 0, 6])})
    stored = Stored(200, {"s": 5})
    found = stored.closed(events, np.array([100, 100, 100, 200]))
    assert found is not None
    assert [mask.tolist() for mask in found] == [[True, True, True, False], [True, False, False, False]]
    assert stored.closed(events, np.array([200, 300, 200, 200])) is None
    assert Stored.before(ReplayPoint({"a": 1}, {}), "b") is Stored.before(None, "a") is None


def test_a_dimension_that_is_named_like_state_is_refused() -> None:
    options = AggregateOptions(metric="m", window={"tumbling": "1s"}, by=["count(x)"], aggregates={"avg": {"mean": "x"}})
    with pytest.raises(ValueError, match=r"'count\(x\)' is also a name in the state of an aggregate"):
        build_metric(options, pa.schema([("count(x)", pa.string()), ("x", pa.int64())]))
