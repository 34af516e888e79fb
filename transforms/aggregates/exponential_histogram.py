"""exponential_histogram: counts of values in buckets whose bounds grow by a factor, as fine as their number allows."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Source, Where, numeric_field, quoted, values
from streamgauge.transforms.aggregates.items import Items, items_type, open_lists, sum_items
from streamgauge.transforms.aggregates.logarithm import SMALLEST, octave_parts
from streamgauge.transforms.formats.compiled import kernel
from streamgauge.transforms.groups import Groups

Longs = npt.NDArray[np.int64]

MAX_SCALE = 20
"""2**20 buckets an octave, the largest scale that OpenTelemetry's SDKs use."""

_NEGATIVE, _ZERO, _POSITIVE = 0, 1, 2
"""Kinds of values."""

_KIND_BITS, _KIND = 2, 3
_BEYOND = 2**40
"""Above every index."""

_LIFT = 54
"""Octaves that lift every subnormal double among the normal ones."""

_STATE = pa.struct([("scale", pa.int8()), ("buckets", items_type(pa.int64()))])
_SIDE = pa.struct([("offset", pa.int32()), ("bucket_counts", pa.list_(pa.int64()))])
_RESULT = pa.struct([("count", pa.int64()), ("scale", pa.int32()), ("zero_count", pa.int64()), ("positive", _SIDE), ("negative", _SIDE)])


class ExponentialHistogramOptions(Filtered):
    """Histogram with exponential buckets, as OpenTelemetry's metrics data model defines it. Null without any value.

    Source: https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram.

    At scale s the bucket of index i holds the magnitudes above 2**(i / 2**s), up to and with 2**((i + 1) / 2**s). The scale is the largest, up to
    `scale`, at which both the positive and the negative values need at most `max_size` buckets, from the lowest in use to the highest. The
    result is a struct with the names of that model: `count`, `scale`, `zero_count`, and `positive` and `negative` with `offset` (the index of
    their first bucket) and `bucket_counts`. Counts are exact; a value within a bucket is known within a factor of 2**(1 / 2**scale).

    With 160 buckets, values of which the largest is 10**6 times the smallest get scale 3: bounds that are 9 % apart.
    State: 16 bytes for each bucket in use, at most 32 * `max_size`.
    """

    short: ClassVar[str] = "of"
    of: str = Field(description="A numeric field. Nulls, NaN and infinities do not count: no bucket of the data model holds them. Integers count as doubles.")
    max_size: int = Field(160, ge=2, le=10_000, description="Largest number of buckets of the positive values of a key, and of its negative ones.")
    scale: int = Field(MAX_SCALE, ge=-10, le=MAX_SCALE, description="Largest scale: where values lie close together, buckets get no finer.")


class ExponentialHistogram:
    """A list of buckets with counts, and their scale. Halving the scale joins buckets in pairs, so it is exact: the index is shifted.

    Merging gives one state in any order: values that fit at a scale fit at all lower ones, and so does every part of them. A part's scale is
    then never below that of the whole, so the indices at the scale of the whole are always known exactly.

    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result = result_of({"exponential_histogram": {"of": "ms", "max_size": 4}}, events_of({"ms": [1.0, 2.0, 4.0, 0.0]}))
    >>> result["scale"], result["zero_count"], result["positive"]
    (0, 1, {'offset': -1, 'bucket_counts': [1, 1, 1]})
    """

    Options = ExponentialHistogramOptions

    def __init__(self, options: ExponentialHistogramOptions, schema: pa.Schema) -> None:
        field = numeric_field(schema, options.of, "exponential_histogram")
        self.type = _RESULT
        most, scale = options.max_size, options.scale

        def partial(codes: pa.Array, groups: Groups) -> pa.Array:
            counted = np.asarray(pc.is_valid(codes))
            return _fitted(np.asarray(codes.drop_null()), groups.ids[counted], groups.count, most, np.full(groups.count, scale), None)

        def merge(stored: pa.Array, groups: Groups) -> pa.Array:
            scales, lists = stored.flatten()
            found = open_lists(lists)
            stored_scales = np.asarray(pc.fill_null(scales, scale)).astype(np.int64)
            lowest = np.full(groups.count, scale)
            np.minimum.at(lowest, groups.ids, stored_scales)
            ids = np.repeat(groups.ids, found.lengths)
            codes = _shifted(np.asarray(found.items), np.repeat(stored_scales, found.lengths) - lowest[ids])
            return _fitted(codes, ids, groups.count, most, lowest, found.weights)

        name = f"exponential({scale},{most},{quoted(field.name)})"
        self.state = (Where(schema, options.where).column(name, _STATE, _codes(values(field.name), scale), partial, merge),)

    def result(self, merged: pa.Table) -> pa.Array:
        scales, lists = merged.column(self.state[0].name).combine_chunks().flatten()
        found = open_lists(lists)
        kinds = np.asarray(found.items) & _KIND
        counts = np.zeros((2, merged.num_rows), np.int64)
        np.add.at(counts[0], found.groups, found.weights)
        np.add.at(counts[1], found.groups, np.where(kinds == _ZERO, found.weights, 0))
        sides = [_side(found.keep(kinds == kind)) for kind in (_POSITIVE, _NEGATIVE)]
        columns = [pa.array(counts[0]), scales.cast(pa.int32()), pa.array(counts[1]), *sides]
        return pa.StructArray.from_arrays(columns, fields=list(_RESULT), mask=pa.array(found.lengths == 0))


def _codes(numbers: Source, scale: int) -> Source:
    """Index of each value at the scale, with its sign in the lowest bits."""

    def source(events: pa.RecordBatch) -> pa.Array:
        array = numbers(events).cast(pa.float64(), safe=False)
        doubles = np.asarray(pc.fill_null(array, np.inf))
        magnitudes = np.abs(doubles)
        subnormal = magnitudes < SMALLEST
        magnitudes[subnormal] *= 2.0**_LIFT
        indices = np.empty(len(doubles), np.int64)
        octave_parts(magnitudes.view(np.int64), 1 << MAX_SCALE, indices)
        indices = (indices - (subnormal * (_LIFT << MAX_SCALE))) >> (MAX_SCALE - scale)
        codes = np.where(doubles == 0, _ZERO, (indices << _KIND_BITS) | np.where(doubles < 0, _NEGATIVE, _POSITIVE))
        infinite = np.isinf(doubles)
        return pa.array(codes, mask=infinite if infinite.any() else None)

    return source


def _shifted(codes: Longs, halvings: Longs) -> Longs:
    return ((codes >> _KIND_BITS >> halvings) << _KIND_BITS) | (codes & _KIND)


def _fitted(codes: Longs, ids: Longs, count: int, most: int, scales: Longs, weights: Longs | None) -> pa.Array:
    """The state of buckets that are at the scale of their group: at a lower one where they are too many."""
    halvings = np.zeros(count, np.int64)
    _halvings(codes, ids, most, np.full((2, count), _BEYOND), np.full((2, count), -_BEYOND), halvings)
    found = sum_items(pa.array(_shifted(codes, halvings[ids])), ids, count, weights)
    return pa.StructArray.from_arrays([pa.array((scales - halvings).astype(np.int8)), found.to_lists()], fields=list(_STATE))


@kernel
def _halvings(codes: Longs, ids: Longs, most: int, low: Longs, high: Longs, halvings: Longs) -> None:
    """How often the scale of each group is to be halved, until no side has more than ``most`` buckets; ``low`` and ``high`` [side, group] are room."""
    for i in range(len(codes)):
        side, index = (codes[i] & _KIND) >> 1, codes[i] >> _KIND_BITS
        if codes[i] & _KIND != _ZERO:
            low[side, ids[i]] = min(low[side, ids[i]], index)
            high[side, ids[i]] = max(high[side, ids[i]], index)
    for group in range(len(halvings)):
        for side in range(2):
            while (high[side, group] >> halvings[group]) - (low[side, group] >> halvings[group]) >= most:
                halvings[group] += 1


def _side(found: Items) -> pa.Array:
    """Offset and dense counts of each group's buckets of one sign."""
    indices, used = np.asarray(found.items) >> _KIND_BITS, found.lengths > 0
    offsets, sizes = np.zeros((2, len(used)), np.int64)
    offsets[used] = indices[found.starts[:-1][used]]
    sizes[used] = indices[found.starts[1:][used] - 1] - offsets[used] + 1
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    counts = np.zeros(starts[-1], np.int64)
    counts[(starts[:-1] - offsets)[found.groups] + indices] = found.weights
    lists = pa.ListArray.from_arrays(pa.array(starts.astype(np.int32)), pa.array(counts))
    return pa.StructArray.from_arrays([pa.array(offsets.astype(np.int32)), lists], fields=list(_SIDE))
