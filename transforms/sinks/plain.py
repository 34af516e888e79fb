"""Plain columns: every supported Arrow type as one of int64, float64, bool, string and binary, for stores with few types; lists and structs as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FEW = 4
"""So many different times are looked up one by one: those of a window and its watermark are the same in every column and batch."""


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The plain type that holds every value of ``kind``: int64, float64, bool, string or binary.

    Timestamps, dates, lists, structs, and numbers that int64 cannot hold become text; durations and times of day count in their unit.
    Raises ValueError for what has no plain form.

    >>> [str(plain_type(t)) for t in (pa.uint32(), pa.uint64(), pa.date32(), pa.list_(pa.float64()))]
    ['int64', 'string', 'string', 'string']
    """
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_duration(kind) or pa.types.is_time(kind) or (pa.types.is_integer(kind) and kind != pa.uint64()):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if _is_text(kind) or _is_date_time(kind) or pa.types.is_decimal(kind) or kind == pa.uint64() or _is_json(kind):
        return pa.string()
    raise ValueError(f"values of type {kind} cannot be stored")


def to_plain(column: pa.ChunkedArray) -> pa.Array:
    """The column with its plain type: times as ISO 8601 text in UTC with six digits, dates as ``2013-01-31``, lists and structs as JSON
    text, in which times are written the same way, and NaN and infinities are null: JSON has no other numbers.

    >>> to_plain(pa.chunked_array([pa.array([[1.5, float("inf")], None, []])])).to_pylist()
    ['[1.5, null]', None, '[]']
    """
    values = one_array(column)
    kind = values.type
    if _is_date_time(kind):
        return _iso_text(values)
    if _is_json(kind):
        found = json_values(values)
        return pa.array([None if v is None else json.dumps(v, ensure_ascii=False, allow_nan=False) for v in found], pa.string())
    return values.cast(_between(kind)).cast(plain_type(kind))


def from_plain(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """The inverse of :func:`to_plain`."""
    if pa.types.is_dictionary(kind):
        return from_plain(values, kind.value_type).dictionary_encode().cast(kind)
    if _is_date_time(kind):
        return _from_iso_text(values, kind)
    if _is_json(kind):
        found = pa.array([None if v is None else json.loads(v) for v in values.to_pylist()], _json_type(kind))
        return _each(found, _from_json_leaf, kind).cast(kind)
    return values.cast(_between(kind)).cast(kind)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column in one chunk, dictionaries resolved."""
    values, kind = column.combine_chunks(), column.type
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], kind)
    return values.cast(kind.value_type) if pa.types.is_dictionary(kind) else values


def json_values(values: pa.Array) -> list[Any]:
    """Lists and structs as values that ``json`` writes."""
    found: list[Any] = _each(values, _json_leaf, values.type).to_pylist()
    return found


def _json_leaf(leaf: pa.Array, kind: pa.DataType) -> pa.Array:
    if _is_date_time(kind):
        return _iso_text(leaf)
    if pa.types.is_floating(kind):
        leaf = leaf.cast(pa.float64())
        return pc.if_else(pc.is_finite(leaf), leaf, pa.scalar(None, pa.float64()))
    return leaf


def _from_json_leaf(leaf: pa.Array, kind: pa.DataType) -> pa.Array:
    return _from_iso_text(leaf, kind) if _is_date_time(kind) else leaf.cast(kind)


def _each(values: pa.Array, change: Callable[[pa.Array, pa.DataType], pa.Array], kind: pa.DataType) -> pa.Array:
    """Lists and structs with the arrays at the bottom changed; ``kind`` has their types as they are, or as they shall be."""
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        parts = [_each(pc.struct_field(values, [i]), change, field.type) for i, field in enumerate(fields)]
        return pa.StructArray.from_arrays(parts, [field.name for field in fields], mask=values.is_null())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False)
        is_large = pa.types.is_large_list(kind)
        made = pa.LargeListArray if is_large else pa.ListArray
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64 if is_large else np.int32))
        return made.from_arrays(offsets, _each(values.flatten(), change, kind.value_type), mask=values.is_null())
    return change(values, kind)


def _between(kind: pa.DataType) -> pa.DataType:
    """Arrow casts a 32-bit time of day from and to int32 only."""
    return pa.int32() if pa.types.is_time32(kind) else plain_type(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_date_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_json(kind: pa.DataType) -> bool:
    """Lists and structs of text, numbers, booleans, times and dates."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_struct(kind)):
        return False
    return all(_is_json(field.type) or _in_json(field.type) for field in (kind.field(i) for i in range(kind.num_fields)))


def _in_json(kind: pa.DataType) -> bool:
    numbers = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(numbers or _is_text(kind) or _is_date_time(kind))


def _json_type(kind: pa.DataType) -> pa.DataType:
    """The type of what ``json`` reads of values of ``kind``."""
    if pa.types.is_struct(kind):
        return pa.struct([kind.field(i).with_type(_json_type(kind.field(i).type)) for i in range(kind.num_fields)])
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_json_type(kind.value_type)))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_json_type(kind.value_type)))
    return pa.string() if _is_date_time(kind) else pa.float64() if pa.types.is_floating(kind) else kind


def _iso_text(values: pa.Array) -> pa.Array:
    """Fixed width, so that text sorts as time does, for the years 0 to 9999; other years are written in full all the same."""
    # Rows of a window share their times, and writing one costs more than looking up hundreds.
    times = values.dictionary_encode()
    moments = times.dictionary
    if len(moments) > _FEW:
        return _written(moments).take(times.indices)
    numbers = moments.view(_number_of(moments.type)).to_pylist()
    return pa.array([_written_one(number, moments.type) for number in numbers], pa.string()).take(times.indices)


@lru_cache(4096)
def _written_one(number: int, kind: pa.DataType) -> str | None:
    text: str | None = _written(pa.array([number], _number_of(kind)).view(kind))[0].as_py()
    return text


def _number_of(kind: pa.DataType) -> pa.DataType:
    """What a time or date is in memory."""
    return pa.int32() if pa.types.is_date32(kind) else pa.int64()


def _written(values: pa.Array) -> pa.Array:
    if pa.types.is_date(values.type):
        zone, own_unit = "", "D"
        whole = values.cast(pa.date32()).cast(pa.int32())
    else:
        zone, own_unit = "Z" if values.type.tz else "", values.type.unit
        whole = values.cast(pa.int64())
    moments = whole.fill_null(0).to_numpy(zero_copy_only=False).astype(f"M8[{own_unit}]")
    written = np.datetime_as_string(moments) if own_unit in ("D", "ns") else np.datetime_as_string(moments, unit="us")
    text = pa.array(written, pa.string())
    text = pc.binary_join_element_wise(text, zone, "") if zone else text
    return pc.if_else(values.is_null(), pa.scalar(None, pa.string()), text)


def _from_iso_text(values: pa.Array, kind: pa.DataType) -> pa.Array:
    unit = "D" if pa.types.is_date(kind) else kind.unit
    text = pc.utf8_rtrim(values, "Z").fill_null("1970-01-01").to_numpy(zero_copy_only=False).astype(str)
    whole = pa.array(text.astype(f"M8[{unit}]").astype(np.int64), mask=values.is_null().to_numpy(zero_copy_only=False))
    return whole.cast(pa.int32()).cast(pa.date32()).cast(kind) if unit == "D" else whole.cast(kind)
