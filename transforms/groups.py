"""Groups: which rows of a table have equal keys. The base of every grouping and merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_Numbers = npt.NDArray[np.int64]


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
        return _numbered(_paired(self.ids, self.count, part - least, most - least + 1))


def group_rows(columns: Sequence[pa.Array], rows: int) -> Groups:
    """Groups of equal rows over the given columns; null is a value. Without columns: one group.

    >>> group_rows([pa.array(["a", "b", None, "a"]), pa.array([1, 1, 1, 1])], 4).ids.tolist()
    [0, 1, 2, 0]
    """
    if not columns:
        return Groups(np.zeros(rows, np.int64), 1, np.zeros(1, np.int64))
    codes, count = _codes(columns[0])
    for column in columns[1:]:
        more, size = _codes(column)
        codes = _paired(codes, count, more, size)
        codes, count = _codes(pa.array(codes))
    return Groups(codes, count, _first_rows(codes, count))


def _paired(ids: _Numbers, count: int, others: _Numbers, size: int) -> _Numbers:
    """One number for each pair. Numbers below 2**63 fit as they are; else ``others`` are numbered anew first."""
    if count * size >= 2**62:
        others, size = _codes(pa.array(others))
    return ids * size + others


def _numbered(values: _Numbers) -> Groups:
    codes, count = _codes(pa.array(values))
    return Groups(codes, count, _first_rows(codes, count))


def _codes(column: pa.Array) -> tuple[_Numbers, int]:
    """Each value's number, in the order of first appearance."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = pc.dictionary_encode(column, null_encoding="encode")
    return encoded.indices.to_numpy().astype(np.int64), len(encoded.dictionary)


def _first_rows(codes: _Numbers, count: int) -> _Numbers:
    first = np.empty(count, np.int64)
    # Of several writes to one place the last one stays: backwards, that is the first row.
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return first
