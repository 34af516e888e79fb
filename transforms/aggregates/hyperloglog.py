"""HyperLogLog: registers of hashes, and how many there were.

Flajolet, Fusy, Gandouet, Meunier: "HyperLogLog: the analysis of a near-optimal cardinality estimation algorithm" (2007), with hashes of 64
bits. The estimate is that of Ertl, "New cardinality estimation algorithms for HyperLogLog sketches" (2017), algorithm 6: right over the
whole range, with no table of corrections. Standard error 1.04 / sqrt(2**precision).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamgauge.transforms.aggregates.uniques import Flags, Hashes, Longs
from streamgauge.transforms.formats.compiled import I64, U64, Bytes, compiled, kernel

HASH_BITS = 64


def estimates(registers: Bytes, precision: int) -> npt.NDArray[np.float64]:
    """The number of different hashes of each row of registers.

    >>> registers = np.zeros((1, 1 << 14), np.uint8)
    >>> add(np.random.default_rng(1).integers(2**64, size=50_000, dtype=np.uint64), np.zeros(50_000, np.int64), np.ones(1, bool), registers)
    >>> bool(abs(estimates(registers, 14)[0] / 50_000 - 1) < 3 * standard_error(14))
    True
    """
    found = np.empty(len(registers))
    _estimate(registers, HASH_BITS - precision, found)
    return found


def standard_error(precision: int) -> float:
    """Relative.

    >>> round(standard_error(14), 4)
    0.0081
    """
    return 1.04 / math.sqrt(1 << precision)


def add(hashes: Hashes, ids: Longs, dense: Flags, registers: Bytes) -> None:
    """Counts hashes of the groups that are dense, in the row of registers of each: the first for the first of them, and so on."""
    if len(registers):
        _add(hashes, ids, dense, np.cumsum(dense) - 1, int(registers.shape[1]).bit_length() - 1, registers)


def as_binary(registers: Bytes, dense: Flags) -> pa.Array:
    """One value a group, the registers of the dense ones one behind the other; null for the others."""
    size = registers.shape[1]
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(dense * np.int64(size))])
    validity = pa.array(np.packbits(dense, bitorder="little"))
    buffers = [validity.buffers()[1], pa.py_buffer(ends), pa.py_buffer(registers)]
    return pa.Array.from_buffers(pa.large_binary(), len(dense), buffers)


def of_binary(column: pa.Array, size: int) -> Bytes:
    """The registers of all values that are there, one row each."""
    found = column.drop_null()
    if not len(found):
        return np.empty((0, size), np.uint8)
    first = int(np.frombuffer(found.buffers()[1], np.int64)[found.offset])
    return np.frombuffer(found.buffers()[2], np.uint8, len(found) * size, first).reshape(len(found), size)


# Kernels


@kernel
def _add(hashes: Hashes, ids: Longs, dense: Flags, places: Longs, precision: int, registers: Bytes) -> None:
    for i in range(len(hashes)):
        if not dense[ids[i]]:
            continue
        index = I64(hashes[i] >> U64(HASH_BITS - precision))
        rest, zeros = hashes[i] << U64(precision), 1
        while zeros <= HASH_BITS - precision and rest >> U64(63) == U64(0):
            rest, zeros = rest << U64(1), zeros + 1
        row = places[ids[i]]
        if zeros > registers[row, index]:
            registers[row, index] = zeros


@kernel
def _estimate(registers: Bytes, most: int, found: npt.NDArray[np.float64]) -> None:
    size = registers.shape[1]
    for row in range(registers.shape[0]):
        counts = np.zeros(most + 2, np.int64)
        for register in registers[row]:
            counts[register] += 1
        z = size * _tau(1.0 - counts[most + 1] / size)
        for k in range(most, 0, -1):
            z = 0.5 * (z + counts[k])
        z += size * _sigma(counts[0] / size)
        found[row] = size / (2.0 * np.log(2.0)) * size / z


@compiled
def _sigma(x: float) -> float:
    """x + sum of x**(2**k) * 2**(k-1), k from 1."""
    if x == 1.0:
        return float(np.inf)
    y, z, before = 1.0, x, -1.0
    while z != before:
        x, before = x * x, z
        z += x * y
        y += y
    return z


@compiled
def _tau(x: float) -> float:
    """(1 - x - sum of (1 - x**(2**-k))**2 * 2**-k, k from 1) / 3."""
    if x == 0.0 or x == 1.0:
        return 0.0
    y, z, before = 1.0, 1.0 - x, -1.0
    while z != before:
        x, before, y = np.sqrt(x), z, 0.5 * y
        z -= (1.0 - x) ** 2 * y
    return z / 3.0
