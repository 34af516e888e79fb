"""WriteResults: rows into a store, idempotently by their natural key."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Annotated, Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from pydantic import Field

from streamgauge.transforms.config import Choice, Config, OneOf
from streamgauge.transforms.options import StreamgaugeOptions
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks import SINKS
from streamgauge.transforms.sinks.base import Sink

FLUSH_ROWS = 50_000


class WriteOptions(Config):
    """Writes results, late events or dead letters to a store."""

    to: Annotated[Choice, OneOf(SINKS)] = Field(description="The store.")


class WriteResults(beam.PTransform):  # type: ignore[misc]
    """RecordBatches that carry a :class:`RowSpec` -> nothing.

    Rows of a bundle are written at its end, the newest revision of each key; the bundle is not done before they are durable.
    Guarantee: that of the sink. The bundle is retried until it succeeds, and sinks write idempotently.
    """

    def __init__(self, label: str | None = None, **options: Any) -> None:
        super().__init__(label)
        self.options = WriteOptions.model_validate(options)

    def expand(self, rows: beam.PCollection) -> None:
        folder = rows.pipeline.options.view_as(StreamgaugeOptions).record_folder
        _ = rows | "Write" >> beam.ParDo(_WriteDoFn(self.options.to, folder))


class _WriteDoFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, to: Choice, record_folder: str | None) -> None:
        self._to = to
        self._record_folder = record_folder
        self._sink: Sink | None = None
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._written = Metrics.counter("streamgauge", "rows_written")
        self._counts = {"rows": 0, "final": 0}
        self._newest: int | None = None

    def setup(self) -> None:
        self._record = JobRecord(self._record_folder)

    def start_bundle(self) -> None:
        # What a failed bundle left must not be written by the next one.
        self._batches, self._rows = [], 0

    def process(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._rows += batch.num_rows
        if self._rows >= FLUSH_ROWS:
            self._flush()

    def finish_bundle(self) -> None:
        self._flush()

    def teardown(self) -> None:
        if self._sink is not None:
            self._sink.close()

    def _flush(self) -> None:
        batches, self._batches, self._rows = self._batches, [], 0
        for schema, group in _by_schema(batches):
            spec = RowSpec.of(schema)
            table = newest(pa.Table.from_batches(group, schema), spec)
            if self._sink is None:
                self._sink = self._to.create()
                self._sink.open(schema, spec)
            self._sink.write(table)
            self._note(table, spec)

    def _note(self, table: pa.Table, spec: RowSpec) -> None:
        assert self._sink is not None
        self._written.inc(table.num_rows)
        self._counts["rows"] += table.num_rows
        if spec.final is not None:
            closed = table.filter(table.column(spec.final))
            self._counts["final"] += closed.num_rows
            latest = pc.max(closed.column(spec.time)).cast(pa.int64()).as_py()
            self._newest = max((value for value in (self._newest, latest) if value is not None), default=None)
        values = {"sink": self._sink.name, "kind": spec.kind, **self._counts, "newest_final": self._newest, "updated": time.time()}
        self._record.put("sinks", f"{self._sink.name}-{os.getpid()}-{id(self)}", values, now=True)


def _by_schema(batches: list[pa.RecordBatch]) -> Iterator[tuple[pa.Schema, list[pa.RecordBatch]]]:
    """A flattened input may mix schemas, though a sink takes one: it says so itself."""
    rest = batches
    while rest:
        schema = rest[0].schema
        yield schema, [batch for batch in rest if batch.schema.equals(schema)]
        rest = [batch for batch in rest if not batch.schema.equals(schema)]


def newest(table: pa.Table, spec: RowSpec) -> pa.Table:
    """One row a key: the highest revision, of equal ones a final one, of equal ones the last.

    >>> spec = RowSpec("results", key=("k",), time="t", revision="revision")
    >>> newest(pa.table({"k": ["a", "a", None, None], "revision": [2, 1, 5, 5], "v": [1, 2, 3, 4]}), spec).to_pylist()
    [{'k': 'a', 'revision': 2, 'v': 1}, {'k': None, 'revision': 5, 'v': 4}]
    """
    if table.num_rows < 2:
        return table
    order = [(name, "ascending") for name in (spec.revision, spec.final) if name is not None]
    numbered = table.append_column("__row", pa.array(range(table.num_rows), pa.int64()))
    ranked = numbered.sort_by([*order, ("__row", "ascending")]).append_column("__rank", pa.array(range(table.num_rows), pa.int64()))
    best = ranked.group_by(list(spec.key), use_threads=False).aggregate([("__rank", "max")]).column("__rank_max")
    if len(best) == table.num_rows:
        return table
    return ranked.take(best).sort_by("__row").drop_columns(["__row", "__rank"]).replace_schema_metadata(table.schema.metadata)
