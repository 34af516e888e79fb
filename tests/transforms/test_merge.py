"""State of an earlier version of a metric: read by the columns that are needed, refused where one is not there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.batch import SchemaMismatch
from streamgauge.transforms.merge import Progress
from streamgauge.transforms.partials import Metric, Partials
from tests.examples import examples

SCHEMA = pa.schema([("host", pa.string()), ("up", pa.bool_()), ("x", pa.int32()), ("y", pa.float64())])
ALL: dict[str, Any] = {"n": "count", "total": {"sum": "x"}, "hi": {"max": "x"}, "lo": {"min": "y"}, "avg": {"mean": "x"}}
BY = [{"host": "host", "up": "up"}, {"server": "host", "working": "up"}]

EVENT = st.fixed_dictionaries({
    "host": st.none() | st.sampled_from("ab"), "up": st.booleans(), "x": st.none() | st.integers(-9, 9), "y": st.integers(-9, 9).map(float),
})  # fmt: skip
NAMES = st.lists(st.sampled_from(sorted(ALL)), min_size=1, unique=True)


def metric(names: list[str], by: dict[str, str] | None = None, schema: pa.Schema = SCHEMA) -> Metric:
    options = AggregateOptions(metric="m", window={"tumbling": "1s"}, by=by or BY[0], aggregates={name: ALL[name] for name in names}, shards=1)
    return build_metric(options, schema)


def stored(partials: Partials, events: list[dict[str, Any]]) -> list[bytes]:
    batch = pa.RecordBatch.from_pylist(events, schema=partials.metric.schema)
    return [partials.codec.encode(partial) for _, _, partial in partials.of_events(batch, np.zeros(len(events), np.int64))]


@settings(deadline=None, max_examples=examples(60))
@given(NAMES, NAMES, st.lists(EVENT, min_size=1, max_size=12), st.lists(EVENT, max_size=12), st.booleans())
def test_what_an_earlier_version_stored_counts_as_if_this_one_had(
    first: list[str], second: list[str], old: list[dict[str, Any]], new: list[dict[str, Any]], renamed: bool
) -> None:
    """Both versions store half of the events; where this one has all it needs, the result is that of all events."""
    before, after = Partials(metric(first)), metric(second, BY[renamed])
    now = Partials(after, [before.metric.partial_schema, metric(["lo"]).partial_schema])
    data = stored(before, old)
    if not {column.name for column in after.state} <= {column.name for column in before.metric.state}:
        with pytest.raises(SchemaMismatch, match="the job's fields or aggregates changed"):
            now.decode(data[0])
        return
    batches = [now.decode(each) for each in [*data, *(stored(now, new) if new else [])]]
    assert all(batch.schema.equals(after.partial_schema) for batch in batches)
    (everything,) = [now.decode(each) for each in stored(now, old + new)]

    def rows(merged: pa.RecordBatch) -> list[dict[str, Any]]:
        return sorted(now.results(merged, 0, 1_000_000, final=True).to_pylist(), key=str)

    assert rows(now.merge(batches)) == rows(everything)


def test_a_column_of_another_type_is_not_taken_for_this_one() -> None:
    before = Partials(metric(["hi"]))
    wider = metric(["hi"], schema=SCHEMA.set(2, pa.field("x", pa.int64())))
    with pytest.raises(SchemaMismatch, match="the job's fields or aggregates changed"):
        Partials(wider, [before.metric.partial_schema]).decode(stored(before, [{"host": "a", "up": True, "x": 1, "y": 1.0}])[0])


def test_other_dimensions_are_not_taken_for_these() -> None:
    before = Partials(metric(["n"], {"host": "host"}))
    with pytest.raises(SchemaMismatch, match="the job's fields or aggregates changed"):
        Partials(metric(["n"]), [before.metric.partial_schema]).decode(stored(before, [{"host": "a", "up": True, "x": 1, "y": 1.0}])[0])


class Asked:
    """A timer of event time."""

    moment: Timestamp

    def set(self, moment: Timestamp) -> None:
        self.moment = moment


@pytest.mark.parametrize(("size", "passed"), [(10, [0, 1, 2, 3, 4]), (600, [0, 10, 20, 30, 40])])
def test_early_results_ask_how_far_event_time_has_come(size: int, passed: list[int]) -> None:
    """In steps of a second, or a sixtieth of the window; each answer is known to the next result."""
    progress, timer, told = Progress(), Asked(), []
    for _ in passed:
        progress.ask(timer, 0, size * 1_000_000)
        progress.see(timer.moment)
        told.append(progress.watermark)
    assert told == [moment * 1_000_000 for moment in passed]


def test_what_is_known_of_the_watermark_never_goes_back() -> None:
    progress, timer = Progress(), Asked()
    for seconds in (5, 3, 7):
        progress.see(Timestamp(seconds))
    progress.ask(timer, 20_000_000, 30_000_000)
    assert (progress.watermark, timer.moment) == (7_000_000, Timestamp(20))
    progress.see(Timestamp(29.5))
    progress.ask(timer, 20_000_000, 30_000_000)
    assert timer.moment == Timestamp(20), "the end has a timer of its own"
