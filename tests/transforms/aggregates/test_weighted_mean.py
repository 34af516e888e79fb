"""ewm against decimal arithmetic: within its bound, and to the bit the same in every order and grouping."""

from __future__ import annotations

import math
import random
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms.aggregates.trial import events_of, result_of
from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE
from tests.examples import examples
from tests.transforms.aggregates.regrouped import results
from tests.transforms.aggregates.test_exact_sum import HUGE, SPECIAL, TINY

SCHEMA = pa.schema([(EVENT_TIME, EVENT_TIME_TYPE), ("x", pa.float64())])
BOUND = Decimal("2e-15")
VALUES = st.floats(allow_nan=False, allow_infinity=False) | SPECIAL | st.floats(-1000, 1000)
NEAR = st.integers(0, 3_600_000_000).map(lambda offset: 1_700_000_000_000_000 + offset)
TIMES = NEAR | st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)


def assert_mean(found: float | None, events: list[tuple[int, float]], half_life: int) -> None:
    assert (found is None) == (not events)
    if found is None:
        return
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -(10**17), 10**17
        latest = max(time for time, _ in events)
        weights = [Decimal(2) ** (Decimal(time - latest) / half_life) for time, _ in events]
        sizes = sum(weight * abs(Decimal(value)) for weight, (_, value) in zip(weights, events, strict=True))
        mean = sum(weight * Decimal(value) for weight, (_, value) in zip(weights, events, strict=True)) / sum(weights)
        assert abs(Decimal(found) - mean) <= BOUND * sizes / sum(weights) + Decimal(TINY)


@settings(deadline=None, max_examples=examples(40))
@given(
    st.lists(st.tuples(st.sampled_from("ab"), TIMES, st.none() | VALUES), min_size=1, max_size=25),
    st.sampled_from([1, 1000, 1_000_003, 300_000_000, 10**13]), st.integers(0, 1000),
)  # fmt: skip
def test_any_order_and_grouping(events: list[Any], half_life: int, seed: int) -> None:
    aggregate = {"mean": {"ewm": {"of": "x", "half_life": half_life}}}
    found = results(aggregate, SCHEMA, events, seed)
    shuffled = random.Random(seed).sample(events, len(events))
    again = results(aggregate, SCHEMA, shuffled, seed + 1)
    for key, row in found.items():
        assert row["mean"] == again[key]["mean"]
        assert_mean(row["mean"], [(time, value) for other, time, value in events if other == key and value is not None], half_life)


def test_what_decayed_is_dropped_the_same_early_and_late() -> None:
    """Addends around the last limb that is kept, with carries out of what is dropped."""
    chance = random.Random(5)
    for seed in range(20):
        events = [("a", chance.randint(0, 200) * 1_000_000 // 2, chance.choice([1, -1]) * (2.0 - 2.0**-52)) for _ in range(300)]
        wanted = results({"mean": {"ewm": {"of": "x", "half_life": "500ms"}}}, SCHEMA, events)
        assert results({"mean": {"ewm": {"of": "x", "half_life": "500ms"}}}, SCHEMA, chance.sample(events, 300), seed) == wanted


@pytest.mark.parametrize("values, expected", [
    ([HUGE, HUGE], HUGE), ([TINY, TINY], TINY), ([-0.0, 0.0], 0.0), ([math.inf, 1.0], math.inf), ([-math.inf, 1.0], -math.inf),
    ([math.inf, -math.inf], None), ([None, math.nan], None), ([None, 4.0], 4.0), ([7, 7], 7.0), ([3, None], 3.0), ([0.0, 3.0], 2.0),
])  # fmt: skip
def test_edges(values: list[Any], expected: float | None) -> None:
    events = events_of({"x": values}, times=[0, 60_000_000])
    found = result_of({"ewm": {"of": "x", "half_life": "1m"}}, events)
    assert found == (None if expected is None else pytest.approx(expected, rel=2e-15, abs=0))


def test_heavy_tails() -> None:
    chance = random.Random(2)
    values = [chance.paretovariate(0.5) * chance.choice([1, -1]) for _ in range(500)]
    times = [1_700_000_000_000_000 + chance.randint(0, 10**9) for _ in values]
    found = result_of({"ewm": {"of": "x", "half_life": "1m"}}, events_of({"x": values}, times=times))
    assert_mean(found, list(zip(times, values, strict=True)), 60_000_000)


def test_only_events_that_meet_the_condition_count() -> None:
    events = events_of({"x": [1.0, 5.0, 3.0], "kind": ["a", "b", "a"]}, times=[0, 1, 0])
    assert result_of({"ewm": {"of": "x", "half_life": "1h", "where": "kind = 'a'"}}, events) == 2.0
    assert result_of({"ewm": {"of": "x", "half_life": "1h", "where": "kind = 'c'"}}, events) is None


def test_many_equal_values_stay_what_they_are() -> None:
    values = np.full(100_000, 0.1)
    events = events_of({"x": pa.array(values)}, times=np.random.default_rng(1).integers(0, 10**9, len(values)))
    assert result_of({"ewm": {"of": "x", "half_life": "10s"}}, events) == pytest.approx(0.1, rel=2e-15, abs=0)
