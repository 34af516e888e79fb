"""count, min, max, ratio, any and all, with and without ``where``, against plain Python."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.aggregates.trial import events_of, result_of
from tests.examples import examples
from tests.transforms.aggregates.any_order import Algebra, Event, by_key, events

FIELDS = {"x": pa.float64(), "n": pa.int64(), "name": pa.string(), "flag": pa.bool_()}
EVENTS = events({
    "x": st.none() | st.sampled_from([math.nan, math.inf, -math.inf, 5e-324, -0.5]) | st.floats(-1e300, 1e300),
    "n": st.none() | st.integers(-(2**63), 2**63 - 1),
    "name": st.none() | st.sampled_from(["", "a", "Z", "ß", "a\x00b", "\U0001f600"]),
    "flag": st.none() | st.booleans(),
})  # fmt: skip
AGGREGATES: dict[str, Any] = {
    "all_events": "count", "xs": {"count": "x"}, "names": {"count": {"of": "name", "where": "n > 0"}}, "positive": {"count": {"where": "n > 0"}},
    "lo": {"min": "name"}, "hi": {"max": {"of": "name", "where": "n > 0"}}, "least": {"min": "x"}, "most": {"max": "n"},
    "share": {"ratio": {"of": "n > 0"}}, "part": {"ratio": {"of": "n > 0", "to": "flag", "where": "name <> 'a'"}},
    "some": {"any": "flag"}, "every": {"all": "flag"}, "some_positive": {"any": "n > 0"}, "every_positive": {"all": {"of": "n > 0", "where": "flag"}},
}  # fmt: skip
ALGEBRA = Algebra(AGGREGATES, FIELDS)


def is_positive(event: Event) -> bool:
    return event["n"] is not None and event["n"] > 0


def share(some: list[Event], of: list[Event]) -> float | None:
    return len(some) / len(of) if of else None


def expected(some: list[Event]) -> dict[str, Any]:
    positive = [event for event in some if is_positive(event)]
    flags = [event["flag"] for event in some if event["flag"] is not None]
    named = [event for event in some if event["name"] not in (None, "a")]
    xs = [event["x"] for event in some if event["x"] is not None and not math.isnan(event["x"])]
    names = [event["name"] for event in some if event["name"] is not None]
    positive_names = [event["name"] for event in positive if event["name"] is not None]
    flagged = [event for event in some if event["flag"]]
    return {
        "all_events": len(some), "xs": len(xs), "names": len(positive_names), "positive": len(positive),
        "lo": min(names, default=None), "hi": max(positive_names, default=None), "least": min(xs, default=None),
        "most": max((event["n"] for event in some if event["n"] is not None), default=None),
        "share": share(positive, some), "part": share([e for e in named if is_positive(e)], [e for e in named if e["flag"]]),
        "some": any(flags) if flags else None, "every": all(flags) if flags else None,
        "some_positive": bool(positive), "every_positive": all(map(is_positive, flagged)) if flagged else None,
    }  # fmt: skip


@settings(deadline=None, max_examples=examples(20))
@given(EVENTS, st.integers(0, 1000))
def test_any_order_of_merging_gives_what_python_says(some: list[Event], seed: int) -> None:
    found = ALGEBRA.results(some, seed)
    keys = by_key(some)
    assert found.keys() == keys.keys()
    for key, own in keys.items():
        assert found[key]["events"] == len(own), "a condition never changes the revision"
        assert {name: found[key][name] for name in AGGREGATES} == expected(own)


def test_a_field_of_lists_or_structs_can_be_counted() -> None:
    events = events_of({"tags": pa.array([["a"], None, []]), "place": pa.array([None, {"x": 1}, {"x": None}])})
    assert (result_of({"count": "tags"}, events), result_of({"count": "place"}, events)) == (2, 2)


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
@pytest.mark.parametrize("zeros", [[0.0, -0.0], [-0.0, 0.0]])
def test_of_two_zeros_the_order_does_not_show(zeros: list[float], kind: pa.DataType) -> None:
    events = events_of({"x": pa.array(zeros, kind)})
    assert [str(result_of({name: "x"}, events)) for name in ("min", "max")] == ["0.0", "0.0"]


def test_a_null_in_a_dictionary_is_no_value() -> None:
    """Nor is a NaN there."""
    for values in (["a", None, "b"], [1.0, math.nan, 2.0]):
        events = events_of({"v": pa.DictionaryArray.from_arrays(pa.array([1, 0, 1, 2, 2], pa.int8()), pa.array(values)), "n": [5, 1, 4, 2, 3]})
        first, last = values[0], values[2]
        assert [result_of({name: "v"}, events) for name in ("count", "first", "last", "mode", "distinct")] == [3, first, last, last, 2]
        assert result_of({"distinct": {"of": "v", "exact": True}}, events) == 2
        assert result_of({"argmax": {"of": "v", "by": "n"}}, events) == last
        assert result_of({"collect": "v"}, events) == [first, last, last]
        assert [entry["count"] for entry in result_of({"top": "v"}, events)] == [2, 1]


def test_equal_counts_are_one_column_of_state() -> None:
    schema = events_of({"n": [1]}).schema
    aggregates = {"bad": {"count": {"where": "n > 0"}}, "share": {"ratio": {"of": "n > 0"}}, "n": "count"}
    metric = build_metric(AggregateOptions(metric="m", window={"tumbling": "1s"}, aggregates=aggregates), schema)
    assert [column.name for column in metric.state] == ["events", "events where n > 0"]


@pytest.mark.parametrize(("one", "other"), [
    ({"argmin": {"of": "a,b", "by": "c"}}, {"argmin": {"of": "a", "by": "b,c"}}), ({"top": {"of": "a", "by": "b"}}, {"top": "a by b"}),
    ({"min": {"of": "a", "where": "(b = 2)"}}, {"min": "a) where (b = 2"}),
])  # fmt: skip
def test_names_of_fields_do_not_make_one_state_of_two(one: Any, other: Any) -> None:
    fields = {"a": [1, 2, 3], "b": [3, 2, 1], "c": [1, 1, 2], "a,b": [10, 20, 30], "b,c": [5, 6, 4], "a by b": [7, 8, 8], "a) where (b = 2": [0, 1, 2]}
    schema = events_of(fields).schema
    metric = build_metric(AggregateOptions(metric="m", window={"tumbling": "1s"}, aggregates={"one": one, "two": other}), schema)
    assert len(metric.state) == 3


@pytest.mark.parametrize(("aggregate", "message"), [
    ({"count": "nam"}, "count of 'nam': the schema has no such field - did you mean 'name'?"),
    ({"min": "flag"}, "min needs a number, date, timestamp or string; field 'flag' is bool"),
    ({"max": "took"}, "max needs a number, date, timestamp or string; field 'took' is duration[us]"), ({"any": "n"}, "any needs a boolean field or a condition, such as `n IS NOT NULL`; field 'n' is int64"),
    ({"all": "flagg"}, "flagg"), ({"ratio": {"of": "n + 1"}}, "is no condition"), ({"ratio": {"of": "n > 0", "to": "m > 0"}}, "'m"),
    ({"count": {"where": "n >"}}, "n >"),
])  # fmt: skip
def test_mistakes_are_told_when_the_job_is_checked(aggregate: dict[str, Any], message: str) -> None:
    events = events_of({"name": ["a"], "n": [1], "flag": [True], "took": pa.array([1], pa.duration("us"))})
    with pytest.raises(PydanticCustomError) as raised:
        result_of(aggregate, events)
    assert message in str(raised.value)
