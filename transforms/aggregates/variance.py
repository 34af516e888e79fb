"""variance and stddev: of a numeric field, from its exact sum and the exact sum of its squares."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Where, numeric_field, quoted, values
from streamgauge.transforms.aggregates.exact_results import Scaled, moments
from streamgauge.transforms.aggregates.exact_sum import EXACT, Exact, merge_exact, sum_squares
from streamgauge.transforms.aggregates.sum import Total


class VarianceOptions(Filtered):
    """Spread of a numeric field around its mean: `variance` = sum((x - mean)^2) / (n - 1), as SQL's VAR_SAMP, and `stddev`, its square root.

    Stable however large the mean is against the spread: sum and sum of squares are exact (see exact_sum.py), and so is n * sum(x^2) - sum(x)^2; the
    variance is the double nearest to that of the values, the deviation is within one unit in the last place. Nulls and NaN do not count; null with
    fewer than two values (`population: true`: without any), and with an infinity among them. Equal values: exactly 0.

    State, bytes a key: that of `mean`, and 24 to 36 for the squares while the values are within a few powers of ten of each other, at most 560.
    """

    short: ClassVar[str] = "of"
    of: str = Field(description="A numeric field.")
    population: bool = Field(False, description="Divide by n, as SQL's VAR_POP and STDDEV_POP do, and not by n - 1.")


class Variance:
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"variance": "x"}, events_of({"x": [1e9 + 1, 1e9 + 2, 1e9 + 3]}))
    1.0
    >>> result_of({"variance": {"of": "x", "population": True}}, events_of({"x": [1, 5]}))
    4.0
    """

    Options = VarianceOptions
    name: ClassVar[str] = "variance"

    def __init__(self, options: VarianceOptions, schema: pa.Schema) -> None:
        field = numeric_field(schema, options.of, self.name)
        where, source, name = Where(schema, options.where), values(field.name), quoted(field.name)
        self._total = Total(where, name, field.type, source)
        self._count = where.column(f"count({name})", pa.int64(), source, "count", "sum")
        self._squares = where.column(f"exact_squares({name})", EXACT, source, sum_squares, merge_exact)
        self._freedom = 0 if options.population else 1
        self.type = pa.float64()
        self.state = (*self._total.state, self._count, self._squares)

    def result(self, merged: pa.Table) -> pa.Array:
        scaled = self._moments(merged)
        return pa.array(scaled.doubles(), mask=~scaled.known)

    def _moments(self, merged: pa.Table) -> Scaled:
        counts, total, squares = np.asarray(merged.column(self._count.name)), self._total.exact(merged), merged.column(self._squares.name)
        return moments(counts, total, total, Exact.of(squares), self._freedom)


class Stddev(Variance):
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"stddev": "x"}, events_of({"x": [1e200, 3e200, 5e200]}))
    2e+200
    """

    name = "stddev"

    def result(self, merged: pa.Table) -> pa.Array:
        scaled = self._moments(merged)
        return pa.array(scaled.roots(), mask=~scaled.known)
