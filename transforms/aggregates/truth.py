"""any and all: whether a condition holds for some event, or for every one."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Source, Where, values
from streamgauge.transforms.config import user_error
from streamgauge.transforms.expressions import Condition


class TruthOptions(Filtered):
    """Whether a boolean is true for some event (any), or for every one (all). Exact; state: 1 byte a key.

    As SQL's SOME and EVERY. Of a field, nulls do not count; null without any value. A condition is false where it is null.
    """

    short: ClassVar[str] = "of"
    of: str = Field(description="A boolean field, or a SQL condition such as `status >= 500`.")


class _Truth:
    Options = TruthOptions
    function: ClassVar[str]

    def __init__(self, options: TruthOptions, schema: pa.Schema) -> None:
        self.type = pa.bool_()
        source = self._source(options.of, schema)
        column = Where(schema, options.where).column(f"{self.function}({options.of})", pa.bool_(), source, self.function, self.function)
        self.state = (column,)

    def _source(self, of: str, schema: pa.Schema) -> Source:
        if of not in schema.names:
            return partial(_met, Condition(schema, of))
        kind = schema.field(of).type
        if not pa.types.is_boolean(kind):
            raise user_error(f"{self.function} needs a boolean field or a condition, such as `{of} IS NOT NULL`; field '{of}' is {kind}")
        return values(of)

    def result(self, merged: pa.Table) -> pa.ChunkedArray:
        return merged.column(self.state[0].name)


def _met(condition: Condition, events: pa.RecordBatch) -> pa.BooleanArray:
    return condition(events)


class Any(_Truth):
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"any": "failed"}, events_of({"failed": [False, None, True]}))
    True
    """

    function = "any"


class All(_Truth):
    """
    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"all": "ms < 100"}, events_of({"ms": [3, 5, 120]}))
    False
    """

    function = "all"
