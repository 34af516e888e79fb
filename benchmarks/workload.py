"""The workload "metrics-1s": JSON events of about 117 bytes in Kafka, to be aggregated by second, metric and host.

20 metrics x 50 hosts, disorder up to 500 ms, 4 partitions; count, sum, min and max of ``value`` in tumbling windows of 1 s.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl

from streamgauge.transforms.sources.base import Split
from streamgauge.transforms.sources.generator import Generator

NAME = "metrics-1s"
TOPIC = "metrics"
PARTITIONS = 4
TABLE = "metrics"
_BATCH = 50_000


@dataclass(frozen=True)
class Workload:
    """Events in a topic, and on disk for the independent answer."""

    brokers: str
    folder: Path
    events: int

    def expected(self, events: int) -> pl.DataFrame:
        """The right answer for the first ``events`` (evenly of all partitions), by DuckDB: window_start in microseconds."""
        files = " UNION ALL ".join(
            f"(SELECT * FROM read_json('{self.folder}/part-{p}.ndjson', format='newline_delimited', "
            f"columns={{ts: 'BIGINT', metric: 'VARCHAR', host: 'VARCHAR', value: 'DOUBLE'}}) LIMIT {events // PARTITIONS})"
            for p in range(PARTITIONS)
        )
        rows = duckdb.sql(
            f"SELECT ts // 1000 * 1000000 AS window_start, metric, host, count(*) AS events, sum(value) AS total, min(value) AS lo, "
            f"max(value) AS hi FROM ({files}) GROUP BY ALL ORDER BY ALL"
        )
        return pl.from_arrow(rows.to_arrow_table())  # type: ignore[return-value]


def preload(brokers: str, folder: Path, events: int) -> Workload:
    """Produces the events to the topic, and writes each partition's to a file."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    folder.mkdir(parents=True, exist_ok=True)
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])[TOPIC].result()
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 50, "batch.size": 1_000_000, "queue.buffering.max.messages": 1_000_000})
    source = Generator(Generator.Options(events=events, splits=PARTITIONS))
    for partition, split in enumerate(source.splits()):
        _produce(producer, source, split, partition, folder / f"part-{partition}.ndjson")
    producer.flush()
    return Workload(brokers, folder, events)


def _produce(producer: object, source: Generator, split: Split, partition: int, path: Path) -> None:
    reader = source.open(split, split.start)
    with path.open("wb") as file:
        while True:
            raw = reader.read(_BATCH, 2**26, 1.0)
            for payload in raw.payloads.to_pylist():
                line = payload.rstrip(b"\n")
                file.write(line + b"\n")
                producer.produce(TOPIC, line, partition=partition)  # type: ignore[attr-defined]
            producer.flush()  # type: ignore[attr-defined]
            if raw.done:
                break
    reader.close()


def stored(database: Path) -> pl.DataFrame:
    """What a contender wrote, as ``Workload.expected`` has it."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute(f"SELECT window_start, series, host, events, total, lo, hi FROM {TABLE}").fetchall()
    frame = pl.DataFrame(rows, schema=["window_start", "metric", "host", "events", "total", "lo", "hi"], orient="row")
    return frame.with_columns(pl.col("window_start").str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ").dt.epoch("us")).sort("window_start", "metric", "host")


def same(found: pl.DataFrame, wanted: pl.DataFrame) -> bool:
    """Counts, min and max to the unit, sums within 1e-9 relative."""
    exact = ["window_start", "metric", "host", "events", "lo", "hi"]
    if found.height != wanted.height or not found.select(exact).equals(wanted.select(exact).cast(found.select(exact).schema)):
        return False
    return bool(((found["total"] - wanted["total"]).abs() <= 1e-9 * wanted["total"].abs().clip(1e-300)).all())
