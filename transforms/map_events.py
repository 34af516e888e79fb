"""MapEvents: events into events: lists into rows, filters, derived fields, a function of one's own.

The steps (map_steps.py, map_python.py) work on whole batches. An event for which one of them has no answer becomes a dead letter, whole: if one item
of its list fails, none goes on, so that what is stored as rejected can be sent again without counting anything twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from streamgauge.transforms.batch import POSITION, SPLIT, BatchType
from streamgauge.transforms.config import Config, user_error
from streamgauge.transforms.dead_letter import SCHEMA as DEAD_LETTER_SCHEMA
from streamgauge.transforms.dead_letter import ErrorHandling, dead_letters
from streamgauge.transforms.map_python import Python, PythonOptions
from streamgauge.transforms.map_steps import Explode, Fields, Mapped, MapStep, RowFailed, Select, Where
from streamgauge.transforms.options import StreamgaugeOptions
from streamgauge.transforms.read import MAX_BATCH_EVENTS
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.sinks.row_json import json_rows
from streamgauge.transforms.stable_ids import full_label
from streamgauge.transforms.write import keep_dead_letters


class ExplodeOptions(Config):
    """Makes one event of each item of a list. Items that are objects give a field for each of theirs, such as `items.price`."""

    field: str = Field(description="The list.")
    item: str | None = Field(None, alias="as", description="Name of the field with the item, or of what stands before the point. Default: that of the list.")
    index: str | None = Field(None, description="Name of a field with the item's place in the list, from 0. Default: none.")
    keep_empty: bool = Field(False, description="An empty list, or none at all, makes one event without an item; otherwise it makes none.")


class MapOptions(Config):
    """Changes events, in this order: explode, where, fields, python, keep or drop."""

    explode: ExplodeOptions | str | None = Field(None, description="A list, to make one event of each item: `items`, or a mapping.")
    where: str | None = Field(None, description="Only events for which this SQL condition is true go on, such as `status >= 500`.")
    fields: dict[str, str] = Field({}, description="Derived fields, {name: SQL}, all computed from the fields before; one that is there is replaced.")
    python: PythonOptions | None = Field(None, description="A Python function that makes fields of a whole batch.")
    keep: list[str] | None = Field(None, description="Only these fields go on.")
    drop: list[str] | None = Field(None, description="These fields do not go on.")
    error_handling: ErrorHandling | None = Field(
        None, description="Name the output with the events for which an expression or function has no answer, as dead letters. "
        "Without it they go to a Parquet data set in the job's folder.",
    )  # fmt: skip

    @field_validator("fields")
    @classmethod
    def _not_reserved(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name.startswith("__") or not name:
                raise user_error(f"'{name}' cannot be the name of a field: names must not be empty or start with two underscores")
        return value

    @model_validator(mode="after")
    def _something(self) -> MapOptions:
        if self.keep is not None and self.drop is not None:
            raise user_error("give `keep` or `drop`, not both")
        if not (self.explode or self.where or self.fields or self.python or self.keep is not None or self.drop):
            raise user_error("there is nothing to do; give explode, where, fields, python, keep or drop")
        return self


class MapEvents(beam.PTransform):  # type: ignore[misc]
    """EventBatches -> EventBatches; with ``error_handling`` a dictionary of two collections.

    Options are those of :class:`MapOptions`. Event time, lineage (``__time``, ``__split``, ``__position``) and the disorder stay as they
    are, so lateness and watermarks are judged as before; the timestamp of an element is that of the one it was made of.

    An event for which an expression or function raises becomes a dead letter of stage ``map`` (``source`` is the step's name, the payload the event as it came, as
    JSON), and costs no other event. Counted as ``events_rejected``, and in the job's record.

    Guarantee: no state, and the same events in give the same events out (SQL that would not is refused; a function must not look at other rows,
    for batches are not the same in a replay), so what the source guarantees holds behind it.
    """

    def __init__(self, label: str | None = None, **options: Any) -> None:
        super().__init__(label)
        self.options = MapOptions.model_validate(options)

    def expand(self, events: beam.PCollection) -> Any:
        if not isinstance(events.element_type, BatchType):
            raise TypeError(f"MapEvents takes EventBatches, such as ReadEvents makes; its input has elements of type {events.element_type}")
        steps = build_steps(self.options, events.element_type.schema)
        folder = events.pipeline.options.view_as(StreamgaugeOptions).record_folder
        made = events | "Map" >> beam.ParDo(_MapDoFn(steps, full_label(events.pipeline), folder)).with_outputs("rejected", main="events")
        made.events.element_type = BatchType(steps[-1].schema)
        made.rejected.element_type = BatchType(DEAD_LETTER_SCHEMA)
        if self.options.error_handling is None:
            _ = made.rejected | "DeadLetters" >> keep_dead_letters(folder)
            return made.events
        return {"events": made.events, self.options.error_handling.output: made.rejected}


def step_makers(options: MapOptions) -> list[tuple[tuple[str, ...], Callable[[pa.Schema], MapStep]]]:
    """What makes each step, of the schema of the events before it, by the key of the options that asks for it."""
    makers: list[tuple[tuple[str, ...], Callable[[pa.Schema], MapStep]]] = []
    if options.explode is not None:
        explode = ExplodeOptions(field=options.explode) if isinstance(options.explode, str) else options.explode
        makers.append((("explode",), lambda schema: Explode(schema, explode.field, explode.item, explode.index, explode.keep_empty)))
    if (where := options.where) is not None:
        makers.append((("where",), lambda schema: Where(schema, where)))
    if options.fields:
        makers.append((("fields",), lambda schema: Fields(schema, options.fields)))
    if (python := options.python) is not None:
        makers.append((("python",), lambda schema: Python(schema, python)))
    if (names := options.keep if options.keep is not None else options.drop) is not None:
        keep = options.keep is not None
        makers.append((("keep" if keep else "drop",), lambda schema: Select(schema, names, keep)))
    return makers


def build_steps(options: MapOptions, schema: pa.Schema) -> list[MapStep]:
    """The steps, over events of a schema. Raises a user's error for a field that is not there, or SQL that cannot be evaluated."""
    steps: list[MapStep] = []
    for _, make in step_makers(options):
        steps.append(make(schema))
        schema = steps[-1].schema
    return steps


def mapped_schema(options: MapOptions, schema: pa.Schema) -> pa.Schema:
    """Columns of what MapEvents gives of events with these columns. Raises a user's error."""
    return build_steps(options, schema)[-1].schema


def problems_of(options: MapOptions, schema: pa.Schema) -> list[tuple[tuple[str, ...], str]]:
    """(key in the options, what is wrong there) of what does not fit events with these columns; what comes behind a mistake is not looked at."""
    for path, make in step_makers(options):
        if path == ("fields",):
            one_each = {name: partial(Fields, schema, {name: sql}) for name, sql in options.fields.items()}
            found: list[tuple[tuple[str, ...], str]] = [((*path, name), message) for name, each in one_each.items() if (message := _error(each)) is not None]
            if found:
                return found
        try:
            schema = make(schema).schema
        except PydanticCustomError as error:
            return [(path, error.message())]
    return []


def _error(make: Callable[[], object]) -> str | None:
    try:
        make()
    except PydanticCustomError as error:
        return error.message()
    return None


def run_steps(steps: list[MapStep], events: pa.RecordBatch) -> Mapped:
    """All steps over one batch. An event of which one row fails gives none."""
    rows = np.arange(events.num_rows)
    failed: dict[int, RowFailed] = {}
    made = events
    for step in steps:
        if not made.num_rows:
            break
        mapped = step(made)
        for row, why in mapped.failed.items():
            failed.setdefault(int(rows[row]), why)
        made, rows = mapped.events, rows if mapped.rows is None else rows[mapped.rows]
    if not made.num_rows:
        return Mapped(pa.record_batch([pa.array([], field.type) for field in steps[-1].schema], schema=steps[-1].schema), rows, failed)
    if failed and (lost := np.isin(rows, list(failed))).any():
        made, rows = made.filter(pa.array(~lost)), rows[~lost]
    return Mapped(made, rows, failed)


class _MapDoFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, steps: list[MapStep], step: str, record_folder: str | None) -> None:
        self._steps = steps
        self._step = step
        self._record_folder = record_folder
        self._out = Metrics.counter("streamgauge", "events_mapped")
        self._rejected = Metrics.counter("streamgauge", "events_rejected")
        self._counts = {"events": 0, "made": 0, "rejected": 0}

    def setup(self) -> None:
        self._record = JobRecord(self._record_folder)

    def teardown(self) -> None:
        if self._counts["events"]:
            self._write(now=True)

    def process(self, events: pa.RecordBatch) -> Iterator[Any]:
        mapped = run_steps(self._steps, events)
        made = mapped.events
        for start in range(0, made.num_rows, MAX_BATCH_EVENTS):
            yield made.slice(start, MAX_BATCH_EVENTS)
        if mapped.failed:
            yield beam.pvalue.TaggedOutput("rejected", letters(events, mapped.failed, self._step))
        self._note(events.num_rows, made.num_rows, len(mapped.failed))

    def _note(self, events: int, made: int, rejected: int) -> None:
        self._out.inc(made)
        self._rejected.inc(rejected)
        for name, count in (("events", events), ("made", made), ("rejected", rejected)):
            self._counts[name] += count
        self._write(now=bool(rejected))

    def _write(self, *, now: bool) -> None:
        self._record.put_own("maps", self._step, {"step": self._step, **self._counts}, now=now)


def letters(events: pa.RecordBatch, failed: dict[int, RowFailed], step: str) -> pa.RecordBatch:
    """The dead letters of the rows that failed: each event as it came into MapEvents."""
    rows = sorted(failed)
    lost = events.take(pa.array(rows, pa.int64()))
    return dead_letters(
        stage="map",
        source=step,
        split=lost.column(SPLIT).cast(pa.string()),
        positions=lost.column(POSITION),
        payloads=pa.array([text.encode() for text in json_rows(pa.table(lost.drop_columns([SPLIT, POSITION])))], pa.binary()),
        error_types=[failed[row].error_type for row in rows],
        messages=[str(failed[row]) for row in rows],
    )
