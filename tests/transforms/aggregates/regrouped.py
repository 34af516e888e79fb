"""Results of events that are cut into batches, stored, and merged in a random order and grouping."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.partials import Partials

KEY = "key"


def results(aggregates: dict[str, Any], field: pa.DataType | pa.Schema, events: Iterable[Any], seed: int | None = None) -> dict[Any, dict[str, Any]]:
    """Result row of each key. An event is (key, value of field ``x``), or with a schema (key, the values of its fields).

    Without a seed, it is all one batch.
    """
    fields = field if isinstance(field, pa.Schema) else pa.schema([("x", field)])
    schema = pa.schema([(KEY, pa.string()), *fields])
    options = AggregateOptions(metric="m", window={"tumbling": "1s"}, by=(KEY,), aggregates=aggregates, shards=1)
    partials = Partials(build_metric(options, schema))
    columns = list(zip(*events, strict=True)) or [()] * len(schema)
    whole = pa.record_batch([pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)], schema=schema)
    chance = random.Random(seed)
    cuts = [] if seed is None else sorted(chance.randint(0, whole.num_rows) for _ in range(chance.randint(0, 5)))
    stored = []
    for first, last in zip([0, *cuts], [*cuts, whole.num_rows], strict=True):
        batch = whole.slice(first, last - first)
        stored += [partial for _, _, partial in partials.of_events(batch, np.zeros(batch.num_rows, np.int64))] if batch.num_rows else []
    while len(stored) > 1:
        chance.shuffle(stored)
        some = chance.randint(2, len(stored))
        merged = partials.merge([partials.codec.decode(partials.codec.encode(partial)) for partial in stored[:some]])
        stored = [merged, *stored[some:]]
    return {row[KEY]: row for partial in stored for row in partials.results(partial, 0, 1_000_000, final=True).to_pylist()}
