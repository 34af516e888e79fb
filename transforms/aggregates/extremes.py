"""min and max: of a field with an order; nulls and NaN do not count."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Where, any_field, values
from streamgauge.transforms.config import user_error


class ExtremeOptions(Filtered):
    """Smallest (min) or largest (max) value of a number, date, timestamp or string. Exact; null without any value.

    Strings are in the order of their UTF-8 bytes, which is that of Unicode code points. State: the value.
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
            f"{self.function}({field.name})", field.type, values(field.name), self.function, self.function
        )
        self.state = (column,)

    def result(self, merged: pa.Table) -> pa.ChunkedArray:
        return merged.column(self.state[0].name)


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
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind)
    return bool(number or pa.types.is_string(kind) or pa.types.is_large_string(kind))
