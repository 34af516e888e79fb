"""What each aggregate costs: ``scripts/bench --aggregates``."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import pyarrow as pa

from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE, POSITION, SPLIT, SPLIT_TYPE, BatchCodec
from streamgauge.transforms.partials import Partials
from streamgauge.transforms.read import MAX_BATCH_EVENTS

KEYS = 1_000
ROUNDS = 15
BATCHES = 8

AGGREGATES: dict[str, Any] = {
    "count": "count", "count of a field": {"count": "value"}, "sum": {"sum": "value"}, "sum of integers": {"sum": "user"}, "mean": {"mean": "value"},
    "min": {"min": "value"}, "max": {"max": "value"}, "first": {"first": "value"}, "last": {"last": "value"},
    "argmin": {"argmin": {"of": "host", "by": "value"}}, "argmax": {"argmax": {"of": "host", "by": "value"}}, "rate": {"rate": "value"},
    "ratio": {"ratio": {"of": "value > 500"}}, "any": {"any": "value > 500"}, "all": {"all": "value > 500"}, "variance": {"variance": "value"},
    "stddev": {"stddev": "value"}, "covariance": {"covariance": {"x": "value", "y": "user"}}, "correlation": {"correlation": {"x": "value", "y": "user"}},
    "ewm": {"ewm": {"of": "value", "half_life": "1m"}}, "quantile": {"quantile": {"of": "value", "q": 0.99}},
    "histogram": {"histogram": {"of": "value", "bounds": [100, 250, 500, 750]}}, "exponential_histogram": {"exponential_histogram": "value"},
    "distinct": {"distinct": "user"}, "top": {"top": {"of": "region", "k": 3}}, "mode": {"mode": "region"}, "collect": {"collect": {"of": "value", "limit": 10}},
}  # fmt: skip


def measure() -> list[dict[str, Any]]:
    """Of each aggregate: CPU nanoseconds an event of the partials beside those of ``count`` alone, those of the merge, bytes of state a key."""
    random = np.random.default_rng(1)
    batches = [_events(random) for _ in range(BATCHES)]
    rows = []
    base: tuple[float, float, float] | None = None
    for name, aggregate in AGGREGATES.items():
        found = _cost(aggregate, batches)
        base = base or found
        reduce, merge, size = (value - known for value, known in zip(found, base, strict=True)) if name != "count" else found
        rows.append({"aggregate": name, "ns_per_event": reduce, "merge_ns_per_row": merge, "state_bytes_per_key": size})
    return rows


def _cost(aggregate: Any, batches: list[pa.RecordBatch]) -> tuple[float, float, float]:
    options = AggregateOptions(metric="m", window={"tumbling": "1m"}, by={"series": "metric", "host": "host"}, aggregates={"value": aggregate}, shards=1)
    partials = Partials(build_metric(options, batches[0].schema))
    slices = np.zeros(MAX_BATCH_EVENTS, np.int64)
    made = [next(partials.of_events(batch, slices))[2] for batch in batches]
    merged = partials.merge(made)
    reduce, merge = [], []
    for _ in range(ROUNDS):
        began = time.thread_time_ns()
        for batch in batches:
            list(partials.of_events(batch, slices))
        reduce.append((time.thread_time_ns() - began) / (MAX_BATCH_EVENTS * BATCHES))
        began = time.thread_time_ns()
        partials.merge(made)
        merge.append((time.thread_time_ns() - began) / sum(partial.num_rows for partial in made))
    state = merged.drop_columns(partials.codec.schema.names[: len(options.by)])
    return statistics.median(reduce), statistics.median(merge), (len(BatchCodec(state.schema).encode(state))) / merged.num_rows


def _events(random: np.random.Generator) -> pa.RecordBatch:
    count = MAX_BATCH_EVENTS
    key, regions = random.integers(0, KEYS, count), pa.array([f"region-{i}" for i in range(8)])
    hosts, metrics = pa.array([f"host-{i:02}" for i in range(KEYS // 20)]), pa.array([f"metric-{i:02}" for i in range(20)])
    times = pa.array(np.sort(random.integers(0, 60_000_000, count))).cast(EVENT_TIME_TYPE)
    columns = {
        EVENT_TIME: times, SPLIT: pa.array(["0"] * count).dictionary_encode().cast(SPLIT_TYPE), POSITION: pa.array(np.arange(count)),
        "metric": metrics.take(pa.array(key % 20)), "host": hosts.take(pa.array(key // 20)), "region": regions.take(pa.array(random.integers(0, 8, count))),
        "user": pa.array(random.integers(0, 100_000, count)), "value": pa.array(random.random(count) * 1000),
    }  # fmt: skip
    return pa.record_batch(list(columns.values()), names=list(columns))
