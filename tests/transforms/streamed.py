"""A stream that a test spells out: batches of events and steps of the watermark, through AggregateWindows on Beam's TestStream.

The runner is the BundleBasedDirectRunner, which fires timers when their time has come, as Flink does; or Flink, see ``on_flink``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.coders import BytesCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from streamgauge.pipelines.services.flink import EmbeddedFlink
from streamgauge.transforms import AggregateWindows
from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE, POSITION, SPLIT, SPLIT_TYPE, BatchCodec, BatchType, with_disorder
from tests.collect import Collected

MS = 1000
FIELDS = pa.schema([
    pa.field(EVENT_TIME, EVENT_TIME_TYPE, nullable=False), pa.field(SPLIT, SPLIT_TYPE, nullable=False), pa.field(POSITION, pa.int64(), nullable=False),
    pa.field("key", pa.string()), pa.field("value", pa.int64()),
])  # fmt: skip
DISORDER = 10**12
"""Only the steps of the watermark make events late, not others of their batch."""

Event = tuple[int, str | None, int]
"""Event time in microseconds, key, value."""
Step = list[Event] | int | str
"""A batch, the watermark that is reached (microseconds), or ``clock``: timers of processing time fire."""


_FLINK: list[EmbeddedFlink] = []


@contextmanager
def on_flink(flink: EmbeddedFlink) -> Iterator[None]:
    """Streams run there. Its TestStream knows no processing time: tests with ``clock`` are skipped."""
    _FLINK.append(flink)
    try:
        yield
    finally:
        _FLINK.clear()


def batch_of(events: Sequence[Event], position: int = 0, schema: pa.Schema = FIELDS) -> pa.RecordBatch:
    columns = [
        pa.array([time for time, _, _ in events]).cast(EVENT_TIME_TYPE),
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(events), np.int8)), pa.array(["s"])),
        pa.array(range(position, position + len(events)), pa.int64()),
        pa.array([key for _, key, _ in events], pa.string()),
        pa.array([value for _, _, value in events], pa.int64()),
    ]
    return pa.record_batch(columns, schema=schema)


def streamed(steps: Sequence[Step], also: dict[str, list[dict[str, Any]]] | None = None, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(result rows in the order in which they were made, late events) of AggregateWindows over the stream; ``also`` takes the rows of other outputs."""
    schema = with_disorder(FIELDS, DISORDER)
    # Flink decodes the elements of a TestStream: they must be of a kind that Java knows.
    codec = BatchCodec(schema)
    stream = TestStream(coder=BytesCoder())
    position, watermark = 0, MIN_TIMESTAMP
    for step in steps:
        if isinstance(step, int):
            watermark = Timestamp(micros=step)
            stream = stream.advance_watermark_to(watermark)
        elif step == "clock":
            # The clock of a TestStream begins in 1970, that of the transforms is the real one.
            stream = stream.advance_processing_time(4e9)
        else:
            stream = stream.add_elements([TimestampedValue(codec.encode(batch_of(step, position, schema)), watermark)])
            position += len(step)
    results, late = Collected(), Collected()
    if _FLINK and "clock" in steps:
        pytest.skip("Flink's TestStream knows no processing time")
    runner = {} if _FLINK else {"runner": BundleBasedDirectRunner()}
    # Without checkpoints a source that has ended may shut down: that ends the job.
    flags = [*_FLINK[0].pipeline_options(), "--shutdown_sources_after_idle_ms=0", "--max_bundle_size=1"] if _FLINK else []
    with beam.Pipeline(**runner, options=PipelineOptions(["--streaming", *flags])) as pipeline:
        encoded = pipeline | stream.advance_watermark_to_infinity()
        encoded.element_type = bytes
        batches = encoded | beam.Map(codec.decode)
        batches.element_type = BatchType(schema)
        outputs = batches | AggregateWindows(**{"metric": "m", "by": ["key"], "aggregates": {"total": {"sum": "value"}}, "late": True, **options})
        _ = outputs["results"] | "Results" >> results
        _ = outputs["late"] | "Late" >> late
        others = {name: Collected() for name in also or {}}
        for name, collected in others.items():
            _ = outputs[name] | name >> collected
    for name, collected in others.items():
        (also or {})[name].extend(collected.rows)
    return results.rows, late.rows


def micros(moment: datetime) -> int:
    """Microseconds since the epoch."""
    return (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)


def folded(rows: Sequence[dict[str, Any]], *key: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What a store holds in the end: the highest revision of each key, the later of equal ones, without those withdrawn."""
    stored: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        name = tuple(row[column] for column in key)
        if name not in stored or (stored[name]["revision"], stored[name]["final"]) <= (row["revision"], row["final"]):
            stored[name] = row
    return {name: row for name, row in stored.items() if not row.get("withdrawn")}
