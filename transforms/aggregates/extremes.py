"""min and max: of a field with an order; nulls and NaN do not count."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Where, any_field, quoted, values
from streamgauge.transforms.arrays import is_text
from streamgauge.transforms.config import user_error


class ExtremeOptions(Filtered):
    """Smallest (min) or largest (max) value of a number, date, timestamp or string. Exact; null without any value; -0.0 is 0.0.

    As SQL's MIN and MAX, but that NaN does not count. Strings are in the order of their UTF-8 bytes, which is that of Unicode code points. State: the value.
    """

    short: ClassVar[str] = "of"
    of: str = Field(description="A field of numbers, dates, timestamps or strings.")


class _Extreme:
    Options = ExtremeOptions
    function: ClassVar[str]

    def __init__(self, options: ExtremeOptions, schema: pa.Schema) -> None:
        field = any_field(schema, options.of, self.function)
        if not _has_order(field.type):
            raise user_error(f"{self.function} needs a number, date, timestamp or string; field '{field.name}' is {field.type}")
        self.type = field.type
        column = Where(schema, options.where).column(
            f"{self.function}({quoted(field.name)})", field.type, values(field.name), self.function, self.function
        )
        self.state = (column,)

    def result(self, merged: pa.Table) -> pa.ChunkedArray:
        column = merged.column(self.state[0].name)
        # Of two zeros the one that was merged first is there.
        return pc.add(column, pa.scalar(0, self.type)) if pa.types.is_floating(self.type) else column


class Min(_Extreme):
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"min": "ms"}, events_of({"ms": [3.5, None, float("nan"), -1.0]}))
    -1.0
    """

    function = "min"


class Max(_Extreme):
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"max": "host"}, events_of({"host": ["a", "ß", "Z", None]}))
    'ß'
    """

    function = "max"


def _has_order(kind: pa.DataType) -> bool:
    number = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    time = pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind)
    return bool(number or time or is_text(kind))
