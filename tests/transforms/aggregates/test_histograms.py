"""histogram and exponential_histogram, against counting one value at a time and logarithms of 40 digits."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from decimal import ROUND_CEILING, Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamgauge.transforms.aggregate import AggregateOptions
from streamgauge.transforms.aggregates.exponential_histogram import ExponentialHistogram
from streamgauge.transforms.aggregates.histogram import FEW_BOUNDS, Histogram
from streamgauge.transforms.config import problems
from tests.examples import examples
from tests.transforms.aggregates.regrouped import results

SEED = st.integers(0, 10**6)
NUMBER = st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 5e-324, 2.0**-1022, 1.0, -2.0, 1024.0, math.inf, -math.inf]) | st.integers(-99, 99).map(float)
ABSENT = st.none() | st.just(math.nan)
EVENTS = st.lists(st.tuples(st.sampled_from("ab"), ABSENT | NUMBER), min_size=1, max_size=40)
BOUNDS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=2 * FEW_BOUNDS, unique=True).map(sorted)


def counted(values: list[Any], bounds: list[float]) -> list[int]:
    """Upper bounds belong to their bucket; fractions are compared exactly."""
    exact = [Fraction(bound) for bound in bounds]
    places = Counter(
        bisect_left(exact, Fraction(value)) if math.isfinite(value) else (len(bounds) if value > 0 else 0)
        for value in values if value is not None and not math.isnan(value)
    )  # fmt: skip
    return [places[bucket] for bucket in range(len(bounds) + 1)]


@settings(deadline=None, max_examples=examples(25))
@given(EVENTS, BOUNDS, st.booleans(), SEED)
def test_counts_between_bounds(events: list[tuple[str, float | None]], bounds: list[float], at_values: bool, seed: int) -> None:
    if at_values:
        bounds = sorted({*bounds, *(x for _, x in events if x is not None and math.isfinite(x))})
    found = results({"h": {"histogram": {"of": "x", "bounds": bounds}}}, pa.float64(), events, seed)
    assert {key: row["h"] for key, row in found.items()} == {key: counted([x for other, x in events if other == key], bounds) for key in found}


INTEGERS = [(pa.int64(), -(2**63), 2**63 - 1), (pa.uint64(), 0, 2**64 - 1), (pa.int8(), -128, 127)]


@settings(deadline=None, max_examples=examples(20))
@given(st.data(), st.sampled_from(INTEGERS), SEED)
def test_large_integers_are_not_rounded_over_a_bound(data: st.DataObject, kind: tuple[pa.DataType, int, int], seed: int) -> None:
    integer = st.integers(kind[1], kind[2]) | st.sampled_from([kind[1], kind[2], kind[2] // 2 + 1, kind[2] // 2])
    events = data.draw(st.lists(st.tuples(st.sampled_from("ab"), st.none() | integer), min_size=1, max_size=20))
    bounds = data.draw(st.lists(st.sampled_from([-1e300, -(2.0**63), -0.5, 0.0, 0.5, 126.5, 2.0**53, 2.0**62, 2.0**63, 2.0**64, 1e300]), min_size=1, unique=True))
    bounds.sort()
    found = results({"h": {"histogram": {"of": "x", "bounds": bounds}}}, kind[0], events, seed)
    assert {key: row["h"] for key, row in found.items()} == {key: counted([x for other, x in events if other == key], bounds) for key in found}


def index_at_20(magnitude: float) -> int:
    """ceil(2**20 * log2(magnitude)) - 1, with 40 digits; powers of two exactly."""
    mantissa, exponent = math.frexp(magnitude)
    if mantissa == 0.5:
        return ((exponent - 1) << 20) - 1
    with localcontext() as context:
        context.prec = 40
        logarithm = Decimal(mantissa).ln() / Decimal(2).ln() + exponent
        return int((logarithm * 2**20).to_integral_value(ROUND_CEILING)) - 1


def exponential(values: list[float | None], most: int, scale: int) -> dict[str, Any] | None:
    finite = [x for x in values if x is not None and math.isfinite(x)]
    if not finite:
        return None
    sides = [[index_at_20(abs(x)) >> (20 - scale) for x in finite if x * sign > 0] for sign in (1, -1)]
    while any(side and max(side) - min(side) >= most for side in sides):
        sides, scale = [[index >> 1 for index in side] for side in sides], scale - 1
    both = []
    for side in sides:
        counts = Counter(side)
        both.append({"offset": min(side, default=0), "bucket_counts": [counts[index] for index in range(min(side), max(side) + 1)] if side else []})
    return {"count": len(finite), "scale": scale, "zero_count": finite.count(0), "positive": both[0], "negative": both[1]}


@settings(deadline=None, max_examples=examples(30))
@given(EVENTS, st.sampled_from([2, 3, 20, 160]), st.sampled_from([20, 3, 0, -10]), SEED)
def test_the_scale_is_the_largest_at_which_all_fit_in_any_order(events: list[tuple[str, float | None]], most: int, scale: int, seed: int) -> None:
    found = results({"e": {"exponential_histogram": {"of": "x", "max_size": most, "scale": scale}}}, pa.float64(), events, seed)
    assert {key: row["e"] for key, row in found.items()} == {key: exponential([x for other, x in events if other == key], most, scale) for key in found}


@pytest.mark.parametrize("kind", ["pareto", "lognormal", "int64"])
def test_heavy_tails_fit_and_each_value_is_in_its_bucket(kind: str) -> None:
    rng = np.random.default_rng(5)
    data = {
        "pareto": 1 + rng.pareto(0.5, 5_000), "lognormal": rng.lognormal(0, 8, 5_000), "int64": rng.integers(-(2**63), 2**63, 5_000, dtype=np.int64),
    }[kind]  # fmt: skip
    field = pa.int64() if kind == "int64" else pa.float64()
    result = results({"e": {"exponential_histogram": "x"}}, field, [("a", x) for x in data.tolist()], seed=2)["a"]["e"]
    for sign, name in ((1, "positive"), (-1, "negative")):
        side = result[name]
        magnitudes = np.sort((data * sign)[data * sign > 0].astype(float))
        assert len(side["bucket_counts"]) <= 160 and sum(side["bucket_counts"]) == len(magnitudes)
        bounds = 2.0 ** ((side["offset"] + np.arange(len(side["bucket_counts"]) + 1)) / 2 ** result["scale"])
        expected = np.diff(np.searchsorted(magnitudes, bounds, side="right"))
        assert side["bucket_counts"] == expected.tolist()


def test_where_chooses_the_events() -> None:
    schema = pa.schema([("x", pa.float64()), ("ok", pa.bool_())])
    events = [("a", 1.0, True), ("a", 9.0, False), ("b", 3.0, False), ("a", 2.0, None)]
    aggregates = {"h": {"histogram": {"of": "x", "bounds": [5], "where": "ok"}}, "e": {"exponential_histogram": {"of": "x", "where": "ok"}}}
    found = results(aggregates, schema, events, seed=1)
    assert (found["a"]["h"], found["b"]["h"], found["b"]["e"]) == ([1, 0], [0, 0], None)
    assert (found["a"]["e"]["count"], found["a"]["e"]["positive"]) == (1, {"offset": -1, "bucket_counts": [1]})


@pytest.mark.parametrize(("aggregate", "message"), [
    ({"histogram": {"of": "x", "bounds": [5, 3]}}, "bounds must ascend; found 5 before 3"),
    ({"histogram": {"of": "x", "bounds": [5, 5]}}, "bounds must ascend; found 5 before 5"),
    ({"histogram": {"of": "x", "bounds": []}}, "expected 1 to 1000 bounds, found 0"),
    ({"histogram": {"of": "x", "bounds": [1, math.inf]}}, "finite number"),
    ({"histogram": {"of": "x"}}, "missing"),
    ({"exponential_histogram": {"of": "x", "max_size": 1}}, "greater than or equal to 2"),
    ({"exponential_histogram": {"of": "x", "scale": 21}}, "less than or equal to 20"),
])  # fmt: skip
def test_wrong_parameters_are_told(aggregate: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AggregateOptions(metric="m", window={"tumbling": "1s"}, aggregates={"h": aggregate})
    assert message in problems(caught.value)[0][1]


@pytest.mark.parametrize("kind", [Histogram, ExponentialHistogram])
def test_a_field_of_text_is_refused(kind: Any) -> None:
    options = kind.Options.model_validate({"of": "x", **({"bounds": [1]} if kind is Histogram else {})})
    with pytest.raises(ValueError, match="histogram needs a number; field 'x' is string"):
        kind(options, pa.schema([("x", pa.string())]))
