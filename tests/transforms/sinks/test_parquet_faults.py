"""Parquet under faults: whatever fails in the middle of a write, the files end up as the oracle says, and are whole at any moment."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms.config import Choice
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks import SINKS, rows_util
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.parquet import Parquet, ParquetOptions
from streamgauge.transforms.write import _WriteDoFn
from tests.examples import examples
from tests.transforms.sinks import cases, faults
from tests.transforms.sinks.frozen import frozen

CALLS = ("fsync", "replace", "open")
"""Of the system: os.fsync, os.replace and the opening of a file to be written, which is where a full disk shows."""


def to(folder: Path, partition: str = "hour") -> Choice:
    return Choice(SINKS, "parquet", ParquetOptions(path=str(folder), partition=partition))


def opened(folder: Path, schema: pa.Schema = cases.SCHEMA) -> Parquet:
    sink: Parquet = to(folder).create()
    sink.open(schema, RowSpec.of(schema))
    return sink


@contextmanager
def failing(call: str, fail: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """``fail`` decides for each such call; it is given the real one."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if call == "open":
            real_open = Path.open

            def open_path(self: Path, mode: str = "r", *others: Any) -> Any:
                real = partial(real_open, self, mode, *others)
                return fail(real) if mode == "wb" else real()

            monkeypatch.setattr(Path, "open", open_path)
        else:
            real_call = getattr(os, call)
            monkeypatch.setattr(os, call, lambda *arguments: fail(partial(real_call, *arguments)))
        yield


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    with (folder / f".{name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@settings(max_examples=examples(8), deadline=None)
@given(st.integers(0, 2**32))
def test_the_files_are_right_whatever_fails(seed: int) -> None:
    random = Random(seed)
    bundles = faults.job(random)
    with TemporaryDirectory() as name:
        folder = Path(name)

        def fail(real: Callable[[], Any]) -> Any:
            kind = random.choice(["well", "before", "after", "crash before", "crash after"])
            done = real() if kind in ("well", "after", "crash after") else None
            if kind.startswith("crash"):
                raise faults.Crash
            if kind != "well":
                raise OSError(random.choice([errno.EIO, errno.ENOSPC]), "the disk fails")
            return done

        @contextmanager
        def trouble(worker: _WriteDoFn) -> Iterator[None]:
            with pytest.MonkeyPatch.context() as monkeypatch, broken():
                monkeypatch.setattr(rows_util, "RETRY_SECONDS", 0.03)
                yield
            whole(folder)

        @contextmanager
        def broken() -> Iterator[None]:
            kind = random.choice(["none", "locked", *CALLS])
            files = sorted(path.name for path in folder.glob("*.parquet"))
            if kind == "locked" and files:
                with locked(folder, random.choice(files)):
                    yield
            elif kind in CALLS:
                with failing(kind, fail):
                    yield
            else:
                yield

        letters, _ = faults.drive(to(folder), bundles, random, trouble)
        cases.same(cases.plain(Parquet(to(folder).options).read()), cases.stored(bundles))
        assert whole(folder) == len(cases.stored(bundles))
        assert letters == {}


def whole(folder: Path) -> int:
    """What a reader sees of the files; it would raise for one that is not complete."""
    paths = list(folder.glob("*.parquet"))
    if not paths:
        return 0
    holding = " WHERE NOT withdrawn" if "withdrawn" in pq.read_schema(paths[0]).names else ""
    (found,) = duckdb.sql(f"SELECT count(*) FROM read_parquet('{folder}/**/*.parquet'){holding}").fetchall()
    return int(found[0])


@pytest.mark.parametrize("call", CALLS)
def test_a_full_disk_is_named_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    sink = opened(tmp_path)
    rows = cases.to_table([cases.result(hour=h) for h in range(3)])
    left = [2]

    def full(real: Callable[[], Any]) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real()

    with failing(call, full):
        assert sink.write(rows) == []
    assert len(sink.read()) == 3
    monkeypatch.setattr(rows_util, "RETRY_SECONDS", 0.05)
    left[0] = 10**9
    with failing(call, full), pytest.raises(SinkError, match=r"^parquet:.*No space left on device, tried for [\d.]+ s \(.*\)$"):
        sink.write(cases.to_table([cases.result(revision=2)]))
    assert len(sink.read()) == 3


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_fails_at_once(tmp_path: Path, number: int) -> None:
    sink = opened(tmp_path)
    calls: list[int] = []

    def fail(real: Callable[[], Any]) -> Any:
        calls.append(1)
        raise OSError(number, os.strerror(number))

    with failing("open", fail), pytest.raises(SinkError, match=r"tried for [\d.]+ s"):
        sink.write(cases.to_table([cases.result()]))
    assert len(calls) == 1


OLD = [cases.session(revision=3, count=3), cases.session(hour=1, revision=4, count=4, final=True), cases.session(hour=2, revision=5, final=True)]
NEW = [cases.session(revision=9, count=9, final=True), cases.session(hour=1, revision=6, count=6, final=True), cases.withdrawal(OLD[2], 9)]
"""The third was withdrawn."""


def before_the_lock(stop: Callable[[], None]) -> None:
    real = Parquet._merge

    def merge(self: Parquet, *arguments: Any) -> None:
        stop()
        real(self, *arguments)

    Parquet._merge = merge  # type: ignore[method-assign]


def before_the_rename(stop: Callable[[], None]) -> None:
    """Under the lock, with the old rows merged and ready: where it would do most harm."""
    real = Parquet._replace

    def replace(self: Parquet, *arguments: Any) -> None:
        stop()
        real(self, *arguments)

    Parquet._replace = replace  # type: ignore[method-assign]


@pytest.mark.integration
def test_a_worker_frozen_before_it_has_the_lock_changes_nothing_newer(tmp_path: Path) -> None:
    sink = opened(tmp_path, cases.SESSIONS)
    with frozen(to(tmp_path), OLD, before_the_lock) as worker:
        assert sink.write(cases.to_table(NEW)) == []
        worker.wake()
    cases.same(cases.plain(sink.read()), NEW[:2])


@pytest.mark.integration
@pytest.mark.parametrize("end", ["wake", "kill"])
def test_a_worker_frozen_with_the_lock_holds_the_others_up_and_changes_nothing_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(rows_util, "RETRY_SECONDS", 0.05)
    sink = opened(tmp_path, cases.SESSIONS)
    with frozen(to(tmp_path), OLD, before_the_rename) as worker:
        with pytest.raises(SinkError, match="holds the lock"):
            sink.write(cases.to_table(NEW))
        getattr(worker, end)()
    assert sink.write(cases.to_table(NEW)) == []
    cases.same(cases.plain(sink.read()), NEW[:2])
