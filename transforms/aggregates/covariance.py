"""covariance and correlation: of two numeric fields, over the events that have both."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Source, Where, numeric_field, values
from streamgauge.transforms.aggregates.exact_results import Scaled, moments
from streamgauge.transforms.aggregates.exact_sum import EXACT, Exact, merge_exact, sum_products, sum_squares
from streamgauge.transforms.aggregates.sum import Total


class _PairOptions(Filtered):
    x: str = Field(description="A numeric field.")
    y: str = Field(description="Another one. Only events that have both count: no null, no NaN.")


class CovarianceOptions(_PairOptions):
    """Covariance of two numeric fields: sum((x - mean(x)) * (y - mean(y))) / (n - 1), as SQL's COVAR_SAMP.

    The double nearest to that of the values, however large the means: all sums are exact, see `variance`. Null with fewer than two pairs
    (`population: true`: without any), and with an infinity among them.
    State, bytes a key: 8, two states of `sum`, and that of the products, 24 to 36 while the values are within a few powers of ten, at most 560.
    """

    population: bool = Field(False, description="Divide by n, as SQL's COVAR_POP does, and not by n - 1.")


class CorrelationOptions(_PairOptions):
    """Pearson's correlation of two numeric fields, -1 to 1, as SQL's CORR.

    Relative error below 5e-16, however large the means: all sums are exact, see `variance`. Null with fewer than two pairs, where one of the fields has
    one value only, and with an infinity among them. State, bytes a key: that of `covariance`, and two of squares, 24 to 36 each.
    """


class _Pair:
    """The sums that both need.

    Attributes:
        where: which events count.
        both: the two fields' names, as names of state columns show them: in one order, whichever is x.
    """

    def __init__(self, options: _PairOptions, schema: pa.Schema, name: str) -> None:
        # In one order, so that both ways share one state.
        x, y = sorted((numeric_field(schema, options.x, name), numeric_field(schema, options.y, name)), key=lambda field: field.name)
        self.where, self.both = Where(schema, options.where), f"{x.name!r}, {y.name!r}"
        self.left, self.right = _values_with(x.name, y.name), _values_with(y.name, x.name)
        self._totals = [
            Total(self.where, f"{side} of {self.both}", field.type, source)
            for side, field, source in (("x", x, self.left), ("y", y, self.right))
        ]
        self._count = self.where.column(f"count_pairs({self.both})", pa.int64(), self.left, "count", "sum")
        self._products = self.where.column(f"exact_products({self.both})", EXACT, _pairs(self.left, self.right), sum_products, merge_exact)
        self.state = (*self._totals[0].state, *self._totals[1].state, self._count, self._products)

    def covariances(self, merged: pa.Table, freedom: int) -> Scaled:
        x, y = self.totals(merged)
        return moments(self.counts(merged), x, y, Exact.of(merged.column(self._products.name)), freedom)

    def totals(self, merged: pa.Table) -> tuple[Exact, Exact]:
        return self._totals[0].exact(merged), self._totals[1].exact(merged)

    def counts(self, merged: pa.Table) -> npt.NDArray[np.int64]:
        return np.asarray(merged.column(self._count.name))


def _values_with(name: str, other: str) -> Source:
    """A field's values where the other has one too."""
    own, others = values(name), values(other)

    def source(events: pa.RecordBatch) -> pa.Array:
        array, there = own(events), others(events)
        return pc.if_else(pc.is_valid(there), array, pa.scalar(None, array.type)) if there.null_count else array

    return source


def _pairs(left: Source, right: Source) -> Source:
    def source(events: pa.RecordBatch) -> pa.Array:
        x, y = left(events), right(events)
        return pa.StructArray.from_arrays([x, y], ["x", "y"], mask=pc.is_null(x) if x.null_count else None)

    return source


class Covariance:
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"covariance": {"x": "a", "y": "b"}}, events_of({"a": [1, 2, 3, None], "b": [2.0, 4.0, 6.0, 8.0]}))
    2.0
    """

    Options = CovarianceOptions

    def __init__(self, options: CovarianceOptions, schema: pa.Schema) -> None:
        self._pair = _Pair(options, schema, "covariance")
        self._freedom = 0 if options.population else 1
        self.type = pa.float64()
        self.state = self._pair.state

    def result(self, merged: pa.Table) -> pa.Array:
        scaled = self._pair.covariances(merged, self._freedom)
        return pa.array(scaled.doubles(), mask=~scaled.known)


class Correlation:
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"correlation": {"x": "a", "y": "b"}}, events_of({"a": [1, 2, 3], "b": [6.0, 4.0, 2.0]}))
    -1.0
    """

    Options = CorrelationOptions

    def __init__(self, options: CorrelationOptions, schema: pa.Schema) -> None:
        pair = self._pair = _Pair(options, schema, "correlation")
        self._squares = [
            pair.where.column(f"exact_squares({side} of {pair.both})", EXACT, source, sum_squares, merge_exact)
            for side, source in (("x", pair.left), ("y", pair.right))
        ]
        self.type = pa.float64()
        self.state = (*pair.state, *self._squares)

    def result(self, merged: pa.Table) -> pa.Array:
        counts, products = self._pair.counts(merged), self._pair.covariances(merged, 0)
        spreads = [
            moments(counts, total, total, Exact.of(merged.column(squares.name)), 0)
            for total, squares in zip(self._pair.totals(merged), self._squares, strict=True)
        ]
        known = products.known & (counts > 1) & (spreads[0].top > 0) & (spreads[1].top > 0)
        return pa.array(_ratios(products, *spreads), mask=~known)


def _ratios(products: Scaled, x: Scaled, y: Scaled) -> npt.NDArray[np.float64]:
    """products / sqrt(x * y), of numbers of any size."""
    exponent = x.exponent + y.exponent
    odd = exponent & 1
    root = np.sqrt(x.top.astype(np.float64) * y.top.astype(np.float64) * (1 + odd))
    ratio = np.divide(products.top.astype(np.float64), root, out=np.zeros(len(root)), where=root > 0)
    size = np.minimum(np.ldexp(ratio, (products.exponent - (exponent >> 1)).astype(np.int32)), 1.0)
    return np.where(products.negative, -size, size)
