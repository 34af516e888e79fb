"""Trying an aggregate out, without a job: in doctests, tests and notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from streamgauge.transforms.aggregates import AGGREGATES
from streamgauge.transforms.aggregates.base import Aggregate
from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE, POSITION, SPLIT, SPLIT_TYPE
from streamgauge.transforms.config import Choice, Config, OneOf
from streamgauge.transforms.partials import Metric, Partials


def events_of(fields: Mapping[str, Any], times: Any = None) -> pa.RecordBatch:
    """Events of one split: their fields, and their event times in microseconds (one after the other, when none are given)."""
    columns = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in fields.items()}
    rows = len(next(iter(columns.values())))
    times = pa.array(range(rows) if times is None else times, pa.int64()).cast(EVENT_TIME_TYPE)
    lineage = [times, pa.array(["0"] * rows).dictionary_encode().cast(SPLIT_TYPE), pa.array(range(rows), pa.int64())]
    return pa.record_batch([*lineage, *columns.values()], names=[EVENT_TIME, SPLIT, POSITION, *columns])


def result_of(aggregate: Any, events: pa.RecordBatch) -> Any:
    """What an aggregate, written as in a job file, gives for all events of a batch.

    >>> result_of({"max": "ms"}, events_of({"ms": [3, 5, None]}))
    5
    """
    choice: Choice = OneOf(AGGREGATES)._validate(aggregate)
    return value_of(choice.registry.load(choice.name), choice.options, events)


def value_of(kind: Any, options: Config, events: pa.RecordBatch) -> Any:
    """What an aggregate's class gives: half of the events and the other half are reduced apart, and merged."""
    aggregate: Aggregate = kind(options, events.schema)
    partials = Partials(Metric("trial", {}, {"value": aggregate}, events.schema, 1))
    middle = events.num_rows // 2
    halves = [half for half in (events.slice(0, middle), events.slice(middle)) if half.num_rows]
    stored = [partial for half in halves for _, _, partial in partials.of_events(half, np.zeros(half.num_rows, np.int64))]
    return partials.results(partials.merge(stored), 0, 0, final=True).column("value")[0].as_py()
