"""Numba kernels over librdkafka's messages: what kind each is, and all payloads into one buffer."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

PAYLOAD, NULL, TOO_LARGE, ERROR, STRANGE = 0, 1, 2, 3, 4
NEWLINE = 10

# rd_kafka_message_t in 8-byte words (64 bit): err is the lower half of word 0, partition of word 2.
ERR, PARTITION, BODY, LENGTH, OFFSET = 0, 2, 3, 4, 7

_jit: Any = numba.njit(cache=True, nogil=True)
_intrinsic: Any = intrinsic
_codegen: Any = cgutils


@_intrinsic  # type: ignore[untyped-decorator]
def _word(typing_context: Any, address: Any) -> Any:
    """The 8 bytes at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), generate


@_intrinsic  # type: ignore[untyped-decorator]
def _move(typing_context: Any, target: Any, source: Any, size: Any) -> Any:
    """memcpy between addresses."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        _codegen.raw_memcpy(builder, builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte), args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@_intrinsic  # type: ignore[untyped-decorator]
def _call(typing_context: Any, function: Any, pointer: Any) -> Any:
    """``void function(void *)`` at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@_intrinsic  # type: ignore[untyped-decorator]
def _call_for_int(typing_context: Any, function: Any, pointer: Any) -> Any:
    """``int64_t function(const void *, int *)`` at an address; the second argument is a place that is not looked at."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word, word])
        unused = builder.ptrtoint(_codegen.alloca_once(builder, ir.IntType(64)), word)
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1], unused])

    return types.int64(types.int64, types.int64), generate


@_jit
def _low(word):  # type: ignore[no-untyped-def]
    """The lower four bytes of a word as a signed number."""
    return np.int64(np.int32(word & 0xFFFFFFFF))


@_jit
def scan(pointers, partition, max_bytes):  # type: ignore[no-untyped-def]
    """Kind of each message, and the index of the last that is no error (-1: none)."""
    kinds = np.empty(len(pointers), np.uint8)
    last, previous = -1, np.int64(-1)
    for i in range(len(pointers)):
        message = np.int64(pointers[i])
        if _low(_word(message + 8 * ERR)) != 0:
            kinds[i] = ERROR
            continue
        size, offset = _word(message + 8 * LENGTH), _word(message + 8 * OFFSET)
        if _low(_word(message + 8 * PARTITION)) != partition or offset <= previous or size < 0:
            kinds[i] = STRANGE
            continue
        last, previous = i, offset
        if _word(message + 8 * BODY) == 0:
            kinds[i] = NULL
        else:
            kinds[i] = TOO_LARGE if size > max_bytes else PAYLOAD
    return kinds, last


@_jit
def copy(pointers, kinds, timestamp_function, destroy_function):  # type: ignore[no-untyped-def]
    """Payloads back to back, each with a newline behind it; destroys all messages.

    Returns data, offsets, valid, positions, timestamps in microseconds, and whether every payload is one line that is not empty.
    """
    count, total = 0, 0
    for i in range(len(pointers)):
        if kinds[i] <= NULL:
            count += 1
            if kinds[i] == PAYLOAD:
                total += _word(np.int64(pointers[i]) + 8 * LENGTH) + 1
    data, offsets, valid = np.empty(total, np.uint8), np.zeros(count + 1, np.int32), np.ones(count, np.bool_)
    positions, timestamps = np.empty(count, np.int64), np.empty(count, np.int64)
    base, at, row, lines = np.int64(data.ctypes.data), 0, 0, True
    for i in range(len(pointers)):
        message = np.int64(pointers[i])
        if kinds[i] <= NULL:
            if kinds[i] == PAYLOAD:
                size = _word(message + 8 * LENGTH)
                _move(base + at, _word(message + 8 * BODY), size)
                newlines = 0
                for k in range(at, at + size):
                    newlines += data[k] == NEWLINE
                if size == 0 or newlines > 0:
                    lines = False
                data[at + size] = NEWLINE
                at += size + 1
            else:
                valid[row] = False
            positions[row] = _word(message + 8 * OFFSET)
            stamp = _call_for_int(timestamp_function, message)
            timestamps[row] = stamp * 1000 if stamp >= 0 else -1
            row += 1
            offsets[row] = at
        _call(destroy_function, message)
    return data, offsets, valid, positions, timestamps, lines
