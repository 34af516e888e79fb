"""Pieces of large partials: rows by ranges of their keys' hashes, so that what is merged at a time fits into the processor's cache.

Grouping and reducing read and write at random. Of a million keys that is all over the memory, of a sixteenth of them it is not (partitioning; Shatdal,
Kant and Naughton, "Cache conscious algorithms for relational query processing", VLDB 1994).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MANY_ROWS = 1 << 17
"""From so many rows on, pieces are worth their cost."""

RANGE_BITS = 4
RANGES = 1 << RANGE_BITS

_Hashes = npt.NDArray[np.uint64]


def ranges(hashes: _Hashes) -> npt.NDArray[np.uint8]:
    """The range that each hash is in, of ``RANGES``."""
    return (hashes >> np.uint64(64 - RANGE_BITS)).astype(np.uint8)


class Ranged(NamedTuple):
    """Rows in the order of ranges."""

    rows: pa.RecordBatch
    hashes: _Hashes
    edges: list[int]
    """Where each range begins, and the last one ends."""

    @classmethod
    def of(cls, rows: pa.RecordBatch, hashes: _Hashes) -> Ranged:
        """Rows with the hashes of their keys, in any order; cheaper when it is that of ranges."""
        found = ranges(hashes)
        if (found[1:] < found[:-1]).any():
            order = np.argsort(found, kind="stable")
            rows, hashes, found = rows.take(pa.array(order)), hashes[order], found[order]
        return cls(rows, hashes, np.searchsorted(found, np.arange(RANGES + 1)).tolist())

    def piece(self, number: int) -> tuple[pa.RecordBatch, _Hashes]:
        """The rows of one range, and their hashes."""
        first, last = self.edges[number : number + 2]
        return self.rows.slice(first, last - first), self.hashes[first:last]


def pieces(parts: Sequence[Ranged]) -> Iterator[tuple[Sequence[pa.RecordBatch], _Hashes]]:
    """Rows of all parts, range by range: of each part a batch, and the hashes of all."""
    for number in range(RANGES):
        batches, hashes = zip(*(part.piece(number) for part in parts), strict=True)
        yield batches, np.concatenate(hashes)


def side_by_side(parts: Sequence[Ranged]) -> Iterable[pa.RecordBatch]:
    """All rows, which stay in the order of ranges."""
    return (part.piece(number)[0] for number in range(RANGES) for part in parts)
