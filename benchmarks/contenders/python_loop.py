"""The hand-written consumer: confluent-kafka, orjson and a dictionary, one process. No state that survives it, no late events."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from datetime import datetime, timezone

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from benchmarks.workload import PARTITIONS, TABLE, TOPIC


def main(brokers: str, database: str, events: int) -> None:
    consumer = Consumer({
        "bootstrap.servers": brokers, "group.id": "loop", "enable.auto.commit": False, "check.crcs": False, "fetch.queue.backoff.ms": 10,
        "queued.min.messages": 1_000_000, "queued.max.messages.kbytes": 1_048_576, "max.partition.fetch.bytes": 8_388_608,
    })  # fmt: skip
    consumer.assign([TopicPartition(TOPIC, p, OFFSET_BEGINNING) for p in range(PARTITIONS)])
    windows: dict[tuple[int, str, str], list[float]] = {}
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
    store(database, windows)
    print(json.dumps({"seconds": time.time() - began}))


def store(database: str, windows: dict[tuple[int, str, str], list[float]]) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(f"CREATE TABLE {TABLE} (window_start TEXT, series TEXT, host TEXT, events INTEGER, total REAL, lo REAL, hi REAL)")
        rows = (
            (f"{datetime.fromtimestamp(second, timezone.utc):%Y-%m-%dT%H:%M:%S}.000000Z", metric, host, int(found[0]), *found[1:])
            for (second, metric, host), found in windows.items()
        )
        connection.executemany(f"INSERT INTO {TABLE} VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
