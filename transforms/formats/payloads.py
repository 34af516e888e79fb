"""From a RawBatch to what a kernel reads, and from what a kernel left over to events and rejects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamgauge.transforms.formats.base import Parsed, Rejects
from streamgauge.transforms.formats.columns import Columns
from streamgauge.transforms.formats.compiled import DOUBT, EVENT, Bytes
from streamgauge.transforms.formats.fields import Field
from streamgauge.transforms.formats.values import BadValueError, Value
from streamgauge.transforms.sources.base import RawBatch

MAX_BYTES = 16 * 1024 * 1024
"""Longest payload that formats read, unless the job file says otherwise."""

Define = Callable[[bytes], Sequence[Value]]


class BadPayloadError(ValueError):
    """No event can be made of a payload: ``error_type`` and a sentence."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


def prepare(raw: RawBatch, max_bytes: int) -> tuple[Bytes, npt.NDArray[np.int32], Bytes]:
    """The payloads' bytes (not copied), where each starts and ends in them, and a status each: DOUBT for what no kernel shall see."""
    count = len(raw.payloads)
    validity, ends, data = raw.payloads.buffers()
    first = raw.payloads.offset
    offsets = np.frombuffer(ends, np.int32)[first : first + count + 1] if count else np.zeros(1, np.int32)
    buf = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    buf.flags.writeable = offsets.flags.writeable = False  # one type, hence one compilation, whatever the buffers are
    status = (np.diff(offsets) > max_bytes + raw.newline_terminated).astype(np.uint8)
    if raw.payloads.null_count:
        status[np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[first : first + count] == 0] = DOUBT
    return buf, offsets, status


def finish(
    raw: RawBatch, columns: Columns, events: pa.RecordBatch, status: Bytes, define: Define, max_bytes: int, rejects: Rejects
) -> Parsed:
    """Adds to a kernel's events, and to ``rejects``, what ``define`` makes of the doubtful payloads, in the order of the batch.

    ``define`` raises BadPayloadError.
    """
    if not status.any():
        return Parsed(events)
    exact: list[Sequence[Value]] = []
    exact_rows: list[int] = []
    for row in np.flatnonzero(status == DOUBT).tolist():
        try:
            exact.append(define(_payload(raw, row, max_bytes)))
            exact_rows.append(row)
        except BadPayloadError as error:
            rejects.add(row, error.error_type, str(error))
    rows = np.flatnonzero(status == EVENT)
    if exact_rows:
        rows = np.concatenate([rows, np.array(exact_rows, np.int64)])
        order = np.argsort(rows)
        rows = rows[order]
        events = pa.concat_batches([events, columns.of_rows(exact)]).take(pa.array(order))
    return Parsed(events, rows, rejects)


def _payload(raw: RawBatch, row: int, max_bytes: int) -> bytes:
    """The payload as it came. Raises BadPayloadError when it has none, or one that is too long."""
    buffer = raw.payloads[row].as_buffer()
    if buffer is None:
        raise BadPayloadError("tombstone", "the record has no value")
    length = buffer.size - raw.newline_terminated
    if length > max_bytes:
        raise BadPayloadError("too_large", f"{length} bytes, more than max_bytes ({max_bytes})")
    payload: bytes = buffer.slice(0, length).to_pybytes()
    return payload


def read_row(fields: Sequence[Field], read: Callable[[Field, int], Value]) -> tuple[Value, ...]:
    """One value a field; a BadValueError becomes a reject that names the field."""
    values = []
    for column, field in enumerate(fields):
        try:
            values.append(read(field, column))
        except BadValueError as error:
            raise BadPayloadError("type", f"{field.name}{error.place}: {error}") from None
    return tuple(values)


def decode(payload: bytes) -> str:
    """The text of a payload. Raises BadPayloadError."""
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise BadPayloadError("malformed", f"not UTF-8: byte {payload[error.start]:#04x} at {error.start}") from None
