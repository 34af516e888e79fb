"""Exact sums: of doubles, and of products of two numbers, to the last bit, whatever the order.

A double is an integer times a power of two, so a sum of doubles is one too: it is kept as such, a superaccumulator (U. Kulisch, "Computer
Arithmetic and Validity", 2008; R. Neal, "Fast Exact Summation Using Small and Large Superaccumulators", 2015). Nothing is rounded before a
result is asked for (exact_results.py), so no order of additions can change it. Products enter with all of their 106 bits (128 of integers), as
no fused or split multiplication can give them: neither overflow nor underflow takes a bit.

While a batch is summed, a group has one int64 *cell* for each limb of 32 bits that its own values reach, so memory grows with what is stored.
What is stored, :data:`EXACT`, is canonical, equal numbers are equal bytes:

    header | word | word | ...      int32, lowest word first, two's complement, without the zeros below and the signs above

The header's low 8 bits say which limb the first word is, the next two whether +inf and -inf are among the values. Without any value the state is null.
Size: 4 bytes and 4 for each word (2 to 4 of them while the values are within a few powers of ten of each other), at most 550; and 8 for Arrow's offset.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamgauge.transforms.arrays import fixed, validity
from streamgauge.transforms.formats.compiled import I64, U64, compiled, kernel
from streamgauge.transforms.groups import Groups

EXACT = pa.large_binary()
"""Type of the stored state. Its offsets are wide: a merge may put more than 2 GB side by side."""

ZERO_LIMB = 68
"""The limb whose lowest bit is 2**0. The lowest limb holds 2**-2148, the least bit of the product of the two smallest doubles."""

POSITIVE, NEGATIVE = 1 << 8, 1 << 9
"""Bits of a header: +inf, and -inf, is among the values."""

_LIMB_BITS = 32
_LOW = 2**32 - 1
_BIAS = ZERO_LIMB * _LIMB_BITS
_DOUBLE_BIAS = 1075
"""A double's biased exponent less this is the exponent of its lowest bit."""
_DOUBLE, _SIGNED, _UNSIGNED = 0, 1, 2
_SEEN, _INDEX = 1, 255
_NO_LIMB = 255

Bits = npt.NDArray[np.uint8]
Longs = npt.NDArray[np.int64]
Words = npt.NDArray[np.int32]
_Number = TypeVar("_Number", bound=np.generic)


class Exact(NamedTuple):
    """An array of :data:`EXACT`: the i-th state is ``words[ends[i]:ends[i + 1]]``, nothing where there is none."""

    ends: Longs
    words: Words

    @classmethod
    def of(cls, array: pa.Array | pa.ChunkedArray) -> Exact:
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        _, offsets, data = array.buffers()
        if array.null_count == len(array) or data is None:
            return cls(np.zeros(len(array) + 1, np.int64), fixed(np.empty(0, np.int32)))
        ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1] // 4
        # A null has no bytes in what is made here; Arrow's kernels keep it so.
        return cls(ends, fixed(np.require(np.frombuffer(data, np.int32, count=data.size // 4), requirements="A")))

    def array(self) -> pa.Array:
        valid = np.diff(self.ends) != 0
        bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
        return pa.Array.from_buffers(EXACT, len(valid), [bitmap, pa.py_buffer(self.ends * 4), pa.py_buffer(self.words)])


def sum_doubles(array: pa.Array, groups: Groups) -> pa.Array:
    """Kernel: the exact sum of doubles. NaN does not count.

    >>> from streamgauge.transforms.aggregates.exact_results import totals
    >>> one = Groups(np.zeros(3, np.int64), 1, np.zeros(1, np.int64))
    >>> totals(sum_doubles(pa.array([1e100, 1.0, -1e100]), one)).to_pylist()
    [1.0]
    """
    (bits, _), valid = longs(array), validity(array)
    return _sums(bits, valid, groups)


def sum_squares(array: pa.Array, groups: Groups) -> pa.Array:
    """Kernel: the exact sum of the squares of numbers."""
    bits, kind = longs(array)
    return _products(bits, kind, bits, kind, validity(array), groups)


def sum_products(array: pa.Array, groups: Groups) -> pa.Array:
    """Kernel: the exact sum of the products of the two numbers in each struct; those of nulls do not count."""
    pairs = [longs(child) for child in array.flatten()]
    (left, left_kind), (right, right_kind) = pairs
    return _products(left, left_kind, right, right_kind, validity(array), groups)


def merge_exact(array: pa.Array, groups: Groups) -> pa.Array:
    """Kernel: the sum of exact sums."""
    state = Exact.of(array)
    low, high, flags = _empty_groups(groups.count)
    _state_limbs(state.ends, state.words, groups.ids, low, high, flags)
    base, size = _bases(low, high)
    cells = np.zeros(size, np.int64)
    _add_states(state.ends, state.words, groups.ids, base, cells)
    return _written(cells, base, low, high, flags)


def of_integers(high: Longs, low: Longs, valid: npt.NDArray[np.bool_]) -> Exact:
    """The states of the integers high * 2**32 + low; both parts have any sign and size."""
    count = len(high)
    cells = np.zeros((count, 4), np.int64)
    cells[:, 0], cells[:, 1], cells[:, 2] = low & _LOW, (low >> _LIMB_BITS) + (high & _LOW), high >> _LIMB_BITS
    first = np.full(count, ZERO_LIMB, np.int32)
    return _packed(cells.ravel(), np.arange(count) * 4 - ZERO_LIMB, first, first + np.int32(3), valid.astype(np.uint8))


def _sums(bits: Longs, valid: Bits, groups: Groups) -> pa.Array:
    low, high, flags = _empty_groups(groups.count)
    _double_limbs(bits, valid, groups.ids, low, high, flags)
    base, size = _bases(low, high)
    cells = np.zeros(size, np.int64)
    _add_doubles(bits, valid, groups.ids, base, cells)
    return _written(cells, base, low, high, flags)


def _products(left: Longs, left_kind: int, right: Longs, right_kind: int, valid: Bits, groups: Groups) -> pa.Array:
    low, high, flags = _empty_groups(groups.count)
    _product_limbs(left, left_kind, right, right_kind, valid, groups.ids, low, high, flags)
    base, size = _bases(low, high)
    cells = np.zeros(size, np.int64)
    _add_products(left, left_kind, right, right_kind, valid, groups.ids, base, cells)
    return _written(cells, base, low, high, flags)


def _empty_groups(count: int) -> tuple[Words, Words, Bits]:
    """Lowest and highest limb of each group, and what was seen there."""
    return np.full(count, _NO_LIMB, np.int32), np.full(count, -1, np.int32), np.zeros(count, np.uint8)


def _bases(low: Words, high: Words) -> tuple[Longs, int]:
    """Where each group's limb 0 would be among the cells, and the number of cells."""
    sizes = np.maximum(high.astype(np.int64) - low + 1, 0)
    ends = np.cumsum(sizes)
    return ends - sizes - low, int(ends[-1]) if len(ends) else 0


def _written(cells: Longs, base: Longs, low: Words, high: Words, flags: Bits) -> pa.Array:
    return _packed(cells, base, low, high, flags).array()


def _packed(cells: Longs, base: Longs, low: Words, high: Words, flags: Bits) -> Exact:
    ends, words = np.zeros(len(low) + 1, np.int64), np.empty(len(cells) + len(low), np.int32)
    _write(cells, base, low, high, flags, ends, words)
    return Exact(ends, fixed(words[: ends[-1]]))


def longs(array: pa.Array) -> tuple[Longs, int]:
    """64 bits a value, and how to read them."""
    kind = array.type
    if pa.types.is_floating(kind):
        array, read = array.cast(pa.float64()), _DOUBLE
    elif pa.types.is_uint64(kind):
        read = _UNSIGNED
    else:
        array, read = array.cast(pa.int64()), _SIGNED
    data = array.buffers()[1]
    return fixed(np.frombuffer(data, np.int64)[array.offset : array.offset + len(array)]), read


# Kernels. A value's pieces are added to as many cells, without carries: there is room for 2**31 of them.


@kernel
def _double_limbs(bits: Longs, valid: Bits, ids: Longs, low: Words, high: Words, flags: Bits) -> None:
    """Which limbs the doubles of each group reach."""
    all_valid = len(valid) == 0
    for i in range(len(bits)):
        if all_valid or valid[i]:
            value, g = bits[i], ids[i]
            exponent = (value >> 52) & 0x7FF
            if exponent == 0x7FF:
                if value & (2**52 - 1) == 0:
                    flags[g] |= 5 if value < 0 else 3
                continue
            flags[g] |= 1
            if value & (2**63 - 1):  # the limb of a zero would make the others many
                limb = (max(exponent, 1) + (_BIAS - _DOUBLE_BIAS)) >> 5
                low[g] = min(low[g], limb)
                high[g] = max(high[g], limb + 3)


@kernel
def _add_doubles(bits: Longs, valid: Bits, ids: Longs, base: Longs, cells: Longs) -> None:
    """A double is three pieces: 53 bits, moved by up to 31."""
    all_valid = len(valid) == 0
    for i in range(len(bits)):
        if all_valid or valid[i]:
            value = bits[i]
            exponent = (value >> 52) & 0x7FF
            if exponent == 0x7FF or value & (2**63 - 1) == 0:
                continue
            magnitude = U64((value & (2**52 - 1)) | (2**52 if exponent else 0))
            position = max(exponent, 1) + (_BIAS - _DOUBLE_BIAS)
            shift = U64(position & 31)
            moved = magnitude << shift
            sign = value >> 63
            at = base[ids[i]] + (position >> 5)
            cells[at] += (I64(moved & U64(_LOW)) ^ sign) - sign
            cells[at + 1] += (I64(moved >> U64(32)) ^ sign) - sign
            cells[at + 2] += (I64((magnitude >> U64(32)) >> (U64(32) - shift)) ^ sign) - sign


@compiled
def _parts(value: int, kind: int) -> tuple[int, int, int]:
    """(magnitude, exponent of its lowest bit, sign: 0 or -1) of a finite number."""
    if kind == _DOUBLE:
        exponent = (value >> 52) & 0x7FF
        return U64((value & (2**52 - 1)) | (2**52 if exponent else 0)), max(exponent, 1) - _DOUBLE_BIAS, value >> 63
    sign = value >> 63 if kind == _SIGNED else I64(0)
    return U64((value ^ sign) - sign), I64(0), sign


@compiled
def _is_finite(value: int, kind: int) -> bool:
    return kind != _DOUBLE or (value >> 52) & 0x7FF != 0x7FF


@compiled
def _is_nan(value: int, kind: int) -> bool:
    return kind == _DOUBLE and (value & (2**63 - 1)) > (0x7FF << 52)


@kernel
def _product_limbs(
    left: Longs, left_kind: int, right: Longs, right_kind: int, valid: Bits, ids: Longs, low: Words, high: Words, flags: Bits
) -> None:
    """Which limbs the products of each group reach. A product with an infinity counts as +inf: what is made of it is not known anyway."""
    all_valid = len(valid) == 0
    for i in range(len(left)):
        if not (all_valid or valid[i]) or _is_nan(left[i], left_kind) or _is_nan(right[i], right_kind):
            continue
        g = ids[i]
        if not (_is_finite(left[i], left_kind) and _is_finite(right[i], right_kind)):
            flags[g] |= 3
            continue
        flags[g] |= 1
        a, a_exponent, _ = _parts(left[i], left_kind)
        b, b_exponent, _ = _parts(right[i], right_kind)
        if a and b:
            limb = (a_exponent + b_exponent + _BIAS) >> 5
            low[g] = min(low[g], limb)
            high[g] = max(high[g], limb + 5)


@kernel
def _add_products(left: Longs, left_kind: int, right: Longs, right_kind: int, valid: Bits, ids: Longs, base: Longs, cells: Longs) -> None:
    """A product is five pieces: 128 bits, moved by up to 31."""
    all_valid = len(valid) == 0
    half, mask = U64(32), U64(_LOW)
    for i in range(len(left)):
        if not (all_valid or valid[i]) or not (_is_finite(left[i], left_kind) and _is_finite(right[i], right_kind)):
            continue
        a, a_exponent, a_sign = _parts(left[i], left_kind)
        b, b_exponent, b_sign = _parts(right[i], right_kind)
        if not (a and b):
            continue
        # Schoolbook, in halves: no step overflows.
        low_low, low_high, high_low, high_high = (a & mask) * (b & mask), (a & mask) * (b >> half), (a >> half) * (b & mask), (a >> half) * (b >> half)
        middle = (low_low >> half) + (low_high & mask) + (high_low & mask)
        upper = high_high + (low_high >> half) + (high_low >> half) + (middle >> half)
        lower = (low_low & mask) | (middle << half)
        position = a_exponent + b_exponent + _BIAS
        shift, sign = U64(position & 31), a_sign ^ b_sign
        back = half - shift
        between = (upper << shift) | ((lower >> half) >> back)
        at = base[ids[i]] + (position >> 5)
        cells[at] += (I64((lower << shift) & mask) ^ sign) - sign
        cells[at + 1] += (I64((lower << shift) >> half) ^ sign) - sign
        cells[at + 2] += (I64(between & mask) ^ sign) - sign
        cells[at + 3] += (I64(between >> half) ^ sign) - sign
        cells[at + 4] += (I64((upper >> half) >> back) ^ sign) - sign


@kernel
def _state_limbs(ends: Longs, words: Words, ids: Longs, low: Words, high: Words, flags: Bits) -> None:
    """Which limbs the states of each group reach."""
    for i in range(len(ids)):
        if ends[i] < ends[i + 1]:
            header, g, size = words[ends[i]], ids[i], ends[i + 1] - ends[i] - 1
            flags[g] |= _SEEN | ((header >> 8) << 1)
            if size:
                limb = header & _INDEX
                low[g] = min(low[g], limb)
                high[g] = max(high[g], limb + size)


@kernel
def _add_states(ends: Longs, words: Words, ids: Longs, base: Longs, cells: Longs) -> None:
    for i in range(len(ids)):
        if ends[i + 1] - ends[i] > 1:
            at = base[ids[i]] + (words[ends[i]] & _INDEX) - ends[i] - 1
            last = ends[i + 1] - 1
            for k in range(ends[i] + 1, last):
                cells[at + k] += I64(words[k]) & _LOW
            cells[at + last] += words[last]


@kernel
def _write(cells: Longs, base: Longs, low: Words, high: Words, flags: Bits, ends: Longs, words: Words) -> None:
    """The canonical state of each group: carries done, no zero word below, no word above that repeats the sign."""
    size = I64(0)
    for g in range(len(low)):
        if flags[g]:
            header, limb, carry = size, I64(0), I64(0)
            size += 1
            first = size
            for k in range(low[g], high[g] + 1):
                value = cells[base[g] + k] + carry
                carry = value >> 32
                word = value & _LOW
                if word or size > first:
                    if size == first:
                        limb = I64(k)
                    words[size] = word - ((word >> 31) << 32)
                    size += 1
            while size - 1 > first and words[size - 1] == carry and (words[size - 2] < 0) == (carry < 0):
                size -= 1
            words[header] = limb | ((I64(flags[g]) >> 1) << 8)
        ends[g + 1] = size
