"""quantile: quantiles with a bounded relative error."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from streamgauge.transforms.aggregates.base import Filtered, Source, Where, numeric_field, quoted, values
from streamgauge.transforms.aggregates.items import Items, count_items, items_type, merge_items, open_lists
from streamgauge.transforms.aggregates.logarithm import log_buckets
from streamgauge.transforms.config import user_error
from streamgauge.transforms.groups import Groups

MIN_ERROR = 1e-6
"""Below it the numbers of buckets leave 32 bits, and the rounding of doubles would matter."""

_MARGIN = 1 - 1e-5
"""Buckets are narrower than they may be by this: more than all rounding of logarithms and estimates together (1e-12) at MIN_ERROR."""


def _share(value: object) -> object:
    """The quantiles that were asked for, checked."""
    several = value if isinstance(value, (list, tuple)) else [value]
    if not several:
        raise user_error("at least one quantile is needed, such as 0.95 or [0.5, 0.99]")
    for q in several:
        if isinstance(q, bool) or not isinstance(q, (int, float)):
            raise user_error(f"expected a number from 0 to 1, or a list of them; found {q!r}")
        if not 0 <= q <= 1:
            hint = f"; for the {q:g}th percentile write {q / 100:g}" if 1 < q <= 100 else ""
            raise user_error(f"a quantile is between 0 and 1, found {q}{hint}")
    return tuple(map(float, several)) if isinstance(value, (list, tuple)) else float(value)  # type: ignore[arg-type]


_QUANTILE_SCHEMA = {"type": "number", "minimum": 0, "maximum": 1}
Quantiles = Annotated[
    float | tuple[float, ...],
    BeforeValidator(_share),
    WithJsonSchema({"anyOf": [_QUANTILE_SCHEMA, {"type": "array", "items": _QUANTILE_SCHEMA, "minItems": 1}]}),
]


class QuantileOptions(Filtered):
    """Quantiles of a numeric field with a bounded relative error: DDSketch. Null without any value.

    The answer is within `error` times the true value of it: the value of rank floor(q * (n - 1)), counted from 0, of the n values in order (the
    lower quantile). Source: Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
    guarantees", VLDB 2019. Values closer to 0 than 2.3e-308 are taken for 0; infinities are first and last, and exact.

    State: 12 bytes for each bucket in use. At 1 % a factor of ten in the values is 115 buckets, and `max_buckets` of 2048 are 17 orders of
    magnitude. Beyond that the lowest values of a key share one bucket: the bound holds for the quantiles above it, and those
    within are answered by the largest value of that bucket.
    """

    of: str = Field(description="A numeric field. Nulls and NaN do not count.")
    q: Quantiles = Field(description="The quantile, 0 to 1, such as `0.95`; or a list of them, for a list as result.")
    error: float = Field(0.01, description="Largest relative error, between 0.000001 and 1.")
    max_buckets: int = Field(2048, ge=16, le=2**20, description="Largest number of buckets a key.")

    @field_validator("error")
    @classmethod
    def _in_range(cls, value: float) -> float:
        if not MIN_ERROR <= value < 1:
            raise user_error(f"error is relative, at least {MIN_ERROR:f} and less than 1, such as 0.01 for 1 %; found {value:g}")
        return value


class Quantile:
    """DDSketch. A bucket i holds the magnitudes in (g**(i-1), g**i] with g = (1 + error) / (1 - error); its estimate is 2 g**i / (g + 1).

    Buckets of negative values, zero and positive values are numbered from low to high, so a sketch is a list of buckets with counts.
    The several quantiles of one field and error share their state.

    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> found = result_of({"quantile": {"of": "ms", "q": [0, 0.5, 1]}}, events_of({"ms": [10, 20, 30, 40, 1000]}))
    >>> [abs(value - true) <= 0.01 * true for value, true in zip(found, [10, 30, 1000])]
    [True, True, True]
    """

    Options = QuantileOptions

    def __init__(self, options: QuantileOptions, schema: pa.Schema) -> None:
        field = numeric_field(schema, options.of, "quantile")
        self._buckets = buckets = Buckets(options.error)
        self._quantiles = options.q
        self.type = pa.list_(pa.float64()) if isinstance(options.q, tuple) else pa.float64()
        most = options.max_buckets

        def partial(codes: pa.Array, groups: Groups) -> pa.Array:
            return _collapsed(count_items(codes, groups), most)

        def merge(lists: pa.Array, groups: Groups) -> pa.Array:
            return _collapsed(merge_items(lists, groups), most)

        name = f"dd({options.error!r},{most},{quoted(field.name)})"
        source = buckets.source(values(field.name))
        self.state = (Where(schema, options.where).column(name, items_type(pa.int32()), source, partial, merge),)

    def result(self, merged: pa.Table) -> pa.Array:
        found = open_lists(merged.column(self.state[0].name).combine_chunks())
        empty = found.lengths == 0
        if isinstance(self._quantiles, float):
            return pa.array(self._at(found, self._quantiles), mask=empty)
        each = np.column_stack([self._at(found, q) for q in self._quantiles])[~empty]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(~empty)]) * len(self._quantiles)
        offsets = pa.array(starts.astype(np.int32), mask=np.append(empty, False))
        return pa.ListArray.from_arrays(offsets, pa.array(each.ravel()))

    def _at(self, found: Items, q: float) -> npt.NDArray[np.float64]:
        """The quantile of each group; anything where it is empty."""
        if not len(found.items):
            return np.zeros(len(found.starts) - 1)
        upto = np.concatenate([np.zeros(1, np.int64), np.cumsum(found.weights)])
        below, total = upto[found.starts[:-1]], np.diff(upto[found.starts])
        rank = np.floor(q * np.maximum(total - 1, 0)).astype(np.int64)
        places = np.minimum(np.searchsorted(upto, below + rank, side="right") - 1, len(found.items) - 1)
        return self._buckets.estimates(np.asarray(found.items)[places])


class Buckets:
    """The buckets of an error: numbers of 32 bits in the order of the values."""

    def __init__(self, error: float) -> None:
        error *= _MARGIN
        self._log_base = math.log1p(error) - math.log1p(-error)
        self._per_octave = math.log(2) / self._log_base
        # The lowest bucket of a normal double gets the number 1.
        self._offset = math.floor(1022 * self._per_octave) + 1
        self._infinite = self._offset + math.ceil(1024 * self._per_octave) + 1
        self._middle = 1 - error

    def source(self, numbers: Source) -> Source:
        """The bucket of each value."""

        def source(events: pa.RecordBatch) -> pa.Array:
            doubles = numbers(events).cast(pa.float64(), safe=False)
            null = np.asarray(pc.is_null(doubles)) if doubles.null_count else None
            return pa.array(self.codes(np.asarray(pc.fill_null(doubles, 0.0))), mask=null)

        return source

    def codes(self, doubles: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        codes = np.empty(len(doubles), np.int32)
        log_buckets(doubles.view(np.int64), self._per_octave, self._offset, codes)
        return codes

    def estimates(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        """The value in a bucket that is within the error of all others: 2 g**i / (g + 1) = g**i * (1 - error)."""
        indices = np.abs(codes.astype(np.int64)) - self._offset
        # Half the logarithm twice: a power may lie above the doubles where the estimate does not.
        root = np.exp(indices * (self._log_base / 2))
        with np.errstate(over="ignore"):
            magnitude = np.minimum(root * self._middle * root, np.finfo(np.float64).max)
        magnitude = np.where(np.abs(codes) == self._infinite, np.inf, magnitude)
        return np.sign(codes) * np.where(codes == 0, 0.0, magnitude)


def _collapsed(lists: pa.Array, most: int) -> pa.Array:
    """Lists of at most so many items: the lowest ones are counted with the lowest that stays.

    The items that stay are the highest of all that ever were in the group, whatever was collapsed on the way: order does not matter.
    """
    found = open_lists(lists)
    excess = found.lengths - most
    if not (excess > 0).any():
        return lists
    place = np.arange(len(found.items)) - found.starts[found.groups]
    lowest = np.maximum(excess, 0)[found.groups]
    weights = found.weights.copy()
    falling = np.flatnonzero(place < lowest)
    np.add.at(weights, falling + lowest[falling] - place[falling], weights[falling])
    return found._replace(weights=weights).keep(place >= lowest).to_lists()
