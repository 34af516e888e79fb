"""ReadEvents: the one splittable DoFn that reads every connector.

Each split is one element with one restriction of positions. A call reads until the source has no more for now, at most for a fifth of a second, claims the position
after each batch before it emits it, and defers the rest: that lets data and watermark out, and puts the position into the runner's
checkpoint. The position in the restriction, and nothing else, is what recovery resumes from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.metrics import Metrics
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Duration, Timestamp
from pydantic import Field

from streamgauge.transforms.batch import POSITION, SPLIT, SPLIT_TYPE, BatchType, event_times, with_disorder
from streamgauge.transforms.config import MICROSECONDS, Choice, Config, OneOf
from streamgauge.transforms.dead_letter import SCHEMA as DEAD_LETTER_SCHEMA
from streamgauge.transforms.dead_letter import ErrorHandling, dead_letters
from streamgauge.transforms.event_time import EventTime, TimeOptions
from streamgauge.transforms.formats import FORMATS
from streamgauge.transforms.formats.base import Format, Parsed
from streamgauge.transforms.joint_reads import Batch, JointReads, Limits
from streamgauge.transforms.options import StreamgaugeOptions
from streamgauge.transforms.pace import PACE
from streamgauge.transforms.position_index import Indexes, PositionIndex
from streamgauge.transforms.readers import OpenReader, OpenReaders
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.replay import ReplayPoint
from streamgauge.transforms.restriction import FINISHED, UNBOUNDED, Positions, PositionsCoder, PositionsTracker
from streamgauge.transforms.sources import CONNECTORS
from streamgauge.transforms.sources.base import Connector, RawBatch, Split
from streamgauge.transforms.splits import DiscoverSplits, ListSplits, SplitElement, split_of
from streamgauge.transforms.stable_ids import use_stable_ids
from streamgauge.transforms.watermark import SplitWatermark
from streamgauge.transforms.write import keep_dead_letters

MAX_BATCH_EVENTS = 16_384
MAX_BATCH_BYTES = 4 * 2**20
CALL_SECONDS = 0.2
WAIT_SECONDS = 0.005
PAUSE_SECONDS = 0.01
QUIET_PAUSE_SECONDS, QUIET_SECONDS = 0.05, 1.0
"""A batch is as large as a core's caches like it (more is slower to parse). While batches are full there is more to come, and a call goes on for CALL_SECONDS: what
a call costs besides is shared by many events. Otherwise it ends, and what it read is on its way (input that ends has no hurry); without data it waits WAIT_SECONDS in the read, then pauses
PAUSE_SECONDS between bundles, QUIET_PAUSE_SECONDS after QUIET_SECONDS in which nothing came: a job at rest looks some fifteen times a second."""

PACE_SECONDS = 0.1
"""How long a bundle waits for one that merges, unless the last one took many events (half a batch, of all splits) or there were more. As long may the barrier of a checkpoint have to wait."""

NOTE_POSITIONS_SECONDS = 1.0
_INDEXES = Indexes()


class ReadOptions(Config):
    """Reads events from a source: split by split, batch by batch, each with its event time."""

    source: Annotated[Choice, OneOf(CONNECTORS)] = Field(alias="from", description="Where the payloads come from.")
    format: Annotated[Choice, OneOf(FORMATS)] = Field(description="How a payload becomes an event.")
    time: TimeOptions = Field(TimeOptions(), description="When an event happened.")
    error_handling: ErrorHandling | None = Field(
        None, description="Name the output with the dead letters. Without it they go to a Parquet data set in the job's folder."
    )


class ReadEvents(beam.PTransform):  # type: ignore[misc]
    """PBegin -> EventBatches in the global window; with ``error_handling`` a dictionary of two collections.

    Options are those of :class:`ReadOptions`, written as in a job file::

        pipeline | ReadEvents(**{"from": {"files": "data/*.ndjson"}}, format={"json": {"schema": {...}}}, time={"field": "ts"})

    Columns of a batch: ``__time`` (timestamp[us, UTC]), ``__split`` (string), ``__position`` (int64), then the format's fields.
    The timestamp of the element is the split's watermark before the batch.

    Guarantee: exactly once in the runner's state: positions are in the same checkpoint as what was made of the events.
    """

    def __init__(self, label: str | None = None, **options: Any) -> None:
        super().__init__(label)
        self.options = ReadOptions.model_validate(options)
        self.connector: Connector = self.options.source.create()
        self.format: Format = self.options.format.create()
        self.event_time = EventTime(self.options.time, self.format.schema)
        self.schema = read_schema(self.event_time)

    def expand(self, begin: Any) -> Any:
        use_stable_ids(begin.pipeline)
        given = begin.pipeline.options.view_as(StreamgaugeOptions)
        folder = given.record_folder
        replay = None if given.replay_point is None else ReplayPoint.load(given.replay_point)
        impulse = begin | beam.Impulse()
        if self.connector.bounded:
            splits = impulse | "Splits" >> beam.ParDo(ListSplits(self.connector, replay)).with_output_types(SplitElement)
            read: _Read = _Read(self, folder, replay)
        else:
            splits = impulse | "Splits" >> beam.ParDo(DiscoverSplits(self.connector, folder, replay)).with_output_types(SplitElement)
            read = _ReadUnbounded(self, folder, replay)
        outputs = splits | "Read" >> beam.ParDo(read).with_outputs("rejected", main="events")
        outputs.events.element_type = BatchType(self.schema)
        outputs.rejected.element_type = BatchType(DEAD_LETTER_SCHEMA)
        if self.options.error_handling is None:
            _ = outputs.rejected | "DeadLetters" >> keep_dead_letters(folder)
            return outputs.events
        return {"events": outputs.events, self.options.error_handling.output: outputs.rejected}


def read_schema(event_time: EventTime) -> pa.Schema:
    """Columns of an EventBatch: event time, lineage, the format's fields. The metadata says the disorder."""
    time_field, *fields = event_time.schema
    columns = [time_field, pa.field(SPLIT, SPLIT_TYPE, nullable=False), pa.field(POSITION, pa.int64(), nullable=False), *fields]
    return with_disorder(pa.schema(columns), event_time.options.disorder)


class _PositionsProvider(RestrictionProvider):  # type: ignore[misc]
    def initial_restriction(self, element: bytes) -> Positions:
        split, _ = split_of(element)
        return Positions(split.start, UNBOUNDED if split.end is None else split.end)

    def create_tracker(self, restriction: Positions) -> PositionsTracker:
        return PositionsTracker(restriction)

    def restriction_size(self, element: bytes, restriction: Positions) -> int:
        return max(restriction.end - restriction.position, 0)

    def restriction_coder(self) -> PositionsCoder:
        return PositionsCoder()

    def truncate(self, element: bytes, restriction: Positions) -> None:
        return None


class _Read(beam.DoFn):  # type: ignore[misc]
    """Reads one split for a moment."""

    def __init__(self, transform: ReadEvents, record_folder: str | None, replay: ReplayPoint | None = None) -> None:
        self._connector = transform.connector
        self._format = transform.format
        self._event_time = transform.event_time
        self._schema = transform.schema
        self._times = transform.options.time
        self._record_folder = record_folder
        self._replay = replay
        self._readers: OpenReaders | None = None
        self._events = Metrics.counter("streamgauge", "events_read")
        self._rejected = Metrics.counter("streamgauge", "events_rejected")

    def setup(self) -> None:
        self._record = JobRecord(self._record_folder)
        self._readers = OpenReaders(self._connector)
        self._came = time.monotonic()
        self._behind, self._taken = False, 0
        self._reads = JointReads(self._readers, self._parse, self._event_time.schema, jointly=not self._connector.bounded)

    def start_bundle(self) -> None:
        assert self._readers is not None
        if not self._behind and not self._connector.bounded:
            PACE.wait(PACE_SECONDS)
        self._behind, self._taken = False, 0
        pause = PAUSE_SECONDS if time.monotonic() - self._came < QUIET_SECONDS else QUIET_PAUSE_SECONDS
        # Splits that resume at different times get bundles of their own, at the cost of one each. Without a pause they meet in the next one, and stay together.
        self._pause = pause if self._readers.begin_bundle() else 0.0

    def teardown(self) -> None:
        if self._readers is not None:
            self._readers.close()

    def process(
        self,
        element: bytes,
        tracker: Any = beam.DoFn.RestrictionParam(_PositionsProvider()),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterator[Any]:
        split, found_later = split_of(element)
        yield from self._read(split, found_later, tracker, watermark)

    def _read(self, split: Split, found_later: bool, tracker: Any, estimator: Any) -> Iterator[Any]:
        assert self._readers is not None
        start = tracker.current_restriction()
        reader = self._readers.take(split, start.position)
        watermark = SplitWatermark(self._connector.name, split.id, self._times, estimator, self._record)
        index = self._index(split, start.position, reader, watermark)
        if found_later and watermark.current <= MIN_TIMESTAMP:
            watermark.follow(math.inf)
        deadline = time.monotonic() + CALL_SECONDS
        while True:
            batch = self._reads.next(reader, Limits(MAX_BATCH_EVENTS, MAX_BATCH_BYTES, WAIT_SECONDS))
            raw = batch.raw
            at_end = raw.done or raw.next_position >= start.end
            done = at_end or self._record.draining()
            if not tracker.try_claim(raw.next_position):
                reader.close()
                return
            self._taken += len(raw)
            if len(raw) or raw.errors:
                self._came = time.monotonic()
                yield from self._emit(split, batch, reader, watermark, index)
            elif raw.caught_up:
                watermark.idle(reader.idle_seconds, reader.confirmed)
            index.add(raw.next_position, None)
            if done:
                tracker.try_claim(FINISHED)
                self._note(split, raw.next_position, reader, watermark, index, done=True, finished=at_end)
                reader.close()
                return
            more = len(raw) > 0 if self._connector.bounded else batch.more
            if not more or time.monotonic() >= deadline:
                break
        self._behind = self._behind or more or 2 * self._taken >= MAX_BATCH_EVENTS
        self._note(split, raw.next_position, reader, watermark, index)
        _INDEXES.put_back((str(self._record_folder), self._record_name(split)), index)
        self._readers.put_back(split, reader)
        tracker.defer_remainder(Duration(0 if more else self._pause))

    def _index(self, split: Split, position: int, reader: OpenReader, watermark: SplitWatermark) -> PositionIndex:
        """What is known of the split's positions: from the last call, else from the job's record, else from the run that is replayed.

        The watermark is restored with the position, and tells what may have come before it. (Without a record it is taken to be less than the
        newest event by the disorder of this job, not of the one that reported it.)
        """
        name = self._record_name(split)
        found = _INDEXES.take((str(self._record_folder), name), position)
        if found is not None:
            return found
        stored = self._record.get("positions", name)
        point = None if self._replay is None else self._replay.split(self._connector.name, split.id)
        if stored is not None:
            index = PositionIndex(stored["begin"], [(place, newest) for place, newest in stored["facts"]], stored["disorder"])
        elif point is not None:
            # What lies behind its start is read again, perhaps by another format: its facts are found anew.
            index = PositionIndex(point.begin, [fact for fact in point.facts if fact[0] <= point.start])
        else:
            index = PositionIndex(split.start)
        index.disorder = max(index.disorder, self._times.disorder)
        index.resume(position, newest_possible(watermark.current, index.disorder))
        self._note(split, position, reader, watermark, index, now=True)
        return index

    def _record_name(self, split: Split) -> str:
        return f"{self._connector.name}/{split.id}"

    def _parse(self, raw: RawBatch) -> Parsed:
        return self._event_time.apply(raw, self._format.parse(raw))

    def _emit(self, split: Split, batch: Batch, reader: OpenReader, watermark: SplitWatermark, index: PositionIndex) -> Iterator[Any]:
        before, raw, parsed = watermark.current, batch.raw, batch.parsed
        if parsed.events.num_rows:
            events = self._with_lineage(split, raw, parsed)
            newest = int(event_times(events).max())
            watermark.advance(newest)
            index.add(raw.next_position, newest)
            reader.events += events.num_rows
            self._events.inc(events.num_rows)
            yield TimestampedValue(events, before)
        rejected = self._reject(split, raw, parsed)
        if rejected is not None:
            reader.rejected += rejected.num_rows
            self._rejected.inc(rejected.num_rows)
            yield beam.pvalue.TaggedOutput("rejected", TimestampedValue(rejected, before))

    def _with_lineage(self, split: Split, raw: RawBatch, parsed: Parsed) -> pa.RecordBatch:
        positions = pa.array(raw.positions if parsed.rows is None else raw.positions[parsed.rows])
        event_time, *fields = parsed.events.columns
        return pa.RecordBatch.from_arrays([event_time, _all_of(split.id, parsed.events.num_rows), positions, *fields], schema=self._schema)

    def _reject(self, split: Split, raw: RawBatch, parsed: Parsed) -> pa.RecordBatch | None:
        rejects = parsed.rejects
        if not len(rejects) and not raw.errors:
            return None
        payloads: list[bytes | None] = []
        for index in rejects.indices:
            payload: bytes | None = raw.payloads[index].as_py()
            payloads.append(payload[:-1] if payload is not None and raw.newline_terminated else payload)
        return dead_letters(
            stage="read",
            source=self._connector.name,
            split=split.id,
            positions=pa.array([*raw.positions[rejects.indices].tolist(), *(error[0] for error in raw.errors)], pa.int64()),
            payloads=pa.array([*payloads, *(error[3] for error in raw.errors)], pa.binary()),
            error_types=[*rejects.error_types, *(error[1] for error in raw.errors)],
            messages=[*rejects.messages, *(error[2] for error in raw.errors)],
        )

    def _note(
        self, split: Split, position: int, reader: OpenReader, watermark: SplitWatermark, index: PositionIndex,
        *, done: bool = False, finished: bool = False, now: bool = False,
    ) -> None:  # fmt: skip
        """``done``: the split is not read any more; ``finished``: because it came to its end, and not because the job drains."""
        source, name = self._connector.name, self._record_name(split)
        self._record.put(
            "splits",
            name,
            {
                "source": source, "split": split.id, "start": split.start, "position": position, "done": done, "finished": finished,
                "watermark": reported_micros(watermark.current), "newest": watermark.newest, "events": reader.events, "rejected": reader.rejected,
                "opened": reader.opened, "updated": time.time(),
            },
            now=now or done,
        )
        known = {"source": source, "split": split.id, "begin": index.begin, "facts": index.facts, "disorder": index.disorder}
        self._record.put("positions", name, known, now=now or done, every=NOTE_POSITIONS_SECONDS)


def _all_of(split: str, rows: int) -> pa.DictionaryArray:
    codes = pa.Array.from_buffers(pa.int8(), rows, [None, pa.py_buffer(bytes(rows))])
    return pa.DictionaryArray.from_arrays(codes, _dictionary(split), safe=False)


@lru_cache(maxsize=1024)
def _dictionary(split: str) -> pa.StringArray:
    return pa.array([split])


def newest_possible(watermark: Timestamp, disorder: int) -> int | None:
    """No event before a position with this watermark is newer than this (microseconds); see ``reported`` for what a watermark leaves off."""
    return None if watermark <= MIN_TIMESTAMP else int(watermark.micros) + disorder + 2 * MICROSECONDS["ms"] - 1


def reported_micros(watermark: Timestamp) -> int | None:
    """Microseconds, None before the first event."""
    return None if watermark <= MIN_TIMESTAMP else int(watermark.micros)


class _ReadUnbounded(_Read):
    """The same for splits without an end: Beam asks that the method say so."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: bytes,
        tracker: Any = beam.DoFn.RestrictionParam(_PositionsProvider()),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterator[Any]:
        split, found_later = split_of(element)
        yield from self._read(split, found_later, tracker, watermark)
