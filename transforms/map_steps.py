"""What MapEvents does, step by step: each takes a batch and gives one, and says which of its rows failed.

DuckDB says for which rows an expression has no value. A function is asked again for halves of the batch, down to the rows that are to blame: n of them
cost about 2 n log2(batch / n) calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streamgauge.transforms.batch import EVENT_TIME_TYPE
from streamgauge.transforms.config import did_you_mean, user_error
from streamgauge.transforms.expressions import EvaluationError, Query

MAX_EXPLAINED = 100
"""Rows of a batch that fail in SQL with a message of their own, which costs a statement each; any more have that of the batch."""

Rows = npt.NDArray[np.int64]


class RowFailed(Exception):
    """A step has no answer for some row of a batch: a word and a sentence, as in a dead letter."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


@dataclass
class Mapped:
    """What a step made of a batch.

    Attributes:
        events: of the step's ``schema``.
        rows: for each of them the row of the batch that it was made of; None: row by row.
        failed: the rows that gave no event, each with why.
    """

    events: pa.RecordBatch
    rows: Rows | None = None
    failed: dict[int, RowFailed] = field(default_factory=dict)


class MapStep(Protocol):
    """Picklable. ``schema``: of what it gives."""

    schema: pa.Schema

    def __call__(self, events: pa.RecordBatch) -> Mapped:
        """Never raises for what a row holds."""


def by_halves(events: pa.RecordBatch, evaluate: Callable[[pa.RecordBatch], list[pa.Array]]) -> tuple[list[list[pa.Array]], Rows | None, dict[int, RowFailed]]:
    """The columns that ``evaluate`` makes of the rows for which it does not raise RowFailed, in pieces; these rows (None: all); the others."""
    pieces: list[list[pa.Array]] = []
    kept: list[Rows] = []
    failed: dict[int, RowFailed] = {}
    waiting = [(0, events.num_rows)]
    while waiting:
        start, count = waiting.pop()
        try:
            pieces.append(evaluate(events.slice(start, count)))
            kept.append(np.arange(start, start + count))
        except RowFailed as error:
            if count == 1:
                failed[start] = error
            else:
                waiting += [(start + count // 2, count - count // 2), (start, count // 2)]
    if not failed and len(pieces) == 1:
        return pieces, None, failed
    return pieces, np.concatenate(kept) if kept else np.empty(0, np.int64), failed


def whole(pieces: list[list[pa.Array]], kinds: Sequence[pa.DataType]) -> list[pa.Array]:
    """The pieces of :func:`by_halves` put together."""
    if len(pieces) == 1:
        return pieces[0]
    return [pa.concat_arrays([piece[i] for piece in pieces]) if pieces else pa.array([], kind) for i, kind in enumerate(kinds)]


class Explode:
    """One row an item of a list; the other fields are repeated, lineage included."""

    def __init__(self, schema: pa.Schema, name: str, item: str | None, index: str | None, keep_empty: bool) -> None:
        kind = known(schema, name, "explode").type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            hint = "; make a list of it first, in a MapEvents before this one" if pa.types.is_string(kind) else ""
            raise user_error(f"explode: '{name}' is {kind}, and no list{hint}")
        self._name, self._index, self._keep_empty = name, index, keep_empty
        own = kind.value_type
        self._struct = pa.types.is_struct(own)
        base = item or name
        made = [pa.field(f"{base}.{part.name}", part.type) for part in own] if self._struct else [pa.field(base, own)]
        if index is not None:
            made.append(pa.field(index, pa.int64()))
        self._made = [part.name for part in made]
        others = [part for part in schema if part.name != name]
        for twice in {part.name for part in others} & set(self._made):
            raise user_error(f"explode: there is a field '{twice}' already; give the items another name with `as`")
        if index is not None and index in self._made[:-1]:
            raise user_error(f"explode: index '{index}' is a field of the items; choose another name")
        for hidden in (name for name in self._made if name.startswith("__")):
            raise user_error(f"explode: '{hidden}' cannot be the name of a field: names must not start with two underscores")
        self.schema = pa.schema([*others, *made], schema.metadata)

    def __call__(self, events: pa.RecordBatch) -> Mapped:
        lists = events.column(self._name)
        lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        items = pc.list_flatten(lists)
        repeat = np.maximum(lengths, 1) if self._keep_empty else lengths
        rows = np.repeat(np.arange(events.num_rows), repeat)
        index = np.arange(len(rows)) - np.repeat(np.cumsum(repeat) - repeat, repeat)
        empty = np.repeat(lengths == 0, repeat)
        if self._keep_empty:
            places = np.cumsum(~empty) - 1
            items = items.take(pa.array(places, pa.int64(), mask=empty))
        parts = items.flatten() if self._struct else [items]
        made = [*parts, *([pa.array(index, pa.int64(), mask=empty)] if self._index is not None else [])]
        taken = events.drop_columns([self._name]).take(pa.array(rows))
        return Mapped(pa.record_batch([*taken.columns, *made], schema=self.schema), rows)


class Where:
    """The events that meet a condition."""

    def __init__(self, schema: pa.Schema, sql: str) -> None:
        query = Query(schema, {"where": sql})
        if not (pa.types.is_boolean(query.schema.field(0).type) or pa.types.is_null(query.schema.field(0).type)):
            raise user_error(f"'{sql}' is no condition: it is {query.schema.field(0).type}, and not true or false")
        self._query = Query(schema, {"where": f"coalesce(({sql}\n), false)"})
        self.schema = schema

    def __call__(self, events: pa.RecordBatch) -> Mapped:
        made, rows, failed = _evaluated(self._query, events, "where")
        mask = made.column(0)
        kept = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
        if rows is None and len(kept) == events.num_rows:
            return Mapped(events)
        rows = kept if rows is None else rows[kept]
        return Mapped(events.take(pa.array(rows)), rows, failed)


class Fields:
    """Fields derived by SQL, all from the fields before; a field that is there is replaced."""

    def __init__(self, schema: pa.Schema, expressions: Mapping[str, str]) -> None:
        kinds = {name: Query(schema, {name: sql}).schema.field(0).type for name, sql in expressions.items()}
        self._names = list(expressions)
        self._query = Query(schema, {name: _typed(name, sql, kinds[name]) for name, sql in expressions.items()})
        self.schema = with_fields(schema, list(self._query.schema))

    def __call__(self, events: pa.RecordBatch) -> Mapped:
        made, rows, failed = _evaluated(self._query, events, "fields")
        return Mapped(replaced(events, rows, self._names, made.columns, self.schema), rows, failed)


class Select:
    """Only some of the fields; lineage and event time stay."""

    def __init__(self, schema: pa.Schema, names: Sequence[str], keep: bool) -> None:
        for name in names:
            known(schema, name, "keep" if keep else "drop")
        chosen = [part for part in schema if part.name.startswith("__") or (part.name in names) == keep]
        self.schema = pa.schema(chosen, schema.metadata)

    def __call__(self, events: pa.RecordBatch) -> Mapped:
        return Mapped(events.select(self.schema.names).replace_schema_metadata(self.schema.metadata))


def _evaluated(query: Query, events: pa.RecordBatch, what: str) -> tuple[pa.RecordBatch, Rows | None, dict[int, RowFailed]]:
    """The values of the rows that have some; these rows (None: all); the others."""
    try:
        return query(events), None, {}
    except EvaluationError as error:
        first = error
    answered = query.answered(events)
    rows, lost = np.flatnonzero(answered), np.flatnonzero(~answered)
    if not len(lost):
        raise first  # not one of its rows is to blame
    failed = {row: RowFailed("expression", f"{what}: {_why(query, events.slice(row, 1), first) if place < MAX_EXPLAINED else first}") for place, row in enumerate(lost.tolist())}
    return query(events.take(pa.array(rows))), rows, failed


def _why(query: Query, event: pa.RecordBatch, otherwise: EvaluationError) -> EvaluationError:
    try:
        query(event)
    except EvaluationError as error:
        return error
    return otherwise


def _typed(name: str, sql: str, kind: pa.DataType) -> str:
    """SQL whose result has a type that fields have: whole decimals are int64, others doubles; timestamps are in UTC."""
    if pa.types.is_decimal(kind):
        return f"CAST(({sql}\n) AS {'DOUBLE' if kind.scale else 'BIGINT'})"
    if pa.types.is_timestamp(kind):
        return sql if kind == EVENT_TIME_TYPE else f"CAST(({sql}\n) AS TIMESTAMPTZ)"
    if pa.types.is_null(kind):
        raise user_error(f"'{sql}' has no type; say which, such as `CAST({sql} AS DOUBLE)`")
    if not _is_field_type(kind):
        raise user_error(f"'{sql}' is {kind}, which no field can be; convert it, such as an interval with `epoch(...)` or anything with `CAST(... AS VARCHAR)`")
    return sql


def _is_field_type(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_struct(kind):
        return all(_is_field_type(kind.field(i).type) for i in range(kind.num_fields))
    tests = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_binary, pa.types.is_date32)
    return kind == EVENT_TIME_TYPE or any(test(kind) for test in tests)


def known(schema: pa.Schema, name: str, key: str) -> pa.Field:
    """The field, or a user's error when there is none."""
    fields = [field for field in schema.names if not field.startswith("__")]
    if name not in fields:
        raise user_error(f"{key} '{name}': the schema has no such field{did_you_mean(name, fields)}; fields: {', '.join(fields)}")
    return schema.field(name)


def with_fields(schema: pa.Schema, made: Sequence[pa.Field]) -> pa.Schema:
    """The schema with more fields; one of a name that is there takes its place."""
    new = {part.name: pa.field(part.name, part.type) for part in made}
    return pa.schema([*(new.pop(part.name, part) for part in schema), *new.values()], schema.metadata)


def replaced(events: pa.RecordBatch, rows: Rows | None, names: Sequence[str], made: Sequence[pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    """The rows of ``events`` with the columns ``made``, as :func:`with_fields` has them."""
    kept = events if rows is None else events.take(pa.array(rows))
    columns = dict(zip(kept.schema.names, kept.columns, strict=True)) | dict(zip(names, made, strict=True))
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)
