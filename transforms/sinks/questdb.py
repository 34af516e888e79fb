"""QuestDB: a time-series server, written by ILP over HTTP with the official client."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from streamgauge.transforms.config import Config, user_error
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks import questdb_sql as sql
from streamgauge.transforms.sinks.base import Rejected, SinkError
from streamgauge.transforms.sinks.plain import from_plain, plain_type, to_plain
from streamgauge.transforms.sinks.rows_util import REQUEST_SECONDS, RefusedError, patience, retrying, sift

_LAST_TIME = 253_402_300_799_999_999
"""9999-12-31T23:59:59.999999Z in microseconds: QuestDB's last designated timestamp; its first is 1970-01-01."""
_NULL_LONG = -(2**63)
"""QuestDB's null among integers and timestamps."""

_REFUSED_BY_CLIENT = ("BadDataFrame", "InvalidTimestamp", "InvalidUtf8")
"""The client's errors about what rows hold, as against errors of the connection."""
_REFUSED_BY_SERVER = re.compile(r'code"?: ?"?invalid')
_LINE = re.compile(r"error in line (\d+)")
"""In the message, which has the server's JSON as it came or in words. A line is a row, counted from 1."""
_CLIENT_SECONDS = REQUEST_SECONDS / 2
"""The client's time-out holds once for sending and once for the answer."""
_REQUEST_BYTES = 8 * 2**20
"""Of rows in Arrow's form: a request that a server takes in a fraction of its time-out."""
_LARGEST_BYTES = 64 * 2**20
"""Of a request; below what client (100 MiB) and server (256 MiB a text) are made for."""


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


class QuestDb:
    """Sends rows in one request a write (a few for many megabytes), which the server answers when they are in its write-ahead log.

    Delivery: effectively once, for whoever reads ``TABLE``. QuestDB cannot upsert on a condition: DEDUP replaces whole rows, so a
    worker that wakes up after its replacement took over could put old rows over new ones. Hence a read-side rule. Rows go to
    ``TABLE_versions``, whose DEDUP keys are the natural key and ``_version``: the revision of a final row or one that is withdrawn, -1
    for a row that is neither, 0 where rows have no revision. So a key has one early row (the last written) and its final ones (one, and
    one for each correction), however often it is emitted, and a final number is never overwritten by another one. ``TABLE`` is a view
    of the highest ``_version`` of each key, without the keys of which that one is withdrawn; filters on time and dimensions, SAMPLE BY
    and LATEST ON work on it as on a table (tried with 9.3.4; older servers may have no views). Other than in the conditional stores, an
    early row of a higher revision does not hide a final or withdrawn one, and an early row from a worker that wakes up stands until the
    next row of its key. Rows survive the server's death; a power cut only with its ``cairo.commit.mode=sync``.

    Where rows do not overlap (``RowSpec.until``), the view leaves out those that an attempt which was rolled back left behind. That takes all rows of the
    table, about 1 µs for each at every query: there filters on time no longer spare reading the rest.

    A connection that is refused, reset or silent and an HTTP error of the server are tried again for 30 s, each time with a time-out of
    10 s; a request whose answer was lost may come twice, a part of one may be stored: DEDUP makes that no matter.

    Columns: text dimensions and booleans are SYMBOL, other text VARCHAR, integers LONG, floats DOUBLE, timestamps TIMESTAMP, bytes
    base64, dates, uint64 and decimals text, lists and structs JSON text, in which NaN and infinities are null; characters that QuestDB
    forbids in names become ``_``. The smallest int64, NaN and infinities are QuestDB's null. Rows it can never take: a time before 1970
    or after 9999, the smallest int64 in a key, more than 64 MiB, and what the server refuses for a column's type, when someone changed
    the table. Dead letters are refused: their key lacks the time, which DEDUP needs, so a replay would store them twice.
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
        with patience():
            self._server.create(layout)
        self._server.close()  # QuestDB has 256 connections by default: a worker keeps one, for writing
        self._layout = layout

    def write(self, batch: pa.Table) -> list[Rejected]:
        assert self._layout is not None, "open() first"
        batch = batch.cast(self._layout.schema)
        bad = _unstorable(batch, self._layout.rows)
        unstorable = batch.filter(bad)
        why = "its time is not within the years 1970 to 9999, or a key holds the smallest int64, QuestDB's null"
        rejected = [Rejected(unstorable, why, "out_of_range")] if len(unstorable) else []
        with patience():
            for part in _requests(batch.filter(pc.invert(bad))):
                rejected += sift(part, self._send)
        return rejected

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

    def _send(self, batch: pa.Table) -> None:
        """One request, repeated while the server may still take it. Raises RefusedError when it refuses the rows for what they hold."""
        assert self._layout is not None
        questdb, pandas = _client()
        frame = _outgoing(batch, self._layout).to_pandas(types_mapper=pandas.ArrowDtype)
        codes = questdb.QuestDBErrorCode
        by_client = {codes[name] for name in _REFUSED_BY_CLIENT}

        def refused(error: Any) -> bool:
            return error.code in by_client or _REFUSED_BY_SERVER.search(str(error)) is not None

        def may_pass(error: Any) -> bool:
            return isinstance(error, questdb.QuestDBError) and error.code != codes.AuthError and not refused(error)

        with patience() as until:
            try:
                if self._sender is None:
                    self._sender = self._connect(questdb)
                request = self._sender.new_buffer()
                # All text goes as string fields, which the server converts to symbols: its symbol syntax has no empty text and no NUL.
                request.dataframe(frame, table_name=self._layout.store, symbols=False, at=self._layout.names[self._layout.rows.time])
                if len(request) > _LARGEST_BYTES:
                    raise RefusedError(f"it has {len(request)} bytes as a line, more than {_LARGEST_BYTES}", "too_large")
                retrying(may_pass)(self._sender.flush, request)
            except questdb.QuestDBError as error:
                text = str(error).partition("\n")[0]
                if refused(error):
                    line = _LINE.search(text)
                    raise RefusedError(text, at=int(line[1]) - 1 if line and int(line[1]) <= len(batch) else None) from None
                self._disconnect()
                raise SinkError(f"{self.name}: {text}, {until}") from None

    def _connect(self, questdb: Any) -> Any:
        """A sender without the client's own retries, which leave out a refused connection."""
        address = f"{self._url.scheme}::addr={self._url.hostname}:{self._url.port or sql.PORT}"
        account = {"username": self._url.username, "password": self._url.password} if self._url.username else {}
        # Without its allowance of time by the size of the request, which would be minutes.
        timeouts = f"request_timeout={_CLIENT_SECONDS * 1000:.0f};request_min_throughput=0;"
        sender = questdb.Sender.from_conf(f"{address};protocol_version=2;auto_flush=off;retry_timeout=0;{timeouts}", **account)
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


def _requests(batch: pa.Table) -> Iterator[pa.Table]:
    """The rows in parts of about _REQUEST_BYTES."""
    rows = max(1, len(batch) * _REQUEST_BYTES // max(batch.nbytes, 1))
    for start in range(0, len(batch), rows):
        yield batch.slice(start, rows)


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
    if rows.final is None:
        return revision
    stays = pc.or_(batch[rows.final], batch[rows.withdrawn]) if rows.withdrawn else batch[rows.final]
    return pc.if_else(stays, revision, -1)


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
