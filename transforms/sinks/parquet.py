"""Parquet: the embedded warehouse, a folder of files that DuckDB, Polars, pandas and Spark read as it stands."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from streamgauge.transforms.config import Config, user_error
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks.base import Rejected, SinkError
from streamgauge.transforms.sinks.rows_util import current, difference, filled, lacking, latest, patience, retrying

_FILE_NAMES = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}
_POSITIONS_A_FILE = 1_000_000
_SCHEMA_FILE = "_streamgauge.schema"
_PARTITION_KEY = b"streamgauge.partition"
_SPLIT_FILES = 64
"""In how many files the rows without a time in their key lie, for each step of positions: splits may be many, as each refused row is one."""
_FOR_GOOD = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV)
"""Errors of the system that do not pass by themselves; a full disk, a failing one and one that is busy may."""


class ParquetOptions(Config):
    """A folder of Parquet files, merged by natural key."""

    path: str = Field(min_length=1, description="The folder; made when missing. On a local disk, or one whose file locks work.")
    partition: Literal["hour", "day", "month"] = Field(
        "day", description="How much time a file holds. A write rewrites the files it touches: choose hour for many keys or short windows."
    )

    @field_validator("path")
    @classmethod
    def _local(cls, path: str) -> str:
        if "://" in path:
            raise user_error(f"{path!r} is not a local folder")
        return path


class Parquet:
    """Merges rows into one file a period of time; several processes may write at once.

    Delivery: effectively once. A row's file is a function of its key (the period its time falls into; for dead letters, whose
    time is no part of the key, the split and the position), and a file is read, merged by key and revision, and replaced
    under a lock: a replay, and a worker that wakes up after its replacement took over, rewrite the same rows and never put
    older ones over newer ones. Files are replaced by an atomic rename after a sync, so that
    ``SELECT * FROM read_parquet('FOLDER/**/*.parquet')`` is right at any time. A write of several periods is atomic a file. A worker
    frozen while it holds the lock of a file makes others that need the file fail their bundles until it wakes up or dies (the kernel then
    frees the lock); it cannot write without it.

    Waits for locks, and for a disk that is full or fails, for 30 s; a folder that may not be written fails at once. It takes every
    row: what Parquet cannot hold is a matter of column types, which ``open`` refuses.

    Layout: ``FOLDER/2013-01-01.parquet`` (UTC) and no columns that are not the row's own; the statistics of each file let engines
    skip it by time. Locks and unfinished files start with a dot, the schema is in ``_streamgauge.schema``. Lists and structs stay what they are.

    Rows that can be withdrawn have a column ``withdrawn``, and a withdrawn one stays as a mark: read them with ``WHERE NOT withdrawn``.
    Where rows do not overlap (``RowSpec.until``), what an attempt that was rolled back left behind is for the reader to leave out, as ``read`` does.
    """

    Options = ParquetOptions
    guarantee: ClassVar[str] = (
        "A replay leaves the rows as they were: a row's file is a function of its key, files are merged by key and revision under a lock, "
        "and a write returns when the new files are synced and renamed."
    )

    def __init__(self, options: ParquetOptions) -> None:
        self._folder = Path(options.path).expanduser().absolute()
        self._partition = options.partition
        self.name = f"parquet:{options.path}"
        self._schema: pa.Schema | None = None
        self._rows: RowSpec | None = None

    def open(self, schema: pa.Schema, rows: RowSpec) -> None:
        if rows.time not in rows.key and not any(pa.types.is_integer(schema.field(name).type) for name in rows.key):
            raise ValueError(f"{self.name}: the key ({', '.join(rows.key)}) has neither a time nor an integer to put rows in files by")
        self._rows, self._schema = rows, rows.attach(schema)
        try:
            pq.write_table(schema.empty_table(), pa.BufferOutputStream())
        except pa.ArrowException as error:
            raise ValueError(f"{self.name} cannot hold these columns: {error}") from None
        marked = self._schema.with_metadata({**self._schema.metadata, _PARTITION_KEY: self._partition.encode()})
        with self._errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            retrying(_may_pass)(self._mark, marked)

    def write(self, batch: pa.Table) -> list[Rejected]:
        assert self._schema is not None and self._rows is not None, "open() first"
        with self._errors():
            for name, part in _by_file(batch.cast(self._schema), self._rows, self._partition):
                retrying(_may_pass)(self._merge, f"{name}.parquet", part, self._rows)
        return []

    def close(self) -> None:
        pass

    def read(self) -> pa.Table:
        """The rows, file by file. Works without ``open``."""
        with self._errors():
            if not (self._folder / _SCHEMA_FILE).exists():
                raise SinkError(f"{self.name}: there are no rows of ours in {self._folder}")
            stored = self._stored_schema()
            schema = RowSpec.of(stored).attach(stored)
            files = [_load(path, schema) for path in sorted(self._folder.glob("*.parquet"))]
            return current(pa.concat_tables([schema.empty_table(), *files]), RowSpec.of(schema))

    def _mark(self, schema: pa.Schema) -> None:
        with self._locked(_SCHEMA_FILE):
            if (self._folder / _SCHEMA_FILE).exists():
                stored = self._stored_schema()
                self._check(stored, schema)
                if lacking(stored.names, schema):
                    self._extend(schema)
            elif any(self._folder.glob("*.parquet")):
                raise ValueError(f"{self._folder} has Parquet files that this sink did not make; choose another folder")
            else:
                self._replace(_SCHEMA_FILE, schema.serialize().to_pybytes())

    def _extend(self, schema: pa.Schema) -> None:
        """Gives the files that an earlier version made the columns that they lack: engines want one schema in all files. What has been done stays
        done when it fails half-way."""
        for path in self._folder.glob("*.parquet"):
            if lacking(pq.read_schema(path).names, schema):
                with self._locked(path.name):
                    self._store(path.name, _load(path, RowSpec.of(schema).attach(schema)))
        self._replace(_SCHEMA_FILE, schema.serialize().to_pybytes())

    def _merge(self, name: str, part: pa.Table, rows: RowSpec) -> None:
        path = self._folder / name
        with self._locked(name):
            if path.exists():
                part = pa.concat_tables([_load(path, part.schema), part])
            # Sorted by time, so that the statistics of row groups are narrow too.
            self._store(name, latest(part, rows).sort_by(rows.time))

    def _store(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self._replace(name, sink.getvalue())

    def _replace(self, name: str, content: bytes | pa.Buffer) -> None:
        """Atomic and durable. The caller holds the lock of ``name``, so what an earlier writer left unfinished is overwritten."""
        unfinished = self._folder / f".{name}.unfinished"
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._folder / name)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Held by one process at a time, and freed by the kernel when it dies. Raises BlockingIOError when another one has it."""
        with (self._folder / f".{name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def _stored_schema(self) -> pa.Schema:
        return pa.ipc.read_schema(pa.py_buffer((self._folder / _SCHEMA_FILE).read_bytes()))

    def _check(self, stored: pa.Schema, wanted: pa.Schema) -> None:
        problem = difference(stored, wanted)
        old, new = (schema.metadata[_PARTITION_KEY].decode() for schema in (stored, wanted))
        if not problem and old != new:
            problem = f"its files hold one {old} each, this job says partition: {new}"
        if problem:
            raise ValueError(f"the rows in {self._folder} are others: {problem}; choose another folder")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with patience() as until:
            try:
                yield
            except BlockingIOError:
                raise SinkError(f"{self.name}: another process holds the lock of a file, {until} ({self._folder})") from None
            except (OSError, pa.ArrowException) as error:
                raise SinkError(f"{self.name}: {error}, {until} ({self._folder})") from None


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _FOR_GOOD



def _load(path: Path, schema: pa.Schema) -> pa.Table:
    """A file's rows; one that an earlier version made may lack columns."""
    return filled(pq.ParquetFile(path).read(), schema)


def _by_file(batch: pa.Table, rows: RowSpec, partition: str) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each file, with its name: a pure function of the key."""
    names = _period_names(batch, rows, partition) if rows.time in rows.key else _position_names(batch, rows)
    encoded = names.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
    for code, name in enumerate(encoded.dictionary.to_pylist()):
        yield name, batch.take(pa.array(order[bounds[code] : bounds[code + 1]]))


def _period_names(batch: pa.Table, rows: RowSpec, partition: str) -> pa.StringArray:
    # Text is made of each hour or day, not of each row.
    periods = pc.floor_temporal(batch[rows.time].combine_chunks(), unit=partition).dictionary_encode(null_encoding="encode")
    return pc.strftime(periods.dictionary, _FILE_NAMES[partition]).fill_null("null").take(periods.indices)


def _position_names(batch: pa.Table, rows: RowSpec) -> pa.StringArray:
    """One of _SPLIT_FILES by all but the last integer of the key, and that integer (a position) in steps."""
    position = [name for name in rows.key if pa.types.is_integer(batch.schema.field(name).type)][-1]
    others = [batch[name].cast(pa.string()) for name in rows.key if name != position]
    text = pc.binary_join_element_wise(*others, "\x1f", null_handling="replace", null_replacement="\x00").combine_chunks()
    encoded = text.dictionary_encode()
    splits = pa.array([_split_file(value) for value in encoded.dictionary.to_pylist()], pa.string())
    steps = np.floor_divide(batch[position].fill_null(0).to_numpy(), _POSITIONS_A_FILE).astype(str)
    return pc.binary_join_element_wise(splits.take(encoded.indices), pa.array(steps, pa.string()), "-")


def _split_file(value: str) -> str:
    return f"{hashlib.blake2b(value.encode(), digest_size=1).digest()[0] % _SPLIT_FILES:02x}"
