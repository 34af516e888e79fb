"""Groups: which rows of a table have equal keys. The base of every grouping and merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streamgauge.transforms.arrays import Edges, is_text, number_bits, plain, text_of, validity
from streamgauge.transforms.formats.compiled import I64, U64, WORD, compiled, kernel, pointer, word_at
from streamgauge.transforms.hashing import hash_rows, is_hashable, mix

_Numbers = npt.NDArray[np.int64]
_Hashes = npt.NDArray[np.uint64]
_Bytes = npt.NDArray[np.uint8]

_EMPTY = -1


@dataclass(frozen=True)
class Groups:
    """The group of each row.

    Attributes:
        ids: one a row, 0 <= id < count; `group_rows` numbers groups in the order of their first rows.
        count: number of groups; each has at least one row, but for tables without keys, which are one group even when empty.
        first: row at which each group begins.
    """

    ids: _Numbers
    count: int
    first: _Numbers

    def split(self, part: _Numbers) -> Groups:
        """Groups of rows that are in one group here and have equal numbers in ``part``.

        >>> group_rows([pa.array(["a", "b", "a"])], 3).split(np.array([7, 7, 8])).ids.tolist()
        [0, 1, 2]
        """
        least, most = (int(part.min()), int(part.max())) if len(part) else (0, 0)
        if least == most:
            return self
        hashes = np.empty(len(part), np.uint64)
        # Numbers that are different have different hashes.
        _mixed(_paired(self.ids, self.count, part - least, most - least + 1), hashes)
        return _grouped(hashes)

    def ordered(self, order: _Numbers) -> Groups:
        """The same groups with other numbers: the first is the one that is ``order[0]`` here.

        >>> group_rows([pa.array(["a", "b", "a"])], 3).ordered(np.array([1, 0])).ids.tolist()
        [1, 0, 1]
        """
        number = np.empty(self.count, np.int64)
        number[order] = np.arange(self.count)
        return Groups(number[self.ids], self.count, self.first[order])


def group_rows(columns: Sequence[pa.Array], rows: int, hashes: _Hashes | None = None) -> Groups:
    """Groups of equal rows over the given columns; null is a value. Without columns: one group.

    Args:
        hashes: what ``hash_rows`` gives for the same columns, if it is known already.

    >>> group_rows([pa.array(["a", "b", None, "a"]), pa.array([1, 1, 1, 1])], 4).ids.tolist()
    [0, 1, 2, 0]
    """
    if not columns:
        return Groups(np.zeros(rows, np.int64), 1, np.zeros(1, np.int64))
    if not all(is_hashable(column.type) for column in columns):
        return _encoded(columns)
    groups = _grouped(hash_rows(list(columns), rows) if hashes is None else hashes)
    # A hash only says which rows may be equal. Two that are not and share one are hardly ever met, unless somebody made them so.
    return groups if groups.count == rows or all(_are_equal(column, groups) for column in columns) else _encoded(columns)


def _encoded(columns: Sequence[pa.Array]) -> Groups:
    """The same for any columns, at several times the cost."""
    codes, count = _codes(columns[0])
    for column in columns[1:]:
        more, size = _codes(column)
        codes, count = _codes(pa.array(_paired(codes, count, more, size)))
    return Groups(codes, count, _first_rows(codes, count))


def _paired(ids: _Numbers, count: int, others: _Numbers, size: int) -> _Numbers:
    """One number for each pair. Numbers below 2**63 fit as they are; else ``others`` are numbered anew first."""
    if count * size >= 2**62:
        others, size = _codes(pa.array(others))
    return ids * size + others


def _codes(column: pa.Array) -> tuple[_Numbers, int]:
    """Each value's number, in the order of first appearance."""
    encoded = pc.dictionary_encode(plain(column), null_encoding="encode")
    return encoded.indices.to_numpy().astype(np.int64), len(encoded.dictionary)


def _first_rows(codes: _Numbers, count: int) -> _Numbers:
    first = np.empty(count, np.int64)
    # Of several writes to one place the last one stays: backwards, that is the first row.
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return first


def _grouped(hashes: _Hashes) -> Groups:
    """Groups of equal hashes."""
    rows = len(hashes)
    ids, first = np.empty(rows, np.int64), np.empty(rows, np.int64)
    slots = np.full(1 << max(4, (2 * rows - 1).bit_length()), _EMPTY, np.int32)
    count = _number(hashes, slots, ids, first)
    return Groups(ids, count, first[:count].copy())


def _are_equal(column: pa.Array, groups: Groups) -> bool:
    """Whether all rows of each group have one value."""
    array, valid = plain(column), validity(column)
    # The first rows put together: they stay in the processor's cache where the rows would not.
    first = array.take(pa.array(groups.first))
    if is_text(array.type):
        return bool(_equal_texts(*text_of(array), valid, *text_of(first), validity(first), groups.ids))
    return bool(_equal_numbers(number_bits(array), valid, number_bits(first), validity(first), groups.ids))


@kernel
def _mixed(values: _Numbers, hashes: _Hashes) -> None:
    for i in range(len(values)):
        hashes[i] = mix(U64(values[i]))


@kernel
def _number(hashes: _Hashes, slots: npt.NDArray[np.int32], ids: _Numbers, first: _Numbers) -> int:
    """Numbers equal hashes in the order in which they come: a hash table with linear probing (Knuth, vol. 3, 6.4). Returns how many there are."""
    count, last = I64(0), U64(len(slots) - 1)
    for i in range(len(hashes)):
        hashed = hashes[i]
        slot = hashed & last
        while True:
            group = slots[slot]
            if group == _EMPTY:
                slots[slot], first[count], ids[i] = count, i, count
                count += 1
                break
            if hashes[first[group]] == hashed:
                ids[i] = group
                break
            slot = (slot + U64(1)) & last
    return count


@kernel
def _equal_texts(
    edges: Edges, data: _Bytes, valid: _Bytes, first_edges: Edges, first_data: _Bytes, first_valid: _Bytes, ids: _Numbers
) -> bool:
    memory, first = pointer(data), pointer(first_data)
    for i in range(len(ids)):
        j = ids[i]
        here, there = len(valid) == 0 or valid[i] != 0, len(first_valid) == 0 or first_valid[j] != 0
        if here != there:
            return False
        if not here:
            continue
        begin, other, length = I64(edges[i]), I64(first_edges[j]), I64(edges[i + 1] - edges[i])
        if first_edges[j + 1] - other != length or not same_text(memory, begin, first, other, length):
            return False
    return True


@compiled
def same_text(memory: Any, begin: int, others: Any, other: int, length: int) -> bool:
    """Whether as many bytes from either place are equal."""
    if length < WORD:
        for k in range(length):  # noqa: SIM110
            if memory[begin + k] != others[other + k]:
                return False
        return True
    for k in range(0, length - WORD, WORD):
        if word_at(memory, begin + k) != word_at(others, other + k):
            return False
    # The last eight may overlap those before.
    return word_at(memory, begin + length - WORD) == word_at(others, other + length - WORD)


@kernel
def _equal_numbers(numbers: _Hashes, valid: _Bytes, first: _Hashes, first_valid: _Bytes, ids: _Numbers) -> bool:
    for i in range(len(ids)):
        j = ids[i]
        here, there = len(valid) == 0 or valid[i] != 0, len(first_valid) == 0 or first_valid[j] != 0
        if here != there or (here and numbers[i] != first[j]):
            return False
    return True
