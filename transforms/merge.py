"""Merging partials in keyed state: one table per (shard, slice)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from streamgauge.transforms.config import MICROSECONDS
from streamgauge.transforms.partials import Metric, Partials
from streamgauge.transforms.results import ResultRows

COMPACT_AFTER = 64
"""Partials appended to one bag before they are merged into one: bounds the size of state and the cost of a firing."""

COMPACT_BEYOND = 8
"""A result leaves so many partials as they are: each distinct bag that a bundle changes costs a round trip at its end."""

COMPACT_TOLD = 4
"""The same, for slices whose bag is read in every bundle that changes them."""

DUE_ROWS = 1 << 16
"""Slices whose timers fired are merged together at the bundle's end, or when they have so many rows."""

_STEPS = 60
"""A window's early rows tell how far event time has come to a part of the window as small as this, or a second."""

_MS = MICROSECONDS["ms"]

NEW, SHOWN, FINAL = b"\x00", b"\x01", b"\x02"
"""Last byte of a stored partial: what no result has yet, what an early result had, what a final one had."""


@dataclass(frozen=True)
class Merged:
    """What is known of a shard's slice when results are due.

    Attributes:
        key: of the shard.
        rows: the merged partial of the whole slice.
        changed: the same, of the keys that changed since the last time.
        gone: of keys that had early results and are beyond the limit now; None: none.
        start, end: bounds of the slice, microseconds.
        final: the watermark has passed its end.
        watermark: microseconds; how far event time had come. None: not known.
    """

    key: bytes
    rows: pa.RecordBatch
    changed: pa.RecordBatch
    gone: pa.RecordBatch | None
    start: int
    end: int
    final: bool
    watermark: int | None


class Output(Protocol):
    """What becomes of merged slices."""

    def of(self, partials: Partials, merged: Sequence[Merged]) -> Iterator[tuple[int, Any]]:
        """The elements that are emitted, each with the number of its slice."""


class Results:
    """A slice is a whole window: its result rows."""

    def __init__(self, rows: ResultRows | None = None) -> None:
        self._rows = rows or ResultRows()

    def of(self, partials: Partials, merged: Sequence[Merged]) -> Iterator[tuple[int, Any]]:
        if len(merged) > 1 and partials.metric.limit is None:
            starts, ends = [each.start for each in merged], [each.end for each in merged]
            finals, watermarks = [each.final for each in merged], [each.watermark for each in merged]
            changed = [each.changed for each in merged]
            yield from enumerate(self._rows.of_each(partials, changed, starts, ends, finals=finals, watermarks=watermarks))
            return
        for number, each in enumerate(merged):
            elements = self._rows.of(each.key, partials, each.changed, each.start, each.end, final=each.final, watermark=each.watermark, gone=each.gone)
            for element in elements:
                yield number, element


@dataclass(frozen=True, kw_only=True)
class _Due:
    """A slice of which results are due.

    Attributes:
        key: of the shard.
        window, timestamp: of the results.
        told, new: partials; what results had before, and what came since.
        final: the results are final.
        whole: every row counts as changed.
        watermark: as in Merged.
    """

    key: bytes
    window: Any
    timestamp: Timestamp
    told: list[pa.RecordBatch]
    new: list[pa.RecordBatch]
    final: bool
    whole: bool
    watermark: int | None

    @property
    def num_rows(self) -> int:
        return sum(batch.num_rows for batch in (*self.told, *self.new))

    def emitted(self, element: Any) -> Any:
        """An element at its time and in its window, as it leaves a bundle's end."""
        if isinstance(element, beam.pvalue.TaggedOutput):
            return beam.pvalue.TaggedOutput(element.tag, self.emitted(element.value))
        return WindowedValue(element, self.timestamp, (self.window,))


@dataclass
class _Change:
    """A slice that changed in this bundle.

    Attributes:
        window, timestamp: of its elements.
        told: what results had before; empty: nothing.
        final: a final result was among them.
        new: what came since.
        stored: the bag.
    """

    window: Any
    timestamp: Timestamp
    told: list[pa.RecordBatch]
    final: bool
    new: list[pa.RecordBatch]
    stored: list[bytes]

    @property
    def mark(self) -> bytes:
        return FINAL if self.final else SHOWN


class MergeDoFn(beam.DoFn):  # type: ignore[misc]
    """(shard key, encoded partial) in windows that begin with a slice -> what ``output`` makes of the merged slice.

    State is a bag of encoded partials; adding one reads nothing. Timers read: ``end`` at the slice's last moment (again for every
    late partial, at the watermark's next step) and ``emit`` every so often in between. For results at every change the first partial of a slice in a bundle
    reads, and the bundle's end makes one result of all that came in it: no row leaves a bundle sooner. Beam clears a slice's state
    when the watermark passes the window's end; nothing later comes here, see aggregate.py.

    Args:
        emit_every: microseconds of processing time between early results; 0: at every change; None: no early results.
        earlier: see Partials.
        kept: how long a window lasts after the end of its slice, microseconds.
    """

    PARTIALS = BagStateSpec("partials", BytesCoder())
    END = TimerSpec("end", TimeDomain.WATERMARK)
    EMIT = TimerSpec("emit", TimeDomain.REAL_TIME)
    PROGRESS = TimerSpec("progress", TimeDomain.WATERMARK)

    def __init__(
        self, metric: Metric, emit_every: int | None, earlier: Sequence[pa.Schema] = (), output: Output | None = None, kept: int = 0
    ) -> None:
        self._metric = metric
        self._earlier = earlier
        self._emit_every = emit_every
        self._output = output or Results()
        self._kept = kept
        self._appended: dict[tuple[bytes, int], int] = {}
        self._armed: set[tuple[bytes, int]] = set()
        self._changes: dict[tuple[bytes, int], _Change] = {}
        self._merged: dict[tuple[bytes, int], tuple[list[bytes], pa.RecordBatch]] = {}
        self._due: list[_Due] = []
        self._due_rows = 0
        self._progress = Progress()

    def setup(self) -> None:
        self._partials = Partials(self._metric, self._earlier)

    def start_bundle(self) -> None:
        # Timers set by a bundle that failed are gone with it: what is armed is remembered for one bundle only. So is what was to be told.
        self._armed = set()
        self._changes = {}
        self._due, self._due_rows = [], 0

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._tell()
        changes, self._changes, self._merged = self._changes, {}, {}
        due = [
            _Due(
                key=shard, window=change.window, timestamp=change.timestamp, told=change.told, new=change.new, final=change.final, whole=False,
                watermark=self._progress.watermark,
            )
            for (shard, _), change in changes.items()
        ]  # fmt: skip
        merged = self._merge(due)
        for (place, change), each in zip(changes.items(), merged, strict=True):
            # What a bag with just this content is merged: the next bundle mostly finds it so.
            self._merged[place] = (change.stored, each.rows)
        yield from self._elements(due, merged)

    def process(
        self,
        element: tuple[bytes, bytes],
        window: Any = beam.DoFn.WindowParam,
        partials: Any = beam.DoFn.StateParam(PARTIALS),
        end: Any = beam.DoFn.TimerParam(END),
        emit: Any = beam.DoFn.TimerParam(EMIT),
        progress: Any = beam.DoFn.TimerParam(PROGRESS),
        timestamp: Any = beam.DoFn.TimestampParam,
    ) -> None:
        shard, partial = element
        key = (shard, window.start.micros)
        if key not in self._armed:
            self._armed.add(key)
            end.set(Timestamp(micros=self._end(window) - _MS))
            if self._emit_every:
                emit.set(next_emission(self._emit_every))
        if self._emit_every == 0:
            change = self._changes.get(key)
            if change is None:
                self._progress.ask(progress, window.start.micros, self._end(window))
                change = self._changes[key] = self._change(key, partials, window, timestamp)
            self._add(partials, change, partial)
            change.new += self._decode([partial])
            return
        partials.add(partial + NEW)
        appended = self._appended.get(key, 0) + 1
        if appended >= COMPACT_AFTER:
            self._compact(partials)
            appended = 0
        self._appended[key] = appended

    @on_timer(END)
    def passed(
        self,
        key: bytes = beam.DoFn.KeyParam,
        window: Any = beam.DoFn.WindowParam,
        fired: Any = beam.DoFn.TimestampParam,
        partials: Any = beam.DoFn.StateParam(PARTIALS),
        emit: Any = beam.DoFn.TimerParam(EMIT),
    ) -> Iterator[Any]:
        """The watermark passed the slice's end: the final result, or its correction by late events."""
        place = (key, window.start.micros)
        self._armed.discard(place)
        self._appended.pop(place, None)
        self._progress.see(fired)
        if self._emit_every:
            emit.clear()
        change = self._changes.get(place)
        if change is None:
            yield from self._emit(key, partials, window, fired, final=True)
        elif not change.final:  # else it is a correction, and told at the bundle's end
            del self._changes[place]
            due = _Due(
                key=key, window=window, timestamp=fired, told=change.told, new=change.new, final=True, whole=True, watermark=self._progress.watermark
            )  # fmt: skip
            yield from self._rewritten(partials, due)

    @on_timer(EMIT)
    def periodic(
        self,
        key: bytes = beam.DoFn.KeyParam,
        window: Any = beam.DoFn.WindowParam,
        timestamp: Any = beam.DoFn.TimestampParam,
        partials: Any = beam.DoFn.StateParam(PARTIALS),
        progress: Any = beam.DoFn.TimerParam(PROGRESS),
    ) -> Iterator[Any]:
        """The result so far."""
        self._armed.discard((key, window.start.micros))
        self._appended.pop((key, window.start.micros), None)
        self._progress.ask(progress, window.start.micros, self._end(window))
        yield from self._emit(key, partials, window, timestamp, final=False)

    @on_timer(PROGRESS)
    def progressed(self, fired: Any = beam.DoFn.TimestampParam) -> None:
        """The watermark passed a moment within a window."""
        self._progress.see(fired)

    def _change(self, key: tuple[bytes, int], partials: Any, window: Any, timestamp: Timestamp) -> _Change:
        """What is in state before the first change of this bundle, of which everything will have been told when it ends."""
        stored = list(partials.read())
        known, merged = self._merged.get(key, (None, None))
        told = [merged] if merged is not None and known == stored else self._told(stored)
        new = self._decode([data for data in stored if data[-1:] == NEW])
        change = _Change(window, timestamp, told, any(data[-1:] == FINAL for data in stored), new, stored)
        if new or len(stored) > COMPACT_TOLD:
            change.stored = []
            partials.clear()
            self._add(partials, change, self._partials.codec.encode(self._partials.merge([*told, *new])))
        return change

    @staticmethod
    def _add(partials: Any, change: _Change, partial: bytes) -> None:
        partials.add(partial + change.mark)
        change.stored.append(partial + change.mark)

    def _emit(self, key: bytes, partials: Any, window: Any, timestamp: Timestamp, *, final: bool) -> Iterator[Any]:
        """Results are due: of many slices at a time when event time leaps. What is rewritten at once is merged at once, the others together."""
        stored = list(partials.read())
        new = [data for data in stored if data[-1:] == NEW]
        was_final = any(data[-1:] == FINAL for data in stored)
        if not stored or (not new and (was_final or not final)):
            return
        due = _Due(
            key=key, window=window, timestamp=timestamp, told=self._told(stored), new=self._decode(new), final=final or was_final,
            whole=final and not was_final, watermark=self._progress.watermark,
        )  # fmt: skip
        # A rewrite costs more than the next reader saves on a few partials.
        if len(stored) > COMPACT_BEYOND:
            yield from self._rewritten(partials, due)
            return
        # Only where rows can be withdrawn, and for a periodic result, it matters what was told.
        if self._emit_every is not None or self._metric.withdraws:
            partials.clear()
            for data in stored:
                partials.add(data[:-1] + (FINAL if due.final else SHOWN))
        self._due.append(due)
        self._due_rows += due.num_rows
        if self._due_rows >= DUE_ROWS:
            yield from self._tell()

    def _rewritten(self, partials: Any, due: _Due) -> Iterator[Any]:
        """The results of a slice of which one merged partial is stored from now on."""
        merged = self._merge([due])
        partials.clear()
        partials.add(self._partials.codec.encode(merged[0].rows) + (FINAL if due.final else SHOWN))
        yield from self._elements([due], merged)

    def _tell(self) -> Iterator[Any]:
        """The results that are due."""
        due, self._due, self._due_rows = self._due, [], 0
        yield from self._elements(due, self._merge(due))

    def _merge(self, due: Sequence[_Due]) -> list[Merged]:
        merged = []
        for each, (rows, changed, gone) in zip(due, self._partials.merge_each([(each.told, each.new) for each in due]), strict=True):
            told = rows if each.whole or changed.all() else rows.filter(pa.array(changed))
            merged.append(Merged(each.key, rows, told, gone, each.window.start.micros, self._end(each.window), each.final, each.watermark))
        return merged

    def _elements(self, due: Sequence[_Due], merged: Sequence[Merged]) -> Iterator[Any]:
        for number, element in self._output.of(self._partials, merged):
            yield due[number].emitted(element)

    def _told(self, stored: Sequence[bytes]) -> list[pa.RecordBatch]:
        """What results had. With a limit on keys in one: what is beyond it is beyond it once."""
        told = self._decode([data for data in stored if data[-1:] != NEW])
        return [self._partials.merge(told)] if told and self._metric.limit is not None else told

    def _end(self, window: Any) -> int:
        """Of the slice, microseconds."""
        end: int = window.end.micros - self._kept
        return end

    def _compact(self, partials: Any) -> None:
        """New partials become one; what results had stays apart, for they tell what changed."""
        stored = list(partials.read())
        new = self._partials.merge(self._decode([data for data in stored if data[-1:] == NEW]))
        partials.clear()
        for data in stored:
            if data[-1:] != NEW:
                partials.add(data)
        partials.add(self._partials.codec.encode(new) + NEW)

    def _decode(self, stored: Sequence[bytes]) -> list[pa.RecordBatch]:
        # What is behind an encoded partial is not read: no copy is made without it.
        return [self._partials.decode(data) for data in stored]


class Progress:
    """How far event time has come, as far as one worker's timers have told."""

    def __init__(self) -> None:
        self.watermark: int | None = None

    def see(self, fired: Timestamp) -> None:
        """An event-time timer for this moment fired."""
        if fired > MIN_TIMESTAMP and (self.watermark is None or fired.micros > self.watermark):
            self.watermark = fired.micros

    def ask(self, timer: Any, start: int, end: int) -> None:
        """Sets a timer that tells more: at the start of what is open, or where that is known to have passed, a step behind what is known."""
        step = max(MICROSECONDS["s"], (end - start) // _STEPS)
        moment = start if self.watermark is None else max(start, (self.watermark // step + 1) * step)
        if moment < end - _MS:
            timer.set(Timestamp(micros=moment))


def next_emission(every: int) -> Timestamp:
    """When early results are due: now, or the next multiple of the period, so that setting the timer again within one period moves nothing."""
    now = Timestamp.now()
    return now if every == 0 else Timestamp(micros=(now.micros // every + 1) * every)
