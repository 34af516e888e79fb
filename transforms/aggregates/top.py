"""top: the values with the largest counts, or sums of another field."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from streamgauge.transforms.aggregates.base import Filtered, Source, Where, numeric_field, quoted, values
from streamgauge.transforms.aggregates.items import MOST, Items, Longs, countable_field, items_type, open_lists, sum_items
from streamgauge.transforms.config import user_error
from streamgauge.transforms.groups import Groups

_LEAST_CAPACITY = 100


class TopOptions(Filtered):
    """The `k` values that occur most often or, with `by`, have the largest sums of another field. An empty list without any value.

    The result is a list of structs, the largest first and equal ones by value: `value`, `count` (with `by`: `sum`), and `error`: the true figure is
    never below what is given, and at most `error` above it. It is exact, with `error` 0, while a key has at most `capacity` different
    values. Beyond, `error` is at most the total over all values, divided by `capacity` + 1, and every value with more than that is
    among those kept. Which others are, depends then on the order in which events were merged. With `by` of a float field the true figure is the sum
    of the rounded values, see `decimals`: up to half of the last decimal from each, which `error` does not hold.

    Source: Misra and Gries, "Finding repeated elements", 1982; Agarwal and others, "Mergeable summaries", PODS 2012.
    State: 8 bytes, and 8 bytes and those of the value for each of at most `capacity` values.
    """

    short: ClassVar[str] = "of"
    of: str = Field(description="A field of strings, booleans, numbers, dates or timestamps. Nulls and NaN do not count.")
    k: int = Field(10, ge=1, le=10_000, description="How many values to list.")
    by: str | None = Field(
        None, description="A numeric field whose sums decide, not the number of events. Events where it is null, NaN, zero or negative do not count."
    )
    capacity: int | None = Field(None, ge=1, le=2**20, description="Number of different values a key up to which the result is exact; default: 10 * k, at least 100.")
    decimals: int = Field(
        6, ge=0, le=15, description="With `by` of a float field: each value is rounded to so many decimals, and then summed exactly. Sums end at 9.2e18 units of them."
    )

    @model_validator(mode="after")
    def _enough(self) -> TopOptions:
        if self.capacity is not None and self.capacity < self.k:
            raise user_error(f"capacity must be at least k; found {self.capacity}, and k is {self.k}")
        return self


class Top:
    """Misra-Gries summary, with the error it has made so far.

    A summary of more than ``capacity`` values loses the weight of the one that is next in size after the first ``capacity`` from all of them,
    and those that have nothing left. So each value's weight is too small by no more than the sum of what was taken: the error. Each
    time the weights lose at least ``capacity`` + 1 times as much as the error grows: error <= total / (capacity + 1).

    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"top": {"of": "url", "k": 2}}, events_of({"url": ["/b", "/c", "/a", "/b"]}))
    [{'value': '/b', 'count': 2, 'error': 0}, {'value': '/a', 'count': 1, 'error': 0}]
    """

    Options = TopOptions

    def __init__(self, options: TopOptions, schema: pa.Schema) -> None:
        field = countable_field(schema, options.of, "top")
        capacity = options.capacity or max(10 * options.k, _LEAST_CAPACITY)
        self._k = options.k
        self._units: int | None = None
        source, figure, kind, parameters = values(field.name), "count", pa.int64(), f"{capacity},{quoted(field.name)}"
        if options.by is not None:
            by = numeric_field(schema, options.by, "top by")
            if pa.types.is_floating(by.type):
                self._units, kind = 10**options.decimals, pa.float64()
            source, figure = _weighted(source, values(by.name), self._units), "sum"
            parameters += f" by {quoted(by.name)}" if self._units is None else f" by {quoted(by.name)},{options.decimals}"
        self.type = pa.list_(pa.struct([("value", field.type), (figure, kind), ("error", kind)]))
        state = pa.struct([("error", pa.int64()), ("items", items_type(field.type))])

        def partial(rows: pa.Array, groups: Groups) -> pa.Array:
            error = np.zeros(groups.count, np.int64)
            if not pa.types.is_struct(rows.type):
                return _summary(sum_items(rows, groups.ids, groups.count), error, capacity)
            items, weights = rows.flatten()
            return _summary(sum_items(items, groups.ids, groups.count, np.asarray(pc.fill_null(weights, 0))), error, capacity)

        def merge(stored: pa.Array, groups: Groups) -> pa.Array:
            errors, lists = stored.flatten()
            found, error = open_lists(lists), np.zeros(groups.count, np.int64)
            np.add.at(error, groups.ids, np.asarray(pc.fill_null(errors, 0)))
            summed = sum_items(found.items, np.repeat(groups.ids, found.lengths), groups.count, found.weights)
            return _summary(summed, error, capacity)

        self.state = (Where(schema, options.where).column(f"top({parameters})", state, source, partial, merge),)

    def result(self, merged: pa.Table) -> pa.Array:
        errors, lists = merged.column(self.state[0].name).combine_chunks().flatten()
        found = open_lists(lists)
        groups = found.groups
        # Items are sorted by value, and so stay those of equal weight.
        order = np.lexsort((-found.weights, groups))
        order = order[np.arange(len(order)) - found.starts[groups] < self._k]
        groups = groups[order]
        starts = np.searchsorted(groups, np.arange(len(found.starts))).astype(np.int32)
        columns = [found.items.take(pa.array(order)), *(self._figure(part) for part in (found.weights[order], np.asarray(errors)[groups]))]
        return pa.ListArray.from_arrays(pa.array(starts), pa.StructArray.from_arrays(columns, fields=list(self.type.value_type)))

    def _figure(self, weights: Longs) -> pa.Array:
        return pa.array(weights if self._units is None else weights / self._units)


def _weighted(items: Source, numbers: Source, units: int | None) -> Source:
    """Items with their weights, null where the weight is none; floats in the given number of units a one."""

    def source(events: pa.RecordBatch) -> pa.Array:
        weights = numbers(events)
        if units is None:
            integers = np.asarray(pc.fill_null(weights, 0))
            whole = np.minimum(integers, np.uint64(MOST)).astype(np.int64) if integers.dtype == np.uint64 else integers.astype(np.int64)
        else:
            with np.errstate(over="ignore"):
                scaled = np.rint(np.asarray(pc.fill_null(weights.cast(pa.float64()), 0.0)) * units)
            beyond = scaled >= 2.0**63
            whole = np.where(beyond, MOST, np.where(beyond, 0, np.maximum(scaled, 0)).astype(np.int64))
        counted = pa.array(whole, mask=whole <= 0)
        array = items(events)
        return pa.StructArray.from_arrays([pc.if_else(counted.is_valid(), array, pa.scalar(None, array.type)), counted], ["item", "weight"])

    return source


def _summary(found: Items, error: Longs, capacity: int) -> pa.Array:
    """The stored form of at most ``capacity`` items a group."""
    over = found.lengths > capacity
    if over.any():
        groups = found.groups
        places = np.flatnonzero(over[groups])
        order = places[np.lexsort((-found.weights[places], groups[places]))]
        ends = np.cumsum(found.lengths[over])
        taken = np.zeros(len(over), np.int64)
        taken[over] = found.weights[order[ends - found.lengths[over] + capacity]]
        found = found._replace(weights=found.weights - taken[groups])
        found, error = found.keep(found.weights > 0), error + taken
    return pa.StructArray.from_arrays([pa.array(error), found.to_lists()], ["error", "items"])
