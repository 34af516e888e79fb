"""Aggregate: a commutative monoid on columns.

An aggregate names the *state columns* it needs. The engine groups a batch once for all aggregates, and merges
partial tables once for all of them; state columns of equal name are shared (``mean`` and ``sum`` of one field).
Merging in any order and grouping gives the same state: that is what makes replays, late events and scaling exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from streamgauge.transforms.config import did_you_mean, user_error


@dataclass(frozen=True)
class StateColumn:
    """One column of a partial table.

    Attributes:
        name: canonical, such as ``sum(dep_delay)``: equal names mean equal content.
        type: Arrow type of the stored column.
        source: from the events' RecordBatch to the array to aggregate (one value an event).
        partial: Arrow hash-aggregate function over ``source``: ``sum``, ``min``, ``count``, ...
        merge: Arrow hash-aggregate function over stored columns.
    """

    name: str
    type: pa.DataType
    source: Callable[[pa.RecordBatch], pa.Array]
    partial: str
    merge: str


class Aggregate(Protocol):
    """A configured aggregate over the events of one schema.

    Attributes:
        type: Arrow type of the result column.
        state: what a partial holds for it.
    """

    type: pa.DataType
    state: tuple[StateColumn, ...]

    def result(self, merged: pa.Table) -> pa.Array | pa.ChunkedArray:
        """The result column, one value a group, from the merged state columns."""


def numeric_field(schema: pa.Schema, name: str, aggregate: str) -> pa.Field:
    """The field, or a user's error when there is none or it is no number."""
    field = any_field(schema, name, aggregate)
    if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
        raise user_error(f"{aggregate} needs a number; field '{name}' is {field.type}")
    return field


def any_field(schema: pa.Schema, name: str, aggregate: str) -> pa.Field:
    fields = [field for field in schema.names if not field.startswith("__")]
    if name not in fields:
        raise user_error(f"{aggregate} of '{name}': the schema has no such field{did_you_mean(name, fields)}; fields: {', '.join(fields)}")
    return schema.field(name)


def values(name: str) -> Callable[[pa.RecordBatch], pa.Array]:
    """The field's values, NaN taken as null: "not a number" is no measurement. Infinities stay."""

    def source(events: pa.RecordBatch) -> pa.Array:
        array = events.column(name)
        if pa.types.is_floating(array.type):
            nan = pc.is_nan(array)
            if pc.any(nan).as_py():
                return pc.if_else(nan, pa.scalar(None, array.type), array)
        return array

    return source
