"""What attempts that were rolled back wrote is not seen, whatever they saw and in whatever order: a reader finds what all events say."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamgauge.transforms.rows import CUT, RowSpec
from streamgauge.transforms.sinks.parquet import Parquet, ParquetOptions
from streamgauge.transforms.sinks.rows_util import current, latest
from streamgauge.transforms.sinks.sqlite import Sqlite, SqliteOptions
from tests.examples import examples
from tests.transforms.failed_sessions import history
from tests.transforms.test_sessions import MS, Key, Store, Task, oracle, session_metric

SCHEMA = session_metric().result_schema
SPEC = RowSpec.of(SCHEMA)
SEEDS = st.integers(0, 2**32)


def shown(table: pa.Table) -> dict[Key, dict[str, Any]]:
    values = ("total", "least", "n", "events")
    rows = {Store.key(row): {"window_end": round(row["window_end"].timestamp() * 1e6), **{name: row[name] for name in values}} for row in table.to_pylist()}
    assert len(rows) == len(table), "one row a key"
    assert all(table["final"].to_pylist())
    return rows


@settings(deadline=None, max_examples=examples(40))
@given(SEEDS)
def test_the_rows_that_hold(seed: int) -> None:
    written, expected = history(seed)
    assert shown(current(latest(pa.Table.from_batches(written, SCHEMA), SPEC), SPEC)) == expected


@settings(deadline=None, max_examples=examples(25))
@given(SEEDS)
def test_in_sqlite(seed: int) -> None:
    written, expected = history(seed)
    with TemporaryDirectory() as folder:
        sink = Sqlite(SqliteOptions(path=f"{folder}/m.db", table="s"))
        sink.open(SCHEMA, SPEC)
        for batch in written:
            assert sink.write(pa.Table.from_batches([batch])) == []
        assert shown(sink.read()) == expected
        sink.close()


IN_DUCKDB = """
    SELECT * FROM read_parquet('{folder}/*.parquet') r WHERE NOT withdrawn AND NOT EXISTS (
        SELECT 1 FROM read_parquet('{folder}/*.parquet') o WHERE NOT o.withdrawn AND o.metric = r.metric AND o.key IS NOT DISTINCT FROM r.key
        AND o.window_start < r.window_start AND o.window_end > r.window_start AND o.revision > r.revision)
"""
"""As in docs/how-to/read-results.md."""


@settings(deadline=None, max_examples=examples(10))
@given(SEEDS)
def test_in_parquet(seed: int) -> None:
    written, expected = history(seed)
    with TemporaryDirectory() as folder:
        sink = Parquet(ParquetOptions(path=folder, partition="hour"))
        sink.open(SCHEMA, SPEC)
        for batch in written:
            sink.write(pa.Table.from_batches([batch]))
        assert shown(sink.read()) == expected
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            assert shown(connection.execute(IN_DUCKDB.format(folder=folder)).to_arrow_table()) == expected


def test_a_start_that_the_replay_never_tells() -> None:
    """The first attempt told 6 ms, which 3 ms joins to 0 ms before the second one tells anything."""
    first, second = Task(None), Task(None)
    first.bundle([[(6 * MS, "a", 1)]])
    first.advance(20 * MS)
    second.bundle([[(time * MS, "a", 1) for time in (0, 3, 6)]])
    second.advance(20 * MS)
    rows = pa.concat_tables([to_table(task.store) for task in (second, first)])
    assert len(current(rows, RowSpec("results", SPEC.key, SPEC.time, "revision", "final", "withdrawn"))) == 2
    assert shown(current(rows, SPEC)) == oracle(second.accepted, None)


@pytest.mark.parametrize("many", [1, 100])
def test_a_session_that_turns_out_to_be_cut(many: int) -> None:
    """However many events the first attempt saw around the border, what it told is replaced: both starts hold, and the one behind the border is not hidden."""
    longest = 10 * MS
    first, second = Task(longest, emit_every=0), Task(longest)
    around = [(15 * MS, "a", 1), (18 * MS, "a", 1), *[(20 * MS + 100, "a", 1)] * many]
    first.bundle([around])
    first.period()
    second.bundle([[(time * MS, "a", 1) for time in (15, 18, 21, 24, 27)]])
    second.advance(longest * 2)
    second.bundle([[(20 * MS + 100, "a", 1)] * many])
    second.advance(100 * MS)
    rows = latest(pa.concat_tables([to_table(second.store), to_table(first.store)]), SPEC)
    assert shown(current(rows, SPEC)) == oracle(second.accepted, longest)
    assert min(rows["revision"].to_pylist()) > CUT


def to_table(store: Store) -> pa.Table:
    return pa.Table.from_pylist(list(store.rows.values()), SCHEMA)


# The rule alone, on rows that no job makes

SPANS = st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 30), st.integers(1, 12), st.integers(0, 5), st.booleans()), max_size=30,
                 unique_by=lambda row: row[:2])  # fmt: skip


def rows_of(spans: list[tuple[str | None, int, int, int, bool]]) -> pa.Table:
    columns = {
        "metric": ["m"] * len(spans), "key": [key for key, *_ in spans], "window_start": [MS * start for _, start, *_ in spans],
        "window_end": [MS * (start + length) for _, start, length, *_ in spans], "revision": [revision for *_, revision, _ in spans],
        "withdrawn": [gone for *_, gone in spans], "final": [True] * len(spans), "events": [1] * len(spans),
    }  # fmt: skip
    return pa.table(
        [pa.array(columns.get(field.name, [None] * len(spans)), pa.int64() if pa.types.is_timestamp(field.type) else field.type).cast(field.type) for field in SCHEMA],
        schema=SCHEMA,
    )


@example([("a", 0, 12, 5, False), ("a", 1, 1, 4, False), ("a", 2, 1, 4, False), ("a", 3, 1, 4, False)])
@given(SPANS)
def test_the_rule_row_by_row(spans: list[tuple[str | None, int, int, int, bool]]) -> None:
    held = {
        (key, start)
        for key, start, _, revision, gone in spans
        if not gone and not any(k == key and not g and s < start < s + length and r > revision for k, s, length, r, g in spans)
    }
    found = current(rows_of(spans), SPEC)
    assert {(key, start // MS) for key, start in zip(found["key"].to_pylist(), found["window_start"].cast(pa.int64()).to_pylist(), strict=True)} == held


def test_sqlite_looks_at_no_other_rows(tmp_path: Path) -> None:
    """However long the history of a key is: the statements go by the index to the rows around."""
    sink = Sqlite(SqliteOptions(path=str(tmp_path / "m.db"), table="s"))
    sink.open(SCHEMA, SPEC)
    sink.write(rows_of([("a", start, 1, 1, False) for start in range(0, 3000, 2)]))
    assert sink._connection is not None and sink._withdraw is not None
    row = [value.as_py() if not pa.types.is_timestamp(value.type) else "1970-01-01T00:00:01.000000Z" for value in (column[0] for column in rows_of([("a", 1000, 1, 1, False)]).columns)]
    for statement, values in ((sink._upsert.one, row), (sink._withdraw.statement, row[: sink._withdraw.count])):
        plan = " ".join(str(step[3]) for step in sink._connection.execute(f"EXPLAIN QUERY PLAN {statement}", values))
        assert "USING INDEX s_versions_key (metric=? AND <expr>=? AND window_start" in plan and "SCAN s_versions" not in plan
    sink.close()


def test_many_rows_of_one_key() -> None:
    """One step for all but those that overlap: a million rows are no million steps."""
    starts = np.arange(0, 400_000, 2)
    rows = rows_of([("a", 0, 1, 1, False)]).take(pa.array(np.zeros(len(starts), np.int64)))
    stamps = [pa.array(starts * MS + more).cast(SCHEMA.field("window_start").type) for more in (0, 2 * MS)]
    for name, values in zip(("window_start", "window_end"), stamps, strict=True):
        rows = rows.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), values)
    assert len(current(rows, SPEC)) == len(rows)
