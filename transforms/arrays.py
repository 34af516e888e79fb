"""Arrow arrays as the plain memory that kernels take, read-only."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Edges = npt.NDArray[np.signedinteger[Any]]
_Number = TypeVar("_Number", bound=np.generic)


def plain(array: pa.Array) -> pa.Array:
    """The same without a dictionary."""
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def validity(array: pa.Array) -> npt.NDArray[np.uint8]:
    """One byte a row; nothing when all rows have a value. Read-only."""
    return fixed(np.asarray(pc.is_valid(array)).view(np.uint8) if array.null_count else np.empty(0, np.uint8))


def number_bits(array: pa.Array) -> npt.NDArray[np.uint64]:
    """64 bits that tell values apart; of nulls anything. Read-only."""
    if pa.types.is_boolean(array.type) or pa.types.is_date32(array.type):
        array = array.cast(pa.int32())
    if not pa.types.is_uint64(array.type):
        array = array.cast(pa.int64())
    data = array.buffers()[1]
    return fixed(np.frombuffer(data, np.uint64, len(array), array.offset * 8) if len(array) else np.empty(0, np.uint64))


def text_of(array: pa.Array) -> tuple[Edges, npt.NDArray[np.uint8]]:
    """(edges, UTF-8 bytes): the i-th string is between edges i and i + 1, int32 or, of large strings, int64. Read-only."""
    _, edges, data = array.buffers()
    kind: type[np.signedinteger[Any]] = np.int64 if pa.types.is_large_string(array.type) else np.int32
    if not len(array):
        return fixed(np.zeros(1, kind)), fixed(np.empty(0, np.uint8))
    return fixed(np.frombuffer(edges, kind, len(array) + 1, array.offset * kind().itemsize)), fixed(np.frombuffer(data or b"", np.uint8))


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def fixed(array: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """A view that cannot be written, as Arrow's memory mostly is: a kernel would be compiled once more for arrays that can."""
    view = array.view()
    view.flags.writeable = False
    return view
