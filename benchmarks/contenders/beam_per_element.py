"""The same job as Beam's documentation has it: an element is an event. Kafka to SQLite on the same embedded Flink.

Its source is the same as ours, connector and restrictions, but it emits one payload an element.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Duration, Timestamp

from benchmarks.topic import PARTITIONS, TABLE, TOPIC
from streamgauge.pipelines.follow import wait_for_end
from streamgauge.pipelines.services.flink import EmbeddedFlink, silence_unknown_options
from streamgauge.transforms.read import _PositionsProvider
from streamgauge.transforms.readers import OpenReaders
from streamgauge.transforms.restriction import FINISHED
from streamgauge.transforms.sources.kafka import Kafka
from streamgauge.transforms.splits import ListSplits, split_of

DISORDER_MS = 500
# One millisecond more is taken off below: Flink closes a window when the watermark reaches its last millisecond.
BATCH = 2_000

Accumulator = tuple[int, float, float, float]


class ReadElements(beam.DoFn):  # type: ignore[misc]
    def __init__(self, connector: Kafka, began: str) -> None:
        self._connector = connector
        self._began = Path(began)

    def setup(self) -> None:
        self._readers = OpenReaders(self._connector)

    def process(
        self,
        element: bytes,
        tracker: Any = beam.DoFn.RestrictionParam(_PositionsProvider()),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterator[Any]:
        split, _ = split_of(element)
        if not self._began.exists():
            self._began.write_text(str(time.time()))
        reader = self._readers.take(split, tracker.current_restriction().position)
        end = tracker.current_restriction().end
        raw = reader.read(BATCH, 2**24, 0.05)
        if not tracker.try_claim(raw.next_position):
            return
        newest = None
        for payload in raw.payloads.to_pylist():
            event = orjson.loads(payload)
            newest = event["ts"] if newest is None else max(newest, event["ts"])
            yield TimestampedValue(event, Timestamp(micros=event["ts"] * 1000))
        if newest is not None:
            watermark.set_watermark(max(watermark.current_watermark() or MIN_TIMESTAMP, Timestamp(micros=(newest - DISORDER_MS - 1) * 1000)))
        if raw.done or raw.next_position >= end:
            tracker.try_claim(FINISHED)
            reader.close()
            return
        self._readers.put_back(split, reader)
        tracker.defer_remainder(Duration())


class Statistics(beam.CombineFn):  # type: ignore[misc]
    def create_accumulator(self) -> Accumulator:
        return (0, 0.0, float("inf"), float("-inf"))

    def add_input(self, accumulator: Accumulator, value: float) -> Accumulator:
        count, total, low, high = accumulator
        return (count + 1, total + value, min(low, value), max(high, value))

    def merge_accumulators(self, accumulators: Iterable[Accumulator]) -> Accumulator:
        counts, totals, lows, highs = zip(*accumulators, strict=True)
        return (sum(counts), sum(totals), min(lows), max(highs))

    def extract_output(self, accumulator: Accumulator) -> Accumulator:
        return accumulator


class Store(beam.DoFn):  # type: ignore[misc]
    def __init__(self, database: str) -> None:
        self._database = database

    def start_bundle(self) -> None:
        self._rows: list[tuple[Any, ...]] = []

    def process(self, element: tuple[tuple[str, str], Accumulator], window: Any = beam.DoFn.WindowParam) -> None:
        (metric, host), values = element
        start = f"{datetime.fromtimestamp(window.start.micros // 10**6, timezone.utc):%Y-%m-%dT%H:%M:%S}.000000Z"
        self._rows.append((start, metric, host, *values))

    def finish_bundle(self) -> None:
        if self._rows:
            with sqlite3.connect(self._database, timeout=30) as connection:
                connection.executemany(f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?, ?, ?, ?, ?, ?)", self._rows)
            Path(f"{self._database}.last").write_text(str(time.time()))


def main(brokers: str, database: str, events: int) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(
            f"CREATE TABLE {TABLE} (window_start TEXT, series TEXT, host TEXT, events INTEGER, total REAL, lo REAL, hi REAL,"
            " PRIMARY KEY (window_start, series, host))"
        )
    connector = Kafka(Kafka.Options(brokers=brokers, topic=TOPIC, stop=dict.fromkeys(range(PARTITIONS), events // PARTITIONS)))
    silence_unknown_options()
    with tempfile.TemporaryDirectory() as folder, EmbeddedFlink(folder) as flink:
        pipeline = beam.Pipeline(options=PipelineOptions(flink.pipeline_options()))
        _ = (
            pipeline
            | beam.Impulse()
            | beam.ParDo(ListSplits(connector))
            | beam.ParDo(ReadElements(connector, f"{database}.first"))
            | beam.Map(lambda event: ((event["metric"], event["host"]), event["value"]))
            | beam.WindowInto(FixedWindows(1))
            | beam.CombinePerKey(Statistics())
            | beam.ParDo(Store(database))
        )
        result = pipeline.run()
        wait_for_end(flink, lambda: str(result.state))
    print(json.dumps({"seconds": float(Path(f"{database}.last").read_text()) - float(Path(f"{database}.first").read_text())}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
