"""Partials: from a batch of events to one small table per (slice, shard), and merging them.

Rows are grouped once for all aggregates of a metric; see groups.py and aggregates/base.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streamgauge.transforms.aggregates.base import Aggregate, Kernel, StateColumn
from streamgauge.transforms.aggregates.count import EVENTS
from streamgauge.transforms.batch import EVENT_TIME_TYPE, FINGERPRINT_BYTES, BatchCodec
from streamgauge.transforms.groups import Groups, group_rows
from streamgauge.transforms.hashing import hash_rows
from streamgauge.transforms.pieces import MANY_ROWS, RANGES, Ranged, pieces, ranges, side_by_side
from streamgauge.transforms.reductions import reduced
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sharding import Sharding, divided


@dataclass(frozen=True)
class Metric:
    """What is computed: the algebra of one AggregateWindows over events of one schema.

    Attributes:
        name: value of the results' column ``metric``.
        by: field of each dimension, by the name of its result column.
        aggregates: aggregate by the name of its result column.
        schema: of the events.
        shards: number of shards the keys are divided into.
        window_key: the bound that is part of the rows' key, see windows/base.py.
        withdraws: whether a row can be withdrawn: its results have a column ``withdrawn``.
        extra: state columns that the window needs.
        limit: of each shard and window, so many keys have rows of their own, and the others share one; None: no limit.
        others: whether the shared row is a result: results have a column ``other``.
        disjoint: whether windows are those of the data and of one key never overlap: ``RowSpec.until``.
    """

    name: str
    by: dict[str, str]
    aggregates: dict[str, Aggregate]
    schema: pa.Schema
    shards: int
    window_key: str = "window_start"
    withdraws: bool = False
    extra: tuple[StateColumn, ...] = ()
    limit: int | None = None
    others: bool = False
    disjoint: bool = False

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """State columns of all aggregates, each once; the number of events first."""
        columns = {column.name: column for column in (EVENTS, *self.extra)}
        for aggregate in self.aggregates.values():
            columns.update({column.name: column for column in aggregate.state})
        return tuple(columns.values())

    @property
    def dimensions(self) -> list[pa.Field]:
        return [self.schema.field(field).with_name(name) for name, field in self.by.items()]

    @property
    def keys(self) -> list[pa.Field]:
        """What tells rows apart: the dimensions, and with a limit whether it is the row of the keys beyond it."""
        return [*self.dimensions, *([pa.field(OTHER, pa.bool_(), nullable=False)] if self.limit is not None else [])]

    @property
    def partial_schema(self) -> pa.Schema:
        """Keys, then state columns: one row a key."""
        return pa.schema([*self.keys, *(pa.field(column.name, column.type) for column in self.state)])

    @property
    def result_schema(self) -> pa.Schema:
        """metric, window_start, window_end (timestamp[us, UTC]), dimensions, aggregates, events, revision (int64), final (bool), watermark
        (timestamp[us, UTC], how far event time had come when the row was made, null before that was known); withdrawn (bool) where rows can be;
        other (int32) with a limit on keys: the shard whose further keys the row stands for, null in the row of a key."""
        stamp = EVENT_TIME_TYPE
        fields = [
            pa.field("metric", pa.string(), nullable=False),
            pa.field("window_start", stamp, nullable=False),
            pa.field("window_end", stamp, nullable=False),
            *self.dimensions,
            *(pa.field(name, aggregate.type) for name, aggregate in self.aggregates.items()),
            pa.field("events", pa.int64(), nullable=False),
            pa.field("revision", pa.int64(), nullable=False),
            pa.field("final", pa.bool_(), nullable=False),
            pa.field("watermark", stamp),
            *([pa.field("withdrawn", pa.bool_(), nullable=False)] if self.withdraws else []),
            *([pa.field("other", pa.int32())] if self.others else []),
        ]
        rows = RowSpec(
            "results", key=("metric", *self.by, *(["other"] if self.others else []), self.window_key), time=self.window_key, revision="revision", final="final",
            withdrawn="withdrawn" if self.withdraws else None, until="window_end" if self.disjoint else None,
        )  # fmt: skip
        return rows.attach(pa.schema(fields))


OTHER = "__other"
"""Column of a partial: true for the one row of all keys beyond the limit, whose dimensions are null."""

GONE = np.iinfo(np.int64).max - 1
"""Revision of a withdrawn row whose key went beyond the limit: it never comes back."""

RESULT_COLUMNS = ("metric", "window_start", "window_end", "events", "revision", "final", "watermark", "withdrawn", "other")


class Partials:
    """Makes and merges the partial tables of a metric.

    Args:
        earlier: schemas of partials that an earlier version of the job may have stored: decoded too, if they have every column that this one has.
        sharding: shards by slice; those of the metric if None.
    """

    def __init__(self, metric: Metric, earlier: Sequence[pa.Schema] = (), sharding: Sharding | None = None) -> None:
        self.metric = metric
        self._sharding = sharding or Sharding(metric.shards)
        self.codec = BatchCodec(metric.partial_schema, compress=True)
        self._state = metric.state
        self._keys = len(metric.keys)
        self._result_schema = metric.result_schema
        codecs = [(BatchCodec(schema), _places(schema, self.codec.schema, len(metric.keys))) for schema in earlier]
        self._earlier = {codec.fingerprint: (codec, places) for codec, places in codecs if places and codec.fingerprint != self.codec.fingerprint}

    def decode(self, data: bytes) -> pa.RecordBatch:
        """A stored partial. Raises SchemaMismatch when it was stored with a schema of which nothing is known."""
        codec, places = self._earlier.get(data[:FINGERPRINT_BYTES], (self.codec, None))
        batch = codec.decode(data)
        return batch if places is None else pa.record_batch([batch.column(place) for place in places], schema=self.codec.schema)

    def of_events(self, events: pa.RecordBatch, slices: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        """(slice start, shard, partial) of every slice and shard that the events touch; ``slices`` has one start an event."""
        columns = [events.column(field) for field in self.metric.by.values()]
        hashes = hash_rows(columns, events.num_rows)
        groups = group_rows(columns, events.num_rows, hashes).split(slices)
        starts, hashes = slices[groups.first], hashes[groups.first]
        shards = self._sharding.of(hashes, starts)
        order = self._order(starts, shards, hashes)
        # Groups are put in order before they are reduced: their numbers are cheaper to move than their rows.
        starts, shards, partial = starts[order], shards[order], self.reduce(events, groups.ordered(order))
        for first, last in _runs((np.diff(starts) != 0) | (np.diff(shards) != 0)):
            yield int(starts[first]), int(shards[first]), partial.slice(first, last - first)

    def by_shard(self, partial: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(shard, its rows) of every shard that the partial touches."""
        shards = divided(hash_rows(self.keys(partial)[: len(self.metric.by)], partial.num_rows), self.metric.shards)
        order = np.argsort(shards, kind="stable")
        shards, partial = shards[order], partial.take(pa.array(order))
        for first, last in _runs(np.diff(shards) != 0):
            yield int(shards[first]), partial.slice(first, last - first)

    def group(self, events: pa.RecordBatch) -> Groups:
        """Events of one key."""
        return group_rows([events.column(field) for field in self.metric.by.values()], events.num_rows)

    def reduce(self, events: pa.RecordBatch, groups: Groups) -> pa.RecordBatch:
        """The partial of a batch of events: one row a group. The limit is not applied."""
        first = pa.array(groups.first)
        keys = [events.column(field).take(first) for field in self.metric.by.values()]
        if self.metric.limit is not None:
            keys.append(pa.repeat(False, groups.count))
        return self._grouped(keys, [column.source(events) for column in self._state], groups, [column.partial for column in self._state])

    def merge(self, batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        """One partial out of several of one slice and shard. At least one is given."""
        merged = batches[0] if len(batches) == 1 else concatenated([self.merge_groups(rows, groups) for rows, groups, _ in self._pieces(batches)])
        beyond = self._beyond(merged)
        return merged if beyond is None else self._shared(merged, beyond)

    def merge_changed(
        self, old: Sequence[pa.RecordBatch], new: Sequence[pa.RecordBatch]
    ) -> tuple[pa.RecordBatch, npt.NDArray[np.bool_], pa.RecordBatch | None]:
        """What ``merge`` gives of both, which of its rows are not those of ``old`` alone, and rows of ``old`` whose keys went beyond the limit."""
        made, changes, knowns = [], [], []
        for rows, groups, edge in self._pieces([*old, *new], len(old)):
            changed, known = np.zeros(groups.count, np.bool_), np.zeros(groups.count, np.bool_)
            known[groups.ids[:edge]] = True
            changed[groups.ids[edge:]] = True
            made.append(self.merge_groups(rows, groups))
            changes.append(changed)
            knowns.append(known)
        merged, changed, known = concatenated(made), np.concatenate(changes), np.concatenate(knowns)
        beyond = self._beyond(merged)
        if beyond is None:
            return merged, changed, None
        gone = merged.filter(pa.array(beyond & known & ~_flags(merged)))
        return self._shared(merged, beyond), np.append(changed[~beyond], True), gone if gone.num_rows else None

    def merge_each(self, parts: Sequence[Part]) -> list[tuple[pa.RecordBatch, npt.NDArray[np.bool_], pa.RecordBatch | None]]:
        """What ``merge_changed`` gives of each part: many small ones cost little more than one."""
        sizes = np.array([[sum(batch.num_rows for batch in batches) for batches in part] for part in parts])
        if len(parts) < 2 or self.metric.limit is not None or sizes.sum() >= MANY_ROWS:
            return [self.merge_changed(old, new) for old, new in parts]
        rows = concatenated([batch for old, new in parts for batch in (*old, *new)])
        part = np.repeat(np.arange(len(parts)), sizes.sum(axis=1))
        new_rows = np.repeat(np.tile([False, True], len(parts)), sizes.ravel())
        # Groups are numbered in the order of their first rows: those of a part follow each other.
        groups = group_rows(self.keys(rows), rows.num_rows).split(part)
        changed = np.zeros(groups.count, np.bool_)
        changed[groups.ids[new_rows]] = True
        merged = self.merge_groups(rows, groups)
        edges = np.searchsorted(part[groups.first], np.arange(len(parts) + 1))
        return [(merged.slice(first, last - first), changed[first:last], None) for first, last in pairwise(edges.tolist())]

    def _pieces(self, batches: Sequence[pa.RecordBatch], old: int = 0) -> Iterator[tuple[pa.RecordBatch, Groups, int]]:
        """All rows, those of one key in one piece; their groups; how many rows of the piece are of the first ``old`` batches.

        Few rows are one piece.
        """
        total = sum(batch.num_rows for batch in batches)
        if total < MANY_ROWS or self.metric.limit is not None or not self._keys:
            rows = concatenated(batches)
            yield rows, group_rows(self.keys(rows), total), sum(batch.num_rows for batch in batches[:old])
            return
        for some, hashes in pieces(self._ranged(batches)):
            rows = concatenated(some)
            if rows.num_rows:
                yield rows, group_rows(self.keys(rows), rows.num_rows, hashes), sum(batch.num_rows for batch in some[:old])

    def unmerged(self, batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        """All rows of partials in one, as a merge takes them best."""
        return concatenated(list(side_by_side(self._ranged(batches))))

    def _ranged(self, batches: Sequence[pa.RecordBatch]) -> list[Ranged]:
        return [Ranged.of(batch, hash_rows(self.keys(batch), batch.num_rows)) for batch in batches]

    def _beyond(self, merged: pa.RecordBatch) -> npt.NDArray[np.bool_] | None:
        """Rows of keys beyond the limit and the row that they share, None when all fit.

        Kept are the keys of the smallest hashes. Who is among the smallest of all is among the smallest of each part too: so a key with a row has all
        of its events there, whatever the order in which keys came. (Bottom-k sampling; Cohen and Kaplan, "Summarizing data using bottom-k
        sketches", PODC 2007.)
        """
        limit = self.metric.limit
        if limit is None or merged.num_rows <= limit:
            return None
        other = _flags(merged)
        if merged.num_rows - int(other.sum()) <= limit:
            return None
        hashes = hash_rows(self.keys(merged)[:-1], merged.num_rows)
        hashes[other] = np.iinfo(np.uint64).max
        beyond = np.ones(merged.num_rows, np.bool_)
        beyond[np.argsort(hashes, kind="stable")[:limit]] = False
        return beyond

    def _shared(self, merged: pa.RecordBatch, beyond: npt.NDArray[np.bool_]) -> pa.RecordBatch:
        """The partial with one row for all that are beyond, the last one."""
        kept = np.flatnonzero(~beyond)
        ids = np.full(merged.num_rows, len(kept))
        ids[kept] = np.arange(len(kept))
        groups = Groups(ids, len(kept) + 1, np.append(kept, np.flatnonzero(beyond)[0]))
        mask = pa.array(beyond)
        keys = [pc.if_else(mask, pa.scalar(None, key.type), key) for key in self.keys(merged)[:-1]]
        flags = pc.or_(mask, self.keys(merged)[-1])
        return self.merge_groups(pa.record_batch([*keys, flags, *merged.columns[self._keys :]], schema=self.codec.schema), groups)

    def merge_groups(self, rows: pa.RecordBatch, groups: Groups) -> pa.RecordBatch:
        """One row a group out of the rows of partials."""
        first = pa.array(groups.first)
        keys = [key.take(first) for key in self.keys(rows)]
        return self._grouped(keys, rows.columns[self._keys :], groups, [column.merge for column in self._state])

    def keys(self, partial: pa.RecordBatch) -> list[pa.Array]:
        """The columns that tell rows apart."""
        columns: list[pa.Array] = partial.columns[: self._keys]
        return columns

    def results(
        self, merged: pa.RecordBatch, window_start: Bound, window_end: Bound, *, final: bool | npt.NDArray[np.bool_],
        watermark: int | pa.Array | None = None, revision: npt.NDArray[np.int64] | None = None, withdrawn: npt.NDArray[np.bool_] | None = None, shard: int = 0,
    ) -> pa.RecordBatch:  # fmt: skip
        """Result rows from merged partials.

        Args:
            window_start, window_end: microseconds; one for all rows, or one a row.
            watermark: microseconds; how far event time had come, None when that is not known. One for all rows, or one a row.
            revision: one a row; the number of its events where nothing else is said.
            withdrawn: rows that only say that an earlier one of their key holds no more. Of metrics whose rows can be withdrawn.
            shard: of which the rows are.
        """
        table = pa.Table.from_batches([merged])
        rows = merged.num_rows
        events = merged.column(EVENTS.name)
        columns: list[Any] = [
            pa.repeat(self.metric.name, rows), _stamps(window_start, rows), _stamps(window_end, rows), *self.keys(merged)[: len(self.metric.by)],
            *(_plain(aggregate.result(table).cast(aggregate.type)) for aggregate in self.metric.aggregates.values()),
            events, events if revision is None else pa.array(revision), _per_row(final, rows), _stamps(watermark, rows),
        ]  # fmt: skip
        if self.metric.withdraws:
            gone = np.zeros(rows, np.bool_) if withdrawn is None else withdrawn
            if gone.any():
                columns = [_without(column, gone) if name in self.metric.aggregates else column for name, column in zip(self._result_schema.names, columns, strict=False)]
                columns[self._result_schema.names.index("events")] = pc.if_else(gone, 0, events)
            columns.append(pa.array(gone))
        if self.metric.others:
            columns.append(pc.if_else(merged.column(OTHER), pa.scalar(shard, pa.int32()), None))
        return pa.record_batch(columns, schema=self._result_schema)

    @staticmethod
    def _order(slices: npt.NDArray[np.int64], shards: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """The order of slices, shards, and ranges of the hash."""
        # Numbers of 16 bits are sorted by radix.
        order = np.argsort((shards * RANGES + ranges(hashes)).astype(np.uint16), kind="stable")
        slices = slices[order]
        return order[np.argsort(slices, kind="stable")] if (slices != slices[0]).any() else order

    def _grouped(self, keys: list[pa.Array], state: list[pa.Array], groups: Groups, how: list[str | Kernel]) -> pa.RecordBatch:
        """One row a group: its key, and its state columns reduced."""
        columns = [function(state[i], groups) if callable(function) else reduced(function, state[i], groups) for i, function in enumerate(how)]
        self._by_arrow(columns, state, groups, how)
        fields = self.codec.schema
        return pa.record_batch([column.cast(field.type) for column, field in zip([*keys, *columns], fields, strict=True)], schema=fields)

    @staticmethod
    def _by_arrow(columns: list[pa.Array | None], state: list[pa.Array], groups: Groups, how: list[str | Kernel]) -> None:
        """Fills in the columns that are still missing."""
        functions = [(f"c{i}", how[i]) for i, column in enumerate(columns) if column is None]
        if not functions:
            return
        table = pa.table({"group": groups.ids, **{name: state[int(name[1:])] for name, _ in functions}})
        # Threads stay off: parallelism is the runner's.
        made = table.group_by("group", use_threads=False).aggregate(functions)
        order = made.column("group").to_numpy()
        if (np.diff(order) != 1).any():
            made = made.take(pa.array(np.argsort(order)))
        for name, function in functions:
            columns[int(name[1:])] = _plain(made.column(f"{name}_{function}"))


def _places(earlier: pa.Schema, schema: pa.Schema, dimensions: int) -> list[int] | None:
    """Where the columns of ``schema`` are in ``earlier``: dimensions by their place, state by its name. None when one is not there, or of another type."""
    places = [*range(dimensions), *(earlier.get_field_index(name) for name in schema.names[dimensions:])]
    fits = all(0 <= place < len(earlier) and earlier.field(place).type == field.type for place, field in zip(places, schema, strict=True))
    return places if fits else None


Bound = int | npt.NDArray[np.int64]

Part = tuple[Sequence[pa.RecordBatch], Sequence[pa.RecordBatch]]
"""Partials of one slice and shard: those of which results had been told, and the new ones."""


def concatenated(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """All rows of batches of one schema in one; at least one batch is given."""
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _flags(partial: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Which row is that of the keys beyond the limit. Of metrics with one."""
    return np.asarray(partial.column(OTHER))


def _runs(changes: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last row (exclusive) of each run, by whether a row differs from the one before it, from the second row on."""
    edges = [0, *(np.flatnonzero(changes) + 1).tolist(), len(changes) + 1]
    return list(pairwise(edges))


def _stamps(moment: Bound | pa.Array | None, rows: int) -> pa.Array:
    if moment is None or isinstance(moment, int):
        return pa.repeat(pa.scalar(moment, EVENT_TIME_TYPE), rows)
    return pa.array(moment).cast(EVENT_TIME_TYPE)


def _per_row(value: bool | npt.NDArray[np.bool_], rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), rows) if isinstance(value, bool) else pa.array(value)


def _without(column: pa.Array, gone: npt.NDArray[np.bool_]) -> pa.Array:
    return pc.if_else(gone, pa.scalar(None, column.type), column)


def _plain(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
