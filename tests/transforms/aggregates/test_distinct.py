"""distinct: exact below the threshold and within the error above it, in any order of merging."""

from __future__ import annotations

import datetime as dt
import math
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from streamgauge.transforms.aggregates.hyperloglog import add, estimates, standard_error
from streamgauge.transforms.aggregates.trial import events_of, result_of
from streamgauge.transforms.aggregates.uniques import codes, distinct, hashes_of
from streamgauge.transforms.groups import group_rows
from tests.examples import examples
from tests.transforms.aggregates.any_order import Algebra, Event, by_key, events

FIELDS = {
    "x": pa.float64(), "single": pa.float32(), "n": pa.int64(), "u": pa.uint64(), "text": pa.string(), "flag": pa.bool_(), "day": pa.date32(),
    "at": pa.timestamp("us", "UTC"), "kind": pa.dictionary(pa.int8(), pa.string()),
}  # fmt: skip
EVENTS = events({
    "x": st.none() | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1e300]) | st.floats(-4, 4).map(round).map(float),
    "single": st.sampled_from([None, math.nan, 0.0, -0.0, 1.5]), "n": st.none() | st.sampled_from([-(2**63), 2**63 - 1]) | st.integers(-9, 9),
    "u": st.sampled_from([None, 0, 2**63, 2**64 - 1]), "text": st.none() | st.sampled_from(["", "\x00", "\x00\x00", "ß", "ss", "12345678", "12345678\x00"]) | st.text(),
    "flag": st.none() | st.booleans(), "day": st.none() | st.dates(dt.date(2020, 1, 1), dt.date(2020, 1, 9)),
    "at": st.none() | st.datetimes(timezones=st.just(dt.timezone.utc)), "kind": st.sampled_from([None, "a", "b"]),
}, max_size=60)  # fmt: skip
LIMITED = {"of": "text", "exact_up_to": 6, "precision": 5}
AGGREGATES: dict[str, Any] = {
    **{f"few_{name}": {"distinct": name} for name in FIELDS}, **{f"exact_{name}": {"distinct": {"of": name, "exact": True}} for name in FIELDS},
    "where": {"distinct": {"of": "text", "where": "flag"}}, "sketched": {"distinct": LIMITED}, "registers": {"distinct": {**LIMITED, "exact_up_to": 0}},
}  # fmt: skip
ALGEBRA = Algebra(AGGREGATES, FIELDS)


def counted(some: list[Event], name: str) -> set[Any]:
    return {event[name] for event in some if event[name] is not None and not (isinstance(event[name], float) and math.isnan(event[name]))}


@settings(deadline=None, max_examples=examples(15))
@given(EVENTS, st.integers(0, 1000))
def test_any_order_of_merging_gives_what_python_says(some: list[Event], seed: int) -> None:
    found = ALGEBRA.results(some, seed)
    at_once = ALGEBRA.results(some, seed + 1)
    for key, own in by_key(some).items():
        for name in FIELDS:
            assert found[key][f"few_{name}"] == found[key][f"exact_{name}"] == len(counted(own, name)), name
        assert found[key]["where"] == len(counted([event for event in own if event["flag"]], "text"))
        texts = len(counted(own, "text"))
        assert found[key]["sketched"] == at_once[key]["sketched"], "not to the last digit the same in another order"
        assert found[key]["sketched"] == texts if texts <= 6 else found[key]["sketched"] > 6
        if texts > 6:
            assert found[key]["sketched"] == max(found[key]["registers"], 7), "changed into registers if and only if above the threshold"


@pytest.mark.parametrize("precision", [4, 10, 14])
def test_the_error_is_the_stated_one_over_many_seeds(precision: int) -> None:
    """Root mean square of the relative error, and hardly anything beyond 4 standard errors, from few values to many."""
    sketches = 200 if precision < 14 else 60
    for size in (1 << precision) // 4, 3 << precision, 20 << precision:
        size = min(size, 40_000)
        errors = []
        for start in range(sketches):
            registers = np.zeros((1, 1 << precision), np.uint8)
            numbers = pa.array(np.arange(start * size, (start + 1) * size))
            add(hashes_of(numbers), np.zeros(size, np.int64), np.ones(1, np.bool_), registers)
            errors.append(estimates(registers, precision)[0] / size - 1)
        assert np.sqrt(np.mean(np.square(errors))) < 1.2 * standard_error(precision), size
        assert abs(np.mean(errors)) < 4 * standard_error(precision) / math.sqrt(sketches), "biased"
        assert np.mean(np.abs(errors) > 4 * standard_error(precision)) <= 0.01


@pytest.mark.parametrize("values", [
    pa.array([f"user-{i}" for i in range(30_000)]), pa.array(np.arange(30_000) * 2**40), pa.array(np.arange(30_000) * 1e-9),
    pa.array(np.random.default_rng(1).pareto(0.5, 30_000)), pa.array(["x" * (i % 300) + str(i) for i in range(30_000)]),
], ids=["names", "multiples", "doubles", "pareto", "long"])  # fmt: skip
def test_values_of_any_kind_are_spread(values: pa.Array) -> None:
    found = result_of({"distinct": {"of": "v"}}, events_of({"v": values}))
    assert abs(found / 30_000 - 1) < 4 * standard_error(14)
    assert result_of({"distinct": {"of": "v", "exact": True}}, events_of({"v": values})) == 30_000


def test_the_threshold_is_exact_on_both_sides() -> None:
    texts = [f"{i}" for i in range(1024)]
    assert result_of({"distinct": "v"}, events_of({"v": texts * 2})) == 1024
    beyond = result_of({"distinct": "v"}, events_of({"v": [*texts, "one more"] * 2}))
    assert beyond >= 1025
    assert abs(beyond / 1025 - 1) < 0.03


def mixed(value: int) -> int:
    """SplitMix64, of a state that is ``value``."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def hash_of(text: bytes) -> int:
    """The length, then eight bytes at a time, the last of which may overlap those before."""
    found = len(text) * 0x100000001B3
    for start in [*range(0, len(text) - 8, 8), max(0, len(text) - 8)]:
        found = (found ^ int.from_bytes(text[start : start + 8], "little")) * 0xC6A4A7935BD1E995 % 2**64
        found ^= found >> 32
    return mixed(found)


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(st.text(max_size=20)), st.lists(st.floats(allow_nan=False)), st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_hashes_are_the_same_in_every_version(texts: list[str], floats: list[float], numbers: list[int]) -> None:
    """They are in stored state."""
    assert mixed(0) == 16294208416658607535
    assert hashes_of(pa.array(["", *texts], pa.string()).slice(1)).tolist() == [hash_of(text.encode()) for text in texts]
    bits = [int.from_bytes(struct.pack("<d", value + 0.0), "little") for value in floats]
    assert hashes_of(pa.array(floats, pa.float64())).tolist() == [mixed(value) for value in bits]
    assert hashes_of(pa.array(numbers, pa.int64())).tolist() == [mixed(value % 2**64) for value in numbers]


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(st.tuples(st.integers(0, 2), st.none() | st.text(max_size=2)), max_size=40))
def test_distinct_rows_are_those_that_groups_find(rows: list[tuple[int, str | None]]) -> None:
    rows = [row for row in rows if row[1] is not None]
    ids, values = np.array([row[0] for row in rows], np.int64), pa.array([row[1] for row in rows], pa.string())
    new, numbers = distinct(codes(values), ids, 3)
    assert np.flatnonzero(new).tolist() == (group_rows([pa.array(ids), values], len(rows)).first.tolist() if rows else [])
    assert numbers.tolist() == [len({value for group, value in rows if group == own}) for own in range(3)]


@pytest.mark.parametrize(("options", "message"), [
    ("tags", "distinct needs a field of strings, numbers, booleans, dates or timestamps; field 'tags' is list<item: int64>"),
    ("texts", "distinct of 'texts': the schema has no such field - did you mean 'text'?"), ({"of": "text", "precision": 3}, "greater than or equal to 4; found 3"),
    ({"of": "text", "precision": 19}, "less than or equal to 18; found 19"), ({"of": "text", "exact_up_to": -1}, "exact_up_to"),
    ({"of": "text", "exact": True, "precision": 10, "exact_up_to": 5}, "distinct that is `exact` takes no exact_up_to and no precision"),
])  # fmt: skip
def test_mistakes_are_told_when_the_job_is_checked(options: Any, message: str) -> None:
    with pytest.raises(PydanticCustomError) as raised:
        result_of({"distinct": options}, events_of({"text": ["a"], "tags": [[1]]}))
    assert message in str(raised.value)
