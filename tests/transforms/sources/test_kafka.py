"""The parts of the Kafka source that need no broker: options, and the two clients' ways from messages to columns."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamgauge.transforms.config import problems
from streamgauge.transforms.sources.kafka import Kafka, KafkaOptions
from streamgauge.transforms.sources.kafka_client import HEAD_BYTES, Fetched, PlainClient, binary_array

pytest.importorskip("confluent_kafka")
kernels = pytest.importorskip("streamgauge.transforms.sources.kafka_kernels")
native = pytest.importorskip("streamgauge.transforms.sources.kafka_native")
library = pytest.importorskip("streamgauge.transforms.sources.kafka_library")

MAX_BYTES, PARTITION, END_CODE, OTHER_CODE = 2000, 7, -191, -195

Message = tuple[bytes | None, int, int]
"""Payload, offset, error code."""


class _Error:
    def __init__(self, code: int, text: str) -> None:
        self.code, self.str = lambda: code, lambda: text


class _PlainMessage:
    """What confluent_kafka gives for a message."""

    def __init__(self, payload: bytes | None, offset: int, code: int) -> None:
        self.error = lambda: _Error(code, "words") if code else None
        self.value, self.offset, self.timestamp = lambda: payload, lambda: offset, lambda: (1, offset * 3 - 1)


def by_plain_client(messages: Sequence[Message]) -> Fetched:
    client = PlainClient({"group.id": "test"}, "topic", PARTITION, MAX_BYTES)
    try:
        return client._fetched([_PlainMessage(*m) for m in messages])
    finally:
        client.close()


def by_native_client(messages: Sequence[Message]) -> Fetched:
    """The same messages as librdkafka's structs; those that are not given back would be leaked."""
    structs = []
    for payload, offset, code in messages:
        text = b"words" if code else payload
        address = ctypes.cast(ctypes.c_char_p(text), ctypes.c_void_p).value if text is not None else None
        structs.append(library.Message(err=code, partition=PARTITION, payload=address, len=len(text or b""), offset=offset))
        structs[-1].keep = text
    pointers = np.array([ctypes.addressof(s) for s in structs], np.uint64)
    returned: list[int] = []
    stamped = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
    timestamp = stamped(lambda message, _: library.Message.from_address(message).offset * 3 - 1)
    destroy = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(returned.append)
    client: Any = object.__new__(native.NativeClient)
    client._kernels, client._partition, client._max_bytes = kernels, PARTITION, MAX_BYTES
    client._consumer = object.__new__(native._Consumer)
    client._functions = tuple(ctypes.cast(f, ctypes.c_void_p).value for f in (timestamp, destroy))
    fetched: Fetched = client._fetched(pointers, [])
    assert returned == pointers.tolist()
    return fetched


payloads = st.one_of(
    st.none(), st.binary(max_size=30), st.sampled_from([b"", b"\n", b"a\nb", b"{}", b"x" * MAX_BYTES, b"y" * (MAX_BYTES + 1)])
)
one_line = st.one_of(st.none(), st.binary(min_size=1, max_size=30).map(lambda b: b.replace(b"\n", b" ")))
kinds = st.sampled_from([0, 0, 0, 0, END_CODE, OTHER_CODE])


@given(st.one_of(st.lists(st.tuples(payloads, kinds), max_size=12), st.lists(st.tuples(one_line, kinds), max_size=12)))
@settings(deadline=None)
def test_both_clients_make_the_same_of_the_same_messages(given_messages: list[tuple[bytes | None, int]]) -> None:
    messages = [(payload, 5 * i, code) for i, (payload, code) in enumerate(given_messages)]
    records = [m for m in messages if not m[2] and not (m[0] and len(m[0]) > MAX_BYTES)]
    single = all(p is None or (p != b"" and b"\n" not in p) for p, _, _ in records)
    delivered = [m for m in messages if not m[2]]
    for fetched in (by_plain_client(messages), by_native_client(messages)):
        assert fetched.newline_terminated == single
        tail = b"\n" if single else b""
        array = binary_array(fetched.data, fetched.offsets, fetched.valid)
        assert array.to_pylist() == [None if p is None else p + tail for p, _, _ in records]
        assert fetched.data.tobytes() == b"".join(p + tail for p, _, _ in records if p is not None)
        assert fetched.positions.tolist() == [offset for _, offset, _ in records]
        assert fetched.timestamps.tolist() == [(3 * offset - 1) * 1000 if offset else -1 for _, offset, _ in records]
        assert fetched.oversized == [(o, len(p), p[:HEAD_BYTES]) for p, o, c in messages if not c and p and len(p) > MAX_BYTES]
        assert [(f.code, f.message, f.offset) for f in fetched.failures] == [(c, "words", o) for _, o, c in messages if c == OTHER_CODE]
        assert fetched.last == (delivered[-1][1] if delivered else -1)
        ends = [o for _, o, c in messages if c == END_CODE and o > fetched.last]
        assert fetched.end == (ends[-1] if ends else None)
        keep = len(records) // 2
        fetched.trim(keep)
        assert binary_array(fetched.data, fetched.offsets, fetched.valid).to_pylist() == array.to_pylist()[:keep]


@pytest.mark.parametrize("change", [{"partition": 8}, {"offset": -1}, {"offset": 3}])
def test_messages_of_another_layout_are_refused(change: dict[str, int]) -> None:
    good = library.Message(err=0, partition=PARTITION, len=0, offset=3)
    strange = library.Message(**{"err": 0, "partition": PARTITION, "len": 0, "offset": 4, **change})
    found, _ = kernels.scan(np.array([ctypes.addressof(good), ctypes.addressof(strange)], np.uint64), PARTITION, MAX_BYTES)
    assert found.tolist() == [kernels.NULL, kernels.STRANGE]


def test_the_struct_has_the_size_of_a_64_bit_librdkafka() -> None:
    """rd_kafka_message_t of rdkafka.h: nine fields, each at a multiple of eight bytes."""
    assert ctypes.sizeof(library.Message) == 72
    words = {name: getattr(library.Message, name).offset // 8 for name in ("err", "partition", "payload", "len", "offset")}
    assert list(words.values()) == [kernels.ERR, kernels.PARTITION, kernels.BODY, kernels.LENGTH, kernels.OFFSET]


def test_the_fast_client_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "auto")
    assert native.available()
    monkeypatch.setenv(native.SWITCH, "off")
    assert not native.available()


def options(**values: object) -> KafkaOptions:
    return KafkaOptions.model_validate({"brokers": "b:9092", "topic": "t", **values})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"start": "yesterday"}, "expected earliest, latest, an ISO 8601 time with its zone"),
        ({"start": "2026-01-01T00:00:00"}, "with its zone"),
        ({"stop": "2026-01-01T00:00:00Z"}, "expected none, latest or a mapping of partition to offset; found '2026-01-01T00:00:00Z'"),
        ({"start": {"first": 1}}, "integer"),
        ({"client": {"group.id": "x"}}, "client: group.id is decided by group"),
        ({"client": {"queued.max.messages.kbytes": 2_000_000}}, "at most 1048576"),
        ({"topics": "x"}, "unknown key"),
    ],
)
def test_wrong_options_say_what_would_be_right(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        options(**wrong)
    assert any(words in message for _, message in problems(raised.value))


def test_options_decide_whether_reading_ends() -> None:
    assert not Kafka(options()).bounded
    assert Kafka(options(stop="latest")).bounded and Kafka(options(stop={0: 5})).bounded
    assert Kafka(options()).name == "kafka:t"
    own = options(client={"fetch.min.bytes": 5, "isolation.level": "read_uncommitted"}, group="g").settings()
    assert (own["fetch.min.bytes"], own["isolation.level"], own["group.id"]) == (5, "read_uncommitted", "g")
    assert options().settings()["isolation.level"] == "read_committed"
