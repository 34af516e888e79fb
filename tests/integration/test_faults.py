"""One short seed of the fault suite (see scripts/faults), on a cluster; and that its verdict can be FAIL."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.suite import Plan, kinds_of, run, servers
from tests.faults.verdict import expected_rows, judge, stored_rows
from tests.faults.workload import TOPIC, Workload, produce

pytestmark = pytest.mark.integration

EVENTS, MORE_EVENTS = 200_000, 1_000_000


@pytest.mark.timeout(420)
def test_a_job_on_a_cluster_survives_the_death_of_its_parts(tmp_path: Path) -> None:
    """One short seed; docs/reliability.md has long ones."""
    plan = Plan(seed=101, faults=5, events=MORE_EVENTS, cluster="cluster", kinds=kinds_of("cluster"), pace_s=20.0, limit_s=290.0)
    lines: list[str] = []
    result, verdict = run(plan, tmp_path, lines.append)
    print("\n".join(lines))
    assert result.verdict == "PASS", "\n".join([*lines, str(verdict)])
    assert len(result.kinds) == 5 and result.rows > 10_000


def test_the_topic_holds_the_stream_and_an_empty_store_fails(tmp_path: Path) -> None:
    stream = Workload.of(3, EVENTS)
    with servers(tmp_path, 1e9) as (kafka, questdb, proxy):
        produce(stream, kafka.brokers)
        # What clients of the proxied listener read, wherever the broker says it is.
        assert read_all(f"127.0.0.1:{proxy.port}", stream) == EVENTS
        verdict = judge(stream, questdb.url, "faults", tmp_path / "rejected")
        assert verdict.word == "FAIL"
        assert [comparison.missing for comparison in verdict.comparisons] == [len(expected_rows(stream))] * 2 + [len(stream.expected_letters())]
        assert len(stored_rows(questdb.url, "faults")) == 0


def read_all(brokers: str, stream: Workload) -> int:
    """How many records of the topic are those of the stream, at their offsets."""
    from confluent_kafka import Consumer, TopicPartition

    ends = [0] * stream.partitions
    expected: dict[tuple[int, int], bytes] = {}
    for partition, payloads in stream.payloads():
        for payload in payloads:
            expected[partition, ends[partition]] = payload
            ends[partition] += 1
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "test", "log_level": 0})
    consumer.assign([TopicPartition(TOPIC, partition, 0) for partition in range(stream.partitions)])
    equal = 0
    while messages := consumer.consume(10_000, 5.0):
        equal += sum(expected.pop((message.partition(), message.offset()), None) == message.value() for message in messages)
        if not expected:
            break
    consumer.close()
    return equal
