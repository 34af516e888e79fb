"""mean: sum over count of the values that are there."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Where, numeric_field, quoted, values
from streamgauge.transforms.aggregates.exact_results import means
from streamgauge.transforms.aggregates.sum import Total


class MeanOptions(Filtered):
    """Arithmetic mean of a numeric field, as SQL's AVG: the exact sum divided by the count, rounded once. Nulls and NaN do not count; null without any value.

    An infinity among the values is the mean; both infinities give null. State: that of `sum`, and 8 bytes a key.
    """

    short: ClassVar[str] = "of"
    of: str = Field(description="A numeric field.")


class Mean:
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"mean": "x"}, events_of({"x": [0.1, 0.2, None, 0.3]}))
    0.2
    """

    Options = MeanOptions

    def __init__(self, options: MeanOptions, schema: pa.Schema) -> None:
        field = numeric_field(schema, options.of, "mean")
        where, source = Where(schema, options.where), values(field.name)
        self._total = Total(where, quoted(field.name), field.type, source)
        self._count = where.column(f"count({quoted(field.name)})", pa.int64(), source, "count", "sum")
        self.type = pa.float64()
        self.state = (*self._total.state, self._count)

    def result(self, merged: pa.Table) -> pa.Array:
        return means(self._total.exact(merged), np.asarray(merged.column(self._count.name)))
