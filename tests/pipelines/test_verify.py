"""``streamgauge verify`` agrees with a right store, and finds every kind of wrong one."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import zstandard
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.yaml.yaml_transform import expand_pipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.pipelines.job import Job, JobError, load_job
from streamgauge.pipelines.verify import Verdict, verify_job
from streamgauge.pipelines.verify_input import Raw, SplitRange, records
from streamgauge.pipelines.verify_sql import load_raw, make_events
from streamgauge.pipelines.verify_unique import make_unique
from streamgauge.transforms.config import Choice
from streamgauge.transforms.deduplicate import DeduplicateOptions
from streamgauge.transforms.event_time import EventTime, TimeOptions
from streamgauge.transforms.formats import FORMATS
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.sources import CONNECTORS
from streamgauge.transforms.sources.base import RawBatch, SourceError
from tests.examples import examples

JOB = """
pipeline:
  transforms:
    - type: ReadEvents
      config:
        from: {files: "*.ndjson"}
        format: {json: {schema: {ts: "timestamp[ms]", host: string, value: double, n: int64}}}
        time: {field: ts, disorder: 2s}
        error_handling: {output: rejected}
    - type: AggregateWindows
      input: ReadEvents
      config:
        metric: load
        window: {tumbling: {size: 10s, offset: 3s}}
        by: {server: host}
        aggregates: {events_seen: count, mean: {mean: value}, total: {sum: value}, n: {sum: n}, least: {min: value}, latest: {max: ts}}
        late: true
    - {name: Results, type: WriteResults, input: AggregateWindows.results, config: {to: {sqlite: {path: out.db, table: load}}}}
    - {name: Late, type: WriteResults, input: AggregateWindows.late, config: {to: {parquet: {path: late}}}}
    - {name: Rejected, type: WriteResults, input: ReadEvents.rejected, config: {to: {parquet: {path: rejected}}}}
"""
BAD = ["nonsense", '{"ts": 1', '{"ts": "x"}', '{"ts": 1577836800000, "value": "1"}', '{"host": "a"}', "[]", '{"ts": 1577836800000, "n": 1.5}', '{"ts": 1577836800000,}']


def lines(seed: int) -> Iterator[str]:
    """Events of 200 s with disorder beyond the 2 s that the job allows, nulls, a null key, and bad lines."""
    rng = random.Random(seed)
    for index in range(1_500):
        second = index * 0.13 + rng.uniform(-1.5, 0)
        if rng.random() < 0.02:
            second -= 25
        event: dict[str, Any] = {"ts": 1_577_836_800_000 + int(second * 1000), "host": rng.choice(["a", "b", "ü", None]), "n": rng.randrange(-5, 2**60)}
        event["value"] = None if rng.random() < 0.1 else rng.gauss(0, 100)
        yield json.dumps(event)
        if index % 100 == 50:
            yield BAD[index // 100 % len(BAD)]
        if index % 300 == 7:
            yield ""


def run(job: Job) -> None:
    options = PipelineOptions([f"--record_folder={job.record_folder}"])
    with beam.Pipeline(runner=FnApiRunner(), options=options) as pipeline:
        expand_pipeline(pipeline, job.spec)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the job has run."""
    folder = tmp_path_factory.mktemp("finished")
    for name in "xy":
        (folder / f"{name}.ndjson").write_text("\n".join(lines(ord(name))) + "\n")
    (folder / "job.yaml").write_text(JOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(load_job("job.yaml"))
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder."""
    copied = tmp_path / "copy"
    shutil.copytree(finished, copied)
    monkeypatch.chdir(copied)
    monkeypatch.delenv("STREAMGAUGE_HOME", raising=False)
    return copied


def verify() -> Verdict:
    return verify_job(load_job("job.yaml"))


def change(statement: str) -> None:
    with sqlite3.connect("out.db") as connection:
        assert connection.execute(statement).rowcount == 1, statement
    connection.close()


def test_a_right_store_agrees(folder: Path) -> None:
    verdict = verify()
    (results,), (letters,) = verdict.results, verdict.letters
    assert (verdict.agrees, results.differences, letters.differences) == (True, [], [])
    assert verdict.events == 3_000 and verdict.rejected == 30 and letters.compared == 30
    stored = sqlite3.connect("out.db").execute("SELECT count(*), count(DISTINCT window_start), sum(events) FROM load").fetchone()
    assert (results.compared, results.windows) == stored[:2]
    assert results.late == 3_000 - stored[2] > 0
    assert verdict.summary() == f"verify: {stored[1]:,} windows, {stored[0]:,} rows agree"


ROW = "(SELECT rowid FROM load WHERE server = 'a' AND events > 2 AND mean IS NOT NULL AND metric = 'load' LIMIT 1)"
DOCTORED = [
    (f"UPDATE load SET events_seen = events_seen + 1 WHERE rowid = {ROW}", "events_seen"),
    (f"UPDATE load SET n = n - 1 WHERE rowid = {ROW}", "n"),
    (f"UPDATE load SET total = total + 0.001 WHERE rowid = {ROW}", "total"),
    (f"UPDATE load SET mean = NULL WHERE rowid = {ROW}", "mean"),
    (f"UPDATE load SET least = least - 1e-9 WHERE rowid = {ROW}", "least"),
    (f"UPDATE load SET latest = '2020-01-01T00:00:00.000000Z' WHERE rowid = {ROW}", "latest"),
    (f"UPDATE load SET final = 0 WHERE rowid = {ROW}", "final"),
    (f"UPDATE load SET revision = revision + 1 WHERE rowid = {ROW}", "revision"),
    (f"UPDATE load SET window_end = '2020-01-01T00:00:00.000000Z' WHERE rowid = {ROW}", "window_end"),
    (f"DELETE FROM load WHERE rowid = {ROW}", "(row)"),
    (f"INSERT INTO load SELECT metric, window_start, window_end, 'other', {', '.join(['events_seen', 'mean', 'total', 'n', 'least', 'latest'])}, events, revision, final, watermark FROM load WHERE rowid = {ROW}", "(row)"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "column"), DOCTORED, ids=[statement[:40] for statement, _ in DOCTORED])
def test_one_changed_value_is_found(folder: Path, statement: str, column: str) -> None:
    change(statement)
    (results,) = verify().results
    assert (results.differing, {difference.column for difference in results.differences}) == (1, {column})
    assert results.differences[0].key["server"] == ("other" if "INSERT" in statement else "a")


def test_a_row_that_is_there_twice_is_found(folder: Path) -> None:
    with sqlite3.connect("out.db") as connection:
        (index,) = connection.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'load'").fetchone()
        connection.execute(f'DROP INDEX "{index}"')
        connection.execute(f"INSERT INTO load SELECT * FROM load WHERE rowid = {ROW}")
    connection.close()
    (results,) = verify().results
    assert [(difference.column, difference.stored, difference.expected) for difference in results.differences[:1]] == [("(row)", "2 times", "once")]
    assert not results.agrees


def rewrite(part: str, make: Any) -> None:
    """Changes the rows of one Parquet file of a store."""
    path = sorted(path for path in Path(part).glob("*.parquet") if pq.read_metadata(path).num_rows > 1)[0]
    pq.write_table(make(pq.read_table(path)), path)


@pytest.mark.parametrize(
    ("make", "stored"),
    [
        (lambda table: pa.concat_tables([table, table.slice(0, 1)]), "2 times"),
        (lambda table: table.slice(1), "missing"),
        (lambda table: table.set_column(table.column_names.index("position"), "position", pc.add(table["position"], 1)), "missing"),
    ],
    ids=["doubled", "missing", "at another position"],
)
def test_a_wrong_dead_letter_is_found(folder: Path, make: Any, stored: str) -> None:
    rewrite("rejected", make)
    verdict = verify()
    assert verdict.results[0].agrees and not verdict.letters[0].agrees
    assert any(stored in difference.stored for difference in verdict.letters[0].differences)
    assert "dead letters differ" in verdict.summary()


@pytest.mark.parametrize(
    "make",
    [lambda table: table.slice(1), lambda table: pa.concat_tables([table, table.slice(0, 1)]), lambda table: table.set_column(table.column_names.index("position"), "position", pc.add(table["position"], 1))],
    ids=["missing", "doubled", "no event"],
)  # fmt: skip
def test_a_wrong_late_event_is_found(folder: Path, make: Any) -> None:
    rewrite("late", make)
    assert not verify().agrees


def test_late_events_that_were_not_stored_are_told(folder: Path) -> None:
    text = JOB.replace("        late: true\n", "").replace("AggregateWindows.results", "AggregateWindows")
    Path("job.yaml").write_text("\n".join(line for line in text.splitlines() if "name: Late" not in line))
    (results,) = verify().results
    assert not results.agrees
    assert any("late events but stored none" in note for note in results.notes)


def test_an_unfinished_job_is_compared_as_far_as_it_is_complete(folder: Path) -> None:
    record = JobRecord(folder / ".streamgauge/jobs/job/record")
    values = next(values for values in record.all("splits") if values["split"] == "x.ndjson")
    half = (folder / "x.ndjson").read_bytes().index(b"\n", values["position"] // 2) + 1
    newest = max(json.loads(line)["ts"] for line in (folder / "x.ndjson").read_bytes()[:half].splitlines() if line.startswith(b'{"ts": 15') and b'"host"' in line)
    values |= {"position": half, "done": False, "watermark": (newest - 2_000) * 1000 - 1000}
    record.put("splits", values.pop("name"), values, now=True)
    complete = sqlite3.connect("out.db").execute("SELECT count(DISTINCT window_start) FROM load").fetchone()[0]

    def without(pattern: str) -> Verdict:
        with sqlite3.connect("out.db") as connection:
            assert connection.execute(f"DELETE FROM load WHERE window_start {pattern}").rowcount
        return verify()

    verdict = without("> '2020-01-01T00:01:50'")  # beyond what the record says is complete
    assert verdict.agrees, verdict.results[0].differences
    assert 0 < (verdict.results[0].windows or 0) < complete
    assert "1 of 2 splits are read to their end" in verdict.notes[0]
    assert not without("BETWEEN '2020-01-01T00:00:30' AND '2020-01-01T00:00:40'").agrees


def test_what_cannot_be_verified_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("job.yaml").write_text(JOB.replace('files: "*.ndjson"', 'files: "x*"'))
    with pytest.raises(JobError, match=r"the record in .* has files:\*.ndjson, not files:x\*"):
        verify()
    Path("job.yaml").write_text(JOB.replace("sqlite: {path: out.db, table: load}", "stdout: {}"))
    with pytest.raises(JobError, match="go to no store that can be read back; such are parquet, questdb, sqlite"):
        verify()
    Path("job.yaml").write_text(JOB)
    with pytest.raises(JobError, match="run the job first"):
        verify_job(load_job("job.yaml"), folder / "elsewhere")
    Path("out.db").unlink()
    verdict = verify()
    assert not verdict.agrees and "there is no file" in verdict.results[0].notes[-1]


# With Deduplicate

UNIQUE = JOB.replace("    - type: AggregateWindows\n      input: ReadEvents\n", """\
    - {type: Deduplicate, input: ReadEvents, config: {by: [id, host], horizon: 5s}}
    - type: AggregateWindows
      input: Deduplicate
""").replace("n: int64}", "n: int64, id: int64}")


def copied(seed: int, split: str) -> Iterator[str]:
    """Events of which many come again: alike, and within a split, or far apart there, with another value too; a few without an id."""
    rng = random.Random(seed)
    sent: list[dict[str, Any]] = []
    for index in range(600):
        event = {"ts": 1_577_836_800_000 + index * 200 - rng.randrange(1_500), "id": index % 500, "host": rng.choice("ab") + split, "n": index, "value": rng.gauss(0, 1)}
        if rng.random() < 0.05:
            event |= {"id": None, "host": None}
        sent.append(event)
        yield json.dumps(event)
        if rng.random() < 0.3:
            again = sent[-rng.randrange(1, min(len(sent), 20) + 1)]
            if rng.random() < 0.5:
                again = {**again, "value": 1.0, "ts": again["ts"] + rng.choice([-5_001, -5_000, -300, 300, 5_000, 5_001])}
            yield json.dumps(again)
        if rng.random() < 0.1:
            # Alike in both splits.
            yield json.dumps({"ts": 1_577_836_800_000 + index * 200 // 1_000 * 1_000, "id": -(index * 200 // 1_000), "host": "both", "n": 1, "value": 2.0})


@pytest.fixture
def unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a job that deduplicates has run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMGAUGE_HOME", raising=False)
    for name in "xy":
        Path(f"{name}.ndjson").write_text("\n".join(copied(ord(name), name)) + "\n")
    Path("job.yaml").write_text(UNIQUE)
    run(load_job("job.yaml"))
    return tmp_path


def test_a_job_that_deduplicates_agrees(unique: Path) -> None:
    verdict = verify()
    assert (verdict.agrees, verdict.results[0].differences, verdict.results[0].notes) == (True, [], [])
    counted = JobRecord(unique / ".streamgauge/jobs/job/record").all("duplicates")
    dropped, without_id = (sum(values[name] for values in counted) for name in ("events", "without_id"))
    stored = sqlite3.connect("out.db").execute("SELECT sum(events) FROM load").fetchone()[0]
    assert stored + verdict.results[0].late == verdict.events - dropped and dropped > 100 and without_id > 10


@pytest.mark.parametrize("horizon", ["4999ms", "5001ms", "10s"])
def test_another_horizon_gives_other_rows(unique: Path, horizon: str) -> None:
    Path("job.yaml").write_text(UNIQUE.replace("horizon: 5s", f"horizon: {horizon}"))
    assert not verify().agrees


def test_copies_that_nobody_can_choose_between_are_told(unique: Path) -> None:
    for name, value in (("x", 1.0), ("y", 2.0)):
        with Path(f"{name}.ndjson").open("a") as file:
            file.write(json.dumps({"ts": 1_577_836_930_000, "id": -10_000, "host": "both", "n": 1, "value": value}) + "\n")
    for path in ("out.db", "late", ".streamgauge"):
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
    run(load_job("job.yaml"))
    (note,) = verify().results[0].notes
    assert "Deduplicate: 1 ids have copies in several splits that are not alike" in note
    Path("job.yaml").write_text(UNIQUE.replace("mean: {mean: value}, total: {sum: value}, ", "").replace("least: {min: value}, ", ""))
    assert verify().results[0].notes == [], "what differs is not used"


def test_events_that_were_too_old_to_judge_are_told(unique: Path) -> None:
    record = JobRecord(unique / ".streamgauge/jobs/job/record")
    record.put("duplicates", "one", {"by": ["id", "host"], "events": 0, "unjudged": 3, "without_id": 0}, now=True)
    record.put("duplicates", "other", {"by": ["id"], "events": 0, "unjudged": 5, "without_id": 0}, now=True)
    assert verify().results[0].notes == ["Deduplicate: 3 events came too late to be judged and went on: where one is a duplicate, its row differs"]


COPIES = st.lists(st.tuples(st.sampled_from(["x", "y"]), st.integers(0, 12), st.none() | st.integers(0, 1), st.none() | st.just("a"), st.booleans()), max_size=25)


@settings(max_examples=examples(30), deadline=None)
@given(COPIES)
def test_sql_keeps_what_some_order_of_the_splits_would_keep(rows: list[tuple[str, int, int | None, str | None, bool]]) -> None:
    """Events (split, time, two fields of the id, late or not): none of an id within 3 of another is kept, each dropped one has such a partner."""
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE late (split VARCHAR, position BIGINT)")
        connection.execute("CREATE TABLE e (split VARCHAR, position BIGINT, time BIGINT, f0 INTEGER, f1 VARCHAR, reason VARCHAR)")
        for position, (split, time, one, two, late) in enumerate(rows):
            connection.execute("INSERT INTO e VALUES (?, ?, ?, ?, ?, NULL)", [split, position, time, one, two])
            if late:
                connection.execute("INSERT INTO late VALUES (?, ?)", [split, position])
        connection.execute("INSERT INTO e VALUES ('x', 1000, 0, 0, 'a', 'malformed')")
        unknown = make_unique(connection, "u", ["e"], DeduplicateOptions(by=["i", "s"], horizon=3), ["i", "s"], [])
        kept = [position for (position,) in connection.execute("SELECT position FROM u ORDER BY 1").fetchall()]
        assert connection.execute("SELECT * FROM u LIMIT 0").description == connection.execute("SELECT * FROM e LIMIT 0").description
    assert len(set(kept)) == len(kept) and set(kept) <= set(range(len(rows)))
    in_order: list[int] = []
    for index, (_, time, *name, _) in enumerate(rows):
        near = [other for other in kept if list(rows[other][2:4]) == name != [None, None] and abs(rows[other][1] - time) <= 3]
        assert near == [index] if index in kept and name != [None, None] else near or index in kept
        if name == [None, None] or not any(list(rows[other][2:4]) == name and abs(rows[other][1] - time) <= 3 for other in in_order):
            in_order.append(index)
    if len({row[0] for row in rows}) == 1:
        assert (kept, unknown) == (in_order, 0)


# Plain reading, against the connector


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "cut.gz", "damaged.gz", "members.gz"])
def test_files_are_read_as_the_connector_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(name)
    rows = [bytes(rng.randrange(32, 127) for _ in range(rng.choice([0, 1, 5, 60, 200]))) + rng.choice([b"\n", b"\r\n"]) for _ in range(4_000)]
    data = b"".join(rows) + b"the last line has no end"
    packed = {"a.txt": data, "a.txt.zst": zstandard.compress(data), "members.gz": gzip.compress(data[:1000]) + gzip.compress(data[1000:])}.get(name, gzip.compress(data))
    if name == "cut.gz":
        packed = packed[:-5000]
    if name == "damaged.gz":
        packed = packed[:60_000] + b"\x00\xff\x00\xff" * 50 + packed[60_200:]
    Path(name).write_bytes(packed)
    source = Choice(CONNECTORS, "files", CONNECTORS.load("files").Options(path=name, max_line=150))
    (split,) = source.create().splits()
    reader = source.create().open(split, 0)
    expected: list[tuple[int, bytes | None]] = []
    done = False
    while not done:
        batch = reader.read(1_000, 1 << 20, 0.0)
        done = batch.done
        expected += [(position, payload[:-1]) for position, payload in zip(batch.positions.tolist(), batch.payloads.to_pylist(), strict=True)]
        expected += [(error[0], None) for error in batch.errors]
    what = SplitRange(source.create().name, name, 0, batch.next_position, True, None)
    found = [(raw.position, None if raw.reject else raw.payload) for raw in records(source, what)]
    assert found == sorted(expected, key=lambda row: row[0])
    assert len(found) > 500


# SQL against the formats

SCHEMA = {"t": "timestamp", "n": "timestamp[ns]", "s": "timestamp[s]", "i": "int8", "u": "uint64", "d": "double", "f": "float", "b": "bool", "x": "string", "day": "date", "o.p": "int64"}
TIMES = ["2013-01-01", "2013-01-01T05:15:00-05:00", "2013-01-01 05:15", "2013-02-30", "2013-01-01T24:00:00Z", "2013-01-01T00:00:00.1234567+0530", "0001-01-01T00:00:00+01:00", "soon", "", "9999-12-31T23:59:59.9999999Z"]  # fmt: skip
NUMBERS = st.sampled_from(["0", "-0.0", "3.0", "1e2", "127", "128", "-129", "1.5", "18446744073709551615", "18446744073709551616", "-1", "1e400", "3.5e38", "0.1", "1.0000015", "-1.5e-9", "-3e-23", "1e-7", "253402300800"])  # fmt: skip
VALUES = st.one_of(
    st.none().map(lambda _: "null"), st.booleans().map(json.dumps), NUMBERS, st.integers(-300, 300).map(str), st.floats(allow_nan=False, allow_infinity=False, width=32).map(json.dumps),
    st.sampled_from([*TIMES, "1", "true", "NaN", ",]", 'a"b\\']).map(json.dumps), st.text(max_size=5).map(json.dumps),
    st.sampled_from(["[]", "{}", '{"p": 7}', '{"p": "x"}', '{"p": null}', "[1]", "NaN", "nul", '"\ttab"']),
)  # fmt: skip
NAMES = st.sampled_from([name.split(".")[0] for name in SCHEMA] + ["other"])
OBJECTS = st.lists(st.tuples(NAMES, VALUES), max_size=4).map(lambda pairs: "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in pairs) + "}")
PAYLOADS = st.one_of(
    st.none(), OBJECTS.map(str.encode), OBJECTS.map(lambda text: (text[:-1] + ",}").encode()), OBJECTS.map(lambda text: text.encode()[:-1]),
    st.sampled_from([b"", b"[]", b"5", b"null", b"\xff", b'{"x": "\xff"}', b" {} ", b'{"x": "\\ud800"}', b"\xef\xbb\xbf{}"]),
)  # fmt: skip


def compare(name: str, options: dict[str, Any], payloads: list[bytes | None], time: TimeOptions) -> None:
    """The same events with the same values and times, and the same rejects, by SQL and by the format."""
    read = Choice(FORMATS, name, FORMATS.load(name).Options(**options))
    raw = RawBatch(pa.array(payloads, pa.binary()), np.arange(len(payloads), dtype=np.int64) + 1, len(payloads) + 1)
    parsed = read.create().parse(raw)
    parsed = EventTime(time, parsed.events.schema).apply(raw, parsed) if time.field else parsed
    rows = range(len(payloads)) if parsed.rows is None else parsed.rows.tolist()
    events = parsed.events.select(list(options["schema"]))
    columns = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column.cast(pa.int32()) if pa.types.is_date(column.type) else column for column in events.columns]
    expected = dict(zip((row + 1 for row in rows), zip(*(column.to_pylist() for column in columns), strict=True), strict=True))
    stamped = None if time.field else 5
    with duckdb.connect() as connection:
        load_raw(connection, "raw", "s", [Raw(index, payload, stamped) for index, payload in enumerate(payloads, 1)], read)
        make_events(connection, "raw", "events", read, time)
        found = connection.execute("SELECT * EXCLUDE (split, time) FROM events ORDER BY position").fetchall()
        times = connection.execute("SELECT time FROM events WHERE reason IS NULL ORDER BY position").fetchall()
    assert {row[0]: row[1:-1] for row in found if row[-1] is None} == expected, [(payloads[row[0] - 1], row[-1]) for row in found]
    assert {row[0] for row in found if row[-1] is not None} == {index + 1 for index in parsed.rejects.indices}
    if time.field:
        assert [value for (value,) in times] == parsed.events.column("__time").cast(pa.int64()).to_pylist()


@settings(max_examples=examples(70), deadline=None)
@given(st.lists(PAYLOADS, min_size=1, max_size=12))
def test_sql_reads_json_as_the_format_does(payloads: list[bytes | None]) -> None:
    compare("json", {"schema": SCHEMA}, payloads, TimeOptions())


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(PAYLOADS, min_size=1, max_size=12), st.sampled_from([("t", None), ("i", "s"), ("u", "ns"), ("u", "ms"), ("d", "s"), ("n", None)]))
def test_sql_finds_the_event_time_that_the_format_finds(payloads: list[bytes | None], time: tuple[str, Any]) -> None:
    compare("json", {"schema": SCHEMA}, payloads, TimeOptions(field=time[0], unit=time[1], disorder=0))


CELLS = st.one_of(st.sampled_from(["", "NA", " 7 ", "+7", "007", ".5", "5.", "1e2", "TRUE", "False", "0", "nan", '"a,b"', '"a""b"', 'a"b', '"a', "ü", "-1", "300", *TIMES]), st.integers(-300, 300).map(str))


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.lists(CELLS, min_size=4, max_size=6).map(lambda cells: ",".join(cells).encode()), min_size=1, max_size=10))
def test_sql_reads_csv_as_the_format_does(payloads: list[bytes | None]) -> None:
    options = {"schema": {"i": "int8", "d": "double", "b": "bool", "t": "timestamp[s]", "x": "string"}, "nulls": ["", "NA"]}
    compare("csv", options, payloads, TimeOptions())


@pytest.mark.integration
def test_kafka_is_read_from_position_to_position(tmp_path: Path) -> None:
    kafka = pytest.importorskip("kafka")
    from streamgauge.pipelines.services.kafka import KafkaServer

    with KafkaServer(tmp_path / "kafka", progress=False) as server:
        producer = kafka.KafkaProducer(bootstrap_servers=server.brokers, transactional_id="verify")
        producer.init_transactions()
        sent: dict[int, bytes | None] = {}
        for part in range(3):  # offsets have gaps: markers of transactions, records of one that was aborted
            producer.begin_transaction()
            futures = [(producer.send("t", value, key=b"k", partition=0, timestamp_ms=1_000 + part), value) for value in (b"a%d" % part, None, b"c" * 200)]
            producer.flush()
            if part == 1:
                producer.abort_transaction()
                continue
            producer.commit_transaction()
            sent |= {future.get().offset: value for future, value in futures}
        producer.close()
        source = Choice(CONNECTORS, "kafka", CONNECTORS.load("kafka").Options(brokers=server.brokers, topic="t", max_bytes=100, stop="latest"))
        split = next(split for split in source.create().splits() if split.id == "t-0")
        assert split.end is not None and split.end > max(sent) + 1

        def read(start: int, end: int) -> dict[int, Any]:
            return {raw.position: raw for raw in records(source, SplitRange("kafka:t", "t-0", start, end, True, None))}

        everything = read(0, split.end)
        assert {position: raw.payload for position, raw in everything.items()} == sent
        assert [raw.reject for raw in everything.values()] == [None, None, "too_large"] * 2
        assert {raw.stamp for raw in everything.values()} == {1_000_000, 1_002_000}
        first, *_, last = sent
        assert set(read(first + 1, last)) == set(sent) - {first, last}
        assert read(last + 1, split.end) == {}
        gone = SplitRange("kafka:t", "t-0", split.end + 100, split.end + 200, True, None)
        with pytest.raises(SourceError, match="cannot be read again from offset"):
            list(records(source, gone))
