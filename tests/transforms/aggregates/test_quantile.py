"""quantile: within its relative error of the value of that rank, whatever the data and the order of merging."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamgauge.transforms.aggregate import AggregateOptions
from streamgauge.transforms.aggregates.logarithm import SMALLEST
from streamgauge.transforms.aggregates.quantile import Buckets, Quantile, QuantileOptions
from streamgauge.transforms.config import problems
from tests.examples import examples
from tests.transforms.aggregates.regrouped import results

QS = [0, 0.01, 0.25, 0.5, 0.75, 0.95, 0.999, 1]
HARD = [0.0, -0.0, 5e-324, -5e-324, SMALLEST, 2 * SMALLEST, 1.7976931348623157e308, -1.7976931348623157e308, math.inf, -math.inf, 1.0, -1.0, 1e-300]
NUMBER = st.floats(allow_nan=False) | st.sampled_from(HARD) | st.integers(-1000, 1000).map(float)
EVENT = st.tuples(st.sampled_from("ab"), st.none() | st.just(math.nan) | NUMBER)


def assert_within(found: float, true: float, error: float) -> None:
    """Exactly: in fractions, with no rounding in the comparison."""
    if math.isinf(true) or abs(true) < SMALLEST:
        assert found == (true if math.isinf(true) else 0)
    else:
        assert abs(Fraction(found) - Fraction(true)) <= Fraction(error) * abs(Fraction(true)), (found, true)


@settings(deadline=None, max_examples=examples(30))
@given(st.lists(EVENT, min_size=1, max_size=60), st.integers(0, 10**6), st.sampled_from([1e-6, 0.001, 0.01, 0.3, 0.99]))
def test_any_grouping_gives_one_answer_within_the_error(events: list[tuple[str, float | None]], seed: int, error: float) -> None:
    aggregates = {"q": {"quantile": {"of": "x", "q": QS, "error": error}}, "median": {"quantile": {"of": "x", "q": 0.5, "error": error}}}
    found = results(aggregates, pa.float64(), events, seed)
    assert found == results(aggregates, pa.float64(), events)
    for key, row in found.items():
        ordered = sorted(x for other, x in events if other == key and x is not None and not math.isnan(x))
        if not ordered:
            assert row["q"] is None and row["median"] is None
            continue
        assert row["median"] == row["q"][3]
        for q, value in zip(QS, row["q"], strict=True):
            assert_within(value, ordered[math.floor(q * (len(ordered) - 1))], error)


@pytest.mark.parametrize("error", [1e-6, 1e-3, 0.01, 0.05, 0.5, 0.999])
def test_the_bound_holds_at_the_borders_of_buckets(error: float) -> None:
    """The doubles around the border of each of many buckets, from the smallest to the largest."""
    buckets = Buckets(error)
    log_base = math.log1p(error * (1 - 1e-5)) - math.log1p(-error * (1 - 1e-5))
    rng = np.random.default_rng(1)
    lowest, highest = math.ceil(-708 / log_base), math.floor(709 / log_base)
    borders = np.exp(np.concatenate([rng.integers(lowest, highest, 300), [lowest, -1, 0, 1, highest]]) * log_base)
    around = np.concatenate([borders * (1 + step * 2.0**-52) for step in range(-3, 4)] + [[SMALLEST, np.finfo(float).max]])
    for sign in (1, -1):
        for found, true in zip(buckets.estimates(buckets.codes(sign * around)).tolist(), (sign * around).tolist(), strict=True):
            assert_within(found, true, error)
    ordered = np.sort(np.concatenate([around, -around, [math.inf, -math.inf, 0]]))
    assert (np.diff(buckets.codes(ordered)) >= 0).all()


@pytest.mark.parametrize("name", ["pareto", "lognormal", "one value", "two far apart", "int64"])
def test_heavy_tails(name: str) -> None:
    rng = np.random.default_rng(7)
    data: np.ndarray[Any, Any] = {
        "pareto": (1 + rng.pareto(0.5, 20_000)) * 1e-3, "lognormal": rng.lognormal(0, 5, 20_000), "one value": np.full(20_000, 0.1),
        "two far apart": np.where(rng.random(20_000) < 0.5, 1e-200, 1e200), "int64": rng.integers(-(2**63), 2**63, 20_000, dtype=np.int64),
    }[name]  # fmt: skip
    kind = pa.int64() if name == "int64" else pa.float64()
    row = results({"q": {"quantile": {"of": "x", "q": QS}}}, kind, zip(["a"] * len(data), data.tolist(), strict=True), seed=3)["a"]
    data.sort()
    for q, value in zip(QS, row["q"], strict=True):
        assert_within(value, data[math.floor(q * (len(data) - 1))].item(), 0.01)


@settings(deadline=None, max_examples=examples(20))
@given(st.lists(st.tuples(st.just("a"), st.integers(-60, 60).map(lambda n: math.copysign(2.0 ** abs(n), n))), min_size=30, max_size=80), st.integers(0, 10**6))
def test_beyond_max_buckets_only_the_lowest_values_lose_their_bound(events: list[tuple[str, float]], seed: int) -> None:
    aggregates = {"q": {"quantile": {"of": "x", "q": QS, "max_buckets": 16}}}
    found = results(aggregates, pa.float64(), events, seed)["a"]["q"]
    assert found == results(aggregates, pa.float64(), events)["a"]["q"]
    ordered = sorted(x for _, x in events)
    lowest = sorted(set(ordered))[-16:][0]
    for q, value in zip(QS, found, strict=True):
        assert_within(value, max(ordered[math.floor(q * (len(ordered) - 1))], lowest), 0.01)


def test_the_number_of_buckets_is_bounded() -> None:
    quantile = Quantile(QuantileOptions(of="x", q=0.5, max_buckets=16), pa.schema([("x", pa.float64())]))
    assert quantile.state[0].name == "dd(0.01,16,x)"
    events = [("a", float(f"1e{n}")) for n in range(-100, 100)]
    row = results({"q": {"quantile": {"of": "x", "q": [0, 0.5, 0.95, 1], "max_buckets": 16}}}, pa.float64(), events)["a"]
    for value, true in zip(row["q"], [1e84, 1e84, 1e89, 1e99], strict=True):
        assert_within(value, true, 0.01)


def test_where_chooses_the_events() -> None:
    schema = pa.schema([("x", pa.int32()), ("status", pa.int64())])
    events = [("a", 10, 200), ("a", 1000, 500), ("b", 5, 500), ("c", 7, 200)]
    found = results({"q": {"quantile": {"of": "x", "q": 1, "where": "status < 300"}}, "all": {"quantile": {"of": "x", "q": 1}}}, schema, events, seed=1)
    assert found["b"]["q"] is None
    assert [found[key]["q"] for key in "ac"] == [pytest.approx(10, rel=0.01), pytest.approx(7, rel=0.01)]
    assert found["a"]["all"] == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize(("options", "message"), [
    ({"of": "x", "q": 95}, "a quantile is between 0 and 1, found 95; for the 95th percentile write 0.95"),
    ({"of": "x", "q": -0.1}, "a quantile is between 0 and 1, found -0.1"),
    ({"of": "x", "q": [0.5, 1.01]}, "a quantile is between 0 and 1, found 1.01"),
    ({"of": "x", "q": math.nan}, "a quantile is between 0 and 1, found nan"),
    ({"of": "x", "q": []}, "at least one quantile is needed"),
    ({"of": "x", "q": "half"}, "expected a number from 0 to 1, or a list of them; found 'half'"),
    ({"of": "x", "q": 0.5, "error": 1}, "error is relative, at least 0.000001 and less than 1, such as 0.01 for 1 %; found 1"),
    ({"of": "x", "q": 0.5, "error": 0}, "error is relative"),
    ({"of": "x", "q": 0.5, "max_buckets": 1}, "greater than or equal to 16"),
])  # fmt: skip
def test_wrong_parameters_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AggregateOptions(metric="m", window={"tumbling": "1s"}, aggregates={"q": {"quantile": options}})
    assert message in problems(caught.value)[0][1]


def test_a_field_of_text_is_refused() -> None:
    with pytest.raises(ValueError, match="quantile needs a number; field 'x' is string"):
        Quantile(QuantileOptions(of="x", q=0.5), pa.schema([("x", pa.string())]))
