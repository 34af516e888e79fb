"""Kafka topics as a source.

A split is a partition, a position is an offset. Delivery: the partition is assigned at an explicit offset and read in
order; offsets committed to the broker are never used for resuming, so with positions kept in checkpoints every record is
processed exactly once. Records that the broker deleted before they were read are noticed (``on_data_loss``).
"""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from streamgauge.transforms.config import Config, user_error
from streamgauge.transforms.sources.base import RawBatch, SourceError, Split
from streamgauge.transforms.sources.kafka_client import Client, Failure, LayoutError, PlainClient, binary_array, codes, log, reason, require
from streamgauge.transforms.sources.kafka_ends import ASK_EVERY_SECONDS, EndOffsets, end_offsets

START_SECONDS = 30.0
"""How long a broker may take to answer when the job starts."""

SILENT_SECONDS, LONGEST_SILENCE_SECONDS = 10.0, 160.0
"""A client that brings nothing for so long, though its partition has more, is replaced: one of librdkafka's may lose its brokers for good
(docs/pain-points.md). Twice as long each time, since on a slow network one request may take its time."""

RESERVED = {
    "bootstrap.servers": "brokers", "group.id": "group", "auto.offset.reset": "start and on_data_loss", "enable.auto.commit": "group",
    "enable.auto.offset.store": "group", "enable.partition.eof": "nothing: it must be on",
}  # fmt: skip

QUEUE = "queued.max.messages.kbytes"
MAX_QUEUE_KB = 1 << 20
"""A batch is at most what a client has queued, and Arrow's binary arrays hold less than 2 GiB."""

TUNED = {
    # A partition's queue is bounded: 64 MB of payloads, or librdkafka's default of 100,000 messages. Larger ones cost
    # memory (1,000,000 messages: 300 MB more) and were not faster.
    QUEUE: 65_536,
    "fetch.queue.backoff.ms": 10,
    "max.partition.fetch.bytes": 8 << 20,
    "reconnect.backoff.max.ms": 1_000,
    "socket.keepalive.enable": True,
    "isolation.level": "read_committed",
    "client.id": "streamgauge",
}

Offsets = dict[int, int]


def _place(*words: str) -> Any:
    def parse(value: object) -> object:
        """One of the words, a dict of offsets, or an aware datetime where the words are those of ``start``."""
        if value in words or isinstance(value, dict):
            return value
        if "earliest" in words:
            try:
                moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
                if moment.tzinfo is not None:
                    return moment
            except ValueError:
                pass
        kinds = f"{', '.join(words)}{', an ISO 8601 time with its zone (2026-01-01T00:00:00Z)' if 'earliest' in words else ''}"
        raise user_error(f"expected {kinds} or a mapping of partition to offset; found {value!r}")

    return BeforeValidator(parse)


_OFFSETS_SCHEMA = {"type": "object", "patternProperties": {r"^\d+$": {"type": "integer"}}, "additionalProperties": False}


class KafkaOptions(Config):
    """A Kafka topic."""

    brokers: str = Field(min_length=1, description="Addresses to begin with, `host:port,host:port`.")
    topic: str = Field(min_length=1, description="Topic.")
    start: Annotated[
        str | datetime | Offsets,
        _place("earliest", "latest"),
        WithJsonSchema({"anyOf": [{"enum": ["earliest", "latest"]}, {"type": "string", "format": "date-time"}, _OFFSETS_SCHEMA]}),
    ] = Field(
        "earliest",
        description="Where a job without a checkpoint begins: `earliest`, `latest`, an ISO 8601 time (the broker's record times), or "
        "`{partition: offset}`, where partitions that are not named begin at the earliest offset. Partitions that appear later are read "
        "from their beginning.",
    )
    stop: Annotated[
        str | Offsets, _place("none", "latest"), WithJsonSchema({"anyOf": [{"enum": ["none", "latest"]}, _OFFSETS_SCHEMA]})
    ] = Field(
        "none",
        description="Where reading ends: `none`, `latest` (where each partition ends when the job starts), or `{partition: offset}` "
        "(the offset is not read any more; partitions that are not named end as with `latest`).",
    )
    on_data_loss: Literal["fail", "earliest"] = Field(
        "fail",
        description="When records were deleted before they were read: `fail`, or go on at the `earliest` one there is, with a dead letter "
        "`data_loss`.",
    )
    max_bytes: int = Field(16 << 20, gt=0, le=1 << 30, description="A larger payload becomes a dead letter with its first 1 kB.")
    group: str | None = Field(
        None,
        description="Consumer group to which positions are committed for lag monitors. They are never used for resuming. Without it: none.",
    )
    client: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="More librdkafka settings, such as `security.protocol`."
    )

    @model_validator(mode="after")
    def _no_reserved_settings(self) -> KafkaOptions:
        for key in self.client:
            if key in RESERVED:
                raise user_error(f"client: {key} is decided by {RESERVED[key]}")
        if float(self.client.get(QUEUE, 0)) > MAX_QUEUE_KB:
            raise user_error(f"client: {QUEUE} is {self.client[QUEUE]}, at most {MAX_QUEUE_KB} is possible (it is memory per partition)")
        return self

    def settings(self) -> dict[str, Any]:
        """librdkafka's configuration."""
        return {
            **TUNED, **self.client, "bootstrap.servers": self.brokers, "group.id": self.group or "streamgauge",
            "enable.auto.commit": False, "enable.auto.offset.store": False, "auto.offset.reset": "error", "enable.partition.eof": True,
        }  # fmt: skip


class Kafka:
    """Connector for one topic; see KafkaOptions."""

    Options: ClassVar[type[Config]] = KafkaOptions

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._listed: set[str] = set()
        self.name = f"kafka:{options.topic}"
        self.bounded = options.stop != "none"

    def splits(self, known: Collection[str] = ()) -> list[Split]:
        """A split per partition. A partition that is neither in ``known`` nor was listed before is new and read from its beginning.

        Raises SourceError when no broker answers within ``START_SECONDS`` or the topic does not exist.
        """
        client = PlainClient(self._options.settings())
        try:
            return self._splits(client, {*known, *self._listed})
        finally:
            client.close()

    def open(self, split: Split, position: int) -> KafkaReader:
        return KafkaReader(self._options, split, position)

    def _splits(self, client: PlainClient, earlier: set[str]) -> list[Split]:
        options, kafka = self._options, require()
        deadline = time.monotonic() + START_SECONDS
        try:
            topics = client.consumer.list_topics(timeout=START_SECONDS).topics
            if options.topic not in topics:
                raise SourceError(self._no_topic([name for name in topics if not name.startswith("__")]))
            partitions = sorted(topics[options.topic].partitions)
            for named in (options.start, options.stop):
                if isinstance(named, dict) and (wrong := sorted(set(named) - set(partitions))):
                    raise SourceError(f"topic {options.topic} has no partition {str(wrong)[1:-1]}; it has 0 to {len(partitions) - 1}")
            ranges = {p: client.watermarks(options.topic, p, max(1.0, deadline - time.monotonic())) for p in partitions}
            starts = {p: low for p, (low, _) in ranges.items()}
            if options.start == "latest":
                starts = {p: high for p, (_, high) in ranges.items()}
            elif isinstance(options.start, dict):
                starts |= options.start
            elif isinstance(options.start, datetime):
                moment = int(options.start.timestamp() * 1000)
                asked = [kafka.TopicPartition(options.topic, p, moment) for p in partitions]
                for found in client.consumer.offsets_for_times(asked, timeout=max(1.0, deadline - time.monotonic())):
                    starts[found.partition] = found.offset if found.offset >= 0 else ranges[found.partition][1]
        except kafka.KafkaException as error:
            raise SourceError(
                f"no answer from the Kafka brokers {options.brokers} within {START_SECONDS:.0f} s ({client.why() or reason(error)}); "
                f"check that they run, that the address is right and, if they need it, client: {{security.protocol: ...}}"
            ) from None
        ends = {p: high for p, (_, high) in ranges.items()} | (options.stop if isinstance(options.stop, dict) else {})
        found_splits = []
        for p in partitions:
            name = f"{options.topic}-{p}"
            new = bool(earlier) and name not in earlier
            start, end = ranges[p][0] if new else starts[p], ends[p] if self.bounded else None
            found_splits.append(Split(name, start, end if end is None else max(start, end)))
        self._listed.update(split.id for split in found_splits)
        return found_splits

    def _no_topic(self, names: list[str]) -> str:
        topic = self._options.topic
        close = difflib.get_close_matches(topic, names, n=3) or sorted(names)[:10]
        there = f"similar ones: {', '.join(close)}" if close else "it has no topics"
        return f"the Kafka at {self._options.brokers} has no topic '{topic}'; {there}"


class KafkaReader:
    """Reads one partition."""

    def __init__(self, options: KafkaOptions, split: Split, position: int) -> None:
        self._options, self._split, self._position = options, split, position
        self._partition = int(split.id.rpartition("-")[2])
        self._end = math.inf if split.end is None else split.end
        self._confirmed = (-1, -math.inf)  # a position the broker said is the end, and when
        self._drained = time.monotonic()  # when all that had come by then was fetched
        self._ends: EndOffsets | None = None
        self._stands = (position, time.monotonic())  # where it does not go on although there is more, and since when
        self._patience = SILENT_SECONDS
        self._committed = (position, time.monotonic())
        self._bytes_per_record = 0.0
        self._client = open_client(options, self._partition, position) if position < self._end else None

    def read(self, max_records: int, max_bytes: int, timeout: float) -> RawBatch:
        """See Reader. While the broker is away batches are empty and not caught up.

        Raises SourceError when the partition or its records are gone.
        """
        if self._client is None:
            return RawBatch(binary_array(NO_BYTES, NO_OFFSETS, None), NO_POSITIONS, self._position, NO_POSITIONS, caught_up=True, done=True)
        options = self._options
        wanted = max_records if not self._bytes_per_record else max(1, min(max_records, int(max_bytes / self._bytes_per_record)))
        before = time.monotonic()
        try:
            got = self._client.fetch(wanted, timeout)
        except LayoutError as error:
            log.warning("going on with the plain Kafka client: %s", error)
            self._client.close()
            self._client = PlainClient.for_partition(options.settings(), options.topic, self._partition, self._position, options.max_bytes)
            got = self._client.fetch(wanted, timeout)
        errors: list[tuple[int, str, str, bytes | None]] = []
        for failure in got.failures:
            self._handle(failure, errors)
        for offset, size, head in got.oversized:
            self._position = max(self._position, offset + 1)
            message = f"a payload of {size} bytes, max_bytes is {options.max_bytes}; the payload here is its first {len(head)} bytes"
            errors.append((offset, "too_large", message, head))
        if len(got.positions):
            self._bytes_per_record = len(got.data) / len(got.positions)
            got.trim(int(np.searchsorted(got.positions, self._split.end)) if self._split.end is not None else len(got.positions))
        if len(got.positions):
            self._position = max(self._position, int(got.positions[-1]) + 1)
        if got.end is not None:
            # The end lies behind transaction markers and compacted records, which are never delivered.
            self._position = max(self._position, got.end)
            self._confirmed = (self._position, self._drained)
        if got.taken < wanted:
            self._drained = before
        if got.beyond(self._end):
            self._position = max(self._position, int(self._end))
        done = self._position >= self._end
        self._commit(idle=not len(got.positions))
        ended = self._confirmed_end(empty=not len(got.positions))
        return RawBatch(
            binary_array(got.data, got.offsets, got.valid), got.positions, int(min(self._position, self._end)), got.timestamps,
            caught_up=done or ended is not None, caught_up_at=ended, done=done, newline_terminated=got.newline_terminated,
            errors=tuple(e for e in errors if e[0] < self._end),
        )  # fmt: skip

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _confirmed_end(self, *, empty: bool) -> float | None:
        """When the broker last said that the position is the end, None when it has not. While nothing comes it is asked again and again."""
        position, when = self._confirmed
        when = when if position == self._position else -math.inf
        if empty and time.monotonic() - when >= ASK_EVERY_SECONDS:
            self._ends = self._ends or end_offsets(self._options)
            end, asked = self._ends.of(self._partition)
            if end == self._position and asked > when:
                self._confirmed, when = (end, asked), asked
            self._watch(asked, more=end > self._position)
        return when if when > -math.inf else None

    def _watch(self, asked: float, *, more: bool) -> None:
        """Replaces a client that brings nothing. What the broker said when it was ``asked`` counts: while it is away nothing is replaced."""
        position, since = self._stands
        if not more or position != self._position:
            self._stands = (self._position, time.monotonic())
        elif asked - since > self._patience:
            log.warning("nothing came from %s for %.0f s, though there is more: reading goes on with a new client", self._split.id, self._patience)
            assert self._client is not None
            self._client.retire()
            self._client = open_client(self._options, self._partition, self._position)
            self._stands, self._patience = (self._position, time.monotonic()), min(2 * self._patience, LONGEST_SILENCE_SECONDS)

    def _handle(self, failure: Failure, errors: list[tuple[int, str, str, bytes | None]]) -> None:
        kind = codes().get(failure.code, "passing")
        if kind == "lost":
            self._lost(errors)
        elif kind == "corrupt":
            errors.append((failure.offset, "corrupt", f"the broker's records cannot be decoded: {failure.message}", None))
        elif kind == "gone":
            raise SourceError(f"partition {self._split.id} cannot be read any more: {failure.message}; does it exist, may it be read?")
        else:
            self._confirmed = (-1, -math.inf)

    def _lost(self, errors: list[tuple[int, str, str, bytes | None]]) -> None:
        """The broker does not have the position: its records were deleted, or the topic is another one."""
        assert self._client is not None
        try:
            low, high = self._client.watermarks(self._options.topic, self._partition, START_SECONDS)
        except require().KafkaException:
            low = high = self._position
        if self._position > high:
            raise SourceError(
                f"partition {self._split.id} ends at offset {high}, but reading goes on at {self._position}: "
                "the topic was truncated or made anew; start the job anew with --fresh"
            )
        if self._position < low:
            lost = f"the records from offset {self._position} to {low - 1} were deleted before they were read"
            if self._options.on_data_loss == "fail":
                raise SourceError(f"partition {self._split.id}: {lost} (retention); set on_data_loss: earliest to go on without them")
            errors.append((self._position, "data_loss", lost, None))
            self._position = low
        self._client.assign(self._position)

    def _commit(self, *, idle: bool) -> None:
        """For lag monitors: at most once a second, or when there is nothing else to do."""
        position, when = self._committed
        now = time.monotonic()
        if self._options.group and self._client and position != self._position and (idle or now - when > 1.0):
            self._client.commit(self._position)
            self._committed = (self._position, now)


NO_BYTES, NO_OFFSETS, NO_POSITIONS = np.empty(0, np.uint8), np.zeros(1, np.int32), np.empty(0, np.int64)


def open_client(options: KafkaOptions, partition: int, position: int) -> Client:
    """The fast client where it can be had, else the plain one. Raises SourceError when the settings are wrong."""
    from streamgauge.transforms.sources import kafka_native

    require()
    made = kafka_native.open_native if kafka_native.available() else PlainClient.for_partition
    return cast(Client, made(options.settings(), options.topic, partition, position, options.max_bytes))
