"""What time it is: the event time of each event, and the watermark of a split."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE
from streamgauge.transforms.config import MICROSECONDS, Config, Duration, did_you_mean, user_error
from streamgauge.transforms.formats.base import Parsed
from streamgauge.transforms.sources.base import RawBatch

MIN_TIME = -62_135_596_800_000_000 + 366 * MICROSECONDS["d"]
MAX_TIME = 253_402_300_799_000_000 - 366 * MICROSECONDS["d"]
"""Event times outside the years 2 to 9998 are rejected: windows and time zones must not overflow."""


class TimeOptions(Config):
    """When an event happened, and how long to wait for its elders."""

    field: str | None = Field(None, description="Field that holds the event time (a timestamp, or a number with `unit`). Default: the broker's time stamp of the record.")
    unit: Literal["s", "ms", "us", "ns"] | None = Field(None, description="Unit of a numeric time field since the epoch.")
    disorder: Duration = Field(5 * MICROSECONDS["s"], description="How far an event may lag behind the newest one of its split; the watermark waits that long.")
    idle: Duration = Field(
        30 * MICROSECONDS["s"],
        description="After this long at the confirmed end of its data, a split no longer holds the watermark back: it follows the newest event time of the others.",
    )


_TO_MICROSECONDS = {"s": (1_000_000, 1), "ms": (1_000, 1), "us": (1, 1), "ns": (1, 1_000)}


class EventTime:
    """Puts the event-time column on parsed events; an event without a usable time becomes a reject ``no_event_time``.

    Event time is a function of the event (or of its record in the broker), never of when it was read.
    """

    def __init__(self, options: TimeOptions, schema: pa.Schema) -> None:
        self.options = options
        name = options.field
        if name is not None:
            if name not in schema.names:
                raise user_error(f"time field '{name}' is not in the schema{did_you_mean(name, schema.names)}; fields: {', '.join(schema.names)}")
            kind = schema.field(name).type
            numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
            if numeric and options.unit is None:
                raise user_error(f"time field '{name}' is a number ({kind}): say its unit, such as {{field: {name}, unit: ms}}")
            if not numeric and not pa.types.is_timestamp(kind):
                raise user_error(f"time field '{name}' is {kind}; expected a timestamp or a number with a unit")
            if not numeric and options.unit is not None:
                raise user_error(f"time field '{name}' is a timestamp already: leave `unit` out")
        self.schema = pa.schema([pa.field(EVENT_TIME, EVENT_TIME_TYPE, nullable=False), *schema])

    def apply(self, raw: RawBatch, parsed: Parsed) -> Parsed:
        """Events of ``self.schema``; rejects grow by those without a usable event time."""
        times = self._times(raw, parsed)
        events, rows = parsed.events, parsed.rows
        if not _all_usable(times):
            usable = pc.fill_null(pc.and_(pc.greater_equal(times, MIN_TIME), pc.less_equal(times, MAX_TIME)), False)
            for index in pc.indices_nonzero(pc.invert(usable)).to_pylist():
                found = times[index].as_py()
                what = "there is none" if found is None else f"{found} microseconds since the epoch is not within the years 2 to 9998"
                parsed.rejects.add(index if rows is None else int(rows[index]), "no_event_time", f"{self.options.field or 'record time stamp'}: {what}")
            kept = pc.indices_nonzero(usable)
            events, times = events.take(kept), times.take(kept)
            rows = kept.to_numpy().astype("int64") if rows is None else rows[kept.to_numpy()]
        columns = [times.view(EVENT_TIME_TYPE), *events.columns]
        return Parsed(pa.record_batch(columns, schema=self.schema), rows, parsed.rejects)

    def _times(self, raw: RawBatch, parsed: Parsed) -> pa.Array:
        """int64 microseconds since the epoch, null where there is none."""
        if self.options.field is None:
            if raw.timestamps is None:
                return pa.nulls(parsed.events.num_rows, pa.int64())
            stamps = raw.timestamps if parsed.rows is None else raw.timestamps[parsed.rows]
            return pa.array(stamps, pa.int64(), mask=stamps < 0)
        column = parsed.events.column(self.options.field)
        if pa.types.is_timestamp(column.type):
            return column.cast(EVENT_TIME_TYPE).cast(pa.int64())
        factor, divisor = _TO_MICROSECONDS[self.options.unit or "us"]
        if pa.types.is_floating(column.type):
            scaled = pc.floor(pc.multiply(column.cast(pa.float64()), factor / divisor))
            inside = pc.less(pc.abs(scaled), 9e18)
            return pc.if_else(inside, scaled, None).cast(pa.int64())
        if pa.types.is_uint64(column.type):
            column = pc.if_else(pc.less(column, pa.scalar(2**63, pa.uint64())), column, None)
        whole = column.cast(pa.int64())
        numbers = (pc.fill_null(whole, 0) if whole.null_count else whole).to_numpy()
        units, limit = numbers // divisor if divisor > 1 else numbers, (2**63 - 1) // factor
        inside = (units <= limit) & (units >= -limit)
        if inside.all() and not whole.null_count:
            return pa.array(units * factor)
        return pa.array(np.where(inside, units, 0) * factor, mask=np.asarray(pc.is_null(whole)) | ~inside)


def _all_usable(times: pa.Array) -> bool:
    """Without the kernels that tell which are not: few batches have any."""
    if times.null_count:
        return False
    found = times.to_numpy()
    return not len(found) or bool(found.min() >= MIN_TIME and found.max() <= MAX_TIME)
