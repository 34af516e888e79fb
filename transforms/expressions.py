"""SQL expressions over the events of a batch, evaluated by DuckDB.

An expression stands in a job file as text: a condition (``status >= 500``) or the value of a field (``upper(carrier)``). It speaks of one
event: no aggregates, no windows, no subqueries, and no function that answers otherwise when a replay asks again (``now()``, ``random()``).
It is checked and typed when it is made, over no rows; over a batch it is a prepared statement that reads Arrow's buffers in place.

Reference: SQL of DuckDB, https://duckdb.org/docs/stable/sql/functions/overview. docs/decisions.md says why DuckDB.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamgauge.transforms.config import did_you_mean, user_error

_TABLE, _CONDITION = "__events", "__condition"


class Condition:
    """A SQL condition over events of one schema. Picklable.

    >>> events = pa.record_batch({"status": [200, 503, None], "host": ["a", "b", "c"]})
    >>> Condition(events.schema, "status >= 500 OR host = 'a'")(events).to_pylist()
    [True, True, False]

    Attributes:
        sql: as written.
    """

    def __init__(self, schema: pa.Schema, sql: str) -> None:
        """Raises a user's error for what is no SQL, names a field that is not there, or is neither true nor false."""
        self.sql = sql
        query = Query(schema, {_CONDITION: sql})
        kind = query.schema.field(0).type
        if not (pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            raise user_error(f"'{sql}' is no condition: it is {kind}, and not true or false; compare it with something, such as `{sql} > 0`")
        self._query = Query(schema, {_CONDITION: f"coalesce(try({sql}\n), false)"})
        self._last: tuple[weakref.ref[pa.RecordBatch], pa.BooleanArray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def __call__(self, events: pa.RecordBatch) -> pa.BooleanArray:
        """True for the events that meet it; false where it is null, or has no value (``CAST('x' AS INTEGER) > 1``)."""
        last = self._last
        if last is not None and last[0]() is events:
            return last[1]  # an aggregate has several state columns, each of which asks
        met = self._query(events).column(0)
        self._last = weakref.ref(events), met
        return met


class EvaluationError(ValueError):
    """An expression has no value for some event of a batch, such as ``CAST('x' AS INTEGER)``; the message is DuckDB's."""


class Query:
    """SQL expressions over events of one schema, evaluated together. Picklable, and safe to be called from several threads.

    Args:
        schema: of the events.
        expressions: SQL by the name of its result. Raises a user's error for one that cannot be evaluated.

    Attributes:
        schema: names and types of the results, as DuckDB gives them.
    """

    def __init__(self, schema: pa.Schema, expressions: Mapping[str, str]) -> None:
        used = {name for sql in expressions.values() for name in fields_in(sql, schema)}
        for name in used:
            if (other := next((other for other in used if other != name and other.lower() == name.lower()), None)) is not None:
                raise user_error(f"'{name}' and '{other}' differ only in case: to SQL they are one name, so one expression cannot have both")
        # A statement reads at least one column: it has the number of rows from it.
        names = [name for name in schema.names if name in used] or schema.names[:1]
        self._input = pa.schema([schema.field(name) for name in names])
        items = ", ".join(f"({sql}\n) AS {_quoted(name)}" for name, sql in expressions.items())
        self._sql = f"SELECT {items} FROM {_TABLE}"
        # A null is a value: TRY makes a null of an error only, when the value stands within an object.
        tried = " AND ".join(f"try({{'value': ({sql}\n)}}) IS NOT NULL" for sql in expressions.values())
        self._tried = f"SELECT {tried} AS answered FROM {_TABLE}"
        self._prepared: _Prepared | None = None
        self.schema: pa.Schema = pa.schema([])
        try:
            self.schema = self._run(pa.record_batch([pa.array([], field.type) for field in self._input], schema=self._input), _as_arrow).schema
        except EvaluationError as error:
            raise user_error(f"{', '.join(repr(sql) for sql in expressions.values())}: {error}") from None
        self._numbers = all(pa.types.is_boolean(field.type) or _is_number(field.type) for field in self.schema)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}

    def __call__(self, events: pa.RecordBatch) -> pa.RecordBatch:
        """Results of ``schema``, one row an event. Raises EvaluationError."""
        return self._run(events, _as_numpy if self._numbers else _as_arrow)

    def answered(self, events: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Whether every expression has a value (or is null) for each event. Planned anew each time."""
        found = _Prepared(self._tried, self._input).run(events.select(self._input.names), lambda result: result.fetchnumpy()["answered"])
        return np.asarray(found, np.bool_)

    def _run(self, events: pa.RecordBatch, fetch: Callable[[Any, pa.Schema], pa.RecordBatch]) -> pa.RecordBatch:
        if self._prepared is None or self._prepared.process != os.getpid():
            self._prepared = _Prepared(self._sql, self._input)
        return self._prepared.run(events.select(self._input.names), lambda result: fetch(result, self.schema))


class _Prepared:
    """A prepared statement over whichever batch it is given: planning costs several times what a small batch does."""

    def __init__(self, sql: str, schema: pa.Schema) -> None:
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._batch = _Batch(schema)
        self._connection = _database(self.process).cursor()
        self._connection.register(_TABLE, self._batch)
        self._guarded(lambda: self._connection.execute(f"PREPARE evaluate AS {sql}"))

    def run(self, events: pa.RecordBatch, fetch: Callable[[Any], Any]) -> Any:
        """What ``fetch`` makes of DuckDB's result. Raises EvaluationError."""
        with self._lock:
            self._batch.now = events
            try:
                return self._guarded(lambda: fetch(self._connection.execute("EXECUTE evaluate")))
            finally:
                self._batch.now = None

    def _guarded(self, act: Callable[[], Any]) -> Any:
        import duckdb

        try:
            return act()
        except duckdb.OperationalError:
            raise  # out of memory, for example: no event is to blame
        except duckdb.Error as error:
            raise EvaluationError(_plain(str(error))) from None


def _as_arrow(result: Any, _: pa.Schema) -> pa.RecordBatch:
    table = result.to_arrow_table()
    return pa.record_batch([column.combine_chunks() for column in table.columns], schema=table.schema)


def _as_numpy(result: Any, schema: pa.Schema) -> pa.RecordBatch:
    """For numbers and booleans alone: DuckDB needs 0.15 ms to make an Arrow table, however small."""
    found = result.fetchnumpy()
    masked = [(np.ma.getdata(found[field.name]), np.ma.getmask(found[field.name]), field.type) for field in schema]
    return pa.record_batch([pa.array(data, kind, mask=None if mask is np.ma.nomask else mask) for data, mask, kind in masked], schema=schema)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


class _Batch:
    """What DuckDB scans: the batch of the moment."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self.now: pa.RecordBatch | None = None

    def __arrow_c_schema__(self) -> Any:
        return self._schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        batches = [] if self.now is None else [self.now]
        return pa.RecordBatchReader.from_batches(self._schema, batches).__arrow_c_stream__(requested_schema)


@functools.lru_cache(maxsize=1)
def _database(process: int) -> Any:
    """DuckDB of this process: no thread of its own (parallelism is the runner's), no files, no network; times are UTC."""
    import duckdb

    # The copy that it warns of costs less than the planning that it saves.
    warnings.filterwarnings("ignore", message="Arrow output on a DB-API result")
    database = duckdb.connect(":memory:", config={"threads": 1, "autoinstall_known_extensions": False, "autoload_known_extensions": False})
    for setting in ("SET GLOBAL TimeZone = 'UTC'", "SET GLOBAL temp_directory = ''", "SET GLOBAL enable_external_access = false"):
        database.execute(setting)
    return database


def fields_in(sql: str, schema: pa.Schema) -> set[str]:
    """Names of the fields that an expression reads. Raises a user's error when it is no expression over one event.

    >>> sorted(fields_in("list_transform(delays, d -> d + extra)", pa.schema([("delays", pa.list_(pa.int64())), ("extra", pa.int64())])))
    ['delays', 'extra']
    """
    parsed = json.loads(_database(os.getpid()).cursor().execute("SELECT json_serialize_sql(?)", [f"SELECT {sql}"]).fetchone()[0])
    if parsed["error"]:
        raise user_error(f"'{sql}' is no SQL expression: {parsed['error_message']} (a field whose name is a word of SQL stands in double quotes)")
    node = parsed["statements"][0]["node"]
    items = node.get("select_list", [])
    select_only = len(parsed["statements"]) == 1 and not node["modifiers"] and node.get("from_table", {}).get("type") == "EMPTY"
    if not select_only or len(items) != 1 or items[0]["alias"] or node.get("where_clause") or node.get("group_expressions"):
        raise user_error(f"'{sql}' is more than one SQL expression; write only what comes after SELECT, or after WHERE")
    return set(_fields(items[0], sql, schema, frozenset()))


def _fields(node: Any, sql: str, schema: pa.Schema, bound: frozenset[str]) -> Iterator[str]:
    """Fields below a node of DuckDB's syntax tree; ``bound``: the parameters of lambdas around it."""
    if isinstance(node, list):
        for member in node:
            yield from _fields(member, sql, schema, bound)
        return
    if not isinstance(node, dict):
        return
    kind = node.get("class")
    if kind == "COLUMN_REF":
        if node["column_names"][0].lower() not in bound:
            yield _field(node["column_names"], sql, schema)
        return
    if kind in _NO_EXPRESSIONS:
        raise user_error(f"'{sql}': {_NO_EXPRESSIONS[kind]}")
    if kind == "FUNCTION":
        _check_function(node["function_name"], sql)
    if kind == "LAMBDA":
        parameters = node["lhs"]
        bound |= {name["column_names"][0].lower() for name in _column_refs(parameters)}
    for key, member in node.items():
        if not (kind == "LAMBDA" and key == "lhs"):
            yield from _fields(member, sql, schema, bound)


def _column_refs(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if node.get("class") == "COLUMN_REF":
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for member in node:
            yield from _column_refs(member)


_NO_EXPRESSIONS = {
    "SUBQUERY": "a subquery is no expression over one event",
    "WINDOW": "a window function is no expression over one event",
    "STAR": "* is no expression over one event; name the fields",
    "PARAMETER": "there are no parameters; a ? or $ belongs into a string in quotes",
}


def _field(path: list[str], sql: str, schema: pa.Schema) -> str:
    """The field that a (dotted) name means: SQL's names are equal but for case."""
    name = path[0]
    if name in schema.names:
        return name
    known = [field for field in schema.names if field.lower() == name.lower()]
    if len(known) == 1:
        return str(known[0])
    fields = [field for field in schema.names if not field.startswith("__")]
    dotted = ".".join(path)
    hint = f" - write it in quotes: \"{dotted}\"" if dotted in fields else did_you_mean(name, fields)
    raise user_error(f"'{sql}': the schema has no field '{name}'{hint}; fields: {', '.join(fields)} (texts stand in single quotes)")


def _check_function(name: str, sql: str) -> None:
    kinds = _functions(os.getpid()).get(name.lower())
    if kinds is None:
        return  # DuckDB itself says which functions are alike
    if not kinds & {"scalar", "macro"}:
        raise user_error(f"'{sql}': {name}() is no function over one event; AggregateWindows aggregates events, and `explode` makes rows of a list")
    if "volatile" in kinds:
        raise user_error(f"'{sql}': {name}() gives another answer when events are read again; use a field of the event, such as __time")


@functools.lru_cache(maxsize=1)
def _functions(process: int) -> dict[str, set[str]]:
    """Kinds of each function: ``scalar``, ``aggregate``, ...; ``volatile`` if it does not always answer the same."""
    rows = _database(process).cursor().execute("SELECT lower(function_name), function_type, stability FROM duckdb_functions()").fetchall()
    found: dict[str, set[str]] = {}
    for name, kind, stability in rows:
        found.setdefault(name, set()).update({kind} | ({"volatile"} if stability not in (None, "CONSISTENT") else set()))
    return found


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _plain(message: str) -> str:
    """DuckDB's message in one line, without the place in a statement that the user did not write."""
    return " ".join(message.partition("\n\nLINE")[0].split())
