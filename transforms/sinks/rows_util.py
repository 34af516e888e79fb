"""What sinks share: bounded retries, finding bad rows, the revision rule on whole tables, plain columns for stores with few types."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tenacity

from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks.base import Rejected, SinkError

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
    position = pa.array(np.arange(len(table), dtype=np.int64))
    keys = table.select(list(rows.key)).append_column("__position", position)
    order = [name for name in (rows.revision, rows.final) if name]
    if order:
        ranks = pa.table([table[name].cast(pa.int64()).fill_null(_BELOW_ALL) for name in order] + [position], names=[*order, "__position"])
        keys = keys.take(pc.sort_indices(ranks, sort_keys=[(name, "ascending") for name in ranks.column_names]))
    winners = keys.group_by(list(rows.key), use_threads=False).aggregate([("__position", "last")])["__position_last"]
    return table.take(winners.take(pc.sort_indices(winners)))


def difference(stored: pa.Schema, wanted: pa.Schema) -> str | None:
    """What tells two described schemas apart, in words; None when rows of one fit the other."""
    if RowSpec.of(stored) != RowSpec.of(wanted):
        old, new = RowSpec.of(stored), RowSpec.of(wanted)
        return f"it holds {old.kind} with the key ({', '.join(old.key)}), these rows are {new.kind} with the key ({', '.join(new.key)})"
    old_columns, new_columns = ([(f.name, f.type) for f in schema] for schema in (stored, wanted))
    if old_columns != new_columns:
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


# --- Plain columns: every supported Arrow type as one of int64, float64, bool, string, binary --------------------------------


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The plain type that holds every value of ``kind``: int64, float64, bool, string or binary.

    Timestamps, dates, lists, and numbers that int64 cannot hold become text; durations and times of day count in their unit.
    Raises ValueError for what has no plain form.

    >>> [str(plain_type(t)) for t in (pa.uint32(), pa.uint64(), pa.date32(), pa.list_(pa.float64()))]
    ['int64', 'string', 'string', 'string']
    """
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_duration(kind) or pa.types.is_time(kind) or (pa.types.is_integer(kind) and kind != pa.uint64()):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if _is_text(kind) or _is_date_time(kind) or pa.types.is_decimal(kind) or kind == pa.uint64() or _is_json(kind):
        return pa.string()
    raise ValueError(f"values of type {kind} cannot be stored")


def to_plain(column: pa.ChunkedArray) -> pa.Array:
    """The column with its plain type: times as ISO 8601 text in UTC with six digits, dates as ``2013-01-31``, lists as JSON."""
    values, kind = column.combine_chunks(), column.type
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], kind)
    if pa.types.is_dictionary(kind):
        values, kind = values.cast(kind.value_type), kind.value_type
    if _is_date_time(kind):
        return _iso_text(values)
    if _is_json(kind):
        return pa.array([None if v is None else json.dumps(v, ensure_ascii=False) for v in values.to_pylist()], pa.string())
    return values.cast(_between(kind)).cast(plain_type(kind))


def from_plain(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """The inverse of :func:`to_plain`."""
    if pa.types.is_dictionary(kind):
        return from_plain(values, kind.value_type).dictionary_encode().cast(kind)
    if _is_date_time(kind):
        return _from_iso_text(values, kind)
    if _is_json(kind):
        return pa.array([None if v is None else json.loads(v) for v in values.to_pylist()], kind)
    return values.cast(_between(kind)).cast(kind)


def _between(kind: pa.DataType) -> pa.DataType:
    """Arrow casts a 32-bit time of day from and to int32 only."""
    return pa.int32() if pa.types.is_time32(kind) else plain_type(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_date_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_json(kind: pa.DataType) -> bool:
    """Lists and structs of what JSON has: text, numbers, booleans."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_struct(kind):
        return all(_is_json(t) or _is_text(t) or pa.types.is_boolean(t) or pa.types.is_integer(t) or t in (pa.float32(), pa.float64())
                   for t in (kind.field(i).type for i in range(kind.num_fields)))
    return False


def _iso_text(values: pa.Array) -> pa.Array:
    """Fixed width, so that text sorts as time does, for the years 0 to 9999; other years are written in full all the same."""
    if pa.types.is_date(values.type):
        zone, own_unit = "", "D"
        whole = values.cast(pa.date32()).cast(pa.int32())
    else:
        zone, own_unit = "Z" if values.type.tz else "", values.type.unit
        whole = values.cast(pa.int64())
    moments = whole.fill_null(0).to_numpy(zero_copy_only=False).astype(f"M8[{own_unit}]")
    written = np.datetime_as_string(moments) if own_unit in ("D", "ns") else np.datetime_as_string(moments, unit="us")
    text = pa.array(written, pa.string())
    text = pc.binary_join_element_wise(text, zone, "") if zone else text
    return pc.if_else(values.is_null(), pa.scalar(None, pa.string()), text)


def _from_iso_text(values: pa.Array, kind: pa.DataType) -> pa.Array:
    unit = "D" if pa.types.is_date(kind) else kind.unit
    text = pc.utf8_rtrim(values, "Z").fill_null("1970-01-01").to_numpy(zero_copy_only=False).astype(str)
    whole = pa.array(text.astype(f"M8[{unit}]").astype(np.int64), mask=values.is_null().to_numpy(zero_copy_only=False))
    return whole.cast(pa.int32()).cast(pa.date32()).cast(kind) if unit == "D" else whole.cast(kind)


def describe_key(table: pa.Table, rows: RowSpec) -> str:
    """The key of the first row for messages, each value cut to a readable length."""
    return ", ".join(f"{name}={str(to_plain(table[name].slice(0, 1))[0].as_py())[:60]!r}" for name in rows.key)
