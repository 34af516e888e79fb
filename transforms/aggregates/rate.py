"""rate and increase: of a counter that only grows, but for resets.

The samples of the window are kept, for what lies between two samples may come later. State: 24 bytes and the split's name, a sample.

A drop is a reset, as Prometheus has it (https://prometheus.io/docs/prometheus/latest/querying/functions/#rate): the counter began anew at
0, and the new value counts in full. Other than Prometheus nothing is extrapolated to the borders of the window: the result is what was
counted between the first and the last sample that are in it, by the time between them, and never includes events that nobody saw.
A key is one counter: name in `by` what tells counters apart.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Source, Where, numeric_field, quoted, values
from streamgauge.transforms.aggregates.order import (
    TIME,
    Longs,
    flat,
    lists,
    longs,
    order_of,
    ordered_source,
    ordered_type,
    sorted_rows,
    starts,
    those_that_count,
)  # fmt: skip
from streamgauge.transforms.config import MICROSECONDS, Duration
from streamgauge.transforms.formats.compiled import kernel
from streamgauge.transforms.groups import Groups

_VALUE = "value"


class IncreaseOptions(Filtered):
    """How much a counter grew between the first and the last sample of the window; a drop is a reset to 0, as in Prometheus.

    Nothing is extrapolated to the window's borders, as Prometheus does. Integers: exact; a total beyond 64 bits is null. Floats: last less first value, plus
    the value before each reset, in IEEE doubles, in the order of event time, split and position. Nulls and NaN are no samples; null below two samples.
    State: 24 bytes and the split's name, a sample.
    """

    short: ClassVar[str] = "of"
    of: str = Field(description="A numeric field: a counter that only grows, but for resets.")


class RateOptions(IncreaseOptions):
    """Increase of a counter between the first and the last sample of the window, divided by the time between them; a drop is a reset to 0, as in Prometheus.

    Nothing is extrapolated to the window's borders, as Prometheus does. Nulls and NaN are no samples; null below two samples, and when all are of one time.
    State: 24 bytes and the split's name, a sample.
    """

    per: Duration = Field(MICROSECONDS["s"], gt=0, description="Unit of time of the result: `1s` is per second.")


class Increase:
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"increase": "requests"}, events_of({"requests": [10, 25, 3, 7]}))
    22
    """

    Options: ClassVar[type[IncreaseOptions]] = IncreaseOptions
    name: ClassVar[str] = "increase"

    def __init__(self, options: IncreaseOptions, schema: pa.Schema) -> None:
        field = numeric_field(schema, options.of, self.name)
        self.type = self._counter = _wide(field.type)
        sample = ordered_type(schema, {_VALUE: self._counter})
        source = ordered_source(schema, {_VALUE: partial(_widened, values(field.name), self._counter)})
        self.state = (
            Where(schema, options.where).column(
                f"samples({quoted(field.name)})", pa.list_(sample), source, partial(_collected, sample), partial(_merged, sample)
            ),
        )

    def result(self, merged: pa.Table) -> pa.Array:
        return self._increase(merged)[0]

    def _increase(self, merged: pa.Table) -> tuple[pa.Array, Longs]:
        """The increase, and the microseconds between the first and the last sample."""
        column = merged.column(self.state[0].name).combine_chunks()
        samples, ids = flat(column, np.arange(len(column)))
        begins, times = starts(ids, len(column)), longs(samples.field(TIME))
        numbers = np.asarray(samples.field(_VALUE))
        totals, estimates = np.zeros(len(column), numbers.dtype), np.zeros(len(column))
        _increases(begins, numbers, totals, estimates)
        none = np.diff(begins) < 2
        if pa.types.is_integer(self._counter):
            # The total is right modulo 2**64.
            none |= np.abs(estimates - totals.astype(np.float64)) > 2.0**62
        else:
            none |= np.isnan(totals)
        between = np.zeros(len(column), np.int64)
        many = np.flatnonzero(~none)
        between[many] = times[begins[many + 1] - 1] - times[begins[many]]
        return pa.array(totals, self._counter, mask=none), between


class Rate(Increase):
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"rate": "requests"}, events_of({"requests": [10, 25, 3, 7]}, times=[0, 1_000_000, 2_000_000, 4_000_000]))
    5.5
    """

    Options: ClassVar[type[IncreaseOptions]] = RateOptions
    name = "rate"

    def __init__(self, options: RateOptions, schema: pa.Schema) -> None:
        super().__init__(options, schema)
        self.type = pa.float64()
        self._per = options.per

    def result(self, merged: pa.Table) -> pa.Array:
        increase, between = self._increase(merged)
        units = pa.array(between / self._per, mask=between == 0)
        return pc.divide(increase.cast(pa.float64(), safe=False), units)


def _wide(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_floating(kind):
        return pa.float64()
    return pa.uint64() if pa.types.is_uint64(kind) else pa.int64()


def _widened(source: Source, kind: pa.DataType, events: pa.RecordBatch) -> pa.Array:
    return source(events).cast(kind)


def _collected(sample: pa.DataType, column: pa.StructArray, groups: Groups) -> pa.ListArray:
    return _sorted(sample, *those_that_count(column, groups.ids), groups.count)


def _merged(sample: pa.DataType, column: pa.ListArray, groups: Groups) -> pa.ListArray:
    return _sorted(sample, *flat(column, groups.ids), groups.count)


def _sorted(sample: pa.DataType, events: pa.StructArray, ids: Longs, count: int) -> pa.ListArray:
    rows = sorted_rows(ids, count, order_of(events))
    return lists(ids, count, events.take(pa.array(rows)).cast(sample))


@kernel
def _increases(begins: Longs, numbers: npt.NDArray[Any], totals: npt.NDArray[Any], estimates: npt.NDArray[np.float64]) -> None:
    """Last less first, plus what stood before each reset; ``totals`` in the type of the numbers, where integers wrap round."""
    for g in range(len(totals)):
        first, last = begins[g], begins[g + 1] - 1
        if last <= first:
            continue
        total = numbers[last] - numbers[first]
        estimate = np.float64(numbers[last]) - np.float64(numbers[first])
        for i in range(first + 1, last + 1):
            if numbers[i] < numbers[i - 1]:
                total += numbers[i - 1]
                estimate += np.float64(numbers[i - 1])
        totals[g], estimates[g] = total, estimate
