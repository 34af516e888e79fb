"""AggregateWindows: exact results per key and window.

Two steps. Every batch is reduced to *partials*, one small table per (slice, shard). Partials are merged in keyed
state, one table per (shard, window), and timers turn them into result rows. See merge.py.

What is too late is decided in the first step, by the watermark of the event's own split: an event is late when its window's
end plus ``lateness`` is not after what its split had reported. The merged watermark of all splits is never ahead of
that, so Flink never drops anything silently, and a replay decides alike (but for idle splits, which follow others).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import FixedWindows, GlobalWindow, TimestampedValue
from apache_beam.utils.timestamp import Duration as BeamDuration
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from streamgauge.transforms.aggregates import AGGREGATES
from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE, POSITION, SPLIT, BatchType, disorder_of
from streamgauge.transforms.config import MICROSECONDS, Choice, Config, Duration, OneOf, did_you_mean, user_error
from streamgauge.transforms.hashing import spread_key
from streamgauge.transforms.merge import MergeDoFn
from streamgauge.transforms.options import StreamgaugeOptions
from streamgauge.transforms.partials import RESULT_COLUMNS, Metric, Partials
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.replay import ReplayPoint
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.stable_ids import full_label, own_timers
from streamgauge.transforms.state_layout import earlier_partials
from streamgauge.transforms.windows import WINDOWS
from streamgauge.transforms.windows.base import Window

_MS = MICROSECONDS["ms"]
_NOTHING_SEEN = np.iinfo(np.int64).min


class EmitOptions(Config):
    """Current results on the way to the final one."""

    every: Duration = Field(description="Emit the current result so often (processing time) while a window changes; at least 10ms.")

    @field_validator("every")
    @classmethod
    def _not_too_often(cls, value: int) -> int:
        if value < 10 * _MS:
            raise user_error("emit.every must be at least 10ms")
        return value


def _dimensions(value: object) -> object:
    return {name: name for name in value} if isinstance(value, (list, tuple)) else value


Dimensions = Annotated[
    dict[str, str],
    BeforeValidator(_dimensions),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "object", "additionalProperties": {"type": "string"}}]}),
]
"""Result column -> field. Job files write a list where both have one name."""


class AggregateOptions(Config):
    """Groups events by window and dimensions, and computes aggregates."""

    metric: str = Field(min_length=1, description="Name of the metric, a column of every result row.")
    window: Annotated[Choice, OneOf(WINDOWS)] = Field(description="Which windows an event belongs to.")
    by: Dimensions = Field({}, description="Dimension fields: a list, or a mapping from result column to field. Null is a value of its own. None: one row a window.")
    aggregates: dict[str, Annotated[Choice, OneOf(AGGREGATES)]] = Field(min_length=1, description="Result column: aggregate, such as `delay: {mean: dep_delay}`.")
    lateness: Duration = Field(0, description="How long after its end a window still takes late events and corrects its result.")
    emit: Literal["final"] | EmitOptions = Field("final", description="`final`: once, when the watermark passes the window. `{every: 1s}`: current results too.")
    late: bool = Field(False, description="Adds the output `late`: the events that came too late, one row each.")
    shards: int = Field(8, ge=1, le=128, description="Parts that the keys are divided into; bounds the useful parallelism. Changing it starts state anew.")


class AggregateWindows(beam.PTransform):  # type: ignore[misc]
    """EventBatches -> result rows; with ``late`` a dictionary of ``results`` and ``late``.

    Options are those of :class:`AggregateOptions`. A result row: ``metric``, ``window_start``, ``window_end``, the dimensions, the
    aggregates, ``events``, ``revision`` (the number of events merged), ``final`` (the watermark has passed the window's end).

    Guarantee: every event that is not late is in exactly one window's result once; late ones are counted and available.
    """

    def __init__(self, label: str | None = None, **options: Any) -> None:
        super().__init__(label)
        self.options = AggregateOptions.model_validate(options)

    def expand(self, events: beam.PCollection) -> Any:
        if not isinstance(events.element_type, BatchType):
            raise TypeError(f"AggregateWindows takes EventBatches, such as ReadEvents makes; its input has elements of type {events.element_type}")
        options = self.options
        metric = build_metric(options, events.element_type.schema)
        window: Window = options.window.create()
        given = events.pipeline.options.view_as(StreamgaugeOptions)
        step = full_label(events.pipeline)
        stored = Stored.before(None if given.replay_point is None else ReplayPoint.load(given.replay_point), step)
        partials = _PartialDoFn(metric, window, options.lateness, given.record_folder, stored)
        reduced = events | "Partials" >> beam.ParDo(partials).with_outputs("late", main="partials")
        reduced.partials.element_type = tuple[bytes, bytes]
        reduced.late.element_type = BatchType(late_schema(metric))
        seconds = BeamDuration(micros=window.slice_size)
        slices = FixedWindows(seconds, offset=Timestamp(micros=window.offset))
        emit_every = None if options.emit == "final" else options.emit.every
        results = (
            reduced.partials
            | "Slices" >> beam.WindowInto(slices, allowed_lateness=BeamDuration(micros=options.lateness)).with_output_types(tuple[bytes, bytes])
            | "Merge" >> beam.ParDo(own_timers(MergeDoFn, step)(metric, emit_every, earlier_partials(given.earlier_layouts, step)))
        )
        results.element_type = BatchType(metric.result_schema)
        return {"results": results, "late": reduced.late} if options.late else results


def build_metric(options: AggregateOptions, schema: pa.Schema) -> Metric:
    """The metric over events of ``schema``. Raises a user's error for a field that is not there or does not fit."""
    fields = [name for name in schema.names if not name.startswith("__")]
    for name in options.by.values():
        if name not in fields:
            raise user_error(f"by '{name}': the schema has no such field{did_you_mean(name, fields)}; fields: {', '.join(fields)}")
        if pa.types.is_floating(schema.field(name).type):
            raise user_error(f"by '{name}': a {schema.field(name).type} cannot be a dimension; use a string, bool, integer, date or timestamp")
    names = [*RESULT_COLUMNS, *options.by, *options.aggregates]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise user_error(f"result column '{twice[0]}' is there twice: dimensions, aggregates and {', '.join(RESULT_COLUMNS)} share one table")
    aggregates = {name: choice.registry.load(choice.name)(choice.options, schema) for name, choice in options.aggregates.items()}
    return Metric(options.metric, dict(options.by), aggregates, schema, options.shards)


def late_schema(metric: Metric) -> pa.Schema:
    """Columns of a late event: metric, window_start, split, position, event_time, then its fields."""
    stamp = EVENT_TIME_TYPE
    fields = [field for field in metric.schema if not field.name.startswith("__")]
    lineage = [("metric", pa.string()), ("window_start", stamp), ("split", pa.string()), ("position", pa.int64()), ("event_time", stamp)]
    taken = {name for name, _ in lineage}
    columns = [pa.field(name, kind, nullable=False) for name, kind in lineage]
    columns += [pa.field(f"field_{field.name}" if field.name in taken else field.name, field.type) for field in fields]
    return RowSpec("late", key=("metric", "window_start", "split", "position"), time="window_start").attach(pa.schema(columns))


@dataclass(frozen=True)
class Stored:
    """What a replay leaves as it is.

    Attributes:
        cutoff: start of the first window that is computed, microseconds.
        ends: by split, the position up to which an earlier run has seen the events before the cutoff: they are in stored rows, or were told as late.
            Those behind it have come too late.
    """

    cutoff: int
    ends: Mapping[str, int]

    @classmethod
    def before(cls, replay: ReplayPoint | None, step: str) -> Stored | None:
        """None where every window is computed."""
        return None if replay is None or step not in replay.cutoff else cls(replay.cutoff[step], replay.ends())

    def closed(self, events: pa.RecordBatch, slices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None:
        """Which events are of windows before the cutoff, and which of these are stored already; None: none."""
        closed = slices < self.cutoff
        if not closed.any():
            return None
        splits = events.column(SPLIT)
        ends = np.array([self.ends.get(name, _NOTHING_SEEN) for name in splits.dictionary.to_pylist()])
        return closed, closed & (events.column(POSITION).to_numpy() < ends[splits.indices.to_numpy()])


def _shard_key(shard: int) -> bytes:
    return spread_key(shard, lambda salt: b"%d.%d" % (shard, salt))


class _PartialDoFn(beam.DoFn):  # type: ignore[misc]
    """EventBatch -> (shard key, encoded partial), with the time stamp of the slice's last millisecond; late events aside.

    Partials of one bundle are merged before they leave at its end: what crosses the shuffle does not grow with the number of batches.
    """

    def __init__(self, metric: Metric, window: Window, lateness: int, record_folder: str | None, stored: Stored | None = None) -> None:
        self._metric = metric
        self._window = window
        self._lateness = lateness
        self._record_folder = record_folder
        self._stored = stored
        self._late_count = self._stored_count = 0
        self._already_stored = Metrics.counter("streamgauge", "events_already_stored")
        self._late = Metrics.counter("streamgauge", "events_late")

    def setup(self) -> None:
        self._partials = Partials(self._metric)
        self._late_schema = late_schema(self._metric)
        self._record = JobRecord(self._record_folder)
        self._shard_keys = [_shard_key(shard) for shard in range(self._metric.shards)]

    def start_bundle(self) -> None:
        # What a failed bundle left belongs to nobody.
        self._bundle: dict[tuple[int, int], list[pa.RecordBatch]] = {}

    def process(self, events: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        if not events.num_rows:
            return
        times = events.column(EVENT_TIME).cast(pa.int64()).to_numpy()
        slices = self._window.slice_starts(times)
        late = self._too_late(times, slices, timestamp.micros, disorder_of(events.schema))
        closed = self._stored and self._stored.closed(events, slices)
        if closed:
            before, stored = closed
            self._note_stored(int(stored.sum()))
            late = (before if late is None else late | before) & ~stored
            kept = ~(late | stored)
        elif late is not None:
            kept = ~late
        if late is not None:
            if late.any():
                yield self._late_rows(events.filter(pa.array(late)), slices[late], timestamp)
            events, slices = events.filter(pa.array(kept)), slices[kept]
            if not events.num_rows:
                return
        for start, shard, partial in self._partials.of_events(events, slices):
            self._bundle.setdefault((start, shard), []).append(partial)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        bundle, self._bundle = self._bundle, {}
        for (start, shard), partials in bundle.items():
            encoded = self._partials.codec.encode(self._partials.merge(partials))
            last = Timestamp(micros=start + self._window.slice_size - _MS)
            yield WindowedValue((self._shard_keys[shard], encoded), last, (GlobalWindow(),))

    def _too_late(
        self, times: npt.NDArray[np.int64], slices: npt.NDArray[np.int64], before: int, disorder: int
    ) -> npt.NDArray[np.bool_] | None:
        """Which events are late, judged row by row so that it does not matter how the rows were batched; None: none."""
        closed_at = slices + (self._window.slice_size + self._lateness)
        if int(closed_at.min()) > max(before + _MS, int(times.max()) - disorder):
            return None
        passed = np.maximum((np.maximum.accumulate(times) - disorder) // _MS * _MS, before + _MS)
        late: npt.NDArray[np.bool_] = closed_at <= passed
        return late if late.any() else None

    def _note_stored(self, events: int) -> None:
        self._stored_count += events
        self._already_stored.inc(events)
        self._note("already_stored", self._stored_count)

    def _note(self, kind: str, events: int) -> None:
        self._record.put(kind, f"{self._metric.name}-{os.getpid()}-{id(self)}", {"metric": self._metric.name, "events": events}, now=True)

    def _late_rows(self, events: pa.RecordBatch, slices: npt.NDArray[np.int64], timestamp: Any) -> Any:
        self._late_count += events.num_rows
        self._late.inc(events.num_rows)
        self._note("late", self._late_count)
        fields = [column for column, name in zip(events.columns, events.schema.names, strict=True) if not name.startswith("__")]
        columns = [
            pa.repeat(self._metric.name, events.num_rows), pa.array(slices).cast(EVENT_TIME_TYPE),
            events.column(SPLIT).cast(pa.string()), events.column(POSITION), events.column(EVENT_TIME), *fields,
        ]
        return beam.pvalue.TaggedOutput("late", TimestampedValue(pa.record_batch(columns, schema=self._late_schema), timestamp))
