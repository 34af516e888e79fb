"""The first step of AggregateWindows: batches of events become partials, and what comes too late is set aside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow, TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE, POSITION, SPLIT, SPLIT_TYPE, disorder_of, event_times
from streamgauge.transforms.config import MICROSECONDS
from streamgauge.transforms.hashing import spread_key
from streamgauge.transforms.partials import Metric, Partials, concatenated
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.replay import ReplayPoint
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.session_table import SessionTable
from streamgauge.transforms.sharding import Reach, Sharding
from streamgauge.transforms.windows.base import Times

_MS = MICROSECONDS["ms"]
_AT_ONCE = 1 << 16
"""Rows that are reduced together: what grouping reads and writes at random stays in the processor's cache."""

_MOST_SPLITS = np.iinfo(SPLIT_TYPE.index_type.to_pandas_dtype()).max
"""Names that the column of splits can tell apart."""

_MANY_ROWS, _MOST_SHARE, _UNMERGED = 2_000, 0.75, 32
"""Where merging that many rows leaves more than this share of them, so many of the next partials are not merged: with keys of a few events
each it costs more than it saves, and they are merged in state anyway."""

_NOTHING_SEEN = np.iinfo(np.int64).min


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


def late_schema(metric: Metric) -> pa.Schema:
    """Columns of a late event: metric, window_start, split, position, item (its number within the record, from 0), event_time, then its fields."""
    stamp = EVENT_TIME_TYPE
    fields = [field for field in metric.schema if not field.name.startswith("__")]
    lineage = [("metric", pa.string()), ("window_start", stamp), ("split", pa.string()), ("position", pa.int64()), ("item", pa.int64()), ("event_time", stamp)]
    taken = {name for name, _ in lineage}
    columns = [pa.field(name, kind, nullable=False) for name, kind in lineage]
    columns += [pa.field(f"field_{field.name}" if field.name in taken else field.name, field.type) for field in fields]
    return RowSpec("late", key=("metric", "window_start", "split", "position", "item"), time="window_start").attach(pa.schema(columns))


def _items(events: pa.RecordBatch) -> Times:
    """The number of each event within its record: those of one split and position stand together, in an order that a replay repeats."""
    splits, positions = events.column(SPLIT).indices.to_numpy(), events.column(POSITION).to_numpy()
    begins = np.append(0, np.flatnonzero((splits[1:] != splits[:-1]) | (positions[1:] != positions[:-1])) + 1)
    found: Times = np.arange(len(positions)) - np.repeat(begins, np.diff(begins, append=len(positions)))
    return found


def _shard_key(shard: int) -> bytes:
    return spread_key(shard, lambda salt: b"%d.%d" % (shard, salt))


class _PartialDoFn(beam.DoFn):  # type: ignore[misc]
    """EventBatch -> (shard key, encoded partial); late events aside.

    Events of one bundle are reduced together, and partials put together before they leave at its end: neither the cost of a small batch nor what
    crosses the shuffle grows with the number of batches.

    Args:
        sharding: shards by slice; those of the metric if None.
        step: name of the step, if its slices may be divided into another number of shards one day.
    """

    def __init__(
        self, metric: Metric, window: Any, lateness: int, record_folder: str | None, stored: Stored | None = None,
        *, sharding: Sharding | None = None, step: str | None = None,
    ) -> None:  # fmt: skip
        self._metric = metric
        self._sharding = sharding or Sharding(metric.shards)
        self._step = step
        self._window = window
        self._lateness = lateness
        self._record_folder = record_folder
        self._stored = stored
        self._late_count = self._stored_count = 0
        self._already_stored = Metrics.counter("streamgauge", "events_already_stored")
        self._late = Metrics.counter("streamgauge", "events_late")

    def setup(self) -> None:
        self._partials = Partials(self._metric, sharding=self._sharding)
        self._late_schema = late_schema(self._metric)
        self._record = JobRecord(self._record_folder)
        self._shard_keys = [_shard_key(shard) for shard in range(self._sharding.most)]
        self._reach = None if self._step is None else Reach(self._record, self._step, self._window.slice_size)

    def start_bundle(self) -> None:
        # What a failed bundle left belongs to nobody.
        self._held: list[tuple[pa.RecordBatch, Times]] = []
        self._held_rows = self._held_splits = 0
        self._bundle: dict[tuple[int, int], list[pa.RecordBatch]] = {}

    def process(self, events: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        if not events.num_rows:
            return
        times = event_times(events)
        slices = self._starts(times)
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
                yield self._late_rows(events.filter(pa.array(late)), slices[late], _items(events)[late], timestamp)
            events, slices = events.filter(pa.array(kept)), slices[kept]
            if not events.num_rows:
                return
        splits = len(events.column(SPLIT).dictionary)
        if self._held_rows + events.num_rows > _AT_ONCE or self._held_splits + splits > _MOST_SPLITS:
            self._reduce_held()
        self._held.append((events, slices))
        self._held_rows, self._held_splits = self._held_rows + events.num_rows, self._held_splits + splits

    def finish_bundle(self) -> Iterator[WindowedValue]:
        self._reduce_held()
        bundle, self._bundle = self._bundle, {}
        if self._reach is not None and bundle:
            self._reach.extend(max(start for start, _ in bundle))
        for (start, shard), partials in bundle.items():
            encoded = self._partials.codec.encode(self._together(partials))
            yield WindowedValue((self._shard_keys[shard], encoded), self._moment(start), (GlobalWindow(),))

    def _reduce_held(self) -> None:
        held, self._held = self._held, []
        self._held_rows = self._held_splits = 0
        if held:
            events, slices = concatenated([batch for batch, _ in held]), np.concatenate([slices for _, slices in held])
            for start, shard, partial in self._reduce(events, slices):
                self._bundle.setdefault((start, shard), []).append(partial)

    def _starts(self, times: Times) -> Times:
        """Of each event, the start of what it is part of."""
        raise NotImplementedError

    def _closed_at(self, starts: Times) -> Times:
        """When that takes no more events."""
        raise NotImplementedError

    def _reduce(self, events: pa.RecordBatch, starts: Times) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        """(start, shard, partial): those of equal start and shard are merged."""
        raise NotImplementedError

    def _together(self, partials: list[pa.RecordBatch]) -> pa.RecordBatch:
        """Partials of equal start and shard as one."""
        raise NotImplementedError

    def _moment(self, start: int) -> Timestamp:
        """The time stamp of the element."""
        raise NotImplementedError

    def _too_late(self, times: Times, slices: Times, before: int, disorder: int) -> npt.NDArray[np.bool_] | None:
        """Which events are late, judged row by row so that it does not matter how the rows were batched; None: none."""
        closed_at = self._closed_at(slices)
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
        self._record.put_own(kind, self._metric.name, {"metric": self._metric.name, "events": events}, now=True)

    def _late_rows(self, events: pa.RecordBatch, slices: Times, items: Times, timestamp: Any) -> Any:
        self._late_count += events.num_rows
        self._late.inc(events.num_rows)
        self._note("late", self._late_count)
        fields = [column for column, name in zip(events.columns, events.schema.names, strict=True) if not name.startswith("__")]
        columns = [
            pa.repeat(self._metric.name, events.num_rows), pa.array(slices).cast(EVENT_TIME_TYPE),
            events.column(SPLIT).cast(pa.string()), events.column(POSITION), pa.array(items), events.column(EVENT_TIME), *fields,
        ]
        return beam.pvalue.TaggedOutput("late", TimestampedValue(pa.record_batch(columns, schema=self._late_schema), timestamp))


class SlicePartialDoFn(_PartialDoFn):
    """Partials of slices, with the time stamp of the slice's last millisecond."""

    def setup(self) -> None:
        super().setup()
        self._unmerged = 0

    def _starts(self, times: Times) -> Times:
        return self._window.slice_starts(times)  # type: ignore[no-any-return]

    def _closed_at(self, starts: Times) -> Times:
        return self._window.last_ends(starts) + self._lateness  # type: ignore[no-any-return]

    def _reduce(self, events: pa.RecordBatch, starts: Times) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        return self._partials.of_events(events, starts)

    def _together(self, partials: list[pa.RecordBatch]) -> pa.RecordBatch:
        if self._unmerged and self._metric.limit is None:
            self._unmerged -= 1
            return self._partials.unmerged(partials)
        merged = self._partials.merge(partials)
        rows = sum(partial.num_rows for partial in partials)
        if rows >= _MANY_ROWS and merged.num_rows > _MOST_SHARE * rows:
            self._unmerged = _UNMERGED
        return merged

    def _moment(self, start: int) -> Timestamp:
        return Timestamp(micros=int(self._window.slice_ends(np.array([start]))[0]) - _MS)


class SessionPartialDoFn(_PartialDoFn):
    """Partials whose rows are pieces of sessions, see windows/session.py. An event alone would be a session, which starts with it."""

    def setup(self) -> None:
        super().setup()
        self._table = SessionTable(self._partials, self._window, self._lateness)

    def start_bundle(self) -> None:
        super().start_bundle()
        self._earliest = MAX_TIMESTAMP

    def process(self, events: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        self._earliest = min(self._earliest, timestamp)
        return super().process(events, timestamp)

    def _starts(self, times: Times) -> Times:
        return times

    def _closed_at(self, starts: Times) -> Times:
        return starts + (self._window.gap + self._lateness)  # type: ignore[no-any-return]

    def _reduce(self, events: pa.RecordBatch, starts: Times) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        groups = self._partials.group(events)
        pieces = groups.split(self._window.pieces(groups.ids, starts))
        for shard, partial in self._partials.by_shard(self._partials.reduce(events, pieces)):
            yield 0, shard, partial

    def _together(self, partials: list[pa.RecordBatch]) -> pa.RecordBatch:
        return self._table.merge(partials)

    def _moment(self, start: int) -> Timestamp:
        return self._earliest
