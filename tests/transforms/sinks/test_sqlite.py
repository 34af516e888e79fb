import math
import multiprocessing
import pickle
import sqlite3
from contextlib import closing
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
from tests.examples import examples
from tests.transforms.sinks import cases


def opened(folder: Path, schema: pa.Schema = cases.SCHEMA, table: str = "delay") -> Sqlite:
    sink = Sqlite(SqliteOptions(path=str(folder / "deep" / "metrics.db"), table=table))
    sink.open(schema, RowSpec.of(schema))
    return sink


@settings(max_examples=examples(25), deadline=None)
@given(cases.histories())
def test_what_is_stored_is_what_the_rule_says(history: list) -> None:
    with TemporaryDirectory() as folder:
        schema = cases.schema_of(history[0])
        sink = opened(Path(folder), schema, table='od"d table')
        for batch in history:
            sink.write(cases.to_table(batch))
        sink.close()
        found = Sqlite(SqliteOptions(path=str(Path(folder) / "deep" / "metrics.db"), table='od"d table')).read()
    assert found.schema.equals(schema, check_metadata=True)
    # SQLite keeps a whole REAL as an integer, which has no negative zero.
    expected = [row | {name: row[name] + 0.0 for name in ("mean", "share") if row[name] is not None} for row in cases.stored(history)]
    cases.same(cases.plain(found), expected, as_null=math.isnan, in_json=True)


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


def test_lists_and_structs_are_read_with_sql(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    sketch = {"scale": 3, "side": {"offset": -2, "counts": [4, 2**53 + 1]}, "day": 15706}
    sink.write(cases.to_table([cases.result(tail=[0.5, math.nan, math.inf], seen=[cases.START], sketch=sketch, top=[{"value": 'a"\0é', "count": 7}])]))
    query = """SELECT json_extract(sketch, '$.side.counts[1]'), sketch ->> '$.day', seen ->> '$[0]', top ->> '$[0].count', window_start,
        (SELECT group_concat(coalesce(value, 'null')) FROM json_each(tail)) FROM delay"""
    with closing(sqlite3.connect(tmp_path / "deep" / "metrics.db")) as connection:
        (found,) = connection.execute(query).fetchall()
    start = "2013-01-01T05:00:00.000000Z"
    assert found == (2**53 + 1, "2013-01-01", start, 7, start, "0.5,null,null")


def test_withdrawn_rows_are_not_seen_and_not_put_back(tmp_path: Path) -> None:
    sink = opened(tmp_path, cases.SESSIONS)
    early, joined = cases.session(hour=1, revision=3, final=True), cases.session(hour=0, revision=5, final=True, count=5)
    gone = cases.withdrawal(early, 5)
    for rows in ([early], [joined, gone], [early]):
        sink.write(cases.to_table(rows))
    cases.same(cases.plain(sink.read()), [joined])
    back = cases.session(hour=1, revision=6, final=True)
    with closing(sqlite3.connect(tmp_path / "deep" / "metrics.db")) as connection:
        assert connection.execute("SELECT count(*), sum(events) FROM delay").fetchall() == [(1, 5)]
        marks = "SELECT window_start, events, revision, final FROM delay_versions WHERE withdrawn AND \"count\" IS NULL"
        assert connection.execute(marks).fetchall() == [("2013-01-01T06:00:00.000000Z", 0, 5, 1)]
        sink.write(cases.to_table([back]))
        assert connection.execute("SELECT count(*) FROM delay").fetchall() == [(2,)]
    # What a row holds is a function of its key and revision: of equal ones the last written stands, which is the same.
    sink.write(cases.to_table([cases.withdrawal(back, 6)]))
    cases.same(cases.plain(sink.read()), [joined])
    opened(tmp_path, cases.SESSIONS).close()


@pytest.mark.parametrize("schema", [cases.SCHEMA, cases.SESSIONS], ids=["watermark", "withdrawn too"])
def test_a_table_of_an_earlier_version_gets_the_columns_that_it_lacks(tmp_path: Path, schema: pa.Schema) -> None:
    make = cases.session if schema is cases.SESSIONS else cases.result
    sink = opened(tmp_path, cases.EARLIER)
    sink.write(cases.to_table([make(hour=0), make(hour=1)], cases.EARLIER))
    sink.close()
    for _ in range(2):
        sink = opened(tmp_path, schema)
        sink.write(cases.to_table([make(hour=1, revision=2, watermark=cases.START)], schema))
        assert sink.read().schema.equals(schema, check_metadata=True)
        cases.same(cases.plain(sink.read()), [make(hour=0), make(hour=1, revision=2, watermark=cases.START)])
    with pytest.raises(ValueError, match="is another one: it has the columns"):
        opened(tmp_path, cases.EARLIER)


def test_the_table_below_the_view_must_not_be_another(tmp_path: Path) -> None:
    opened(tmp_path, table="delay_versions").close()
    with pytest.raises(ValueError, match="has a table or index 'delay_versions' that this sink did not make; choose another table or file"):
        opened(tmp_path, cases.SESSIONS)


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


@pytest.mark.integration
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
