import fcntl
import multiprocessing
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from streamgauge.transforms import dead_letter
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks import rows_util
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.parquet import Parquet, ParquetOptions
from tests.examples import examples
from tests.transforms.sinks import cases


def opened(folder: Path, schema: pa.Schema = cases.SCHEMA, partition: str = "day") -> Parquet:
    sink = Parquet(ParquetOptions(path=str(folder), partition=partition))
    sink.open(schema, RowSpec.of(schema))
    return sink


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))


@settings(max_examples=examples(40), deadline=None)
@given(cases.histories())
def test_what_is_stored_is_what_the_rule_says(history: list) -> None:
    with TemporaryDirectory() as folder:
        schema = cases.schema_of(history[0])
        sink = opened(Path(folder), schema)
        for batch in history:
            sink.write(cases.to_table(batch))
        found = Parquet(ParquetOptions(path=folder)).read()
        holding = " WHERE NOT withdrawn" if schema is cases.SESSIONS else ""
        seen = duckdb.sql(f"SELECT count(*), count(*) FILTER (final), sum(revision) FROM read_parquet('{folder}/**/*.parquet'){holding}").fetchall()
    expected = cases.stored(history)
    assert found.schema.equals(schema, check_metadata=True)
    cases.same(cases.plain(found), expected)
    assert seen == [(len(expected), sum(row["final"] for row in expected), sum(row["revision"] for row in expected) if expected else None)]


@pytest.mark.parametrize(("partition", "expected"), [
    ("hour", ["2013-01-01T05.parquet", "2013-01-02T00.parquet", "2013-02-11T21.parquet"]),
    ("day", ["2013-01-01.parquet", "2013-01-02.parquet", "2013-02-11.parquet"]),
    ("month", ["2013-01.parquet", "2013-02.parquet"]),
])
def test_a_replay_adds_no_file(tmp_path: Path, partition: str, expected: list[str]) -> None:
    sink = opened(tmp_path, partition=partition)
    rows = cases.to_table([cases.result(hour=h, final=True) for h in (0, 19, 1000)])
    sink.write(rows)
    before = sink.read()
    sink.write(rows.slice(1))
    sink.write(rows)
    assert files(tmp_path) == expected
    assert sink.read().equals(before)
    assert duckdb.sql(f"SELECT * FROM read_parquet('{tmp_path}/**/*.parquet')").columns == cases.SCHEMA.names


def test_a_withdrawn_row_stays_as_a_mark(tmp_path: Path) -> None:
    sink = opened(tmp_path, cases.SESSIONS)
    row, other = cases.session(hour=1, revision=3, final=True), cases.session(revision=5)
    for rows in ([row], [cases.withdrawal(row, 5), other], [row]):
        sink.write(cases.to_table(rows))
    cases.same(cases.plain(sink.read()), [other])
    found = duckdb.sql(f"SELECT withdrawn, revision, events, count FROM read_parquet('{tmp_path}/*.parquet') ORDER BY window_start").fetchall()
    assert found == [(False, 5, 1, 1), (True, 5, 0, None)]


@pytest.mark.parametrize("schema", [cases.SCHEMA, cases.SESSIONS], ids=["watermark", "withdrawn too"])
def test_files_of_an_earlier_version_get_the_columns_that_they_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: pa.Schema) -> None:
    make = cases.session if schema is cases.SESSIONS else cases.result
    rows = [make(hour=hour) for hour in (0, 30, 60)]
    opened(tmp_path, cases.EARLIER).write(cases.to_table(rows, cases.EARLIER))
    monkeypatch.setattr(rows_util, "RETRY_SECONDS", 0.05)
    with (tmp_path / ".2013-01-02.parquet.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SinkError, match="another process holds the lock"):
            opened(tmp_path, schema)
    assert Parquet(ParquetOptions(path=str(tmp_path))).read().schema.equals(cases.EARLIER, check_metadata=True), "it is done when all files are"
    newer = make(hour=1, revision=2, watermark=cases.START)
    for _ in range(2):
        sink = opened(tmp_path, schema)
        sink.write(cases.to_table([newer], schema))
        cases.same(cases.plain(sink.read()), [*rows, newer])
    assert sink.read().schema.equals(schema, check_metadata=True)
    assert duckdb.sql(f"SELECT * FROM read_parquet('{tmp_path}/*.parquet') ORDER BY window_start").columns == schema.names
    with pytest.raises(ValueError, match="it has the columns"):
        opened(tmp_path, cases.EARLIER)


def letters(split: str, positions: list[int], message: str) -> pa.Table:
    n = len(positions)
    return pa.Table.from_batches([dead_letter.dead_letters(
        stage="read", source="kafka:flights", split=split, positions=pa.array(positions), payloads=pa.array([b"\xff"] * n),
        error_types=["malformed"] * n, messages=[message] * n,
    )])


def test_dead_letters_lie_by_split_and_position(tmp_path: Path) -> None:
    sink = opened(tmp_path, dead_letter.SCHEMA)
    sink.write(letters("flights-0", [999_999, 1_000_000, 5], "first"))
    names = files(tmp_path)
    sink.write(letters("flights-0", [5, 999_999, 1_000_000], "again"))
    assert files(tmp_path) == names and len(names) == 2
    sink.write(letters("flights-1", [5], "other split"))
    assert len(files(tmp_path)) == 3
    found = sorted((row["split"], row["position"], row["message"]) for row in sink.read().to_pylist())
    assert found == [*(("flights-0", position, "again") for position in (5, 999_999, 1_000_000)), ("flights-1", 5, "other split")]


def test_what_a_killed_writer_left_is_ignored_and_overwritten(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    (tmp_path / ".2013-01-01.parquet.unfinished").write_bytes(b"PAR1 half a file")
    assert len(sink.read()) == 0
    sink.write(cases.to_table([cases.result()]))
    assert duckdb.sql(f"SELECT count(*) FROM read_parquet('{tmp_path}/**/*.parquet')").fetchall() == [(1,)]
    assert not list(tmp_path.glob(".*.unfinished"))


def test_another_job_cannot_take_the_folder(tmp_path: Path) -> None:
    opened(tmp_path / "a")
    opened(tmp_path / "a")
    with pytest.raises(ValueError, match="it has the columns"):
        opened(tmp_path / "a", cases.SCHEMA.append(pa.field("more", pa.int64())))
    with pytest.raises(ValueError, match="hold one day each, this job says partition: hour"):
        opened(tmp_path / "a", partition="hour")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.parquet").touch()
    with pytest.raises(ValueError, match="did not make"):
        opened(tmp_path / "b")
    with pytest.raises(ValidationError, match="not a local folder"):
        ParquetOptions(path="gs://bucket/rows")


def test_a_held_lock_and_a_broken_file_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = opened(tmp_path)
    rows = cases.to_table([cases.result()])
    sink.write(rows)
    monkeypatch.setattr(rows_util, "RETRY_SECONDS", 0.05)
    with (tmp_path / ".2013-01-01.parquet.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SinkError, match="another process holds the lock"):
            sink.write(rows)
    (tmp_path / "2013-01-01.parquet").write_bytes(b"broken")
    with pytest.raises(SinkError, match=r"[Pp]arquet"):
        sink.write(rows)


def write_all(folder: Path, seed: int) -> None:
    sink = opened(folder)
    for revision in range(12):
        number = (revision * 7 + seed) % 23
        sink.write(cases.to_table([cases.result(hour=h, revision=number, count=number) for h in range(30)]))


@pytest.mark.integration
def test_several_processes_write_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(write_all, [(tmp_path, seed) for seed in range(3)])
    highest = max((revision * 7 + seed) % 23 for revision in range(12) for seed in range(3))
    found = opened(tmp_path).read()
    assert {(row["revision"], row["count"]) for row in found.to_pylist()} == {(highest, highest)}
    assert len(found) == 30


def test_refused_rows_of_many_keys_lie_in_few_files(tmp_path: Path) -> None:
    sink = opened(tmp_path, dead_letter.SCHEMA)
    keys = [f'{{"metric": "delay", "origin": "{number}"}}' for number in range(500)]
    rows = pa.Table.from_batches([dead_letter.dead_letters(
        stage="write", source="sqlite:m.db/t", split=pa.array(keys), positions=pa.array([7] * 500), payloads=pa.array([b"{}"] * 500),
        error_types=["refused"] * 500, messages=["no"] * 500,
    )])
    for _ in range(2):
        sink.write(rows)
    assert 32 <= len(files(tmp_path)) <= 64
    assert sorted(sink.read()["split"].to_pylist()) == sorted(keys)


def test_columns_that_parquet_cannot_hold(tmp_path: Path) -> None:
    schema = cases.SCHEMA.append(pa.field("x", pa.struct([])))
    with pytest.raises(ValueError, match=r"parquet:.* cannot hold these columns: .*struct"):
        opened(tmp_path / "new", schema)
    assert not (tmp_path / "new").exists()


def test_a_key_without_time_and_position(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("k", pa.string()), pa.field("t", cases.UTC)])
    with pytest.raises(ValueError, match="neither a time nor an integer"):
        Parquet(ParquetOptions(path=str(tmp_path))).open(schema, RowSpec(kind="late", key=("k",), time="t"))


def test_it_travels(tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(Parquet(ParquetOptions(path=str(tmp_path))))).name == f"parquet:{tmp_path}"
