"""Sums, minima and maxima by group: what nearly every metric needs, without grouping anew as Arrow's ``group_by`` does.

The same results as Arrow's hash aggregations of these names: nulls do not count, sums of integers wrap around, a group without a value is null.
NaN is for callers to make null: least and greatest of nothing else are infinite here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamgauge.transforms.arrays import validity
from streamgauge.transforms.formats.compiled import kernel
from streamgauge.transforms.groups import Groups

_Longs = npt.NDArray[np.int64]
_Values = npt.NDArray[Any]
_Flags = npt.NDArray[np.uint8]


def reduced(function: str, array: pa.Array, groups: Groups) -> pa.Array | None:
    """One value a group, of the array's type (of ``count``: int64); None: not one of the cases known here.

    >>> from streamgauge.transforms.groups import group_rows
    >>> reduced("max", pa.array([3.5, 7.0, None]), group_rows([pa.array(["a", "a", "b"])], 3)).to_pylist()
    [7.0, None]
    """
    valid = validity(array)
    if function == "count":
        counts = np.zeros(groups.count, np.int64)
        _count(groups.ids, valid, counts)
        return pa.array(counts)
    kind = array.type
    is_double = pa.types.is_float64(kind)
    if function not in _KERNELS or not (is_double or pa.types.is_int64(kind) or pa.types.is_timestamp(kind)):
        return None
    if function == "sum" and not pa.types.is_int64(kind):
        return None
    data = array.buffers()[1]
    values = np.frombuffer(data, np.float64 if is_double else np.int64, len(array), array.offset * 8) if len(array) else np.empty(0, np.int64)
    values = values.view()
    values.flags.writeable = False
    # Without nulls every group has a value.
    made, seen = np.full(groups.count, _start(function, is_double), values.dtype), np.zeros(groups.count if len(valid) else 0, np.uint8)
    _KERNELS[function](groups.ids, values, valid, made, seen)
    if not array.null_count or seen.all():
        return pa.Array.from_buffers(kind, groups.count, [None, pa.py_buffer(made)])
    return pa.Array.from_buffers(kind, groups.count, [pa.py_buffer(np.packbits(seen, bitorder="little")), pa.py_buffer(made)])


def _start(function: str, is_double: bool) -> Any:
    if function == "sum":
        return 0
    least, most = (-np.inf, np.inf) if is_double else (np.iinfo(np.int64).min, np.iinfo(np.int64).max)
    return most if function == "min" else least


@kernel
def _count(ids: _Longs, valid: _Flags, counts: _Longs) -> None:
    all_valid = len(valid) == 0
    for i in range(len(ids)):
        if all_valid or valid[i]:
            counts[ids[i]] += 1


@kernel
def _sum(ids: _Longs, values: _Values, valid: _Flags, made: _Values, seen: _Flags) -> None:
    if len(valid) == 0:
        for i in range(len(ids)):
            made[ids[i]] += values[i]
        return
    for i in range(len(ids)):
        if valid[i]:
            made[ids[i]] += values[i]
            seen[ids[i]] = 1


@kernel
def _min(ids: _Longs, values: _Values, valid: _Flags, made: _Values, seen: _Flags) -> None:
    all_valid = len(valid) == 0
    for i in range(len(ids)):
        if all_valid or valid[i]:
            if values[i] < made[ids[i]]:
                made[ids[i]] = values[i]
            if not all_valid:
                seen[ids[i]] = 1


@kernel
def _max(ids: _Longs, values: _Values, valid: _Flags, made: _Values, seen: _Flags) -> None:
    all_valid = len(valid) == 0
    for i in range(len(ids)):
        if all_valid or valid[i]:
            if values[i] > made[ids[i]]:
                made[ids[i]] = values[i]
            if not all_valid:
                seen[ids[i]] = 1


_KERNELS = {"sum": _sum, "min": _min, "max": _max}
