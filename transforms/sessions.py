"""Sessions in keyed state: one table per shard, of all keys and all of time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.shared import Shared
from apache_beam.utils.timestamp import Timestamp

from streamgauge.transforms.config import MICROSECONDS
from streamgauge.transforms.merge import next_emission
from streamgauge.transforms.partials import Metric, Partials
from streamgauge.transforms.session_table import FOREVER, SessionTable
from streamgauge.transforms.windows.session import Session

_MS = MICROSECONDS["ms"]
_LAST = GlobalWindow().max_timestamp()

RECORD_COST = 64
"""What reading one more record costs, in rows."""
COMPACT_AFTER = 64 * RECORD_COST
"""What was appended is merged when it costs as much to read as what is stored, and at least this, in rows."""
REWRITE_BEYOND = 8
"""A firing that changes nothing leaves so many records as they are."""


@dataclass
class _Known:
    """What this process knows of a shard's state. It saves work, and nothing depends on it but when something is done.

    Attributes:
        wake: when the timer fires, microseconds.
        tag: of that timer. Where nothing is known there may be one already, which must not be put off: another one looks as soon as it can.
        rows: in the table when it was last written.
        appended: since then, in rows, with ``RECORD_COST`` for each record.
    """

    wake: int
    rows: int = 0
    appended: int = 0
    tag: str = ""


class _Memory:
    """By shard key, for all instances of the DoFn in a process. What a bundle uses is taken out until it has ended; what a failed one took is gone."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known] = {}
        self._lock = threading.Lock()

    def take(self, key: bytes) -> _Known | None:
        with self._lock:
            return self._known.pop(key, None)

    def put_back(self, known: dict[bytes, _Known]) -> None:
        with self._lock:
            self._known.update(known)


class SessionDoFn(beam.DoFn):  # type: ignore[misc]
    """(shard key, encoded pieces) in the global window -> result rows, also withdrawn ones; see ``SessionTable.tell``.

    State is a bag of records; adding one reads nothing. Timers read: ``end`` when the watermark may have passed the end of a session, ``emit`` when
    current results are due. A row is final when the watermark has passed the session's end: in a shard of up to 256 rows of state at
    that moment, in larger ones later, but at most an eighth of the gap (``SessionTable.step``), in event time. Where one event makes another
    session end at a border of ``max`` that was passed already, that is told when next one may have ended.

    An event at t is accepted as long as the watermark has not passed t + gap + lateness; what is later must not come here.

    Args:
        metric: with ``SESSION_STATE`` as its ``extra``, and ``withdraws``.
        lateness: microseconds.
        emit_every: microseconds of processing time after which sessions that changed are told; 0: at once; None: only when they are final.
        forgets: False on a runner that fires event-time timers before their time: there everything is told as if final whenever the
            runner pauses and corrected later, nothing is forgotten, and memory grows with the number of sessions.
        earlier: schemas of partials that an earlier version of the job may have stored.
    """

    STATE = BagStateSpec("sessions", BytesCoder())
    END = TimerSpec("end", TimeDomain.WATERMARK)
    EMIT = TimerSpec("emit", TimeDomain.REAL_TIME)

    def __init__(
        self, metric: Metric, session: Session, lateness: int, emit_every: int | None, forgets: bool, earlier: Sequence[pa.Schema] = ()
    ) -> None:
        self._metric = metric
        self._session = session
        self._lateness = lateness
        self._emit_every = emit_every
        self._forgets = forgets
        self._earlier = earlier
        self._shared = Shared()

    def setup(self) -> None:
        self._partials = Partials(self._metric, self._earlier)
        self._table = SessionTable(self._partials, self._session, self._lateness)
        self._memory: _Memory = self._shared.acquire(_Memory)

    def start_bundle(self) -> None:
        # What a failed bundle knew is not what the state holds; timers that it set are gone with it.
        self._bundle: dict[bytes, _Known] = {}
        self._armed: set[bytes] = set()

    def process(
        self,
        element: tuple[bytes, bytes],
        state: Any = beam.DoFn.StateParam(STATE),
        end: Any = beam.DoFn.TimerParam(END),
        emit: Any = beam.DoFn.TimerParam(EMIT),
    ) -> None:
        key, encoded = element
        state.add(self._table.fragment(encoded))
        pieces = self._partials.decode(encoded)
        known = self._bundle.get(key) or self._memory.take(key)
        closes = self._table.closes(pieces)
        if known is None:
            # Soon: at a time that the watermark has passed already, or will when these events are its own.
            known = _Known(wake=closes - self._session.gap, tag="soon")
        self._bundle[key] = known
        wake = self._table.align(closes, self._table.step(known.rows))
        if key not in self._armed or wake < known.wake:
            known.wake = min(known.wake, wake)
            self._set(end, known.wake, known.tag)
        if key not in self._armed:
            # At the end of the input nobody waits for timers that timers have set: this one tells all that is left.
            end.set(_LAST, dynamic_timer_tag="last")
        if key not in self._armed and self._emit_every is not None:
            emit.set(next_emission(self._emit_every))
        self._armed.add(key)
        known.appended += pieces.num_rows + RECORD_COST
        if known.appended >= max(COMPACT_AFTER, known.rows):
            table = self._table.compacted(self._table.decode(list(state.read())))
            self._write(state, self._table.encode(table))
            known.rows, known.appended = table.rows.num_rows, 0

    @on_timer(END)
    def passed(
        self,
        key: bytes = beam.DoFn.KeyParam,
        fired: Any = beam.DoFn.TimestampParam,
        state: Any = beam.DoFn.StateParam(STATE),
        end: Any = beam.DoFn.TimerParam(END),
        emit: Any = beam.DoFn.TimerParam(EMIT),
    ) -> Iterator[pa.RecordBatch]:
        """The watermark has come to where a session may have ended."""
        self._memory.take(key)
        self._armed.discard(key)
        records = list(state.read())
        if not records:
            self._bundle[key] = _Known(wake=FOREVER)
            return
        told = self._table.tell(
            self._table.decode(records), FOREVER if fired >= _LAST else fired.micros + _MS, early=False, forget=self._forgets
        )
        if told.results is not None:
            yield told.results
        size = told.table.rows.num_rows
        if told.results is not None or len(records) > REWRITE_BEYOND or not size:
            self._write(state, self._table.encode(told.table))
        self._bundle[key] = _Known(FOREVER if told.wake is None else told.wake, size)
        if told.wake is not None and self._forgets:
            self._set(end, told.wake)
        if self._emit_every is not None and not told.pending:
            emit.clear()

    @on_timer(EMIT)
    def periodic(self, key: bytes = beam.DoFn.KeyParam, state: Any = beam.DoFn.StateParam(STATE)) -> Iterator[pa.RecordBatch]:
        """The sessions that changed, as they are now."""
        self._armed.discard(key)
        records = list(state.read())
        if not records:
            return
        table = self._table.decode(records)
        told = self._table.tell(table, table.passed, early=True, forget=False)
        if told.results is not None:
            yield told.results
            self._write(state, self._table.encode(told.table))
            known = self._bundle.get(key) or self._memory.take(key)
            if known is not None:
                known.rows, known.appended = told.table.rows.num_rows, 0
                self._bundle[key] = known

    def finish_bundle(self) -> None:
        self._memory.put_back(self._bundle)
        self._bundle = {}

    def _set(self, end: Any, wake: int, tag: str = "") -> None:
        """So that it fires when the watermark has passed all times before ``wake``: as with windows, at the last millisecond before."""
        end.set(min(Timestamp(micros=self._table.align(wake, 0) - _MS), _LAST) if self._forgets else _LAST, dynamic_timer_tag=tag)

    @staticmethod
    def _write(state: Any, records: list[bytes]) -> None:
        state.clear()
        for record in records:
            state.add(record)
