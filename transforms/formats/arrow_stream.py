"""The messages of an Arrow IPC stream, found and weighed before anything is decoded.

What a payload claims is bounded here: where its messages end, and how much memory it takes once it is decompressed. Whether a message is
right inside is for Arrow to say. References: Apache Arrow columnar format, "Encapsulated message format" and "IPC Streaming Format";
``Message.fbs``; FlatBuffers, "Internals".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from streamgauge.transforms.formats.payloads import BadPayloadError

SCHEMA, DICTIONARY, BATCH = 1, 2, 3
"""Kinds of messages: ``MessageHeader`` in ``Message.fbs``."""

FILE_MAGIC = b"ARROW1"
FILE_HEAD = 8
"""Bytes before the stream that a file in the IPC file format has in it: the magic, padded."""

FREE_BYTES, MOST_TIMES = 32 << 10, 128
"""What a payload may take once it is decoded: this much, or so many times its length. With it a batch of payloads stays below 1 GiB."""

_FRAME = struct.Struct("<iI")
_CONTINUATION, _FRAME_BYTES = -1, 8
_I16, _U16, _I32, _U32, _I64 = (struct.Struct(f"<{kind}") for kind in "hHiIq")
_NOT_COMPRESSED = -1

# Slots of the FlatBuffers tables that are looked at.
_KIND, _HEADER, _BODY_BYTES = 1, 2, 3
_ENDIANNESS = 0
_DICTIONARY_DATA = 1
_ROWS, _BUFFERS, _COMPRESSION = 0, 2, 3
_BUFFER_BYTES = 16


class Message(NamedTuple):
    """A message of a payload.

    Attributes:
        kind: SCHEMA, DICTIONARY or BATCH.
        start, end: its bytes, with what frames it and its body.
        rows: of a batch, the number that it says it has.
        body: bytes of its body, once decompressed.
        native: Arrow may read it alone and as it stands: a record batch that is not compressed, or a schema that is little-endian.
    """

    kind: int
    start: int
    end: int
    rows: int
    body: int
    native: bool


def room(size: int, max_bytes: int) -> int:
    """Bytes that a payload of ``size`` bytes may take once it is decoded.

    >>> room(1_000, 16 << 20), room(1 << 20, 16 << 20)
    (128000, 16777216)
    """
    return min(max_bytes, max(FREE_BYTES, MOST_TIMES * size))


def begin(payload: memoryview) -> int:
    """Where the stream of a payload begins: behind the magic of a file. Raises BadPayloadError."""
    if not payload or payload[0] != FILE_MAGIC[0] or payload[: len(FILE_MAGIC)] != FILE_MAGIC:
        return 0
    if payload[-len(FILE_MAGIC) :] != FILE_MAGIC or len(payload) < FILE_HEAD + len(FILE_MAGIC):
        raise BadPayloadError("malformed", "an Arrow IPC file that is cut off: its footer is missing")
    return FILE_HEAD


def schema_of(payload: memoryview, at: int) -> Message:
    """The first message of a stream. Raises BadPayloadError."""
    if not len(payload):
        raise BadPayloadError("malformed", "empty")
    found = _message(payload, at) if len(payload) - at >= _FRAME_BYTES and _I32.unpack_from(payload, at)[0] == _CONTINUATION else None
    if found is None or found.kind != SCHEMA:
        raise BadPayloadError("malformed", f"no Arrow IPC stream: it begins with {bytes(payload[:_FRAME_BYTES])!r}, not with a schema")
    return found


def messages_after(payload: memoryview, at: int, *, file: bool = False) -> list[Message]:
    """The messages that follow the schema. Raises BadPayloadError.

    A stream ends with its mark or, as the specification allows, with the payload; behind the mark of one that is no ``file`` nothing may follow.
    """
    found = []
    while at < len(payload):
        message = _message(payload, at)
        if message is None:
            at += _FRAME_BYTES
            if at < len(payload) and not file:
                raise BadPayloadError("malformed", f"{len(payload) - at} bytes follow the end of the stream; write each stream into a record of its own")
            break
        if message.kind not in (DICTIONARY, BATCH):
            raise BadPayloadError("malformed", f"a message of kind {message.kind} at byte {at}, where a record batch was expected")
        found.append(message)
        at = message.end
    return found


def _message(payload: memoryview, at: int) -> Message | None:
    """The message at a place; None for the mark of the stream's end. Raises BadPayloadError."""
    size = len(payload)
    if size - at < _FRAME_BYTES:
        raise BadPayloadError("malformed", f"cut off after {size} bytes")
    mark, length = _FRAME.unpack_from(payload, at)
    if mark != _CONTINUATION:
        raise BadPayloadError("malformed", f"no message of an Arrow IPC stream at byte {at}")
    if not length:
        return None
    body = at + _FRAME_BYTES + length
    if body > size:
        raise BadPayloadError("malformed", f"cut off after {size} bytes, within a message of {_FRAME_BYTES + length} bytes at byte {at}")
    metadata = payload[at + _FRAME_BYTES : body]
    try:
        table = _U32.unpack_from(metadata)[0]
        kind, place = _slot(metadata, table, _KIND), _slot(metadata, table, _BODY_BYTES)
        body_bytes = _I64.unpack_from(metadata, place)[0] if place else 0
        if not 0 <= body_bytes <= size - body:
            raise BadPayloadError("malformed", f"cut off after {size} bytes, within a body of {body_bytes} bytes at byte {body}")
        header = _table(metadata, _slot(metadata, table, _HEADER))
        return _weighed(metadata, header, metadata[kind] if kind else 0, payload[body : body + body_bytes], at, body + body_bytes)
    except (struct.error, IndexError):
        raise BadPayloadError("malformed", f"the message at byte {at} is damaged") from None


def _weighed(metadata: memoryview, header: int, kind: int, body: memoryview, start: int, end: int) -> Message:
    if kind == SCHEMA:
        endianness = _slot(metadata, header, _ENDIANNESS)
        return Message(kind, start, end, 0, 0, not endianness or not _I16.unpack_from(metadata, endianness)[0])
    if kind not in (DICTIONARY, BATCH):
        return Message(kind, start, end, 0, 0, False)
    batch = header if kind == BATCH else _table(metadata, _slot(metadata, header, _DICTIONARY_DATA))
    place = _slot(metadata, batch, _ROWS)
    rows = _I64.unpack_from(metadata, place)[0] if place else 0
    if rows < 0:
        raise BadPayloadError("malformed", f"a record batch of {rows} rows at byte {start}")
    if not _slot(metadata, batch, _COMPRESSION):
        return Message(kind, start, end, rows, len(body), kind == BATCH)
    return Message(kind, start, end, rows, _decompressed(metadata, batch, body), False)


def _decompressed(metadata: memoryview, batch: int, body: memoryview) -> int:
    """Bytes of all buffers, each of which begins with its length once decompressed."""
    place = _slot(metadata, batch, _BUFFERS)
    if not place:
        return 0
    vector = place + _U32.unpack_from(metadata, place)[0]
    total = 0
    for number in range(_U32.unpack_from(metadata, vector)[0]):
        entry = vector + 4 + number * _BUFFER_BYTES
        offset, size = _I64.unpack_from(metadata, entry)[0], _I64.unpack_from(metadata, entry + 8)[0]
        if not size:
            continue
        if offset < 0:
            raise struct.error
        length = _I64.unpack_from(body, offset)[0]
        if length < _NOT_COMPRESSED:
            raise struct.error
        total += size if length == _NOT_COMPRESSED else length
    return total


def _table(metadata: memoryview, place: int) -> int:
    """The table that a slot refers to."""
    if not place:
        raise struct.error
    found: int = place + _U32.unpack_from(metadata, place)[0]
    return found


def _slot(metadata: memoryview, table: int, number: int) -> int:
    """Where a value of a table stands; 0: it has its default. No place is ever negative: Python would count it from the end."""
    vtable = table - _I32.unpack_from(metadata, table)[0]
    if vtable < 0:
        raise struct.error
    entry = 4 + 2 * number
    if entry >= _U16.unpack_from(metadata, vtable)[0]:
        return 0
    offset = _U16.unpack_from(metadata, vtable + entry)[0]
    return table + offset if offset else 0
