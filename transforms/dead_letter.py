"""Dead letters: the one schema for everything that could not be processed, at whatever stage."""

from __future__ import annotations

import time

import pyarrow as pa
from pydantic import Field

from streamgauge.transforms.config import Config
from streamgauge.transforms.rows import RowSpec


class ErrorHandling(Config):
    """Beam YAML's way to ask for the dead letters."""

    output: str = Field("rejected", description="Name of the output with the dead letters.")


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

stage: ``read`` (the payload could not become an event), ``map`` (an expression or function has no answer for the event), ``aggregate`` (events
of keys beyond the limit of their window) or ``write`` (the store can never take the row).
source: the connector and what it reads, such as ``kafka:flights``; for ``map`` the name of the step, for ``aggregate`` the metric, for ``write`` the sink's name.
split: such as ``flights-0`` or a file's path; for ``aggregate`` the bounds of the window, for ``write`` the key of the row, as JSON text.
position: Kafka offset, or byte offset of the line in its (uncompressed) file; for ``aggregate`` the shard; for ``write`` the row's revision, 0 where it has none.
payload: the bytes as they came; for ``map`` the event, for ``aggregate`` and ``write`` the row as JSON.
error_type: one word (``malformed``, ``type``, ``no_event_time``, ``too_large``, ``tombstone``, ``expression``, ``function``, ``too_many_keys``, ``refused``, ...). message: a sentence.
time: when it was rejected (wall clock).
"""


def dead_letters(
    *, stage: str, source: str, split: str | pa.Array, positions: pa.Array, payloads: pa.Array, error_types: list[str], messages: list[str]
) -> pa.RecordBatch:
    """A RecordBatch of ``SCHEMA``; ``positions`` int64 and ``payloads`` binary have one value a letter, ``split`` may have."""
    n = len(positions)
    now = pa.scalar(time.time_ns() // 1000, pa.timestamp("us", tz="UTC"))
    return pa.record_batch(
        [
            pa.repeat(stage, n), pa.repeat(source, n), pa.repeat(split, n) if isinstance(split, str) else split, positions.cast(pa.int64()), payloads.cast(pa.binary()),
            pa.array(error_types, pa.string()), pa.array(messages, pa.string()), pa.repeat(now, n),
        ],
        schema=SCHEMA,
    )
