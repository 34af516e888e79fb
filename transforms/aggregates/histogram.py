"""histogram: counts of values between given bounds."""

from __future__ import annotations

import bisect
import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from streamgauge.transforms.aggregates.base import Filtered, Source, Where, numeric_field, quoted, values
from streamgauge.transforms.config import user_error
from streamgauge.transforms.formats.compiled import kernel
from streamgauge.transforms.groups import Groups

Longs = npt.NDArray[np.int64]

MAX_BOUNDS = 1_000

FEW_BOUNDS = 24
"""Up to so many bounds, comparing with each was measured faster than bisection."""


class HistogramOptions(Filtered):
    """Number of values in each bucket: up to and with the first bound, above it up to and with the second, ..., above the last.

    Upper bounds belong to their bucket, as Prometheus's `le` and OpenTelemetry's explicit bounds do; the counts are not cumulative. The result is
    a list with one count more than bounds, of zeros without any value. Exact. State: 8 bytes a bucket.
    """

    of: str = Field(description="A numeric field. Nulls and NaN do not count.")
    bounds: tuple[float, ...] = Field(description="Upper bounds of the buckets, ascending, such as `[5, 10, 25]`. A last bucket is for all above them.")

    @field_validator("bounds")
    @classmethod
    def _ascending(cls, bounds: tuple[float, ...]) -> tuple[float, ...]:
        if not 1 <= len(bounds) <= MAX_BOUNDS:
            raise user_error(f"expected 1 to {MAX_BOUNDS} bounds, found {len(bounds)}")
        for low, high in pairwise(bounds):
            if not low < high:
                raise user_error(f"bounds must ascend; found {low:g} before {high:g}")
        return bounds


class Histogram:
    """Prometheus data model, "Histograms"; OpenTelemetry metrics data model, "Histogram".

    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"histogram": {"of": "ms", "bounds": [5, 10, 25]}}, events_of({"ms": [5, 6, 10, None, 26, 1000]}))
    [1, 2, 0, 2]
    """

    Options = HistogramOptions

    def __init__(self, options: HistogramOptions, schema: pa.Schema) -> None:
        field = numeric_field(schema, options.of, "histogram")
        size = len(options.bounds) + 1
        self.type = pa.list_(pa.int64())

        def partial(buckets: pa.Array, groups: Groups) -> pa.Array:
            counts = np.zeros(groups.count * size, np.int64)
            _count(np.asarray(pc.fill_null(buckets, -1)), groups.ids, size, counts)
            return _lists(counts, groups.count, size)

        def merge(lists: pa.Array, groups: Groups) -> pa.Array:
            counts = np.zeros(groups.count * size, np.int64)
            present = np.asarray(pc.is_valid(lists))
            _add(np.asarray(lists.flatten()), groups.ids[present], size, counts)
            return _lists(counts, groups.count, size)

        name = f"histogram({','.join(map(repr, options.bounds))};{quoted(field.name)})"
        source = _buckets(values(field.name), field.type, options.bounds)
        self.state = (Where(schema, options.where).column(name, self.type, source, partial, merge),)

    def result(self, merged: pa.Table) -> pa.ChunkedArray:
        return merged.column(self.state[0].name)


def _buckets(numbers: Source, kind: pa.DataType, bounds: tuple[float, ...]) -> Source:
    """The bucket of each value. Integers are compared as such: as doubles, large ones would be rounded over a bound."""
    below = 0
    if pa.types.is_integer(kind):
        kind = pa.uint64() if pa.types.is_uint64(kind) else pa.int64()
        limits = np.iinfo(kind.to_pandas_dtype())
        below = bisect.bisect_left(bounds, int(limits.min))
        edges = np.array([min(math.floor(bound), int(limits.max)) for bound in bounds[below:]], kind.to_pandas_dtype())
    else:
        kind, edges = pa.float64(), np.array(bounds)

    def source(events: pa.RecordBatch) -> pa.Array:
        array = numbers(events).cast(kind)
        null = np.asarray(pc.is_null(array)) if array.null_count else None
        plain = np.asarray(pc.fill_null(array, 0))
        if len(edges) > FEW_BOUNDS:
            return pa.array(np.searchsorted(edges, plain) + below, mask=null)
        buckets = np.full(len(plain), below)
        _place(plain, edges, buckets)
        return pa.array(buckets, mask=null)

    return source


def _lists(counts: Longs, groups: int, size: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.arange(groups + 1, dtype=np.int32) * size), pa.array(counts))


@kernel
def _place(numbers: npt.NDArray[Any], edges: npt.NDArray[Any], buckets: Longs) -> None:
    """Adds to each bucket how many edges are below its number, by comparing with each: without a branch to mispredict."""
    for place in range(len(edges)):
        edge = edges[place]
        for i in range(len(numbers)):
            buckets[i] += numbers[i] > edge


@kernel
def _count(buckets: Longs, ids: Longs, size: int, counts: Longs) -> None:
    for i in range(len(buckets)):
        if buckets[i] >= 0:
            counts[ids[i] * size + buckets[i]] += 1


@kernel
def _add(stored: Longs, ids: Longs, size: int, counts: Longs) -> None:
    for i in range(len(ids)):
        for bucket in range(size):
            counts[ids[i] * size + bucket] += stored[i * size + bucket]
