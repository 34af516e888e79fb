"""mode: the most frequent value."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from streamgauge.transforms.aggregates.base import Filtered, Where, quoted, values
from streamgauge.transforms.aggregates.items import count_items, countable_field, items_type, merge_items, open_lists


class ModeOptions(Filtered):
    """The most frequent value; of several the smallest. Null without any value.

    Exact, as PostgreSQL's MODE, which leaves open which of several. State: 8 bytes and those of the value for each *different* value of a key: for
    fields of few values. For others, `top` with `k: 1` has a bounded state.
    """

    short: ClassVar[str] = "of"
    of: str = Field(description="A field of strings, booleans, numbers, dates or timestamps. Nulls and NaN do not count.")


class Mode:
    """The value with the largest count, strings ordered by their UTF-8 bytes.

    >>> from streamgauge.transforms.aggregates.trial import events_of, result_of
    >>> result_of({"mode": "code"}, events_of({"code": [500, 200, None, 404, 200, 404]}))
    200
    """

    Options = ModeOptions

    def __init__(self, options: ModeOptions, schema: pa.Schema) -> None:
        field = countable_field(schema, options.of, "mode")
        self.type = field.type
        column = Where(schema, options.where).column
        self.state = (column(f"items({quoted(field.name)})", items_type(field.type), values(field.name), count_items, merge_items),)

    def result(self, merged: pa.Table) -> pa.Array:
        found = open_lists(merged.column(self.state[0].name).combine_chunks())
        groups = found.groups
        most = np.zeros(merged.num_rows, np.int64)
        np.maximum.at(most, groups, found.weights)
        best = np.flatnonzero(found.weights == most[groups])
        # Items are sorted in their groups: the first is the smallest.
        best = best[np.diff(groups[best], prepend=-1) != 0]
        places = np.zeros(merged.num_rows, np.int64)
        places[groups[best]] = best
        return found.items.take(pa.array(places, mask=found.lengths == 0))
