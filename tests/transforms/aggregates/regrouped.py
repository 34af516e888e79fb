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
    return {row[KEY]: row for row in merged_at_random(partials, stored, chance)}


def merged_at_random(partials: Partials, parts: list[pa.RecordBatch], chance: random.Random) -> list[dict[str, Any]]:
    """Result rows of a shard's partials, which are stored and merged as a random tree."""
    while len(parts) > 1:
        chance.shuffle(parts)
        some = chance.randint(2, len(parts))
        merged = partials.merge([partials.codec.decode(partials.codec.encode(part)) for part in parts[:some]])
        parts = [merged, *parts[some:]]
    return [row for part in parts for row in partials.results(part, 0, 1_000_000, final=True).to_pylist()]
