"""Kafka without a Python object per message: librdkafka's C API, and a kernel that copies payloads into one buffer.

The library is the one that confluent-kafka's wheel carries. Only documented functions are called, and of the structs only
the public ``rd_kafka_message_t`` is read (librdkafka's ``rdkafka.h``). Where the library, its version or Numba is not as expected
the plain client is used; ``STREAMGAUGE_KAFKA_NATIVE=off`` asks for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
from collections.abc import Mapping
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_ssize_t, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from streamgauge.transforms.sources.base import SourceError
from streamgauge.transforms.sources.kafka_client import HEAD_BYTES, Failure, Fetched, LayoutError, require

log = logging.getLogger(__name__)

SWITCH = "STREAMGAUGE_KAFKA_NATIVE"
VERSIONS = (0x01090000, 0x03000000)
"""librdkafka versions whose rd_kafka_message_t and functions are those used here: from, and up to but without."""

PARTITION_EOF = -191
CONSUMER, CONF_OK, ERROR_TEXT_BYTES = 1, 0, 512

_ERROR_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p, c_void_p)


class _Message(ctypes.Structure):
    """rd_kafka_message_t. The kernel reads the same fields by their offsets in 8-byte words."""

    _fields_ = (
        ("err", c_int), ("rkt", c_void_p), ("partition", c_int32), ("payload", c_void_p), ("len", c_size_t),
        ("key", c_void_p), ("key_len", c_size_t), ("offset", c_int64), ("_private", c_void_p),
    )  # fmt: skip


class _TopicPartition(ctypes.Structure):
    """rd_kafka_topic_partition_t; only the offset is set."""

    _fields_ = (
        ("topic", c_char_p), ("partition", c_int32), ("offset", c_int64), ("metadata", c_void_p), ("metadata_size", c_size_t),
        ("opaque", c_void_p), ("err", c_int), ("_private", c_void_p),
    )  # fmt: skip


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "rd_kafka_version": (c_int, []),
    "rd_kafka_conf_new": (c_void_p, []),
    "rd_kafka_conf_destroy": (None, [c_void_p]),
    "rd_kafka_conf_set": (c_int, [c_void_p, c_char_p, c_char_p, c_char_p, c_size_t]),
    "rd_kafka_conf_set_log_cb": (None, [c_void_p, c_void_p]),
    "rd_kafka_conf_set_error_cb": (None, [c_void_p, _ERROR_CALLBACK]),
    "rd_kafka_new": (c_void_p, [c_int, c_void_p, c_char_p, c_size_t]),
    "rd_kafka_poll_set_consumer": (c_int, [c_void_p]),
    "rd_kafka_queue_get_consumer": (c_void_p, [c_void_p]),
    "rd_kafka_queue_destroy": (None, [c_void_p]),
    "rd_kafka_topic_partition_list_new": (POINTER(c_int), [c_int]),
    "rd_kafka_topic_partition_list_add": (POINTER(_TopicPartition), [c_void_p, c_char_p, c_int32]),
    "rd_kafka_topic_partition_list_destroy": (None, [c_void_p]),
    "rd_kafka_assign": (c_int, [c_void_p, c_void_p]),
    "rd_kafka_commit": (c_int, [c_void_p, c_void_p, c_int]),
    "rd_kafka_query_watermark_offsets": (c_int, [c_void_p, c_char_p, c_int32, POINTER(c_int64), POINTER(c_int64), c_int]),
    "rd_kafka_consume_batch_queue": (c_ssize_t, [c_void_p, c_int, c_void_p, c_size_t]),
    "rd_kafka_message_timestamp": (c_int64, [c_void_p, c_void_p]),
    "rd_kafka_message_destroy": (None, [c_void_p]),
    "rd_kafka_err2str": (c_char_p, [c_int]),
    "rd_kafka_consumer_close": (c_int, [c_void_p]),
    "rd_kafka_destroy": (None, [c_void_p]),
}


@lru_cache(maxsize=1)
def _loaded() -> tuple[Any, Any] | None:
    """The library with its functions described and the kernels, or None with the reason in the log."""
    try:
        library = ctypes.CDLL(str(_library_path()))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        version = library.rd_kafka_version()
        if not VERSIONS[0] <= version < VERSIONS[1] or version != require().libversion()[1]:
            raise OSError(f"librdkafka {version:#x} is not one of those known")
        from streamgauge.transforms.sources import kafka_kernels
    except (OSError, AttributeError, ImportError, RuntimeError) as error:
        log.warning("the fast Kafka client cannot be used, the plain one is: %s", error)
        return None
    return library, kafka_kernels


def _library_path() -> Path:
    """Where wheels put the libraries they carry: beside the package on Linux, inside it on macOS. Raises OSError."""
    spec = importlib.util.find_spec("confluent_kafka")
    package = Path(str(spec.origin)).parent if spec else Path()
    found = [*package.parent.glob("confluent_kafka.libs/librdkafka*.so*"), *package.glob(".dylibs/librdkafka*.dylib")]
    if len(found) != 1:
        raise OSError(f"confluent-kafka carries {len(found)} librdkafka, expected one")
    return found[0]


def available() -> bool:
    """Whether the fast client can be used here."""
    return os.environ.get(SWITCH, "auto") != "off" and _loaded() is not None


def open_native(settings: Mapping[str, Any], topic: str, partition: int, position: int, max_bytes: int) -> NativeClient:
    """Raises SourceError when librdkafka does not accept a setting."""
    return NativeClient(settings, topic, partition, position, max_bytes)


class NativeClient:
    """A consumer of one partition through librdkafka's C API."""

    def __init__(self, settings: Mapping[str, Any], topic: str, partition: int, position: int, max_bytes: int) -> None:
        loaded = _loaded()
        assert loaded is not None, "ask available() first"
        self._lib, self._kernels = loaded
        self._topic, self._partition, self._max_bytes = topic, partition, max_bytes
        self._failures: list[Failure] = []
        self._on_error = _ERROR_CALLBACK(self._failed)  # librdkafka keeps the pointer: so must we the object
        self._handle = self._new(settings)
        self._lib.rd_kafka_poll_set_consumer(self._handle)
        self._queue = self._lib.rd_kafka_queue_get_consumer(self._handle)
        self._pointers = np.empty(0, np.uint64)
        used = (self._lib.rd_kafka_message_timestamp, self._lib.rd_kafka_message_destroy)
        self._functions = tuple(ctypes.cast(function, c_void_p).value or 0 for function in used)
        self.assign(position)

    def _new(self, settings: Mapping[str, Any]) -> int:
        lib, text = self._lib, ctypes.create_string_buffer(ERROR_TEXT_BYTES)
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

    def _failed(self, handle: int, code: int, text: bytes, opaque: int) -> None:
        """Errors of the whole client (brokers down, authentication); called from within our calls."""
        self._failures.append(Failure(code, (text or b"").decode(errors="replace"), -1))

    @contextlib.contextmanager
    def _place(self, position: int) -> Any:
        """A list with this partition at an offset."""
        places = self._lib.rd_kafka_topic_partition_list_new(1)
        try:
            self._lib.rd_kafka_topic_partition_list_add(places, self._topic.encode(), self._partition).contents.offset = position
            yield places
        finally:
            self._lib.rd_kafka_topic_partition_list_destroy(places)

    def assign(self, position: int) -> None:
        with self._place(position) as places:
            code = self._lib.rd_kafka_assign(self._handle, places)
        if code:
            raise SourceError(f"kafka: cannot read {self._topic}-{self._partition}: {self._words(code)}")

    def commit(self, position: int) -> None:
        with self._place(position) as places:
            self._lib.rd_kafka_commit(self._handle, places, 1)

    def watermarks(self, topic: str, partition: int, timeout: float) -> tuple[int, int]:
        low, high = c_int64(), c_int64()
        where = (self._handle, topic.encode(), partition)
        code = self._lib.rd_kafka_query_watermark_offsets(*where, byref(low), byref(high), _milliseconds(timeout))
        if code:
            raise require().KafkaException(require().KafkaError(code))
        return low.value, high.value

    def fetch(self, max_records: int, timeout: float) -> Fetched:
        if len(self._pointers) < max_records:
            self._pointers = np.empty(max_records, np.uint64)
        # A batch call waits until it is full or the time is over: so first what is there, and wait for one message only.
        count = self._consume(0, max_records, 0) or self._consume(0, 1, timeout)
        if count == 1 < max_records:
            count += self._consume(1, max_records - 1, 0)
        return self._fetched(self._pointers[:count])

    def _consume(self, begin: int, count: int, timeout: float) -> int:
        place = self._pointers.ctypes.data + begin * self._pointers.itemsize
        return max(0, int(self._lib.rd_kafka_consume_batch_queue(self._queue, _milliseconds(timeout), place, count)))

    def _fetched(self, pointers: np.ndarray[Any, np.dtype[np.uint64]]) -> Fetched:
        """Copies the messages and gives them back to librdkafka."""
        kinds, last = self._kernels.scan(pointers, self._partition, self._max_bytes)
        failures, self._failures = self._failures, []
        oversized, end = [], None
        for i in np.flatnonzero(kinds >= self._kernels.TOO_LARGE):
            message = _Message.from_address(int(pointers[i]))
            if kinds[i] == self._kernels.TOO_LARGE:
                oversized.append((message.offset, message.len, ctypes.string_at(message.payload, min(message.len, HEAD_BYTES))))
            elif kinds[i] == self._kernels.STRANGE:
                raise LayoutError(f"a message of another partition ({message.partition}) or with an impossible offset ({message.offset})")
            elif message.err == PARTITION_EOF:
                end = message.offset if i > last else None
            else:
                text = ctypes.string_at(message.payload, message.len).decode(errors="replace") if message.payload else ""
                failures.append(Failure(message.err, text or self._words(message.err), message.offset))
        largest = int(_Message.from_address(int(pointers[last])).offset) if last >= 0 else -1
        data, offsets, valid, positions, timestamps, lines = self._kernels.copy(pointers, kinds, *self._functions)
        if not lines:
            data, offsets = _without_newlines(data, offsets, valid)
        return Fetched(data, offsets, None if valid.all() else valid, positions, timestamps, lines, end, oversized, failures, largest)

    def _words(self, code: int) -> str:
        return str(self._lib.rd_kafka_err2str(code).decode())

    def close(self) -> None:
        if self._handle:
            self._lib.rd_kafka_assign(self._handle, None)
            self._lib.rd_kafka_queue_destroy(self._queue)
            self._lib.rd_kafka_consumer_close(self._handle)
            self._lib.rd_kafka_destroy(self._handle)
            self._handle = 0


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _without_newlines(data: Any, offsets: Any, valid: Any) -> tuple[Any, Any]:
    """Takes the newline behind each payload away again, for payloads that are not one line each."""
    keep = np.ones(len(data), bool)
    keep[offsets[1:][valid] - 1] = False
    return data[keep], (offsets - np.concatenate(([0], np.cumsum(valid)))).astype(np.int32)
