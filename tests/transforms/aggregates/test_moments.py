"""sum, mean, variance, stddev, covariance and correlation, in every order and grouping, against rational arithmetic."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.aggregates.trial import events_of, result_of
from tests.examples import examples
from tests.transforms.aggregates.regrouped import KEY, results
from tests.transforms.aggregates.test_exact_sum import HUGE, NUMBERS, rounded

ONE = {
    "total": {"sum": "x"}, "mean": {"mean": "x"}, "variance": {"variance": "x"}, "stddev": {"stddev": "x"},
    "all_variance": {"variance": {"of": "x", "population": True}}, "all_stddev": {"stddev": {"of": "x", "population": True}},
}  # fmt: skip
TWO = {
    "covariance": {"covariance": {"x": "x", "y": "y"}}, "swapped": {"covariance": {"x": "y", "y": "x"}}, "own": {"covariance": {"x": "x", "y": "x"}},
    "all_covariance": {"covariance": {"x": "x", "y": "y", "population": True}}, "correlation": {"correlation": {"x": "x", "y": "y"}},
}  # fmt: skip
KEYS = st.none() | st.sampled_from(["a", "b", "", "ß"])
CLOSE = [-2, -1, 0, 1, 3]


def clustered(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Numbers of all sizes, and such whose mean is large against their spread."""
    if pa.types.is_floating(kind):
        return NUMBERS[kind] | st.sampled_from([2.0**40 + step for step in CLOSE]) if kind == pa.float64() else NUMBERS[kind]
    top = 2 ** (kind.bit_width - (0 if pa.types.is_unsigned_integer(kind) else 1)) - 5
    return NUMBERS[kind] | st.sampled_from([top + step for step in CLOSE])


def moment(pairs: list[tuple[Fraction, Fraction]], freedom: int) -> Fraction | None:
    if len(pairs) <= freedom:
        return None
    mean_x, mean_y = (sum((pair[side] for pair in pairs), Fraction()) / len(pairs) for side in (0, 1))
    return sum(((x - mean_x) * (y - mean_y) for x, y in pairs), Fraction()) / (len(pairs) - freedom)


def nearest(number: Fraction | None) -> float | None:
    return None if number is None else rounded(number)


def assert_root(found: float | None, square: Fraction | None) -> None:
    """Within one unit in the last place."""
    assert (found is None) == (square is None)
    if found is not None and square is not None:
        low, high = max(math.nextafter(found, -math.inf), 0.0), math.nextafter(found, math.inf)
        assert Fraction(low) ** 2 <= square
        assert high == math.inf or square <= Fraction(high) ** 2


@settings(deadline=None, max_examples=examples(50))
@given(st.data(), st.sampled_from(list(NUMBERS)), st.integers(0, 1000))
def test_one_field(data: st.DataObject, kind: pa.DataType, seed: int) -> None:
    events = data.draw(st.lists(st.tuples(KEYS, st.none() | clustered(kind)), min_size=1, max_size=30))
    found = results(ONE, kind, events, seed)
    assert found.keys() == {key for key, _ in events}
    for key, row in found.items():
        values = [Fraction(value) for other, value in events if other == key and value is not None]
        total = sum(values, Fraction())
        if pa.types.is_floating(kind):
            assert row["total"] == (rounded(total) if values else None)
        else:
            assert row["total"] == (int(total) if values and -(2**63) <= total < 2**63 else None)
        assert row["mean"] == (rounded(total / len(values)) if values else None)
        pairs = [(value, value) for value in values]
        for prefix, freedom in (("", 1), ("all_", 0)):
            square = moment(pairs, freedom)
            assert row[f"{prefix}variance"] == nearest(square)
            assert_root(row[f"{prefix}stddev"], square)


@settings(deadline=None, max_examples=examples(50))
@given(st.data(), st.sampled_from(list(NUMBERS)), st.sampled_from(list(NUMBERS)), st.integers(0, 1000))
def test_two_fields(data: st.DataObject, left: pa.DataType, right: pa.DataType, seed: int) -> None:
    value = st.tuples(KEYS, st.none() | clustered(left), st.none() | clustered(right))
    events = data.draw(st.lists(value, min_size=1, max_size=30))
    found = results(TWO, pa.schema([("x", left), ("y", right)]), events, seed)
    for key, row in found.items():
        pairs = [(Fraction(x), Fraction(y)) for other, x, y in events if other == key and x is not None and y is not None]
        assert row["covariance"] == row["swapped"] == nearest(moment(pairs, 1))
        assert row["all_covariance"] == nearest(moment(pairs, 0))
        own = [Fraction(x) for other, x, _ in events if other == key and x is not None]
        assert row["own"] == nearest(moment([(x, x) for x in own], 1))
        products, x_spread, y_spread = (moment([(pair[a], pair[b]) for pair in pairs], 0) for a, b in ((0, 1), (0, 0), (1, 1)))
        if len(pairs) < 2 or not x_spread or not y_spread or products is None:
            assert row["correlation"] is None
            continue
        square = products**2 / (x_spread * y_spread)
        assert -1 <= row["correlation"] <= 1
        assert math.copysign(1, row["correlation"]) == (-1 if products < 0 else 1) or row["correlation"] == 0
        # Squared, so that the bound of 5e-16 is twice that; below the normal doubles there is no relative precision.
        assert abs(Fraction(row["correlation"]) ** 2 - square) <= Fraction(1, 10**15) * square + Fraction(1, 2**2000)


@pytest.mark.parametrize("values, expected", [
    ([1e15 + 0.25, 1e15 + 0.5, 1e15 + 0.75], (0.0625, 0.25)), ([2.5] * 5, (0.0, 0.0)), ([1e200, 3e200, 5e200], (math.inf, 2e200)),
    ([1e-200, 3e-200, 5e-200], (0.0, 2e-200)), ([1.0], (None, None)), ([math.nan, 4.0], (None, None)), ([math.inf, 1.0, 2.0], (None, None)),
    ([-HUGE, HUGE, 0.0], (math.inf, HUGE)), ([2**63 - 3, 2**63 - 2, 2**63 - 1], (1.0, 1.0)),
])  # fmt: skip
def test_stable(values: list[Any], expected: tuple[Any, Any]) -> None:
    events = events_of({"x": values})
    assert (result_of({"variance": "x"}, events), result_of({"stddev": "x"}, events)) == expected


@pytest.mark.parametrize("values, expected", [
    ([HUGE, HUGE], HUGE), ([math.inf, 1.0], math.inf), ([math.inf, -math.inf], None), ([2**63 - 1] * 3, float(2**63)), ([-(2**63), 2**63 - 1], -0.5),
])  # fmt: skip
def test_mean_at_the_edges(values: list[Any], expected: float | None) -> None:
    assert result_of({"mean": "x"}, events_of({"x": values})) == expected


def test_as_sql_says() -> None:
    """A sanity check: the definitions are those of SQL."""
    chance = random.Random(3)
    table = pa.table({"x": [chance.lognormvariate(0, 1) for _ in range(500)], "y": [chance.gauss(5, 2) for _ in range(500)]})
    query = "SELECT var_samp(x), stddev_samp(x), var_pop(x), stddev_pop(x), covar_samp(x, y), covar_pop(x, y), corr(x, y) FROM table"
    (expected,) = duckdb.sql(query.replace("table", "data"), connection=_connected(table)).fetchall()
    events = events_of({name: table.column(name).combine_chunks() for name in "xy"})
    names = ("variance", "stddev", "all_variance", "all_stddev", "covariance", "all_covariance", "correlation")
    assert [result_of({**ONE, **TWO}[name], events) for name in names] == pytest.approx(expected, rel=1e-9)


def _connected(table: pa.Table) -> Any:
    connection = duckdb.connect()
    connection.register("data", table)
    return connection


def test_pairs_without_a_number_do_not_count() -> None:
    """Nor do infinities of a field where the other one is null."""
    events = events_of({"x": [1.0, math.nan, math.inf, 3.0, None], "y": [2, 5, None, 6, 7]})
    assert result_of({"covariance": {"x": "x", "y": "y"}}, events) == 4.0
    assert result_of({"correlation": {"x": "x", "y": "y"}}, events) == 1.0
    assert result_of({"correlation": {"x": "x", "y": "y"}}, events_of({"x": [1.0, math.inf], "y": [1, 2]})) is None


def test_only_events_that_meet_the_condition_count() -> None:
    events = events_of({"x": [1.0, 2.0, 4.0, 100.0], "y": [1, 2, 3, None]})
    where = {"where": "y < 3"}
    assert [result_of({name: {"of": "x", **where}}, events) for name in ("sum", "mean", "variance")] == [3.0, 1.5, 0.5]
    assert result_of({"covariance": {"x": "x", "y": "y", **where}}, events) == 0.5
    assert result_of({"variance": {"of": "x", "where": "y > 9"}}, events) is None


def test_what_is_equal_is_kept_once() -> None:
    """Aggregates of one field share its sum and its count; with another condition they do not."""
    schema = pa.schema([("x", pa.float64()), ("y", pa.int64())])

    def state(aggregates: dict[str, Any]) -> list[str]:
        metric = build_metric(AggregateOptions(metric="m", window={"tumbling": "1s"}, by=(), aggregates=aggregates), schema)
        return [column.name for column in metric.state]

    assert state(ONE) == ["events", "exact_sum(x)", "count(x)", "exact_squares(x)"]
    assert len(state({"a": TWO["covariance"], "b": TWO["swapped"]})) == len(state({"a": TWO["covariance"]}))
    assert len(state({"a": ONE["total"], "b": {"sum": {"of": "x", "where": "y > 1"}}})) == 3


@pytest.mark.parametrize("aggregate, message", [
    ({"variance": "host"}, "variance needs a number; field 'host' is string"),
    ({"stddev": "hots"}, "stddev of 'hots': the schema has no such field - did you mean 'host'?"),
    ({"covariance": {"x": "x", "y": "host"}}, "covariance needs a number; field 'host' is string"),
    ({"correlation": {"x": "x"}}, "correlation.y: missing"),
    ({"variance": {"of": "x", "populaton": True}}, "populaton: unknown key"),
    ({"ewm": {"of": "host", "half_life": "5m"}}, "ewm needs a number; field 'host' is string"),
    ({"ewm": {"of": "x", "half_life": "soon"}}, "'soon' is not a duration"),
    ({"ewm": {"of": "x", "half_life": "0s"}}, "greater than 0"),
    ({"ewm": {"of": "x"}}, "half_life: missing"),
])  # fmt: skip
def test_mistakes(aggregate: Any, message: str) -> None:
    schema = pa.schema([("x", pa.float64()), ("host", pa.string())])
    with pytest.raises((ValidationError, PydanticCustomError)) as caught:
        build_metric(AggregateOptions(metric="m", window={"tumbling": "1s"}, by=(), aggregates={"wrong": aggregate}), schema)
    assert message in str(caught.value)


def test_one_key_of_nulls_has_a_row() -> None:
    (row,) = results({**ONE, **TWO}, pa.schema([("x", pa.float64()), ("y", pa.float64())]), [("a", None, 1.0), ("a", math.nan, None)], seed=1).values()
    assert {name: row[name] for name in (*ONE, *TWO)} == dict.fromkeys((*ONE, *TWO))
    assert row[KEY] == "a" and row["events"] == 2
