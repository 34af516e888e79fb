"""Events in random batches, partials stored and merged in a random order and grouping: what every aggregate must not notice."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE, POSITION, SPLIT, SPLIT_TYPE
from streamgauge.transforms.partials import Partials
from tests.transforms.aggregates.regrouped import merged_at_random

Event = dict[str, Any]

LINEAGE = [pa.field(EVENT_TIME, EVENT_TIME_TYPE), pa.field(SPLIT, SPLIT_TYPE), pa.field(POSITION, pa.int64())]

SPLITS = ("b", "a-10", "a-9")


def events(fields: dict[str, st.SearchStrategy[Any]], max_size: int = 40) -> st.SearchStrategy[list[Event]]:
    """Events with few event times, so that there are ties; positions are unique in a split, and not in the order of time."""
    event = st.fixed_dictionaries({"key": st.sampled_from("xyz"), EVENT_TIME: st.integers(0, 5), SPLIT: st.sampled_from(SPLITS), **fields})
    return st.lists(event, min_size=1, max_size=max_size).map(lambda some: [{**each, POSITION: i} for i, each in enumerate(some)])


def order(event: Event) -> tuple[Any, ...]:
    return event[EVENT_TIME], event[SPLIT], event[POSITION]


def by_key(some: Sequence[Event]) -> dict[str, list[Event]]:
    """The events of each key, in their order."""
    found: dict[str, list[Event]] = {}
    for event in sorted(some, key=order):
        found.setdefault(event["key"], []).append(event)
    return found


class Algebra:
    """Aggregates over events with the given fields, by key."""

    def __init__(self, aggregates: dict[str, Any], fields: dict[str, pa.DataType]) -> None:
        self.aggregates = aggregates
        self._schema = pa.schema([*LINEAGE, pa.field("key", pa.string()), *(pa.field(name, kind) for name, kind in fields.items())])

    @cached_property
    def partials(self) -> Partials:
        options = AggregateOptions(metric="m", window={"tumbling": "1s"}, by=["key"], aggregates=self.aggregates, shards=2)
        return Partials(build_metric(options, self._schema))

    def results(self, some: Sequence[Event], seed: int) -> dict[str, dict[str, Any]]:
        """Result row by key, from ``some`` shuffled, cut into batches and merged as a random tree."""
        chance, partials = random.Random(seed), self.partials
        stored: dict[int, list[pa.RecordBatch]] = {}
        for batch in self._batches(chance.sample(some, len(some)), chance):
            for _, shard, partial in partials.of_events(batch, np.zeros(batch.num_rows, np.int64)):
                stored.setdefault(shard, []).append(partials.codec.decode(partials.codec.encode(partial)))
        return {row["key"]: row for parts in stored.values() for row in merged_at_random(partials, parts, chance)}

    def _batches(self, some: Sequence[Event], chance: random.Random) -> Iterator[pa.RecordBatch]:
        first = 0
        while first < len(some):
            last = chance.randint(first + 1, len(some))
            yield pa.RecordBatch.from_pylist(list(some[first:last]), schema=self._schema)
            first = last
