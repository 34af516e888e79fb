"""first, last, argmin, argmax and collect: by event time, split and position, against plain Python."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from streamgauge.transforms.aggregates.order import Order, sorted_rows
from streamgauge.transforms.aggregates.trial import events_of, result_of
from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE
from tests.examples import examples
from tests.transforms.aggregates.any_order import Algebra, Event, by_key, events, order

FIELDS = {
    "text": pa.string(), "tags": pa.list_(pa.string()), "x": pa.float64(), "small": pa.float32(), "n": pa.int64(), "u": pa.uint64(),
    "day": pa.date32(), "flag": pa.bool_(), "kind": pa.dictionary(pa.int8(), pa.string()),
}  # fmt: skip
FLOATS = [None, math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, -5e-324, 1.5, -1.5]
EVENTS = events({
    "text": st.none() | st.sampled_from(["", "ß", "a\x00"]) | st.text(max_size=2), "tags": st.none() | st.lists(st.none() | st.just("t"), max_size=2),
    "x": st.sampled_from(FLOATS), "small": st.sampled_from([None, math.nan, 1.0, -1.0, math.inf]),
    "n": st.sampled_from([None, -(2**63), 2**63 - 1, 0, -1]), "u": st.sampled_from([None, 0, 2**63, 2**64 - 1]),
    "day": st.none() | st.dates(), "flag": st.none() | st.booleans(), "kind": st.sampled_from([None, "a", "b"]),
})  # fmt: skip
AGGREGATES: dict[str, Any] = {
    **{f"first_{name}": {"first": name} for name in FIELDS}, **{f"last_{name}": {"last": name} for name in FIELDS},
    **{f"least_{name}": {"argmin": {"of": "text", "by": name}} for name in ("x", "small", "n", "u", "day", "flag")},
    **{f"most_{name}": {"argmax": {"of": "tags", "by": name}} for name in ("x", "small", "n", "u", "day", "flag")},
    "high": {"last": {"of": "text", "where": "n >= 0"}}, "most_high": {"argmax": {"of": "text", "by": "x", "where": "flag"}},
    "all_texts": {"collect": "text"}, "two_tags": {"collect": {"of": "tags", "limit": 2}}, "floats": {"collect": {"of": "x", "limit": 3, "distinct": True}},
    "kinds": {"collect": {"of": "kind", "limit": 1, "distinct": True}}, "days": {"collect": {"of": "day", "distinct": True, "where": "flag"}},
}  # fmt: skip
ALGEBRA = Algebra(AGGREGATES, FIELDS)


def counts(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def pick(some: list[Event], of: str, by: str, sign: int) -> Any:
    there = [event for event in some if counts(event[of]) and counts(event[by])]
    if not there:
        return None
    best = (min if sign < 0 else max)(event[by] for event in there)
    return next(event[of] for event in there if event[by] == best)


def collected(some: list[Event], of: str, limit: int = 100, distinct: bool = False) -> list[Any] | None:
    found: list[Any] = []
    for event in some:
        if counts(event[of]) and not (distinct and event[of] in found):
            found.append(event[of])
    return found[:limit] or None


def expected(some: list[Event]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    for name in FIELDS:
        there = [event[name] for event in some if counts(event[name])]
        own[f"first_{name}"], own[f"last_{name}"] = (there[0], there[-1]) if there else (None, None)
    for name in ("x", "small", "n", "u", "day", "flag"):
        own[f"least_{name}"], own[f"most_{name}"] = pick(some, "text", name, -1), pick(some, "tags", name, 1)
    flagged = [event for event in some if event["flag"]]
    high = collected([event for event in some if event["n"] is not None and event["n"] >= 0], "text", 1000)
    own |= {"high": high[-1] if high else None, "most_high": pick(flagged, "text", "x", 1)}
    own |= {"all_texts": collected(some, "text"), "two_tags": collected(some, "tags", 2), "floats": collected(some, "x", 3, True)}
    return own | {"kinds": collected(some, "kind", 1, True), "days": collected(flagged, "day", 100, True)}


@settings(deadline=None, max_examples=examples(12))
@given(EVENTS, st.integers(0, 1000))
def test_any_order_of_merging_gives_what_python_says(some: list[Event], seed: int) -> None:
    found = ALGEBRA.results(some, seed)
    for key, own in by_key(some).items():
        assert {name: found[key][name] for name in AGGREGATES} == expected(own)


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)), max_size=70))
def test_rows_are_sorted_and_stay_as_they_are_where_equal(rows: list[tuple[int, ...]]) -> None:
    ids, *keys = np.array(rows, np.int64).reshape(len(rows), 4).T.copy()
    assert sorted_rows(ids, 4, Order(*keys)).tolist() == sorted(range(len(rows)), key=lambda row: rows[row])


def test_events_of_one_position_keep_their_order() -> None:
    """A list that was split into rows gives events of one time, split and position."""
    batch = events_of({"item": ["p", "q", "r"]})
    same = pa.record_batch([batch.column(0).take(pa.array([0, 0, 0])), batch.column(1), pa.array([7, 7, 7]), batch.column("item")], schema=batch.schema)
    assert [result_of({name: "item"}, same) for name in ("first", "last", "collect")] == ["p", "r", ["p", "q", "r"]]


def test_batches_made_by_hand_need_no_lineage() -> None:
    bare = pa.record_batch({EVENT_TIME: pa.array([5, 3, 4]).cast(EVENT_TIME_TYPE), "x": ["a", "b", "c"]})
    assert [result_of({name: "x"}, bare) for name in ("first", "last", "collect")] == ["b", "a", ["b", "c", "a"]]


def test_splits_are_compared_as_text() -> None:
    some = [{EVENT_TIME: 0, "__split": split, "__position": 0} for split in ("b", "a-9", "a-10")]
    assert [event["__split"] for event in sorted(some, key=order)] == ["a-10", "a-9", "b"]
    algebra = Algebra({"seen": {"collect": "name"}}, {"name": pa.string()})
    found = algebra.results([{**event, "key": "x", "name": event["__split"]} for event in some], 1)
    assert found["x"]["seen"] == ["a-10", "a-9", "b"]


@pytest.mark.parametrize(("aggregate", "message"), [
    ({"first": "txt"}, "first of 'txt': the schema has no such field - did you mean 'text'?; fields: text, tags"),
    ({"argmax": {"of": "text", "by": "tags"}}, "argmax by 'tags' needs a number, boolean, date or timestamp; the field is list<item: int64>"),
    ({"argmax": {"of": "text", "by": "size"}}, "argmax by of 'size': the schema has no such field"),
    ({"argmin": "text"}, "argmin"), ({"collect": {"of": "text", "limit": 0}}, "limit"),
    ({"collect": {"of": "tags", "distinct": True}}, "collect of distinct values cannot compare those of 'tags', which is list<item: int64>"),
])  # fmt: skip
def test_mistakes_are_told_when_the_job_is_checked(aggregate: dict[str, Any], message: str) -> None:
    with pytest.raises(PydanticCustomError) as raised:
        result_of(aggregate, events_of({"text": ["a"], "tags": [[1]]}))
    assert message in str(raised.value)
