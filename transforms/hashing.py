"""Stable hashes: the shard of a row, and Beam keys that Flink spreads evenly.

Both must give the same answer in every process and version, for stored state depends on them: never Python's
``hash``, whose seed differs per process.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import mmh3
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam import coders

from streamgauge.transforms.arrays import Edges, is_text, number_bits, plain, text_of, validity
from streamgauge.transforms.formats.compiled import I64, U64, WORD, compiled, kernel, pointer, word_at

MAX_PARALLELISM = 128
"""Flink's number of key groups. Fixed: it can never change over the life of a job's state."""

_PRIME = 0x100000001B3
_NULL = 0x9E3779B97F4A7C15
_Hashes = npt.NDArray[np.uint64]


def hash_rows(columns: list[pa.Array], rows: int) -> _Hashes:
    """A 64-bit hash of each row over the given columns (strings, booleans, integers, dates, timestamps; null is a value).

    >>> hash_rows([pa.array(["a", "a", None])], 3).tolist() == hash_rows([pa.array(["a", "a", None])], 3).tolist()
    True
    """
    total = np.zeros(rows, np.uint64)
    for column in columns:
        array, valid = plain(column), validity(column)
        if is_text(array.type):
            _add_texts(total, *text_of(array), valid)
        else:
            _add_numbers(total, number_bits(array), valid)
    return total


def is_hashable(kind: pa.DataType) -> bool:
    """Whether ``hash_rows`` takes columns of this type."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return is_text(kind) or any(test(kind) for test in (pa.types.is_boolean, pa.types.is_integer, pa.types.is_date32, pa.types.is_timestamp))


@compiled
def mix(value: int) -> int:
    """Finaliser of SplitMix64, one to one (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)."""
    value = (value ^ (value >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> U64(27))) * U64(0x94D049BB133111EB)
    return value ^ (value >> U64(31))


@compiled
def hash_text(memory: Any, begin: int, end: int) -> int:
    """A hash of the bytes from ``begin`` to ``end``: of their number, then of eight at a time, the last eight possibly overlapping those before.

    Each step is one to one in what is hashed so far and in the eight bytes (multiplication by an odd number, xor with a shift of itself, as
    in Appleby's MurmurHash, 2008), so texts of equal length up to eight bytes never share one.
    """
    length = end - begin
    hashed = U64(length) * U64(_PRIME)
    if length < WORD:
        word = U64(0)
        for p in range(end - 1, begin - 1, -1):
            word = word << U64(8) | U64(memory[p])
        return _step(hashed, word)
    place = begin
    while place < end - WORD:
        hashed = _step(hashed, word_at(memory, place))
        place += WORD
    return _step(hashed, word_at(memory, end - WORD))


@compiled
def _step(hashed: int, word: int) -> int:
    hashed = (hashed ^ word) * U64(0xC6A4A7935BD1E995)
    return hashed ^ (hashed >> U64(32))


@kernel
def _add_texts(totals: _Hashes, edges: Edges, data: npt.NDArray[np.uint8], valid: npt.NDArray[np.uint8]) -> None:
    prime, all_valid, memory = U64(_PRIME), len(valid) == 0, pointer(data)
    for i in range(len(totals)):
        hashed = hash_text(memory, I64(edges[i]), I64(edges[i + 1])) if all_valid or valid[i] else U64(_NULL)
        totals[i] = mix(totals[i] * prime + hashed)


@kernel
def _add_numbers(totals: _Hashes, numbers: _Hashes, valid: npt.NDArray[np.uint8]) -> None:
    all_valid = len(valid) == 0
    for i in range(len(totals)):
        totals[i] = mix(totals[i] * U64(_PRIME) + (numbers[i] if all_valid or valid[i] else U64(_NULL)))


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
