"""WriteResults: rows into a store, idempotently by their natural key; what the store can never take becomes dead letters."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Annotated, Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from pydantic import Field

from streamgauge.transforms import dead_letter
from streamgauge.transforms.batch import BatchType
from streamgauge.transforms.config import Choice, Config, OneOf
from streamgauge.transforms.dead_letter import ErrorHandling
from streamgauge.transforms.options import StreamgaugeOptions
from streamgauge.transforms.record import DEAD_LETTERS, JobRecord
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks import SINKS
from streamgauge.transforms.sinks.base import Rejected, Sink
from streamgauge.transforms.sinks.row_json import json_rows
from streamgauge.transforms.sinks.rows_util import current, describe_key, latest, patience

FLUSH_ROWS = 50_000


class WriteOptions(Config):
    """Writes results, late events or dead letters to a store."""

    to: Annotated[Choice, OneOf(SINKS)] = Field(description="The store.")
    error_handling: ErrorHandling | None = Field(
        None,
        description="Name the output with the rows that the store can never take, as dead letters. "
        "Without it they go to a Parquet data set in the job's folder.",
    )


class WriteResults(beam.PTransform):  # type: ignore[misc]
    """RecordBatches that carry a :class:`RowSpec` -> nothing; with ``error_handling`` a dictionary with the dead letters.

    Rows of a bundle are written at its end, the newest revision of each key; the bundle is not done before they are durable.
    Guarantee: that of the sink. The bundle is retried until it succeeds, and sinks write idempotently.

    A row that the store can never take costs no other: it becomes a dead letter of stage ``write`` whose key is the row's key and
    revision, so that a replay rejects it under the same key, and it leaves in the bundle that brought it: in the same checkpoint.
    A dead letter that its store can never take fails the job.
    """

    def __init__(self, label: str | None = None, **options: Any) -> None:
        super().__init__(label)
        self.options = WriteOptions.model_validate(options)

    def expand(self, rows: beam.PCollection) -> dict[str, beam.PCollection] | None:
        folder = rows.pipeline.options.view_as(StreamgaugeOptions).record_folder
        # A bundle's end has no window of its own: what it emits needs one that every row was in.
        everywhere = rows | "Window" >> beam.WindowInto(GlobalWindows())
        everywhere.element_type = rows.element_type
        rejected = everywhere | "Write" >> beam.ParDo(_WriteDoFn(self.options.to, folder))
        rejected.element_type = BatchType(dead_letter.SCHEMA)
        if self.options.error_handling is not None:
            return {self.options.error_handling.output: rejected}
        if rows.element_type != rejected.element_type:
            _ = rejected | "DeadLetters" >> keep_dead_letters(folder)
        return None


def keep_dead_letters(record_folder: str | None) -> WriteResults:
    """Where dead letters go that a job names no output for."""
    return WriteResults(to={"parquet": {"path": f"{record_folder or 'streamgauge-job'}/{DEAD_LETTERS}"}})


class _WriteDoFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, to: Choice, record_folder: str | None) -> None:
        # Made here, not in the worker: a relative path is one of the folder in which the job was started.
        self._configured: Sink = to.create()
        self._record_folder = record_folder
        self._sink: Sink | None = None
        self._written = Metrics.counter("streamgauge", "rows_written")
        self._rejected = Metrics.counter("streamgauge", "rows_rejected")
        self._counts = {"rows": 0, "final": 0, "rejected": 0}
        self._newest: int | None = None

    def setup(self) -> None:
        self._record = JobRecord(self._record_folder)

    def start_bundle(self) -> None:
        # What a failed bundle left must not be written by the next one.
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._letters: list[pa.RecordBatch] = []
        self._earliest = MAX_TIMESTAMP

    def process(self, batch: pa.RecordBatch, timestamp: Timestamp = beam.DoFn.TimestampParam) -> None:
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._earliest = min(self._earliest, timestamp)
        if self._rows >= FLUSH_ROWS:
            self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        self._flush()
        for letters in self._letters:
            yield WindowedValue(letters, self._earliest, (GlobalWindow(),))

    def teardown(self) -> None:
        if self._sink is not None:
            sink, self._sink = self._sink, None
            sink.close()

    def _flush(self) -> None:
        batches, self._batches, self._rows = self._batches, [], 0
        try:
            for schema, group in _by_schema(batches):
                self._store(latest(pa.Table.from_batches(group, schema), RowSpec.of(schema)))
        except BaseException:
            # The next try starts from a new connection, and from a table that is looked at again.
            self.teardown()
            raise

    def _store(self, table: pa.Table) -> None:
        spec = RowSpec.of(table.schema)
        whole, rejected = _complete(table)
        with patience():
            if self._sink is None:
                sink = copy.copy(self._configured)
                sink.open(table.schema, spec)
                self._sink = sink
            rejected += self._sink.write(whole)
        for part in rejected:
            if spec.kind == dead_letter.ROWS.kind:
                raise ValueError(f"{self._sink.name} can never take the dead letter {describe_key(part.rows, spec)}: {part.reason}")
            self._letters.append(_letters(part, spec, self._sink.name))
        self._note(table, rejected, spec)

    def _note(self, table: pa.Table, rejected: list[Rejected], spec: RowSpec) -> None:
        assert self._sink is not None
        refused = sum(part.rows.num_rows for part in rejected)
        self._written.inc(table.num_rows - refused)
        self._rejected.inc(refused)
        self._counts["rows"] += table.num_rows - refused
        self._counts["rejected"] += refused
        now = spec.final is None or refused > 0
        if spec.final is not None:
            closed = _closed(table, spec)
            # Early rows come often, and final ones after them: there is always a later note that counts them.
            now = now or closed.num_rows > 0
            self._counts["final"] += closed.num_rows - sum(_closed(part.rows, spec).num_rows for part in rejected)
            newest = pc.max(closed.column(spec.time)).cast(pa.int64()).as_py()
            self._newest = max((value for value in (self._newest, newest) if value is not None), default=None)
        values = {"sink": self._sink.name, "kind": spec.kind, **self._counts, "newest_final": self._newest, "updated": time.time()}
        self._record.put_own("sinks", self._sink.name, values, now=now)


def _closed(table: pa.Table, spec: RowSpec) -> pa.Table:
    """The final rows; one that is withdrawn is none."""
    held = current(table, spec)
    return held.filter(held.column(spec.final))


def _complete(table: pa.Table) -> tuple[pa.Table, list[Rejected]]:
    """The rows that have all values that their schema promises, and the others: sinks rely on the promise."""
    promised = [field.name for field in table.schema if not field.nullable and table.column(field.name).null_count]
    rejected = []
    for name in promised:
        missing = pc.is_null(table.column(name))
        rejected.append(Rejected(table.filter(missing), f"the column '{name}' has no value, which its schema promises", "incomplete"))
        table = table.filter(pc.invert(missing))
    return table, rejected


def _letters(rejected: Rejected, spec: RowSpec, sink: str) -> pa.RecordBatch:
    rows = rejected.rows
    revisions = rows.column(spec.revision).cast(pa.int64()).fill_null(0).combine_chunks() if spec.revision else pa.repeat(pa.scalar(0, pa.int64()), len(rows))
    return dead_letter.dead_letters(
        stage="write",
        source=sink,
        split=pa.array(json_rows(rows.select(list(spec.key))), pa.string()),
        positions=revisions,
        payloads=pa.array([text.encode() for text in json_rows(rows)], pa.binary()),
        error_types=[rejected.error_type] * len(rows),
        messages=[rejected.reason] * len(rows),
    )


def _by_schema(batches: list[pa.RecordBatch]) -> Iterator[tuple[pa.Schema, list[pa.RecordBatch]]]:
    """A flattened input may mix schemas, though a sink takes one: it says so itself."""
    rest = batches
    while rest:
        schema = rest[0].schema
        yield schema, [batch for batch in rest if batch.schema.equals(schema)]
        rest = [batch for batch in rest if not batch.schema.equals(schema)]
