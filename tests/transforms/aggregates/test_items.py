"""Items with weights, against a dictionary of sums."""

from __future__ import annotations

import datetime
import struct
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamgauge.transforms.aggregates.items import MOST, count_items, items_type, merge_items, open_lists
from streamgauge.transforms.groups import group_rows
from tests.examples import examples

DAY = datetime.date(1970, 1, 1)
KINDS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int8(), st.integers(-128, 127)),
    (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float64(), st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0])),
    (pa.float32(), st.floats(allow_nan=False, width=32)),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text(max_size=3) | st.sampled_from(["", "\x00", "é", "e\u0301", "\U0010ffff", "\uffff"])),
    (pa.date32(), st.dates()),
    (pa.timestamp("us", "UTC"), st.integers(-(2**55), 2**55)),
    (pa.timestamp("ns"), st.integers(-(2**63), 2**63 - 1)),
]


def expected(rows: list[tuple[str, Any, int]], order: list[str]) -> list[list[tuple[Any, int]]]:
    sums: dict[str, Counter[Any]] = {key: Counter() for key in order}
    for key, item, weight in rows:
        if item is not None:
            sums[key][item] = min(sums[key][item] + weight, MOST)
    return [sorted(sums[key].items(), key=lambda entry: entry[0].encode() if isinstance(entry[0], str) else entry[0]) for key in order]


def plain(lists: pa.Array, kind: pa.DataType) -> list[list[tuple[Any, int]]]:
    integers = pa.types.is_timestamp(kind)
    if integers:
        lists = lists.cast(items_type(pa.int64()))
    return [[(entry["item"], entry["weight"]) for entry in group] for group in lists.to_pylist()]


@settings(deadline=None, max_examples=examples(60))
@given(st.data(), st.sampled_from(KINDS), st.booleans(), st.integers(0, 40))
def test_counted_in_parts_and_merged_is_the_sum_of_weights(
    data: st.DataObject, kind: tuple[pa.DataType, st.SearchStrategy[Any]], weighted: bool, cut: int
) -> None:
    weight = st.integers(0, 9) | st.just(MOST) if weighted else st.just(1)
    rows = data.draw(st.lists(st.tuples(st.sampled_from("abc"), st.none() | kind[1], weight), max_size=40))
    parts = []
    for some in (rows[:cut], rows[cut:]):
        keys, items, weights = (list(column) for column in zip(*some, strict=True)) if some else ([], [], [])
        groups = group_rows([pa.array(keys, pa.string())], len(some))
        order = [keys[first] for first in groups.first]
        lists = count_items(pa.array(items, kind[0]), groups, np.array(weights, np.int64) if weighted else None)
        assert lists.type == items_type(kind[0])
        assert plain(lists, kind[0]) == expected(some, order)
        parts.append((order, lists))
    keys = [key for order, _ in parts for key in order]
    groups = group_rows([pa.array(keys, pa.string())], len(keys))
    merged = merge_items(pa.concat_arrays([lists for _, lists in parts]), groups)
    assert merged.type == items_type(kind[0])
    assert plain(merged, kind[0]) == expected(rows, [keys[first] for first in groups.first])


def test_null_lists_and_slices_are_read_right() -> None:
    lists = pa.array([[{"item": 9, "weight": 9}], [{"item": 1, "weight": 1}], None, [{"item": 1, "weight": 2}], []], items_type(pa.int64())).slice(1)
    assert open_lists(lists).starts.tolist() == [0, 1, 1, 2, 2]
    assert plain(merge_items(lists, group_rows([pa.array([1, 1, 1, 2])], 4)), pa.int64()) == [[(1, 3)], []]
    counted = count_items(pa.array([5, 7, None, 7]).slice(1), group_rows([], 3))
    assert plain(counted, pa.int64()) == [[(7, 2)]]


@settings(deadline=None, max_examples=examples(20))
@given(st.lists(st.sampled_from(["x", "y", None]), max_size=10))
@example([])
def test_a_dictionary_counts_as_what_it_stands_for(items: list[str | None]) -> None:
    groups = group_rows([], len(items))
    plainly = pa.array(items, pa.string())
    assert count_items(plainly.dictionary_encode(), groups).equals(count_items(plainly, groups))


@pytest.mark.parametrize("zeros", [[0.0, -0.0], [-0.0, 0.0]])
def test_both_zeros_are_one_item(zeros: list[float]) -> None:
    ((entry,),) = count_items(pa.array(zeros), group_rows([], 2)).to_pylist()
    assert (struct.pack("d", entry["item"]), entry["weight"]) == (struct.pack("d", 0.0), 2)


@pytest.mark.parametrize("kind", [pa.int64(), pa.timestamp("us")])
def test_integers_too_far_apart_to_be_packed(kind: pa.DataType) -> None:
    extremes = [2**63 - 1, -(2**63), 0, 2**63 - 1, -(2**63)]
    groups = group_rows([pa.array([1, 2, 1, 1, 1])], 5)
    counted = count_items(pa.array(extremes, kind), groups)
    assert plain(counted, kind) == [[(-(2**63), 1), (0, 1), (2**63 - 1, 2)], [(-(2**63), 1)]]
