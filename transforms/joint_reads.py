"""Batches for calls of a reader; small ones of several splits are made in one go.

What a batch costs besides its events (parsing, arrays) is more than few events cost, and a process may read dozens of splits. So a call that finds few
events looks into the other open splits as well, has all that is there parsed as one batch, and leaves the others' shares for their own calls, which as a rule come in the same bundle. Until then
a share is no more than a batch that was read early: it is claimed, and moves the watermark, in the call of its own split, as if that had been read alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from streamgauge.transforms.formats.base import Parsed, Rejects
from streamgauge.transforms.readers import OpenReader, OpenReaders
from streamgauge.transforms.sources.base import RawBatch

FRESH_SECONDS = 0.02
"""How long it is believed that there was nothing: about two cycles of a reader."""


@dataclass(frozen=True)
class Limits:
    """What is asked of one split.

    Attributes:
        records: events in a batch, or in several that are parsed together, about.
        size: bytes of payloads in a batch.
        wait: seconds to wait when there is nothing.
    """

    records: int
    size: int
    wait: float


@dataclass(frozen=True)
class Batch:
    """Payloads of one split and what they were parsed to.

    Attributes:
        more: there was more than was asked for, as far as a connector can say.
    """

    raw: RawBatch
    parsed: Parsed
    more: bool


class JointReads:
    """Reads the splits of a process.

    Args:
        parse: from payloads to events of ``schema``.
        jointly: whether splits are looked into together; not where each is read to its end.
    """

    def __init__(self, readers: OpenReaders, parse: Callable[[RawBatch], Parsed], schema: pa.Schema, *, jointly: bool) -> None:
        self._readers = readers
        self._parse = parse
        self._no_events = pa.RecordBatch.from_pylist([], schema=schema)
        self._jointly = jointly

    def next(self, reader: OpenReader, limits: Limits) -> Batch:
        """The next batch of a reader, handed out. Raises SourceError, perhaps that of another split."""
        batch = _left(reader) or self._read(reader, limits)
        reader.hand_out(batch.raw)
        return batch

    def _read(self, reader: OpenReader, limits: Limits) -> Batch:
        others = self._readers.take_free() if self._jointly else {}
        try:
            found = _fetched([reader, *others.values()], limits)
            parsed = self._parsed([raw for raw, _ in found])
        except BaseException:
            # What they have read is in no batch: nobody may go on behind it.
            for other in others.values():
                other.close()
            raise
        batch, *shares = (Batch(raw, events, more) for (raw, more), events in zip(found, parsed, strict=True))
        now = time.monotonic()
        for other, share in zip(others.values(), shares, strict=False):
            other.ahead = share, now
        self._readers.give_back(others)
        return batch

    def _parsed(self, raws: Sequence[RawBatch]) -> list[Parsed]:
        filled = [raw for raw in raws if len(raw)]
        if len(filled) < 2 or len({raw.newline_terminated for raw in filled}) > 1:
            return [self._parse(raw) if len(raw) else Parsed(self._no_events) for raw in raws]
        together = self._parse(_joined(filled))
        ends = np.cumsum([len(raw) for raw in raws]).tolist()
        return [_part(together, end - len(raw), end) for raw, end in zip(raws, ends, strict=True)]


def _left(reader: OpenReader) -> Batch | None:
    """What was read ahead, if it still counts."""
    batch, when = reader.ahead or (None, 0.0)
    reader.ahead = None
    if batch is None or len(batch.raw) or batch.raw.errors or batch.raw.done or time.monotonic() - when < FRESH_SECONDS:
        return batch
    return None


def _fetched(readers: Sequence[OpenReader], limits: Limits) -> list[tuple[RawBatch, bool]]:
    """What the first reader has, and what the next ones have while there is room, each with whether there was more; if that is nothing, what then comes to the first."""
    first, *others = readers
    room = _Room(limits.records, limits.size)
    found = [room.fetch(first, 0.0 if others else limits.wait)]
    for other in others:
        if limits.records - room.records >= limits.records // 2 or limits.size - room.size >= limits.size // 2:
            break
        found.append(room.fetch(other, 0.0))
    if others and not any(len(raw) or raw.errors or raw.done for raw, _ in found):
        found[0] = room.fetch(first, limits.wait)
    return found


class _Room:
    """How many records, and bytes of payloads, may still be fetched to be parsed together."""

    def __init__(self, records: int, size: int) -> None:
        self.records, self.size = records, size

    def fetch(self, reader: OpenReader, wait: float) -> tuple[RawBatch, bool]:
        """Bounds on bytes are kept by the mean size of a record: half of what was asked for is a full batch."""
        raw = reader.fetch(self.records, self.size, wait)
        records, size = len(raw), raw.payloads.nbytes
        full = records >= max(1, self.records // 2) or size >= self.size // 2
        self.records, self.size = self.records - records, self.size - size
        return raw, full


def _joined(raws: Sequence[RawBatch]) -> RawBatch:
    """The payloads of several, as formats and event times look at them."""
    stamps = [raw.timestamps for raw in raws if raw.timestamps is not None]
    return replace(
        raws[0],
        payloads=pa.concat_arrays([raw.payloads for raw in raws]),
        positions=np.concatenate([raw.positions for raw in raws]),
        timestamps=np.concatenate(stamps) if stamps else None,
    )


def _part(parsed: Parsed, begin: int, end: int) -> Parsed:
    """What payloads ``begin`` to ``end`` became."""
    rejects = Rejects()
    for index, kind, message in zip(parsed.rejects.indices, parsed.rejects.error_types, parsed.rejects.messages, strict=True):
        if begin <= index < end:
            rejects.add(index - begin, kind, message)
    if parsed.rows is None:
        return Parsed(parsed.events.slice(begin, end - begin), None, rejects)
    first, last = np.searchsorted(parsed.rows, (begin, end)).tolist()
    return Parsed(parsed.events.slice(first, last - first), parsed.rows[first:last] - begin, rejects)
