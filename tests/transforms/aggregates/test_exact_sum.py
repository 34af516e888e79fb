"""Exact sums against rational arithmetic: equal to the last bit, in every order and grouping."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms.aggregates.exact_results import means, moments, totals
from streamgauge.transforms.aggregates.exact_sum import EXACT, Exact, merge_exact, of_integers, sum_doubles, sum_products, sum_squares
from streamgauge.transforms.groups import Groups, group_rows
from tests.examples import examples

TINY, HUGE = 5e-324, 1.7976931348623157e308
SPECIAL = st.sampled_from([0.0, -0.0, TINY, -TINY, 2.2250738585072014e-308, HUGE, -HUGE, 1.0, -1.0, 2.0**53, 2.0**53 + 2, 0.1, 1e16, -1e16])
DOUBLES = st.floats(allow_nan=False, allow_infinity=False) | SPECIAL
KEYED = st.lists(st.tuples(st.integers(0, 3), st.none() | DOUBLES), min_size=1, max_size=40)


def rounded(number: Fraction) -> float:
    """The nearest double; Python's division of integers rounds correctly."""
    try:
        return number.numerator / number.denominator
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def groups_of(keys: list[int]) -> Groups:
    return group_rows([pa.array(keys, pa.int64())], len(keys))


def one_group(rows: int) -> Groups:
    return Groups(np.zeros(rows, np.int64), 1, np.zeros(1, np.int64))


def total_of(values: list[Any], kernel: Any = sum_doubles) -> float | None:
    number: float | None = totals(kernel(pa.array(values, pa.float64()), one_group(len(values))))[0].as_py()
    return number


@settings(deadline=None, max_examples=examples(80))
@given(KEYED)
def test_a_total_is_the_double_nearest_to_the_true_sum(events: list[tuple[int, float | None]]) -> None:
    keys = [key for key, _ in events]
    found = totals(sum_doubles(pa.array([value for _, value in events], pa.float64()), groups_of(keys))).to_pylist()
    for key, total in zip(dict.fromkeys(keys), found, strict=True):
        values = [value for other, value in events if other == key and value is not None]
        assert total == (rounded(sum(map(Fraction, values), Fraction())) if values else None)


@settings(deadline=None, max_examples=examples(60))
@given(KEYED, st.integers(0, 2**32))
def test_equal_sums_are_equal_bytes_however_they_were_merged(events: list[tuple[int, float | None]], seed: int) -> None:
    """Events in any order, in parts of any size, parts merged in any grouping."""
    chance = random.Random(seed)
    keys, whole = [key for key, _ in events], pa.array([value for _, value in events], pa.float64())
    expected = dict(zip(dict.fromkeys(keys), sum_doubles(whole, groups_of(keys)).to_pylist(), strict=True))
    order = chance.sample(range(len(keys)), len(keys))
    edges = sorted({0, len(order), *(chance.randint(0, len(order)) for _ in range(4))})
    parts: list[tuple[list[int], pa.Array]] = []
    for some in (order[first:last] for first, last in pairwise(edges)):
        of_some = [keys[i] for i in some]
        parts.append((list(dict.fromkeys(of_some)), sum_doubles(whole.take(pa.array(some)), groups_of(of_some))))
    while len(parts) > 1:
        chance.shuffle(parts)
        (one, state), (other, another), *parts = parts
        merged = merge_exact(pa.concat_arrays([state, another]), groups_of([*one, *other]))
        parts.append((list(dict.fromkeys([*one, *other])), merged))
    assert dict(zip(parts[0][0], parts[0][1].to_pylist(), strict=True)) == expected


@pytest.mark.parametrize("values, total", [
    ([], None), ([None], None), ([math.nan], None), ([-0.0], 0.0), ([math.inf, 1.0], math.inf), ([-math.inf, -HUGE], -math.inf),
    ([math.inf, -math.inf, 1.0], None), ([HUGE, HUGE], math.inf), ([-HUGE, -HUGE], -math.inf), ([HUGE, HUGE, -HUGE], HUGE),
    ([TINY], TINY), ([-TINY, TINY], 0.0), ([HUGE, TINY, -HUGE], TINY), ([HUGE, 2.0**969], HUGE), ([HUGE, 2.0**970], math.inf),
    ([2.0**53, 1.0], 2.0**53), ([2.0**53, 1.0, TINY], 2.0**53 + 2), ([2.0**53 + 2, 1.0], 2.0**53 + 4), ([2.0**53, 1.0, -TINY], 2.0**53),
])  # fmt: skip
def test_edges(values: list[float | None], total: float | None) -> None:
    """Infinities of both signs have no sum; ties are rounded to even, and what lies far below breaks them."""
    assert total_of(values) == total
    assert math.copysign(1, total_of([-0.0]) or 0.0) == 1


@pytest.mark.parametrize("make", [
    lambda chance: [chance.paretovariate(0.5) for _ in range(3000)],
    lambda chance: [chance.lognormvariate(0, 20) * chance.choice([1, -1]) for _ in range(3000)],
    lambda chance: [chance.choice([1, -1]) * chance.random() * 2.0 ** chance.randint(-1070, 1000) for _ in range(3000)],
    lambda chance: [0.1] * 100_000,
    lambda chance: [1e16, 1.0, -1e16] * 1000,
])  # fmt: skip
def test_heavy_tails(make: Any) -> None:
    values = make(random.Random(1))
    assert total_of(values) == math.fsum(values)


def test_many_keys_of_all_exponents_at_once() -> None:
    """Memory is bounded by what the keys' own values reach: here a few huge keys, and many small ones."""
    values = np.concatenate([np.full(50_000, 1.5), [HUGE, TINY, -HUGE]])
    keys = pa.array(np.concatenate([np.arange(50_000), [7, 7, 7]]))
    state = sum_doubles(pa.array(values), group_rows([keys], len(keys)))
    assert state.nbytes < 50_000 * 24
    assert totals(state)[7].as_py() == 1.5
    assert totals(state).slice(8).to_numpy().tolist() == [1.5] * (50_000 - 8)


def test_size_of_state() -> None:
    """As the documentation says."""
    usual = sum_doubles(pa.array(np.random.default_rng(1).lognormal(3, 1, 10_000)), one_group(10_000))
    widest = sum_products(pa.StructArray.from_arrays([pa.array([HUGE, TINY])] * 2, ["x", "y"]), one_group(2))
    assert len(usual[0].as_py()) <= 20
    assert 500 < len(widest[0].as_py()) <= 550


def test_part_of_an_array() -> None:
    array = pa.array([9.0, None, 1.0, math.nan, 2.0, 9.0]).slice(1, 4)
    states = sum_doubles(array, Groups(np.array([0, 1, 2, 1]), 3, np.array([0, 1, 2])))
    assert totals(states).to_pylist() == [None, 3.0, None]
    assert totals(states.slice(1)).to_pylist() == [3.0, None]
    assert totals(states.take(pa.array([1, 0, 1]))).to_pylist() == [3.0, None, 3.0]
    assert totals(merge_exact(states.take(pa.array([1, 0, 1])).slice(1), one_group(2))).to_pylist() == [3.0]
    assert totals(merge_exact(pa.array([None, None], EXACT), one_group(2))).to_pylist() == [None]


NUMBERS = {
    pa.float64(): DOUBLES, pa.float32(): st.floats(width=32, allow_nan=False, allow_infinity=False), pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1), pa.int16(): st.integers(-(2**15), 2**15 - 1),
}  # fmt: skip


@settings(deadline=None, max_examples=examples(80))
@given(st.data(), st.sampled_from(list(NUMBERS)), st.sampled_from(list(NUMBERS)))
def test_products_are_exact(data: st.DataObject, left: pa.DataType, right: pa.DataType) -> None:
    pairs = data.draw(st.lists(st.tuples(NUMBERS[left], NUMBERS[right]), min_size=1, max_size=20))
    x, y = (pa.array([pair[side] for pair in pairs], kind) for side, kind in enumerate((left, right)))
    expected = [Fraction(a) * Fraction(b) for a, b in zip(x.to_pylist(), y.to_pylist(), strict=True)]
    half = len(pairs) // 2
    array = pa.StructArray.from_arrays([x, y], ["x", "y"])
    parts = [sum_products(part, one_group(len(part))) for part in (array.slice(0, half), array.slice(half))]
    assert totals(merge_exact(pa.concat_arrays(parts), one_group(2)))[0].as_py() == rounded(sum(expected, Fraction()))
    assert totals(sum_squares(x, one_group(len(x))))[0].as_py() == rounded(sum((Fraction(a) ** 2 for a in x.to_pylist()), Fraction()))


COUNTS = st.integers(2, 10) | st.integers(2, 2**63 - 1) | st.sampled_from([2**31, 2**32 - 1, 2**32, 2**32 + 1])


@settings(deadline=None, max_examples=examples(80))
@given(st.lists(DOUBLES, min_size=1, max_size=10), COUNTS)
def test_a_mean_is_rounded_once(values: list[float], count: int) -> None:
    state = Exact.of(sum_doubles(pa.array(values), one_group(len(values))))
    assert means(state, np.array([count]))[0].as_py() == rounded(sum(map(Fraction, values), Fraction()) / count)


@settings(deadline=None, max_examples=examples(80))
@given(st.lists(st.tuples(DOUBLES, DOUBLES), min_size=1, max_size=10), COUNTS, st.integers(0, 1))
def test_a_moment_is_rounded_once(pairs: list[tuple[float, float]], count: int, freedom: int) -> None:
    """Of any count: what it counts does not matter to the arithmetic."""
    columns = [pa.array(column, pa.float64()) for column in zip(*pairs, strict=True)]
    x, y = (Exact.of(sum_doubles(column, one_group(len(pairs)))) for column in columns)
    products = Exact.of(sum_products(pa.StructArray.from_arrays(columns, ["x", "y"]), one_group(len(pairs))))
    xs, ys = ([Fraction(pair[side]) for pair in pairs] for side in (0, 1))
    total = count * sum((a * b for a, b in zip(xs, ys, strict=True)), Fraction()) - sum(xs, Fraction()) * sum(ys, Fraction())
    found = moments(np.array([count]), x, y, products, freedom)
    assert found.known[0]
    assert found.doubles()[0] == rounded(total / (count * (count - freedom)))


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=5))
def test_integers_in_two_halves(parts: list[tuple[int, int]]) -> None:
    high, low = (np.array([part[side] for part in parts], np.int64) for side in (0, 1))
    state = of_integers(high, low, np.ones(len(parts), np.bool_))
    assert totals(state.array()).to_pylist() == [float(h * 2**32 + low_part) for h, low_part in parts]
    assert totals(of_integers(high, low, np.zeros(len(parts), np.bool_)).array()).null_count == len(parts)
