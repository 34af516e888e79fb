"""AggregateWindows: exact results per key and window.

Two or three steps. Every batch is reduced to *partials*, one small table per (slice, shard). Partials are merged in keyed
state, one table per (shard, slice), and timers turn them into result rows (merge.py). Where a window has several slices, merged
slices are combined in a third step (combine.py). Sessions have a second step of their own (sessions.py).

What is too late is decided in the first step, by the watermark of the event's own split: an event is late when the end of its last window
plus ``lateness`` is not after what its split had reported. The merged watermark of all splits is never ahead of
that, so Flink never drops anything silently, and a replay decides alike (but for idle splits, which follow others).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam import typehints
from apache_beam.transforms.core import Windowing
from apache_beam.transforms.window import FixedWindows, GlobalWindows, IntervalWindow
from apache_beam.utils.timestamp import Duration as BeamDuration
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from streamgauge.transforms import dead_letter
from streamgauge.transforms.aggregates import AGGREGATES
from streamgauge.transforms.batch import BatchType
from streamgauge.transforms.combine import CombineDoFn, Slices
from streamgauge.transforms.config import MICROSECONDS, Choice, Config, Duration, OneOf, did_you_mean, user_error
from streamgauge.transforms.dead_letter import ErrorHandling
from streamgauge.transforms.merge import MergeDoFn, Results
from streamgauge.transforms.options import StreamgaugeOptions
from streamgauge.transforms.partials import RESULT_COLUMNS, Metric
from streamgauge.transforms.reduce import SessionPartialDoFn, SlicePartialDoFn, Stored, late_schema
from streamgauge.transforms.replay import ReplayPoint
from streamgauge.transforms.results import BEYOND, ResultRows
from streamgauge.transforms.runners import keeps_order, keeps_time
from streamgauge.transforms.session_table import SESSION_STATE
from streamgauge.transforms.sessions import SessionDoFn
from streamgauge.transforms.sharding import Sharding
from streamgauge.transforms.stable_ids import full_label, own_timers
from streamgauge.transforms.state_layout import earlier_partials, earlier_shards
from streamgauge.transforms.windows import WINDOWS
from streamgauge.transforms.windows.base import Window, is_session, is_sliced
from streamgauge.transforms.write import keep_dead_letters

_MS = MICROSECONDS["ms"]


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
    if isinstance(value, str):
        raise user_error(f"expected a list of fields, such as [{value}], or a mapping from result column to field; found '{value}'")
    if not isinstance(value, (list, tuple)):
        return value
    twice = [name for place, name in enumerate(value) if name in value[:place]]
    if twice:
        raise user_error(f"'{twice[0]}' is there twice; name each dimension once")
    return {name: name for name in value}


Dimensions = Annotated[
    dict[str, str],
    BeforeValidator(_dimensions),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "object", "additionalProperties": {"type": "string"}}]}),
]
"""Result column -> field. Job files write a list where both have one name."""


class KeysOptions(Config):
    """A limit on the number of keys. Which keys have rows depends on the keys alone (those of the smallest hashes), so every row is exact and a replay
    makes the same ones; rows of a window may be withdrawn until it is final."""

    limit: int = Field(ge=1, description="So many keys have rows of their own in each window; divided evenly among the shards.")
    beyond: Literal["other", "dead_letters"] = Field(
        "other",
        description="The events of all further keys: `other`, a row a shard and window (dimensions are null, the column `other` has the shard's number, and is null in "
        "other rows), or `dead_letters`, one a shard and window that says how many events there were.",
    )


class AggregateOptions(Config):
    """Groups events by window and dimensions, and computes aggregates."""

    metric: str = Field(min_length=1, description="Name of the metric, a column of every result row.")
    window: Annotated[Choice, OneOf(WINDOWS)] = Field(description="Which windows an event belongs to.")
    by: Dimensions = Field({}, description="Dimension fields: a list, or a mapping from result column to field. Null is a value of its own. None: one row a window.")
    aggregates: dict[str, Annotated[Choice, OneOf(AGGREGATES)]] = Field(min_length=1, description="Result column: aggregate, such as `delay: {mean: dep_delay}`.")
    lateness: Duration = Field(0, description="How long after its end a window still takes late events and corrects its result.")
    emit: Literal["final", "on_change"] | EmitOptions = Field(
        "final", description="`final`: once, when the watermark passes the window. `{every: 1s}`: current results too. `on_change`: at every change."
    )
    late: bool = Field(False, description="Adds the output `late`: the events that came too late, one row each.")
    keys: KeysOptions | None = Field(None, description="Limit on the number of keys, such as `{limit: 100000}`; without it, memory grows with the keys of open windows.")
    error_handling: ErrorHandling | None = Field(
        None, description="With `keys: {beyond: dead_letters}`: name the output with them. Without it they go to a Parquet data set in the job's folder."
    )
    shards: int = Field(8, ge=1, le=128, description="Parts that the keys are divided into; bounds the useful parallelism. With tumbling windows and no limit on keys it can be changed for windows to come.")

    @property
    def reshards(self) -> bool:
        """Whether windows to come may have another number of shards: where each is a slice of its own, and no limit is divided among the shards."""
        return self.window.name == "tumbling" and self.keys is None

    @property
    def letters(self) -> bool:
        """Whether there are dead letters."""
        return self.keys is not None and self.keys.beyond == "dead_letters"

    def model_post_init(self, context: object) -> None:
        if self.keys is not None and self.window.name == "session":
            raise user_error("keys: sessions have no limit on keys; `max` bounds how long each is kept")
        if self.keys is not None and (self.emit != "final" or self.lateness) and self.window.name in ("sliding", "cumulative"):
            raise user_error(f"keys: with {self.window.name} windows a limit needs `emit: final` and no `lateness`; a row could not be withdrawn")
        if self.error_handling is not None and not self.letters:
            raise user_error("error_handling: this step has no dead letters without `keys: {limit: ..., beyond: dead_letters}`")


class AggregateWindows(beam.PTransform):  # type: ignore[misc]
    """EventBatches -> result rows; with ``late`` or ``error_handling`` a dictionary of ``results`` and the others.

    Options are those of :class:`AggregateOptions`. A result row: ``metric``, ``window_start``, ``window_end``, the dimensions, the
    aggregates, ``events``, ``revision`` (the number of events merged), ``final`` (the watermark has passed the window's end), ``watermark``
    (how far event time had come, at least; null where that is not known yet), and ``withdrawn`` where rows can be.

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
        given = events.pipeline.options.view_as(StreamgaugeOptions)
        step = full_label(events.pipeline)
        stored = Stored.before(None if given.replay_point is None else ReplayPoint.load(given.replay_point), step)
        sharding = Sharding.read(options.shards, earlier_shards(given.earlier_layouts, step))
        made = _Steps(options, metric, step, earlier_partials(given.earlier_layouts, step), sharding, stored, events.pipeline.runner)
        reduced = events | "Partials" >> beam.ParDo(made.partials(given.record_folder)).with_outputs("late", main="partials")
        reduced.partials.element_type = typehints.Tuple[bytes, bytes]
        reduced.late.element_type = BatchType(late_schema(metric))
        results, letters = made.results(reduced.partials)
        results.element_type = BatchType(metric.result_schema)
        outputs = {"results": results, **({"late": reduced.late} if options.late else {})}
        if letters is not None:
            letters.element_type = BatchType(dead_letter.SCHEMA)
            if options.error_handling is not None:
                outputs[options.error_handling.output] = letters
            else:
                _ = letters | "DeadLetters" >> keep_dead_letters(given.record_folder)
        return outputs if len(outputs) > 1 else results


class _Steps:
    """What follows the partials: one keyed step or two, by the kind of window."""

    def __init__(
        self, options: AggregateOptions, metric: Metric, step: str, earlier: Sequence[pa.Schema], sharding: Sharding, stored: Stored | None, runner: Any
    ) -> None:
        self._reshards = options.reshards
        self._sharding = sharding
        self._lateness = options.lateness
        self._metric = metric
        self._window: Any = options.window.create()
        # The FnApiRunner gives nothing before its input ends. It lets a timer of the clock wait for the time of its element, here a window's end: one in the future
        # never comes, and fails the run.
        early = {"final": None, "on_change": 0}[options.emit] if isinstance(options.emit, str) else options.emit.every
        self._emit_every = early if keeps_time(runner) else None
        self._step = step
        self._earlier = earlier
        self._stored = stored
        self._runner = runner
        self._letters = options.letters

    def partials(self, record_folder: str | None) -> beam.DoFn:
        kind = SessionPartialDoFn if is_session(self._window) else SlicePartialDoFn
        step = self._step if self._reshards else None
        return kind(self._metric, self._window, self._lateness, record_folder, self._stored, sharding=self._sharding, step=step)

    def results(self, partials: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection | None]:
        """Result rows, and dead letters where there are some."""
        if is_session(self._window):
            sessions = self._own(SessionDoFn)(self._metric, self._window, self._lateness, self._emit_every, keeps_time(self._runner), self._earlier)
            return partials | "Sessions" >> beam.ParDo(sessions), None
        rows = ResultRows(letters=self._letters)
        sliced = is_sliced(self._window)
        kept = self._lateness + self._window.span
        merge = self._own(MergeDoFn)(self._metric, self._emit_every, self._earlier, Slices() if sliced else Results(rows), kept)
        slices = partials | "Slices" >> _IntoSlices(self._window, kept).with_output_types(tuple[bytes, bytes])
        if not sliced:
            return self._split(slices, "Merge", merge)
        merged = slices | "Merge" >> beam.ParDo(merge).with_output_types(tuple[bytes, bytes])
        together = merged | "Together" >> beam.WindowInto(GlobalWindows()).with_output_types(tuple[bytes, bytes])
        cutoff = None if self._stored is None else self._stored.cutoff
        combine = self._own(CombineDoFn)(
            self._metric, self._window, self._lateness, self._emit_every, self._earlier, rows=rows, cutoff=cutoff, forgets=keeps_order(self._runner)
        )  # fmt: skip
        return self._split(together, "Combine", combine)

    def _split(self, given: beam.PCollection, label: str, dofn: beam.DoFn) -> tuple[beam.PCollection, beam.PCollection | None]:
        if not self._letters:
            return given | label >> beam.ParDo(dofn), None
        made = given | label >> beam.ParDo(dofn).with_outputs(BEYOND, main="results")
        return made.results, made[BEYOND]

    def _own(self, kind: Any) -> Any:
        return own_timers(kind, self._step)


class _IntoSlices(beam.ParDo):  # type: ignore[misc]
    """Puts each partial into a window of Beam's that begins with its slice and ends when the slice can be forgotten, ``kept`` microseconds after its end.

    Not fixed windows with an allowed lateness: Flink's runner holds a stateful step's watermark at a window's end until its lateness has passed, and
    windows of several slices would wait for that. The runner takes these for fixed windows: it asks only when one ends.
    """

    def __init__(self, window: Window, kept: int) -> None:
        super().__init__(_SliceDoFn(window, kept))
        self._slices = Windowing(FixedWindows(BeamDuration(micros=window.slice_size)))

    def get_windowing(self, inputs: Any) -> Windowing:
        return self._slices


class _SliceDoFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, window: Window, kept: int) -> None:
        self._window = window
        self._kept = kept

    def process(self, element: tuple[bytes, bytes], timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[WindowedValue]:
        start = self._window.slice_starts(np.array([timestamp.micros]))
        end = self._window.slice_ends(start) + self._kept
        yield WindowedValue(element, timestamp, (IntervalWindow(Timestamp(micros=int(start[0])), Timestamp(micros=int(end[0]))),))


def build_metric(options: AggregateOptions, schema: pa.Schema) -> Metric:
    """The metric over events of ``schema``. Raises a user's error for a field that is not there or does not fit."""
    fields = [name for name in schema.names if not name.startswith("__")]
    for name in options.by.values():
        if name not in fields:
            raise user_error(f"by '{name}': the schema has no such field{did_you_mean(name, fields)}; fields: {', '.join(fields)}")
        if pa.types.is_floating(schema.field(name).type) or pa.types.is_nested(schema.field(name).type):
            raise user_error(f"by '{name}': a {schema.field(name).type} cannot be a dimension; use a string, bool, integer, date or timestamp")
    names = [*RESULT_COLUMNS, *options.by, *options.aggregates]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        if twice[0] in RESULT_COLUMNS:
            raise user_error(f"result column '{twice[0]}' is there twice: {', '.join(RESULT_COLUMNS)} are taken; choose another name")
        raise user_error(f"result column '{twice[0]}' is there twice: as dimension and as aggregate; give one of them another name")
    aggregates = {name: choice.registry.load(choice.name)(choice.options, schema) for name, choice in options.aggregates.items()}
    window = options.window.create()
    retold = options.emit != "final" or options.lateness > 0
    metric = Metric(
        options.metric, dict(options.by), aggregates, schema, options.shards, window.key,
        withdraws=is_session(window) or (options.keys is not None and retold),
        extra=SESSION_STATE if is_session(window) else (),
        others=options.keys is not None and not options.letters,
        disjoint=is_session(window),
        limit=None if options.keys is None else -(-options.keys.limit // options.shards),
    )  # fmt: skip
    stored = sorted(set(options.by) & {column.name for column in metric.state})
    if stored:
        raise user_error(f"result column '{stored[0]}' is also a name in the state of an aggregate; name the dimension otherwise, as in by: {{name: '{options.by[stored[0]]}'}}")
    return metric
