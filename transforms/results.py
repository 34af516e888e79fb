"""What leaves AggregateWindows: result rows, and dead letters for keys beyond the limit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from itertools import pairwise

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics

from streamgauge.transforms.dead_letter import dead_letters
from streamgauge.transforms.partials import GONE, OTHER, Partials, concatenated
from streamgauge.transforms.sinks.row_json import json_rows

BEYOND = "beyond"
"""Tag of the output with the dead letters."""


class ResultRows:
    """Makes the elements of a shard's window.

    Args:
        letters: the row of the keys beyond the limit is a dead letter, not a result.
    """

    def __init__(self, *, letters: bool = False) -> None:
        self._letters = letters
        self._beyond = Metrics.counter("streamgauge", "events_beyond_limit")

    def of(
        self, key: bytes, partials: Partials, merged: pa.RecordBatch, start: int, end: int, *, final: bool, watermark: int | None, gone: pa.RecordBatch | None = None,
    ) -> Iterator[pa.RecordBatch]:  # fmt: skip
        """The rows of ``merged``, and withdrawals of those in ``gone``, whose keys had rows and are beyond the limit now."""
        shard = int(key.partition(b".")[0])
        other = self._other(partials, merged)
        if other is not None and final:
            self._beyond.inc(pc.sum(other.column("events")).as_py())
        if other is not None and self._letters:
            if final:
                yield beam.pvalue.TaggedOutput(BEYOND, self._letter(shard, partials, other, start, end))
            merged = merged.filter(pc.invert(merged.column(OTHER)))
        if merged.num_rows:
            yield partials.results(merged, start, end, final=final, watermark=watermark, shard=shard)
        if gone is not None:
            count = gone.num_rows
            withdrawn, revision = np.ones(count, np.bool_), np.full(count, GONE)
            yield partials.results(gone, start, end, final=final, watermark=watermark, revision=revision, withdrawn=withdrawn, shard=shard)

    def of_each(
        self, partials: Partials, merged: Sequence[pa.RecordBatch], starts: Sequence[int], ends: Sequence[int], *,
        finals: Sequence[bool], watermarks: Sequence[int | None],
    ) -> list[pa.RecordBatch]:  # fmt: skip
        """The rows of each, of metrics without a limit on keys: at the cost of one."""
        sizes = [each.num_rows for each in merged]
        watermark = pa.array(watermarks, pa.int64()).take(pa.array(np.repeat(np.arange(len(sizes)), sizes)))
        rows = partials.results(
            concatenated(merged), np.repeat(starts, sizes), np.repeat(ends, sizes), final=np.repeat(finals, sizes), watermark=watermark
        )  # fmt: skip
        edges = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        return [rows.slice(first, last - first) for first, last in pairwise(edges)]

    def _other(self, partials: Partials, merged: pa.RecordBatch) -> pa.RecordBatch | None:
        if partials.metric.limit is None:
            return None
        other = merged.filter(merged.column(OTHER))
        return other if other.num_rows else None

    def _letter(self, shard: int, partials: Partials, other: pa.RecordBatch, start: int, end: int) -> pa.RecordBatch:
        """One for a shard and window, under a key of its own: a correction replaces it."""
        metric = partials.metric
        row = partials.results(other, start, end, final=True)
        events = row.column("events")[0].as_py()
        message = f"{events:,} events are of keys beyond the limit of {metric.limit:,} in their part of the keys, and in no row"
        window = json.dumps([_iso(start), _iso(end)])
        return dead_letters(
            stage="aggregate", source=metric.name, split=window, positions=pa.array([shard]), payloads=pa.array(json_rows(pa.Table.from_batches([row]))),
            error_types=["too_many_keys"], messages=[message],
        )  # fmt: skip


def _iso(micros: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=micros)).isoformat()
