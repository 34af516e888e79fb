"""count: number of events, or of those that have a value."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, StateColumn, Where, any_field, quoted, values

EVENTS = StateColumn(
    name="events", type=pa.int64(), source=lambda events: pa.repeat(pa.scalar(1, pa.int64()), events.num_rows), partial="sum", merge="sum"
)
"""The state that every partial has: the number of events merged into it, which is also the revision."""


class CountOptions(Filtered):
    """Number of events; with `of`, of those in which that field has a value: nulls and NaN do not count. Exact, as SQL's COUNT; state: 8 bytes a key."""

    short: ClassVar[str] = "of"
    of: str | None = Field(None, description="A field of any type. None: every event counts.")


def counted_events(schema: pa.Schema, *conditions: str | None) -> StateColumn:
    """The number of events that meet all of the conditions; None is met by every event."""
    column = EVENTS
    for condition in conditions:
        if condition is not None:
            column = Where(schema, condition).column(column.name, column.type, column.source, column.partial, column.merge)
    # Without any event that meets them the sum is null, and the same once it is merged.
    return column


class Count:
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> events = events_of({"ms": [3.5, None, 120.0]})
    >>> result_of("count", events), result_of({"count": "ms"}, events), result_of({"count": {"where": "ms > 100"}}, events)
    (3, 2, 1)
    """

    Options = CountOptions

    def __init__(self, options: CountOptions, schema: pa.Schema) -> None:
        self.type = pa.int64()
        self.state = (self._column(options, schema),)

    @staticmethod
    def _column(options: CountOptions, schema: pa.Schema) -> StateColumn:
        if options.of is None:
            return counted_events(schema, options.where)
        field = any_field(schema, options.of, "count")
        return Where(schema, options.where).column(f"count({quoted(field.name)})", pa.int64(), values(field.name), "count", "sum")

    def result(self, merged: pa.Table) -> pa.ChunkedArray:
        return pc.fill_null(merged.column(self.state[0].name), 0)
