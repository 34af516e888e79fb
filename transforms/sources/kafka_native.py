"""Kafka without a Python object per message: librdkafka's C API, and a kernel that copies payloads into one buffer.

The partitions that a process reads share one consumer, so that a broker gets one request for all of them and the process has librdkafka's threads
once; each partition has its own of librdkafka's queues, and is read, moved and given up alone. Where the library, its version or Numba is not as
expected the plain client is used; ``STREAMGAUGE_KAFKA_NATIVE=off`` asks for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Mapping
from ctypes import byref, c_int64, c_void_p
from typing import Any

import numpy as np

from streamgauge.transforms.sources.base import SourceError
from streamgauge.transforms.sources.kafka_client import HEAD_BYTES, Failure, Fetched, LayoutError, require
from streamgauge.transforms.sources.kafka_library import (
    CONF_OK,
    CONSUMER,
    ERROR_CALLBACK,
    ERROR_TEXT_BYTES,
    PARTITION_EOF,
    Message,
    loaded,
)

SWITCH = "STREAMGAUGE_KAFKA_NATIVE"
_AT_ONCE = 16
"""Messages that are taken from a consumer's own queue in one call: only errors come there."""


def available() -> bool:
    """Whether the fast client can be used here."""
    return os.environ.get(SWITCH, "auto") != "off" and loaded() is not None


def open_native(settings: Mapping[str, Any], topic: str, partition: int, position: int, max_bytes: int) -> NativeClient:
    """Raises SourceError when librdkafka does not accept a setting."""
    return NativeClient(settings, topic, partition, position, max_bytes)


class _Consumer:
    """A consumer of partitions of one topic, whose messages come in a queue for each partition, and whose errors come in its own."""

    def __init__(self, settings: Mapping[str, Any], topic: str) -> None:
        library = loaded()
        assert library is not None, "ask available() first"
        self.lib, self.kernels = library
        self._topic = topic.encode()
        self._failures: dict[int, list[Failure]] = {}
        self._serving = threading.Lock()
        self._on_error = ERROR_CALLBACK(self._failed)  # librdkafka keeps the pointer: so must we the object
        self._handle = self._new(settings)
        self.lib.rd_kafka_poll_set_consumer(self._handle)
        self._queue = self.lib.rd_kafka_queue_get_consumer(self._handle)
        self._pointers = np.empty(_AT_ONCE, np.uint64)

    def _new(self, settings: Mapping[str, Any]) -> int:
        lib, text = self.lib, ctypes.create_string_buffer(ERROR_TEXT_BYTES)
        conf = lib.rd_kafka_conf_new()
        lib.rd_kafka_conf_set_log_cb(conf, None)  # nothing on standard error; errors come through the callback
        lib.rd_kafka_conf_set_error_cb(conf, self._on_error)
        handle = None
        for key, value in settings.items():
            written = str(value).lower() if isinstance(value, bool) else str(value)
            if lib.rd_kafka_conf_set(conf, key.encode(), written.encode(), text, ERROR_TEXT_BYTES) != CONF_OK:
                break
        else:
            handle = lib.rd_kafka_new(CONSUMER, conf, text, ERROR_TEXT_BYTES)
        if not handle:
            lib.rd_kafka_conf_destroy(conf)
            raise SourceError(f"kafka: librdkafka does not take these client settings: {text.value.decode(errors='replace')}")
        return int(handle)

    def __contains__(self, partition: int) -> bool:
        return partition in self._failures

    @property
    def is_idle(self) -> bool:
        return not self._failures

    def add(self, partition: int) -> None:
        """Before the partition is opened."""
        self._failures[partition] = []

    def remove(self, partition: int) -> None:
        del self._failures[partition]

    def open(self, partition: int, position: int) -> int:
        """The queue of the partition. Raises SourceError."""
        queue = self.lib.rd_kafka_queue_get_partition(self._handle, self._topic, partition)
        # Before the partition is assigned: what comes is never in the consumer's own queue.
        self.lib.rd_kafka_queue_forward(queue, None)
        self._change(self.lib.rd_kafka_incremental_assign, partition, position)
        return int(queue)

    def move(self, partition: int, position: int) -> None:
        """Raises SourceError."""
        self._change(self.lib.rd_kafka_incremental_unassign, partition, position)
        self._change(self.lib.rd_kafka_incremental_assign, partition, position)

    def leave(self, partition: int, queue: int) -> None:
        with contextlib.suppress(SourceError):  # a partition of which librdkafka knows nothing any more
            self._change(self.lib.rd_kafka_incremental_unassign, partition, 0)
        self.lib.rd_kafka_queue_destroy(queue)

    def _change(self, function: Any, partition: int, position: int) -> None:
        with self._place(partition, position) as places:
            error = function(self._handle, places)
        if error:
            words = self.lib.rd_kafka_error_string(error).decode(errors="replace")
            self.lib.rd_kafka_error_destroy(error)
            raise SourceError(f"kafka: cannot read {self._topic.decode()}-{partition}: {words}")

    @contextlib.contextmanager
    def _place(self, partition: int, position: int) -> Any:
        """A list with a partition at an offset."""
        places = self.lib.rd_kafka_topic_partition_list_new(1)
        try:
            self.lib.rd_kafka_topic_partition_list_add(places, self._topic, partition).contents.offset = position
            yield places
        finally:
            self.lib.rd_kafka_topic_partition_list_destroy(places)

    def commit(self, partition: int, position: int) -> None:
        with self._place(partition, position) as places:
            self.lib.rd_kafka_commit(self._handle, places, 1)

    def watermarks(self, topic: str, partition: int, timeout: float) -> tuple[int, int]:
        low, high = c_int64(), c_int64()
        where = (self._handle, topic.encode(), partition)
        code = self.lib.rd_kafka_query_watermark_offsets(*where, byref(low), byref(high), _milliseconds(timeout))
        if code:
            raise require().KafkaException(require().KafkaError(code))
        return low.value, high.value

    def failures(self, partition: int) -> list[Failure]:
        """Errors of the whole consumer and of the partition since the last call. Raises LayoutError."""
        with self._serving:
            count = consume(self.lib, self._queue, self._pointers, 0, _AT_ONCE, 0)
            for pointer in self._pointers[:count].tolist():
                message = Message.from_address(pointer)
                failure = None if message.err == 0 else self.failure(message)
                concerned = self._failures.get(message.partition)
                self.lib.rd_kafka_message_destroy(pointer)
                if failure is None:
                    raise LayoutError("a record came in the consumer's own queue")
                self._tell(failure, concerned)
            found, self._failures[partition] = self._failures[partition], []
            return found

    def failure(self, message: Message) -> Failure:
        """What a message with an error says."""
        text = ctypes.string_at(message.payload, message.len).decode(errors="replace") if message.payload else ""
        return Failure(message.err, text or str(self.lib.rd_kafka_err2str(message.err).decode()), message.offset)

    def _failed(self, handle: int, code: int, text: bytes, opaque: int) -> None:
        """Errors of the whole client (brokers down, authentication); called from within our calls."""
        self._tell(Failure(code, (text or b"").decode(errors="replace"), -1))

    def _tell(self, failure: Failure, concerned: list[Failure] | None = None) -> None:
        """To one partition, or to all. Others may come and go meanwhile."""
        for failures in list(self._failures.values()) if concerned is None else [concerned]:
            failures.append(failure)

    def close(self) -> None:
        self.lib.rd_kafka_queue_destroy(self._queue)
        self.lib.rd_kafka_consumer_close(self._handle)
        self.lib.rd_kafka_destroy(self._handle)


_Key = tuple[str, tuple[tuple[str, str], ...]]
_consumers: dict[_Key, list[_Consumer]] = {}
_lock = threading.Lock()


def _join(key: _Key, settings: Mapping[str, Any], topic: str, partition: int) -> _Consumer:
    """A consumer with these settings that does not read the partition yet: two readers of one partition, as after a failure, have two."""
    with _lock:
        some = _consumers.setdefault(key, [])
        found = next((consumer for consumer in some if partition not in consumer), None)
        if found is None:
            found = _Consumer(settings, topic)
            some.append(found)
        found.add(partition)
        return found


def _part(key: _Key, consumer: _Consumer, partition: int) -> None:
    """The last one closes the consumer."""
    with _lock:
        consumer.remove(partition)
        last = consumer.is_idle
        if last:
            _withdraw(key, consumer)
    if last:  # not with the lock: it waits for the broker
        consumer.close()


def _withdraw(key: _Key, consumer: _Consumer) -> None:
    """Nobody joins the consumer any more. With the lock."""
    if consumer in _consumers[key]:
        _consumers[key].remove(consumer)


class NativeClient:
    """Reads one partition through librdkafka's C API."""

    def __init__(self, settings: Mapping[str, Any], topic: str, partition: int, position: int, max_bytes: int) -> None:
        self._partition, self._max_bytes = partition, max_bytes
        self._key = (topic, tuple(sorted((name, str(value)) for name, value in settings.items())))
        self._consumer = _join(self._key, settings, topic, partition)
        try:
            self._queue = self._consumer.open(partition, position)
        except BaseException:
            _part(self._key, self._consumer, partition)
            raise
        self._pointers = np.empty(0, np.uint64)
        lib, self._kernels = self._consumer.lib, self._consumer.kernels
        self._functions = tuple(ctypes.cast(function, c_void_p).value or 0 for function in (lib.rd_kafka_message_timestamp, lib.rd_kafka_message_destroy))

    def assign(self, position: int) -> None:
        self._consumer.move(self._partition, position)

    def commit(self, position: int) -> None:
        self._consumer.commit(self._partition, position)

    def watermarks(self, topic: str, partition: int, timeout: float) -> tuple[int, int]:
        return self._consumer.watermarks(topic, partition, timeout)

    def fetch(self, max_records: int, timeout: float) -> Fetched:
        if len(self._pointers) < max_records:
            self._pointers = np.empty(max_records, np.uint64)
        failures = self._consumer.failures(self._partition)
        lib, queue, pointers = self._consumer.lib, self._queue, self._pointers
        # A batch call waits until it is full or the time is over: so first what is there, and wait for one message only.
        count = consume(lib, queue, pointers, 0, max_records, 0) or consume(lib, queue, pointers, 0, 1, timeout)
        if count == 1 < max_records:
            count += consume(lib, queue, pointers, 1, max_records - 1, 0)
        return self._fetched(pointers[:count], failures)

    def _fetched(self, pointers: np.ndarray[Any, np.dtype[np.uint64]], failures: list[Failure]) -> Fetched:
        """Copies the messages and gives them back to librdkafka."""
        kinds, last = self._kernels.scan(pointers, self._partition, self._max_bytes)
        oversized, end = [], None
        for i in np.flatnonzero(kinds >= self._kernels.TOO_LARGE):
            message = Message.from_address(int(pointers[i]))
            if kinds[i] == self._kernels.TOO_LARGE:
                oversized.append((message.offset, message.len, ctypes.string_at(message.payload, min(message.len, HEAD_BYTES))))
            elif kinds[i] == self._kernels.STRANGE:
                found = f"a message of another partition ({message.partition}) or with an impossible offset ({message.offset})"
                for pointer in pointers.tolist():
                    self._consumer.lib.rd_kafka_message_destroy(pointer)
                raise LayoutError(found)
            elif message.err == PARTITION_EOF:
                end = message.offset if i > last else None
            else:
                failures.append(self._consumer.failure(message))
        largest = int(Message.from_address(int(pointers[last])).offset) if last >= 0 else -1
        data, offsets, valid, positions, timestamps, lines = self._kernels.copy(pointers, kinds, *self._functions)
        if not lines:
            data, offsets = _without_newlines(data, offsets, valid)
        return Fetched(data, offsets, None if valid.all() else valid, positions, timestamps, lines, end, oversized, failures, largest, len(pointers))

    def close(self) -> None:
        if self._queue:
            self._consumer.leave(self._partition, self._queue)
            self._queue = 0
            _part(self._key, self._consumer, self._partition)

    def retire(self) -> None:
        with _lock:
            _withdraw(self._key, self._consumer)
        self.close()


def consume(lib: Any, queue: int, pointers: np.ndarray[Any, np.dtype[np.uint64]], begin: int, count: int, timeout: float) -> int:
    """Takes up to ``count`` messages from a queue; their addresses go to ``pointers[begin:]``. How many there were."""
    place = pointers.ctypes.data + begin * pointers.itemsize
    return max(0, int(lib.rd_kafka_consume_batch_queue(queue, _milliseconds(timeout), place, count)))


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _without_newlines(data: Any, offsets: Any, valid: Any) -> tuple[Any, Any]:
    """Takes the newline behind each payload away again, for payloads that are not one line each."""
    keep = np.ones(len(data), bool)
    keep[offsets[1:][valid] - 1] = False
    return data[keep], (offsets - np.concatenate(([0], np.cumsum(valid)))).astype(np.int32)
