"""Items with weights: the state of everything that counts values (mode, top, the buckets of a sketch).

The state of a group is a list<struct<item, weight: int64>>, each item once, sorted by item. Sums of weights end at 2**63 - 1: for weights that are
not negative that does not depend on the order either. Size: 8 bytes and those of the item for each different item.

Group and item of a row are packed into one integer, so that one sort of integers finds the pairs: measured faster than a hash
aggregation over two columns, and it leaves the items sorted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streamgauge.transforms.aggregates.base import any_field
from streamgauge.transforms.arrays import is_text
from streamgauge.transforms.config import user_error
from streamgauge.transforms.formats.compiled import kernel
from streamgauge.transforms.groups import Groups

Longs = npt.NDArray[np.int64]

MOST = np.iinfo(np.int64).max
"""Where sums of weights end."""

_PACKED_BITS = 62


def countable_field(schema: pa.Schema, name: str, aggregate: str) -> pa.Field:
    """The field, with the type that its items have. A user's error when there is none or its values cannot be counted."""
    field = any_field(schema, name, aggregate)
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if is_text(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind) or _is_integral(kind) or pa.types.is_uint64(kind):
        return field.with_type(kind)
    raise user_error(f"{aggregate} needs a string, bool, number, date or timestamp; field '{name}' is {kind}")


def items_type(item: pa.DataType) -> pa.DataType:
    """Type of the state over items of a type."""
    return pa.list_(pa.struct([("item", item), ("weight", pa.int64())]))


class Items(NamedTuple):
    """Items of all groups one behind the other: those of group i are at ``starts[i]`` up to ``starts[i + 1]``."""

    starts: Longs
    items: pa.Array
    weights: Longs

    @property
    def lengths(self) -> Longs:
        return np.diff(self.starts)

    @property
    def groups(self) -> Longs:
        """The group of each item."""
        return np.repeat(np.arange(len(self.starts) - 1), self.lengths)

    def keep(self, kept: npt.NDArray[np.bool_]) -> Items:
        """Only some of the items."""
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
        return Items(before[self.starts], self.items.filter(pa.array(kept)), self.weights[kept])

    def to_lists(self) -> pa.Array:
        """The stored form."""
        entries = pa.StructArray.from_arrays([self.items, pa.array(self.weights)], ["item", "weight"])
        return pa.ListArray.from_arrays(pa.array(self.starts.astype(np.int32)), entries)


def open_lists(lists: pa.Array) -> Items:
    """The items of stored lists; null is an empty list."""
    entries = lists.flatten()
    starts = np.zeros(len(lists) + 1, np.int64)
    np.cumsum(np.asarray(pc.fill_null(pc.list_value_length(lists), 0)), out=starts[1:])
    items, weights = entries.flatten()
    return Items(starts, items, np.asarray(weights))


def count_items(items: pa.Array, groups: Groups, weights: Longs | None = None) -> pa.Array:
    """How often, or with which sum of weights, each item is in each group. Nulls do not count; nor do NaN, if they are null.

    >>> from streamgauge.transforms.groups import group_rows
    >>> groups = group_rows([pa.array(["a", "b", "a", "a"])], 4)
    >>> [[tuple(entry.values()) for entry in group] for group in count_items(pa.array([7, None, 5, 7]), groups).to_pylist()]
    [[(5, 1), (7, 2)], []]
    """
    return sum_items(items, groups.ids, groups.count, weights).to_lists()


def merge_items(lists: pa.Array, groups: Groups) -> pa.Array:
    """The lists of each group as one: its items with the sums of their weights.

    >>> from streamgauge.transforms.groups import group_rows
    >>> groups = group_rows([pa.array(["a", "a"])], 2)
    >>> lists = count_items(pa.array(["x", "y"]), group_rows([pa.array([1, 2])], 2))
    >>> merge_items(pa.concat_arrays([lists, lists]), group_rows([pa.array([0, 0, 0, 0])], 4)).to_pylist()
    [[{'item': 'x', 'weight': 2}, {'item': 'y', 'weight': 2}]]
    """
    found = open_lists(lists)
    return sum_items(found.items, np.repeat(groups.ids, found.lengths), groups.count, found.weights).to_lists()


def sum_items(items: pa.Array, ids: Longs, count: int, weights: Longs | None = None) -> Items:
    """The same over rows whose groups are ``ids``, below ``count``; each row weighs 1 without ``weights``."""
    if items.null_count:
        valid = np.asarray(pc.is_valid(items))
        items, ids, weights = items.drop_null(), ids[valid], None if weights is None else weights[valid]
    if pa.types.is_dictionary(items.type):
        items = items.cast(items.type.value_type)
    if pa.types.is_floating(items.type):
        items = pc.add(items, pa.scalar(0, items.type))  # -0.0 is 0.0
    ranks, bits, values = _ranks(items, _PACKED_BITS - count.bit_length())
    packed = (ids << bits) | ranks
    if weights is None:
        packed.sort()
        first = np.flatnonzero(np.diff(packed, prepend=-1))
        packed, sums = packed[first], np.diff(first, append=len(packed))
    else:
        order = np.argsort(packed)
        sums = np.empty(len(packed), np.int64)
        size = _sum_runs(packed, order, weights, sums)
        packed, sums = packed[order[:size]], sums[:size]
    starts = np.searchsorted(packed, np.arange(count + 1) << bits)
    return Items(starts, _values(packed & ((1 << bits) - 1), values, items.type), sums)


def _is_integral(kind: pa.DataType) -> bool:
    """Types that are 64-bit integers by a cast."""
    integer = pa.types.is_integer(kind) and not pa.types.is_uint64(kind)
    return bool(integer or pa.types.is_boolean(kind) or pa.types.is_date32(kind) or pa.types.is_date64(kind) or pa.types.is_timestamp(kind))


def _ranks(items: pa.Array, room: int) -> tuple[Longs, int, pa.Array | int]:
    """Numbers in the order of the items, how many bits they take, and what they stand for: the sorted different items, or the item of number 0."""
    if _is_integral(items.type) and len(items):
        integers = np.asarray((items.cast(pa.int32()) if pa.types.is_date32(items.type) else items).cast(pa.int64()))
        least, most = int(integers.min()), int(integers.max())
        if (most - least).bit_length() <= room:
            return integers - least, (most - least).bit_length(), least
    encoded = items.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    rank = np.empty(len(order), np.int64)
    rank[np.asarray(order)] = np.arange(len(order))
    return rank[np.asarray(encoded.indices)], len(order).bit_length(), encoded.dictionary.take(order)


def _values(ranks: Longs, values: pa.Array | int, kind: pa.DataType) -> pa.Array:
    if not isinstance(values, int):
        return values.take(pa.array(ranks))
    integers = pa.array(ranks + values)
    return integers.cast(pa.int32()).cast(kind) if pa.types.is_date32(kind) else integers.cast(kind)


@kernel
def _sum_runs(packed: Longs, order: Longs, weights: Longs, sums: Longs) -> int:
    """Sums over equal numbers, and how many differ: ``order`` sorts them, and begins with one place of each then."""
    size, last = 0, -1
    for i in range(len(order)):
        place = order[i]
        weight = weights[place]
        if packed[place] != last:
            last = packed[place]
            order[size], sums[size] = place, weight
            size += 1
        elif weight > MOST - sums[size - 1]:
            sums[size - 1] = MOST
        else:
            sums[size - 1] += weight
    return size
