import math
import multiprocessing
import pickle
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings

from streamgauge.transforms import dead_letter
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks import SINKS
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.sqlite import Sqlite, SqliteOptions
from tests.transforms.sinks import cases


def opened(folder: Path, schema: pa.Schema = cases.SCHEMA, table: str = "delay") -> Sqlite:
    sink = Sqlite(SqliteOptions(path=str(folder / "deep" / "metrics.db"), table=table))
    sink.open(schema, RowSpec.of(schema))
    return sink


@settings(max_examples=40, deadline=None)
@given(cases.histories())
def test_what_is_stored_is_what_the_rule_says(history: list) -> None:
    with TemporaryDirectory() as folder:
        sink = opened(Path(folder), table='od"d table')
        for batch in history:
            sink.write(cases.to_table(batch))
        sink.close()
        found = Sqlite(SqliteOptions(path=str(Path(folder) / "deep" / "metrics.db"), table='od"d table')).read()
    assert found.schema.equals(cases.SCHEMA, check_metadata=True)
    # SQLite keeps a whole REAL as an integer, which has no negative zero.
    expected = [row if row["mean"] is None else row | {"mean": row["mean"] + 0.0} for row in cases.stored(history)]
    cases.same(cases.plain(found), expected, as_null=math.isnan)


def test_null_is_a_key_value_of_its_own(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    rows = [cases.result(origin=origin, gate=gate, open=flag) for origin in (None, "", "0") for gate in (None, 0) for flag in (None, False)]
    for _ in range(2):
        sink.write(cases.to_table(rows))
    cases.same(cases.plain(sink.read()), rows)


def test_a_person_reads_it_with_sql(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    sink.write(cases.to_table([cases.result(hour=h, count=h, final=True, day=15706) for h in (2, 0, 1)]))
    connection = sqlite3.connect(tmp_path / "deep" / "metrics.db")
    query = 'SELECT window_start, day, "count", final, strftime(\'%H\', window_start) FROM delay ORDER BY window_start'
    assert connection.execute(query).fetchall() == [
        (f"2013-01-01T0{5 + h}:00:00.000000Z", "2013-01-01", h, 1, f"0{5 + h}") for h in range(3)
    ]
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    sink.close()


def test_dead_letters_last_write_wins(tmp_path: Path) -> None:
    sink = opened(tmp_path, dead_letter.SCHEMA, "rejected")

    def letters(message: str) -> pa.Table:
        return pa.Table.from_batches([dead_letter.dead_letters(
            stage="read", source="kafka:flights", split="flights-0", positions=pa.array([7, 8]), payloads=pa.array([b"\xff\x00{", None]),
            error_types=["malformed", "tombstone"], messages=[message, message],
        )])

    sink.write(letters("first"))
    sink.write(letters("again"))
    found = sink.read()
    assert found["payload"].to_pylist() == [b"\xff\x00{", None]
    assert found["message"].to_pylist() == ["again", "again"]


def test_another_job_cannot_take_the_table(tmp_path: Path) -> None:
    opened(tmp_path).close()
    opened(tmp_path).close()
    with pytest.raises(ValueError, match=r"is another one: it has the columns .*label: string"):
        opened(tmp_path, cases.SCHEMA.remove(cases.SCHEMA.get_field_index("label")))
    with pytest.raises(ValueError, match=r"holds results .* these rows are dead_letters"):
        opened(tmp_path, dead_letter.SCHEMA)
    connection = sqlite3.connect(tmp_path / "deep" / "metrics.db")
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(ValueError, match="did not make"):
        opened(tmp_path, table="MINE")
    with pytest.raises(ValueError, match="reserved"):
        opened(tmp_path, table="streamgauge_tables")


def test_columns_that_sqlite_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'origin' and 'ORIGIN'"):
        opened(tmp_path, cases.SCHEMA.append(pa.field("ORIGIN", pa.string())))
    with pytest.raises(ValueError, match="column 'x': values of type null cannot be stored in SQLite"):
        opened(tmp_path, cases.SCHEMA.append(pa.field("x", pa.null())))


def test_no_database(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be taken for one" * 100)
    sink = Sqlite(SqliteOptions(path=str(tmp_path / "text"), table="delay"))
    with pytest.raises(SinkError, match="file is not a database"):
        sink.open(cases.SCHEMA, cases.ROWS)
    with pytest.raises(SinkError, match="there is no file"):
        Sqlite(SqliteOptions(path=str(tmp_path / "none"), table="delay")).read()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    wrong = cases.to_table([cases.result(), cases.result(hour=1)]).drop_columns(["final"])
    with pytest.raises(SinkError):
        sink.write(wrong)
    assert len(sink.read()) == 0
    sink.write(cases.to_table([cases.result()]))
    assert len(sink.read()) == 1


def write_all(folder: Path, seed: int) -> None:
    sink = opened(folder)
    for revision in range(20):
        number = (revision * 7 + seed) % 23
        sink.write(cases.to_table([cases.result(hour=h, revision=number, count=number) for h in range(30)]))
    sink.close()


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(write_all, [(tmp_path, seed) for seed in range(3)])
    sink = opened(tmp_path)
    highest = max((revision * 7 + seed) % 23 for revision in range(20) for seed in range(3))
    assert {(row["revision"], row["count"]) for row in sink.read().to_pylist()} == {(highest, highest)}
    assert len(sink.read()) == 30


def test_it_is_registered_and_travels(tmp_path: Path) -> None:
    sink = pickle.loads(pickle.dumps(SINKS.load("sqlite")(SqliteOptions(path=str(tmp_path / "m.db"), table="t"))))
    assert sink.name.startswith("sqlite:")
    assert sink.guarantee
