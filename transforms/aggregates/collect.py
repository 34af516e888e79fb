"""collect: the first values, as a list."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Where, any_field, quoted, values
from streamgauge.transforms.aggregates.order import (
    Longs,
    flat,
    lists,
    order_of,
    ordered_source,
    ordered_type,
    sorted_rows,
    starts,
    those_that_count,
)
from streamgauge.transforms.aggregates.picks import plain
from streamgauge.transforms.aggregates.uniques import codes, distinct, is_comparable
from streamgauge.transforms.config import user_error
from streamgauge.transforms.groups import Groups

_VALUE = "value"


class CollectOptions(Filtered):
    """The first `limit` values by event time, split and position, as a list in this order. Exact; nulls and NaN do not count; null without any value.

    As SQL's ARRAY_AGG with ORDER BY. State: 24 bytes, the split's name and the value, for each of the at most `limit` values of a key.
    """

    short: ClassVar[str] = "of"
    of: str = Field(description="A field of any type.")
    limit: int = Field(100, ge=1, le=100_000, description="Largest number of values in the list; later ones are left out.")
    distinct: bool = Field(False, description="Each value once, where it is first: the list is of the first `limit` different values.")


class Collect:
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"collect": {"of": "page", "limit": 2, "distinct": True}}, events_of({"page": ["a", "c", "a", "b"]}, times=[4, 3, 2, 1]))
    ['b', 'a']
    """

    Options = CollectOptions

    def __init__(self, options: CollectOptions, schema: pa.Schema) -> None:
        field = any_field(schema, options.of, "collect")
        kind = plain(field.type)
        if options.distinct and not is_comparable(kind):
            raise user_error(f"collect of distinct values cannot compare those of '{field.name}', which is {kind}; leave `distinct` out, or choose another field")
        self.type = pa.list_(kind)
        item = ordered_type(schema, {_VALUE: kind})
        first = partial(_first, item, options.limit, options.distinct)
        kept = f"{options.limit}{',distinct' if options.distinct else ''}"
        self.state = (
            Where(schema, options.where).column(
                f"collect({quoted(field.name)},{kept})", pa.list_(item), ordered_source(schema, {_VALUE: values(field.name)}),
                partial(_collected, first), partial(_merged, first),
            ),
        )  # fmt: skip

    def result(self, merged: pa.Table) -> pa.Array:
        column = merged.column(self.state[0].name).combine_chunks()
        items, ids = flat(column, np.arange(len(column)))
        begins = starts(ids, len(column))
        return pa.ListArray.from_arrays(
            pa.array(begins.astype(np.int32)), pc.struct_field(items, _VALUE), mask=pa.array(np.diff(begins) == 0)
        )


def _collected(first: partial[pa.ListArray], column: pa.StructArray, groups: Groups) -> pa.ListArray:
    return first(*those_that_count(column, groups.ids), groups.count)


def _merged(first: partial[pa.ListArray], column: pa.ListArray, groups: Groups) -> pa.ListArray:
    return first(*flat(column, groups.ids), groups.count)


def _first(item: pa.DataType, limit: int, once_each: bool, events: pa.StructArray, ids: Longs, count: int) -> pa.ListArray:
    """Of a value that a partial left out there are ``limit`` others before it in any merge, so it is never missed."""
    rows = sorted_rows(ids, count, order_of(events))
    ids = ids[rows]
    if once_each:
        once = distinct(codes(events.field(_VALUE))[rows], ids, count)[0]
        rows, ids = rows[once], ids[once]
    within = np.arange(len(rows)) - starts(ids, count)[ids]
    kept = within < limit
    return lists(ids[kept], count, events.take(pa.array(rows[kept])).cast(item))
