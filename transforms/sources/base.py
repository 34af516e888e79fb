"""Connector: where raw payloads come from. It knows nothing of formats.

A connector lists *splits* (a Kafka partition, a file) and opens a reader on one of them at a position.
Positions are int64 and only grow. The position is kept by the caller, in Flink's checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True)
class Split:
    """A part of a source that is read in order.

    Attributes:
        id: stable name, unique within the source: ``flights-0``, ``data/a.ndjson``.
        start: first position to read.
        end: position after the last one to read; None: grows without end.
    """

    id: str
    start: int
    end: int | None = None


@dataclass
class RawBatch:
    """Payloads read in one go from one split.

    Attributes:
        payloads: pa.binary(), one value a record; null is a record without a value (a Kafka tombstone).
            When ``newline_terminated`` every non-null value ends with the byte ``\\n`` and the values stand
            back to back in the array's data buffer, which is then itself newline-delimited text.
        positions: int64 array, the position of each record, growing.
        timestamps: int64 array, the broker's time stamp of each record in microseconds since the epoch (-1: it has none); None where the
            source has none.
        next_position: where reading continues after this batch (>= last position + 1; gaps are allowed, an empty batch may advance too).
        caught_up: the source confirmed that ``next_position`` is its end. False when not known (a broken connection).
        caught_up_at: when it was still so, ``time.monotonic()``; None: when this read began.
        done: nothing will ever follow: the split's end was reached.
        newline_terminated: see payloads; dead letters drop the added newline.
        errors: records that the connector itself could not deliver (too large, undecompressable): parallel to nothing, each a
            (position, error_type, message, payload or None).
    """

    payloads: pa.BinaryArray
    positions: npt.NDArray[np.int64]
    next_position: int
    timestamps: npt.NDArray[np.int64] | None = None
    caught_up: bool = False
    caught_up_at: float | None = None
    done: bool = False
    newline_terminated: bool = False
    errors: tuple[tuple[int, str, str, bytes | None], ...] = ()

    def __len__(self) -> int:
        return len(self.payloads)


class SourceError(RuntimeError):
    """The source cannot be read as configured (no such topic, no such file, broker down past the bound): one line, says what to do."""


class Reader(Protocol):
    """Reads one split, in order."""

    def read(self, max_records: int, max_bytes: int, timeout: float) -> RawBatch:
        """The next records, at least one when there are any, waiting at most ``timeout`` seconds for the first; 0: what is there. Raises SourceError.

        Of a source without an end it is also asked while another split is read, see joint_reads.py."""

    def close(self) -> None: ...


class Connector(Protocol):
    """A configured source. Picklable; opens nothing before it is asked to.

    Attributes:
        name: shown in dead letters and progress: ``kafka:flights``.
        bounded: True when every reader says ``done`` at some time. A split's ``end`` may be unknown all the same (a compressed file).
    """

    name: str
    bounded: bool

    def splits(self, known: Collection[str] = ()) -> list[Split]:
        """All splits that exist now. For sources where new ones appear (partitions, files of a followed glob), called again
        every so often; a split is told from others by its id. ``known`` are the ids that the job reads already: what came
        after them is read from its beginning, wherever the job itself began. Raises SourceError."""

    def open(self, split: Split, position: int) -> Reader:
        """A reader whose next record is the first at or after ``position``. Raises SourceError."""
