"""The columns that a kernel fills, and how they become a RecordBatch.

A kernel is compiled once for all schemas: it is led by a :class:`Plan` and writes to an :class:`Out` (``compiled.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamgauge.transforms.formats.compiled import BOOL, DATE, DOUBLE, FLOAT, STRING, Out, Plan
from streamgauge.transforms.formats.fields import Field, Kind, arrow_schema
from streamgauge.transforms.formats.values import Value


class Columns:
    """Makes room for events of some fields, and RecordBatches of what was filled in."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.schema = arrow_schema(tuple(fields))
        # No kernel fills in a list or a struct.
        self.nested = any(field.kind is Kind.NESTED for field in fields)
        kinds = [field.kind for field in fields]
        limits = [field.limits() if field.kind is Kind.INTEGER else (0, 0) for field in fields]
        self._strings = kinds.count(Kind.STRING)
        slots, used = [], [0, 0]
        for kind in kinds:
            slots.append(used[kind is Kind.STRING])
            used[kind is Kind.STRING] += 1
        below, above = np.array([(-low, high) for low, high in limits], np.uint64).T.copy()
        scales = np.array([field.scale for field in fields], np.int64)
        self.plan = Plan(len(fields), self._strings, np.array(kinds, np.int64), np.array(slots, np.int64), below, above, scales)

    def room(self, events: int, text_bytes: int) -> Out:
        """For at most that many events whose payloads have that many bytes together."""
        columns, strings = len(self.schema), self._strings
        values = np.empty((columns - strings) * events, np.int64)
        valid, ends = np.empty(columns * events, np.uint8), np.empty(strings * (events + 1), np.int32)
        text, used = np.empty(strings * text_bytes, np.uint8), np.arange(strings, dtype=np.int64) * text_bytes
        return Out(events, text_bytes, values, values.view(np.float64), valid, ends, text, used)

    def batch(self, out: Out, events: int) -> pa.RecordBatch:
        """The first ``events`` of what was filled in."""
        arrays = [self._array(out, column, field.type, events) for column, field in enumerate(self.schema)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _array(self, out: Out, column: int, type_: pa.DataType, events: int) -> pa.Array:
        valid = out.valid[column * out.room :][:events]
        nulls = events - int(np.count_nonzero(valid))
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little")) if nulls else None
        slot, kind = int(self.plan.slot[column]), self.plan.kind[column]
        if kind == STRING:
            ends = out.ends[slot * (out.room + 1) :][: events + 1]
            text = out.text[slot * out.text_room :][: ends[events]]
            return pa.Array.from_buffers(type_, events, [bitmap, pa.py_buffer(ends), pa.py_buffer(text)], nulls)
        data: npt.NDArray[Any] = (out.reals if kind in (DOUBLE, FLOAT) else out.values)[slot * out.room :][:events]
        if kind == BOOL:
            data = np.packbits(data.astype(np.uint8), bitorder="little")
        elif type_.bit_width < 64:
            data = data.astype(np.int32 if kind == DATE else type_.to_pandas_dtype())
        return pa.Array.from_buffers(type_, events, [bitmap, pa.py_buffer(data)], nulls)

    def of_rows(self, rows: Sequence[Sequence[Value]]) -> pa.RecordBatch:
        """A RecordBatch of events that the definition read."""
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(self.schema)
        return pa.RecordBatch.from_arrays([pa.array(c, f.type) for c, f in zip(columns, self.schema, strict=True)], schema=self.schema)
