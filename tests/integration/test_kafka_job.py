"""A Kafka job from end to end while its topic changes: a partition that is new, one that is empty, tombstones, a broker that goes away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.pipelines.services.process import free_port
from streamgauge.transforms.record import JobRecord
from tests.running import Command, stored, until

pytestmark = pytest.mark.integration

JOB = """
pipeline:
  transforms:
    - type: ReadEvents
      config:
        from: {kafka: {brokers: "BROKERS", topic: t}}
        format: {json: {schema: {ts: "timestamp[ms]", value: int64}}}
        time: {field: ts, disorder: 1s, idle: 1s}
        error_handling: {output: rejected}
    - type: AggregateWindows
      input: ReadEvents
      config: {metric: m, window: {tumbling: 1s}, aggregates: {n: count, total: {sum: value}}, lateness: 1h}
    - {type: WriteResults, name: Results, input: AggregateWindows, config: {to: {sqlite: {path: m.db, table: m}}}}
    - {type: WriteResults, name: Rejected, input: ReadEvents.rejected, config: {to: {sqlite: {path: rejected.db, table: rejected}}}}
"""
START = 1_767_225_600_000
PER_PARTITION = 3_000


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[KafkaServer]:
    with KafkaServer(tmp_path / "kafka", free_port()) as server:
        yield server


def produce(brokers: str, partition: int, numbers: range) -> None:
    """Event ``n`` has time START + n milliseconds and value n."""
    producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "log_level": 0})
    for number in numbers:
        producer.produce("t", json.dumps({"ts": START + number, "value": number}).encode(), partition=partition)
    producer.flush()


def positions(folder: Path) -> dict[str, Any]:
    return {split["split"]: split["position"] for split in JobRecord(folder / ".streamgauge/jobs/m/record").all("splits")}


def test_a_new_partition_and_a_broker_that_restarts(tmp_path: Path, kafka: KafkaServer) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.brokers, "log_level": 0})
    admin.create_topics([NewTopic("t", 2, 1)])["t"].result()
    (tmp_path / "m.yaml").write_text(JOB.replace("BROKERS", kafka.brokers))
    produce(kafka.brokers, 0, range(PER_PARTITION))
    with Command(tmp_path, "run", "m.yaml") as command:
        until(lambda: positions(tmp_path).get("t-0") == PER_PARTITION, "the first partition is read", of=command)
        # Partition 1 never had a record and does not hold the windows back.
        until(lambda: stored(tmp_path / "m.db", "SELECT 1 FROM m WHERE final"), "a window closes", of=command)

        admin.create_partitions([NewPartitions("t", 3)])["t"].result()
        produce(kafka.brokers, 2, range(PER_PARTITION, 2 * PER_PARTITION))
        until(lambda: positions(tmp_path).get("t-2") == PER_PARTITION, "the new partition is read", of=command)

        kafka.stop()
        kafka.start()
        producer = Producer({"bootstrap.servers": kafka.brokers, "enable.idempotence": True, "log_level": 0})
        producer.produce("t", None, partition=1)
        producer.produce("t", b"{broken", partition=1)
        producer.flush()
        produce(kafka.brokers, 0, range(2 * PER_PARTITION, 3 * PER_PARTITION))
        until(lambda: positions(tmp_path).get("t-0") == 2 * PER_PARTITION, "reading goes on after the broker's restart", of=command)
        until(lambda: positions(tmp_path).get("t-1") == 2, "the tombstone is read", of=command)
        with Command(tmp_path, "drain", "m.yaml") as drain:
            assert drain.wait() == 0, drain.err
        assert command.wait() == 0, command.out + command.err
    rows = stored(tmp_path / "m.db", "SELECT n, total, final FROM m ORDER BY window_start")
    assert rows == [(1_000, sum(range(first, first + 1_000)), 1) for first in range(0, 3 * PER_PARTITION, 1_000)]
    letters = stored(tmp_path / "rejected.db", "SELECT split, position, error_type FROM rejected ORDER BY position")
    assert letters == [("t-1", 0, "tombstone"), ("t-1", 1, "malformed")]
    with Command(tmp_path, "verify", "m.yaml") as verify:
        assert verify.wait() == 0, verify.out + verify.err


def test_a_missing_topic_is_told_in_one_line(tmp_path: Path, kafka: KafkaServer) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.brokers, "log_level": 0})
    admin.create_topics([NewTopic("tt", 1, 1)])["tt"].result(30)
    (tmp_path / "m.yaml").write_text(JOB.replace("BROKERS", kafka.brokers))
    with Command(tmp_path, "run", "m.yaml") as command:
        assert command.wait() in (1, 2)
        (line,) = command.err.splitlines()
        assert "has no topic 't'; similar ones: tt" in line
        assert "Traceback" not in command.out + command.err
