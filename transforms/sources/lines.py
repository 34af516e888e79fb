"""Cuts a stream of bytes into lines, without a Python object per line."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamgauge.transforms.sources.base import RawBatch

HEAD_BYTES = 1024
"""How much of a line that is too long, or of a damaged one, is kept for its dead letter."""

NEWLINE, RETURN = 10, 13

Bytes = npt.NDArray[np.uint8]


def empty(position: int) -> RawBatch:
    """A batch without records."""
    return RawBatch(pa.array([], pa.binary()), np.empty(0, np.int64), position, newline_terminated=True)


class LineBuffer:
    """Takes chunks of a stream and gives batches of its complete lines.

    ``\\r\\n`` counts as ``\\n``, blank lines are left out, a line longer than ``max_line`` bytes becomes an error entry.

    >>> lines = LineBuffer(100, max_line=1000)
    >>> lines.add(b"a\\n\\nbc\\r\\nd")
    >>> batch = lines.take(10, 1000)
    >>> batch.payloads.to_pylist(), batch.positions.tolist(), batch.next_position
    ([b'a\\n', b'bc\\n'], [100, 103], 107)
    """

    def __init__(self, position: int, max_line: int) -> None:
        self._max_line = max_line
        self._at = position  # of _data[0] in the stream
        self._end = position  # of the stream's bytes so far
        self._data: Bytes = np.empty(0, np.uint8)
        self._used = 0  # bytes of _data already given
        self._stops: npt.NDArray[np.int64] = np.empty(0, np.int64)  # index after each line end not yet given
        self._skipping: tuple[int, bytes] | None = None  # start and head of a line that became too long
        self._errors: list[tuple[int, str, str, bytes | None]] = []

    @property
    def ready(self) -> bool:
        """Whether ``take`` has something to give. Chunks may be added only when not."""
        return bool(len(self._stops) or self._errors)

    @property
    def rest(self) -> tuple[int, bytes]:
        """Position and head of the line whose end has not come yet."""
        return self._skipping or (self._at + self._used, self._data[self._used : self._used + HEAD_BYTES].tobytes())

    def add(self, chunk: bytes | pa.Buffer) -> None:
        """The next bytes of the stream."""
        fresh: Bytes = np.frombuffer(chunk, np.uint8)
        self._end += len(fresh)
        if self._skipping:
            ends = np.flatnonzero(fresh == NEWLINE)
            if not len(ends):
                return
            self._at, self._data, self._used = self._end - len(fresh) + int(ends[0]) + 1, fresh[ends[0] + 1 :], 0
            self._stops = ends[1:] - ends[0]
            self._skipped()
        else:
            rest = self._data[self._used :]
            self._at, self._used = self._at + self._used, 0
            self._stops = np.flatnonzero(fresh == NEWLINE) + len(rest) + 1
            self._data = np.concatenate((rest, fresh)) if len(rest) else fresh
        tail = int(self._stops[-1]) if len(self._stops) else 0
        if len(self._data) - tail > self._max_line:
            self._skipping = (self._at + tail, self._data[tail : tail + HEAD_BYTES].tobytes())
            self._data = self._data[:tail]

    def finish(self) -> None:
        """The stream ends: what follows the last line end is a line too."""
        if self._skipping:
            self._at, self._data, self._used = self._end, self._data[:0], 0
            self._skipped()
        elif self._used < len(self._data):
            self._data = np.append(self._data, np.uint8(NEWLINE))
            self._stops = np.array([len(self._data)])

    def corrupt(self, message: str) -> None:
        """The stream cannot be read further: what follows the last line end becomes an error entry."""
        position, head = self.rest
        self._at, self._data, self._used, self._skipping = self._end, self._data[:0], 0, None
        self._errors.append((position, "corrupt", message, head or None))

    def take(self, max_records: int, max_bytes: int) -> RawBatch:
        """The next lines: at most ``max_records`` and ``max_bytes``, though one line at least when there is one."""
        count = min(max_records, max(1, int(np.searchsorted(self._stops, self._used + max_bytes, side="right"))))
        stops = self._stops[:count]
        errors, self._errors = self._errors, []
        batch = empty(self._at + self._used)
        if len(stops):
            batch = self._batch(stops, errors)
            self._used = int(stops[-1])
            self._stops = self._stops[count:]
        position = self._skipping[0] if self._skipping and not len(self._stops) else self._at + self._used
        batch.next_position = min(position, self._end)
        batch.errors = tuple(sorted(errors, key=lambda error: error[0]))
        return batch

    def _skipped(self) -> None:
        assert self._skipping is not None
        self._errors.append(_too_large(*self._skipping, self._max_line))
        self._skipping = None

    def _batch(self, stops: npt.NDArray[np.int64], errors: list[tuple[int, str, str, bytes | None]]) -> RawBatch:
        start = self._used
        data, stops = self._data[start : stops[-1]], stops - start
        starts = np.concatenate(([0], stops[:-1]))
        positions = self._at + start + starts
        sizes = stops - starts
        returns = (sizes > 1) & (data[stops - 2] == RETURN)
        large = sizes - 1 > self._max_line
        drop = (sizes - returns == 1) | large
        if returns.any() or drop.any():
            for i in np.flatnonzero(large):
                errors.append(_too_large(int(positions[i]), data[starts[i] : starts[i] + HEAD_BYTES].tobytes(), self._max_line))
            edges = np.zeros(len(data) + 1, np.int8)
            edges[starts[drop]] += 1
            edges[stops[drop]] -= 1
            gone = np.cumsum(edges[:-1], dtype=np.int8).astype(bool)
            gone[stops[returns] - 2] = True
            data = data[~gone]
            positions, sizes = positions[~drop], (sizes - returns)[~drop]
        offsets = np.zeros(len(sizes) + 1, np.int32)
        np.cumsum(sizes, out=offsets[1:])
        payloads = pa.Array.from_buffers(pa.binary(), len(sizes), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
        return RawBatch(payloads, positions, 0, newline_terminated=True)


def _too_large(position: int, head: bytes, max_line: int) -> tuple[int, str, str, bytes | None]:
    return position, "too_large", f"a line longer than max_line ({max_line} bytes); the payload here is its first {len(head)} bytes", head
