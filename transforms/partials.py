"""Partials: from a batch of events to one small table per (slice, shard), and merging them.

Grouping is Arrow's hash aggregation, once for all aggregates of a metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamgauge.transforms.aggregates.base import Aggregate, StateColumn
from streamgauge.transforms.aggregates.count import EVENTS
from streamgauge.transforms.batch import FINGERPRINT_BYTES, BatchCodec
from streamgauge.transforms.hashing import hash_rows
from streamgauge.transforms.rows import RowSpec

_SLICE = "__slice"


@dataclass(frozen=True)
class Metric:
    """What is computed: the algebra of one AggregateWindows over events of one schema.

    Attributes:
        name: value of the results' column ``metric``.
        by: field of each dimension, by the name of its result column.
        aggregates: aggregate by the name of its result column.
        schema: of the events.
        shards: number of shards the keys are divided into.
    """

    name: str
    by: dict[str, str]
    aggregates: dict[str, Aggregate]
    schema: pa.Schema
    shards: int

    @property
    def state(self) -> tuple[StateColumn, ...]:
        """State columns of all aggregates, each once; the number of events first."""
        columns = {EVENTS.name: EVENTS}
        for aggregate in self.aggregates.values():
            columns.update({column.name: column for column in aggregate.state})
        return tuple(columns.values())

    @property
    def dimensions(self) -> list[pa.Field]:
        return [self.schema.field(field).with_name(name) for name, field in self.by.items()]

    @property
    def partial_schema(self) -> pa.Schema:
        """Dimensions, then state columns: one row a key."""
        return pa.schema([*self.dimensions, *(pa.field(column.name, column.type) for column in self.state)])

    @property
    def result_schema(self) -> pa.Schema:
        """metric, window_start, window_end (timestamp[us, UTC]), dimensions, aggregates, events, revision (int64), final (bool)."""
        stamp = pa.timestamp("us", tz="UTC")
        fields = [
            pa.field("metric", pa.string(), nullable=False),
            pa.field("window_start", stamp, nullable=False),
            pa.field("window_end", stamp, nullable=False),
            *self.dimensions,
            *(pa.field(name, aggregate.type) for name, aggregate in self.aggregates.items()),
            pa.field("events", pa.int64(), nullable=False),
            pa.field("revision", pa.int64(), nullable=False),
            pa.field("final", pa.bool_(), nullable=False),
        ]
        rows = RowSpec("results", key=("metric", *self.by, "window_start"), time="window_start", revision="revision", final="final")
        return rows.attach(pa.schema(fields))


RESULT_COLUMNS = ("metric", "window_start", "window_end", "events", "revision", "final")


class Partials:
    """Makes and merges the partial tables of a metric.

    Args:
        earlier: schemas of partials that an earlier version of the job may have stored: decoded too, if they have every column that this one has.
    """

    def __init__(self, metric: Metric, earlier: Sequence[pa.Schema] = ()) -> None:
        self.metric = metric
        self.codec = BatchCodec(metric.partial_schema)
        self._state = metric.state
        self._result_schema = metric.result_schema
        codecs = [(BatchCodec(schema), _places(schema, self.codec.schema, len(metric.by))) for schema in earlier]
        self._earlier = {codec.fingerprint: (codec, places) for codec, places in codecs if places and codec.fingerprint != self.codec.fingerprint}

    def decode(self, data: bytes) -> pa.RecordBatch:
        """A stored partial. Raises SchemaMismatch when it was stored with a schema of which nothing is known."""
        codec, places = self._earlier.get(data[:FINGERPRINT_BYTES], (self.codec, None))
        batch = codec.decode(data)
        return batch if places is None else pa.record_batch([batch.column(place) for place in places], schema=self.codec.schema)

    def of_events(self, events: pa.RecordBatch, slices: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        """(slice start, shard, partial) of every slice and shard that the events touch; ``slices`` has one start an event."""
        one_slice = bool((slices == slices[0]).all())
        keys = [] if one_slice else [_SLICE]
        columns = {} if one_slice else {_SLICE: pa.array(slices)}
        columns |= {f"by{i}": events.column(field) for i, field in enumerate(self.metric.by.values())}
        columns |= {f"state{i}": column.source(events) for i, column in enumerate(self._state)}
        keys += [f"by{i}" for i in range(len(self.metric.by))]
        functions = [column.partial for column in self._state]
        grouped = _group(pa.table(columns), keys, functions)
        partial = self._as_partial(grouped, functions)
        starts = np.full(partial.num_rows, slices[0]) if one_slice else grouped.column(_SLICE).to_numpy()
        shards = (hash_rows(partial.columns[: len(self.metric.by)], partial.num_rows) % np.uint64(self.metric.shards)).astype(np.int64)
        order = np.lexsort((shards, starts))
        starts, shards, partial = starts[order], shards[order], partial.take(pa.array(order))
        edges = np.flatnonzero((np.diff(starts) != 0) | (np.diff(shards) != 0)) + 1
        for first, last in zip([0, *edges.tolist()], [*edges.tolist(), partial.num_rows], strict=True):
            yield int(starts[first]), int(shards[first]), partial.slice(first, last - first)

    def merge(self, batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        """One partial out of several of one slice and shard. At least one is given."""
        if len(batches) == 1:
            return batches[0]
        table = pa.Table.from_batches(batches)
        names = [f"by{i}" for i in range(len(self.metric.by))] + [f"state{i}" for i in range(len(self._state))]
        functions = [column.merge for column in self._state]
        return self._as_partial(_group(table.rename_columns(names), names[: len(self.metric.by)], functions), functions)

    def results(self, merged: pa.RecordBatch, window_start: int, window_end: int, *, final: bool) -> pa.RecordBatch:
        """Result rows of a window (bounds in microseconds) from its merged partial."""
        table = pa.Table.from_batches([merged])
        rows = merged.num_rows
        stamp = pa.timestamp("us", tz="UTC")
        events = merged.column(EVENTS.name)
        columns: list[Any] = [
            pa.repeat(self.metric.name, rows),
            pa.repeat(pa.scalar(window_start, stamp), rows),
            pa.repeat(pa.scalar(window_end, stamp), rows),
            *merged.columns[: len(self.metric.by)],
            *(_plain(aggregate.result(table).cast(aggregate.type)) for aggregate in self.metric.aggregates.values()),
            events,
            events,
            pa.repeat(pa.scalar(final), rows),
        ]
        return pa.record_batch(columns, schema=self._result_schema)

    def _as_partial(self, grouped: pa.Table, functions: list[str]) -> pa.RecordBatch:
        """The grouped table as a partial: Arrow names a column after its function too."""
        names = [f"by{i}" for i in range(len(self.metric.by))] + [f"state{i}_{function}" for i, function in enumerate(functions)]
        fields = self.codec.schema
        columns = [_plain(grouped.column(name)).cast(field.type) for name, field in zip(names, fields, strict=True)]
        return pa.record_batch(columns, schema=fields)


def _places(earlier: pa.Schema, schema: pa.Schema, dimensions: int) -> list[int] | None:
    """Where the columns of ``schema`` are in ``earlier``: dimensions by their place, state by its name. None when one is not there, or of another type."""
    places = [*range(dimensions), *(earlier.get_field_index(name) for name in schema.names[dimensions:])]
    fits = all(0 <= place < len(earlier) and earlier.field(place).type == field.type for place, field in zip(places, schema, strict=True))
    return places if fits else None


def _group(table: pa.Table, keys: list[str], functions: list[str]) -> pa.Table:
    """One row a key; without keys one row. Threads stay off: parallelism is the runner's."""
    return table.group_by(keys, use_threads=False).aggregate([(f"state{i}", function) for i, function in enumerate(functions)])


def _plain(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
