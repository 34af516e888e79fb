"""min and max: of a field with an order; nulls and NaN do not count."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from streamgauge.transforms.aggregates.base import StateColumn, any_field, values
from streamgauge.transforms.config import Config, user_error


class ExtremeOptions(Config):
    """Smallest (min) or largest (max) value of a number, date or timestamp. Exact; null without any value."""

    short: ClassVar[str] = "of"
    of: str = Field(description="A field of numbers, dates or timestamps.")


class _Extreme:
    Options = ExtremeOptions
    function: ClassVar[str]

    def __init__(self, options: ExtremeOptions, schema: pa.Schema) -> None:
        field = any_field(schema, options.of, self.function)
        kind = field.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind)):
            raise user_error(f"{self.function} needs a number, date or timestamp; field '{field.name}' is {kind}")
        self.type = kind
        self.state = (StateColumn(f"{self.function}({field.name})", kind, values(field.name), self.function, self.function),)

    def result(self, merged: pa.Table) -> pa.ChunkedArray:
        return merged.column(self.state[0].name)


class Min(_Extreme):
    function = "min"


class Max(_Extreme):
    function = "max"
