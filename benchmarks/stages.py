"""CPU nanoseconds an event of each step of the pipeline alone, without a runner: ``scripts/bench --stages``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.topic import FIELDS, TOPIC
from benchmarks.workload import Workload
from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.batch import BatchCodec, event_times
from streamgauge.transforms.event_time import EventTime, TimeOptions
from streamgauge.transforms.formats.json import Json
from streamgauge.transforms.partials import Partials
from streamgauge.transforms.read import MAX_BATCH_BYTES, MAX_BATCH_EVENTS
from streamgauge.transforms.sources.generator import Generator
from streamgauge.transforms.sources.kafka import Kafka

ROUNDS = 40


def measure() -> list[tuple[str, float]]:
    """(step, CPU nanoseconds an event) in one thread, over batches of the size that the reader makes."""
    source = Generator(Generator.Options(events=MAX_BATCH_EVENTS))
    raw = source.open(source.splits()[0], 0).read(MAX_BATCH_EVENTS, 2**30, 1.0)
    json = Json(Json.Options(schema=FIELDS))
    event_time = EventTime(TimeOptions(field="ts", unit="ms"), json.schema)
    parsed = json.parse(raw)
    timed = event_time.apply(raw, parsed).events
    options = AggregateOptions(
        metric="load", window={"tumbling": "1s"}, by={"series": "metric", "host": "host"}, shards=4,
        aggregates={"total": {"sum": "value"}, "lo": {"min": "value"}, "hi": {"max": "value"}},
    )  # fmt: skip
    partials = Partials(build_metric(options, timed.schema))
    slices = options.window.create().slice_starts(event_times(timed))
    made = [partial for _, _, partial in partials.of_events(timed, slices)]
    codec = BatchCodec(partials.codec.schema)
    encoded = [codec.encode(partial) for partial in made]
    steps: dict[str, Callable[[], Any]] = {
        "parse JSON": lambda: json.parse(raw),
        "event time": lambda: event_time.apply(raw, parsed),
        "partials by window, key and shard": lambda: list(partials.of_events(timed, slices)),
        "encode partials": lambda: [codec.encode(partial) for partial in made],
        "decode and merge partials": lambda: [partials.merge([codec.decode(data)]) for data in encoded],
    }
    return [(name, _nanoseconds(step) / MAX_BATCH_EVENTS) for name, step in steps.items()]


def fetch(workload: Workload) -> float:
    """CPU nanoseconds an event of reading the topic and nothing else, all threads of the process."""
    connector = Kafka(Kafka.Options(brokers=workload.brokers, topic=TOPIC, stop="latest"))
    began = time.process_time_ns()
    for split in connector.splits():
        reader = connector.open(split, split.start)
        while not reader.read(MAX_BATCH_EVENTS, MAX_BATCH_BYTES, 1.0).done:
            pass
        reader.close()
    return (time.process_time_ns() - began) / workload.events


def _nanoseconds(step: Callable[[], Any]) -> float:
    step()
    began = time.thread_time_ns()
    for _ in range(ROUNDS):
        step()
    return (time.thread_time_ns() - began) / ROUNDS
