"""rate and increase of counters, against plain Python."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from streamgauge.transforms.aggregates.trial import events_of, result_of
from streamgauge.transforms.batch import EVENT_TIME
from tests.examples import examples
from tests.transforms.aggregates.any_order import Algebra, Event, by_key, events

FIELDS = {"n": pa.int64(), "small": pa.int16(), "u": pa.uint64(), "x": pa.float64(), "single": pa.float32()}
EXTREMES = [-(2**63), -1, 0, 1, 2**53 + 1, 2**62, 2**63 - 2, 2**63 - 1]
EVENTS = events({
    "n": st.none() | st.sampled_from(EXTREMES) | st.integers(0, 100), "small": st.none() | st.integers(0, 100),
    "u": st.none() | st.sampled_from([0, 2**63, 2**64 - 1]), "x": st.none() | st.sampled_from([math.nan, math.inf, 0.1, 5e-324, 1e300, 3.0]),
    "single": st.none() | st.sampled_from([math.nan, 0.5, 2.0]),
})  # fmt: skip
AGGREGATES: dict[str, Any] = {
    **{f"grown_{name}": {"increase": name} for name in FIELDS}, **{f"rate_{name}": {"rate": name} for name in FIELDS},
    "per_minute": {"rate": {"of": "small", "per": "1m"}}, "where": {"increase": {"of": "small", "where": "small > 50"}},
}  # fmt: skip
ALGEBRA = Algebra(AGGREGATES, FIELDS)
LIMITS = {"n": (-(2**63), 2**63), "small": (-(2**63), 2**63), "u": (0, 2**64)}


def samples(some: list[Event], name: str) -> list[tuple[int, Any]]:
    return [(event[EVENT_TIME], event[name]) for event in some if event[name] is not None and not math.isnan(event[name])]


def increase(found: list[tuple[int, Any]], name: str) -> Any:
    """As Prometheus' ``instantRate`` of a range has it: last less first, plus the value before each reset."""
    values = [value for _, value in found]
    if len(values) < 2:
        return None
    total = values[-1] - values[0]
    for before, after in pairwise(values):
        total += before if after < before else 0
    if name in LIMITS:
        return total if LIMITS[name][0] <= total < LIMITS[name][1] else None
    return None if math.isnan(total) else total


def rate(found: list[tuple[int, Any]], name: str, per: int = 1_000_000) -> float | None:
    total = increase(found, name)
    between = found[-1][0] - found[0][0] if found else 0
    return None if total is None or not between else float(total) / (between / per)


@settings(deadline=None, max_examples=examples(20))
@given(EVENTS, st.integers(0, 1000))
def test_any_order_of_merging_gives_what_python_says(some: list[Event], seed: int) -> None:
    found = ALGEBRA.results(some, seed)
    for key, own in by_key(some).items():
        wanted = {f"grown_{name}": increase(samples(own, name), name) for name in FIELDS}
        wanted |= {f"rate_{name}": rate(samples(own, name), name) for name in FIELDS}
        wanted["per_minute"] = rate(samples(own, "small"), "small", 60_000_000)
        wanted["where"] = increase([(time, value) for time, value in samples(own, "small") if value > 50], "small")
        assert {name: found[key][name] for name in AGGREGATES} == wanted


def test_a_drop_is_a_reset_and_nothing_is_extrapolated() -> None:
    events = events_of({"n": [100, 160, 20, 80]}, times=[5_000_000, 20_000_000, 35_000_000, 50_000_000])
    assert (result_of({"increase": "n"}, events), result_of({"rate": "n"}, events)) == (140, 140 / 45)


def test_rate_and_increase_share_their_samples() -> None:
    state = Algebra({"a": {"rate": "n"}, "b": {"increase": "n"}}, {"n": pa.int64()}).partials.metric.state
    assert [column.name for column in state] == ["events", "samples(n)"]


@pytest.mark.parametrize(("aggregate", "message"), [
    ({"rate": "name"}, "rate needs a number; field 'name' is string"), ({"increase": "m"}, "increase of 'm': the schema has no such field"),
    ({"rate": {"of": "n", "per": "0s"}}, "per"), ({"rate": {"of": "n", "per": "fast"}}, "'fast' is not a duration"),
    ({"increase": {"of": "n", "per": "1s"}}, "unknown key"),
])  # fmt: skip
def test_mistakes_are_told_when_the_job_is_checked(aggregate: dict[str, Any], message: str) -> None:
    with pytest.raises(PydanticCustomError) as raised:
        result_of(aggregate, events_of({"name": ["a"], "n": [1]}))
    assert message in str(raised.value)
