"""Numbers out of bytes, straight into columns.

Every scanner takes a position and the end of its payload and returns the position behind what it read, or -1 when it
has any doubt: then the payload goes to the definition (``values.py``), which decides. So nothing here words an error, and
what is rare (20-digit integers, exponents in integers) is left out.

References: RFC 8259 for the grammar; Lemire, "Number Parsing at a Gigabyte per Second" (2021), and Tao, "The Eisel-Lemire
ParseNumberF64 Algorithm" (2020), for doubles.
"""

from __future__ import annotations

import numpy as np

from streamgauge.transforms.formats.compiled import DOUBLE, FLOAT, I64, INTEGER, TIME, U64, Bytes, Out, Plan, compiled
from streamgauge.transforms.formats.fields import NO_NUMBERS
from streamgauge.transforms.formats.values import FLOAT32_LIMIT, MAX_TIMESTAMP, MIN_TIMESTAMP

_EXACT_POWERS = 10.0 ** np.arange(23)
_INTEGER_POWERS = np.array([10**e for e in range(20)], np.uint64)
_EXACT_INTEGER = 2**53
_MAX_DIGITS = 19
_MAX_SIGNED = 2**63 - 1
_MIN_EXPONENT, _MAX_EXPONENT = -342, 308
_INFINITE_EXPONENT = 0x7FF


def _power_of_ten(exponent: int) -> tuple[int, int]:
    """The first 128 bits of 10**exponent, truncated, as two words."""
    if exponent >= 0:
        power = 10**exponent
        bits = power << 128 >> power.bit_length()
    else:
        power = 10**-exponent
        bits = (1 << (power.bit_length() + 128)) // power
        bits >>= bits.bit_length() - 128
    return bits >> 64, bits & (2**64 - 1)


_POWERS = np.array([_power_of_ten(e) for e in range(_MIN_EXPONENT, _MAX_EXPONENT + 1)], np.uint64)


@compiled
def number(buf: Bytes, p: int, end: int) -> tuple[int, bool, int, int, int]:
    """A number by JSON's grammar: (position, negative, mantissa, its digits, exponent of ten).

    The mantissa is right when it has at most 19 digits. The exponent is right unless it is absurdly large; then it is still so.
    """
    negative = p < end and buf[p] == 45
    if negative:
        p += 1
    mantissa = U64(0)
    digits = 0
    exponent = 0
    start = p
    while p < end and 48 <= buf[p] <= 57:
        mantissa = mantissa * U64(10) + U64(buf[p] - 48)
        p += 1
    if p == start or (buf[start] == 48 and p > start + 1):
        return -1, negative, mantissa, 0, 0
    digits = p - start
    if p < end and buf[p] == 46:
        p += 1
        point = p
        while p < end and 48 <= buf[p] <= 57:
            mantissa = mantissa * U64(10) + U64(buf[p] - 48)
            p += 1
        if p == point:
            return -1, negative, mantissa, 0, 0
        exponent = point - p
        digits += p - point
        if buf[start] == 48:
            # Leading zeros do not count: 0.000123 has three digits.
            digits -= 1
            while point < p and buf[point] == 48:
                point += 1
                digits -= 1
    if p < end and (buf[p] == 101 or buf[p] == 69):
        p += 1
        minus = p < end and buf[p] == 45
        if p < end and (buf[p] == 45 or buf[p] == 43):
            p += 1
        start = p
        written = 0
        while p < end and 48 <= buf[p] <= 57:
            if written < 1_000_000:
                written = written * 10 + I64(buf[p]) - 48
            p += 1
        if p == start:
            return -1, negative, mantissa, 0, 0
        exponent += -written if minus else written
    return p, negative, mantissa, digits, exponent


@compiled
def _multiply(a: int, b: int) -> tuple[int, int]:
    """The 128 bits of a product, as two words."""
    low = U64(0xFFFFFFFF)
    half = U64(32)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    mid = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (mid & low)
    return a1 * b1 + (mid >> half) + (other >> half), a * b


@compiled
def _nearest_double(mantissa: int, exponent: int) -> tuple[bool, int]:
    """The bits of the double nearest to mantissa * 10**exponent (Eisel-Lemire); False when 128 bits do not decide it."""
    if exponent < _MIN_EXPONENT or exponent > _MAX_EXPONENT:
        return False, U64(0)
    shift = U64(0)
    for step in (U64(32), U64(16), U64(8), U64(4), U64(2), U64(1)):
        if mantissa >> (U64(64) - step) == U64(0):
            mantissa <<= step
            shift += step
    power_hi, power_lo = _POWERS[exponent - _MIN_EXPONENT, 0], _POWERS[exponent - _MIN_EXPONENT, 1]
    binary = U64((217706 * exponent >> 16) + 64 + 1023) - shift
    hi, lo = _multiply(mantissa, power_hi)
    if hi & U64(0x1FF) == U64(0x1FF) and lo + mantissa < mantissa:
        more_hi, more_lo = _multiply(mantissa, power_lo)
        merged = lo + more_hi
        if merged < lo:
            hi += U64(1)
        lo = merged
        if hi & U64(0x1FF) == U64(0x1FF) and lo + U64(1) == U64(0) and more_lo + mantissa < mantissa:
            return False, U64(0)
    top = hi >> U64(63)
    bits = hi >> (top + U64(9))
    binary -= U64(1) ^ top
    if lo == U64(0) and hi & U64(0x1FF) == U64(0) and bits & U64(3) == U64(1):
        return False, U64(0)
    bits = (bits + (bits & U64(1))) >> U64(1)
    if bits >> U64(53) > U64(0):
        bits >>= U64(1)
        binary += U64(1)
    if binary - U64(1) >= U64(_INFINITE_EXPONENT - 1):
        return False, U64(0)
    return True, (binary << U64(52)) | (bits & U64((1 << 52) - 1))


@compiled
def put_number(plan: Plan, out: Out, c: int, k: int, negative: bool, mantissa: int, digits: int, exponent: int) -> bool:
    """Stores a number in a column that takes numbers. False: in doubt, nothing is valid."""
    kind = plan.kind[c]
    at = plan.slot[c] * out.room + k
    if digits > _MAX_DIGITS:
        return False
    if kind in (DOUBLE, FLOAT):
        if mantissa == U64(0):
            real = 0.0
        elif mantissa <= U64(_EXACT_INTEGER) and -22 <= exponent <= 22:
            real = np.float64(mantissa)
            real = real * _EXACT_POWERS[exponent] if exponent >= 0 else real / _EXACT_POWERS[-exponent]
        else:
            known, bits = _nearest_double(mantissa, exponent)
            if not known:
                return False
            real = np.uint64(bits).view(np.float64)
        if kind == FLOAT and real >= FLOAT32_LIMIT:
            return False
        out.reals[at] = -real if negative else real
        return True
    if exponent > 0 or exponent < -_MAX_DIGITS:
        return False
    if kind == INTEGER:
        if exponent < 0:
            power = _INTEGER_POWERS[-exponent]
            if mantissa % power != U64(0):
                return False
            mantissa = mantissa // power
        if mantissa > (plan.below[c] if negative else plan.above[c]):
            return False
        out.values[at] = I64(U64(0) - mantissa) if negative else I64(mantissa)
        return True
    if kind != TIME or plan.scale[c] == NO_NUMBERS or mantissa > U64(_MAX_SIGNED):
        return False
    micros = -I64(mantissa) if negative else I64(mantissa)
    exponent += plan.scale[c]
    if exponent > 0:
        power = I64(_INTEGER_POWERS[exponent])
        if mantissa > U64(MAX_TIMESTAMP // power):
            return False
        micros *= power
    elif exponent < 0:
        if exponent < -18:
            return False
        micros //= I64(_INTEGER_POWERS[-exponent])
    if not MIN_TIMESTAMP <= micros <= MAX_TIMESTAMP:
        return False
    out.values[at] = micros
    return True
