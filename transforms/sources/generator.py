"""Made-up events as a source: for demos, tests and benchmarks.

Every payload is a function of (seed, split, position), so that a replay gives the same bytes. The numbers are
the raw output of Philox 4x64-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), with the seed and split as key and the position's block as counter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import AwareDatetime, Field, field_validator

from streamgauge.transforms.config import Config, Duration, user_error
from streamgauge.transforms.sources.base import RawBatch, Split

BLOCK = 8192
"""Events that are made together."""

MIN_SLEEP_SECONDS = 0.005
"""With a rate, events are given in batches of at least this much time."""

REGIONS = (b"eu-west-1", b"us-east-1", b"us-west-2", b"ap-east-1")
NOT_A_TIME = b'"not a time!"'
EARLIEST_MS, LATEST_MS = 10**12, 10**13 - 1
"""Event times that have 13 digits as milliseconds: 2001 to 2286."""

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]


class GeneratorOptions(Config):
    """Made-up events: JSON with `ts` (milliseconds), `user`, `metric`, `value`, `host` and `region`."""

    events: int | None = Field(None, ge=0, description="Events in all; without it they never end.")
    rate: float | None = Field(None, gt=0, description="Events per second in all; without it as fast as possible.")
    splits: int = Field(1, ge=1, le=1024, description="Parts that are read in parallel.")
    keys: int = Field(50, ge=1, le=1_000_000, description="Different hosts.")
    metrics: int = Field(20, ge=1, le=1_000, description="Different metrics.")
    skew: float = Field(0, ge=0, le=10, description="Zipf exponent of the hosts' shares; 0: all alike.")
    disorder: Duration = Field(500_000, ge=0, description="An event comes at most this much event time after a later one.")
    bad: float = Field(0, ge=0, le=1, description="Share of damaged payloads.")
    seed: int = Field(0, ge=0, lt=1 << 64, description="Another seed gives other events.")
    start: AwareDatetime = Field(datetime(2026, 1, 1, tzinfo=timezone.utc), description="Event time of the first event, with its zone.")
    event_rate: float = Field(100_000, gt=0, description="Events per second of event time, in all.")

    @field_validator("start")
    @classmethod
    def _thirteen_digits(cls, value: datetime) -> datetime:
        if not EARLIEST_MS <= value.timestamp() * 1000 <= LATEST_MS:
            raise user_error(f"start must be between 2001-09-09 and 2286-11-20; found {value.isoformat()}")
        return value


class Generator:
    """Connector for made-up events; see GeneratorOptions."""

    Options = GeneratorOptions

    def __init__(self, options: GeneratorOptions) -> None:
        self._options = options
        self.name = "generator"
        self.bounded = options.events is not None

    def splits(self, known: Collection[str] = ()) -> list[Split]:
        options = self._options
        if options.events is None:
            return [Split(f"generator-{i}", 0) for i in range(options.splits)]
        each, more = divmod(options.events, options.splits)
        return [Split(f"generator-{i}", 0, each + (i < more)) for i in range(options.splits)]

    def open(self, split: Split, position: int) -> GeneratorReader:
        return GeneratorReader(self._options, split, position)


class GeneratorReader:
    """Gives the events of one split, at the rate asked for since it was opened."""

    def __init__(self, options: GeneratorOptions, split: Split, position: int) -> None:
        self._events = _Events(options, int(split.id.rpartition("-")[2]))
        self._end = math.inf if split.end is None else split.end
        self._rate = options.rate / options.splits if options.rate else math.inf
        self._position = self._begin = position
        self._opened = time.monotonic()
        self._block: tuple[int, Bytes] = (-1, np.empty((0, self._events.width), np.uint8))

    def read(self, max_records: int, max_bytes: int, timeout: float) -> RawBatch:
        """See Reader; ``caught_up`` says that there is nothing more at the rate asked for."""
        deadline = time.monotonic() + timeout
        while (due := self._due()) <= 0 and self._position < self._end and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, max(MIN_SLEEP_SECONDS, -due / self._rate)))
        count = int(max(0, min(due, self._end - self._position, max_records, max(1, max_bytes // self._events.width))))
        begin, self._position = self._position, self._position + count
        data = self._rows(begin, self._position).reshape(-1)
        offsets = np.arange(count + 1, dtype=np.int32) * np.int32(self._events.width)
        payloads = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
        done = self._position >= self._end
        positions = np.arange(begin, self._position)
        return RawBatch(payloads, positions, self._position, caught_up=done or count >= due, done=done, newline_terminated=True)

    def close(self) -> None:
        """There is nothing to close."""

    def _due(self) -> float:
        """Whole events that may be given now; the part of one that is missing, negative, when there is none."""
        if math.isinf(self._rate):
            return math.inf
        due = (time.monotonic() - self._opened) * self._rate - (self._position - self._begin)
        return math.floor(due) if due >= 1 else due - 1

    def _rows(self, begin: int, end: int) -> Bytes:
        parts = []
        while begin < end:
            number, first = divmod(begin, BLOCK)
            if self._block[0] != number:
                self._block = (number, self._events.block(number))
            count = min(end - begin, BLOCK - first)
            parts.append(self._block[1][first : first + count])
            begin += count
        return parts[0] if len(parts) == 1 else np.concatenate([*parts, self._block[1][:0]])


class _Events:
    """The events of one split, in blocks of rows of equal length."""

    def __init__(self, options: GeneratorOptions, split: int) -> None:
        self._options, self._split = options, split
        self._start = round(options.start.timestamp() * 1_000_000)
        self._step = 1_000_000 * options.splits / options.event_rate  # microseconds of event time between events of a split
        self._host_digits = len(str(options.keys - 1))
        self._metric_digits = len(str(options.metrics - 1))
        shares = np.arange(1, options.keys + 1) ** -float(options.skew)
        self._shares = np.cumsum(shares) / shares.sum()
        self._places: dict[str, slice] = {}
        self._template = self._layout()
        self.width = len(self._template)

    def _layout(self) -> Bytes:
        """One row with its fixed text; where the fields are is noted in ``_places``."""
        row = b""
        for text, name, size in (
            (b'{"ts":', "ts", 13), (b',"user":', "user", 6), (b',"metric":"metric-', "metric", self._metric_digits),
            (b'","value":', "whole", 3), (b".", "fraction", 3), (b',"host":"host-', "host", self._host_digits),
            (b'","region":"', "region", len(REGIONS[0])), (b'"}\n', "", 0),
        ):  # fmt: skip
            row += text
            self._places[name] = slice(len(row), len(row) + size)
            row += b"0" * size
        return np.frombuffer(row, np.uint8)

    def block(self, number: int) -> Bytes:
        options = self._options
        key, counter = (np.array(words, np.uint64) for words in ((options.seed, self._split), (0, number, 0, 0)))
        raw = np.random.Philox(key=key, counter=counter)
        who, where, what, damage = raw.random_raw(4 * BLOCK).reshape(4, BLOCK)
        rows = np.tile(self._template, (BLOCK, 1))
        host = self._hosts(where)
        self._put(rows, "ts", self._milliseconds(number, what))
        self._put(rows, "user", 100_000 + _below(_high(who), 900_000))
        self._put(rows, "metric", _below(_low(who), options.metrics))
        value = _below(_high(what), 900_000)
        self._put(rows, "whole", 100 + value // 1000)
        self._put(rows, "fraction", value % 1000)
        self._put(rows, "host", host)
        rows[:, self._places["region"]] = np.frombuffer(b"".join(REGIONS), np.uint8).reshape(len(REGIONS), -1)[host % len(REGIONS)]
        if options.bad:
            self._damage(rows, damage)
        return rows

    def _milliseconds(self, number: int, what: Words) -> npt.NDArray[np.int64]:
        """Event time moves evenly; each event is behind that by less than the disorder."""
        even = self._start + (np.arange(number * BLOCK, (number + 1) * BLOCK) * self._step).astype(np.int64)
        behind: npt.NDArray[np.int64] = (_low(what) * (self._options.disorder / 2**32)).astype(np.int64)
        times: npt.NDArray[np.int64] = np.maximum(even - behind, self._start) // 1000
        return np.minimum(times, LATEST_MS)

    def _hosts(self, where: Words) -> npt.NDArray[np.int64]:
        if not self._options.skew:
            return _below(_high(where), self._options.keys)
        return np.minimum(np.searchsorted(self._shares, (where >> 11) * 2.0**-53, side="right"), self._options.keys - 1)

    def _put(self, rows: Bytes, name: str, numbers: npt.NDArray[np.int64]) -> None:
        """Decimal digits with leading zeros, three at a time from the right."""
        place = self._places[name]
        end = place.stop
        while end > place.start:
            begin = max(place.start, end - 3)
            rows[:, begin:end] = _three_digits()[numbers % 1000, 3 - (end - begin) :]
            numbers, end = numbers // 1000, begin

    def _damage(self, rows: Bytes, damage: Words) -> None:
        """Damages a share of the rows without changing their length: no object, a stray comma, invalid UTF-8, no time."""
        chosen = _high(damage) / 2.0**32 < self._options.bad
        kind = _low(damage) % 4
        rows[chosen & (kind == 0), 0] = ord("[")
        rows[chosen & (kind == 1), self._places["user"].start] = ord(",")
        rows[chosen & (kind == 2), self._places["host"].start] = 0xFF
        rows[chosen & (kind == 3), self._places["ts"]] = np.frombuffer(NOT_A_TIME, np.uint8)


@lru_cache(maxsize=1)
def _three_digits() -> Bytes:
    return np.frombuffer(b"".join(b"%03d" % i for i in range(1000)), np.uint8).reshape(1000, 3)


def _high(words: Words) -> npt.NDArray[Any]:
    return words >> np.uint64(32)


def _low(words: Words) -> npt.NDArray[Any]:
    return words & np.uint64(0xFFFFFFFF)


def _below(words: npt.NDArray[Any], bound: int) -> npt.NDArray[np.int64]:
    """Random 32 bits to 0 .. bound - 1, by multiplication."""
    scaled: Words = words * np.uint64(bound) >> np.uint64(32)
    return scaled.astype(np.int64)
