"""The order of events: by event time, then split, then position there.

It is a function of the events alone, so what is first, last or next is the same in any batching, in any order of merging, and after a
replay. Events of one position (of a list that was split into rows) keep the order of their rows: they are never in different batches.
An EventBatch made by hand may lack split and position; which of its events of equal time is first is then left open.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streamgauge.transforms.aggregates.base import Source
from streamgauge.transforms.batch import EVENT_TIME, POSITION, SPLIT
from streamgauge.transforms.formats.compiled import compiled, kernel

Longs = npt.NDArray[np.int64]

TIME = "time"
_LINEAGE = {"split": (SPLIT, pa.string()), "position": (POSITION, pa.int64())}


class Order(NamedTuple):
    """What events are ordered by, one value an event: microseconds, rank of the split's name, position."""

    times: Longs
    splits: Longs
    positions: Longs

    def reversed(self) -> Order:
        return Order(~self.times, ~self.splits, ~self.positions)

    def take(self, rows: Longs) -> Order:
        return Order(self.times[rows], self.splits[rows], self.positions[rows])


def ordered_type(schema: pa.Schema, values: Mapping[str, pa.DataType]) -> pa.StructType:
    """Of events with their place in the order: struct of time (int64, microseconds), split, position and the given values."""
    lineage = [(name, kind) for name, (column, kind) in _LINEAGE.items() if column in schema.names]
    return pa.struct([(TIME, pa.int64()), *lineage, *values.items()])


def ordered_source(schema: pa.Schema, values: Mapping[str, Source]) -> Source:
    """Events as structs of :func:`ordered_type`, but that dictionaries stay what they are; null where one of the values is."""
    lineage = {name: column for name, (column, _) in _LINEAGE.items() if column in schema.names}
    return partial(_structs, lineage, dict(values))


def _structs(lineage: dict[str, str], values: dict[str, Source], events: pa.RecordBatch) -> pa.StructArray:
    picked = {name: source(events) for name, source in values.items()}
    mask = None
    for array in picked.values():
        if array.null_count:
            null = pc.is_null(array)
            mask = null if mask is None else pc.or_(mask, null)
    columns = {TIME: events.column(EVENT_TIME).cast(pa.int64()), **{name: events.column(column) for name, column in lineage.items()}, **picked}
    return pa.StructArray.from_arrays(list(columns.values()), list(columns), mask=mask)


def order_of(events: pa.StructArray) -> Order:
    """The order of the events of a struct column; of those that are null it says nothing."""
    names = events.type.names
    positions = longs(events.field("position")) if "position" in names else np.zeros(len(events), np.int64)
    splits = _ranks(events.field("split")) if "split" in names else np.zeros(len(events), np.int64)
    return Order(longs(events.field(TIME)), splits, positions)


def longs(array: pa.Array) -> Longs:
    """64-bit integers; 0 for null."""
    return np.asarray(pc.fill_null(array, 0) if array.null_count else array, dtype=np.int64)


def _ranks(splits: pa.Array) -> Longs:
    """The rank of each name among those that are there: names are compared once each."""
    if not pa.types.is_dictionary(splits.type):
        splits = splits.dictionary_encode()
    if len(splits.dictionary) <= 1:
        return np.zeros(len(splits), np.int64)
    ranks = np.asarray(pc.rank(splits.dictionary, tiebreaker="dense")).astype(np.int64)
    return ranks[longs(splits.indices.cast(pa.int64()))]


def first_rows(ids: Longs, count: int, counted: npt.NDArray[np.bool_], keys: Longs, order: Order, *, last_row: bool = False) -> pa.Array:
    """The row of each group that is first by key and order; null for a group of which no row counts.

    Args:
        last_row: of rows that are equal in everything the last one, not the first.
    """
    best = np.full(count, -1, np.int64)
    _best(ids, counted, keys, *order, last_row, best)
    return pa.array(best, mask=best < 0)


def sorted_rows(ids: Longs, count: int, order: Order) -> Longs:
    """The rows by group, then by order; rows that are equal in both stay as they are."""
    rows = np.empty(len(ids), np.int64)
    _sort(ids, count, *order, rows)
    return rows


def sorted_groups(ids: Longs, count: int) -> Longs:
    """The rows by group; those of one group stay as they are."""
    rows = np.empty(len(ids), np.int64)
    _deal(ids, count, rows)
    return rows


def lists(ids: Longs, count: int, values: pa.Array) -> pa.ListArray:
    """One list a group, from values that are sorted by group."""
    return pa.ListArray.from_arrays(pa.array(starts(ids, count).astype(np.int32)), values)


def starts(ids: Longs, count: int) -> Longs:
    """Where each of the groups that are sorted begins, and the end."""
    begins = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(ids, minlength=count), out=begins[1:])
    return begins


def those_that_count(column: pa.Array, ids: Longs) -> tuple[pa.Array, Longs]:
    """The values that are there, and the group of each."""
    return (column.drop_null(), ids[np.asarray(column.is_valid())]) if column.null_count else (column, ids)


def flat(column: pa.ListArray, ids: Longs) -> tuple[pa.Array, Longs]:
    """The values of all lists, and the group of each."""
    return pc.list_flatten(column), ids[np.asarray(pc.list_parent_indices(column))]


# Kernels


@kernel
def _best(
    ids: Longs, counted: npt.NDArray[np.bool_], keys: Longs, times: Longs, splits: Longs, positions: Longs, last_row: bool, best: Longs
) -> None:
    for i in range(len(ids)):
        if not counted[i]:
            continue
        b = best[ids[i]]
        if b < 0 or keys[i] < keys[b] or (keys[i] == keys[b] and (_less(times, splits, positions, i, b) or (last_row and not _less(times, splits, positions, b, i)))):
            best[ids[i]] = i


@compiled
def _less(times: Longs, splits: Longs, positions: Longs, i: int, j: int) -> bool:
    if times[i] != times[j]:
        return bool(times[i] < times[j])
    if splits[i] != splits[j]:
        return bool(splits[i] < splits[j])
    return bool(positions[i] < positions[j])


@kernel
def _deal(ids: Longs, count: int, rows: Longs) -> None:
    place = np.zeros(count + 1, np.int64)
    for i in range(len(ids)):
        place[ids[i] + 1] += 1
    for g in range(count):
        place[g + 1] += place[g]
    for i in range(len(ids)):
        rows[place[ids[i]]] = i
        place[ids[i]] += 1


@kernel
def _sort(ids: Longs, count: int, times: Longs, splits: Longs, positions: Longs, rows: Longs) -> None:
    """Rows are dealt to their groups, then merged in runs of 1, 2, 4, ... (what is in order, as most events are, costs a comparison a run)."""
    _deal(ids, count, rows)
    size = len(ids)
    left = np.empty(size, np.int64)
    width = 1
    while width < size:
        for low in range(0, size - width, 2 * width):
            middle, high = low + width, min(low + 2 * width, size)
            before, after = rows[middle - 1], rows[middle]
            if ids[before] != ids[after] or not _less(times, splits, positions, after, before):
                continue
            # Of the left run only what belongs to the group at the seam can have to move.
            left[:width] = rows[low:middle]
            i, j, k = 0, middle, low
            while i < width and j < high:
                a, b = left[i], rows[j]
                if ids[b] == ids[a] and _less(times, splits, positions, b, a):
                    rows[k] = b
                    j += 1
                else:
                    rows[k] = a
                    i += 1
                k += 1
            while i < width:
                rows[k] = left[i]
                i += 1
                k += 1
        width *= 2
