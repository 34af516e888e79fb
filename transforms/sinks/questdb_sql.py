"""The SQL side of the QuestDB sink: the table of versions, the view over it, and reading it back over HTTP."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa

from streamgauge.transforms.rows import CUT, RowSpec
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.plain import plain_type
from streamgauge.transforms.sinks.rows_util import REQUEST_SECONDS, lacking, patience, retrying, unique_ignoring_case

PORT = 9000
VERSION = "_version"
_COVERED, _CUT_COVERED = "_covered", "_cut_covered"
"""Of a row: how far earlier ones of its key reach."""
_RESERVED = (VERSION, _COVERED, _CUT_COVERED)
_STORE_SUFFIX = "_versions"
_FORBIDDEN = re.compile(r"[^\w ]")
_VERSION_DIGITS = 19
_BELOW_ALL = -2
"""Less than any version."""
_READ_SECONDS = 30.0
"""A view over many rows takes its time; no bundle waits for it."""
_POLL_SECONDS = 0.02
_TRY_AGAIN = {500, 502, 503, 504}


class QueryError(ValueError):
    """The server refused a statement."""


def column_type(field: pa.Field, rows: RowSpec) -> str:
    """QuestDB's type for a column. Booleans that may be null are symbols, since BOOLEAN has no null.

    >>> rows = RowSpec(kind="results", key=("time", "origin"), time="time", revision="revision", final="final")
    >>> fields = [("origin", pa.string()), ("note", pa.string()), ("n", pa.int32()), ("final", pa.bool_())]
    >>> [column_type(pa.field(name, kind), rows) for name, kind in fields]
    ['SYMBOL', 'VARCHAR', 'LONG', 'BOOLEAN']
    """
    if field.name in (rows.final, rows.withdrawn):
        return "BOOLEAN"
    if pa.types.is_timestamp(field.type) and field.type.unit != "ns":
        return "TIMESTAMP"
    try:
        plain = plain_type(field.type)
    except ValueError as error:
        raise ValueError(f"column '{field.name}': {error} in QuestDB") from None
    text = "SYMBOL" if field.name in rows.key else "VARCHAR"
    return {pa.int64(): "LONG", pa.float64(): "DOUBLE", pa.bool_(): "SYMBOL"}.get(plain, text)


def quote(name: str) -> str:
    return f'"{name}"'


@dataclass(frozen=True)
class Layout:
    """How rows of one schema lie in QuestDB.

    Attributes:
        table: the view that users read. store: the table of versions below it, which is written.
        names: QuestDB's column names by ours.
    """

    table: str
    store: str
    schema: pa.Schema
    rows: RowSpec
    names: dict[str, str]

    @classmethod
    def of(cls, table: str, schema: pa.Schema, rows: RowSpec) -> Layout:
        names = {name: _FORBIDDEN.sub("_", name) for name in schema.names}
        unique_ignoring_case([*names.values(), *_RESERVED], "QuestDB")
        if len({*names.values(), *_RESERVED}) < len(names) + len(_RESERVED):
            raise ValueError(
                f"the columns {', '.join(names)} are not different in QuestDB, where {', '.join(_RESERVED)} are reserved and all but letters and "
                "digits becomes '_'; give one of them another name"
            )
        return cls(table, table + _STORE_SUFFIX, rows.attach(schema), rows, names)

    def columns(self) -> dict[str, str]:
        """Type of each column of what users read."""
        return {self.names[field.name]: column_type(field, self.rows) for field in self.schema}

    def store_columns(self) -> dict[str, str]:
        return self.columns() | {VERSION: "LONG"}

    def keys(self) -> list[str]:
        return [*(self.names[name] for name in self.rows.key), VERSION]

    def create_store(self) -> str:
        columns = ", ".join(f"{quote(name)} {kind}" for name, kind in self.store_columns().items())
        keys = ", ".join(map(quote, self.keys()))
        return (
            f"CREATE TABLE IF NOT EXISTS {quote(self.store)} ({columns}) TIMESTAMP({quote(self.names[self.rows.time])}) "
            f"PARTITION BY DAY WAL DEDUP UPSERT KEYS({keys})"
        )

    def lacking(self, found: Iterable[str]) -> dict[str, str]:
        """Type of each column that a table of an earlier version with the columns ``found`` is to get."""
        return {field.name: column_type(field, self.rows) for field in lacking(found, self.schema)}

    def create_view(self, how: str = "CREATE VIEW IF NOT EXISTS") -> str:
        """One row a key, that of the highest version, unless that one is withdrawn.

        Grouping by the key (and not a window function or a join) is what lets QuestDB push filters on time and dimensions down
        to the table; the designated timestamp is what SAMPLE BY needs. It stands inside, next to the subquery: with one more
        pair of parentheses 9.3.4 takes a selected column called "count" for the function.
        """
        inner, outer = [], []
        types = self.columns()
        for ours, name in self.names.items():
            column = read = quote(name)
            if ours in self.rows.key:
                inner.append(column)
            elif ours == self.rows.final:
                inner.append(f"max({VERSION}) >= 0 {column}")
            elif ours == self.rows.withdrawn:
                inner.append(f"max(case when {column} then {VERSION} else {_BELOW_ALL} end) = max({VERSION}) {column}")
            elif types[name] in ("SYMBOL", "VARCHAR"):
                inner.append(f"{_newest_text(column)} {column}")
                read = f"{_text_of(column)} {column}"
            else:
                inner.append(f"arg_max({column}, {VERSION}) {column}")
            outer.append(read)
        timestamp = quote(self.names[self.rows.time])
        newest = f"SELECT {', '.join(inner)} FROM {quote(self.store)} ORDER BY {timestamp}"
        holding = f" WHERE NOT {quote(self.names[self.rows.withdrawn])}" if self.rows.withdrawn else ""
        found = f"({newest}) TIMESTAMP({timestamp}){holding}"
        if self.rows.until is not None:
            found = self._without_overlapped(found, self.names[self.rows.until])
        return f"{how} {quote(self.table)} AS (SELECT {', '.join(outer)} FROM {found})"

    def _without_overlapped(self, found: str, until: str) -> str:
        """Rows that do not overlap (``RowSpec.until``): without those that overlap one that starts earlier, but a session that was cut is hidden
        by others that were cut only. The rule says, of a higher revision: in the end it is the same, and this needs two running
        maxima instead of a join of each key with itself. They need all rows: filters on time are applied after them."""
        assert self.rows.revision is not None
        time, revision = (quote(self.names[name]) for name in (self.rows.time, self.rows.revision))
        keys = ", ".join(quote(self.names[name]) for name in self.rows.key if name != self.rows.time)
        before = f"OVER (PARTITION BY {keys} ORDER BY {time} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
        end = f"{quote(until)}::long"
        covered = f"SELECT *, max({end}) {before} {_COVERED}, max(case when {revision} >= {CUT} then {end} end) {before} {_CUT_COVERED} FROM {found}"
        # No time is before 0. A comparison with null is false, and 9.3.4 takes NOT (a > b) for a <= b.
        reached = f"coalesce(case when {revision} >= {CUT} then {_CUT_COVERED} else {_COVERED} end, 0)"
        return f"({covered}) TIMESTAMP({time}) WHERE {reached} <= {time}::long"


def _newest_text(column: str) -> str:
    """QuestDB's arg_max has no text, its max has: so the maximum of (version in fixed width, null or not, text)."""
    flag = f"case when {column} is null then 'n' else 'v' end"
    return f"max(concat(lpad(({VERSION} + 1)::varchar, {_VERSION_DIGITS}, '0'), {flag}, {column}))"


def _text_of(found: str) -> str:
    """The text in the maximum above."""
    at = _VERSION_DIGITS + 1
    return f"case when substring({found}, {at}, 1) = 'v' then substring({found}, {at + 1}, length({found})) end"


class Server:
    """Statements over HTTP, with bounded retries. Picklable: connects when first used."""

    def __init__(self, url: str, name: str) -> None:
        parts = urlsplit(url)
        self._url = urlunsplit((parts.scheme, f"{parts.hostname}:{parts.port or PORT}", "/exec", "", ""))
        self._account = f"{parts.username}:{parts.password or ''}" if parts.username else None
        self.name = name
        self._pool: Any = None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.clear()
            self._pool = None

    def query(self, statement: str, seconds: float | None = None) -> dict[str, Any]:
        """The server's answer, for each try of which it has ``seconds`` (REQUEST_SECONDS). Raises QueryError when it refuses, SinkError when it does not
        answer within the surrounding :func:`patience`."""
        import urllib3

        if self._pool is None:
            self._pool = urllib3.PoolManager(retries=False)
        headers = urllib3.make_headers(basic_auth=self._account)
        with patience() as until:
            try:
                answer = retrying(_transient)(self._request, statement, headers, seconds or REQUEST_SECONDS)
            except (urllib3.exceptions.HTTPError, _UnavailableError) as error:
                raise SinkError(f"{self.name}: no answer from QuestDB, {until}: {error}") from None
        try:
            # Control characters come unescaped from some versions.
            found: dict[str, Any] = json.loads(answer.data, strict=False)
        except ValueError:
            raise SinkError(f"{self.name}: HTTP {answer.status}, and the answer is not QuestDB's: {answer.data[:200]!r}") from None
        if "error" in found:
            raise QueryError(found["error"].strip())
        return found

    def _request(self, statement: str, headers: dict[str, str], seconds: float) -> Any:
        import urllib3

        answer = self._pool.request(
            "GET", self._url, fields={"query": statement}, headers=headers, timeout=urllib3.Timeout(total=seconds)
        )
        if answer.status in _TRY_AGAIN:
            raise _UnavailableError(f"HTTP {answer.status}")
        return answer

    def columns(self, table: str) -> dict[str, str] | None:
        """Type of each column; None when there is no such table or view. SHOW COLUMNS shows none of a view after a restart."""
        answer = self._if_exists(f"SELECT * FROM {quote(table)} LIMIT 0")
        return {column["name"]: column["type"] for column in answer["columns"]} if answer else None

    def create(self, layout: Layout) -> None:
        """Makes table and view when they are not there, and gives those of an earlier version what they lack. Raises ValueError when others are there.

        The caller surrounds it with :func:`patience`, since it is several statements.
        """
        found = self._made(layout.store, layout.create_store())
        lacking = layout.lacking(found)
        self._check(layout.store, found | lacking, layout.store_columns())
        self._check_keys(layout)
        for name, kind in lacking.items():
            self._add_column(layout.store, name, kind)
        if lacking:
            self._wait_until_applied(layout.store)
        found = self._made(layout.table, layout.create_view())
        lacking = layout.lacking(found)
        self._check(layout.table, found | lacking, layout.columns())
        if lacking:
            self._define(layout.table, layout.create_view("CREATE OR REPLACE VIEW"))

    def _check_keys(self, layout: Layout) -> None:
        shown = self._if_exists(f"SELECT \"column\" FROM (SHOW COLUMNS FROM {quote(layout.store)}) WHERE upsertKey") or {"dataset": []}
        keys = {row[0] for row in shown["dataset"]}
        if keys != set(layout.keys()):
            raise ValueError(
                f"{self.name}: '{layout.store}' is another table: its DEDUP keys are ({', '.join(sorted(keys))}), "
                f"these rows need ({', '.join(sorted(layout.keys()))}); choose another table"
            )

    def _made(self, table: str, statement: str) -> dict[str, str]:
        """The columns of a table or view, which ``statement`` makes when it is not there."""
        found = self.columns(table)
        if found is None:
            self._define(table, statement)
        return found or self.columns(table) or {}

    def _define(self, table: str, statement: str) -> None:
        try:
            self.query(statement)
        except QueryError as error:
            raise SinkError(f"{self.name}: QuestDB did not make '{table}': {error}; a view needs version 9.3.4 or newer") from None

    def _add_column(self, table: str, name: str, kind: str) -> None:
        try:
            self.query(f"ALTER TABLE {quote(table)} ADD COLUMN IF NOT EXISTS {quote(name)} {kind}")
        except QueryError as error:
            # Of several workers that add it at the same time QuestDB refuses all but one, IF NOT EXISTS or not.
            if "duplicate column" not in str(error):
                raise SinkError(f"{self.name}: QuestDB did not add the column '{name}' to '{table}': {error}") from None

    def _check(self, table: str, found: dict[str, str], wanted: dict[str, str]) -> None:
        if _comparable(found) != _comparable(wanted):
            raise ValueError(
                f"{self.name}: '{table}' is another table: it has the columns ({_listed(found)}), "
                f"these rows need ({_listed(wanted)}); choose another table"
            )

    def _if_exists(self, statement: str) -> dict[str, Any] | None:
        try:
            return self.query(statement)
        except QueryError as error:
            if "does not exist" in str(error):
                return None
            raise SinkError(f"{self.name}: {error}") from None

    def rows(self, table: str) -> dict[str, tuple[str, list[Any]]]:
        """Type and values of each column, timestamps in microseconds, once all writes are applied."""
        types = self.columns(table)
        if types is None:
            raise SinkError(f"{self.name}: there is no table '{table}'")
        self._wait_until_applied(table + _STORE_SUFFIX)
        listed = ", ".join(f"{quote(name)}::long {quote(name)}" if kind == "TIMESTAMP" else quote(name) for name, kind in types.items())
        try:
            found = self.query(f"SELECT {listed} FROM {quote(table)}", _READ_SECONDS)["dataset"]
        except QueryError as error:
            raise SinkError(f"{self.name}: {error}") from None
        values = [list(column) for column in zip(*found, strict=True)] or [[] for _ in types]
        return {name: (types[name], column) for name, column in zip(types, values, strict=True)}

    def _wait_until_applied(self, store: str) -> None:
        """What is in the write-ahead log is visible a little later."""
        with patience() as until:
            while True:
                states = self.query(f"SELECT suspended, sequencerTxn - writerTxn FROM wal_tables() WHERE name = '{store}'")["dataset"]
                if any(suspended for suspended, _ in states):
                    raise SinkError(f"{self.name}: QuestDB has suspended the table; see wal_tables() for why, and ALTER TABLE ... RESUME WAL")
                if all(behind == 0 for _, behind in states):
                    return
                if until.left() == 0:
                    raise SinkError(f"{self.name}: QuestDB has not applied its write-ahead log, {until}")
                time.sleep(_POLL_SECONDS)


class _UnavailableError(RuntimeError):
    """The server answered that it cannot answer now."""


def _transient(error: BaseException) -> bool:
    import urllib3

    return isinstance(error, (urllib3.exceptions.HTTPError, _UnavailableError))


def _comparable(columns: dict[str, str]) -> dict[str, str]:
    """Without the order, as a view has its timestamp first; text out of an expression is STRING."""
    return {name: "VARCHAR" if kind in ("SYMBOL", "STRING") else kind for name, kind in columns.items()}


def _listed(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items())
