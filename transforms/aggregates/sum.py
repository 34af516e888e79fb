"""sum: of a numeric field; nulls and NaN do not count."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.aggregates.base import StateColumn, numeric_field, values
from streamgauge.transforms.config import Config

_LOW_BITS = 32


class SumOptions(Config):
    """Sum of a field. Integers: exact, in 96 bits; a total beyond 64 bits is null. Floats: IEEE double additions. Null without any value."""

    short: ClassVar[str] = "of"
    of: str = Field(description="A numeric field.")


def sum_state(field: pa.Field) -> tuple[StateColumn, ...]:
    """State of an exact sum.

    64-bit integers are summed as two halves, value = high * 2**32 + low with 0 <= low < 2**32: neither half
    can overflow before 2**31 events, so the order of additions never matters. Smaller integers fit one column.
    """
    name, kind = field.name, field.type
    source = values(name)
    if pa.types.is_floating(kind):
        return (StateColumn(f"sum({name})", pa.float64(), lambda events: source(events).cast(pa.float64()), "sum", "sum"),)
    if kind.bit_width < 64:
        return (StateColumn(f"sum({name})", pa.int64(), lambda events: source(events).cast(pa.int64()), "sum", "sum"),)

    def high(events: pa.RecordBatch) -> pa.Array:
        return pc.shift_right(source(events), pa.scalar(_LOW_BITS, kind)).cast(pa.int64())

    def low(events: pa.RecordBatch) -> pa.Array:
        return pc.bit_wise_and(source(events), pa.scalar(2**_LOW_BITS - 1, kind)).cast(pa.int64())

    return (
        StateColumn(f"sum_high({name})", pa.int64(), high, "sum", "sum"),
        StateColumn(f"sum_low({name})", pa.int64(), low, "sum", "sum"),
    )


def float_total(merged: pa.Table, state: tuple[StateColumn, ...]) -> pa.ChunkedArray:
    """The sum as a double."""
    if len(state) == 1:
        return merged.column(state[0].name).cast(pa.float64(), safe=False)
    high, low = (merged.column(column.name).cast(pa.float64(), safe=False) for column in state)
    return pc.add(pc.multiply(high, float(2**_LOW_BITS)), low)


class Sum:
    Options = SumOptions

    def __init__(self, options: SumOptions, schema: pa.Schema) -> None:
        field = numeric_field(schema, options.of, "sum")
        self.state = sum_state(field)
        self.type = pa.float64() if pa.types.is_floating(field.type) else pa.int64()

    def result(self, merged: pa.Table) -> pa.Array | pa.ChunkedArray:
        if len(self.state) == 1:
            return merged.column(self.state[0].name)
        high, low = (merged.column(column.name).combine_chunks() for column in self.state)
        null = np.asarray(pc.is_null(high))
        highs, lows = (np.asarray(pc.fill_null(part, 0), dtype=np.int64) for part in (high, low))
        carried = highs + (lows >> _LOW_BITS)
        beyond = (carried >= 2 ** (63 - _LOW_BITS)) | (carried < -(2 ** (63 - _LOW_BITS)))
        total = (np.where(beyond, 0, carried) << _LOW_BITS) | (lows & (2**_LOW_BITS - 1))
        return pa.array(total, pa.int64(), mask=null | beyond)
