"""librdkafka's C API, as far as the fast Kafka client needs it. The library is the one that confluent-kafka's wheel carries.

Only documented functions are called, and of the structs only the public ``rd_kafka_message_t`` and ``rd_kafka_topic_partition_t`` are read
(librdkafka's ``rdkafka.h``).
"""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_size_t, c_ssize_t, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

from streamgauge.transforms.sources.kafka_client import log, require

VERSIONS = (0x01090000, 0x03000000)
"""librdkafka versions whose structs and functions are those used here: from, and up to but without."""

PARTITION_EOF = -191
CONSUMER, CONF_OK, ERROR_TEXT_BYTES = 1, 0, 512

ERROR_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p, c_void_p)


class Message(ctypes.Structure):
    """rd_kafka_message_t. The kernel reads the same fields by their offsets in 8-byte words."""

    _fields_ = (
        ("err", c_int), ("rkt", c_void_p), ("partition", c_int32), ("payload", c_void_p), ("len", c_size_t),
        ("key", c_void_p), ("key_len", c_size_t), ("offset", c_int64), ("_private", c_void_p),
    )  # fmt: skip


class TopicPartition(ctypes.Structure):
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
    "rd_kafka_conf_set_error_cb": (None, [c_void_p, ERROR_CALLBACK]),
    "rd_kafka_new": (c_void_p, [c_int, c_void_p, c_char_p, c_size_t]),
    "rd_kafka_poll_set_consumer": (c_int, [c_void_p]),
    "rd_kafka_queue_get_consumer": (c_void_p, [c_void_p]),
    "rd_kafka_queue_destroy": (None, [c_void_p]),
    "rd_kafka_topic_partition_list_new": (POINTER(c_int), [c_int]),
    "rd_kafka_topic_partition_list_add": (POINTER(TopicPartition), [c_void_p, c_char_p, c_int32]),
    "rd_kafka_topic_partition_list_destroy": (None, [c_void_p]),
    "rd_kafka_queue_get_partition": (c_void_p, [c_void_p, c_char_p, c_int32]),
    "rd_kafka_queue_forward": (None, [c_void_p, c_void_p]),
    "rd_kafka_incremental_assign": (c_void_p, [c_void_p, c_void_p]),
    "rd_kafka_incremental_unassign": (c_void_p, [c_void_p, c_void_p]),
    "rd_kafka_error_string": (c_char_p, [c_void_p]),
    "rd_kafka_error_destroy": (None, [c_void_p]),
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
def loaded() -> tuple[Any, Any] | None:
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
