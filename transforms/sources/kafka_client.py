"""What the Kafka reader needs of a client, and the plain one: confluent-kafka's Consumer, a Python object per message."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamgauge.transforms.sources.base import SourceError

HEAD_BYTES = 1024
"""How much of a payload that is too large is kept for its dead letter."""

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())


class LayoutError(Exception):
    """librdkafka's messages in memory do not look as they should: only the plain client can be used."""


@dataclass(frozen=True)
class Failure:
    """An error that came in the place of a record: librdkafka's code, its words, and an offset where it has one."""

    code: int
    message: str
    offset: int


@dataclass
class Fetched:
    """Records in order, with payloads back to back.

    Attributes:
        data, offsets: payload i is ``data[offsets[i]:offsets[i + 1]]``.
        valid: False for a record without a payload; None when all have one.
        positions, timestamps: int64, offset and microseconds since the epoch (-1 when unknown).
        end: the end of the partition, when the broker said that it was reached after these records.
        oversized: offset, size and head of each payload over the limit.
        last: the largest offset of anything delivered, -1 without one.
        taken: messages that were taken, of whatever kind; fewer than was asked for: there were no more.
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int32]
    valid: npt.NDArray[np.bool_] | None
    positions: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.int64]
    newline_terminated: bool
    end: int | None = None
    oversized: list[tuple[int, int, bytes]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    last: int = -1
    taken: int = 0

    def trim(self, count: int) -> None:
        """Keeps the first ``count`` records."""
        if count < len(self.positions):
            self.positions, self.timestamps = self.positions[:count], self.timestamps[:count]
            self.offsets = self.offsets[: count + 1]
            self.data = self.data[: self.offsets[-1]]
            self.valid = None if self.valid is None else self.valid[:count]

    def beyond(self, end: float) -> bool:
        """Whether something at or after ``end`` came, so that nothing before it will."""
        return self.last >= end


class Client(Protocol):
    """A consumer of one partition. Any failure to talk to the broker passes; records follow when it is back."""

    def fetch(self, max_records: int, timeout: float) -> Fetched:
        """What is there, at most ``max_records``; waits up to ``timeout`` seconds when there is nothing. Raises LayoutError."""

    def assign(self, position: int) -> None: ...
    def commit(self, position: int) -> None:
        """Asynchronous; a failure does no harm."""

    def watermarks(self, topic: str, partition: int, timeout: float) -> tuple[int, int]:
        """First offset and end offset, from the broker. Raises KafkaException."""

    def close(self) -> None: ...
    def retire(self) -> None:
        """Closes it; a connection that others share with it is given to no new client."""


def binary_array(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int32], valid: npt.NDArray[np.bool_] | None) -> pa.BinaryArray:
    """A pa.binary() array over the given memory."""
    bitmap = None if valid is None or valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [bitmap, pa.py_buffer(offsets), pa.py_buffer(data)])


def require() -> Any:
    """The module confluent_kafka. Raises SourceError when it is not installed."""
    try:
        import confluent_kafka
    except ImportError:
        raise SourceError("reading Kafka needs the package confluent-kafka; run: pip install 'streamgauge[kafka]'") from None
    return confluent_kafka


@lru_cache(maxsize=1)
def codes() -> Mapping[int, str]:
    """What librdkafka's error codes mean for a reader; codes that are not here pass by themselves."""
    error = require().KafkaError
    return {
        error._PARTITION_EOF: "end",
        error._AUTO_OFFSET_RESET: "lost", error.OFFSET_OUT_OF_RANGE: "lost",
        error._BAD_MSG: "corrupt", error._BAD_COMPRESSION: "corrupt", error.INVALID_MSG: "corrupt",
        error.UNKNOWN_TOPIC_OR_PART: "gone", error._UNKNOWN_TOPIC: "gone", error._UNKNOWN_PARTITION: "gone",
        error.TOPIC_AUTHORIZATION_FAILED: "gone", error._FATAL: "gone",
    }  # fmt: skip


def reason(error: Exception) -> str:
    """The words of a KafkaException."""
    inner = error.args[0] if error.args else error
    return inner.str() if hasattr(inner, "str") else str(inner)


class PlainClient:
    """confluent-kafka's Consumer."""

    def __init__(self, settings: Mapping[str, Any], topic: str = "", partition: int = 0, max_bytes: int = 0) -> None:
        """Raises SourceError when librdkafka does not accept a setting."""
        self._kafka = require()
        self._topic, self._partition, self._max_bytes = topic, partition, max_bytes
        self._failures: list[Failure] = []
        try:
            self.consumer = self._kafka.Consumer({**settings, "error_cb": self._failed}, logger=log)
        except self._kafka.KafkaException as error:
            raise SourceError(f"kafka: librdkafka does not take these client settings: {reason(error)}") from None

    @classmethod
    def for_partition(cls, settings: Mapping[str, Any], topic: str, partition: int, position: int, max_bytes: int) -> PlainClient:
        client = cls(settings, topic, partition, max_bytes)
        client.assign(position)
        return client

    def _failed(self, error: Any) -> None:
        """Errors of the whole client; called from within our calls."""
        self._failures.append(Failure(error.code(), error.str(), -1))

    def why(self) -> str:
        """What the client says of its last attempt to reach a broker, empty when it says nothing."""
        self.consumer.poll(0.1)
        told = [failure.message for failure in self._failures if failure.code != self._kafka.KafkaError._ALL_BROKERS_DOWN]
        return told[-1] if told else ""

    def assign(self, position: int) -> None:
        self.consumer.assign([self._kafka.TopicPartition(self._topic, self._partition, position)])

    def commit(self, position: int) -> None:
        try:
            self.consumer.commit(offsets=[self._kafka.TopicPartition(self._topic, self._partition, position)], asynchronous=True)
        except self._kafka.KafkaException as error:
            log.info("commit failed: %s", reason(error))

    def watermarks(self, topic: str, partition: int, timeout: float) -> tuple[int, int]:
        low, high = self.consumer.get_watermark_offsets(self._kafka.TopicPartition(topic, partition), timeout=timeout)
        return low, high

    def fetch(self, max_records: int, timeout: float) -> Fetched:
        # consume() waits until the batch is full or the time is over: so first what is there, and wait for one only.
        messages = self.consumer.consume(max_records, 0) or self.consumer.consume(1, timeout)
        if len(messages) == 1 < max_records:
            messages += self.consumer.consume(max_records - 1, 0)
        return self._fetched(messages)

    def _fetched(self, messages: list[Any]) -> Fetched:
        records, oversized, end, last = [], [], None, -1
        failures, self._failures = self._failures, []
        for message in messages:
            error = message.error()
            if error is None:
                end, last = None, message.offset()
                value = message.value()
                if value is not None and len(value) > self._max_bytes:
                    oversized.append((last, len(value), value[:HEAD_BYTES]))
                else:
                    records.append(message)
            elif error.code() == self._kafka.KafkaError._PARTITION_EOF:
                end = message.offset()
            else:
                failures.append(Failure(error.code(), error.str(), message.offset()))
        values = [message.value() for message in records]
        stamps = np.fromiter((message.timestamp()[1] for message in records), np.int64, len(records))
        return Fetched(
            *_joined(values), np.fromiter((message.offset() for message in records), np.int64, len(records)),
            np.where(stamps >= 0, stamps * 1000, -1), _one_line_each(values), end, oversized, failures, last, len(messages),
        )  # fmt: skip

    def close(self) -> None:
        self.consumer.close()

    def retire(self) -> None:
        self.close()


def _one_line_each(values: list[bytes | None]) -> bool:
    """Whether every payload that is there is one line that is not empty."""
    return all(value is None or (value and b"\n" not in value) for value in values)


def _joined(values: list[bytes | None]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], npt.NDArray[np.bool_] | None]:
    """Payloads back to back; each with a newline behind it when that leaves one line per payload."""
    there = [v for v in values if v is not None]
    lines = _one_line_each(values)
    data = b"\n".join([*there, b""]) if lines else b"".join(there)
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([0 if v is None else len(v) + lines for v in values], out=offsets[1:])
    valid = None if len(there) == len(values) else np.array([v is not None for v in values])
    return np.frombuffer(data, np.uint8), offsets, valid
