"""SQLite under faults: whatever happens to a bundle, the table ends up as the oracle says."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms.config import Choice
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks import SINKS, rows_util, sqlite
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.sqlite import Sqlite, SqliteOptions
from streamgauge.transforms.write import _WriteDoFn
from tests.examples import examples
from tests.transforms.sinks import cases, faults
from tests.transforms.sinks.frozen import frozen


def to(folder: Path) -> Choice:
    return Choice(SINKS, "sqlite", SqliteOptions(path=str(folder / "metrics.db"), table="delay"))


def opened(folder: Path, schema: pa.Schema = cases.SCHEMA) -> Sqlite:
    sink: Sqlite = to(folder).create()
    sink.open(schema, RowSpec.of(schema))
    return sink


def connection(sink: Sqlite) -> sqlite3.Connection:
    assert sink._connection is not None
    return sink._connection


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_util, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.01)


@contextmanager
def locked(folder: Path) -> Iterator[sqlite3.Connection]:
    """Another writer is in the middle of its transaction; it may end it from another thread."""
    with closing(sqlite3.connect(folder / "metrics.db", isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other
        if other.in_transaction:
            other.execute("ROLLBACK")


def refuse_poison(folder: Path, schema: pa.Schema) -> None:
    """A rule of the user's own."""
    opened(folder, schema).close()
    table = "delay_versions" if schema is cases.SESSIONS else "delay"
    with closing(sqlite3.connect(folder / "metrics.db")) as user:
        user.execute(f"CREATE TRIGGER rule BEFORE INSERT ON {table} WHEN NEW.label = 'poison' BEGIN SELECT RAISE(ABORT, 'no poison'); END")


@settings(max_examples=examples(10), deadline=None)
@given(st.integers(0, 2**32))
def test_the_table_is_right_whatever_fails(seed: int) -> None:
    random = Random(seed)
    bundles = faults.job(random, poison={"label": "poison"})
    with TemporaryDirectory() as name:
        folder = Path(name)
        refuse_poison(folder, cases.schema_of(bundles[0]))

        @contextmanager
        def trouble(worker: _WriteDoFn) -> Iterator[None]:
            with pytest.MonkeyPatch.context() as monkeypatch, broken(worker):
                impatient(monkeypatch)
                yield

        @contextmanager
        def broken(worker: _WriteDoFn) -> Iterator[None]:
            kind = random.choice(["none", "locked", "locked for a moment", "full", "I/O error", "commit fails"])
            if kind.startswith("locked"):
                with locked(folder) as other:
                    free = threading.Timer(0.01, other.execute, ["ROLLBACK"])
                    if kind != "locked":
                        free.start()
                    try:
                        yield
                    finally:
                        free.join() if kind != "locked" else None
                return
            sink = worker._sink
            if kind == "none" or not isinstance(sink, Sqlite):
                yield
                return
            real = connection(sink)
            if kind == "full":
                (pages,) = real.execute("PRAGMA page_count").fetchone()
                real.execute(f"PRAGMA max_page_count={pages}")
            else:
                sink._connection = Failing(real, "COMMIT" if kind == "commit fails" else "INSERT", random)  # type: ignore[assignment]
            yield
            # A sink that failed is closed, and a new one opened.
            sink._connection = real
            real.execute("PRAGMA max_page_count=1000000")

        letters, _ = faults.drive(to(folder), bundles, random, trouble)
        good = [[row for row in bundle if row["label"] != "poison"] for bundle in bundles]
        cases.same(cases.plain(Sqlite(to(folder).options).read()), cases.stored(good))
    faults.same_letters(letters, [[row for row in bundle if row["label"] == "poison"] for bundle in bundles])


class Failing:
    """A connection whose statements of one kind fail in the disk, before or after they did something."""

    def __init__(self, real: sqlite3.Connection, kind: str, random: Random) -> None:
        self._real, self._kind, self._random = real, kind, random

    @property
    def in_transaction(self) -> bool:
        return self._real.in_transaction

    def execute(self, statement: str) -> sqlite3.Cursor:
        return self._maybe(statement, lambda: self._real.execute(statement))

    def executemany(self, statement: str, rows: list[tuple[object, ...]]) -> sqlite3.Cursor:
        return self._maybe(statement, lambda: self._real.executemany(statement, rows))

    def _maybe(self, statement: str, run: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        fails = statement.startswith(self._kind) and self._random.random() < 0.7
        if not fails or self._random.random() < 0.5:
            done = run()
        if fails:
            raise sqlite3.OperationalError("disk I/O error")
        return done

    def close(self) -> None:
        self._real.close()


def test_a_full_disk_is_named_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    sink = opened(tmp_path)
    rows = cases.to_table([cases.result(hour=h, label="x" * 2000) for h in range(20)])
    (pages,) = connection(sink).execute("PRAGMA page_count").fetchone()
    connection(sink).execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(SinkError, match=r"^sqlite:.*/delay: database or disk is full, tried for [\d.]+ s \(.*metrics\.db\)$"):
        sink.write(rows)
    monkeypatch.setattr(rows_util, "RETRY_SECONDS", 20)
    space = threading.Timer(0.1, lambda: connection(sink).execute("PRAGMA max_page_count=1000000"))
    space.start()
    assert sink.write(rows) == []
    space.join()
    assert len(sink.read()) == 20


def test_a_file_that_may_not_be_written_fails_at_once(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    connection(sink).execute("PRAGMA query_only = 1")
    statements: list[str] = []
    connection(sink).set_trace_callback(statements.append)
    with pytest.raises(SinkError, match=r"attempt to write a readonly database, tried for [\d.]+ s"):
        sink.write(cases.to_table([cases.result()]))
    assert statements.count("BEGIN IMMEDIATE") == 1
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match="Not a directory|File exists"):
        opened(tmp_path / "file" / "below")


def test_a_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    sink = opened(tmp_path)
    with locked(tmp_path), pytest.raises(SinkError, match=r"database is locked by another writer, tried for [\d.]+ s"):
        sink.write(cases.to_table([cases.result()]))
    assert sink.write(cases.to_table([cases.result()])) == []


def test_rows_that_are_too_large_cost_no_other(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    connection(sink).setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 3000)
    rows = [cases.result(hour=h, label="x" * (5000 if h in (3, 4, 9) else 10)) for h in range(12)]
    rejected = sink.write(cases.to_table(rows))
    assert [row for part in rejected for row in cases.plain(part.rows)] == [rows[h] for h in (3, 4, 9)]
    assert {(part.reason, part.error_type) for part in rejected} == {("string or blob too big", "too_large")}
    connection(sink).setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10**9)
    cases.same(cases.plain(sink.read()), [row for h, row in enumerate(rows) if h not in (3, 4, 9)])


OLD = [cases.session(revision=3, count=3), cases.session(hour=1, revision=4, count=4, final=True), cases.session(hour=2, revision=5, final=True)]
NEW = [cases.session(revision=9, count=9, final=True), cases.session(hour=1, revision=6, count=6, final=True), cases.withdrawal(OLD[2], 9)]
"""The third was withdrawn."""


def before_the_transaction(stop: Callable[[], None]) -> None:
    real = Sqlite._store

    def store(self: Sqlite, batch: object) -> None:
        stop()
        real(self, batch)  # type: ignore[arg-type]

    Sqlite._store = store  # type: ignore[method-assign, assignment]


def before_the_commit(stop: Callable[[], None]) -> None:
    real = Sqlite._transaction

    @contextmanager
    def transaction(self: Sqlite) -> Iterator[sqlite3.Connection]:
        with real(self) as found:
            yield found
            stop()

    Sqlite._transaction = transaction  # type: ignore[method-assign]


@pytest.mark.integration
def test_a_worker_frozen_before_its_transaction_changes_nothing_newer(tmp_path: Path) -> None:
    sink = opened(tmp_path, cases.SESSIONS)
    with frozen(to(tmp_path), OLD, before_the_transaction) as worker:
        assert sink.write(cases.to_table(NEW)) == []
        worker.wake()
    cases.same(cases.plain(sink.read()), NEW[:2])


@pytest.mark.integration
@pytest.mark.parametrize("end", ["wake", "kill"])
def test_a_worker_frozen_in_its_transaction_holds_the_others_up_and_changes_nothing_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    impatient(monkeypatch)
    sink = opened(tmp_path, cases.SESSIONS)
    with frozen(to(tmp_path), OLD, before_the_commit) as worker:
        with pytest.raises(SinkError, match="locked"):
            sink.write(cases.to_table(NEW))
        getattr(worker, end)()
    assert sink.write(cases.to_table(NEW)) == []
    cases.same(cases.plain(sink.read()), NEW[:2])
