"""What sinks share: bounded retries, finding bad rows, the revision rule on whole tables, telling one table from another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import tenacity

from streamgauge.transforms.groups import group_rows
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.running import running_maximum
from streamgauge.transforms.sinks.base import Rejected, SinkError
from streamgauge.transforms.sinks.plain import to_plain

RETRY_SECONDS = 30.0
"""How long a sink keeps trying before its bundle fails and the runner tries it again."""
REQUEST_SECONDS = RETRY_SECONDS / 3
"""How long one request may take: no try begins after RETRY_SECONDS, so that the two add up."""
GIVE_UP_SECONDS = RETRY_SECONDS + REQUEST_SECONDS
"""When a store that does not answer has failed the bundle: two thirds of a job's checkpoint time-out (a minute), so that the failure shows
as the store's and not as the checkpoint's."""

_FIRST_WAIT, _LONGEST_WAIT = 0.01, 1.0
"""Seconds."""
_SMALL_ROWS = 1_000
"""A part that is cheap to send again."""
_BELOW_ALL = -(2**63)

LATER = ("watermark", "withdrawn")
"""Columns of results that came with later versions. A table that an earlier version made gets them, the first with null, the second with false;
any other column that a table lacks makes it another table."""


class Patience:
    """A stretch of trying; as text, for messages, how long it has been."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.seconds = RETRY_SECONDS

    def left(self) -> float:
        """Seconds, 0 or more."""
        return max(0.0, self.began + self.seconds - time.monotonic())

    def __str__(self) -> str:
        return f"tried for {time.monotonic() - self.began:.1f} s"


_patience: ContextVar[Patience | None] = ContextVar("patience", default=None)


@contextmanager
def patience() -> Iterator[Patience]:
    """All that is retried within it gives up together, RETRY_SECONDS after it was entered; within another one, that one counts."""
    current = _patience.get()
    if current is not None:
        yield current
        return
    token = _patience.set(Patience())
    try:
        yield _patience.get()  # type: ignore[misc]
    finally:
        _patience.reset(token)


def retrying(again: Callable[[BaseException], bool]) -> tenacity.Retrying:
    """Calls again what failed with an error that ``again`` accepts, with exponential back-off and jitter, until the surrounding
    :func:`patience` (without one: RETRY_SECONDS from now) is at its end; then the last error is raised. There is one try at least,
    and the last one begins before the end."""
    until = _patience.get() or Patience()
    pause = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT)
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(again),
        wait=lambda state: min(pause(state), until.left()),
        stop=lambda state: until.left() == 0,
        reraise=True,
    )


class RefusedError(ValueError):
    """The store refuses rows for what they hold: trying again cannot help. ``error_type`` as in :class:`Rejected`; ``at`` is the
    number of the row that the store names, from 0."""

    def __init__(self, reason: str, error_type: str = "refused", at: int | None = None) -> None:
        super().__init__(reason)
        self.error_type = error_type
        self.at = at


def sift(batch: pa.Table, store: Callable[[pa.Table], None]) -> list[Rejected]:
    """Stores the rows that ``store`` takes, all at once where it can; finds the others, for which it raises RefusedError, by halving, and
    by the row that the store names once the parts are small. A row is rejected only when it is refused alone.

    Raises SinkError when they are too many to be told apart within the surrounding :func:`patience`: then it is the table that is wrong.

    >>> def store(rows):
    ...     if 3 in rows["n"].to_pylist():
    ...         raise RefusedError("no threes")
    >>> [(part.rows["n"].to_pylist(), part.reason) for part in sift(pa.table({"n": [1, 2, 3, 4]}), store)]
    [([3], 'no threes')]
    """
    rejected = []
    with patience() as until:
        todo = [batch]
        while todo:
            part = todo.pop()
            try:
                if len(part):
                    store(part)
            except RefusedError as error:
                if len(part) == 1:
                    rejected.append(Rejected(part, str(error), error.error_type))
                elif until.left() == 0:
                    raise SinkError(f"so many rows are refused that they could not be told apart ({until}); one of the reasons: {error}") from None
                else:
                    todo += reversed(_cut(part, error.at))
    return rejected


def _cut(rows: pa.Table, at: int | None) -> list[pa.Table]:
    """Around the row that is said to be refused, unless what is behind it is so much that it should not be sent again for each one."""
    if at is None or not 0 <= at < len(rows) <= _SMALL_ROWS:
        half = len(rows) // 2
        return [rows.slice(0, half), rows.slice(half)]
    return [rows.slice(0, at), rows.slice(at, 1), rows.slice(at + 1)]


def latest(table: pa.Table, rows: RowSpec) -> pa.Table:
    """One row a key, by the revision rule; among equals the one that stands last. Null is a key value of its own.

    >>> rows = RowSpec(kind="results", key=("k",), time="k", revision="r")
    >>> latest(pa.table({"k": [1, None, 1, None], "r": [2, 1, 1, 1], "v": ["a", "b", "c", "d"]}), rows).to_pylist()
    [{'k': 1, 'r': 2, 'v': 'a'}, {'k': None, 'r': 1, 'v': 'd'}]
    """
    if group_rows([table[name].combine_chunks() for name in rows.key], len(table)).count == len(table):
        return table
    position = pa.array(np.arange(len(table), dtype=np.int64))
    keys = table.select(list(rows.key)).append_column("__position", position)
    order = [name for name in (rows.revision, rows.final) if name]
    if order:
        ranks = pa.table([table[name].cast(pa.int64()).fill_null(_BELOW_ALL) for name in order] + [position], names=[*order, "__position"])
        keys = keys.take(pc.sort_indices(ranks, sort_keys=[(name, "ascending") for name in ranks.column_names]))
    winners = keys.group_by(list(rows.key), use_threads=False).aggregate([("__position", "last")])["__position_last"]
    return table if len(winners) == len(table) else table.take(winners.take(pc.sort_indices(winners)))


def current(table: pa.Table, rows: RowSpec) -> pa.Table:
    """The rows that hold, of one row a key: without marks of a withdrawal, and where rows do not overlap (``RowSpec.until``) without those that overlap one
    that starts earlier and has a higher revision.

    >>> rows = RowSpec("results", key=("k", "t"), time="t", revision="r", withdrawn="gone", until="end")
    >>> table = pa.table({"k": ["a", "a", "a", "b"], "t": [0, 3, 9, 3], "end": [9, 5, 12, 5], "r": [4, 1, 1, 1], "gone": [False] * 4})
    >>> current(table, rows).select(["k", "t"]).to_pylist()
    [{'k': 'a', 't': 0}, {'k': 'a', 't': 9}, {'k': 'b', 't': 3}]
    """
    if rows.withdrawn is not None:
        table = table.filter(pc.invert(table[rows.withdrawn]))
    return table if rows.until is None or not len(table) else table.filter(pa.array(~_overlapped(table, rows)))


def _overlapped(table: pa.Table, rows: RowSpec) -> npt.NDArray[np.bool_]:
    assert rows.until is not None and rows.revision is not None
    keys = group_rows([table[name].combine_chunks() for name in rows.key if name != rows.time], len(table)).ids
    start, end, revision = (table[name].cast(pa.int64()).to_numpy() for name in (rows.time, rows.until, rows.revision))
    order = np.lexsort((start, keys))
    keys, start, end, revision = keys[order], start[order], end[order], revision[order]
    hidden = np.zeros(len(order), np.bool_)
    # Rows are compared with the one before, those that may overlap an earlier one with the one before that, and so on: few are after the first step.
    latest_end = running_maximum(keys, end)
    distance, rest = 1, np.arange(1, len(order))
    while len(rest):
        rest = rest[rest >= distance]
        earlier = rest - distance
        near = (keys[earlier] == keys[rest]) & (latest_end[earlier] > start[rest])
        rest, earlier = rest[near], earlier[near]
        hidden[rest] |= (end[earlier] > start[rest]) & (revision[earlier] > revision[rest])
        rest, distance = rest[~hidden[rest]], distance + 1
    hidden[order] = hidden.copy()
    return hidden


def lacking(stored: Iterable[str], wanted: pa.Schema) -> list[pa.Field]:
    """Those of ``LATER`` that rows have and a table with the columns ``stored`` lacks."""
    if RowSpec.of(wanted).kind != "results":
        return []
    names = set(stored)
    return [field for field in wanted if field.name in LATER and field.name not in names]


def filled(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows of a table that may lack some of ``LATER``, which stand last, with all columns of ``schema``. Raises ValueError when it has others."""
    for field in lacking(table.column_names, schema):
        table = table.append_column(field, pa.repeat(pa.scalar(None if field.nullable else False, field.type), len(table)))
    return table.cast(schema)


def difference(stored: pa.Schema, wanted: pa.Schema) -> str | None:
    """What tells two described schemas apart, in words; None when the rows of ``wanted`` fit a table of ``stored`` that has got what it is ``lacking``."""
    old, new = RowSpec.of(stored), RowSpec.of(wanted)
    if old.withdrawn is not None and old.until != new.until:
        return "it holds windows of another kind: those of sessions do not overlap"
    if old != replace(new, withdrawn=old.withdrawn, until=old.until):
        return f"it holds {old.kind} with the key ({', '.join(old.key)}), these rows are {new.kind} with the key ({', '.join(new.key)})"
    old_columns, new_columns = ([(f.name, f.type) for f in schema] for schema in (stored, wanted))
    if old_columns != [column for column, field in zip(new_columns, wanted, strict=True) if field not in lacking(stored.names, wanted)]:
        return f"it has the columns ({_columns(old_columns)}), these rows have ({_columns(new_columns)})"
    return None


def _columns(columns: Iterable[tuple[str, pa.DataType]]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in columns)


def unique_ignoring_case(names: Iterable[str], store: str) -> None:
    """Raises ValueError when two column names differ by case only, which ``store`` cannot tell apart."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(f"{store} does not tell the columns '{other}' and '{name}' apart; give one of them another name")


def describe_key(table: pa.Table, rows: RowSpec) -> str:
    """The key of the first row for messages, each value cut to a readable length."""
    return ", ".join(f"{name}={str(to_plain(table[name].slice(0, 1))[0].as_py())[:60]!r}" for name in rows.key)
