"""The statements of the SQLite sink: names and types as SQL has them, the upsert, and what withdraws rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks.plain import plain_type

_DECLARED = {pa.int64(): "INTEGER", pa.float64(): "REAL", pa.bool_(): "BOOLEAN", pa.string(): "TEXT", pa.binary(): "BLOB"}
_STORE_SUFFIX = "_versions"
_MOST_VALUES = 999
"""Of a statement; later versions of SQLite take more."""


def quote(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def declared(field: pa.Field) -> str:
    """The type of a column. Raises ValueError for one that SQLite cannot hold."""
    try:
        return _DECLARED[plain_type(field.type)]
    except ValueError as error:
        raise ValueError(f"column '{field.name}': {error} in SQLite") from None


def store_name(table: str, rows: RowSpec) -> str:
    """What is written: the table that users read, or the one below the view that they read."""
    return table + _STORE_SUFFIX if rows.withdrawn else table


def key_columns(schema: pa.Schema, rows: RowSpec) -> str:
    """The key as the unique index and ON CONFLICT must both spell it; in which order they do is free.

    Time comes first, so that rows of a new window go to the end of the index and not each to a page of its own: 7 ms in place of 20 for a thousand keys. Where
    rows do not overlap it comes last: a row is compared with the one before it.
    """
    names = rows.key if rows.until else sorted(rows.key, key=lambda name: name != rows.time)
    return ", ".join(_comparable(schema, name) for name in names)


def _comparable(schema: pa.Schema, name: str, value: str | None = None) -> str:
    """A column of the key, or a value of it, as the unique index has it.

    To a unique index NULLs differ, to us they are equal: an expression puts in their place a value of a type that
    the column never holds (SQLite compares by type first), so that it cannot be mistaken for a real one.
    """
    stand_in = "0" if plain_type(schema.field(name).type) == pa.binary() else "x''"
    value = value or quote(name)
    return f"COALESCE({value}, {stand_in})" if schema.field(name).nullable else value


def _same_but_time(schema: pa.Schema, rows: RowSpec) -> str:
    """A condition that the index serves: stored rows of the key of the given row, but for the time, which is the next column of the index."""
    return " AND ".join(f"{_comparable(schema, name)} = {_comparable(schema, name, _given(schema, name))}" for name in rows.key if name != rows.time)


def _given(schema: pa.Schema, name: str) -> str:
    """A column of the row that is written."""
    return f"?{schema.names.index(name) + 1}"


@dataclass(frozen=True)
class Withdraw:
    """Withdraws the stored rows that a written one overlaps.

    Attributes:
        statement: takes the first ``count`` values of a row.
        at: which value of a row says whether it is itself a mark.
    """

    statement: str
    count: int
    at: int

    @classmethod
    def of(cls, table: str, schema: pa.Schema, rows: RowSpec) -> Withdraw:
        assert rows.until and rows.withdrawn and rows.revision and rows.time == rows.key[-1]
        time, revision, withdrawn = map(quote, (rows.time, rows.revision, rows.withdrawn))
        marked = [f"{withdrawn} = 1", f"{revision} = {_given(schema, rows.revision)}", *([f"{quote(rows.final)} = 1"] if rows.final else [])]
        return cls(
            f"UPDATE {quote(table)} SET {', '.join(marked)} WHERE {_same_but_time(schema, rows)} AND {time} > {_given(schema, rows.time)} "
            f"AND {time} < {_given(schema, rows.until)} AND NOT {withdrawn} AND {revision} < {_given(schema, rows.revision)}",
            1 + max(schema.names.index(name) for name in (*rows.key, rows.until, rows.revision)),
            schema.names.index(rows.withdrawn),
        )  # fmt: skip

    def values(self, rows: Iterable[tuple[object, ...]]) -> Iterator[tuple[object, ...]]:
        return (row[: self.count] for row in rows if not row[self.at])


def _is_overlapped(table: str, schema: pa.Schema, rows: RowSpec) -> str:
    """Whether the given row overlaps the one before it, which has a higher revision. No other needs a look: one that is further
    off and reaches over the given row has withdrawn what lies between, or will when it is written again with more."""
    assert rows.until and rows.withdrawn and rows.revision
    until, revision, time, withdrawn = map(quote, (rows.until, rows.revision, rows.time, rows.withdrawn))
    return (
        f"COALESCE((SELECT {until} > {_given(schema, rows.time)} AND {revision} > {_given(schema, rows.revision)} FROM {quote(table)} "
        f"WHERE {_same_but_time(schema, rows)} AND {time} < {_given(schema, rows.time)} AND NOT {withdrawn} ORDER BY {time} DESC LIMIT 1), 0)"
    )


@dataclass(frozen=True)
class Upsert:
    """Stores rows unless what is stored has a higher revision.

    Attributes:
        one: the statement for a row.
        several: for ``at_once`` rows. Between two statements other threads of the process take the interpreter's lock, and a thousand statements wait for it
            as often.
        at_once: 1 where each row must see what the one before did.
    """

    one: str
    several: str
    at_once: int

    @classmethod
    def of(cls, table: str, schema: pa.Schema, rows: RowSpec) -> Upsert:
        given = ", ".join(_given(schema, name) for name in schema.names)
        if rows.until and rows.withdrawn:
            values = f"SELECT {given} WHERE {_given(schema, rows.withdrawn)} OR NOT {_is_overlapped(table, schema, rows)}"
            return cls(_upserting(table, schema, rows, values), "", 1)
        at_once = max(1, _MOST_VALUES // len(schema))
        row = f"({', '.join('?' * len(schema))})"
        return cls(_upserting(table, schema, rows, f"VALUES ({given})"), _upserting(table, schema, rows, f"VALUES {', '.join([row] * at_once)}"), at_once)


def _upserting(table: str, schema: pa.Schema, rows: RowSpec, values: str) -> str:
    names = [quote(name) for name in schema.names]
    changed = ", ".join(f"{quote(name)} = excluded.{quote(name)}" for name in schema.names if name not in rows.key)
    statement = (
        f"INSERT INTO {quote(table)} ({', '.join(names)}) {values} "
        f"ON CONFLICT ({key_columns(schema, rows)}) DO " + (f"UPDATE SET {changed}" if changed else "NOTHING")
    )
    if rows.revision is None:
        return statement
    ours = ", ".join(f"excluded.{quote(name)}" for name in (rows.revision, rows.final) if name)
    theirs = ", ".join(f"{quote(table)}.{quote(name)}" for name in (rows.revision, rows.final) if name)
    return f"{statement} WHERE ({ours}) >= ({theirs})"
