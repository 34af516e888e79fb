"""WriteResults: the newest row of each key is stored, one that never can be becomes a dead letter of its bundle."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import FixedWindows, GlobalWindow, TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from streamgauge.transforms import WriteResults, dead_letter, write
from streamgauge.transforms.batch import BatchType
from streamgauge.transforms.config import Choice
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks import SINKS
from streamgauge.transforms.sinks.base import Rejected, SinkError
from streamgauge.transforms.sinks.rows_util import latest
from streamgauge.transforms.sinks.sqlite import SqliteOptions
from streamgauge.transforms.write import _WriteDoFn
from tests.collect import Collected
from tests.transforms.sinks import cases

SPEC = RowSpec("results", key=("k", "w"), time="w", revision="revision", final="final")
ROW = st.fixed_dictionaries({
    "k": st.none() | st.sampled_from(["a", "b", ""]), "w": st.integers(0, 2), "revision": st.integers(0, 3), "final": st.booleans(), "v": st.integers(),
})
SCHEMA = SPEC.attach(pa.schema([("k", pa.string()), ("w", pa.int64()), ("revision", pa.int64()), ("final", pa.bool_()), ("v", pa.decimal128(38))]))


@given(st.lists(ROW.map(lambda row: {**row, "v": row["v"] % 10**9}), max_size=30))
def test_one_row_a_key_the_newest(rows: list[dict[str, Any]]) -> None:
    wanted: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        stored = wanted.get((row["k"], row["w"]))
        if stored is None or (row["revision"], row["final"]) >= (stored["revision"], stored["final"]):
            wanted[row["k"], row["w"]] = row
    found = latest(pa.Table.from_pylist(rows, schema=SCHEMA), SPEC)
    assert RowSpec.of(found.schema) == SPEC
    assert {(row["k"], row["w"]): row for row in found.to_pylist()} == wanted
    assert found.num_rows == len(wanted)


class Memory:
    """A sink that keeps rows, refuses those labelled poison, and is out of order while ``broken``; its copies share all that."""

    guarantee = "none"
    name = "memory"

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.broken: list[Exception] = []
        self.calls: list[str] = []

    def open(self, schema: pa.Schema, rows: RowSpec) -> None:
        self.calls.append("open")

    def write(self, batch: pa.Table) -> list[Rejected]:
        for error in self.broken:
            raise error
        poison = pa.compute.equal(batch.column(batch.schema.get_field_index("label")), "poison").fill_null(False)
        self.rows += cases.plain(batch.filter(pa.compute.invert(poison)))
        bad = batch.filter(poison)
        return [Rejected(bad, "nobody likes it", "nasty")] if bad.num_rows else []

    def close(self) -> None:
        self.calls.append("close")


def worker(sink: Any, folder: Path | None = None) -> _WriteDoFn:
    class To(Choice):
        def create(self) -> Any:
            return sink

    found = _WriteDoFn(To(SINKS, "memory", None), None if folder is None else str(folder))
    found.setup()
    return found


def bundle(dofn: _WriteDoFn, *tables: pa.Table, at: tuple[int, ...] = (5, 3)) -> list[Any]:
    dofn.start_bundle()
    for index, table in enumerate(tables):
        for batch in table.to_batches():
            dofn.process(batch, Timestamp(at[index % len(at)]))
    return list(dofn.finish_bundle())


def rejected(values: list[Any]) -> list[dict[str, Any]]:
    return [row for value in values for row in value.value.to_pylist()]


def test_a_refused_row_is_a_dead_letter_of_its_bundle(tmp_path: Path) -> None:
    sink = Memory()
    dofn = worker(sink, tmp_path)
    good = [cases.result(hour=h, final=h == 0) for h in range(3)]
    bad = cases.result(origin=None, revision=7, final=True, label="poison")
    values = bundle(dofn, cases.to_table([good[0], bad]), cases.to_table(good[1:]))
    assert sorted(row["window_start"] for row in sink.rows) == [row["window_start"] for row in good]
    (value,) = values
    assert value.timestamp == Timestamp(3) and value.windows == (GlobalWindow(),)
    assert value.value.schema.equals(dead_letter.SCHEMA, check_metadata=True)
    (letter,) = rejected(values)
    assert {name: letter[name] for name in ("stage", "source", "position", "error_type", "message")} == {
        "stage": "write", "source": "memory", "position": 7, "error_type": "nasty", "message": "nobody likes it",
    }
    assert json.loads(letter["split"]) == {
        "metric": "delay", "window_start": "2013-01-01T05:00:00.000000Z", "origin": None, "gate": None, "open": None, "day": None, "since": None,
    }
    row = json.loads(letter["payload"])
    assert list(row) == cases.SCHEMA.names and (row["label"], row["count"], row["final"]) == ("poison", 1, True)
    (noted,) = JobRecord(tmp_path).all("sinks")
    assert {name: noted[name] for name in ("sink", "rows", "final", "rejected")} == {"sink": "memory", "rows": 3, "final": 1, "rejected": 1}


def test_a_withdrawn_row_is_no_final_one(tmp_path: Path) -> None:
    sink = Memory()
    told, joined = cases.session(hour=5, final=True), cases.session(final=True, revision=2)
    dofn = worker(sink, tmp_path)
    bundle(dofn, cases.to_table([told]))
    bundle(dofn, cases.to_table([joined, cases.withdrawal(told, 2), told]))
    assert [row["withdrawn"] for row in sink.rows] == [False, False, True]
    (noted,) = JobRecord(tmp_path).all("sinks")
    assert {name: noted[name] for name in ("rows", "final")} == {"rows": 3, "final": 2}
    dofn = worker(Memory(), tmp_path)
    bundle(dofn, cases.to_table([cases.withdrawal(cases.session(label="poison"), 2) | {"label": "poison"}]))
    assert sorted((noted["rows"], noted["final"]) for noted in JobRecord(tmp_path).all("sinks")) == [(0, 0), (3, 2)]


def test_a_replay_rejects_under_the_same_key() -> None:
    rows = [cases.result(hour=h, revision=h, label="poison") for h in range(4)]
    keys = []
    for cut in ([rows], [rows[:1], rows[1:]], [rows[2:], rows[:2]]):
        letters = rejected(bundle(worker(Memory()), *map(cases.to_table, cut)))
        keys.append(sorted(tuple(letter[name] for name in dead_letter.ROWS.key) for letter in letters))
    assert keys[0] == keys[1] == keys[2] and len(set(keys[0])) == 4


def test_late_events_have_no_revision() -> None:
    spec = RowSpec(kind="late", key=("user", "time"), time="time")
    schema = spec.attach(pa.schema([("user", pa.string()), ("time", cases.UTC), ("label", pa.string()), ("raw", pa.binary())]))
    table = pa.table([["a"], pa.array([cases.START]).cast(cases.UTC), ["poison"], [b"\xff"]], schema=schema)
    (letter,) = rejected(bundle(worker(Memory()), table))
    assert letter["position"] == 0 and json.loads(letter["split"]) == {"user": "a", "time": "2013-01-01T05:00:00.000000Z"}
    assert json.loads(letter["payload"])["raw"] == {"base64": "/w=="}


def test_a_row_without_a_value_that_its_schema_promises_is_refused() -> None:
    sink = Memory()
    rows = [cases.result(hour=h) for h in range(3)]
    rows[1]["events"] = None
    (letter,) = rejected(bundle(worker(sink), cases.to_table(rows)))
    assert (letter["error_type"], letter["message"]) == ("incomplete", "the column 'events' has no value, which its schema promises")
    cases.same(sink.rows, [rows[0], rows[2]])


def test_a_failed_bundle_leaves_nothing_and_the_next_try_opens_the_sink_anew() -> None:
    sink = Memory()
    dofn = worker(sink)
    sink.broken.append(SinkError("down"))
    with pytest.raises(SinkError, match="down"):
        bundle(dofn, cases.to_table([cases.result(label="poison"), cases.result(hour=1)]))
    assert sink.calls == ["open", "close"]
    sink.broken.clear()
    assert bundle(dofn, cases.to_table([cases.result(hour=2)])) == []
    assert [row["window_start"] for row in sink.rows] == [cases.START + 2 * cases.HOUR]
    assert sink.calls == ["open", "close", "open"]
    dofn.teardown()
    dofn.teardown()
    assert sink.calls == ["open", "close", "open", "close"]


def test_a_failed_bundle_leaves_no_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "FLUSH_ROWS", 1)
    sink = Memory()
    dofn = worker(sink)
    dofn.start_bundle()
    dofn.process(*cases.to_table([cases.result(label="poison")]).to_batches(), Timestamp(0))
    sink.broken.append(SinkError("down"))
    with pytest.raises(SinkError):
        dofn.process(*cases.to_table([cases.result(hour=1)]).to_batches(), Timestamp(0))
    sink.broken.clear()
    assert bundle(dofn, cases.to_table([cases.result(hour=2)])) == []


def test_a_dead_letter_that_is_refused_fails_in_one_line() -> None:
    class Full(Memory):
        def write(self, batch: pa.Table) -> list[Rejected]:
            return [Rejected(batch, "too large for me", "too_large")]

    letters = dead_letter.dead_letters(
        stage="read", source="kafka:f", split="f-0", positions=pa.array([5]), payloads=pa.array([b"x"]), error_types=["malformed"], messages=["no"]
    )
    with pytest.raises(ValueError, match=r"^memory can never take the dead letter stage='read', source='kafka:f', split='f-0', position='5': too large for me$"):
        bundle(worker(Full()), pa.Table.from_batches([letters]))


@pytest.fixture
def to(tmp_path: Path) -> dict[str, Any]:
    """An SQLite table with a rule of the user's own."""
    sink = SINKS.load("sqlite")(SqliteOptions(path=str(tmp_path / "m.db"), table="delay"))
    sink.open(cases.SCHEMA, cases.ROWS)
    sink.close()
    with closing(sqlite3.connect(tmp_path / "m.db")) as user:
        user.execute("CREATE TRIGGER rule BEFORE INSERT ON delay WHEN NEW.label = 'poison' BEGIN SELECT RAISE(ABORT, 'no poison'); END")
    return {"sqlite": {"path": str(tmp_path / "m.db"), "table": "delay"}}


ROWS = [cases.result(hour=h, revision=h + 1, label="poison" if h % 3 == 0 else None) for h in range(10)]


def run(folder: Path, transform: beam.PTransform, window: int | None = None) -> tuple[Any, list[dict[str, Any]]]:
    """The pipeline's result, and what came out of the output ``refused``."""
    collected = Collected()
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([f"--record_folder={folder}"]))
    batches = [batch for row in ROWS for batch in cases.to_table([row]).to_batches()]
    read = pipeline | beam.Create([0]) | beam.FlatMap(lambda _: [TimestampedValue(batch, 100 + at) for at, batch in enumerate(batches)])
    if window is not None:
        read = read | beam.WindowInto(FixedWindows(window))
    read.element_type = BatchType(cases.SCHEMA)
    out = read | transform
    if out is not None:
        (name, letters), = out.items()
        assert name == "refused" and letters.element_type == BatchType(dead_letter.SCHEMA)
        # A shuffle would show elements in windows that are not the collection's.
        _ = letters | beam.Reshuffle() | collected
    result = pipeline.run()
    result.wait_until_finish()
    return result, collected.rows


def counter(result: Any, name: str) -> int:
    found = result.metrics().query(beam.metrics.MetricsFilter().with_name(name))["counters"]
    return sum(metric.committed for metric in found)


@pytest.mark.parametrize("window", [None, 4])
def test_refused_rows_leave_by_the_named_output(tmp_path: Path, to: dict[str, Any], window: int | None) -> None:
    result, letters = run(tmp_path / "job", WriteResults(to=to, error_handling={"output": "refused"}), window)
    assert sorted(letter["position"] for letter in letters) == [1, 4, 7, 10]
    assert {letter["message"] for letter in letters} == {"no poison"}
    assert (counter(result, "rows_written"), counter(result, "rows_rejected")) == (6, 4)
    assert not (tmp_path / "job" / "dead_letters").exists()


def test_refused_rows_have_a_place_even_when_nobody_asks(tmp_path: Path, to: dict[str, Any]) -> None:
    for _ in range(2):
        run(tmp_path / "job", WriteResults(to=to))
    found = duckdb.sql(f"SELECT stage, source, position FROM read_parquet('{tmp_path}/job/dead_letters/**/*.parquet') ORDER BY position").fetchall()
    assert found == [("write", f"sqlite:{tmp_path}/m.db/delay", position) for position in (1, 4, 7, 10)]
    with closing(sqlite3.connect(tmp_path / "m.db")) as reader:
        assert reader.execute("SELECT count(*) FROM delay").fetchone() == (6,)
