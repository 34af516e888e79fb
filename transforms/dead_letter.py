"""Dead letters: the one schema for everything that could not be processed, at whatever stage."""

from __future__ import annotations

import time

import pyarrow as pa

from streamgauge.transforms.rows import RowSpec

ROWS = RowSpec(kind="dead_letters", key=("stage", "source", "split", "position"), time="time")

SCHEMA = ROWS.attach(
    pa.schema([
        pa.field("stage", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("payload", pa.binary()),
        pa.field("error_type", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
    ])
)
"""Columns of a dead letter.

stage: ``read`` (the payload could not become an event) or ``write`` (the store can never take the row).
source: the connector and what it reads, such as ``kafka:flights``. split: such as ``flights-0`` or a file's path.
position: Kafka offset, or byte offset of the line in its (uncompressed) file. payload: the bytes as they came.
error_type: one word (``malformed``, ``type``, ``no_event_time``, ``too_large``, ``tombstone``, ...). message: a sentence.
time: when it was rejected (wall clock).
"""


def dead_letters(
    *, stage: str, source: str, split: str, positions: pa.Array, payloads: pa.Array, error_types: list[str], messages: list[str]
) -> pa.RecordBatch:
    """A RecordBatch of ``SCHEMA``; ``positions`` int64 and ``payloads`` binary have one value a letter."""
    n = len(positions)
    now = pa.scalar(time.time_ns() // 1000, pa.timestamp("us", tz="UTC"))
    return pa.record_batch(
        [
            pa.repeat(stage, n), pa.repeat(source, n), pa.repeat(split, n), positions.cast(pa.int64()), payloads.cast(pa.binary()),
            pa.array(error_types, pa.string()), pa.array(messages, pa.string()), pa.repeat(now, n),
        ],
        schema=SCHEMA,
    )
