"""Arrow streams in Kafka, many events a record, from end to end."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.pipelines.services.process import free_port
from tests.running import Command, stored

pytestmark = pytest.mark.integration

JOB = """
pipeline:
  transforms:
    - type: ReadEvents
      config:
        from: {kafka: {brokers: "BROKERS", topic: t, stop: latest}}
        format: {arrow: {schema: {at: timestamp, page: string, ms: double, bytes: int32}, optional: [bytes]}}
        time: {field: at, disorder: 2s}
        error_handling: {output: rejected}
    - type: AggregateWindows
      input: ReadEvents
      config:
        metric: m
        window: {tumbling: 10s}
        by: [page]
        aggregates: {n: count, total: {sum: bytes}, slowest: {max: ms}, opened: {first: ms}, closed: {last: ms}}
    - {type: WriteResults, name: Results, input: AggregateWindows, config: {to: {sqlite: {path: m.db, table: m}}}}
    - {type: WriteResults, name: Rejected, input: ReadEvents.rejected, config: {to: {sqlite: {path: rejected.db, table: rejected}}}}
"""
START = 1_767_225_600_000
PARTITIONS, RECORDS, EVENTS = 2, 40, 250
TIMES_A_RECORD = 50
"""Fewer than events: several events of a record have one time, and their order decides which is first."""


def events_of(partition: int, record: int) -> list[dict[str, Any]]:
    """Event times grow with the record; one event in a record has no time, one has too large a number."""
    found = []
    for number in range(EVENTS):
        at = START + record * 1_000 + number % TIMES_A_RECORD * 20
        found.append({"ms": float(number) + partition / 2, "page": f"/{number % 3}", "at": at, "bytes": number, "more": "x"})
    if record % 4 == 3:
        found[7]["at"] = None
        found[9]["bytes"] = 2**31
    return found


def payload(record: int, events: list[dict[str, Any]]) -> bytes:
    """What different producers write: other orders and types of columns, compression, dictionaries, several batches, no ``bytes`` at all."""
    text = pa.dictionary(pa.int16(), pa.string()) if record % 3 == 1 else pa.large_string() if record % 3 == 2 else pa.string()
    fields = [("at", pa.timestamp("ms")), ("ms", pa.float64()), ("page", text), ("bytes", pa.int64()), ("more", pa.string())]
    schema = pa.schema(fields if record % 2 else fields[::-1])
    if record % 5 == 4:
        schema = schema.remove(schema.get_field_index("bytes"))
    columns = {name: [event[name] for event in events] for name in schema.names}
    columns["at"] = [None if at is None else datetime.fromtimestamp(at / 1000, timezone.utc).replace(tzinfo=None) for at in columns["at"]]
    arrays = {name: pa.array(values).dictionary_encode().cast(text) if name == "page" and record % 3 == 1 else values for name, values in columns.items()}
    whole = pa.record_batch([pa.array(arrays[field.name], field.type) if isinstance(arrays[field.name], list) else arrays[field.name] for field in schema], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=[None, "zstd", "lz4"][record // 3 % 3])) as writer:
        for part in range(0, EVENTS, 100):
            writer.write_batch(whole.slice(part, 100))
    made: bytes = sink.getvalue().to_pybytes()
    return made


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[KafkaServer]:
    with KafkaServer(tmp_path / "kafka", free_port()) as server:
        yield server


def test_streams_of_several_producers_give_what_plain_python_says(tmp_path: Path, kafka: KafkaServer) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.brokers, "log_level": 0})
    admin.create_topics([NewTopic("t", PARTITIONS, 1)])["t"].result()
    producer = Producer({"bootstrap.servers": kafka.brokers, "enable.idempotence": True, "log_level": 0})
    letters: set[tuple[str, int, str]] = set()
    good: defaultdict[tuple[int, str], list[tuple[Any, ...]]] = defaultdict(list)
    for partition in range(PARTITIONS):
        for record in range(RECORDS):
            events = events_of(partition, record)
            producer.produce("t", payload(record, events), partition=partition)
            for number, event in enumerate(events):
                size = None if record % 5 == 4 else event["bytes"]
                if event["at"] is None or (size is not None and size >= 2**31):
                    letters.add((f"t-{partition}", record, "no_event_time" if record % 5 == 4 else "type"))
                else:
                    good[event["at"] // 10_000, event["page"]].append((event["at"], partition, record, number, event["ms"], size))
        for offset, bad in enumerate((b'{"at": 1}', payload(0, events_of(0, 0))[:-100], None), start=RECORDS):
            producer.produce("t", bad, partition=partition)
            letters.add((f"t-{partition}", offset, "tombstone" if bad is None else "malformed"))
    producer.flush()
    (tmp_path / "m.yaml").write_text(JOB.replace("BROKERS", kafka.brokers))
    with Command(tmp_path, "check", "m.yaml", "--json") as check:
        assert check.wait() == 0, check.err
        (source,) = json.loads(check.out)["sources"]
        assert (source["format"], source["fields"]) == ("arrow", {"at": "timestamp", "page": "string", "ms": "double", "bytes": "int32"})
    with Command(tmp_path, "run", "m.yaml") as run:
        assert run.wait() == 0, run.out + run.err
    expected = []
    for (window, page), events in sorted(good.items()):
        events.sort(key=lambda event: event[:4])
        sizes = [event[5] for event in events if event[5] is not None]
        # Of equal times, split and position, first is the first row and last the last one.
        expected.append((window * 10_000, page, len(events), sum(sizes), max(event[4] for event in events), events[0][4], events[-1][4]))
    rows = stored(tmp_path / "m.db", "SELECT window_start, page, n, total, slowest, opened, closed FROM m WHERE final ORDER BY window_start, page")
    assert [(_milliseconds(row[0]), *row[1:]) for row in rows] == expected
    assert set(stored(tmp_path / "rejected.db", "SELECT split, position, error_type FROM rejected")) == letters


def _milliseconds(written: Any) -> int:
    return int(datetime.fromisoformat(str(written).replace("Z", "+00:00")).replace(tzinfo=timezone.utc).timestamp() * 1000)
