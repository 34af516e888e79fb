"""first, last, argmin and argmax: the value of one event of those that count.

State: struct<time, split, position, value> (argmin and argmax: and what they compare): 24 bytes, the split's name and the value, a key.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Where, any_field, quoted, values
from streamgauge.transforms.aggregates.order import Longs, first_rows, longs, order_of, ordered_source, ordered_type
from streamgauge.transforms.config import user_error
from streamgauge.transforms.groups import Groups

_VALUE, _KEY = "value", "by"


class PickOptions(Filtered):
    """Value of the event with the smallest (first) or largest (last) event time; ties: by split, then position. Exact.

    As DuckDB's MIN_BY and MAX_BY of event time. Nulls and NaN do not count; null without any value. State: 24 bytes, the split's name and the value, a key.
    """

    short: ClassVar[str] = "of"
    of: str = Field(description="A field of any type.")


class _Pick:
    Options = PickOptions
    name: ClassVar[str]
    latest: ClassVar[bool]

    def __init__(self, options: PickOptions, schema: pa.Schema) -> None:
        field = any_field(schema, options.of, self.name)
        self.type = plain(field.type)
        kind = ordered_type(schema, {_VALUE: self.type})
        pick = partial(_by_time, kind, self.latest)
        source = ordered_source(schema, {_VALUE: values(field.name)})
        self.state = (Where(schema, options.where).column(f"{self.name}({quoted(field.name)})", kind, source, pick, pick),)

    def result(self, merged: pa.Table) -> pa.ChunkedArray:
        return pc.struct_field(merged.column(self.state[0].name), _VALUE)


class First(_Pick):
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"first": "city"}, events_of({"city": ["Rome", None, "Oslo"]}, times=[30, 10, 20]))
    'Oslo'
    """

    name, latest = "first", False


class Last(_Pick):
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"last": "city"}, events_of({"city": ["Rome", None, "Oslo"]}, times=[30, 40, 20]))
    'Rome'
    """

    name, latest = "last", True


class ArgOptions(Filtered):
    """Value of one field where another is smallest (argmin) or largest (argmax); ties: the first by event time, split and position. Exact.

    As DuckDB's MIN_BY and MAX_BY. Only events that have both count (no null, no NaN); null without any. State: 24 bytes, the split's name and the two values, a key.
    """

    of: str = Field(description="The field whose value is the result; of any type.")
    by: str = Field(description="The field that decides: of numbers, booleans, dates or timestamps.")


class _Arg:
    Options = ArgOptions
    name: ClassVar[str]
    largest: ClassVar[bool]

    def __init__(self, options: ArgOptions, schema: pa.Schema) -> None:
        field, by = any_field(schema, options.of, self.name), any_field(schema, options.by, f"{self.name} by")
        if not _has_key(by.type):
            raise user_error(f"{self.name} by '{by.name}' needs a number, boolean, date or timestamp; the field is {by.type}")
        self.type = plain(field.type)
        kind = ordered_type(schema, {_KEY: by.type, _VALUE: self.type})
        pick = partial(_by_key, kind, self.largest)
        source = ordered_source(schema, {_KEY: values(by.name), _VALUE: values(field.name)})
        self.state = (Where(schema, options.where).column(f"{self.name}({quoted(field.name)},{quoted(by.name)})", kind, source, pick, pick),)

    def result(self, merged: pa.Table) -> pa.ChunkedArray:
        return pc.struct_field(merged.column(self.state[0].name), _VALUE)


class ArgMin(_Arg):
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"argmin": {"of": "city", "by": "temp"}}, events_of({"city": ["Rome", "Oslo", "Bern"], "temp": [21.5, -3.0, -3.0]}))
    'Oslo'
    """

    name, largest = "argmin", False


class ArgMax(_Arg):
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"argmax": {"of": "city", "by": "temp"}}, events_of({"city": ["Rome", "Oslo", "Bern"], "temp": [21.5, -3.0, None]}))
    'Rome'
    """

    name, largest = "argmax", True


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a dictionary; other types are what they are."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _by_time(kind: pa.DataType, latest: bool, column: pa.StructArray, groups: Groups) -> pa.Array:
    order = order_of(column)
    order = order.reversed() if latest else order
    rows = first_rows(groups.ids, groups.count, np.asarray(column.is_valid()), order.times, order, last_row=latest)
    return column.take(rows).cast(kind)


def _by_key(kind: pa.DataType, largest: bool, column: pa.StructArray, groups: Groups) -> pa.Array:
    keys = _keys(column.field(_KEY))
    rows = first_rows(groups.ids, groups.count, np.asarray(column.is_valid()), ~keys if largest else keys, order_of(column))
    return column.take(rows).cast(kind)


def _has_key(kind: pa.DataType) -> bool:
    whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    return bool(whole or pa.types.is_float32(kind) or pa.types.is_float64(kind) or pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def _keys(array: pa.Array) -> Longs:
    """64-bit integers in the order of the values, whatever their type."""
    if pa.types.is_floating(array.type):
        doubles = np.asarray(pc.fill_null(array, 0.0).cast(pa.float64()))
        bits = (doubles + 0.0).view(np.int64)  # -0.0 equals 0.0
        # The bits of a double are sign and magnitude: those of negative ones are turned round.
        return bits ^ ((bits >> 63) & np.int64(2**63 - 1))
    if pa.types.is_uint64(array.type):
        return np.asarray(pc.fill_null(array, 0)).view(np.int64) ^ np.int64(-(2**63))
    return longs((array.cast(pa.int32()) if pa.types.is_date32(array.type) else array).cast(pa.int64()))
