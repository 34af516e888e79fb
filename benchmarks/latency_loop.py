"""The baseline: a plain consumer loop that keeps windows in a dictionary and writes each change to the same store. No state survives it, nobody
restarts it, and an event behind its window's end is dropped.

``python -m benchmarks.latency_loop BROKERS TOPIC KIND ADDRESS TABLE WINDOW_MICROS LIVE`` runs until SIGTERM.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
import urllib.request
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

import orjson

WAIT_SECONDS = 0.1
MOST = 10_000
COLUMNS = ("window_start", "series", "host", "total", "lo", "hi", "newest", "events", "final")


class SqliteStore:
    """As durable as ours: a transaction is synced when it is committed."""

    def __init__(self, path: str, table: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(COLUMNS)}, PRIMARY KEY (series, host, window_start))")
        changed = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS[3:])
        self._upsert = f"INSERT INTO {table} VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT DO UPDATE SET {changed}"

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(self._upsert, ((_iso(row[0]), *row[1:]) for row in rows))
        self._connection.execute("COMMIT")


class QuestDbStore:
    """One request a write, to a table that replaces rows of one key."""

    def __init__(self, url: str, table: str) -> None:
        import questdb

        self._table, self._questdb = table, questdb
        create = (
            f"CREATE TABLE IF NOT EXISTS {table} (window_start TIMESTAMP, series SYMBOL, host SYMBOL, total DOUBLE, lo DOUBLE, hi DOUBLE, newest LONG, events LONG, "
            "final BOOLEAN) TIMESTAMP(window_start) PARTITION BY DAY WAL DEDUP UPSERT KEYS(window_start, series, host)"
        )
        urllib.request.urlopen(f"{url}/exec?query={quote(create)}", timeout=30).close()
        self._sender = questdb.Sender.from_conf(f"http::addr={url.removeprefix('http://')};protocol_version=2;auto_flush=off;")
        self._sender.establish()

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        request = self._sender.new_buffer()
        for start, series, host, *values in rows:
            columns = dict(zip(COLUMNS[3:], values, strict=True))
            request.row(self._table, symbols={"series": series, "host": host}, columns=columns, at=self._questdb.TimestampMicros(start))
        self._sender.flush(request)


STORES = {"sqlite": SqliteStore, "questdb": QuestDbStore}


class Windows:
    """Open windows by start; each a dictionary of keys.

    Args:
        size: of a window, microseconds.
        live: whether rows are told before their window has ended.
        partitions: that events come from.
    """

    def __init__(self, size: int, *, live: bool, partitions: int) -> None:
        self._size, self._live, self._partitions = size, live, partitions
        self._open: dict[int, dict[tuple[str, str], list[Any]]] = {}
        self._changed: set[tuple[int, tuple[str, str]]] = set()
        self._newest: dict[int, int] = {}

    def add(self, partition: int, payload: bytes) -> None:
        event = orjson.loads(payload)
        stamp, value, key = event["ts"], event["value"], (event["metric"], event["host"])
        start = stamp // self._size * self._size
        keys = self._open.setdefault(start, {})
        row = keys.get(key)
        if row is None:
            keys[key] = [value, value, value, stamp, 1]
        else:
            row[0] += value
            row[1], row[2], row[3] = min(row[1], value), max(row[2], value), max(row[3], stamp)
            row[4] += 1
        self._newest[partition] = max(stamp, self._newest.get(partition, stamp))
        if self._live:
            self._changed.add((start, key))

    def rows(self) -> list[tuple[Any, ...]]:
        """What has changed since the last call, and all of the windows that every partition has passed."""
        passed = min(self._newest.values()) if len(self._newest) == self._partitions else 0
        found = []
        for start in [start for start in self._open if start + self._size <= passed]:
            found += [(start, *key, *row, True) for key, row in self._open.pop(start).items()]
        found += [(start, *key, *self._open[start][key], False) for start, key in self._changed if start in self._open]
        self._changed.clear()
        return found


def _iso(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1e6, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def main(brokers: str, topic: str, kind: str, address: str, table: str, partitions: int, size: int, live: bool) -> None:
    from confluent_kafka import OFFSET_END, Consumer, TopicPartition

    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    store, windows = STORES[kind](address, table), Windows(size, live=live, partitions=partitions)
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "loop", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, OFFSET_END) for partition in range(partitions)])
    # What was assigned at its end is read from there once the end is known.
    for partition in range(partitions):
        consumer.get_watermark_offsets(TopicPartition(topic, partition))
    consumer.consume(1, 1.0)
    print(json.dumps({"ready": True}), flush=True)
    while not ended:
        messages = consumer.consume(1, WAIT_SECONDS)
        if messages:
            messages += consumer.consume(MOST, 0)
        for message in messages:
            if message.error() is None:
                windows.add(message.partition(), message.value())
        rows = windows.rows()
        if rows:
            store.write(rows)
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:6], int(sys.argv[6]), int(sys.argv[7]), sys.argv[8] == "live")
