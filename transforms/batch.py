"""EventBatch: the element of every collection, and how it travels between stages.

An EventBatch is a :class:`pyarrow.RecordBatch` of one fixed schema. Between stages and in checkpoints it
is a fingerprint of that schema (8 bytes) followed by one Arrow IPC message; the schema itself stands once, in
the coder. Schemas with dictionaries need the dictionary as well: there the message is a whole IPC stream.
Reference: Apache Arrow columnar format, "Serialization and Interprocess Communication".
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam import coders
from apache_beam.typehints import typehints

EventBatch = pa.RecordBatch

EVENT_TIME = "__time"
"""Name of the event-time column of every EventBatch: timestamp[us, UTC], never null."""

EVENT_TIME_TYPE = pa.timestamp("us", tz="UTC")

SPLIT, SPLIT_TYPE = "__split", pa.dictionary(pa.int8(), pa.string())
POSITION = "__position"
"""Lineage of an event: the split it was read from and its int64 position there."""

_DISORDER_KEY = b"streamgauge.disorder"


def with_disorder(schema: pa.Schema, microseconds: int) -> pa.Schema:
    """The schema of events that may lag behind the newest one of their split by so much."""
    return schema.with_metadata({_DISORDER_KEY: str(microseconds)})


def disorder_of(schema: pa.Schema) -> int:
    """Microseconds; 0 where nothing is said."""
    return int((schema.metadata or {}).get(_DISORDER_KEY, b"0"))


def event_times(events: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """The event times of a batch, microseconds since the epoch. Read-only."""
    times: npt.NDArray[np.int64] = events.column(EVENT_TIME).view(pa.int64()).to_numpy()
    return times


_VALUE_BYTES = 8

FINGERPRINT_BYTES = 8

COMPRESS_FROM = 1 << 16
"""Bytes of a batch from which on compression is worth its cost, where a codec compresses."""

_LZ4 = pa.Codec("lz4_raw")
_SIZES = struct.Struct("<qq")
_CONTINUATION = b"\xff\xff\xff\xff"
"""Begins a message of Arrow IPC, and never the sizes that stand before a compressed one."""


class SchemaMismatch(ValueError):
    """Bytes were written with another schema than the one that reads them."""


def fingerprint(schema: pa.Schema) -> bytes:
    """Eight bytes that tell schemas apart by names, types and nullability; metadata does not count.

    >>> a = pa.schema([("x", pa.int64())])
    >>> fingerprint(a) == fingerprint(a.with_metadata({"k": "v"})), fingerprint(a) == fingerprint(pa.schema([("x", pa.int32())]))
    (True, False)
    """
    text = "\n".join(f"{f.name}\t{f.type}\t{f.nullable}" for f in schema)
    return hashlib.blake2b(text.encode(), digest_size=FINGERPRINT_BYTES).digest()


class BatchCodec:
    """Encodes and decodes the RecordBatches of one schema.

    >>> codec = BatchCodec(pa.schema([("x", pa.int64())]))
    >>> codec.decode(codec.encode(pa.record_batch({"x": [1, None]})))["x"].to_pylist()
    [1, None]
    """

    def __init__(self, schema: pa.Schema, *, compress: bool = False) -> None:
        self.schema = schema
        self._compress = compress
        self.fingerprint = fingerprint(schema)
        self._dictionaries = any(_has_dictionary(field.type) for field in schema)

    def encode(self, batch: pa.RecordBatch) -> bytes:
        """Raises SchemaMismatch when the batch has another schema."""
        if not batch.schema.equals(self.schema):
            raise SchemaMismatch(f"the batch has the columns ({_columns(batch.schema)}), its coder was made for ({_columns(self.schema)})")
        if not self._dictionaries:
            message = batch.serialize()
            if not self._compress or message.size < COMPRESS_FROM:
                return b"".join((self.fingerprint, message))
            compressed = _LZ4.compress(message)
            return b"".join((self.fingerprint, _SIZES.pack(message.size, compressed.size), compressed))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.schema) as writer:
            writer.write_batch(batch)
        stream: bytes = sink.getvalue().to_pybytes()
        return self.fingerprint + stream

    def decode(self, data: bytes) -> pa.RecordBatch:
        """Raises SchemaMismatch when the bytes were written with another schema."""
        if data[:FINGERPRINT_BYTES] != self.fingerprint:
            raise SchemaMismatch(
                f"stored data has the schema fingerprint {data[:FINGERPRINT_BYTES].hex()}, this job has {self.fingerprint.hex()} "
                f"({_columns(self.schema)}): the job's fields or aggregates changed; start it anew with --fresh"
            )
        body = pa.py_buffer(data).slice(FINGERPRINT_BYTES)
        if not self._dictionaries:
            if data[FINGERPRINT_BYTES : FINGERPRINT_BYTES + len(_CONTINUATION)] != _CONTINUATION:
                size, compressed = _SIZES.unpack_from(data, FINGERPRINT_BYTES)
                body = _LZ4.decompress(body.slice(_SIZES.size, compressed), size)
            return pa.ipc.read_record_batch(body, self.schema)
        with pa.ipc.open_stream(body) as reader:
            return reader.read_next_batch()


class BatchType(typehints.TypeConstraint):  # type: ignore[misc]
    """Type hint of a PCollection of RecordBatches of one schema; Beam gets the coder from it."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BatchType) and self.schema.equals(other.schema)

    def __hash__(self) -> int:
        return hash(fingerprint(self.schema))

    def __repr__(self) -> str:
        return f"EventBatch[{_columns(self.schema)}]"

    def _consistent_with_check_(self, sub: object) -> bool:
        return self == sub

    def type_check(self, instance: Any) -> None:
        if not isinstance(instance, pa.RecordBatch):
            raise typehints.SimpleTypeHintError(f"expected a pyarrow.RecordBatch, found {type(instance).__name__}")


class BatchCoder(coders.Coder):  # type: ignore[misc]
    """Beam coder of RecordBatches of one schema."""

    def __init__(self, schema: pa.Schema) -> None:
        self._codec = BatchCodec(schema)

    def encode(self, value: pa.RecordBatch) -> bytes:
        return self._codec.encode(value)

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        return self._codec.decode(encoded)

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """About the bytes of the columns. Beam counts the sizes of elements between fused steps too, and would encode a batch to know its own; even to ask Arrow costs
        more than small batches are worth."""
        return int(value.num_rows) * int(value.num_columns) * _VALUE_BYTES

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> BatchType:
        return BatchType(self._codec.schema)

    @classmethod
    def from_type_hint(cls, hint: BatchType, registry: Any) -> BatchCoder:
        return cls(hint.schema)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BatchCoder) and self._codec.fingerprint == other._codec.fingerprint

    def __hash__(self) -> int:
        return hash(self._codec.fingerprint)


coders.registry.register_coder(BatchType, BatchCoder)


def _has_dictionary(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) or any(_has_dictionary(kind.field(i).type) for i in range(kind.num_fields))


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name}: {f.type}" for f in schema)
