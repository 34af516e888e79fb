"""From Arrow columns to the declared types, a column at a time: which types fit, and which values do not.

A cast is safe or it is none: what the declared type cannot hold is told by row, never wrapped, rounded to another whole number or made null.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streamgauge.transforms.formats.fields import NO_NUMBERS, TIMESTAMP, Field, Kind
from streamgauge.transforms.formats.payloads import BadPayloadError
from streamgauge.transforms.formats.values import FLOAT32_LIMIT, MAX_TIMESTAMP, MIN_TIMESTAMP

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[Any]


class Converted(NamedTuple):
    """A column of the declared type. ``wrong``: rows whose value that type cannot hold, None when there is none; ``words`` tells of such a row."""

    values: pa.Array
    wrong: Mask | None = None
    words: Callable[[int], str] = str


Convert = Callable[[pa.Array], Converted]

_LISTS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any, pa.DataType], pa.DataType]], ...] = (
    (pa.types.is_list, lambda _, item: pa.list_(item)),
    (pa.types.is_large_list, lambda _, item: pa.large_list(item)),
    (pa.types.is_fixed_size_list, lambda kind, item: pa.list_(item, kind.list_size)),
)
"""Lists that are read, and how one of other items is made."""

_VIEW_WORDS = 4

_EXACT_INTEGERS = {Kind.DOUBLE: 1 << 53, Kind.FLOAT: 1 << 24}
"""Up to here a floating-point type has every whole number."""

_MICROSECONDS = {"s": (1_000_000, 1), "ms": (1_000, 1), "us": (1, 1), "ns": (1, 1_000)}
_DAY_MS = 86_400_000
_FIRST_DAY, _LAST_DAY = MIN_TIMESTAMP // (_DAY_MS * 1_000), MAX_TIMESTAMP // (_DAY_MS * 1_000)
_OUTSIDE = "before the year 1 or after 9999"


def converter(field: Field, source: pa.DataType) -> Convert:
    """How a column of type ``source`` is read as ``field``. Raises BadPayloadError when that type does not fit.

    >>> converter(Field.of("n", "int8"), pa.int64())(pa.array([5, 300, None])).wrong.tolist()
    [False, True, False]
    """
    found = (lambda array: Converted(pa.nulls(len(array), field.arrow))) if pa.types.is_null(source) else _CONVERTERS[field.kind](field, source)
    if found is None:
        hint = ""
        if field.kind is Kind.TIMESTAMP and pa.types.is_integer(source):
            hint = " - declare timestamp[s], timestamp[ms], timestamp[us] or timestamp[ns] to read numbers"
        raise BadPayloadError("type", f"{field.name}: expected {field.type_name}, found {source}{hint}")
    return found


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without dictionaries and views, in which a few bytes stand for many.

    >>> plain_type(pa.list_(pa.dictionary(pa.int8(), pa.string_view())))
    ListType(list<item: string>)
    """
    if pa.types.is_dictionary(kind) and not pa.types.is_nested(kind.value_type):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    for holds, make in _LISTS:
        if holds(kind):
            return make(kind, plain_type(kind.value_type))
    return pa.struct([(part.name, plain_type(part.type)) for part in kind]) if pa.types.is_struct(kind) else kind


def plain(array: pa.Array) -> pa.Array:
    """A column as :func:`plain_type`. Not by Arrow's cast, which looks at what lies below a null, and may crash there (Arrow 25, string_view)."""
    kind, made = array.type, plain_type(array.type)
    if kind == made:
        return array
    if pa.types.is_dictionary(kind):
        return plain(array.dictionary).take(array.indices)
    if pa.types.is_string_view(kind):
        return _without_hidden_views(array).cast(made)
    if pa.types.is_struct(kind):
        parts = [plain(array.field(place)) for place in range(kind.num_fields)]
        return pa.StructArray.from_arrays(parts, fields=list(made), mask=pc.is_null(array) if array.null_count else None)
    own = array.buffers()[: 1 if pa.types.is_fixed_size_list(kind) else 2]
    return pa.Array.from_buffers(made, len(array), own, array.null_count, array.offset, [plain(array.values)])


def plain_bytes(array: pa.Array) -> int:
    """What a column takes as :func:`plain_type`, about: counted, not made."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        values = array.dictionary
        return _sum(_sizes(values).take(array.indices)) if _is_text(values.type) else 8 * len(array)
    if _is_text(kind):
        return _sum(_sizes(array))
    if any(holds(kind) for holds, _ in _LISTS):
        return 8 * len(array.values) + plain_bytes(array.values)
    if pa.types.is_struct(kind):
        return sum(plain_bytes(array.field(place)) for place in range(kind.num_fields))
    return 8 * len(array)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _sizes(texts: pa.Array) -> pa.Array:
    """Bytes of each text."""
    if not pa.types.is_string_view(texts.type):
        return pc.binary_length(texts)
    # Arrow has no kernel for it. The first word of a view is the length.
    return pa.array(_views(texts)[:, 0], mask=np.asarray(pc.is_null(texts)))


def _views(texts: pa.Array) -> npt.NDArray[np.int32]:
    memory = texts.buffers()[1]
    if memory is None or not len(texts):
        return np.empty((0, _VIEW_WORDS), np.int32)
    return np.frombuffer(memory, np.int32, _VIEW_WORDS * len(texts), _VIEW_WORDS * 4 * texts.offset).reshape(-1, _VIEW_WORDS)


def _without_hidden_views(texts: pa.Array) -> pa.Array:
    if not texts.null_count:
        return texts
    views = np.where(np.asarray(pc.is_null(texts))[:, None], np.int32(0), _views(texts))
    shown = pa.array(np.asarray(texts.is_valid()), pa.bool_()).buffers()[1]
    return pa.Array.from_buffers(texts.type, len(texts), [shown, pa.py_buffer(views), *texts.buffers()[2:]], texts.null_count)


def _sum(sizes: pa.Array) -> int:
    return pc.sum(sizes.cast(pa.int64())).as_py() or 0


def _bool(field: Field, source: pa.DataType) -> Convert | None:
    return Converted if pa.types.is_boolean(source) else None


def _string(field: Field, source: pa.DataType) -> Convert | None:
    if pa.types.is_string(source):
        return Converted
    return (lambda array: Converted(array.cast(field.arrow))) if pa.types.is_large_string(source) else None


def _integer(field: Field, source: pa.DataType) -> Convert | None:
    low, high = field.limits()
    if pa.types.is_integer(source):
        info = np.iinfo(source.to_pandas_dtype())
        if low <= info.min and info.max <= high:
            return lambda array: Converted(array.cast(field.arrow))
        lowest, highest = max(low, int(info.min)), min(high, int(info.max))

        def whole(array: pa.Array) -> Converted:
            values = _numbers(array)
            return _checked(field, array, (values < lowest) | (values > highest), lambda value: f"{value} is out of the range of {field.type_name} ({low} to {high})")

        return whole
    if not pa.types.is_floating(source):
        return None

    def real(array: pa.Array) -> Converted:
        array = array.cast(pa.float64())
        values = _numbers(array)
        with np.errstate(invalid="ignore"):
            wrong = (np.floor(values) != values) | (values < float(low)) | (values >= float(high + 1))
        return _checked(field, array, wrong, lambda value: f"expected {field.type_name}, found number {value}")

    return real


def _real(field: Field, source: pa.DataType) -> Convert | None:
    if pa.types.is_integer(source):
        most = _EXACT_INTEGERS[field.kind]
        if np.iinfo(source.to_pandas_dtype()).max <= most:
            return lambda array: Converted(array.cast(field.arrow))

        def whole(array: pa.Array) -> Converted:
            values = _numbers(array)
            wrong = values > most if pa.types.is_unsigned_integer(source) else (values > most) | (values < -most)
            return _checked(field, array, wrong, lambda value: f"{value} is no {field.type_name}: beyond {most} not every whole number is one")

        return whole
    if not pa.types.is_floating(source):
        return None
    if field.kind is Kind.DOUBLE or not pa.types.is_float64(source):
        return lambda array: Converted(array.cast(field.arrow))

    def narrow(array: pa.Array) -> Converted:
        size = np.abs(_numbers(array))
        return _checked(field, array, np.isfinite(size) & (size >= FLOAT32_LIMIT), lambda value: f"{value} is out of the range of {field.type_name}")

    return narrow


def _timestamp(field: Field, source: pa.DataType) -> Convert | None:
    """Digits below a microsecond are truncated toward the past; a time without a zone is in UTC."""
    if pa.types.is_timestamp(source):
        factor, divisor = _MICROSECONDS[source.unit]
        return _instants(field, pa.int64(), factor, divisor)
    if pa.types.is_date32(source):
        return _instants(field, pa.int32(), _DAY_MS * 1_000, 1)
    if pa.types.is_date64(source):
        return _instants(field, pa.int64(), 1_000, 1)
    if pa.types.is_integer(source) and field.scale != NO_NUMBERS:
        return _instants(field, source, 10 ** max(field.scale, 0), 10 ** max(-field.scale, 0))
    return None


def _instants(field: Field, physical: pa.DataType, factor: int, divisor: int) -> Convert:
    low, high = MIN_TIMESTAMP * divisor // factor, MAX_TIMESTAMP * divisor // factor
    info = np.iinfo(physical.to_pandas_dtype())
    low, high = max(low, int(info.min)), min(high, int(info.max))

    def convert(array: pa.Array) -> Converted:
        plain = array.view(physical)
        values = _numbers(plain)
        wrong = (values < low) | (values > high)
        if factor == divisor == 1 and physical == pa.int64() and not wrong.any():
            return Converted(plain.view(TIMESTAMP))
        micros = np.where(wrong, 0, values).astype(np.int64) * factor // divisor
        made = pa.array(micros, mask=np.asarray(pc.is_null(plain))).view(TIMESTAMP)
        return _told(made, plain, wrong, lambda value: f"{value} ({array.type}) is out of the range of {field.type_name}: {_OUTSIDE}")

    return convert


def _date(field: Field, source: pa.DataType) -> Convert | None:
    if not pa.types.is_date(source):
        return None
    whole_days = pa.types.is_date32(source)

    def convert(array: pa.Array) -> Converted:
        plain = array.view(pa.int32() if whole_days else pa.int64())
        values = _numbers(plain)
        days = values if whole_days else values // _DAY_MS
        wrong = (days < _FIRST_DAY) | (days > _LAST_DAY)
        if not whole_days:
            wrong |= values % _DAY_MS != 0
        elif not wrong.any():
            return Converted(array)
        made = pa.array(np.where(wrong, 0, days).astype(np.int32), mask=np.asarray(pc.is_null(plain))).view(pa.date32())
        return _told(made, plain, wrong, lambda value: f"{value} ({array.type}) is no {field.type_name}: {_OUTSIDE}, or no whole day")

    return convert


def _nested(field: Field, source: pa.DataType) -> Convert | None:
    return _struct(field, source) if isinstance(field.arrow, pa.StructType) else _list(field, source)


def _list(field: Field, source: pa.DataType) -> Convert | None:
    if not any(holds(source) for holds, _ in _LISTS):
        return None
    item = converter(_named(field.parts[0], f"{field.name}[]"), source.value_type)

    def convert(array: pa.Array) -> Converted:
        # What lies below a null is no value: list_flatten leaves it out.
        sizes = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        ends = np.zeros(len(array) + 1, np.int32)
        np.cumsum(sizes, out=ends[1:])
        items = item(pc.list_flatten(array))
        made = pa.ListArray.from_arrays(pa.array(ends), items.values, type=field.arrow, mask=pc.is_null(array) if array.null_count else None)
        if items.wrong is None:
            return Converted(made)
        wrong, places = np.zeros(len(array), np.bool_), np.flatnonzero(items.wrong)
        wrong[np.repeat(np.arange(len(array)), sizes)[places]] = True
        return Converted(made, wrong, lambda row: items.words(int(places[np.searchsorted(places, ends[row])])))

    return convert


def _struct(field: Field, source: pa.DataType) -> Convert | None:
    """What is missing in a struct is null, what is not declared does not count."""
    if not pa.types.is_struct(source):
        return None
    parts = [(place, converter(_named(part, f"{field.name}.{part.name}"), source.field(place).type)) if (place := field_in(source, part.name)) is not None else None for part in field.parts]

    def convert(array: pa.Array) -> Converted:
        made = [Converted(pa.nulls(len(array), part.arrow)) if known is None else known[1](pc.struct_field(array, [known[0]])) for part, known in zip(field.parts, parts, strict=True)]
        values = pa.StructArray.from_arrays([part.values for part in made], fields=list(field.arrow), mask=pc.is_null(array) if array.null_count else None)
        bad = [part for part in made if part.wrong is not None]
        if not bad:
            return Converted(values)
        wrong = np.logical_or.reduce([part.wrong for part in bad if part.wrong is not None])
        return Converted(values, wrong, lambda row: next(part.words(row) for part in bad if part.wrong is not None and part.wrong[row]))

    return convert


def field_in(source: Any, name: str) -> int | None:
    """Index of a field in a schema or struct; None when there is none. Raises BadPayloadError when there are several."""
    found = source.get_all_field_indices(name)
    if len(found) > 1:
        raise BadPayloadError("type", f"{name}: the stream has {len(found)} fields of this name")
    return int(found[0]) if found else None


def _named(field: Field, name: str) -> Field:
    return Field(name, field.path, field.type_name, field.arrow, field.kind, field.scale, field.parts)


def _numbers(array: pa.Array) -> Numbers:
    """0 where there is no value: what lies below a null is none."""
    found: Numbers = (pc.fill_null(array, 0) if array.null_count else array).to_numpy()
    return found


def _checked(field: Field, array: pa.Array, wrong: Mask, words: Callable[[Any], str]) -> Converted:
    """The cast of what is not wrong."""
    if wrong.any():
        return _told(pc.if_else(pa.array(wrong), None, array).cast(field.arrow, safe=False), array, wrong, words)
    return Converted(array.cast(field.arrow, safe=False))


def _told(values: pa.Array, found: pa.Array, wrong: Mask, words: Callable[[Any], str]) -> Converted:
    return Converted(values, wrong if wrong.any() else None, lambda row: words(found[row].as_py()))


_CONVERTERS: dict[Kind, Callable[[Field, pa.DataType], Convert | None]] = {
    Kind.BOOL: _bool, Kind.INTEGER: _integer, Kind.DOUBLE: _real, Kind.FLOAT: _real, Kind.TIMESTAMP: _timestamp, Kind.DATE: _date,
    Kind.STRING: _string, Kind.NESTED: _nested,
}  # fmt: skip
