"""Aggregate: a commutative monoid on columns.

An aggregate names the *state columns* it needs. The engine groups a batch once for all aggregates, and merges
partial tables once for all of them; state columns of equal name are shared (``mean`` and ``sum`` of one field).
Merging in any order and grouping gives the same state: that is what makes replays, late events and scaling exact.

A state column is made and merged by a hash aggregation of Arrow, or by a *kernel* of its own, which gets a column and the group of
each of its rows, and gives one value a group: a struct, or a list where state is a set, a sketch or a digest.
Kernels are vectorised; they never make a Python object a row or a key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.arrays import plain
from streamgauge.transforms.config import Config, did_you_mean, user_error
from streamgauge.transforms.expressions import Condition
from streamgauge.transforms.groups import Groups

Source = Callable[[pa.RecordBatch], pa.Array]
"""From an EventBatch to the array that is aggregated: one value an event, null where the event does not count."""

Kernel = Callable[[pa.Array, Groups], pa.Array]
"""From a column and the group of each of its rows to a column of one value a group, in the order of groups. Nulls do not count."""


@dataclass(frozen=True)
class StateColumn:
    """One column of a partial table.

    Attributes:
        name: canonical, such as ``sum(dep_delay)``: equal names mean equal content, so every parameter that matters for it is part of it.
        type: Arrow type of the stored column.
        source: what is aggregated.
        partial: over ``source``: the name of an Arrow hash aggregation (``sum``, ``min``, ``count``, ...), or a kernel.
        merge: the same over stored columns. A kernel must give one answer whatever the order and grouping.
    """

    name: str
    type: pa.DataType
    source: Source
    partial: str | Kernel
    merge: str | Kernel


class Aggregate(Protocol):
    """A configured aggregate over the events of one schema. Picklable.

    A class has an attribute ``Options`` (a :class:`Config`; its docstring states error bound and size of state) and is made with
    validated options and the events' schema; it raises a user's error for a field that is not there or does not fit.

    Attributes:
        type: Arrow type of the result column.
        state: what a partial holds for it.
    """

    type: pa.DataType
    state: tuple[StateColumn, ...]

    def result(self, merged: pa.Table) -> pa.Array | pa.ChunkedArray:
        """The result column, one value a group, from the merged state columns."""


class Filtered(Config):
    """Base of the options of an aggregate: every one can be told which events count."""

    where: str | None = Field(None, description="Only events for which this SQL condition is true count, such as `status >= 500`.")


class Where:
    """The events that count: what makes the state columns of an aggregate with ``where`` others than those without.

    Args:
        schema: of the events.
        condition: as in :class:`Filtered`. Raises a user's error for one that cannot be evaluated or is no condition.
    """

    def __init__(self, schema: pa.Schema, condition: str | None) -> None:
        self.condition = None if condition is None else Condition(schema, condition)

    def column(self, name: str, kind: pa.DataType, source: Source, partial: str | Kernel, merge: str | Kernel) -> StateColumn:
        """A state column over the events that count; the others are null in its source."""
        condition = self.condition
        if condition is None:
            return StateColumn(name, kind, source, partial, merge)

        def counted(events: pa.RecordBatch) -> pa.Array:
            return _only(source(events), condition(events))

        return StateColumn(f"{name} where {condition.sql}", kind, counted, partial, merge)


def _only(array: pa.Array, condition: pa.BooleanArray) -> pa.Array:
    """The values for which the condition is true; null elsewhere."""
    if not pa.types.is_struct(array.type):
        return pc.if_else(condition, array, pa.scalar(None, array.type))
    # if_else copies structs row by row: 40 times the cost of a mask.
    kept = pc.and_(condition, array.is_valid()) if array.null_count else condition
    return pa.StructArray.from_arrays([array.field(i) for i in range(array.type.num_fields)], fields=list(array.type), mask=pc.invert(kept))


def numeric_field(schema: pa.Schema, name: str, aggregate: str) -> pa.Field:
    """The field, or a user's error when there is none or it is no number."""
    field = any_field(schema, name, aggregate)
    if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
        raise user_error(f"{aggregate} needs a number; field '{name}' is {field.type}")
    return field


def any_field(schema: pa.Schema, name: str, aggregate: str) -> pa.Field:
    """The field, or a user's error when there is none."""
    fields = [field for field in schema.names if not field.startswith("__")]
    if name not in fields:
        raise user_error(f"{aggregate} of '{name}': the schema has no such field{did_you_mean(name, fields)}; fields: {', '.join(fields)}")
    return schema.field(name)


def quoted(name: str) -> str:
    """A field's name as part of a state column's: in quotes where it could be read as more than one name.

    >>> quoted("user.id"), quoted("a,b")
    ('user.id', "'a,b'")
    """
    return name if re.fullmatch(r"[\w.]+", name) else repr(name)


def values(name: str) -> Source:
    """The field's values, NaN taken as null: "not a number" is no measurement. Infinities stay."""

    def source(events: pa.RecordBatch) -> pa.Array:
        array = events.column(name)
        if pa.types.is_dictionary(array.type) and (array.dictionary.null_count or pa.types.is_floating(array.type.value_type)):
            array = plain(array)  # a null among the values of a dictionary is one too
        if pa.types.is_floating(array.type):
            nan = pc.is_nan(array)
            if pc.any(nan).as_py():
                return pc.if_else(nan, pa.scalar(None, array.type), array)
        return array

    return source
