"""What the compiled kernels share: how they are compiled, and the arrays that lead them and that they fill.

Numba keeps the machine code of a kernel in ``__pycache__``, the user's cache folder or ``NUMBA_CACHE_DIR`` (6 s to make, 0.2 s to
load). To tell whether it is still right it looks at the kernel's own file only, and at the variables of the function around it:
so every kernel stands in a function that is given :data:`SOURCES`.

Kernels index raw memory (:func:`pointer`): an array that is passed around costs a reference count at every call, which is
ten times what reading a byte costs. With ``NUMBA_BOUNDSCHECK=1`` they index arrays and check every access; the tests do so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.extending import intrinsic

from streamgauge.transforms.formats.fields import Kind

F = TypeVar("F", bound=Callable[..., Any])
Bytes = npt.NDArray[np.uint8]

# Names of NumPy's types as Numba knows them, with the types that they stand for in the kernels' annotations.
I64 = cast(Callable[[Any], int], np.int64)
U64 = cast(Callable[[Any], int], np.uint64)

BOOL, INTEGER, DOUBLE, FLOAT, TIME, DATE, STRING = (int(kind) for kind in Kind if kind is not Kind.NESTED)

EVENT, DOUBT, SKIP = 0, 1, 2
"""What a kernel makes of a payload: an event; for the definition to decide; neither event nor reject."""


SOURCES = hashlib.blake2b(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
"""Tells versions of the code that kernels are made of apart."""


def compiled(function: F) -> F:
    """Machine code for use in kernels."""
    return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


def kernel(function: F) -> F:
    """Machine code that runs without the GIL, kept on disk where there is a place for it."""
    try:
        return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:  # neither the package's folder nor the home directory can be written
        return compiled(function)


@kernel
def _nothing(number: int) -> int:
    return number


def load_numba() -> None:
    """Has Numba load what it needs at the first kernel (0.3 s of CPU), where there is time for it."""
    _nothing(0)


@intrinsic  # type: ignore[untyped-decorator]
def _address(typing: Any, array: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return numba.types.CPointer(array.dtype)(array), code


def _same(array: Any) -> Any:
    return array


pointer: Callable[[Any], Any] = compiled(_same) if numba.config.BOUNDSCHECK else _address
"""The memory of a one-dimensional array, to be indexed like it. The caller keeps the array alive."""


@intrinsic  # type: ignore[untyped-decorator]
def _load(typing: Any, memory: Any, place: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(address, align=1)

    return numba.types.uint64(memory, place), code


def _put_together(memory: Any, place: int) -> int:
    word = U64(0)
    for k in range(WORD):
        word |= U64(memory[place + k]) << U64(8 * k)
    return word


WORD = 8
"""Bytes."""

word_at: Callable[[Any, int], int] = compiled(_put_together) if numba.config.BOUNDSCHECK else _load
"""The eight bytes from a place in the memory of a :func:`pointer` to bytes, the first one lowest (on a little-endian machine)."""


class Plan(NamedTuple):
    """The declared fields, one value a column."""

    columns: int
    strings: int
    """Columns that are strings."""
    kind: npt.NDArray[np.int64]
    slot: npt.NDArray[np.int64]
    """Counts strings, and the other columns."""
    below: npt.NDArray[np.uint64]
    """Largest magnitude of a negative integer."""
    above: npt.NDArray[np.uint64]
    """Largest integer."""
    scale: npt.NDArray[np.int64]


class Out(NamedTuple):
    """Columns that are being filled, one behind the other, each with ``room`` for so many events."""

    room: int
    text_room: int
    values: npt.NDArray[np.int64]
    """[slot * room + k]: of the k-th event, for columns that are no strings."""
    reals: npt.NDArray[np.float64]
    """The same memory as ``values``."""
    valid: Bytes
    """[column * room + k]: 1 where there is a value."""
    ends: npt.NDArray[np.int32]
    """[slot * (room + 1) + k + 1]: where the k-th string ends in its text."""
    text: Bytes
    """[slot * text_room:]"""
    used: npt.NDArray[np.int64]
    """[slot]: where the next string goes in ``text``."""


@compiled
def raw_plan(plan: Plan) -> Plan:
    """The same, of raw memory."""
    kind, slot, scale = pointer(plan.kind), pointer(plan.slot), pointer(plan.scale)
    return Plan(plan.columns, plan.strings, kind, slot, pointer(plan.below), pointer(plan.above), scale)


@compiled
def raw_out(out: Out) -> Out:
    """The same, of raw memory."""
    values, reals, valid = pointer(out.values), pointer(out.reals), pointer(out.valid)
    return Out(out.room, out.text_room, values, reals, valid, pointer(out.ends), pointer(out.text), pointer(out.used))


@compiled
def begin(plan: Plan, out: Out) -> None:
    """Before the first event."""
    for s in range(plan.strings):
        out.ends[s * (out.room + 1)] = 0


@compiled
def put_null(plan: Plan, out: Out, c: int, k: int) -> None:
    """Column ``c`` of event ``k`` has no value; the memory under it is set, so that equal events are equal bytes."""
    out.valid[c * out.room + k] = 0
    if plan.kind[c] != STRING:
        out.values[plan.slot[c] * out.room + k] = 0


@compiled
def keep(plan: Plan, out: Out, k: int) -> None:
    """Event ``k`` is complete."""
    for s in range(plan.strings):
        out.ends[s * (out.room + 1) + k + 1] = out.used[s] - s * out.text_room


@compiled
def drop(plan: Plan, out: Out, k: int) -> None:
    """Event ``k`` is none: its strings are given up, its slot is filled anew."""
    for s in range(plan.strings):
        out.used[s] = s * out.text_room + out.ends[s * (out.room + 1) + k]
