"""The ids that were seen, with the event times at which they were: an exact index, for Deduplicate.

An id is bytes, an unambiguous writing of its fields. The index is a hash table with linear probing (Knuth, "The Art of Computer Programming",
vol. 3, 6.4) of (id, bucket of time): however often an id comes back, its entries do not make one long chain. A hash only leads to
an entry; that it is the same id is told by its bytes.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streamgauge.transforms.batch import BatchCodec
from streamgauge.transforms.config import MICROSECONDS
from streamgauge.transforms.formats.compiled import I64, U64, Bytes, compiled, kernel
from streamgauge.transforms.hashing import mix

NEW, DUPLICATE, UNJUDGED, NO_ID = 0, 1, 2, 3
"""What a row is: the first of its id within the horizon, one that follows it, too old to tell, without an id."""

NEVER = -(2**62)
"""``SeenIds.forgotten`` while nothing has been forgotten."""

CHUNK_ROWS = 65_536
"""Ids in one record of the log, when it is written anew."""

FEW_IDS = 1_024
"""So many ids are kept until all of them expire, not only half."""

_MS = MICROSECONDS["ms"]
_EMPTY = -1
_BUCKET_HORIZONS = 8
"""A bucket of time is so many horizons long: two entries of an id are more than a horizon apart, so it has no more of them than this."""

Longs = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]
_Number = TypeVar("_Number", bound=np.generic)
Hashes = npt.NDArray[np.uint64]


class Ids(NamedTuple):
    """Ids one behind the other: the i-th is ``data[ends[i]:ends[i + 1]]``."""

    ends: Longs
    data: Bytes


def ids_of(columns: list[pa.Array], rows: int) -> Ids:
    """The bytes of each row: for each field whether it has a value, and the value; of a string its length first.

    >>> ends, data = ids_of([pa.array(["ab", None]), pa.array([1, 2], pa.int8())], 2)
    >>> bytes(data[:ends[1]]), bytes(data[ends[1]:])
    (b'\\x01\\x02\\x00\\x00\\x00ab\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00', b'\\x00\\x01\\x02\\x00\\x00\\x00\\x00\\x00\\x00\\x00')
    """
    parts = [(_text(array) if _is_text(array.type) else _numbers(array), _valid(array)) for array in columns]
    lengths = np.full(rows, len(parts), np.int64)
    for part, valid in parts:
        lengths += (np.diff(part.ends) + 4 if isinstance(part, Ids) else 8) * valid
    ends = np.zeros(rows + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    data, places = np.empty(int(ends[-1]), np.uint8), ends[:-1].copy()
    for part, valid in parts:
        if isinstance(part, Ids):
            _put_text(data, places, part.ends, part.data, valid)
        else:
            _put_numbers(data, places, part, valid)
    return Ids(ends, data)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def _valid(array: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.is_valid(array)) if array.null_count else np.ones(len(array), np.bool_)


def _text(array: pa.Array) -> Ids:
    wide = array.cast(pa.large_string())
    _, offsets, data = wide.buffers()
    ends = np.frombuffer(offsets, np.int64)[wide.offset : wide.offset + len(wide) + 1]
    return Ids(ends, np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8))


def _numbers(array: pa.Array) -> Longs:
    """Booleans, integers, dates and timestamps as 64 bits."""
    if pa.types.is_uint64(array.type):
        return np.asarray(pc.fill_null(array, 0)).view(np.int64)
    array = array.cast(pa.int32()) if pa.types.is_date32(array.type) else array
    return np.asarray(pc.fill_null(array.cast(pa.int64()), 0))


class SeenIds:
    """Judges rows in the order in which they come.

    A row is a duplicate when its id was seen at an event time at most ``horizon`` microseconds from its own; only what is new is seen.

    Attributes:
        forgotten: ids seen at an event time before this (microseconds) are not known any more.

    >>> seen = SeenIds(horizon=10)
    >>> ids = ids_of([pa.array(["a", "a", "b", "a", None])], 5)
    >>> seen.judge(ids, np.array([100, 110, 110, 111, 0]), np.array([True, True, True, True, False])).tolist()
    [0, 1, 0, 0, 3]
    """

    def __init__(self, horizon: int, forgotten: int = NEVER) -> None:
        self.forgotten = forgotten
        self._horizon = horizon
        self._width = _BUCKET_HORIZONS * (horizon + 1)
        self._size = 0
        self._slots: Slots = np.empty(0, np.int32)
        self._hashes: Hashes = np.empty(0, np.uint64)
        self._times: Longs = np.empty(0, np.int64)
        self._ends: Longs = np.zeros(1, np.int64)
        self._data: Bytes = np.empty(0, np.uint8)

    def __len__(self) -> int:
        return self._size

    def judge(self, ids: Ids, times: Longs, has_id: npt.NDArray[np.bool_]) -> Bytes:
        """NEW, DUPLICATE, UNJUDGED or NO_ID of each row. Ids that are new are remembered."""
        self._reserve(len(times), len(ids.data))
        verdicts = np.empty(len(times), np.uint8)
        self._size = _judge(
            ids.ends, ids.data, hashes_of(ids), times, has_id, self._horizon, self._width, self.forgotten,
            self._slots, self._hashes, self._times, self._ends, self._data, self._size, verdicts,
        )  # fmt: skip
        return verdicts

    def expire(self, before: int) -> bool:
        """Forget the ids seen at event times before this; whether there were any."""
        self.forgotten = max(self.forgotten, before)
        times, lengths = self._times[: self._size], np.diff(self._ends[: self._size + 1])
        kept = times >= self.forgotten
        if kept.all():
            return False
        self._data = self._data[: self._ends[self._size]][np.repeat(kept, lengths)]
        self._hashes, self._times = self._hashes[: self._size][kept], times[kept]
        self._ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[kept])])
        self._size = len(self._times)
        self._slots = np.empty(0, np.int32)
        self._reserve(0, 0)
        return True

    def expiry(self) -> int:
        """When it is worth while to ``expire``: the watermark, in microseconds and whole milliseconds, at which half of the ids can go, of few ids all. Needs ids."""
        times = self._times[: self._size]
        last = times.max() if self._size <= FEW_IDS else np.partition(times, self._size // 2)[self._size // 2]
        return (int(last) + self._horizon) // _MS * _MS + _MS

    # As records of a log

    def records(self, codec: BatchCodec, first: int = 0) -> list[bytes]:
        """The ids from the ``first`` on, in the order in which they were seen."""
        return [codec.encode(self._batch(codec.schema, start, min(start + CHUNK_ROWS, self._size))) for start in range(first, self._size, CHUNK_ROWS)]

    def load(self, codec: BatchCodec, record: bytes) -> None:
        """Remember the ids of a record, whatever else is known of them. Raises SchemaMismatch."""
        batch = codec.decode(record)
        ids, times = batch.columns
        _, ends, data = ids.buffers()
        self._add(Ids(np.frombuffer(ends, np.int64)[: len(ids) + 1], np.frombuffer(data, np.uint8)), times.to_numpy())

    def _batch(self, schema: pa.Schema, first: int, last: int) -> pa.RecordBatch:
        ends = self._ends[first : last + 1]
        data = self._data[ends[0] : ends[-1]]
        ids = pa.LargeBinaryArray.from_buffers(pa.large_binary(), last - first, [None, pa.py_buffer((ends - ends[0]).tobytes()), pa.py_buffer(data.tobytes())])
        return pa.record_batch([ids, pa.array(self._times[first:last])], schema=schema)

    # Memory

    def _reserve(self, rows: int, size: int) -> None:
        """Room for so many more ids of so many bytes together; at least half of the slots stay empty."""
        wanted = self._size + rows
        self._hashes, self._times = _grown(self._hashes, wanted), _grown(self._times, wanted)
        self._ends = _grown(self._ends, wanted + 1)
        self._data = _grown(self._data, int(self._ends[self._size]) + size)
        if 2 * wanted > len(self._slots):
            self._slots = np.full(1 << (2 * wanted).bit_length(), _EMPTY, np.int32)
            _place(self._slots, self._hashes, self._times, self._width, 0, self._size)

    def _add(self, ids: Ids, times: Longs) -> None:
        self._reserve(len(times), len(ids.data))
        first, last = self._size, self._size + len(times)
        begin = self._ends[first]
        self._hashes[first:last], self._times[first:last] = hashes_of(ids), times
        self._ends[first + 1 : last + 1] = begin + ids.ends[1:]
        self._data[begin : begin + len(ids.data)] = ids.data
        _place(self._slots, self._hashes, self._times, self._width, first, last)
        self._size = last


def _grown(array: npt.NDArray[_Number], wanted: int) -> npt.NDArray[_Number]:
    if wanted <= len(array):
        return array
    larger = np.empty(max(wanted, len(array) * 3 // 2), array.dtype)
    larger[: len(array)] = array
    return larger


def log_codec(name: str) -> BatchCodec:
    """Of the records of a log; ``name`` says what the ids are made of: a log of other ids is never read as one of these."""
    return BatchCodec(pa.schema([pa.field(name, pa.large_binary(), nullable=False), pa.field("time", pa.int64(), nullable=False)]))


def hashes_of(ids: Ids) -> Hashes:
    """A hash of each id; of this process only, nothing that is stored depends on it."""
    hashes = np.empty(len(ids.ends) - 1, np.uint64)
    _hash(ids.ends, ids.data, hashes)
    return hashes


# Kernels: sequential by nature, since a row may be a duplicate of the one before it


@kernel
def _hash(ends: Longs, data: Bytes, hashes: Hashes) -> None:
    """Eight bytes at a time."""
    for i in range(len(hashes)):
        value, word = U64(ends[i + 1] - ends[i]), U64(0)
        for p in range(ends[i], ends[i + 1]):
            word = (word << U64(8)) | U64(data[p])
            if (p - ends[i]) % 8 == 7:
                value, word = mix(value ^ word), U64(0)
        hashes[i] = mix(value ^ word)


@kernel
def _put_text(data: Bytes, places: Longs, ends: Longs, text: Bytes, valid: npt.NDArray[np.bool_]) -> None:
    for i in range(len(places)):
        p = places[i]
        data[p] = valid[i]
        p += 1
        if valid[i]:
            length = ends[i + 1] - ends[i]
            for byte in range(4):
                data[p + byte] = (length >> (8 * byte)) & 255
            p += 4
            for k in range(length):
                data[p + k] = text[ends[i] + k]
            p += length
        places[i] = p


@kernel
def _put_numbers(data: Bytes, places: Longs, values: Longs, valid: npt.NDArray[np.bool_]) -> None:
    for i in range(len(places)):
        p = places[i]
        data[p] = valid[i]
        p += 1
        if valid[i]:
            for byte in range(8):
                data[p + byte] = (values[i] >> (8 * byte)) & 255
            p += 8
        places[i] = p


@compiled
def _slot(hashed: int, bucket: int, slots: Slots) -> int:
    """Where the search for an id in a bucket of time begins."""
    return I64(mix(hashed ^ mix(U64(bucket))) & U64(len(slots) - 1))


@compiled
def _same(ends: Longs, data: Bytes, i: int, stored_ends: Longs, stored: Bytes, j: int) -> bool:
    length, k = ends[i + 1] - ends[i], 0
    if stored_ends[j + 1] - stored_ends[j] != length:
        return False
    while k < length and data[ends[i] + k] == stored[stored_ends[j] + k]:
        k += 1
    return bool(k == length)


@kernel
def _place(slots: Slots, hashes: Hashes, times: Longs, width: int, first: int, last: int) -> None:
    """Puts entries into the table."""
    for entry in range(first, last):
        slot = _slot(hashes[entry], times[entry] // width, slots)
        while slots[slot] != _EMPTY:
            slot = (slot + 1) & (len(slots) - 1)
        slots[slot] = entry


@kernel
def _judge(
    ends: Longs, data: Bytes, hashes: Hashes, times: Longs, has_id: npt.NDArray[np.bool_], horizon: int, width: int, forgotten: int,
    slots: Slots, seen_hashes: Hashes, seen_times: Longs, seen_ends: Longs, seen_data: Bytes, size: int, verdicts: Bytes,
) -> int:  # fmt: skip
    """Fills ``verdicts``, adds what is new, and returns the number of entries then."""
    for i in range(len(times)):
        if not has_id[i]:
            verdicts[i] = NO_ID
            continue
        time, hashed = times[i], hashes[i]
        own = time // width
        # A bucket beside it counts only for times near its edge.
        lowest, highest = (time - horizon) // width, (time + horizon) // width
        found, free = False, I64(0)
        for bucket in range(lowest, highest + 1):
            slot = _slot(hashed, bucket, slots)
            while slots[slot] != _EMPTY and not found:
                entry = slots[slot]
                if seen_hashes[entry] == hashed and abs(seen_times[entry] - time) <= horizon:
                    found = _same(ends, data, i, seen_ends, seen_data, entry)
                slot = (slot + 1) & (len(slots) - 1)
            if bucket == own:
                free = slot
            if found:
                break
        if found:
            verdicts[i] = DUPLICATE
        elif time < forgotten:
            verdicts[i] = UNJUDGED
        else:
            verdicts[i] = NEW
            slots[free] = size
            seen_hashes[size], seen_times[size] = hashed, time
            begin, length = seen_ends[size], ends[i + 1] - ends[i]
            for k in range(length):
                seen_data[begin + k] = data[ends[i] + k]
            size += 1
            seen_ends[size] = begin + length
    return size
