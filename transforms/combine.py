"""Windows of several slices: merged slices are kept in keyed state and combined into every window that they complete."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from streamgauge.transforms.aggregates.count import EVENTS
from streamgauge.transforms.config import MICROSECONDS
from streamgauge.transforms.merge import Merged, Progress, next_emission
from streamgauge.transforms.partials import Metric, Partials
from streamgauge.transforms.results import ResultRows
from streamgauge.transforms.windows.base import SlicedWindow

_MS = MICROSECONDS["ms"]
_HEADER = struct.Struct("<qq?")
"""Of a stored slice: its start (microseconds), its events, whether the watermark has passed its end."""

_DONE = -1
"""Instead of a number of events: the results of windows that end by the start have been made, from all that stands before this entry."""

_NEVER = int(np.iinfo(np.int64).min)

_REWRITE_BEYOND = 16
"""So many stored slices that are no longer needed are tolerated, and as many as are needed: each is rewritten a constant number of times."""


class Slices:
    """What a merged slice becomes where windows have several: its partial, with a header."""

    def of(self, partials: Partials, merged: Sequence[Merged]) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
        for number, each in enumerate(merged):
            events = pc.sum(each.rows.column(EVENTS.name)).as_py()
            yield number, (each.key, _HEADER.pack(each.start, events, each.final) + partials.codec.encode(each.rows))


@dataclass
class _Stored:
    """What the bag of a shard holds.

    Attributes:
        entries: of each slice the newest state, by start.
        new: slices that changed since results were made.
        done: windows that end no later have results, microseconds.
        spare: entries that are not needed.
    """

    entries: dict[int, bytes]
    new: set[int]
    done: int
    spare: int

    @classmethod
    def of(cls, data: Sequence[bytes]) -> _Stored:
        entries: dict[int, tuple[int, bytes]] = {}
        new: set[int] = set()
        done = _NEVER
        for entry in data:
            start, events, _ = _HEADER.unpack_from(entry)
            if events == _DONE:
                done = max(done, start)
                new.clear()
            elif start not in entries or entries[start][0] <= events:
                entries[start] = (events, entry)
                new.add(start)
        return cls({start: entry for start, (_, entry) in entries.items()}, new, done, len(data) - len(entries))

    def ended(self) -> npt.NDArray[np.int64]:
        """Starts of the slices whose end the watermark has passed."""
        return np.array([start for start, entry in self.entries.items() if _HEADER.unpack_from(entry)[2]], np.int64)


@dataclass(frozen=True)
class _Window:
    """A window's merged slices; its bounds in microseconds."""

    start: int
    end: int
    rows: pa.RecordBatch


class CombineDoFn(beam.DoFn):  # type: ignore[misc]
    """(shard key, stored slice) in the global window -> result rows of windows of several slices.

    State is a bag of slices; adding one reads nothing, and of several states of one slice the one with the most events counts. A timer at the end of
    a window reads the bag, makes the results of all windows that have ended since the last time, and of earlier ones with a slice that changed late
    if they are not closed, and sets the timer of the next window. Slices of which every window is closed are dropped.

    That windows are closed, ``lateness`` after their end, is noticed when a later one ends.

    Args:
        lateness: microseconds.
        emit_every: as in MergeDoFn. Early results are those of the window that ends next.
        cutoff: windows that start before are left alone (microseconds), see replay.py.
        forgets: False for runners that fire timers of event time out of order: no window is ever closed then, and no slice dropped.
    """

    SLICES = BagStateSpec("slices", BytesCoder())
    END = TimerSpec("window_end", TimeDomain.WATERMARK)
    EMIT = TimerSpec("window_emit", TimeDomain.REAL_TIME)
    PROGRESS = TimerSpec("window_progress", TimeDomain.WATERMARK)

    def __init__(
        self, metric: Metric, window: SlicedWindow, lateness: int, emit_every: int | None, earlier: Sequence[pa.Schema] = (),
        *, rows: ResultRows | None = None, cutoff: int | None = None, forgets: bool = True,
    ) -> None:  # fmt: skip
        self._metric = metric
        self._window = window
        self._lateness = lateness
        self._emit_every = emit_every
        self._earlier = earlier
        self._rows = rows or ResultRows()
        self._cutoff = cutoff
        self._forgets = forgets
        self._progress = Progress()

    def setup(self) -> None:
        self._partials = Partials(self._metric, self._earlier)

    def start_bundle(self) -> None:
        # What a failed bundle did is not in state.
        self._done: dict[bytes, int] = {}

    def process(
        self,
        element: tuple[bytes, bytes],
        slices: Any = beam.DoFn.StateParam(SLICES),
        end: Any = beam.DoFn.TimerParam(END),
        emit: Any = beam.DoFn.TimerParam(EMIT),
    ) -> None:
        key, stored = element
        self._done.pop(key, None)
        slices.add(stored)
        start, _, _ = _HEADER.unpack_from(stored)
        self._set(end, self._first_end(start))
        # At the end of the input nobody waits for timers that timers have set: this one makes all that is left.
        self._set(end, int(self._window.last_ends(np.array([start]))[0]))
        if self._emit_every is not None:
            emit.set(next_emission(self._emit_every))

    @on_timer(END)
    def passed(
        self,
        key: bytes = beam.DoFn.KeyParam,
        fired: Any = beam.DoFn.TimestampParam,
        slices: Any = beam.DoFn.StateParam(SLICES),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> Iterator[Any]:
        """The watermark passed the end of a window."""
        window_end = fired.micros + _MS
        if window_end <= self._done.get(key, _NEVER):
            return
        stored = _Stored.of(list(slices.read()))
        # A slice that has ended tells that the watermark was there when it left the step before, with all that ended earlier.
        done = max(stored.done, window_end, int(self._window.slice_ends(stored.ended()).max(initial=_NEVER)))
        self._progress.see(Timestamp(micros=done - _MS))
        closed = stored.done - self._lateness if self._forgets and stored.done != _NEVER else _NEVER
        made = None
        for each in self._due(stored, closed, done):
            merged = self._merged(stored, each, made)
            if merged is not None:
                made = merged
                yield from self._results(key, merged, final=True)
        self._done[key] = done
        self._set_next(end, stored, done)
        self._note_done(slices, stored, done)

    @on_timer(EMIT)
    def periodic(
        self, key: bytes = beam.DoFn.KeyParam, slices: Any = beam.DoFn.StateParam(SLICES), progress: Any = beam.DoFn.TimerParam(PROGRESS)
    ) -> Iterator[Any]:
        """The result so far of the window that ends next."""
        stored = _Stored.of(list(slices.read()))
        open_slices = [start for start, entry in stored.entries.items() if not _HEADER.unpack_from(entry)[2]]
        merged = self._merged(stored, self._first_end(max(open_slices))) if open_slices else None
        if merged is not None:
            self._progress.ask(progress, max(open_slices), merged.end)
            yield from self._results(key, merged, final=False)
        self._tidy(slices, stored, list(stored.entries))

    @on_timer(PROGRESS)
    def progressed(self, fired: Any = beam.DoFn.TimestampParam) -> None:
        """The watermark passed a moment within a window."""
        self._progress.see(fired)

    def _merged(self, stored: _Stored, end: int, made: _Window | None = None) -> _Window | None:
        """The window with this end, None if it has no slices. ``made``: an earlier one; if both start together, only what came since is merged."""
        start = self._window.start_of(end)
        if self._cutoff is not None and start < self._cutoff:
            return None
        earlier = made if made is not None and made.start == start else None
        since = earlier.end if earlier else start
        parts = [self._partials.decode(entry[_HEADER.size :]) for begin, entry in stored.entries.items() if since <= begin < end]
        parts += [earlier.rows] if earlier else []
        return _Window(start, end, self._partials.merge(parts)) if parts else None

    def _results(self, key: bytes, made: _Window, *, final: bool) -> Iterator[Any]:
        return self._rows.of(key, self._partials, made.rows, made.start, made.end, final=final, watermark=self._progress.watermark)

    def _due(self, stored: _Stored, closed: int, done: int) -> Iterator[int]:
        """Ends of the windows to be made: not made before, or with a slice that is new since."""
        starts = np.array(list(stored.entries), np.int64)
        new = np.array([start in stored.new for start in stored.entries], np.bool_)
        first = np.maximum(self._window.first_ends(starts), np.where(new, closed, stored.done) + 1)
        last = np.minimum(self._window.last_ends(starts), done)
        end = int(first.min(initial=done + 1))
        while end <= done:
            end = self._window.next_end(end - 1)
            inside = (first <= end) & (end <= last)
            if inside.any():
                yield end
                end += 1
            else:
                # Nothing for a while: the next slice says where to go on.
                end = int(first[first > end].min(initial=done + 1))

    def _set_next(self, end: Any, stored: _Stored, done: int) -> None:
        """The timer of the next window that has slices."""
        starts = np.array(list(stored.entries), np.int64)
        starts = starts[self._window.last_ends(starts) > done]
        if len(starts):
            self._set(end, max(self._window.next_end(done), int(self._window.first_ends(starts).min())))

    def _note_done(self, slices: Any, stored: _Stored, done: int) -> None:
        starts = np.array(list(stored.entries), np.int64)
        kept = starts[self._window.last_ends(starts) > done - self._lateness].tolist() if self._forgets else starts.tolist()
        stored.new, stored.done = set(), done
        if not self._tidy(slices, stored, kept):
            slices.add(_HEADER.pack(done, _DONE, True))

    def _tidy(self, slices: Any, stored: _Stored, kept: list[int]) -> bool:
        """Rewrite the bag with what is kept, if enough else is in it."""
        spare = stored.spare + len(stored.entries) - len(kept)
        if kept and spare <= max(_REWRITE_BEYOND, len(kept)):
            return False
        slices.clear()
        for start in kept:
            if start not in stored.new:
                slices.add(stored.entries[start])
        if stored.done != _NEVER:
            slices.add(_HEADER.pack(stored.done, _DONE, True))
        for start in kept:
            if start in stored.new:
                slices.add(stored.entries[start])
        return True

    def _first_end(self, start: int) -> int:
        return int(self._window.first_ends(np.array([start]))[0])

    def _set(self, end: Any, window_end: int) -> None:
        # A timer of its own for each window: a later one must not move an earlier one.
        end.set(Timestamp(micros=window_end - _MS), dynamic_timer_tag=str(window_end))
