"""Merging partials in keyed state: one table per (shard, window)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from streamgauge.transforms.partials import Metric, Partials

COMPACT_AFTER = 64
"""Partials appended to one bag before they are merged into one: bounds the size of state and the cost of a firing."""

COMPACT_BEYOND = 8
"""A result leaves so many partials as they are: each distinct bag that a bundle changes costs a round trip at its end."""

_OPEN, _FINAL = b"\x00", b"\x01"
"""First byte of a stored partial: _FINAL when it was merged after the watermark had passed the window's end."""


class MergeDoFn(beam.DoFn):  # type: ignore[misc]
    """(shard key, encoded partial) in windows of one slice -> result rows.

    State is a bag of encoded partials; adding one reads nothing. Timers read: ``end`` at the window's last moment (again for every
    late partial, at the watermark's next step) and ``emit`` every so often in between. Beam clears a window's state
    when the watermark passes its end plus the lateness; nothing later comes here, see aggregate.py.
    """

    PARTIALS = BagStateSpec("partials", BytesCoder())
    END = TimerSpec("end", TimeDomain.WATERMARK)
    EMIT = TimerSpec("emit", TimeDomain.REAL_TIME)

    def __init__(self, metric: Metric, emit_every: int | None, earlier: Sequence[pa.Schema] = ()) -> None:
        self._metric = metric
        self._earlier = earlier
        self._emit_every = emit_every
        self._appended: dict[tuple[bytes, int], int] = {}
        self._armed: set[tuple[bytes, int]] = set()

    def setup(self) -> None:
        self._partials = Partials(self._metric, self._earlier)

    def start_bundle(self) -> None:
        # Timers set by a bundle that failed are gone with it: what is armed is remembered for one bundle only.
        self._armed = set()

    def process(
        self,
        element: tuple[bytes, bytes],
        window: Any = beam.DoFn.WindowParam,
        partials: Any = beam.DoFn.StateParam(PARTIALS),
        end: Any = beam.DoFn.TimerParam(END),
        emit: Any = beam.DoFn.TimerParam(EMIT),
    ) -> None:
        shard, partial = element
        partials.add(_OPEN + partial)
        key = (shard, window.start.micros)
        if key not in self._armed:
            self._armed.add(key)
            end.set(window.max_timestamp())
            if self._emit_every is not None:
                now = Timestamp.now().micros
                # Multiples of the period: setting it again within one period moves nothing.
                emit.set(Timestamp(micros=(now // self._emit_every + 1) * self._emit_every))
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
        partials: Any = beam.DoFn.StateParam(PARTIALS),
        emit: Any = beam.DoFn.TimerParam(EMIT),
    ) -> Iterator[pa.RecordBatch]:
        """The watermark passed the window's end: the final result, or its correction by late events."""
        self._forget(key, window)
        if self._emit_every is not None:
            emit.clear()
        yield from self._emit(partials, window, final=True)

    @on_timer(EMIT)
    def periodic(
        self, key: bytes = beam.DoFn.KeyParam, window: Any = beam.DoFn.WindowParam, partials: Any = beam.DoFn.StateParam(PARTIALS)
    ) -> Iterator[pa.RecordBatch]:
        """The result so far."""
        self._forget(key, window)
        yield from self._emit(partials, window, final=False)

    def _emit(self, partials: Any, window: Any, *, final: bool) -> Iterator[pa.RecordBatch]:
        stored = list(partials.read())
        if not stored:
            return
        final = final or _was_final(stored)
        merged = self._merge(stored)
        # A rewrite costs more than the next reader saves on a few partials; only a periodic result asks whether the window was final.
        if len(stored) > COMPACT_BEYOND or (self._emit_every is not None and (len(stored) > 1 or final != _was_final(stored))):
            self._replace(partials, merged, final=final)
        yield self._partials.results(merged, window.start.micros, window.end.micros, final=final)

    def _forget(self, key: bytes, window: Any) -> None:
        self._armed.discard((key, window.start.micros))
        self._appended.pop((key, window.start.micros), None)

    def _compact(self, partials: Any) -> None:
        stored = list(partials.read())
        self._replace(partials, self._merge(stored), final=_was_final(stored))

    def _merge(self, stored: list[bytes]) -> pa.RecordBatch:
        return self._partials.merge([self._partials.decode(data[1:]) for data in stored])

    def _replace(self, partials: Any, merged: pa.RecordBatch, *, final: bool) -> None:
        partials.clear()
        partials.add((_FINAL if final else _OPEN) + self._partials.codec.encode(merged))


def _was_final(stored: list[bytes]) -> bool:
    return any(data.startswith(_FINAL) for data in stored)
