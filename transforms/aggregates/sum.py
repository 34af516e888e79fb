"""sum: of a numeric field; nulls and NaN do not count."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Source, StateColumn, Where, numeric_field, quoted, values
from streamgauge.transforms.aggregates.exact_results import totals
from streamgauge.transforms.aggregates.exact_sum import EXACT, Exact, merge_exact, of_integers, sum_doubles

_LOW_BITS = 32


class SumOptions(Filtered):
    """Sum of a field, as SQL's SUM, exact: no order of events, merge or replay changes a bit. Null without any value.

    Integers: in 96 bits (8 bytes a key, 16 for 64-bit fields); a total beyond 64 bits is null. Floats: the double nearest to the true sum (a
    superaccumulator, Kulisch 2008 and Neal 2015, see exact_sum.py; 20 to 28 bytes a key while the values are within a few powers of ten of each
    other, at most 560); an infinity among the values is the sum, both infinities give null, a total beyond the doubles is an infinity.
    """

    short: ClassVar[str] = "of"
    of: str = Field(description="A numeric field.")


class Total:
    """The state of an exact sum.

    Floats are one column of exact_sum.py. 64-bit integers are summed as two halves, value = high * 2**32 + low with
    0 <= low < 2**32: neither half can overflow before 2**31 events, so the order of additions never matters. Smaller integers fit one column.

    Args:
        name: of what is summed, in the names of the state columns: one field's sum is one state.
        source: the values, of type ``kind``.
    """

    def __init__(self, where: Where, name: str, kind: pa.DataType, source: Source) -> None:
        self.is_float = pa.types.is_floating(kind)
        if self.is_float:
            columns = [where.column(f"exact_sum({name})", EXACT, _as(source, pa.float64()), sum_doubles, merge_exact)]
        elif kind.bit_width < 64:
            columns = [where.column(f"sum({name})", pa.int64(), _as(source, pa.int64()), "sum", "sum")]
        else:
            columns = [
                where.column(f"sum_high({name})", pa.int64(), _high(source, kind), "sum", "sum"),
                where.column(f"sum_low({name})", pa.int64(), _low(source, kind), "sum", "sum"),
            ]
        self.state: tuple[StateColumn, ...] = tuple(columns)

    def integers(self, merged: pa.Table) -> tuple[_Numbers, _Numbers, npt.NDArray[np.bool_]]:
        """The sums of integers as high * 2**32 + low, and where there are any."""
        parts = [merged.column(column.name) for column in self.state]
        valid = np.asarray(pc.is_valid(parts[0]))
        numbers = [np.asarray(pc.fill_null(part, 0), dtype=np.int64) for part in parts]
        return (numbers[0] >> _LOW_BITS, numbers[0] & (2**_LOW_BITS - 1), valid) if len(parts) == 1 else (numbers[0], numbers[1], valid)

    def exact(self, merged: pa.Table) -> Exact:
        """The sums, to be divided or multiplied without any rounding."""
        return Exact.of(merged.column(self.state[0].name)) if self.is_float else of_integers(*self.integers(merged))


_Numbers = npt.NDArray[np.int64]


def _as(source: Source, kind: pa.DataType) -> Source:
    return lambda events: source(events).cast(kind)


def _high(source: Source, kind: pa.DataType) -> Source:
    return lambda events: pc.shift_right(source(events), pa.scalar(_LOW_BITS, kind)).cast(pa.int64())


def _low(source: Source, kind: pa.DataType) -> Source:
    return lambda events: pc.bit_wise_and(source(events), pa.scalar(2**_LOW_BITS - 1, kind)).cast(pa.int64())


class Sum:
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"sum": "v"}, events_of({"v": [1e100, 1.0, None, -1e100]}))
    1.0
    """

    Options = SumOptions

    def __init__(self, options: SumOptions, schema: pa.Schema) -> None:
        field = numeric_field(schema, options.of, "sum")
        self._total = Total(Where(schema, options.where), quoted(field.name), field.type, values(field.name))
        self.state = self._total.state
        self.type = pa.float64() if self._total.is_float else pa.int64()

    def result(self, merged: pa.Table) -> pa.Array | pa.ChunkedArray:
        if len(self.state) == 1:
            column = merged.column(self.state[0].name)
            return totals(column) if self._total.is_float else column
        high, low, valid = self._total.integers(merged)
        carried = high + (low >> _LOW_BITS)
        beyond = (carried >= 2 ** (63 - _LOW_BITS)) | (carried < -(2 ** (63 - _LOW_BITS)))
        total = (np.where(beyond, 0, carried) << _LOW_BITS) | (low & (2**_LOW_BITS - 1))
        return pa.array(total, pa.int64(), mask=~valid | beyond)
