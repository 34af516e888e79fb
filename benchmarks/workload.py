"""The workload "metrics-1s": JSON events of about 117 bytes in Kafka, to be aggregated by second, metric and host.

20 metrics x 50 hosts, disorder up to 500 ms, 4 partitions; count, sum, min and max of ``value`` in tumbling windows of 1 s.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.payloads import Payloads, json
from benchmarks.topic import PARTITIONS, TABLE, TOPIC
from streamgauge.transforms.sources.base import Split
from streamgauge.transforms.sources.generator import Generator

_BATCH = 50_000


@dataclass(frozen=True)
class Workload:
    """Events in a topic, and on disk for the independent answer."""

    brokers: str
    folder: Path
    events: int
    topic: str
    records: tuple[int, ...]
    """Of each partition."""

    def expected(self, events: int, seconds: int = 1) -> pl.DataFrame:
        """The right answer for the first ``events`` (evenly of all partitions), by DuckDB: window_start in microseconds.

        A window begins every second and is so many ``seconds`` long.
        """
        files = " UNION ALL ".join(
            f"(SELECT * FROM read_json('{self.folder}/part-{p}.ndjson', format='newline_delimited', "
            f"columns={{ts: 'BIGINT', metric: 'VARCHAR', host: 'VARCHAR', value: 'DOUBLE'}}) LIMIT {events // len(self.records)})"
            for p in range(len(self.records))
        )
        rows = duckdb.sql(
            f"WITH seconds AS (SELECT ts // 1000 AS second, metric, host, count(*) AS events, sum(value) AS total, min(value) AS lo, max(value) AS hi "
            f"FROM ({files}) GROUP BY ALL) SELECT (second - back) * 1000000 AS window_start, metric, host, sum(events)::BIGINT AS events, "
            f"sum(total) AS total, min(lo) AS lo, max(hi) AS hi FROM seconds, range({seconds}) AS before(back) GROUP BY ALL ORDER BY ALL"
        )
        return pl.from_arrow(rows.to_arrow_table())  # type: ignore[return-value]


def preload(brokers: str, folder: Path, events: int, topic: str = TOPIC, partitions: int = PARTITIONS, payloads: Payloads = json, **generator: Any) -> Workload:
    """Produces the events to a new topic, and writes each partition's to a file.

    Args:
        payloads: makes record values of JSON events.
        generator: further options of the generator.
    """
    folder.mkdir(parents=True, exist_ok=True)
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result()
    producer = Producer({
        "bootstrap.servers": brokers, "enable.idempotence": True, "linger.ms": 50, "batch.size": 1_000_000, "queue.buffering.max.messages": 1_000_000,
        "log_level": 3,  # a broker that has just begun is asked again, which is no news
    })  # fmt: skip
    source = Generator(Generator.Options(events=events, splits=partitions, **generator))
    records = []
    for partition, split in enumerate(source.splits()):
        records.append(0)
        with (folder / f"part-{partition}.ndjson").open("wb") as file:
            for lines in _batches(source, split):
                file.write(b"".join(line + b"\n" for line in lines))
                for payload in payloads(lines):
                    producer.produce(topic, payload, partition=partition)
                    records[-1] += 1
                producer.flush()
    return Workload(brokers, folder, events, topic, tuple(records))


def _batches(source: Generator, split: Split) -> Iterator[list[bytes]]:
    reader, done = source.open(split, split.start), False
    while not done:
        raw = reader.read(_BATCH, 2**26, 1.0)
        yield [payload.rstrip(b"\n") for payload in raw.payloads.to_pylist()]
        done = raw.done
    reader.close()


COLUMNS = ["window_start", "metric", "host", "events", "total", "lo", "hi"]


def stored(database: Path) -> pl.DataFrame:
    """What a contender wrote, a SQLite database or a folder of CSV files, as ``Workload.expected`` has it."""
    if database.is_dir():
        types = [pl.String] * 3 + [pl.Int64] + [pl.Float64] * 3
        files = [file for file in database.rglob("*") if file.is_file() and not file.name.startswith((".", "_"))]
        frame = pl.concat([pl.read_csv(file, has_header=False, new_columns=COLUMNS, schema_overrides=types) for file in files])
        starts = pl.col("window_start").str.to_datetime("%Y-%m-%d %H:%M:%S")
    else:
        with sqlite3.connect(database) as connection:
            rows = connection.execute(f"SELECT window_start, series, host, events, total, lo, hi FROM {TABLE}").fetchall()
        frame = pl.DataFrame(rows, schema=COLUMNS, orient="row")
        starts = pl.col("window_start").str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ")
    return frame.with_columns(starts.dt.epoch("us")).sort("window_start", "metric", "host")


def same(found: pl.DataFrame, wanted: pl.DataFrame) -> bool:
    """Counts, min and max to the unit, sums within 1e-9 relative."""
    exact = ["window_start", "metric", "host", "events", "lo", "hi"]
    if found.height != wanted.height or not found.select(exact).equals(wanted.select(exact).cast(found.select(exact).schema)):
        return False
    return bool(((found["total"] - wanted["total"]).abs() <= 1e-9 * wanted["total"].abs().clip(1e-300)).all())
