"""The Kafka source against a real broker, with both clients; records are checked with kafka-python, an independent client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.transforms.sources import kafka as kafka_source
from streamgauge.transforms.sources import kafka_ends
from streamgauge.transforms.sources.base import RawBatch, SourceError, Split
from streamgauge.transforms.sources.kafka import Kafka, KafkaOptions
from streamgauge.transforms.sources.kafka_client import Fetched

confluent_kafka = pytest.importorskip("confluent_kafka")
admin_module = pytest.importorskip("confluent_kafka.admin")
independent = pytest.importorskip("kafka")

pytestmark = pytest.mark.integration

PATIENCE = 30.0
"""Seconds after which something that should happen counts as not happening."""

Record = tuple[int, bytes | None, int]
_numbers = count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    quick = {"auto.create.topics.enable": "false", "log.cleaner.backoff.ms": 100, "message.max.bytes": 5_000_000}
    with KafkaServer(tmp_path_factory.mktemp("kafka"), properties=quick, progress=False) as running:
        yield running


@pytest.fixture(params=["native", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STREAMGAUGE_KAFKA_NATIVE", "auto" if request.param == "native" else "off")
    return str(request.param)


class Topic:
    """A new topic and ways to fill it."""

    def __init__(self, brokers: str, partitions: int = 1, **config: str) -> None:
        self.name, self.brokers = f"topic{next(_numbers)}", brokers
        self.admin = admin_module.AdminClient({"bootstrap.servers": brokers, "log_level": 0})
        new = admin_module.NewTopic(self.name, partitions, 1, config={k.replace("_", "."): v for k, v in config.items()})
        self.admin.create_topics([new])[self.name].result(PATIENCE)
        until(lambda: self.name in self.admin.list_topics(timeout=PATIENCE).topics)

    def produce(self, *values: bytes | None, partition: int = 0, timestamp: int = 0, key: bytes | None = None) -> None:
        producer = confluent_kafka.Producer({"bootstrap.servers": self.brokers, "message.max.bytes": 5_000_000, "enable.idempotence": True, "log_level": 0})
        for value in values:
            producer.produce(self.name, value, key=key, partition=partition, timestamp=timestamp)
        assert producer.flush(PATIENCE) == 0

    def transaction(self, *values: bytes, commit: bool) -> None:
        producer = confluent_kafka.Producer({"bootstrap.servers": self.brokers, "transactional.id": f"{self.name}-writer"})
        producer.init_transactions(PATIENCE)
        producer.begin_transaction()
        for value in values:
            producer.produce(self.name, value, partition=0)
        producer.flush(PATIENCE)
        (producer.commit_transaction if commit else producer.abort_transaction)(PATIENCE)

    def source(self, **options: object) -> Kafka:
        return Kafka(KafkaOptions.model_validate({"brokers": self.brokers, "topic": self.name, **options}))

    def seen_by_kafka_python(self, partition: int = 0) -> list[Record]:
        place = independent.TopicPartition(self.name, partition)
        options = {"bootstrap_servers": self.brokers, "enable_auto_commit": False, "isolation_level": "read_committed"}
        with closing(independent.KafkaConsumer(**options)) as consumer:
            consumer.assign([place])
            consumer.seek_to_beginning(place)
            end = consumer.end_offsets([place])[place]
            found: list[Record] = []

            def all_read() -> bool:
                found.extend((m.offset, m.value, m.timestamp * 1000) for m in consumer.poll(200).get(place, []))
                return bool(consumer.position(place) >= end)

            until(all_read)
            return found


def until(reached: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (result := reached()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return result


def nothing() -> Fetched:
    return Fetched(kafka_source.NO_BYTES, kafka_source.NO_OFFSETS, None, kafka_source.NO_POSITIONS, kafka_source.NO_POSITIONS, newline_terminated=True)


def records(batch: RawBatch) -> list[Record]:
    assert batch.timestamps is not None
    values = batch.payloads.to_pylist()
    if batch.newline_terminated:
        whole = b"".join(v for v in values if v is not None)
        assert batch.payloads.buffers()[2].to_pybytes() == whole
        assert all(v is None or (v.endswith(b"\n") and v.count(b"\n") == 1) for v in values)
        values = [v and v[:-1] for v in values]
    return list(zip(batch.positions.tolist(), values, batch.timestamps.tolist(), strict=True))


def read_until(reader: Any, reached: Callable[[RawBatch], bool], max_records: int = 1000) -> tuple[list[Record], list[RawBatch]]:
    found: list[Record] = []
    batches: list[RawBatch] = []

    def step() -> bool:
        batch = reader.read(max_records, 1 << 20, 0.2)
        assert len(batch) <= max_records
        assert not batches or batch.next_position >= batches[-1].next_position
        found.extend(records(batch))
        batches.append(batch)
        return reached(batch)

    until(step)
    return found, batches


def read_split(source: Kafka, split: Split, position: int | None = None, max_records: int = 1000) -> tuple[list[Record], list[RawBatch]]:
    with closing(source.open(split, split.start if position is None else position)) as reader:
        return read_until(reader, lambda batch: batch.done, max_records)


def values(found: list[Record]) -> list[bytes | None]:
    return [value for _, value, _ in found]


def test_all_records_as_an_independent_client_sees_them(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers, partitions=3)
    for partition in (0, 1):
        topic.produce(*(b'{"n":%d}' % i for i in range(5000)), partition=partition)
    topic.produce(None, b"x", None, partition=1)
    source = topic.source(stop="latest")
    splits = source.splits()
    assert source.bounded and source.name == f"kafka:{topic.name}"
    assert splits == [Split(f"{topic.name}-0", 0, 5000), Split(f"{topic.name}-1", 0, 5003), Split(f"{topic.name}-2", 0, 0)]
    for split in splits:
        found, batches = read_split(source, split, max_records=777)
        assert found == topic.seen_by_kafka_python(int(split.id[-1]))
        assert batches[-1].next_position == split.end and batches[-1].done
        assert all(batch.newline_terminated for batch in batches if len(batch))


def test_the_client_is_the_one_asked_for(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers)
    with closing(topic.source().open(Split(f"{topic.name}-0", 0), 0)) as reader:
        assert type(reader._client).__name__ == {"native": "NativeClient", "plain": "PlainClient"}[path]


def test_resuming_gives_the_rest_from_every_position(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers)
    topic.produce(*(b"%d" % i for i in range(300)))
    source = topic.source(stop="latest", group="monitor")
    (split,) = source.splits()
    whole, _ = read_split(source, split)
    for position in (0, 1, 99, 299, 300):
        assert read_split(source, split, position)[0] == whole[position:]


def test_start_and_stop(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers, partitions=2)
    for i in range(10):
        topic.produce(b"%d" % i, timestamp=1_700_000_000_000 + i * 1000)
    topic.produce(b"other", partition=1, timestamp=1_600_000_000_000)

    def ends(**options: object) -> list[tuple[int, int | None]]:
        return [(s.start, s.end) for s in topic.source(**options).splits()]

    moment = datetime.fromtimestamp(1_700_000_004, timezone.utc)
    assert ends() == [(0, None), (0, None)]
    assert ends(start="latest") == [(10, None), (1, None)]
    assert ends(start=moment, stop="latest") == ends(start=moment.isoformat(), stop="latest") == [(4, 10), (1, 1)]
    assert ends(start={0: 3}, stop={"0": 7}) == [(3, 7), (0, 1)]
    source = topic.source(start={0: 3}, stop={0: 7})
    assert values(read_split(source, source.splits()[0])[0]) == [b"3", b"4", b"5", b"6"]
    with pytest.raises(SourceError, match="no partition 5; it has 0 to 1"):
        topic.source(start={5: 1}).splits()


def test_endless_reading_is_caught_up_when_the_broker_says_so(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers)
    source = topic.source()
    (split,) = source.splits()
    assert split.end is None and not source.bounded
    with closing(source.open(split, 0)) as reader:
        read_until(reader, lambda batch: batch.caught_up)
        topic.produce(b"a", b"b")
        found, batches = read_until(reader, lambda batch: len(batch) > 0)
        found += read_until(reader, lambda batch: batch.caught_up)[0] if not batches[-1].caught_up else []
        assert values(found) == [b"a", b"b"]
        before = time.monotonic()
        batch = read_until(reader, lambda batch: batch.caught_up and batch.caught_up_at > before)[1][-1]
        assert not batch.done and batch.next_position == 2 and batch.caught_up_at < time.monotonic()
        topic.produce(b"c")
        later = time.monotonic()
        assert all(batch.caught_up_at is None or batch.caught_up_at < later for batch in read_until(reader, lambda batch: len(batch) > 0)[1])


def test_a_bounded_read_ends_behind_aborted_transactions_and_markers(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers)
    topic.transaction(b"a", b"b", commit=True)
    topic.transaction(b"never", b"never", commit=False)
    topic.produce(b"c")
    topic.transaction(b"d", commit=True)
    topic.transaction(*[b"never"] * 50, commit=False)
    source = topic.source(stop="latest")
    (split,) = source.splits()
    found, batches = read_split(source, split)
    assert values(found) == [b"a", b"b", b"c", b"d"] and found == topic.seen_by_kafka_python()
    assert batches[-1].next_position == split.end == 2 + 1 + 2 + 1 + 1 + 1 + 1 + 50 + 1
    topic.produce(b"later")
    assert read_split(source, split)[0] == found


def test_an_open_transaction_is_not_part_of_a_bounded_read(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers)
    topic.produce(b"a")
    producer = confluent_kafka.Producer({"bootstrap.servers": server.brokers, "transactional.id": f"{topic.name}-open"})
    producer.init_transactions(PATIENCE)
    producer.begin_transaction()
    producer.produce(topic.name, b"open", partition=0)
    producer.flush(PATIENCE)
    source = topic.source(stop="latest")
    (split,) = source.splits()
    assert split.end == 1
    assert values(read_split(source, split)[0]) == [b"a"]
    with closing(topic.source().open(Split(split.id, 0), 0)) as reader:
        assert values(read_until(reader, lambda batch: batch.caught_up)[0]) == [b"a"]
        producer.commit_transaction(PATIENCE)
        assert values(read_until(reader, lambda batch: len(batch) > 0)[0]) == [b"open"]


def test_a_bounded_read_ends_behind_compacted_records(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers, cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01")
    for i in range(20):
        topic.produce(b"%d" % i, key=b"same")
    topic.produce(b"kept", key=b"other")

    def compacted() -> bool:
        time.sleep(0.15)
        topic.produce(b"new", key=b"same")  # rolls the segment, which makes the one before it ready for compaction
        return b"19" not in values(topic.seen_by_kafka_python())

    until(compacted)
    source = topic.source(stop="latest")
    (split,) = source.splits()
    found, batches = read_split(source, split)
    assert found[0][0] >= 20 and found == topic.seen_by_kafka_python()
    assert batches[-1].next_position == split.end
    inside = topic.source(stop={0: 10})
    (ends_in_gap,) = inside.splits()
    nothing, batches = read_split(inside, ends_in_gap)
    assert nothing == [] and batches[-1].next_position == 10


def test_tombstones_empty_payloads_and_payloads_with_newlines(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers)
    odd = [b"a", None, b"", b"two\nlines", None, b"\n", b"\xff\x00\n", b"z"]
    topic.produce(*odd)
    source = topic.source(stop="latest")
    found, batches = read_split(source, source.splits()[0])
    assert values(found) == odd
    assert not any(batch.newline_terminated for batch in batches if b"" in batch.payloads.to_pylist())


def test_a_payload_that_is_too_large_is_an_error_and_reading_goes_on(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers)
    topic.produce(b"a", b"y" * 3_000_000, b"b", b"y" * 2001)
    source = topic.source(stop="latest", max_bytes=2000)
    found, batches = read_split(source, source.splits()[0])
    assert [(position, value) for position, value, _ in found] == [(0, b"a"), (2, b"b")]
    errors = [error for batch in batches for error in batch.errors]
    assert [(e[0], e[1], e[3]) for e in errors] == [(1, "too_large", b"y" * 1024), (3, "too_large", b"y" * 1024)]
    assert "3000000" in errors[0][2]


def test_new_partitions_are_found_and_read_from_their_beginning(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers)
    topic.produce(b"old")
    source = topic.source(start="latest")
    (first,) = source.splits()
    assert first.start == 1
    topic.admin.create_partitions([admin_module.NewPartitions(topic.name, 2)])[topic.name].result(PATIENCE)
    until(lambda: len(topic.admin.list_topics(timeout=PATIENCE).topics[topic.name].partitions) == 2)
    topic.produce(b"new", partition=1)
    assert [split.start for split in source.splits()] == [1, 0]
    elsewhere = topic.source(start="latest")
    _, second = elsewhere.splits(known=[first.id])
    assert second.start == 0
    with closing(elsewhere.open(second, 0)) as reader:
        assert values(read_until(reader, lambda batch: len(batch) > 0)[0]) == [b"new"]


def test_records_deleted_before_they_were_read(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers)
    topic.produce(*(b"%d" % i for i in range(100)))
    (split,) = topic.source(stop="latest").splits()
    place = confluent_kafka.TopicPartition(topic.name, 0, 60)
    topic.admin.delete_records([place])[place].result(PATIENCE)
    with pytest.raises(SourceError, match="from offset 10 to 59 were deleted"):
        read_split(topic.source(stop="latest"), split, 10)
    found, batches = read_split(topic.source(stop="latest", on_data_loss="earliest"), split, 10)
    assert values(found) == [b"%d" % i for i in range(60, 100)]
    (error,) = [error for batch in batches for error in batch.errors]
    assert error[:2] == (10, "data_loss") and "10 to 59" in error[2]
    with pytest.raises(SourceError, match="ends at offset 100, but reading goes on at 500"):
        read_split(topic.source(on_data_loss="earliest"), Split(split.id, 0, 1000), 500)


def test_a_topic_that_does_not_exist_is_named_with_similar_ones(server: KafkaServer) -> None:
    topic = Topic(server.brokers)
    with pytest.raises(SourceError, match=f"no topic '{topic.name}x'; similar ones: .*{topic.name}"):
        topic.source(topic=f"{topic.name}x").splits()


def test_a_topic_that_is_deleted_while_it_is_read(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers)
    topic.produce(b"a")
    source = topic.source(client={"topic.metadata.propagation.max.ms": 100, "topic.metadata.refresh.interval.ms": 200})
    with closing(source.open(Split(f"{topic.name}-0", 0), 0)) as reader:
        read_until(reader, lambda batch: batch.caught_up)
        topic.admin.delete_topics([topic.name])[topic.name].result(PATIENCE)
        with pytest.raises(SourceError, match="cannot be read any more"):
            read_until(reader, lambda batch: False)


def test_broker_down_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_source, "START_SECONDS", 1.0)
    source = Kafka(KafkaOptions(brokers="127.0.0.1:1", topic="t"))
    with pytest.raises(SourceError, match=r"no answer from the Kafka brokers 127\.0\.0\.1:1 within 1 s .*refused") as raised:
        source.splits()
    assert "\n" not in str(raised.value)


def test_a_wrong_client_setting_is_named(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers)
    wrong = topic.source(client={"no.such.setting": 1})
    for attempt in (wrong.splits, lambda: wrong.open(Split(f"{topic.name}-0", 0), 0)):
        with pytest.raises(SourceError, match=r"no\.such\.setting"):
            attempt()


def test_a_broker_that_goes_away_and_comes_back(tmp_path: Path, path: str, capfd: pytest.CaptureFixture[str]) -> None:
    with KafkaServer(tmp_path, progress=False) as server:
        topic = Topic(server.brokers)
        topic.produce(b"before")
        with closing(topic.source().open(Split(f"{topic.name}-0", 0), 0)) as reader:
            assert values(read_until(reader, lambda batch: batch.caught_up)[0]) == [b"before"]
            server.stop()
            capfd.readouterr()
            stopped = time.monotonic()
            while time.monotonic() < stopped + 3.0:
                batch = reader.read(10, 1000, 0.05)
                assert not len(batch) and batch.next_position == 1
                assert batch.caught_up_at is None or batch.caught_up_at < stopped, "who is away confirms nothing"
            assert capfd.readouterr().err == ""
            server.start()
            topic.produce(b"after")
            assert values(read_until(reader, lambda batch: len(batch) > 0)[0]) == [b"after"]
            back = time.monotonic()
            read_until(reader, lambda batch: batch.caught_up and batch.caught_up_at > back)


def test_clients_that_bring_nothing_though_there_is_more_are_replaced(server: KafkaServer, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As librdkafka's do that lost their brokers for good (its issue 5301); two partitions, whose readers share such a client."""
    monkeypatch.setattr(kafka_source, "SILENT_SECONDS", 1.0)
    topic = Topic(server.brokers, partitions=2)
    source = topic.source()
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(source.open(split, 0))) for split in source.splits()]
        for number, reader in enumerate(readers):
            topic.produce(b"before", partition=number)
            read_until(reader, lambda batch: batch.next_position == 1 and batch.caught_up)
        for number, reader in enumerate(readers):
            monkeypatch.setattr(reader._client, "fetch", lambda _, timeout: time.sleep(timeout) or nothing())
            topic.produce(b"after", partition=number)
        for reader in readers:
            lame = reader._client
            assert values(read_until(reader, lambda batch: len(batch) > 0)[0]) == [b"after"]
            assert reader._client is not lame and (path == "plain" or reader._client._consumer is not lame._consumer)
            read_until(reader, lambda batch: batch.caught_up)


def test_a_client_that_has_no_answer_about_ends_is_replaced(server: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_ends, "PATIENCE_SECONDS", 1.0)
    topic = Topic(server.brokers)
    topic.produce(b"a")
    ends = kafka_ends.EndOffsets(topic.source()._options)
    until(lambda: ends.of(0)[0] == 1)
    lame = ends._client
    nobody = admin_module.AdminClient({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    monkeypatch.setattr(ends, "_client", nobody)
    topic.produce(b"b")
    until(lambda: ends.of(0)[0] == 2)
    assert ends._client not in (lame, nobody)


def test_positions_are_committed_for_lag_monitors_only(server: KafkaServer, path: str) -> None:
    topic = Topic(server.brokers)
    topic.produce(b"a", b"b", b"c")
    group = f"group-{topic.name}"
    source = topic.source(group=group)
    (split,) = source.splits()
    monitor = confluent_kafka.Consumer({"bootstrap.servers": server.brokers, "group.id": group, "log_level": 0})
    place = confluent_kafka.TopicPartition(topic.name, 0)
    with closing(source.open(split, 0)) as reader, closing(monitor):
        until(lambda: reader.read(10, 1000, 0.1) is not None and monitor.committed([place], PATIENCE)[0].offset == 3)
    with closing(source.open(split, 1)) as reader:
        assert values(read_until(reader, lambda batch: batch.caught_up)[0]) == [b"b", b"c"]


def test_an_unexpected_memory_layout_falls_back_to_the_plain_client(server: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("streamgauge.transforms.sources.kafka_kernels")
    topic = Topic(server.brokers)
    topic.produce(*(b"%d" % i for i in range(100)))
    source = topic.source(stop="latest")
    (split,) = source.splits()
    with closing(source.open(split, 0)) as reader:
        before, _ = read_until(reader, lambda batch: len(batch) > 0, 10)
        scan = kernels.scan
        monkeypatch.setattr(kernels, "scan", lambda pointers, partition, max_bytes: scan(pointers, partition + 1, max_bytes))
        after, _ = read_until(reader, lambda batch: batch.done)
        assert type(reader._client).__name__ == "PlainClient"
    assert values(before + after) == [b"%d" % i for i in range(100)]


def test_partitions_share_a_consumer_and_are_read_moved_and_given_up_alone(server: KafkaServer) -> None:
    native = pytest.importorskip("streamgauge.transforms.sources.kafka_native")
    topic = Topic(server.brokers, partitions=3)
    for partition in range(3):
        topic.produce(*(b"%d-%d" % (partition, i) for i in range(2_000)), partition=partition)
    expected = [[b"%d-%d" % (partition, i) for i in range(2_000)] for partition in range(3)]
    source = topic.source(stop="latest")
    first, second, third = source.splits()
    with closing(source.open(first, 0)) as one, closing(source.open(second, 1_500)) as two, closing(source.open(first, 0)) as again:
        assert one._client._consumer is two._client._consumer, "of two partitions"
        assert one._client._consumer is not again._client._consumer, "of one partition, read twice"
        head, _ = read_until(one, lambda batch: batch.next_position >= 100, 100)
        assert values(read_until(again, lambda batch: batch.done)[0]) == expected[0]
        for position in (700, 30):  # behind and before what is queued already
            with closing(source.open(third, position)) as other:
                begun, _ = read_until(other, lambda batch: len(batch) > 0, 10)
            assert values(begun) == expected[2][position : position + len(begun)]
        two._client.assign(0)
        two._position = 0
        assert values(read_until(two, lambda batch: batch.done)[0]) == expected[1]
        assert values(head + read_until(one, lambda batch: batch.done)[0]) == expected[0]
    assert not any(native._consumers.values()), "all are closed"


def test_a_topic_that_goes_away_is_told_to_each_reader_of_its_partitions(server: KafkaServer) -> None:
    topic = Topic(server.brokers, partitions=2)
    source = topic.source(client={"topic.metadata.propagation.max.ms": 100, "topic.metadata.refresh.interval.ms": 200})
    first, second = source.splits()
    with closing(source.open(first, 0)) as one, closing(source.open(second, 0)) as two:
        topic.admin.delete_topics([topic.name])[topic.name].result(PATIENCE)
        for reader in (one, two):
            with pytest.raises(SourceError, match=f"partition {topic.name}-[01] cannot be read any more"):
                read_until(reader, lambda batch: False)
