"""A seeded stream of events, and the right answer to the job over it, computed from the numbers it was made of.

The answer never touches the product nor what a broker returns: it comes from the arrays, so whatever is lost, repeated or
altered between the producer and the store shows as a difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

Ints = npt.NDArray[np.int64]

TOPIC = "faults"
START_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z."""
SPAN_MS = 90_000
WINDOW_MS = 1_000
KEYS = 200
DISORDER_MS = 1_500
"""How far an event may be behind the newest one before it; the job allows JOB_DISORDER_MS, so nothing is late."""
JOB_DISORDER_MS = 2_000
HUGE_SHARE, NULL_SHARE, BAD_SHARE = 0.01, 0.01, 0.0001
HUGE = 1 << 56
"""Beyond the 53 bits of a double; thousands of them fit the int64 that a sum must be."""
_CHUNK = 250_000
_PREFIX, _DIGITS = "seed-{seed:04d}-event-", 16

BAD = {
    "cut": ("malformed", '{{"ts":{ts},"key":"{key}","val'),
    "text": ("type", '{{"ts":{ts},"key":"{key}","value":"many","id":"{id}"}}'),
    "beyond": ("type", '{{"ts":{ts},"key":"{key}","value":9223372036854775808,"id":"{id}"}}'),
    "timeless": ("no_event_time", '{{"key":"{key}","value":1,"id":"{id}"}}'),
    "null_time": ("no_event_time", '{{"ts":null,"key":"{key}","value":1,"id":"{id}"}}'),
}
"""Kinds of bad events: name -> (error type of the dead letter, payload)."""


@dataclass(frozen=True)
class Workload:
    """Events in the order in which they are produced; what an event is made of stands at one index of all arrays.

    Attributes:
        partition: of the topic. offset: in its partition. ts: event time, milliseconds. key: number of its key, -1 for null.
        value, is_null: int64, and whether it is null. bad: index into ``BAD`` plus one, 0 for a good event.
    """

    seed: int
    partitions: int
    partition: Ints
    offset: Ints
    ts: Ints
    key: Ints
    value: Ints
    is_null: npt.NDArray[np.bool_]
    bad: Ints

    @classmethod
    def of(cls, seed: int, events: int, partitions: int = 4) -> Workload:
        """The stream of a seed; at least one bad event of each kind when there are events enough."""
        random = np.random.default_rng(seed)
        partition = random.integers(0, partitions, events)
        ts = START_MS + np.arange(events) * SPAN_MS // max(events, 1) - random.integers(0, DISORDER_MS + 1, events)
        # Squared: a few keys have many events, many have few.
        key = (random.random(events) ** 2 * (KEYS + 1)).astype(np.int64) - 1
        value = random.integers(-1_000, 1_001, events)
        huge = random.random(events) < HUGE_SHARE
        value[huge] = random.integers(-HUGE, HUGE, int(huge.sum()))
        bad = np.zeros(events, np.int64)
        count = min(max(round(events * BAD_SHARE), len(BAD)), events)
        bad[random.choice(events, count, replace=False)] = np.arange(count) % len(BAD) + 1
        return cls(seed, partitions, partition, _ranks(partition, partitions), ts, key, value, random.random(events) < NULL_SHARE, bad)

    def __len__(self) -> int:
        return len(self.ts)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of records of each partition."""
        return [int(size) for size in np.bincount(self.partition, minlength=self.partitions)]

    def expected(self) -> pa.Table:
        """One row a (window_start in milliseconds, key): n, total, low, high; by DuckDB. Raises OverflowError for a sum beyond int64."""
        good = self.bad == 0
        events = pa.table({
            "ts": self.ts[good],
            "key": pa.array([None, *map(_name, range(KEYS))]).take(pa.array(self.key[good] + 1)),
            "value": pa.array(self.value[good], mask=self.is_null[good]),
        })  # fmt: skip
        with duckdb.connect() as connection:
            connection.register("events", events)
            try:
                return connection.sql(
                    f"SELECT ts // {WINDOW_MS} * {WINDOW_MS} AS window_start, key, count(*) AS n, sum(value)::BIGINT AS total, "
                    "min(value) AS low, max(value) AS high FROM events GROUP BY ALL"
                ).to_arrow_table()
            except duckdb.ConversionException as error:
                raise OverflowError(f"a sum of seed {self.seed} does not fit int64: {error}") from None

    def expected_letters(self) -> pa.Table:
        """One row a bad event: split, position, error_type, payload."""
        where = np.flatnonzero(self.bad)
        kinds = list(BAD.values())
        return pa.table({
            "split": pa.array([f"{TOPIC}-{p}" for p in self.partition[where]], pa.string()),
            "position": self.offset[where],
            "error_type": pa.array([kinds[kind - 1][0] for kind in self.bad[where]], pa.string()),
            "payload": pa.array([self.bad_payload(int(index)) for index in where], pa.binary()),
        })  # fmt: skip

    def bad_payload(self, index: int) -> bytes:
        """Of the event at ``index``, which is bad."""
        template: str = list(BAD.values())[self.bad[index] - 1][1]
        return template.format(ts=self.ts[index], key=_name(int(self.key[index])), id=_id(self.seed, index)).encode()

    def payloads(self) -> Iterator[tuple[int, list[bytes]]]:
        """(partition, payloads in the order of their offsets), chunk after chunk."""
        for begin in range(0, len(self), _CHUNK):
            made = self._chunk(begin, min(begin + _CHUNK, len(self)))
            partition = self.partition[begin : begin + _CHUNK]
            for number in range(self.partitions):
                yield number, made.filter(pl.Series(partition == number)).to_list()

    def _chunk(self, begin: int, end: int) -> pl.Series:
        part = slice(begin, end)
        frame = pl.DataFrame({
            "ts": self.ts[part], "key": self.key[part], "value": self.value[part], "null": self.is_null[part], "id": np.arange(begin, end),
        })  # fmt: skip
        key = pl.when(pl.col("key") < 0).then(pl.lit("null")).otherwise(pl.format('"key-{}"', pl.col("key").cast(pl.String).str.zfill(3)))
        value = pl.when("null").then(pl.lit("null")).otherwise(pl.col("value").cast(pl.String))
        number = pl.col("id").cast(pl.String).str.zfill(_DIGITS)
        text = pl.concat_str(
            pl.lit('{"ts":'), pl.col("ts").cast(pl.String), pl.lit(',"key":'), key, pl.lit(',"value":'), value,
            pl.lit(f',"id":"{_PREFIX.format(seed=self.seed)}'), number, pl.lit('"}'),
        )  # fmt: skip
        made = frame.select(text.cast(pl.Binary)).to_series()
        where = np.flatnonzero(self.bad[part])
        return made.scatter(where.tolist(), [self.bad_payload(begin + int(index)) for index in where]) if len(where) else made


def produce(workload: Workload, brokers: str, topic: str = TOPIC) -> None:
    """Makes the topic and fills it: record n of a partition has offset n. Raises RuntimeError when the topic holds anything else."""
    from confluent_kafka import Consumer, Producer, TopicPartition
    from confluent_kafka.admin import AdminClient, NewTopic

    client = {"bootstrap.servers": brokers, "log_level": 0}
    admin = AdminClient(client)
    admin.create_topics([NewTopic(topic, workload.partitions, 1)])[topic].result()
    # Idempotent: a retry neither repeats nor reorders records, so offsets are what we say they are.
    producer = Producer({**client, "enable.idempotence": True, "linger.ms": 100, "batch.size": 1_000_000, "batch.num.messages": 100_000,
                         "queue.buffering.max.messages": 2 * _CHUNK, "queue.buffering.max.kbytes": 1 << 20})  # fmt: skip
    for partition, payloads in workload.payloads():
        for payload in payloads:
            while True:
                try:
                    producer.produce(topic, payload, partition=partition)
                    break
                except BufferError:
                    producer.poll(0.1)
    producer.flush()
    consumer = Consumer({**client, "group.id": "faults"})
    held = [consumer.get_watermark_offsets(TopicPartition(topic, p)) for p in range(workload.partitions)]
    consumer.close()
    if held != [(0, size) for size in workload.sizes]:
        raise RuntimeError(f"the topic {topic} holds the offsets {held}, expected {workload.sizes} records")


def _ranks(groups: Ints, count: int) -> Ints:
    """For each element how many equal ones stand before it.

    >>> _ranks(np.array([1, 0, 1, 1]), 2).tolist()
    [0, 0, 1, 2]
    """
    ranks = np.empty(len(groups), np.int64)
    for group in range(count):
        members = np.flatnonzero(groups == group)
        ranks[members] = np.arange(len(members))
    return ranks


def _name(key: int) -> str:
    return f"key-{key:03d}"


def _id(seed: int, index: int) -> str:
    return f"{_PREFIX.format(seed=seed)}{index:0{_DIGITS}d}"
