"""The algebra: partials merged in any order and grouping give what DuckDB says of all events at once."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE
from streamgauge.transforms.partials import Metric, Partials
from tests.examples import examples

SCHEMA = pa.schema([
    pa.field(EVENT_TIME, EVENT_TIME_TYPE), pa.field("host", pa.string()), pa.field("up", pa.bool_()), pa.field("value", pa.float64()),
    pa.field("big", pa.int64()), pa.field("small", pa.int16()), pa.field("seen", pa.timestamp("us", "UTC")),
])
AGGREGATES = {
    "n": "count", "total": {"sum": "value"}, "lo": {"min": "value"}, "hi": {"max": "value"}, "avg": {"mean": "value"},
    "big_total": {"sum": "big"}, "big_avg": {"mean": "big"}, "big_lo": {"min": "big"}, "small_total": {"sum": "small"}, "latest": {"max": "seen"},
}

EVENT = st.fixed_dictionaries({
    EVENT_TIME: st.integers(0, 3_000_000),
    "host": st.none() | st.sampled_from(["a", "b", "", "ß", "a\x00b"]),
    "up": st.none() | st.booleans(),
    "value": st.none() | st.floats(-1e12, 1e12) | st.floats(-1e250, 1e250) | st.just(math.nan),
    "big": st.none() | st.integers(-(2**63), 2**63 - 1),
    "small": st.none() | st.integers(-(2**15), 2**15 - 1),
    "seen": st.none() | st.integers(0, 10**15),
})


def metric(by: tuple[str, ...], shards: int = 3, aggregates: dict[str, Any] | None = None, limit: int | None = None) -> Metric:
    keys = {"keys": {"limit": limit}} if limit else {}
    return build_metric(AggregateOptions(metric="m", window={"tumbling": "1s"}, by=by, aggregates=aggregates or AGGREGATES, shards=shards, **keys), SCHEMA)


def merged_results(events: list[dict[str, Any]], by: tuple[str, ...], cuts: list[int], seed: int) -> list[dict[str, Any]]:
    """Events in batches, partials merged in a random order and in random groups, per (slice, shard)."""
    partials = Partials(metric(by))
    stored: dict[tuple[int, int], list[pa.RecordBatch]] = {}
    edges = sorted({0, len(events), *(cut % (len(events) + 1) for cut in cuts)})
    for first, last in pairwise(edges):
        batch = pa.RecordBatch.from_pylist(events[first:last], schema=SCHEMA)
        times = batch.column(EVENT_TIME).cast(pa.int64()).to_numpy()
        for start, shard, partial in partials.of_events(batch, times // 1_000_000 * 1_000_000):
            stored.setdefault((start, shard), []).append(partials.codec.decode(partials.codec.encode(partial)))
    random.seed(seed)
    rows = []
    for (start, _), some in stored.items():
        random.shuffle(some)
        cut = random.randint(1, len(some))
        regrouped = [partials.merge(some[:cut]), *some[cut:]]
        rows += partials.results(partials.merge(regrouped), start, start + 1_000_000, final=True).to_pylist()
    return rows


def expected(events: list[dict[str, Any]], by: tuple[str, ...]) -> dict[tuple[Any, ...], dict[str, Any]]:
    data = pa.Table.from_pylist(events, schema=SCHEMA)  # noqa: F841 - DuckDB finds it by name
    keys = ", ".join(by) + "," if by else ""
    query = f"""
        SELECT epoch_us({EVENT_TIME}) // 1000000 * 1000000 AS start, {keys} count(*) AS n,
            list(v) FILTER (v IS NOT NULL) AS vs, min(v) AS lo, max(v) AS hi, sum(big::HUGEINT) AS big_total, count(big) AS bigs, min(big) AS big_lo,
            sum(small) AS small_total, max(seen) AS latest
        FROM (SELECT *, CASE WHEN isnan(value) THEN NULL ELSE value END AS v FROM data) GROUP BY ALL
    """
    rows = duckdb.sql(query).to_arrow_table().to_pylist()
    return {(row["start"], *(row[name] for name in by)): row for row in rows}


@settings(deadline=None, max_examples=examples(60))
@given(
    st.lists(EVENT, min_size=1, max_size=60), st.sampled_from([(), ("host",), ("host", "up"), ("up", "small", "seen")]),
    st.lists(st.integers(0, 1000), max_size=5), st.integers(0, 1000),
)
def test_any_grouping_equals_sql_over_all(events: list[dict[str, Any]], by: tuple[str, ...], cuts: list[int], seed: int) -> None:
    found = merged_results(events, by, cuts, seed)
    wanted = expected(events, by)
    assert len(found) == len(wanted)
    for row in found:
        other = wanted[(int(row["window_start"].timestamp() * 1e6), *(row[name] for name in by))]
        assert row["n"] == row["events"] == row["revision"] == other["n"]
        for name in ("lo", "hi", "big_lo", "small_total", "latest"):
            assert row[name] == other[name], name
        big = None if other["big_total"] is None else int(other["big_total"])
        assert row["big_total"] == (big if big is None or -(2**63) <= big < 2**63 else None)
        # DuckDB's sums of doubles depend on the order; these are the doubles nearest to the true sum and mean.
        assert row["total"] == (math.fsum(other["vs"]) if other["vs"] else None)
        assert row["avg"] == (float(sum(map(Fraction, other["vs"]), Fraction()) / len(other["vs"])) if other["vs"] else None)
        assert row["big_avg"] == (None if big is None else float(Fraction(big, other["bigs"])))


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(EVENT, min_size=1, max_size=60), st.sampled_from([("host",), ("host", "up"), ("up", "small", "seen")]), st.lists(st.integers(0, 60), min_size=2, max_size=4))
def test_merging_in_pieces_changes_nothing(events: list[dict[str, Any]], by: tuple[str, ...], cuts: list[int]) -> None:
    partials = Partials(metric(by, shards=1))
    batches = [pa.RecordBatch.from_pylist(events[first:last], schema=SCHEMA) for first, last in pairwise(sorted({0, *cuts, len(events)})) if first < len(events)]
    parts = [partial for batch in batches for _, _, partial in partials.of_events(batch, np.zeros(batch.num_rows, np.int64))]

    def merged() -> list[Any]:
        rows, changed, _ = partials.merge_changed(parts[:1], parts[1:])
        unmerged = partials.merge([partials.unmerged(parts), parts[0].slice(0, 0)])
        told = [(rows.slice(i, 1).to_pylist(), bool(changed[i])) for i in range(rows.num_rows)]
        return [sorted(some, key=repr) for some in (partials.merge(parts).to_pylist(), told, unmerged.to_pylist())]

    whole = merged()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamgauge.transforms.partials.MANY_ROWS", 1)
        assert repr(merged()) == repr(whole)


@settings(deadline=None, max_examples=examples(60))
@given(
    st.lists(st.tuples(st.lists(EVENT, max_size=8), st.lists(EVENT, min_size=1, max_size=8), st.integers(1, 3)), min_size=1, max_size=6),
    st.sampled_from([(), ("host",), ("host", "up"), ("up", "small", "seen")]), st.sampled_from([None, 2]),
)  # fmt: skip
def test_parts_that_are_merged_together_are_as_each_alone(
    given: list[tuple[list[dict[str, Any]], list[dict[str, Any]], int]], by: tuple[str, ...], limit: int | None
) -> None:
    partials = Partials(metric(by, shards=1, limit=limit if by else None))

    def made(events: list[dict[str, Any]], count: int) -> list[pa.RecordBatch]:
        batches = [pa.RecordBatch.from_pylist(events[first::count], schema=SCHEMA) for first in range(min(count, len(events)))]
        return [partial for batch in batches for _, _, partial in partials.of_events(batch, np.zeros(batch.num_rows, np.int64))]

    parts = [(made(old, count), made(new, count)) for old, new, count in given]
    for together, part in zip(partials.merge_each(parts), parts, strict=True):
        rows, changed, gone = partials.merge_changed(*part)
        assert repr(together[0].to_pylist()) == repr(rows.to_pylist())
        assert together[1].tolist() == changed.tolist() and repr(together[2]) == repr(gone)


def test_infinities_stay_and_nan_does_not_count() -> None:
    events = [{EVENT_TIME: 0, "value": value} for value in (1.0, math.inf, math.nan, None)]
    (row,) = merged_results(events, (), [], 0)
    assert (row["total"], row["hi"], row["lo"], row["avg"], row["n"]) == (math.inf, math.inf, 1.0, math.inf, 4)


def test_a_million_keys_in_one_window() -> None:
    keys = 1_000_000
    schema = pa.schema([pa.field(EVENT_TIME, EVENT_TIME_TYPE), pa.field("user", pa.int64()), pa.field("v", pa.int64())])
    options = AggregateOptions(metric="m", window={"tumbling": "1s"}, by=("user",), aggregates={"n": "count", "s": {"sum": "v"}}, shards=4)
    partials = Partials(build_metric(options, schema))
    user = np.arange(keys)
    batch = pa.record_batch([pa.array(np.zeros(keys, np.int64)).cast(EVENT_TIME_TYPE), pa.array(user), pa.array(user * 2)], schema=schema)
    parts = list(partials.of_events(batch, np.zeros(keys, np.int64)))
    assert [shard for _, shard, _ in parts] == [0, 1, 2, 3]
    total = 0
    for _, _, partial in parts:
        results = partials.results(partials.merge([partial] * 2), 0, 1_000_000, final=True)
        assert results.column("events").to_pylist() == [2] * results.num_rows
        total += sum(results.column("s").to_pylist())
    assert total == 2 * int((user * 2).sum())
