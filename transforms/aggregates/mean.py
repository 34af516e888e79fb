"""mean: sum over count of the values that are there."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.aggregates.base import StateColumn, numeric_field, values
from streamgauge.transforms.aggregates.sum import float_total, sum_state
from streamgauge.transforms.config import Config


class MeanOptions(Config):
    """Arithmetic mean of a numeric field. Nulls and NaN do not count; null without any value."""

    short: ClassVar[str] = "of"
    of: str = Field(description="A numeric field.")


class Mean:
    Options = MeanOptions

    def __init__(self, options: MeanOptions, schema: pa.Schema) -> None:
        field = numeric_field(schema, options.of, "mean")
        self._sum = sum_state(field)
        self._count = StateColumn(f"count({field.name})", pa.int64(), values(field.name), "count", "sum")
        self.type = pa.float64()
        self.state = (*self._sum, self._count)

    def result(self, merged: pa.Table) -> pa.ChunkedArray:
        count = merged.column(self._count.name)
        return pc.divide(float_total(merged, self._sum), pc.if_else(pc.equal(count, 0), None, count).cast(pa.float64()))
