"""QuestDB: a time-series server, written by ILP over HTTP with the official client."""

from __future__ import annotations

import base64
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from streamgauge.transforms.config import Config, user_error
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks import questdb_sql as sql
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.rows_util import RETRY_SECONDS, describe_key, from_plain, plain_type, retrying, to_plain

_LAST_TIME = 253_402_300_799_999_999
"""9999-12-31T23:59:59.999999Z in microseconds: QuestDB's last designated timestamp; its first is 1970-01-01."""
_NULL_LONG = -(2**63)
"""QuestDB's null among integers and timestamps."""

_REFUSED_BY_CLIENT = ("BadDataFrame", "InvalidTimestamp", "InvalidUtf8")
"""The client's errors about what rows hold, as against errors of the connection."""


class QuestDbOptions(Config):
    """A table in QuestDB, read through a view that shows one row a key."""

    url: str = Field(
        "http://localhost:9000", description="The server's HTTP address, http or https, with user:password@ before the host where needed."
    )
    table: str = Field(
        pattern=r"^\w[\w ]*$", max_length=100, description="What users read: a view over TABLE_versions. Made when missing."
    )

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise user_error(f"{url!r} is not an HTTP address; write it like http://localhost:9000")
        return url.rstrip("/")


class RefusedError(ValueError):
    """The server or its client refuses rows for what they hold."""


class QuestDb:
    """Sends rows in one request a write, which the server answers when they are in its write-ahead log.

    Delivery: effectively once, for whoever reads ``TABLE``. QuestDB cannot upsert on a condition: DEDUP replaces whole rows, so
    a worker that wakes up after its replacement took over could put old rows over new ones. Hence a read-side rule. Rows go to
    ``TABLE_versions``, whose DEDUP keys are the natural key and ``_version``: the revision of a final row, -1 for a row
    that is not final, 0 where rows have no revision. So a key has one early row (the last written) and its final ones (one,
    and one for each correction), however often it is emitted, and a final number is never overwritten by another
    one. ``TABLE`` is a view of the highest ``_version`` of each key; filters on time and dimensions, SAMPLE BY and LATEST ON
    work on it as on a table (tried with 9.3.4; older servers may have no views). Other than in the conditional stores, an early
    row of a higher revision does not hide a final one. Rows survive the server's death; a power cut only with its
    ``cairo.commit.mode=sync``.

    Columns: text dimensions and booleans are SYMBOL, other text VARCHAR, integers LONG, floats DOUBLE, timestamps TIMESTAMP,
    bytes base64, dates, uint64, decimals and lists text; characters that QuestDB forbids in names become ``_``. The smallest int64,
    NaN and infinities are QuestDB's null. Rows it cannot hold: a time before 1970 or after 9999, the smallest int64 in a key.
    Dead letters are refused: their key lacks the time, which DEDUP needs, so a replay would store them twice.
    """

    Options = QuestDbOptions
    guarantee: ClassVar[str] = (
        "A replay leaves what the view TABLE shows as it was: QuestDB replaces rows of equal natural key and version, final rows are kept "
        "by revision, the view shows the highest, and a write returns when the server has committed it to its write-ahead log."
    )

    def __init__(self, options: QuestDbOptions) -> None:
        self._url = urlsplit(options.url)
        self._table = options.table
        self.name = f"questdb:{self._url.hostname}:{self._url.port or sql.PORT}/{options.table}"
        self._server = sql.Server(options.url, self.name)
        self._layout: sql.Layout | None = None
        self._sender: Any = None

    def open(self, schema: pa.Schema, rows: RowSpec) -> None:
        if rows.time not in rows.key:
            raise ValueError(
                f"{self.name} cannot take {rows.kind}: their time is not in their key ({', '.join(rows.key)}), so QuestDB would store "
                "a replay twice; write them to sqlite or parquet"
            )
        _client()
        layout = sql.Layout.of(self._table, schema, rows)
        self._server.create(layout)
        self._server.close()  # QuestDB has 256 connections by default: a worker keeps one, for writing
        self._layout = layout

    def write(self, batch: pa.Table) -> None:
        assert self._layout is not None, "open() first"
        rejected = self._store(batch.cast(self._layout.schema), self._layout)
        if rejected:
            rows, why = rejected[0]
            others = sum(len(part) for part, _ in rejected) - 1
            more = f" (and {others} more)" if others else ""
            raise ValueError(f"{self.name} can never take the row {describe_key(rows, self._layout.rows)}{more}: {why}")

    def close(self) -> None:
        self._disconnect()
        self._server.close()

    def read(self) -> pa.Table:
        """The rows of the view, once the server has applied all that was written. Works without ``open``, with QuestDB's types."""
        found = {name: _plain_column(values, kind) for name, (kind, values) in self._server.rows(self._table).items()}
        if self._layout is None:
            return pa.table(found)
        schema, names = self._layout.schema, self._layout.names
        return pa.table([_restore(found[names[field.name]], field.type) for field in schema], schema=schema)

    def _store(self, batch: pa.Table, layout: sql.Layout) -> list[tuple[pa.Table, str]]:
        """Stores what can be stored; returns the other rows with the reason."""
        bad = _unstorable(batch, layout.rows)
        refused = batch.filter(bad)
        why = "its time is not within the years 1970 to 9999, or a key holds the smallest int64, QuestDB's null"
        return ([(refused, why)] if len(refused) else []) + self._send_or_split(batch.filter(pc.invert(bad)), layout)

    def _send_or_split(self, batch: pa.Table, layout: sql.Layout) -> list[tuple[pa.Table, str]]:
        """Sends the rows; when the server refuses them for what they hold, finds the guilty ones by halving."""
        if len(batch) == 0:
            return []
        try:
            self._send(batch, layout)
        except RefusedError as error:
            if len(batch) == 1:
                return [(batch, str(error))]
            half = len(batch) // 2
            return self._send_or_split(batch.slice(0, half), layout) + self._send_or_split(batch.slice(half), layout)
        return []

    def _send(self, batch: pa.Table, layout: sql.Layout) -> None:
        """One request, repeated while the server may still take it."""
        questdb, pandas = _client()
        frame = _outgoing(batch, layout).to_pandas(types_mapper=pandas.ArrowDtype)
        for_good = {questdb.QuestDBErrorCode[name] for name in _REFUSED_BY_CLIENT}

        def refused(error: BaseException) -> bool:
            return error.code in for_good or '"code":"invalid"' in str(error)  # type: ignore[attr-defined]

        def attempt() -> None:
            if self._sender is None:
                self._sender = self._connect(questdb)
            # All text goes as string fields, which the server converts to symbols: its symbol syntax has no empty text and no NUL.
            self._sender.dataframe(frame, table_name=layout.store, symbols=False, at=layout.names[layout.rows.time])
            self._sender.flush()

        try:
            retrying(lambda error: isinstance(error, questdb.QuestDBError) and not refused(error), RETRY_SECONDS)(attempt)
        except questdb.QuestDBError as error:
            text = str(error).partition("\n")[0]
            if refused(error):
                raise RefusedError(text) from None
            self._disconnect()
            raise SinkError(f"{self.name}: {text} (tried for {RETRY_SECONDS:g} s)") from None

    def _connect(self, questdb: Any) -> Any:
        """A sender without the client's own retries, which leave out a refused connection."""
        address = f"{self._url.scheme}::addr={self._url.hostname}:{self._url.port or sql.PORT}"
        account = {"username": self._url.username, "password": self._url.password} if self._url.username else {}
        sender = questdb.Sender.from_conf(f"{address};protocol_version=2;auto_flush=off;retry_timeout=0;", **account)
        sender.establish()
        return sender

    def _disconnect(self) -> None:
        if self._sender is not None:
            self._sender.close(flush=False)
            self._sender = None


def _client() -> tuple[Any, Any]:
    try:
        import pandas
        import questdb
    except ImportError as error:
        raise SinkError(f"writing to QuestDB needs the package {error.name}; run: pip install 'streamgauge[questdb]'") from None
    return questdb, pandas


def _unstorable(batch: pa.Table, rows: RowSpec) -> pa.ChunkedArray:
    """True for rows whose time or key QuestDB has no value for."""
    time = batch[rows.time].cast(pa.int64())
    bad = pc.invert(pc.and_(pc.greater_equal(time, 0), pc.less_equal(time, _LAST_TIME)).fill_null(False))
    for name in rows.key:
        if sql.column_type(batch.schema.field(name), rows) in ("LONG", "TIMESTAMP"):
            bad = pc.or_(bad, pc.equal(_whole(batch[name]), _NULL_LONG).fill_null(False))
    return bad


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    return column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else to_plain(column)


def _outgoing(batch: pa.Table, layout: sql.Layout) -> pa.Table:
    """The columns as the client sends them, and ``_version``."""
    out: dict[str, Any] = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        kind = sql.column_type(field, layout.rows)
        if kind == "TIMESTAMP":
            plain: Any = column.cast(pa.timestamp("us", tz="UTC"))
        else:
            plain = to_plain(column)
            if pa.types.is_binary(plain.type):
                plain = pa.array([None if v is None else base64.b64encode(v).decode() for v in plain.to_pylist()], pa.string())
            elif kind == "SYMBOL":
                plain = plain.cast(pa.string())
        out[layout.names[field.name]] = plain
    out[sql.VERSION] = _versions(batch, layout.rows)
    return pa.table(out)


def _versions(batch: pa.Table, rows: RowSpec) -> pa.Array | pa.ChunkedArray:
    if rows.revision is None:
        return pa.repeat(pa.scalar(0, pa.int64()), len(batch))
    revision = batch[rows.revision].cast(pa.int64())
    return pc.if_else(batch[rows.final], revision, -1) if rows.final else revision


def _plain_column(values: list[Any], kind: str) -> pa.Array:
    if kind == "TIMESTAMP":
        return pa.array(values, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return pa.array(values, {"LONG": pa.int64(), "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_()}.get(kind, pa.string()))


def _restore(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(values.type):
        return values.cast(kind)
    plain = plain_type(kind)
    if plain == pa.binary():
        return pa.array([None if v is None else base64.b64decode(v) for v in values.to_pylist()], kind)
    return from_plain(values.cast(plain), kind)
