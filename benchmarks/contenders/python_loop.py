"""The hand-written consumer: confluent-kafka, orjson and a dictionary, in one process or several. No state that survives it, no late events."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
import sys
import time
from datetime import datetime, timezone

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from benchmarks.topic import PARTITIONS, TABLE, TOPIC

Windows = dict[tuple[int, str, str], list[float]]
"""(second, metric, host) -> count, sum, min, max."""


def main(brokers: str, database: str, events: int, processes: int = 1) -> None:
    shares = [list(range(first, PARTITIONS, processes)) for first in range(processes)]
    given = [(brokers, share, events // PARTITIONS * len(share)) for share in shares]
    if processes == 1:
        parts = [loop(*given[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            parts = pool.starmap(loop, given)
    store(database, merged([windows for _, windows in parts]))
    print(json.dumps({"seconds": time.time() - min(began for began, _ in parts)}))


def loop(brokers: str, partitions: list[int], events: int) -> tuple[float, Windows]:
    """When it began to read, and what it found."""
    consumer = Consumer({
        "bootstrap.servers": brokers, "group.id": "loop", "enable.auto.commit": False, "check.crcs": False, "fetch.queue.backoff.ms": 10,
        "queued.min.messages": 1_000_000, "queued.max.messages.kbytes": 1_048_576, "max.partition.fetch.bytes": 8_388_608,
    })  # fmt: skip
    consumer.assign([TopicPartition(TOPIC, p, OFFSET_BEGINNING) for p in partitions])
    windows: Windows = {}
    seen, began = 0, time.time()
    while seen < events:
        for message in consumer.consume(10_000, 1.0):
            event = orjson.loads(message.value())
            value = event["value"]
            key = (event["ts"] // 1000, event["metric"], event["host"])
            found = windows.get(key)
            if found is None:
                windows[key] = [1, value, value, value]
            else:
                found[0] += 1
                found[1] += value
                if value < found[2]:
                    found[2] = value
                if value > found[3]:
                    found[3] = value
            seen += 1
    consumer.close()
    return began, windows


def merged(parts: list[Windows]) -> Windows:
    windows, *others = parts
    for other in others:
        for key, (count, total, lo, hi) in other.items():
            found = windows.setdefault(key, [0, 0.0, lo, hi])
            found[:] = found[0] + count, found[1] + total, min(found[2], lo), max(found[3], hi)
    return windows


def store(database: str, windows: Windows) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(f"CREATE TABLE {TABLE} (window_start TEXT, series TEXT, host TEXT, events INTEGER, total REAL, lo REAL, hi REAL)")
        rows = (
            (f"{datetime.fromtimestamp(second, timezone.utc):%Y-%m-%dT%H:%M:%S}.000000Z", metric, host, int(found[0]), *found[1:])
            for (second, metric, host), found in windows.items()
        )
        connection.executemany(f"INSERT INTO {TABLE} VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
