"""ratio: how many events meet one condition, for each that meets another."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, StateColumn
from streamgauge.transforms.aggregates.count import counted_events


class RatioOptions(Filtered):
    """Number of events that meet `of`, divided by the number of those that meet `to`. Two exact counts; null when the second is 0.

    As SQL's COUNT(*) FILTER (WHERE of) / COUNT(*) FILTER (WHERE to). An event may meet both, one or none: the ratio is a share only
    when what meets `of` meets `to` as well. State: 16 bytes a key.
    """

    of: str = Field(description="SQL condition of the numerator, such as `status >= 500`.")
    to: str | None = Field(None, description="SQL condition of the denominator. None: every event that counts.")


class Ratio:
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"ratio": {"of": "status >= 500"}}, events_of({"status": [200, 503, 200, None]}))
    0.25
    """

    Options = RatioOptions

    def __init__(self, options: RatioOptions, schema: pa.Schema) -> None:
        self.type = pa.float64()
        self.state: tuple[StateColumn, ...] = (
            counted_events(schema, options.of, options.where),
            counted_events(schema, options.to, options.where),
        )

    def result(self, merged: pa.Table) -> pa.ChunkedArray:
        met, of_all = (pc.fill_null(merged.column(column.name), 0) for column in self.state)
        return pc.divide(met.cast(pa.float64()), pc.if_else(pc.equal(of_all, 0), None, of_all).cast(pa.float64()))
