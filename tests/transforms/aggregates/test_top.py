"""top and mode, against counters; beyond its capacity, top within the error that it states."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamgauge.transforms.aggregate import AggregateOptions
from streamgauge.transforms.aggregates.items import MOST
from streamgauge.transforms.aggregates.mode import Mode, ModeOptions
from streamgauge.transforms.aggregates.top import Top, TopOptions
from streamgauge.transforms.config import problems
from tests.examples import examples
from tests.transforms.aggregates.regrouped import results

SEED = st.integers(0, 10**6)
TEXT = st.sampled_from(["", "a", "b", "B", "é", "e\u0301", "\uffff", "\U00010000", "\x00"])
KINDS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), TEXT), (pa.int64(), st.integers(-2, 2) | st.sampled_from([-(2**63), 2**63 - 1])), (pa.bool_(), st.booleans()),
    (pa.float64(), st.sampled_from([0.0, -0.0, math.inf, -math.inf, 5e-324, 1e308, math.nan])), (pa.date32(), st.dates().filter(lambda day: day.day < 3)),
]  # fmt: skip


def rank(entry: tuple[Any, Any]) -> tuple[Any, Any]:
    """The largest figure first, then the smallest value, strings by their bytes."""
    value, figure = entry
    return -figure, value.encode() if isinstance(value, str) else value


def ranked(counts: dict[Any, Any]) -> list[tuple[Any, Any]]:
    return sorted(((value, count) for value, count in counts.items() if count), key=rank)


@settings(deadline=None, max_examples=examples(30))
@given(st.data(), st.sampled_from(KINDS), SEED)
def test_exact_while_the_values_fit(data: st.DataObject, kind: tuple[pa.DataType, st.SearchStrategy[Any]], seed: int) -> None:
    events = data.draw(st.lists(st.tuples(st.sampled_from("ab"), st.none() | kind[1]), min_size=1, max_size=40))
    found = results({"top": {"top": {"of": "x", "k": 3}}, "mode": {"mode": "x"}}, kind[0], events, seed)
    for key, row in found.items():
        wanted = ranked(Counter(x for other, x in events if other == key and x is not None and x == x))
        assert [(entry["value"], entry["count"]) for entry in row["top"]] == wanted[:3]
        assert {entry["error"] for entry in row["top"]} <= {0}
        assert row["mode"] == (wanted[0][0] if wanted else None)


@settings(deadline=None, max_examples=examples(25))
@given(st.lists(st.tuples(st.just("a"), st.integers(0, 12)), min_size=1, max_size=80), st.integers(1, 4), st.integers(0, 6), SEED)
def test_beyond_the_capacity_within_the_stated_error(events: list[tuple[str, int]], k: int, more: int, seed: int) -> None:
    capacity = k + more
    listed = results({"top": {"top": {"of": "x", "k": k, "capacity": capacity}}}, pa.int32(), events, seed)["a"]["top"]
    true = Counter(x for _, x in events)
    assert [entry["value"] for entry in listed] == [value for value, _ in ranked({entry["value"]: entry["count"] for entry in listed})]
    error = listed[0]["error"] if listed else len(events) // (capacity + 1)
    assert error * (capacity + 1) <= len(events)
    assert all(entry["error"] == error and true[entry["value"]] - error <= entry["count"] <= true[entry["value"]] for entry in listed)
    if len(true) <= capacity:
        assert [(entry["value"], entry["count"]) for entry in listed] == ranked(true)[:k] and error == 0
    # What is not listed is not much larger than what is.
    least = listed[-1]["count"] if len(listed) == k else 0
    assert all(true[value] <= least + error for value in true.keys() - {entry["value"] for entry in listed})


def test_a_summary_loses_as_little_as_it_can() -> None:
    events = [("a", value) for value, count in {"p": 10, "q": 12, "r": 1}.items() for _ in range(count)]
    listed = results({"top": {"top": {"of": "x", "k": 2, "capacity": 2}}}, pa.string(), events)["a"]["top"]
    assert listed == [{"value": "q", "count": 11, "error": 1}, {"value": "p", "count": 9, "error": 1}]


def test_a_skewed_stream_of_many_values() -> None:
    rng = np.random.default_rng(11)
    data = np.concatenate([rng.zipf(1.5, 20_000) % 1_000_003, np.arange(2_000_000, 2_010_000)])
    rng.shuffle(data)
    listed = results({"top": {"top": {"of": "x", "k": 5, "capacity": 200}}}, pa.int64(), [("a", x) for x in data.tolist()], seed=4)["a"]["top"]
    true = Counter(data.tolist())
    assert [entry["value"] for entry in listed] == [value for value, _ in ranked(true)[:5]]
    assert 0 < listed[0]["error"] <= len(data) / 201
    assert all(true[entry["value"]] - entry["error"] <= entry["count"] <= true[entry["value"]] for entry in listed)


WEIGHTS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int32(), st.integers(-5, 1000)), (pa.int64(), st.integers(-(2**63), 2**50)), (pa.uint64(), st.integers(0, 2**50)),
    (pa.float64(), st.floats(-1e6, 1e6) | st.sampled_from([0.125, 0.1, 19.99, math.nan])), (pa.float32(), st.floats(-100, 100, width=32)),
]  # fmt: skip


@settings(deadline=None, max_examples=examples(30))
@given(st.data(), st.sampled_from(WEIGHTS), st.sampled_from([0, 2, 6]), SEED)
def test_by_the_sum_of_another_field(data: st.DataObject, kind: tuple[pa.DataType, st.SearchStrategy[Any]], decimals: int, seed: int) -> None:
    """Sums of floats are those of their values rounded to the decimals, exact: the order of merging does not show."""
    event = st.tuples(st.just("a"), st.none() | TEXT, st.none() | kind[1])
    events = data.draw(st.lists(event, min_size=1, max_size=30))
    units = 10**decimals if pa.types.is_floating(kind[0]) else 1
    sums: Counter[str] = Counter()
    for _, value, weight in events:
        if value is not None and weight is not None and weight > 0:
            sums[value] += round(weight * units)
    schema = pa.schema([("x", pa.string()), ("bytes", kind[0])])
    listed = results({"top": {"top": {"of": "x", "k": 4, "by": "bytes", "decimals": decimals}}}, schema, events, seed)["a"]["top"]
    exact = [(value, float(Fraction(figure, units)) if pa.types.is_floating(kind[0]) else figure) for value, figure in ranked(sums)[:4]]
    assert [(entry["value"], entry["sum"]) for entry in listed] == exact
    assert {entry["error"] for entry in listed} <= {0}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sums_with_heavy_tails_beyond_the_capacity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    events = [("a", int(x), int(w)) for x, w in zip(rng.integers(0, 400, 2_000), 1 + rng.pareto(0.6, 2_000) * 100, strict=True)]
    true: Counter[int] = Counter()
    for _, value, weight in events:
        true[value] += weight
    schema = pa.schema([("x", pa.int64()), ("w", pa.int64())])
    listed = results({"t": {"top": {"of": "x", "k": 5, "by": "w", "capacity": 20}}}, schema, events, seed)["a"]["t"]
    error = listed[0]["error"]
    assert 0 < error <= true.total() / 21
    assert all(true[entry["value"]] - error <= entry["sum"] <= true[entry["value"]] for entry in listed)
    assert all(true[value] <= listed[-1]["sum"] + error for value in true.keys() - {entry["value"] for entry in listed})


@pytest.mark.parametrize(("kind", "weights"), [
    (pa.uint64(), [2**64 - 1, 1]), (pa.int64(), [2**63 - 1, 2**63 - 1]), (pa.float64(), [math.inf, 1.0]), (pa.float64(), [1e19, 2.0**62]),
])  # fmt: skip
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sums_end_at_the_largest(kind: pa.DataType, weights: list[float], seed: int) -> None:
    schema = pa.schema([("x", pa.string()), ("w", kind)])
    listed = results({"top": {"top": {"of": "x", "by": "w", "decimals": 0}}}, schema, [("a", "v", w) for w in weights], seed)["a"]["top"]
    most = float(MOST) if pa.types.is_floating(kind) else MOST
    assert listed == [{"value": "v", "sum": most, "error": 0}]


def test_where_chooses_the_events() -> None:
    schema = pa.schema([("x", pa.string()), ("w", pa.int64()), ("status", pa.int32())])
    events = [("a", "p", 5, 200), ("a", "q", 50, 500), ("b", "q", 1, 500), ("a", "p", 2, 200), ("a", "r", 6, 200)]
    where = {"of": "x", "where": "status = 200"}
    found = results({"t": {"top": where}, "s": {"top": {**where, "by": "w"}}, "m": {"mode": where}}, schema, events, seed=5)
    assert [(entry["value"], entry["count"]) for entry in found["a"]["t"]] == [("p", 2), ("r", 1)]
    assert [(entry["value"], entry["sum"]) for entry in found["a"]["s"]] == [("p", 7), ("r", 6)]
    assert (found["a"]["m"], found["b"]["t"], found["b"]["s"], found["b"]["m"]) == ("p", [], [], None)


def test_state_of_other_parameters_has_another_name() -> None:
    schema = pa.schema([("x", pa.string()), ("w", pa.int64()), ("v", pa.float64())])
    options = [{}, {"capacity": 50}, {"by": "w"}, {"by": "v"}, {"by": "v", "decimals": 2}, {"of": "v"}]
    names = [Top(TopOptions.model_validate({"of": "x", **some}), schema).state[0].name for some in options]
    assert len(set(names)) == len(options)
    assert Top(TopOptions(of="x", k=3), schema).state[0].name == names[0]


@pytest.mark.parametrize(("aggregate", "message"), [
    ({"top": {"of": "x", "k": 0}}, "greater than or equal to 1"),
    ({"top": {"of": "x", "k": 10, "capacity": 5}}, "capacity must be at least k; found 5, and k is 10"),
    ({"top": {"of": "x", "decimals": 16}}, "less than or equal to 15"),
    ({"mode": {}}, "missing"),
])  # fmt: skip
def test_wrong_parameters_are_told(aggregate: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AggregateOptions(metric="m", window={"tumbling": "1s"}, aggregates={"t": aggregate})
    assert message in problems(caught.value)[0][1]


def test_fields_that_do_not_fit_are_refused() -> None:
    schema = pa.schema([("x", pa.string()), ("xs", pa.list_(pa.int64()))])
    with pytest.raises(ValueError, match="top needs a string, bool, number, date or timestamp; field 'xs' is list<item: int64>"):
        Top(TopOptions(of="xs"), schema)
    with pytest.raises(ValueError, match="top by needs a number; field 'x' is string"):
        Top(TopOptions(of="x", by="x"), schema)
    with pytest.raises(ValueError, match="mode of 'y': the schema has no such field"):
        Mode(ModeOptions(of="y"), schema)
