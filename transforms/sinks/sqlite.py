"""SQLite: the embedded time-series store, one file that any tool can read while it is written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from streamgauge.transforms.config import Config
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks.base import Rejected, SinkError
from streamgauge.transforms.sinks.plain import from_plain, plain_type, to_plain
from streamgauge.transforms.sinks.rows_util import (
    RefusedError,
    difference,
    lacking,
    patience,
    retrying,
    sift,
    unique_ignoring_case,
)
from streamgauge.transforms.sinks.sqlite_sql import Upsert, Withdraw, declared, key_columns, quote, store_name

_TABLES = "streamgauge_tables"
"""Our table of tables: the Arrow schema of each, so that rows are read back with the types they were written with."""

_CACHE_KIB = 32 * 1024
"""Pages of open windows and their index are written again and again; SQLite's own bound is 2 MB."""
_REFUSED = (sqlite3.DataError, OverflowError, sqlite3.IntegrityError)
_BUSY_SECONDS = 1.0
"""How long SQLite itself waits for a lock, in steps as short as the lock is short; after that it is our back-off."""
_PASSING = ("locked", "busy", "disk is full", "disk I/O error", "unable to open", "out of memory")
"""In the messages of errors that may pass: their numbers are known from Python 3.11 on only."""


class SqliteOptions(Config):
    """A table in an SQLite file, upserted by natural key."""

    path: str = Field(
        min_length=1, description="The database file, made with its folder when missing. On a local disk: SQLite's WAL needs one."
    )
    table: str = Field(
        min_length=1, pattern=r"^[^\x00]+$", description="The table; made when missing. Where rows can be withdrawn, a view over TABLE_versions."
    )


class Sqlite:
    """Upserts rows in one transaction a write; several processes may write at once.

    Delivery: effectively once. The unique index over the key and the condition on the upsert make a replay, and a worker that
    wakes up after its replacement took over, leave newer rows as they are. ``synchronous=FULL`` and not NORMAL: in WAL mode
    NORMAL may lose the last transactions in a power cut, after Flink's checkpoint already counted on them. A worker frozen in the
    middle of a transaction holds SQLite's write lock: the others fail their bundles until it wakes up or dies, and lose nothing.

    Waits for locks, and for room on a full disk, for 30 s; a file that is read-only fails at once. Rows it can never take: those larger
    than SQLite's limit (a gigabyte), and those that a constraint or trigger of the user's own refuses.

    Columns: integers as INTEGER, floats as REAL (SQLite turns NaN into NULL and -0.0 into 0.0, infinities stay), booleans as 0 and 1,
    timestamps as TEXT ``2013-01-01T05:00:00.000000Z`` that reads well, sorts as time and suits SQLite's date functions,
    dates as ``2013-01-01``, uint64 and decimals as TEXT, lists and structs as JSON text for ``json_extract`` and ``json_each``, with times
    written the same way and NaN and infinities as null.

    Rows that can be withdrawn lie in ``TABLE_versions``; ``TABLE`` is a view of those that hold. Where rows do not overlap (``RowSpec.until``) that is seen to in
    the transaction that writes them: a row withdraws what it overlaps, and is not stored when it is what a stored one would have withdrawn. Doing it in
    the view would cost each row read a look at all earlier ones of its key.
    """

    Options = SqliteOptions
    guarantee: ClassVar[str] = (
        "A replay leaves the table as it was: rows are upserted by natural key, one of a smaller revision never replaces a stored one, "
        "and a write returns when its transaction is synced to disk."
    )

    def __init__(self, options: SqliteOptions) -> None:
        self._path = Path(options.path).expanduser().absolute()
        self._table = options.table
        self.name = f"sqlite:{options.path}/{options.table}"
        self._connection: sqlite3.Connection | None = None
        self._upsert = Upsert("", "", 1)
        self._withdraw: Withdraw | None = None

    def open(self, schema: pa.Schema, rows: RowSpec) -> None:
        if self._table.lower() == _TABLES or self._table.lower().startswith("sqlite_"):
            raise ValueError(f"the table name '{self._table}' is reserved; choose another")
        unique_ignoring_case(schema.names, "SQLite")
        columns = {field.name: declared(field) for field in schema}
        self._upsert = Upsert.of(store_name(self._table, rows), schema, rows)
        self._withdraw = Withdraw.of(store_name(self._table, rows), schema, rows) if rows.until else None
        with self._errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._connect()
            retrying(_may_pass)(self._create, columns, rows.attach(schema), rows)

    def write(self, batch: pa.Table) -> list[Rejected]:
        with self._errors():
            return sift(batch, self._store)

    def _store(self, batch: pa.Table) -> None:
        rows = list(zip(*(to_plain(column).to_pylist() for column in batch.columns), strict=True))
        try:
            retrying(_may_pass)(self._write, rows)
        except _REFUSED:
            self._find_refused(rows)

    def _write(self, rows: list[tuple[object, ...]]) -> None:
        at_once = self._upsert.at_once
        several = len(rows) // at_once * at_once if at_once > 1 else 0
        with self._transaction() as connection:
            for at in range(0, several, at_once):
                connection.execute(self._upsert.several, list(chain.from_iterable(rows[at : at + at_once])))
            connection.executemany(self._upsert.one, rows[several:])
            self._mark(connection, rows)

    def _mark(self, connection: sqlite3.Connection, rows: list[tuple[object, ...]]) -> None:
        """As withdrawn: what the rows overlap."""
        if self._withdraw is not None:
            connection.executemany(self._withdraw.statement, self._withdraw.values(rows))

    def _find_refused(self, rows: list[tuple[object, ...]]) -> None:
        """The same with a statement a row, which tells whose row was refused. Raises RefusedError."""
        at = 0

        def counted() -> Iterator[tuple[object, ...]]:
            nonlocal at
            for at, row in enumerate(rows):  # noqa: B007
                yield row

        def attempt() -> None:
            with self._transaction() as connection:
                connection.executemany(self._upsert.one, counted())
                self._mark(connection, rows)

        try:
            retrying(_may_pass)(attempt)
        except (sqlite3.DataError, OverflowError) as error:
            raise RefusedError(str(error), "too_large", at) from None
        except sqlite3.IntegrityError as error:
            raise RefusedError(str(error), at=at) from None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def read(self) -> pa.Table:
        """The rows in the order of their key. Works without ``open``."""
        if not self._path.exists():
            raise SinkError(f"{self.name}: there is no file {self._path}")
        with self._errors():
            connection = self._connection or self._connect()
            try:
                return self._read(connection)
            finally:
                if connection is not self._connection:
                    connection.close()

    def _read(self, connection: sqlite3.Connection) -> pa.Table:
        schema = self._stored_schema(connection)
        if schema is None:
            raise SinkError(f"{self.name}: there is no table '{self._table}' of ours in {self._path}")
        order = ", ".join(map(quote, RowSpec.of(schema).key))
        found = connection.execute(f"SELECT {', '.join(map(quote, schema.names))} FROM {quote(self._table)} ORDER BY {order}").fetchall()
        columns = list(zip(*found, strict=True)) or [()] * len(schema)
        return pa.table([_column(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema)

    def _create(self, columns: dict[str, str], schema: pa.Schema, rows: RowSpec) -> None:
        with self._transaction() as connection:
            self._create_in(connection, columns, schema, rows)

    def _create_in(self, connection: sqlite3.Connection, columns: dict[str, str], schema: pa.Schema, rows: RowSpec) -> None:
        connection.execute(f"CREATE TABLE IF NOT EXISTS {_TABLES} (name TEXT PRIMARY KEY COLLATE NOCASE, arrow_schema BLOB NOT NULL)")
        stored = self._stored_schema(connection)
        if stored is not None:
            problem = difference(stored, schema)
            if problem:
                raise ValueError(f"the table '{self._table}' in {self._path} is another one: {problem}; choose another table or file")
            if lacking(stored.names, schema):
                self._extend(connection, stored, schema, rows)
            return
        store = store_name(self._table, rows)
        self._must_be_free(connection, self._table)
        self._must_be_free(connection, store)
        listed = ", ".join(f"{quote(name)} {kind}" for name, kind in columns.items())
        connection.execute(f"CREATE TABLE {quote(store)} ({listed})")
        connection.execute(f"CREATE UNIQUE INDEX {quote(store + '_key')} ON {quote(store)} ({key_columns(schema, rows)})")
        self._show(connection, schema, rows)
        connection.execute(f"INSERT INTO {_TABLES} VALUES (?, ?)", (self._table, schema.serialize().to_pybytes()))

    def _extend(self, connection: sqlite3.Connection, stored: pa.Schema, schema: pa.Schema, rows: RowSpec) -> None:
        """Gives a table that an earlier version made the columns that it lacks."""
        store = store_name(self._table, rows)
        if store != store_name(self._table, RowSpec.of(stored)):
            self._must_be_free(connection, store)
            connection.execute(f"ALTER TABLE {quote(self._table)} RENAME TO {quote(store)}")
        for field in lacking(stored.names, schema):
            default = "" if field.nullable else " NOT NULL DEFAULT 0"
            connection.execute(f"ALTER TABLE {quote(store)} ADD COLUMN {quote(field.name)} {declared(field)}{default}")
        self._show(connection, schema, rows)
        connection.execute(f"UPDATE {_TABLES} SET arrow_schema = ? WHERE name = ?", (schema.serialize().to_pybytes(), self._table))

    def _show(self, connection: sqlite3.Connection, schema: pa.Schema, rows: RowSpec) -> None:
        """The view of the rows that hold, where some may not."""
        if rows.withdrawn is not None:
            listed = ", ".join(map(quote, schema.names))
            connection.execute(f"DROP VIEW IF EXISTS {quote(self._table)}")
            connection.execute(
                f"CREATE VIEW {quote(self._table)} AS SELECT {listed} FROM {quote(store_name(self._table, rows))} WHERE NOT {quote(rows.withdrawn)}"
            )

    def _must_be_free(self, connection: sqlite3.Connection, name: str) -> None:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = ? COLLATE NOCASE", (name,)).fetchone():
            raise ValueError(f"{self._path} has a table or index '{name}' that this sink did not make; choose another table or file")

    def _stored_schema(self, connection: sqlite3.Connection) -> pa.Schema | None:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (_TABLES,)).fetchone():
            return None
        found = connection.execute(f"SELECT arrow_schema FROM {_TABLES} WHERE name = ?", (self._table,)).fetchone()
        return pa.ipc.read_schema(pa.py_buffer(found[0])) if found else None

    def _connect(self) -> sqlite3.Connection:
        # Beam may call a DoFn from several threads, though never at the same time.
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            # While another process makes the file, SQLite answers "locked" here at once and ignores its own timeout.
            retrying(_may_pass)(connection.execute, "PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA cache_size={-_CACHE_KIB}")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Takes the write lock at once, so that what is read in it cannot become stale before the write."""
        assert self._connection is not None, "open() first"
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            # On a full disk and the like SQLite has rolled back by itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with patience() as until:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                hint = " by another writer" if "locked" in str(error) else ""
                raise SinkError(f"{self.name}: {error}{hint}, {until} ({self._path})") from None


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and any(text in str(error) for text in _PASSING)


def _column(values: tuple[object, ...], kind: pa.DataType) -> pa.Array:
    plain = plain_type(kind)
    if plain == pa.bool_():
        return pa.array(values, pa.int64()).cast(pa.bool_()).cast(kind)
    return from_plain(pa.array(values, plain), kind)
