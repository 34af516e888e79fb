"""Groups against plain Python, and sums, minima and maxima by group against Arrow's group_by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms.groups import Groups, group_rows
from streamgauge.transforms.reductions import reduced
from tests.examples import examples

TEXT = st.none() | st.sampled_from(["", "a", "b", "ab", "ß", "a\x00", "\x00a"]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ROWS = st.lists(st.tuples(TEXT, st.none() | st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)]), st.none() | st.booleans()), max_size=40)
KINDS = (pa.string(), pa.int64(), pa.bool_())


def columns_of(rows: list[tuple[Any, ...]], kinds: tuple[pa.DataType, ...] = KINDS) -> list[pa.Array]:
    return [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(kinds)]


def expected(rows: list[Any]) -> tuple[list[int], list[int]]:
    """(group of each row, first row of each group)."""
    numbers: dict[Any, int] = {}
    ids = [numbers.setdefault(row, len(numbers)) for row in rows]
    return ids, [ids.index(number) for number in range(len(numbers))]


def check(groups: Groups, rows: list[Any]) -> None:
    ids, first = expected(rows)
    assert (groups.ids.tolist(), groups.first.tolist(), groups.count) == (ids, first, len(first))


@settings(deadline=None)
@given(ROWS, st.integers(1, 3), st.integers(0, 9))
def test_equal_rows_are_one_group(rows: list[tuple[Any, ...]], width: int, skipped: int) -> None:
    kept = [row[:width] for row in rows[skipped:]]
    check(group_rows([column.slice(skipped) for column in columns_of(rows)[:width]], len(kept)), kept)


@settings(deadline=None)
@given(ROWS, st.integers(1, 3))
def test_rows_that_share_a_hash_stay_apart(rows: list[tuple[Any, ...]], hashes: int) -> None:
    """As if there were so many hashes in all."""
    numbers = [sum(map(ord, str(row))) % hashes for row in rows]
    check(group_rows(columns_of(rows), len(rows), np.array(numbers, np.uint64)), rows)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-5, 5) | st.sampled_from([-(2**62), 2**62])), min_size=1, max_size=30))
def test_split_by_numbers(rows: list[tuple[str, int]]) -> None:
    groups = group_rows([pa.array([key for key, _ in rows])], len(rows))
    check(groups.split(np.array([number for _, number in rows])), rows)


def test_groups_in_another_order() -> None:
    groups = group_rows([pa.array(["x", "y", "x", "z"])], 4).ordered(np.array([2, 0, 1]))
    assert (groups.ids.tolist(), groups.first.tolist(), groups.count) == ([1, 2, 1, 0], [3, 0, 1], 3)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.5, 2.5, 1.5, None]), pa.array([b"x", b"y", b"x", None]), pa.array(["x", "y", "x", None]).dictionary_encode(),
        pa.array([3, 4, 3, None], pa.date32()), pa.array([3, 4, 3, None], pa.uint64()), pa.array([3, 4, 3, None], pa.timestamp("ms")),
        pa.array(["x", "y", "x", None], pa.large_string()), pa.array([2**64 - 1, 0, 2**64 - 1, None], pa.uint64()),
    ],
)  # fmt: skip
def test_every_type(column: pa.Array) -> None:
    check(group_rows([column], 4), ["x", "y", "x", None])
    check(group_rows([column, pa.array([1, 1, 2, 1])], 4), [("x", 1), ("y", 1), ("x", 2), (None, 1)])


def test_nothing() -> None:
    check(group_rows([pa.array([], pa.string()), pa.array([], pa.int32())], 0), [])
    assert group_rows([], 3).ids.tolist() == [0, 0, 0]


VALUES = {
    pa.int64(): st.none() | st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.none() | st.floats(allow_nan=False) | st.sampled_from([math.inf, -math.inf]),
    pa.timestamp("us", "UTC"): st.none() | st.integers(0, 2**50),
    pa.int16(): st.none() | st.integers(-9, 9),
    pa.string(): TEXT,
    pa.bool_(): st.none() | st.booleans(),
}


@settings(deadline=None, max_examples=examples(150))
@given(st.data(), st.sampled_from(list(VALUES)), st.sampled_from(["sum", "min", "max", "count"]), st.integers(0, 3))
def test_the_same_as_arrow(data: st.DataObject, kind: pa.DataType, function: str, skipped: int) -> None:
    keys = data.draw(st.lists(st.integers(0, 5), min_size=skipped + 1, max_size=30))
    array = pa.array(data.draw(st.lists(VALUES[kind], min_size=len(keys), max_size=len(keys))), kind).slice(skipped)
    groups = group_rows([pa.array(keys[skipped:])], len(array))
    found = reduced(function, array, groups)
    if found is None:
        assert function != "count" and not (kind == pa.int64() or (kind == pa.float64() and function != "sum"))
        return
    wanted = pa.table({"group": groups.ids, "value": array}).group_by("group", use_threads=False).aggregate([("value", function)])
    found.validate(full=True)
    assert found.type == wanted.column(f"value_{function}").type
    assert found.to_pylist() == wanted.column(f"value_{function}").to_pylist()
