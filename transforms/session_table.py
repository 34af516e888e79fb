"""The sessions of one shard as a table: merging pieces, telling what changed, forgetting what can no longer change.

See windows/session.py for what a chain, a cell and a piece are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamgauge.transforms.aggregates.base import StateColumn
from streamgauge.transforms.aggregates.count import EVENTS
from streamgauge.transforms.batch import EVENT_TIME
from streamgauge.transforms.config import MICROSECONDS
from streamgauge.transforms.groups import Groups, group_rows
from streamgauge.transforms.partials import Partials, concatenated
from streamgauge.transforms.rows import CUT
from streamgauge.transforms.running import running_maximum
from streamgauge.transforms.windows.session import Session

_Numbers = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]
_Value = TypeVar("_Value", bound=np.generic)


def _times(events: pa.RecordBatch) -> pa.Array:
    return events.column(EVENT_TIME).cast(pa.int64())


FIRST_TIME = StateColumn(f"min({EVENT_TIME})", pa.int64(), _times, "min", "min")
LAST_TIME = StateColumn(f"max({EVENT_TIME})", pa.int64(), _times, "max", "max")
SESSION_STATE = (FIRST_TIME, LAST_TIME)
"""What a session metric has besides the state of its aggregates (``Metric.extra``): when its first and last events were, in microseconds."""

NEVER, FOREVER = -(2**62), 2**62
"""Before and after all event times."""

# What a row of the table is.
_PIECE = np.uint8(0)
_SEALED = np.uint8(1)
"""What is left of the pieces of a cut chain that can no longer change: from the chain's first event on, their last event and number of events."""
_ROW = np.uint8(2)
"""A result row that was told and not withdrawn: first and last time are the window's bounds; with these two bits."""
_CUT, _FINAL = np.uint8(4), np.uint8(8)

_FRAGMENTS, _TABLE = b"\x00", b"\x01"
"""First byte of a stored record: an encoded partial as it came, or ``_HEADER``, the kinds of the rows, and a partial."""
_HEADER = struct.Struct("<qI")
"""How far the watermark has come, and the number of rows."""
_RECORD_ROWS = 2**15

EXACT_ROWS = 256
LARGE_ROWS = 2**12
MOST_SHARE = 8
"""See ``SessionTable.step``."""


@dataclass(frozen=True)
class Table:
    """Pieces, and rows that were told of them.

    Attributes:
        rows: of the metric's partial schema.
        kinds: what each row is.
        passed: the watermark is known to have passed all times before this, microseconds.
    """

    rows: pa.RecordBatch
    kinds: npt.NDArray[np.uint8]
    passed: int


@dataclass(frozen=True)
class Told:
    """What ``SessionTable.tell`` gives.

    Attributes:
        results: new result rows and withdrawn ones; None: none.
        table: what is to be remembered.
        pending: whether there are changes that were not told.
        wake: when there will be something to do, if no event comes: the watermark must have passed all times before this. None: never.
    """

    results: pa.RecordBatch | None
    table: Table
    pending: bool
    wake: int | None


class SessionTable:
    """The algebra of session windows over the partials of one metric, which has ``SESSION_STATE``.

    Args:
        lateness: microseconds. An event at t may come as long as the watermark has not passed t + gap + lateness.
    """

    def __init__(self, partials: Partials, session: Session, lateness: int) -> None:
        self._partials = partials
        self._session = session
        self._late = session.gap + lateness
        names = [column.name for column in partials.metric.state]
        dimensions = len(partials.metric.by)
        self._events, self._first, self._last = (dimensions + names.index(column.name) for column in (EVENTS, *SESSION_STATE))

    # What is stored

    @staticmethod
    def fragment(encoded: bytes) -> bytes:
        """A record of pieces as they came, from their encoded partial."""
        return _FRAGMENTS + encoded

    def encode(self, table: Table) -> list[bytes]:
        """Records; none for a table without rows."""
        return [
            _TABLE + _HEADER.pack(table.passed, len(kinds)) + kinds.tobytes() + self._partials.codec.encode(table.rows.slice(start, len(kinds)))
            for start in range(0, table.rows.num_rows, _RECORD_ROWS)
            for kinds in (table.kinds[start : start + _RECORD_ROWS],)
        ]

    def decode(self, records: Sequence[bytes]) -> Table:
        """The table of at least one record. Raises SchemaMismatch as ``Partials.decode`` does."""
        batches, kinds, passed = [], [], NEVER
        for record in records:
            if record.startswith(_FRAGMENTS):
                batches.append(self._partials.decode(record[1:]))
                kinds.append(np.full(batches[-1].num_rows, _PIECE))
            else:
                known, rows = _HEADER.unpack_from(record, 1)
                passed = max(passed, known)
                begin = 1 + _HEADER.size
                kinds.append(np.frombuffer(record, np.uint8, rows, begin))
                batches.append(self._partials.decode(record[begin + rows :]))
        return Table(concatenated(batches), np.concatenate(kinds), passed)

    # When to look

    def closes(self, pieces: pa.RecordBatch) -> int:
        """When the first session that these pieces may be part of ends, if no other event comes."""
        last = pieces.column(self._last).to_numpy()
        return int(self._session.ends(last, self._session.cells(last), np.ones(len(last), np.bool_)).min())

    def step(self, rows: int) -> int:
        """The clock of a table of so many rows, in microseconds: it is looked at when the watermark passes a multiple of it; 0: at any moment.

        Looking costs in proportion to the rows. Tables of up to ``EXACT_ROWS`` rows are looked at when a session ends; larger ones less often,
        down to ``MOST_SHARE`` times a gap from ``LARGE_ROWS`` rows on: so a row is read and written a bounded number of times a gap.
        """
        return 0 if rows <= EXACT_ROWS else self._session.gap * min(rows, LARGE_ROWS) // (LARGE_ROWS * MOST_SHARE)

    @staticmethod
    def align(moment: int, step: int) -> int:
        """The first moment of the clock that is not before the given one, in whole milliseconds."""
        step = max(step, MICROSECONDS["ms"])
        step -= step % MICROSECONDS["ms"]
        return -(-moment // step) * step

    # The algebra

    def merge(self, batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        """Pieces merged where they are parts of one piece. At least one batch is given."""
        rows = concatenated(batches)
        if len(batches) == 1:
            return rows
        return _Sorted(self, Table(rows, np.full(rows.num_rows, _PIECE), NEVER)).pieces

    def compacted(self, table: Table) -> Table:
        """The same with its pieces merged."""
        layout = _Sorted(self, table)
        told = table.rows.take(pa.array(layout.told))
        return Table(concatenated([layout.pieces, told]), np.concatenate([layout.piece_kind, table.kinds[layout.told]]), table.passed)

    def tell(self, table: Table, passed: int, *, early: bool, forget: bool) -> Told:
        """Result rows of all that changed since it was told, and withdrawals of the rows that hold no more.

        Rows are told of a session when it has changed and the watermark has passed its end, with ``early`` of every one that has changed. A row that was
        told of a start that is none any more is withdrawn, with the revision of the session in which that event now is, when that one is told.

        The revision is the number of the session's events, and ``CUT`` more when its chain is cut. It depends on the events that were seen, not on their order,
        and what was told of some of them, in this attempt or in one that was rolled back, never has a revision as high as what all of them say of the
        same start, or of the session that now has that start: chains only grow, one that was cut stays so, and so do its cells. Hence ``RowSpec.until``:
        what such an attempt left behind and this one cannot withdraw begins inside the window of a session that is told, with a smaller revision. Sessions
        that are told of all events never overlap, and none is hidden by what was left behind: that could only be of a chain not yet known to be cut.

        A chain is forgotten when no event that is still accepted can be connected with it, which is ``gap + lateness`` after its end; so is a piece of a cut
        chain when none can fall into its cell, but that chain's length is remembered.

        Args:
            passed: microseconds; the watermark has passed all times before this.
        """
        passed = max(passed, table.passed)
        s, session = _Sorted(self, table), self._session
        final = s.end <= passed
        was = np.full(len(s.start), -1)
        same = s.told_start == s.start[s.owner]
        was[s.owner[same]] = s.told_events[same] * 4 + ((s.told_kind[same] & _CUT) > 0) * 2 + ((s.told_kind[same] & _FINAL) > 0)
        changed = (was != s.events * 4 + s.cut * 2 + final) & ~s.sealed
        show = changed & (final | early)
        gone = show[s.owner] & ~same

        shown = np.flatnonzero(show[s.session])
        current = _merged(self._partials, s.pieces, shown, _differs(s.session[shown])) if len(shown) else s.pieces.slice(0, 0)
        results = None
        if len(shown):
            withdrawn = table.rows.take(pa.array(s.told[gone]))
            results = self._partials.results(
                concatenated([current, withdrawn]),
                np.concatenate([s.start[show], s.told_start[gone]]), np.concatenate([s.end[show], s.told_end[gone]]),
                final=np.concatenate([final[show], np.ones(int(gone.sum()), np.bool_)]),
                # At the end of the input it has passed everything: what is known then is that it has passed these.
                watermark=None if passed <= NEVER else min(passed, int(s.end[show].max()) if passed >= FOREVER else passed),
                revision=s.revision[np.concatenate([np.flatnonzero(show), s.owner[gone]])],
                withdrawn=np.concatenate([np.zeros(int(show.sum()), np.bool_), np.ones(int(gone.sum()), np.bool_)]),
            )  # fmt: skip

        over = s.chain_last + session.gap + self._late <= passed if forget else np.zeros(len(s.chain_last), np.bool_)
        sealed = s.sealed.copy()
        if forget and session.max is not None:
            sealed |= s.cut & (session.borders(s.cell) + self._late <= passed)
        kept = ~over[s.chain] & ~sealed
        pieces = np.flatnonzero(kept[s.session])
        seals, seal_rows = self._seal(s, np.flatnonzero((sealed & ~over[s.chain])[s.session]))
        old = s.told[~show[s.owner] & kept[s.owner]]
        new = show & kept
        new_rows = self._bare(current.take(pa.array(np.flatnonzero(kept[show]))), s.start[new], s.end[new], s.events[new])
        table = Table(
            concatenated([s.pieces.take(pa.array(pieces)), seal_rows, table.rows.take(pa.array(old)), new_rows]),
            np.concatenate([np.full(len(pieces), _PIECE), seals, table.kinds[old], _ROW + s.cut[new] * _CUT + final[new] * _FINAL]).astype(np.uint8),
            passed,
        )
        return Told(results, table, bool((changed & ~show).any()), self._wake(s, final, over, table.rows.num_rows, forget))

    def _seal(self, s: _Sorted, sealed: _Numbers) -> tuple[npt.NDArray[np.uint8], pa.RecordBatch]:
        """One row a chain out of its sealed pieces."""
        chains = s.chain[s.session[sealed]]
        starts = np.flatnonzero(_differs(chains))
        if not len(starts):
            return np.empty(0, np.uint8), s.pieces.slice(0, 0)
        last, events = np.maximum.reduceat(s.piece_last[sealed], starts), np.add.reduceat(s.piece_events[sealed], starts)
        rows = self._bare(s.pieces.take(pa.array(sealed[starts])), s.chain_first[chains[starts]], last, events)
        return np.full(len(starts), _SEALED), rows

    def _bare(self, keys: pa.RecordBatch, first: _Numbers, last: _Numbers, events: _Numbers) -> pa.RecordBatch:
        """Rows of the keys of others, without the state of aggregates."""
        given = {self._events: events, self._first: first, self._last: last}
        schema, dimensions = self._partials.codec.schema, len(self._partials.metric.by)
        state = [pa.array(given[i]) if i in given else pa.nulls(len(events), schema.field(i).type) for i in range(dimensions, len(schema))]
        return pa.record_batch([*self._partials.keys(keys), *state], schema=schema)

    def _wake(self, s: _Sorted, final: _Flags, over: _Flags, rows: int, forget: bool) -> int | None:
        step = self.step(rows)
        ends = s.end[~final & ~s.sealed]
        moments = [self.align(int(ends.min()), step)] if len(ends) else []
        closed = s.chain_last[~over] + self._session.gap
        # Those of an open chain are looked at when it has closed.
        if forget and len(closed) and not len(ends):
            moments.append(self.align(int(closed.min()) + self._late, self._session.gap // MOST_SHARE))
        return min(moments, default=None)


class _Sorted:
    """A table's rows by key and time, as chains, sessions, pieces and the rows told of them.

    Attributes:
        chain_first, chain_last: of each chain.
        start, end, events, revision, cell, chain, cut, sealed: of each session; a sealed one is no session, but what is left of some.
        pieces, piece_kind, piece_last, piece_events, session: of each piece.
        told, told_start, told_end, told_events, told_kind, owner: of each row told: its place in the table, what it said, and
            the session that now has the event at its start.
    """

    def __init__(self, of: SessionTable, table: Table) -> None:
        session, partials, rows = of._session, of._partials, table.rows
        ids = group_rows(partials.keys(rows), rows.num_rows).ids
        events, first, last = (rows.column(i).to_numpy() for i in (of._events, of._first, of._last))
        is_told = table.kinds >= _ROW
        order = np.lexsort((is_told, first, ids))
        is_piece = ~is_told[order]
        parts = order[is_piece]
        ids, kind = ids[parts], table.kinds[parts]
        part_first, part_last, part_events = first[parts], last[parts], events[parts]
        cell = session.cells(part_first)

        new_chain = _differs(ids) | (part_first - _latest_before(ids, part_last) >= session.gap)
        chain = np.cumsum(new_chain) - 1
        begins = np.flatnonzero(new_chain)
        self.chain_first = part_first[begins]
        self.chain_last = _reduce(np.maximum, part_last, begins)
        is_sealed = kind == _SEALED
        # What is left of sealed pieces goes from the chain's first event on: a chain stays as long as it was.
        cut = session.too_long(self.chain_first, self.chain_last)
        new_piece = new_chain | _differs(cell) | _differs(is_sealed)
        new_session = new_chain | (new_piece & cut[chain])

        begins = np.flatnonzero(new_session)
        self.start, self.cell, self.chain, self.sealed = part_first[begins], cell[begins], chain[begins], is_sealed[begins]
        self.events, self.cut = _reduce(np.add, part_events, begins), cut[self.chain]
        self.revision = self.events + CUT * self.cut
        self.end = session.ends(_reduce(np.maximum, part_last, begins), self.cell, self.cut)
        sessions = np.cumsum(new_session) - 1

        begins = np.flatnonzero(new_piece)
        self.pieces = _merged(partials, rows, parts, new_piece)
        self.piece_kind, self.session = kind[begins], sessions[begins]
        self.piece_last, self.piece_events = _reduce(np.maximum, part_last, begins), _reduce(np.add, part_events, begins)

        self.told = order[~is_piece]
        self.told_start, self.told_end, self.told_events, self.told_kind = first[self.told], last[self.told], events[self.told], table.kinds[self.told]
        # The event at the start of a row told is in the table: the row stands behind the piece that has it.
        self.owner = sessions[np.cumsum(is_piece)[~is_piece] - 1]


def _differs(values: npt.NDArray[np.generic]) -> _Flags:
    """Which values are not equal to the one before."""
    return np.concatenate([np.ones(min(len(values), 1), np.bool_), values[1:] != values[:-1]])


def _reduce(how: np.ufunc, values: npt.NDArray[_Value], begins: _Numbers) -> npt.NDArray[_Value]:
    """Of each run of values, by where it begins."""
    reduced: npt.NDArray[_Value] = how.reduceat(values, begins) if len(begins) else values[:0]
    return reduced


def _latest_before(ids: _Numbers, last: _Numbers) -> _Numbers:
    """The largest time before each row within its key; rows are sorted by id. The first of a key has that of another."""
    largest = running_maximum(ids, last)
    return np.concatenate([largest[:1], largest[:-1]])


def _merged(partials: Partials, rows: pa.RecordBatch, index: _Numbers, new: _Flags) -> pa.RecordBatch:
    """One row for each run of ``rows[index]``; a run begins where ``new`` is true. Those of one row are taken as they are."""
    starts = np.flatnonzero(new)
    sizes = np.diff(starts, append=len(new))
    several = sizes > 1
    if not several.any():
        return rows.take(pa.array(index))
    several_sizes = sizes[several]
    count = len(several_sizes)
    groups = Groups(np.repeat(np.arange(count), several_sizes), count, np.cumsum(several_sizes) - several_sizes)
    merged = partials.merge_groups(rows.take(pa.array(index[np.repeat(several, sizes)])), groups)
    place = np.cumsum(~several) - 1
    place[several] = len(sizes) - count + np.arange(count)
    return concatenated([rows.take(pa.array(index[starts[~several]])), merged]).take(pa.array(place))
