"""ewm: the exponentially weighted mean in event time, the same whatever the order of events.

The weight of an event at time t, seen from T, is 2**-((T - t) / half_life). T cancels in sum(w * v) / sum(w), so the weight is taken as
2**(t / half_life) = 2**k * 2**f with 0 <= f < 1: the integer k only says at which binary exponent ``v * 2**f`` is added. That needs an accumulator that
no exponent is too large for, and that no order of additions changes (as in exact_sum.py), but not one that keeps what has decayed: it keeps
the limbs from the largest addend down to 2**-108 of it. A limb's sum is never carried into another one, so what is
dropped is the same whether it is dropped early or late.

Smoothing of irregular series by elapsed time: A. Eckner, "Algorithms for Unevenly Spaced Time Series: Moving Averages and Other Rolling
Operators", 2019; here every event counts by its own time alone.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Source, Where, numeric_field, quoted, values
from streamgauge.transforms.aggregates.exact_sum import Bits, Longs, longs
from streamgauge.transforms.arrays import fixed, validity
from streamgauge.transforms.batch import EVENT_TIME
from streamgauge.transforms.config import Duration, format_duration
from streamgauge.transforms.formats.compiled import I64, U64, compiled, kernel
from streamgauge.transforms.groups import Groups

_LIMB_BITS = 28
"""Each of three limbs takes so many bits of an addend; an int64 has room for 2**35 of them."""

_LIMBS = 5
"""Limbs that are kept: the three of the largest addend and two below."""

_SUM = _LIMBS + 1
"""int64 numbers of one accumulator: the lowest limb of its largest addend, then the limbs' sums, highest first."""

_STATE = 1 + 2 * _SUM
"""int64 numbers of a state: which infinities are among the values (1: +inf, 2: -inf), the sum of weighted values, the sum of weights."""

_NOTHING = -(2**62)
"""In place of the limb of an accumulator without an addend."""

_STATE_TYPE = pa.binary(_STATE * 8)

_STEPS, _DEGREE = 64, 7
Doubles = npt.NDArray[np.float64]


def _powers() -> tuple[Doubles, Doubles]:
    """2**(i / 64), and the coefficients of 2**r, |r| < 1/64: not the platform's exp2, whose last bit is not the same everywhere."""
    with localcontext() as context:
        context.prec = 40
        root, log = Decimal(2) ** (1 / Decimal(_STEPS)), Decimal(2).ln()
        terms = [Decimal(1)]
        for i in range(1, _DEGREE + 1):
            terms.append(terms[-1] * log / i)
        return np.array([float(root**i) for i in range(_STEPS)]), np.array([float(term) for term in terms])


_TABLE, _TERMS = _powers()


class WeightedMeanOptions(Filtered):
    """Mean of a numeric field in which an event counts half as much as one that is `half_life` younger, by event time.

    No order of events, merge or replay changes a bit. Error below 2e-15 * sum(w * |v|) / sum(w), of which each weight as a double is the
    most. Integers beyond 2**53 are rounded to doubles. Nulls and NaN do not count; null without any value. An infinity among the values is the
    mean; both infinities give null. State: 104 bytes a key.
    """

    of: str = Field(description="A numeric field.")
    half_life: Duration = Field(gt=0, description="Age at which an event counts half, such as `5m`.")


class WeightedMean:
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> events = events_of({"v": [8.0, 5.0]}, times=[0, 60_000_000])
    >>> result_of({"ewm": {"of": "v", "half_life": "1m"}}, events)
    6.0
    """

    Options = WeightedMeanOptions
    name: ClassVar[str] = "ewm"

    def __init__(self, options: WeightedMeanOptions, schema: pa.Schema) -> None:
        field = numeric_field(schema, options.of, self.name)
        name = f"{self.name}({format_duration(options.half_life)}, {quoted(field.name)})"
        made = partial(_add, options.half_life)
        self.state = (Where(schema, options.where).column(name, _STATE_TYPE, _timed(values(field.name)), made, _merge),)
        self.type = pa.float64()

    def result(self, merged: pa.Table) -> pa.Array:
        state = _rows(merged.column(self.state[0].name).combine_chunks())
        infinite, sums, weights = state.cells[:, 0], state.cells[:, 1 : 1 + _SUM], state.cells[:, 1 + _SUM :]
        top, bottom = _value(sums[:, 1:]), _value(weights[:, 1:])
        with np.errstate(all="ignore"):
            # Of no addend but zeros the sum is zero, whatever its limb.
            exponent = np.where(top == 0, 0, (sums[:, 0] - weights[:, 0]) * _LIMB_BITS)
            mean = np.ldexp(top / bottom, np.clip(exponent, -(2**30), 2**30).astype(np.int32))
        mean = np.where(infinite == 1, np.inf, np.where(infinite == 2, -np.inf, mean))
        return pa.array(mean, mask=~state.valid | (infinite == 3))


class _Rows(NamedTuple):
    """States as int64 numbers, one row a state; where there is none, zeros."""

    cells: Longs
    valid: npt.NDArray[np.bool_]


def _timed(source: Source) -> Source:
    def timed(events: pa.RecordBatch) -> pa.Array:
        array = source(events)
        number = array.cast(pa.float64(), safe=False)
        times = events.column(EVENT_TIME).cast(pa.int64())
        return pa.StructArray.from_arrays([number, times], ["value", "time"], mask=pc.is_null(array) if array.null_count else None)

    return timed


def _add(half_life: int, array: pa.Array, groups: Groups) -> pa.Array:
    """Kernel: of values and times (microseconds)."""
    (bits, _), (times, _) = (longs(child) for child in array.flatten())
    state, seen = _empty(groups.count), np.zeros(groups.count, np.bool_)
    places, addends = np.empty((len(bits), 2), np.int64), np.empty((len(bits), 2), np.int64)
    _weigh(bits, times, validity(array), half_life, _TABLE, _TERMS, groups.ids, places, addends, state, seen)
    _add_addends(places, addends, groups.ids, state)
    return _array(state, seen)


def _merge(array: pa.Array, groups: Groups) -> pa.Array:
    """Kernel: of states."""
    rows = _rows(array)
    state, seen = _empty(groups.count), np.zeros(groups.count, np.bool_)
    _add_states(rows.cells, rows.valid, groups.ids, state, seen)
    return _array(state, seen)


def _empty(count: int) -> Longs:
    state = np.zeros((count, _STATE), np.int64)
    state[:, 1] = state[:, 1 + _SUM] = _NOTHING
    return state


def _rows(array: pa.Array) -> _Rows:
    data = array.buffers()[1]
    valid = np.array(pc.is_valid(array))
    if data is None or not valid.any():
        return _Rows(fixed(_empty(len(array))), valid)
    cells = np.require(np.frombuffer(data, np.int64, count=data.size // 8), requirements="A")
    cells = cells[array.offset * _STATE : (array.offset + len(array)) * _STATE].reshape(len(array), _STATE)
    # What is under a null is not defined.
    return _Rows(fixed(np.where(valid[:, None], cells, _empty(len(array))) if array.null_count else cells), valid)


def _array(state: Longs, valid: npt.NDArray[np.bool_]) -> pa.Array:
    bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    return pa.Array.from_buffers(_STATE_TYPE, len(valid), [bitmap, pa.py_buffer(state)])


def _value(limbs: Longs) -> Doubles:
    """The accumulators as doubles, in units of their largest addends' lowest limb. Once carries are done no addition cancels."""
    limbs = limbs.copy()
    for i in range(_LIMBS - 1, 0, -1):
        limbs[:, i - 1] += limbs[:, i] >> _LIMB_BITS
        limbs[:, i] &= 2**_LIMB_BITS - 1
    total = limbs[:, 0].astype(np.float64)
    for i in range(1, _LIMBS):
        total = total * 2.0**_LIMB_BITS + limbs[:, i]
    return np.ldexp(total, -_LIMB_BITS * (_LIMBS - 3))


# Kernels


@compiled
def _place(bits: int) -> tuple[int, int]:
    """A finite double's mantissa of 53 bits, and the exponent of its lowest; no mantissa of zero."""
    exponent, mantissa = (bits >> 52) & 0x7FF, bits & (2**52 - 1)
    if exponent:
        return mantissa | 2**52, exponent - 1075
    if mantissa == 0:
        return I64(0), I64(0)
    exponent = I64(-1074)
    while mantissa < 2**52:
        mantissa, exponent = mantissa << 1, exponent - 1
    return mantissa, exponent


@kernel
def _weigh(
    bits: Longs, times: Longs, valid: Bits, half_life: int, table: Doubles, terms: Doubles, ids: Longs, places: Longs, addends: Longs,
    state: Longs, seen: npt.NDArray[np.bool_],
) -> None:  # fmt: skip
    """Of each event the weighted value and the weight: an integer of up to 54 bits, and the exponent of its lowest bit."""
    all_valid = len(valid) == 0
    for i in range(len(bits)):
        addends[i, 0] = addends[i, 1] = 0
        if not (all_valid or valid[i]) or bits[i] & (2**63 - 1) > 0x7FF << 52:
            continue
        g = ids[i]
        seen[g] = True
        if (bits[i] >> 52) & 0x7FF == 0x7FF:
            state[g, 0] |= 2 if bits[i] < 0 else 1
            continue
        whole = times[i] // half_life
        fraction = (times[i] - whole * half_life) / half_life * _STEPS
        step = min(I64(fraction), _STEPS - 1)  # of a fraction that rounds to 1
        r = (fraction - step) / _STEPS
        power = terms[_DEGREE]
        for j in range(_DEGREE - 1, -1, -1):
            power = power * r + terms[j]
        power *= table[step]
        mantissa, exponent = _place(bits[i])
        # Doubles from 2**52 on are integers.
        addend = I64(mantissa * power)
        addends[i, 0], places[i, 0] = -addend if bits[i] < 0 else addend, exponent + whole
        addends[i, 1], places[i, 1] = I64(power * 2.0**52), whole - 52
        for s in range(2):
            if addends[i, s]:
                state[g, 1 + s * _SUM] = max(state[g, 1 + s * _SUM], places[i, s] // _LIMB_BITS)


@kernel
def _add_addends(places: Longs, addends: Longs, ids: Longs, state: Longs) -> None:
    """Adds the three pieces of each that are not below the limbs that are kept."""
    mask, width = U64(2**_LIMB_BITS - 1), U64(_LIMB_BITS)
    for i in range(len(ids)):
        for s in range(2):
            addend = addends[i, s]
            if addend == 0:
                continue
            sign = addend >> 63
            magnitude = U64((addend ^ sign) - sign)
            limb = places[i, s] // _LIMB_BITS
            shift = U64(places[i, s] - limb * _LIMB_BITS)
            moved = magnitude << shift
            g, first = ids[i], 1 + s * _SUM
            # Where the lowest piece goes: two behind the highest limb of the largest addend, when this is the one.
            at = state[g, first] - limb + 3
            if at <= _LIMBS:
                state[g, first + at] += (I64(moved & mask) ^ sign) - sign
            if at - 1 <= _LIMBS:
                state[g, first + at - 1] += (I64((moved >> width) & mask) ^ sign) - sign
            if at - 2 <= _LIMBS:
                # What a word of 64 bits has no place for when it is moved.
                state[g, first + at - 2] += (I64(magnitude >> (width + width - shift)) ^ sign) - sign


@kernel
def _add_states(cells: Longs, valid: npt.NDArray[np.bool_], ids: Longs, state: Longs, seen: npt.NDArray[np.bool_]) -> None:
    for s in range(2):
        first = 1 + s * _SUM
        for i in range(len(ids)):
            if valid[i]:
                state[ids[i], first] = max(state[ids[i], first], cells[i, first])
        for i in range(len(ids)):
            if valid[i] and cells[i, first] != _NOTHING:
                below = state[ids[i], first] - cells[i, first]
                for k in range(1, _LIMBS + 1 - below):
                    state[ids[i], first + below + k] += cells[i, first + k]
    for i in range(len(ids)):
        if valid[i]:
            seen[ids[i]] = True
            state[ids[i], 0] |= cells[i, 0]
