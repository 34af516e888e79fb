"""What exact sums are asked for: totals, means and central moments, each rounded once.

The sums are integers times powers of two, so ``n * sum(x * y) - sum(x) * sum(y)``, in which doubles lose everything when the mean is large against
the spread, is computed without any error, and divided as integers are. The one rounding is to the nearest double, ties to even (IEEE 754).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamgauge.transforms.aggregates.exact_sum import NEGATIVE, POSITIVE, ZERO_LIMB, Exact
from streamgauge.transforms.arrays import fixed
from streamgauge.transforms.formats.compiled import I64, U64, compiled, kernel

_LOW = 2**32 - 1
_PAD = 8
"""Limbs below a number before it is divided twice by up to 2**63: the quotient keeps more than 64 bits."""
_ROOM = 512
"""Limbs that every intermediate number fits in."""
_INDEX = 255

Cells = npt.NDArray[np.int64]
Longs = npt.NDArray[np.int64]
Words = npt.NDArray[np.int32]
Tops = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


class Scaled(NamedTuple):
    """Numbers of any size: ``top * 2**exponent``, with the sign aside.

    Attributes:
        top: the leading 64 bits, of which the last is also set when any bit was left behind: enough to round as if all were there. Zero for zero.
    """

    top: Tops
    exponent: Longs
    negative: Flags
    known: Flags

    @classmethod
    def empty(cls, count: int) -> Scaled:
        return cls(np.zeros(count, np.uint64), np.zeros(count, np.int64), np.zeros(count, np.bool_), np.zeros(count, np.bool_))

    def doubles(self) -> npt.NDArray[np.float64]:
        """Correctly rounded; beyond the doubles an infinity."""
        bits = np.empty(len(self.top), np.int64)
        _round(self.top, self.exponent, self.negative, bits)
        return bits.view(np.float64)

    def roots(self) -> npt.NDArray[np.float64]:
        """Square roots of the magnitudes, within one unit in the last place; they mostly fit where the number itself is beyond the doubles."""
        odd = self.exponent & 1
        with np.errstate(over="ignore"):
            return np.ldexp(np.sqrt(self.top.astype(np.float64) * (1 + odd)), ((self.exponent - odd) >> 1).astype(np.int32))


def totals(exact: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Sums as doubles: the one nearest to the true sum. An infinity among the values is the sum; of both signs, or without a value: null.

    A total beyond the doubles is an infinity; one of zeros is 0.0.
    """
    return means(Exact.of(exact), np.ones(len(exact), np.int64))


def means(state: Exact, counts: Longs) -> pa.Array:
    """Sums divided by counts (>= 1 where there is a sum), the quotient rounded once."""
    scaled = Scaled.empty(len(counts))
    infinite = np.zeros(len(counts), np.int64)
    _quotients(state.ends, state.words, fixed(counts), *scaled, infinite)
    numbers = scaled.doubles()
    if infinite.any():
        numbers[infinite == POSITIVE], numbers[infinite == NEGATIVE] = np.inf, -np.inf
    return pa.array(numbers, mask=~scaled.known | (infinite == POSITIVE | NEGATIVE))


def moments(counts: Longs, x: Exact, y: Exact, products: Exact, freedom: int) -> Scaled:
    """Sums of ``(x - mean(x)) * (y - mean(y))`` divided by the count less ``freedom`` (0 or 1), of ``counts`` pairs with the given sums.

    Not known: with an infinity among the values, or no more values than ``freedom``.
    """
    scaled = Scaled.empty(len(counts))
    _moments(fixed(counts), x.ends, x.words, y.ends, y.words, products.ends, products.words, freedom, ZERO_LIMB, *scaled)
    return scaled


# Kernels. A number under way is an array of cells, limbs of 32 bits each, lowest first.


@compiled
def _load(words: Words, first: int, last: int, cells: Cells) -> bool:
    """The magnitude of a stored number; whether it is negative."""
    negative = last > first and words[last - 1] < 0
    carry = I64(1 if negative else 0)
    for k in range(first, last):
        value = I64(words[k]) & _LOW
        value = (value ^ _LOW if negative else value) + carry
        carry = value >> 32
        cells[k - first] = value & _LOW
    return bool(negative)


@compiled
def _settle(cells: Cells, size: int) -> bool:
    """Carries what is beyond 32 bits; leaves the magnitude. Whether the number is negative."""
    carry = I64(0)
    for k in range(size):
        value = cells[k] + carry
        cells[k], carry = value & _LOW, value >> 32
    if carry >= 0:
        return False
    carry = I64(1)
    for k in range(size):
        value = (cells[k] ^ _LOW) + carry
        cells[k], carry = value & _LOW, value >> 32
    return True


@compiled
def _divide(cells: Cells, size: int, divisor: int) -> bool:
    """The quotient rounded down, and whether something remains."""
    by, rest = U64(divisor), U64(0)
    for k in range(size - 1, -1, -1):
        cell = U64(cells[k])
        if by >> U64(32) == 0:
            rest = (rest << U64(32)) | cell
            cells[k], rest = I64(rest // by), rest % by
        else:
            quotient = U64(0)
            for bit in range(31, -1, -1):
                rest = (rest << U64(1)) | ((cell >> U64(bit)) & U64(1))
                quotient <<= U64(1)
                if rest >= by:
                    rest, quotient = rest - by, quotient | U64(1)
            cells[k] = I64(quotient)
    return bool(rest != 0)


@compiled
def _leading(cells: Cells, size: int) -> tuple[int, int]:
    """The top 64 bits, see Scaled, and the exponent of the last of them; (0, 0) of zero. At least two cells below the highest are there."""
    k = size - 1
    while k >= 0 and cells[k] == 0:
        k -= 1
    if k < 0:
        return U64(0), I64(0)
    lead = I64(0)
    while cells[k] >> lead:
        lead += 1
    up, down = U64(64 - lead), U64(lead)
    top = (U64(cells[k]) << up) | (U64(cells[k - 1]) << (up - U64(32))) | (U64(cells[k - 2]) >> down)
    rest = U64(cells[k - 2]) & ((U64(1) << down) - U64(1))
    for j in range(k - 2):
        rest |= U64(cells[j])
    return top | U64(1 if rest else 0), 32 * k + lead - 64


@kernel
def _quotients(
    ends: Longs, words: Words, counts: Longs, top: Tops, exponent: Longs, negative: Flags, known: Flags, infinite: Longs
) -> None:
    cells = np.zeros(_ROOM, np.int64)
    for g in range(len(counts)):
        first, last = ends[g], ends[g + 1]
        if first == last:
            continue
        known[g], infinite[g] = True, words[first] & (POSITIVE | NEGATIVE)
        size = last - first - 1 + _PAD
        cells[:_PAD] = 0
        negative[g] = _load(words, first + 1, last, cells[_PAD:])
        if counts[g] != 1 and _divide(cells, size, counts[g]):
            cells[0] |= 1
        top[g], place = _leading(cells, size)
        exponent[g] = place + 32 * ((words[first] & _INDEX) - ZERO_LIMB - _PAD)


@kernel
def _moments(
    counts: Longs, x_ends: Longs, x_words: Words, y_ends: Longs, y_words: Words, p_ends: Longs, p_words: Words, freedom: int, zero_limb: int,
    top: Tops, exponent: Longs, negative: Flags, known: Flags,
) -> None:  # fmt: skip
    x, y, p = np.zeros(_ROOM, np.int64), np.zeros(_ROOM, np.int64), np.zeros(_ROOM, np.int64)
    cells = np.zeros(_ROOM, np.int64)
    for g in range(len(counts)):
        n = counts[g]
        if n <= freedom or n == 0:
            continue
        x_head, y_head, p_head = x_words[x_ends[g]], y_words[y_ends[g]], p_words[p_ends[g]]
        if (x_head | y_head | p_head) & (POSITIVE | NEGATIVE):
            continue
        known[g] = True
        x_size, y_size, p_size = x_ends[g + 1] - x_ends[g] - 1, y_ends[g + 1] - y_ends[g] - 1, p_ends[g + 1] - p_ends[g] - 1
        x_negative = _load(x_words, x_ends[g] + 1, x_ends[g + 1], x)
        y_negative = _load(y_words, y_ends[g] + 1, y_ends[g + 1], y)
        p_negative = _load(p_words, p_ends[g] + 1, p_ends[g + 1], p)
        squares = (x_head & _INDEX) + (y_head & _INDEX) - 2 * zero_limb
        products = (p_head & _INDEX) - zero_limb
        if x_size == 0 or y_size == 0:
            squares = products
        if p_size == 0:
            products = squares
        base = min(squares, products)
        size = _PAD + max(squares + x_size + y_size, products + p_size + 2) - base + 2
        cells[:size] = 0
        # n * sum(x * y)
        low, high, sign = U64(n) & U64(_LOW), U64(n) >> U64(32), I64(-1 if p_negative else 1)
        at = _PAD + products - base
        for i in range(p_size):
            product = U64(p[i]) * low
            cells[at + i] += sign * I64(product & U64(_LOW))
            cells[at + i + 1] += sign * I64(product >> U64(32))
            product = U64(p[i]) * high
            cells[at + i + 1] += sign * I64(product & U64(_LOW))
            cells[at + i + 2] += sign * I64(product >> U64(32))
        # - sum(x) * sum(y)
        sign = I64(1 if x_negative != y_negative else -1)
        at = _PAD + squares - base
        for i in range(x_size):
            for j in range(y_size):
                product = U64(x[i]) * U64(y[j])
                cells[at + i + j] += sign * I64(product & U64(_LOW))
                cells[at + i + j + 1] += sign * I64(product >> U64(32))
        negative[g] = _settle(cells, size)
        # What remains shows in the lowest bit, far below those that are kept.
        remains = _divide(cells, size, n)
        if _divide(cells, size, n - freedom) or remains:
            cells[0] |= 1
        top[g], place = _leading(cells, size)
        exponent[g] = place + 32 * (base - _PAD)


@kernel
def _round(top: Tops, exponent: Longs, negative: Flags, bits: Longs) -> None:
    """To the nearest double, ties to even: IEEE 754-2019, 4.3.1."""
    for g in range(len(top)):
        value = I64(0)
        if top[g]:
            # 11 of the 64 bits go; more of a number below the normal ones.
            drop = 11 + max(I64(0), -1022 - (exponent[g] + 63))
            if drop <= 64:
                kept = I64(top[g] >> U64(drop)) if drop < 64 else I64(0)
                rest = top[g] & ((U64(1) << U64(drop)) - U64(1)) if drop < 64 else top[g]
                half = U64(1) << U64(drop - 1)
                if rest > half or (rest == half and kept & 1):
                    kept += 1
                biased = exponent[g] + drop + 1075
                # A carry out of the mantissa is the next exponent.
                value = (biased << 52) + kept - 2**52 if biased < 0x7FF else I64(0x7FF << 52)
        bits[g] = value | (I64(1) << 63) if negative[g] and value else value
