"""count: number of events."""

from __future__ import annotations

import pyarrow as pa
from pydantic import Field

from streamgauge.transforms.aggregates.base import StateColumn
from streamgauge.transforms.config import Config

EVENTS = StateColumn(
    name="events", type=pa.int64(), source=lambda events: pa.repeat(pa.scalar(1, pa.int64()), events.num_rows), partial="sum", merge="sum"
)
"""The state that every partial has: the number of events merged into it, which is also the revision."""


class CountOptions(Config):
    """Number of events, whatever they hold. Exact; state: 8 bytes a key."""

    of: None = Field(None, description="Takes no field.")


class Count:
    Options = CountOptions

    def __init__(self, options: CountOptions, schema: pa.Schema) -> None:
        self.type = pa.int64()
        self.state = (EVENTS,)

    def result(self, merged: pa.Table) -> pa.ChunkedArray:
        return merged.column(EVENTS.name)
