"""The steps of AggregateWindows in one thread, without a runner: what keys and sessions cost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from apache_beam.transforms.window import IntervalWindow
from apache_beam.utils.timestamp import Timestamp

from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE, POSITION, SPLIT, SPLIT_TYPE
from streamgauge.transforms.merge import MergeDoFn
from streamgauge.transforms.read import MAX_BATCH_EVENTS
from streamgauge.transforms.reduce import SessionPartialDoFn, SlicePartialDoFn
from streamgauge.transforms.sessions import SessionDoFn

BATCHES_A_BUNDLE = 4
METRICS = 20
SECOND = 1_000_000
SCHEMA = pa.schema([
    pa.field(EVENT_TIME, EVENT_TIME_TYPE, nullable=False), pa.field(SPLIT, SPLIT_TYPE, nullable=False), pa.field(POSITION, pa.int64(), nullable=False),
    pa.field("metric", pa.string()), pa.field("host", pa.string()), pa.field("value", pa.float64()),
])  # fmt: skip
AGGREGATES = {"total": {"sum": "value"}, "lo": {"min": "value"}, "hi": {"max": "value"}}


class Bag:
    """State of one shard in memory, in place of a runner's."""

    def __init__(self) -> None:
        self._values: list[bytes] = []

    def read(self) -> Iterator[bytes]:
        return iter(list(self._values))

    def add(self, value: bytes) -> None:
        self._values.append(value)

    def clear(self) -> None:
        self._values = []

    @property
    def bytes(self) -> int:
        return sum(map(len, self._values))


class Timer:
    """One timer of event time, which fires when asked."""

    when: Timestamp | None = None

    def set(self, when: Timestamp, **_: Any) -> None:
        self.when = when

    def clear(self) -> None:
        self.when = None


class Stopwatch:
    """CPU time of this thread by step."""

    def __init__(self) -> None:
        self.nanoseconds: dict[str, int] = {}
        self._last = time.thread_time_ns()

    def lap(self, step: str | None = None) -> None:
        """What passed since the last lap belongs to ``step``; None: to nothing."""
        now = time.thread_time_ns()
        if step is not None:
            self.nanoseconds[step] = self.nanoseconds.get(step, 0) + now - self._last
        self._last = time.thread_time_ns()


def keys(keys: int, events: int) -> dict[str, float]:
    """One window of so many keys (20 metrics and so many hosts), all equally frequent: sum, minimum and maximum."""
    options = AggregateOptions(
        metric="load", window={"tumbling": "1m"}, by={"series": "metric", "host": "host"}, aggregates=AGGREGATES, shards=4
    )  # fmt: skip
    metric = build_metric(options, SCHEMA)
    window = options.window.create()
    partial, merge = SlicePartialDoFn(metric, window, 0, None), MergeDoFn(metric, None)
    partial.setup()
    merge.setup()
    shards: dict[bytes, Bag] = {}
    span, timer = IntervalWindow(0, 60), Timer()
    watch, before, peak = Stopwatch(), _memory(), 0
    batches = _batches(np.random.default_rng(1), keys, events, lambda first, count: np.arange(first, first + count) * (60 * SECOND) // events)
    while bundle := list(islice(batches, BATCHES_A_BUNDLE)):
        watch.lap()
        partial.start_bundle()
        for batch in bundle:
            list(partial.process(batch, Timestamp(0)))
        watch.lap("partials")
        made = [element.value for element in partial.finish_bundle()]
        watch.lap("put together, encode")
        merge.start_bundle()
        for key, encoded in made:
            merge.process((key, encoded), span, shards.setdefault(key, Bag()), timer, Timer())
        watch.lap("append, compact")
        peak = max(peak, _memory())
    state = sum(bag.bytes for bag in shards.values())
    rows = counted = 0
    for key, bag in shards.items():
        watch.lap()
        for emitted in chain(merge.passed(key, span, Timestamp(60), bag, Timer()), merge.finish_bundle()):
            watch.lap("merge, results")
            result = emitted.value
            rows += result.num_rows
            counted += int(np.sum(result.column("events").to_numpy()))
            peak = max(peak, _memory())
    assert counted == events, f"{counted} of {events} events are in the results"
    return _figures(watch, events, before, peak) | {"rows": rows, "state_mb": state / 2**20}


def sessions(keys: int, events: int) -> dict[str, float]:
    """Sessions of ``keys`` keys, nearly all open at a time: a gap of 30 s, each key is seen every 15 s for a while and then pauses."""
    options = AggregateOptions(
        metric="load", window={"session": "30s"}, by={"series": "metric", "host": "host"}, aggregates=AGGREGATES, shards=4
    )  # fmt: skip
    metric = build_metric(options, SCHEMA)
    session = options.window.create()
    partial, merge = SessionPartialDoFn(metric, session, 0, None), SessionDoFn(metric, session, 0, None, True)
    partial.setup()
    merge.setup()
    bags: dict[bytes, tuple[Bag, Timer]] = {}
    watch, before, peak, most = Stopwatch(), _memory(), 0, 0
    rows = counted = 0
    batches = _batches(np.random.default_rng(1), keys, events, lambda first, count: np.arange(first, first + count) * SECOND // (keys // 10))
    watermark = 0
    while True:
        watch.lap()
        bundle = list(islice(batches, BATCHES_A_BUNDLE))
        if bundle:
            watch.lap()
            partial.start_bundle()
            for batch in bundle:
                list(partial.process(batch, Timestamp(micros=watermark)))
            watch.lap("partials")
            made = [element.value for element in partial.finish_bundle()]
            watch.lap("put together, encode")
            merge.start_bundle()
            for key, encoded in made:
                bag, timer = bags.setdefault(key, (Bag(), Timer()))
                merge.process((key, encoded), bag, timer, Timer())
            merge.finish_bundle()
            watch.lap("append, compact")
            watermark = bundle[-1].column(EVENT_TIME)[-1].value
        else:
            watermark = 2**60
        for key, (bag, timer) in bags.items():
            while timer.when is not None and timer.when.micros < watermark:
                fired, timer.when = timer.when, None
                merge.start_bundle()
                for result in merge.passed(key, fired, bag, timer, Timer()):
                    rows += result.num_rows
                    counted += int(np.sum(result.column("events").to_numpy()))
                merge.finish_bundle()
        watch.lap("merge, results")
        peak = max(peak, _memory())
        most = max(most, sum(bag.bytes for bag, _ in bags.values()))
        if not bundle:
            break
    return _figures(watch, events, before, peak) | {"rows": rows, "state_mb": most / 2**20}


def _batches(random: np.random.Generator, keys: int, events: int, times: Any) -> Iterator[pa.RecordBatch]:
    hosts = pa.array([f"host-{i:06}" for i in range(max(1, keys // METRICS))])
    metrics = pa.array([f"metric-{i:02}" for i in range(METRICS)])
    for first in range(0, events, MAX_BATCH_EVENTS):
        count = min(MAX_BATCH_EVENTS, events - first)
        key = random.integers(0, keys, count)
        stamps = pa.array(times(first, count)).cast(EVENT_TIME_TYPE)
        split = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int8)), pa.array(["0"]))
        columns = [stamps, split, pa.array(np.arange(first, first + count)), metrics.take(pa.array(key % METRICS)), hosts.take(pa.array(key // METRICS)), pa.array(random.random(count) * 1000)]
        yield pa.record_batch(columns, schema=SCHEMA)


def _memory() -> int:
    return int(psutil.Process().memory_info().rss)


def _figures(watch: Stopwatch, events: int, before: int, peak: int) -> dict[str, float]:
    steps = {step: nanoseconds / events for step, nanoseconds in watch.nanoseconds.items()}
    return {"ns": sum(steps.values()), **steps, "memory_mb": (peak - before) / 2**20}


if __name__ == "__main__":
    measure = {"keys": keys, "sessions": sessions}[sys.argv[1]]
    print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
