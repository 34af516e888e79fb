"""distinct: how many different values, exactly while they are few, or always.

State of the default: struct<hashes, registers>. Up to a threshold it is the set of 64-bit hashes, beyond it the registers of a HyperLogLog.
It is changed into registers if and only if the union of all that was merged has more than the threshold: a set that is not changed is
complete, and one that was changed had more than the threshold, as has every union with it. So the order of merging does not matter.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from streamgauge.transforms.aggregates.base import Filtered, Source, Where, any_field, quoted, values
from streamgauge.transforms.aggregates.hyperloglog import add, as_binary, estimates, of_binary
from streamgauge.transforms.aggregates.order import flat, lists, sorted_groups, those_that_count
from streamgauge.transforms.aggregates.picks import plain
from streamgauge.transforms.aggregates.uniques import Hashes, Longs, codes, distinct, hashes_of, is_comparable
from streamgauge.transforms.config import user_error
from streamgauge.transforms.formats.compiled import Bytes
from streamgauge.transforms.groups import Groups

_STATE = pa.struct([("hashes", pa.list_(pa.uint64())), ("registers", pa.large_binary())])


class DistinctOptions(Filtered):
    """Number of different values of a field; nulls and NaN do not count, -0.0 is 0.0.

    Exact while a key has at most `exact_up_to` (numbers always; strings but for collisions of 64-bit hashes, one in 10^13 keys of 1,000 values). Beyond that HyperLogLog
    (Flajolet et al. 2007, with the estimate of Ertl 2017): standard error 1.04/sqrt(2^precision), 0.81 % by default; 3 keys in 1,000 err more than 3 times that.
    Both are for values that come as they come: who knows the hash can choose values that share one, or a register, so use `exact` for what others may choose.
    State: 8 bytes a value, then 2^precision bytes (16 kB) a key. With `exact`: never approximate; state: every value of the key.
    """

    short: ClassVar[str] = "of"
    of: str = Field(description="A field of strings, numbers, booleans, dates or timestamps.")
    precision: int = Field(14, ge=4, le=18, description="Binary logarithm of the number of registers, 4 to 18: more of them err less and take more state.")
    exact_up_to: int = Field(1024, ge=0, le=1_000_000, description="So many different values of a key are counted exactly.")
    exact: bool = Field(False, description="Keep every value, and count exactly however many there are. Takes neither `precision` nor `exact_up_to`.")

    @model_validator(mode="after")
    def _one_way(self) -> DistinctOptions:
        given = sorted(self.model_fields_set & {"precision", "exact_up_to"})
        if self.exact and given:
            raise user_error(f"distinct that is `exact` takes no {' and no '.join(given)}: leave out one or the other")
        return self


class Distinct:
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> events = events_of({"user": ["ann", "bob", None, "ann", ""]})
    >>> result_of({"distinct": "user"}, events), result_of({"distinct": {"of": "user", "exact": True}}, events)
    (3, 3)
    """

    Options = DistinctOptions

    def __init__(self, options: DistinctOptions, schema: pa.Schema) -> None:
        field = any_field(schema, options.of, "distinct")
        kind = plain(field.type)
        if not is_comparable(kind):
            raise user_error(f"distinct needs a field of strings, numbers, booleans, dates or timestamps; field '{field.name}' is {field.type}")
        self.type = pa.int64()
        self._limit, self._precision, self._exact = options.exact_up_to, options.precision, options.exact
        where, source = Where(schema, options.where), partial(_plain, values(field.name), kind)
        if options.exact:
            column = where.column(f"set({quoted(field.name)})", pa.list_(kind), source, _set_of_values, _set_of_lists)
        else:
            given = (options.exact_up_to, 1 << options.precision)
            column = where.column(
                f"distinct({quoted(field.name)},{options.precision},{options.exact_up_to})", _STATE, partial(_hashed, source),
                partial(_sketch_of_hashes, *given), partial(_sketch_of_sketches, *given),
            )  # fmt: skip
        self.state = (column,)

    def result(self, merged: pa.Table) -> pa.Array:
        column = merged.column(self.state[0].name).combine_chunks()
        if self._exact:
            return pc.fill_null(pc.list_value_length(column), 0)
        numbers = np.array(pc.fill_null(pc.list_value_length(column.field("hashes")), 0), np.int64)
        sketches = column.field("registers")
        found = np.rint(estimates(of_binary(sketches, 1 << self._precision), self._precision))
        # That there were more than the threshold is known.
        numbers[np.asarray(sketches.is_valid())] = np.clip(found, self._limit + 1, 2.0**62)
        return pa.array(numbers)


def _plain(source: Source, kind: pa.DataType, events: pa.RecordBatch) -> pa.Array:
    return source(events).cast(kind)


# The set of values


def _set_of_values(column: pa.Array, groups: Groups) -> pa.ListArray:
    return _set(*those_that_count(column, groups.ids), groups.count)


def _set_of_lists(column: pa.ListArray, groups: Groups) -> pa.ListArray:
    return _set(*flat(column, groups.ids), groups.count)


def _set(found: pa.Array, ids: Longs, count: int) -> pa.ListArray:
    once = np.flatnonzero(distinct(codes(found), ids, count)[0])
    once = once[sorted_groups(ids[once], count)]
    return lists(ids[once], count, found.take(pa.array(once)))


# The set of hashes, or the registers


def _hashed(source: Source, events: pa.RecordBatch) -> pa.Array:
    array = source(events)
    return pa.array(hashes_of(array), mask=np.asarray(array.is_null()) if array.null_count else None)


def _sketch_of_hashes(limit: int, size: int, column: pa.Array, groups: Groups) -> pa.StructArray:
    hashes, ids = those_that_count(column, groups.ids)
    return _sketch(limit, size, np.asarray(hashes), ids, groups.count, np.empty((0, size), np.uint8), np.empty(0, np.int64))


def _sketch_of_sketches(limit: int, size: int, column: pa.StructArray, groups: Groups) -> pa.StructArray:
    hashes, ids = flat(column.field("hashes"), groups.ids)
    sketches = column.field("registers")
    owners = groups.ids[np.asarray(sketches.is_valid())]
    return _sketch(limit, size, np.asarray(hashes), ids, groups.count, of_binary(sketches, size), owners)


def _sketch(limit: int, size: int, hashes: Hashes, ids: Longs, count: int, sketches: Bytes, owners: Longs) -> pa.StructArray:
    """The union of hashes and of registers, by group."""
    new, numbers = distinct(hashes, ids, count)
    dense = numbers > limit
    dense[owners] = True
    registers = np.zeros((int(dense.sum()), size), np.uint8)
    places = np.cumsum(dense) - 1
    for row, owner in zip(sketches, places[owners].tolist(), strict=True):
        np.maximum(registers[owner], row, out=registers[owner])
    add(hashes, ids, dense, registers)
    kept = np.flatnonzero(new & ~dense[ids])
    kept = kept[sorted_groups(ids[kept], count)]
    return pa.StructArray.from_arrays([lists(ids[kept], count, pa.array(hashes[kept])), as_binary(registers, dense)], fields=list(_STATE))
