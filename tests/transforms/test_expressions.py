"""SQL expressions: what they answer, against plain Python on hostile events, and what is refused."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.expressions import Condition, EvaluationError, Query
from streamgauge.transforms.partials import Partials
from tests.examples import examples

pytestmark = pytest.mark.filterwarnings("ignore:Arrow output on a DB-API result")

SCHEMA = pa.schema([("n", pa.int64()), ("x", pa.float64()), ("s", pa.string()), ("b", pa.bool_()), ("user.id", pa.int32()), ("select", pa.int8())])
INTEGERS = st.none() | st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 500]) | st.integers(-(2**63), 2**63 - 1)
REALS = st.none() | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1e308]) | st.floats()
TEXTS = st.none() | st.sampled_from(["", "a", "A", "ab", "12", " 7 ", "é", "e\u0301", "\U0001f600", "%", "a\nb", "'"]) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
Row = dict[str, Any]
ROWS = st.lists(st.fixed_dictionaries({"n": INTEGERS, "x": REALS, "s": TEXTS, "b": st.none() | st.booleans()}), max_size=12)


def _and(left: bool | None, right: bool | None) -> bool | None:
    return False if left is False or right is False else None if left is None or right is None else True


def _above(value: float | None, limit: float) -> bool | None:
    """NaN is above all other numbers, as in DuckDB and PostgreSQL."""
    return None if value is None else math.isnan(value) or value > limit


CONDITIONS: dict[str, Callable[[Row], bool | None]] = {
    "n >= 500": lambda r: None if r["n"] is None else r["n"] >= 500,
    "x > 1": lambda r: _above(r["x"], 1),
    "x > 1 AND b": lambda r: _and(_above(r["x"], 1), r["b"]),
    "NOT b": lambda r: None if r["b"] is None else not r["b"],
    "n IS NULL OR s = 'a'": lambda r: r["n"] is None or r["s"] == "a",
    "s LIKE 'a%'": lambda r: None if r["s"] is None else r["s"].startswith("a"),
    "length(s) BETWEEN 1 AND 2 -- in characters": lambda r: None if r["s"] is None else 1 <= len(r["s"]) <= 2,
    "coalesce(n, 0) % 2 = 0": lambda r: (r["n"] or 0) % 2 == 0,
    "CASE WHEN b THEN n > 0 ELSE x > 1 END": lambda r: (None if r["n"] is None else r["n"] > 0) if r["b"] else _above(r["x"], 1),
    "n + 1 > 0": lambda r: None if r["n"] is None else r["n"] + 1 > 0,  # DuckDB compares n with -1, so nothing overflows
    "isfinite(x) AND x > 1": lambda r: None if r["x"] is None else math.isfinite(r["x"]) and r["x"] > 1,
    "s IN ('a', '') ": lambda r: None if r["s"] is None else r["s"] in ("a", ""),
}
MADE = {sql: Condition(SCHEMA, sql) for sql in CONDITIONS}


def batch(rows: list[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"user.id": 7, "select": 1, **row} for row in rows], schema=SCHEMA)


@settings(max_examples=examples(50), deadline=None)
@given(ROWS, st.integers(0, 3))
def test_a_condition_is_true_where_python_says_so(rows: list[Row], skipped: int) -> None:
    events = batch(rows).slice(skipped)
    for sql, oracle in CONDITIONS.items():
        found = MADE[sql](events)
        assert found.null_count == 0 and found.type == pa.bool_()
        assert found.to_pylist() == [oracle(row) is True for row in rows[skipped:]], sql


def test_a_condition_can_be_sent_to_a_worker_and_used_by_several_threads() -> None:
    condition = pickle.loads(pickle.dumps(MADE["n >= 500"]))
    batches = [batch([{"n": 499 + i % 2, "x": None, "s": None, "b": None}] * (1 + i)) for i in range(40)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(condition, batches))
    assert [set(part.to_pylist()) for part in found] == [{bool(i % 2)} for i in range(40)]
    assert [len(part) for part in found] == [len(part) for part in batches]


def test_a_batch_is_asked_once_and_never_taken_for_another() -> None:
    condition = Condition(SCHEMA, "n >= 500")
    events = batch([{"n": 500}])
    assert condition(events) is condition(events)
    for n in range(400, 600, 7):  # batches that are gone leave their place in memory to the next
        assert condition(batch([{"n": n}])).to_pylist() == [n >= 500]


def test_null_is_no_condition_met() -> None:
    assert Condition(SCHEMA, "null")(batch([{}, {}])).to_pylist() == [False, False]


def test_an_event_without_an_answer_does_not_meet_the_condition() -> None:
    assert Condition(SCHEMA, "s::INTEGER > 3")(batch([{"s": "4"}, {"s": "x"}, {"s": None}, {"s": "3"}])).to_pylist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("selekt > 1", "the schema has no field 'selekt' - did you mean 'select'?"),
        ("N > 1 AND m > 1", "the schema has no field 'm'; fields: n, x, s, b, user.id, select (texts stand in single quotes)"),
        ('s = "a"', "no field 'a'"),
        ("user.id > 1", 'write it in quotes: "user.id"'),
        ("n >", "'n >' is no SQL expression: syntax error"),
        ("", "is no SQL expression"),
        ("n", "'n' is no condition: it is int64, and not true or false; compare it with something, such as `n > 0`"),
        ("n > 1, b", "more than one SQL expression"),
        ("n > 1; SELECT 1", "more than one SQL expression"),
        ("n; DROP TABLE x", "no SQL expression: Only SELECT"),
        ("n > 1 LIMIT 1", "more than one SQL expression"),
        ("n > 1 AS y", "more than one SQL expression"),
        ("b FROM other", "more than one SQL expression"),
        ("b) OR (true", "no SQL expression"),
        ("n > (SELECT 1)", "a subquery is no expression over one event"),
        ("sum(n) > 1", "sum() is no function over one event; AggregateWindows aggregates events"),
        ("row_number() OVER () > 1", "a window function is no expression over one event"),
        ("* > 1", "* is no expression over one event; name the fields"),
        ("n > ?", "there are no parameters"),
        ("x > random()", "random() gives another answer when events are read again"),
        ("n > epoch(now())", "now() gives another answer when events are read again"),
        ("nope(n)", "Scalar Function with name nope does not exist"),
        ("s > n + s", "No function matches"),
        ("read_text('/etc/hostname') = s", "read_text() is no function over one event"),
    ],
)
def test_what_is_no_condition_is_refused_in_words(sql: str, words: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        Condition(SCHEMA, sql)
    message = caught.value.message()
    assert words in message and "LINE 1" not in message and "__events" not in message, message


def test_names_are_found_in_any_case_and_in_quotes() -> None:
    assert Query(SCHEMA, {"made": 'N + "user.id" + "select"'})(batch([{"n": 1}])).column(0).to_pylist() == [9]
    both = pa.schema([("a", pa.int64()), ("A", pa.int64())])
    assert Query(both, {"made": "A"})(pa.record_batch([[1], [2]], schema=both)).column(0).to_pylist() == [2]
    with pytest.raises(PydanticCustomError, match="differ only in case"):
        Query(both, {"made": "a + A"})


def test_types_are_known_before_the_first_event_and_stay() -> None:
    schema = pa.schema([("t", pa.timestamp("us", tz="UTC")), ("l", pa.list_(pa.int64())), ("o", pa.struct([("p", pa.float64())])), ("d", pa.dictionary(pa.int8(), pa.string()))])
    query = Query(schema, {"hour": "extract(hour FROM t)", "longest": "len(l)", "more": "[v + 1 FOR v IN l]", "p": "o.p", "d": "upper(d)", "day": "t::DATE"})
    assert [str(field.type) for field in query.schema][:2] == ["int64", "int64"] and query.schema.field("p").type == pa.float64()
    events = pa.record_batch(
        [pa.array([3_600_000_000, None], schema.field(0).type), [[1, 2], None], [{"p": 1.5}, None], pa.array(["a", None]).dictionary_encode().cast(schema.field(3).type)], schema=schema
    )
    made = query(events)
    assert made.schema == query.schema == query(events.slice(0, 0)).schema
    assert [column.to_pylist()[0] for column in made.columns[:5]] == [1, 2, [2, 3], 1.5, "A"]
    assert all(column.to_pylist()[1] is None for column in made.columns)


def test_what_is_made_does_not_change_with_the_next_batch() -> None:
    query = Query(SCHEMA, {"made": "n * 2"})
    first = query(batch([{"n": 1}, {"n": 2}]))
    query(batch([{"n": 50}, {"n": 60}]))
    assert first.column(0).to_pylist() == [2, 4]


def test_which_events_have_no_answer_is_known() -> None:
    query = Query(SCHEMA, {"whole": "s::INTEGER", "next": "n + 1"})
    events = batch([{"s": "1", "n": 1}, {"s": "x", "n": 1}, {"s": None, "n": None}, {"s": "1", "n": 2**63 - 1}])
    with pytest.raises(EvaluationError, match="Conversion Error|Overflow"):
        query(events)
    assert query.answered(events).tolist() == [True, False, True, False]
    assert query(events.slice(0, 1)).to_pylist() == [{"whole": 1, "next": 2}], "a failure leaves nothing behind"


def test_aggregates_count_what_meets_their_condition() -> None:
    options = AggregateOptions(metric="m", window={"tumbling": "1s"}, by=["s"], shards=1, aggregates={"all": "count", "big": {"count": {"where": "n >= 500"}}})
    partials = Partials(build_metric(options, SCHEMA))
    rows = [{"s": "a", "n": 500}, {"s": "a", "n": 499}, {"s": "a", "n": None}, {"s": "b", "n": None}]
    made = [partial for _, _, partial in partials.of_events(batch(rows), np.zeros(4, np.int64))]
    found = partials.results(partials.merge(made), 0, 1, final=True).to_pylist()
    assert sorted((row["s"], row["all"], row["big"]) for row in found) == [("a", 3, 1), ("b", 1, 0)]
