"""Stable hashes: the shard of a row, and Beam keys that Flink spreads evenly.

Both must give the same answer in every process and version, for stored state depends on them: never Python's
``hash``, whose seed differs per process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import count

import mmh3
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam import coders

MAX_PARALLELISM = 128
"""Flink's number of key groups. Fixed: it can never change over the life of a job's state."""

_PRIME = np.uint64(0x100000001B3)
_NULL = np.uint64(0x9E3779B97F4A7C15)
_Hashes = npt.NDArray[np.uint64]


def hash_rows(columns: list[pa.Array], rows: int) -> _Hashes:
    """A 64-bit hash of each row over the given columns (strings, booleans, integers, dates, timestamps; null is a value).

    >>> hash_rows([pa.array(["a", "a", None])], 3).tolist() == hash_rows([pa.array(["a", "a", None])], 3).tolist()
    True
    """
    total = np.zeros(rows, np.uint64)
    with np.errstate(over="ignore"):
        for array in columns:
            total = _mix(total * _PRIME + _hash_column(array))
    return total


def _hash_column(array: pa.Array) -> _Hashes:
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    valid = None
    if array.null_count:
        valid = np.asarray(pc.is_valid(array))
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        hashes = _hash_strings(array)
    elif pa.types.is_boolean(array.type):
        hashes = np.asarray(pc.fill_null(array.cast(pa.int64()), 0)).astype(np.uint64)
    else:
        integers = array.cast(pa.int32()).cast(pa.int64()) if pa.types.is_date32(array.type) else array
        if not pa.types.is_uint64(integers.type):
            integers = integers.cast(pa.int64())
        hashes = np.asarray(pc.fill_null(integers, 0)).astype(np.uint64)
    return hashes if valid is None else np.where(valid, hashes, _NULL)


def _hash_strings(array: pa.Array) -> _Hashes:
    """Polynomial hash of the UTF-8 bytes (Karp and Rabin, 1987), all strings at once."""
    wide = array.cast(pa.large_string())
    offsets = np.frombuffer(wide.buffers()[1], np.int64)[wide.offset : wide.offset + len(wide) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.frombuffer(wide.buffers()[2], np.uint8)[first:last] if last > first else np.empty(0, np.uint8)
    starts = offsets[:-1] - first
    lengths = np.diff(offsets)
    within = np.arange(last - first) - np.repeat(starts, lengths)
    terms = (data.astype(np.uint64) + np.uint64(1)) * _powers(int(lengths.max(initial=0)))[within]
    running: _Hashes = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    hashes: _Hashes = running[starts + lengths] - running[starts]
    return hashes


@lru_cache(maxsize=64)
def _powers_up_to(bits: int) -> _Hashes:
    with np.errstate(over="ignore"):
        return np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full((1 << bits) - 1, _PRIME)]), dtype=np.uint64)


def _powers(length: int) -> _Hashes:
    return _powers_up_to(max(length, 1).bit_length())


def _mix(values: _Hashes) -> _Hashes:
    """Finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def spread_key(index: int, candidate: Callable[[int], bytes]) -> bytes:
    """The first of ``candidate(0), candidate(1), ...`` that Flink puts into the key group of ``index``.

    Flink hashes keys to key groups, and a handful of keys hashed at random lands unevenly (4 keys on 2
    subtasks go 4:0 one time in eight). The key groups wanted here follow the van der Corput sequence (bits of the index
    reversed): any number of first members is spread evenly over any number of subtasks, and adding one moves none.
    """
    wanted = int(f"{index % MAX_PARALLELISM:07b}"[::-1], 2)
    return next(key for key in map(candidate, count()) if flink_key_group(key) == wanted)


def flink_key_group(key: bytes) -> int:
    """The key group of a Beam key of type bytes, 0 to MAX_PARALLELISM - 1.

    Beam's Flink runner hashes the encoded key (here a length and the bytes) by Murmur3-128 and Flink mixes the lower
    32 bits by Murmur3-32 (``KeyGroupRangeAssignment``). Another runner only loses the even spread.
    """
    hashed: int = mmh3.hash64(bytes(coders.BytesCoder().get_impl().encode_nested(key)), signed=False)[0]
    return _flink_mix(hashed & 0xFFFFFFFF) % MAX_PARALLELISM


def _flink_mix(code: int) -> int:
    """``MathUtils.murmurHash(int)`` of Flink: one Murmur3-32 round and its finaliser, made non-negative."""
    mask = 0xFFFFFFFF
    code = code * 0xCC9E2D51 & mask
    code = (code << 15 | code >> 17) & mask
    code = code * 0x1B873593 & mask
    code = (code << 13 | code >> 19) & mask
    code = (code * 5 + 0xE6546B64) & mask
    code ^= 4
    code ^= code >> 16
    code = code * 0x85EBCA6B & mask
    code ^= code >> 13
    code = code * 0xC2B2AE35 & mask
    code ^= code >> 16
    signed = code - 2**32 if code >= 2**31 else code
    return signed if signed >= 0 else (-signed if signed != -(2**31) else 0)
