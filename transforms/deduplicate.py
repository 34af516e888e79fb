"""Deduplicate: events without those that came before.

Two steps. Every batch is divided by a stable hash of the events' ids into *shards*. A stateful DoFn keyed by shard holds, in memory, an index
of the ids seen (seen_ids.py) and, in keyed state, a log of them: new ids are appended, and the whole log is read only where the index is
not at hand. State is in the same checkpoint as positions.

Which index belongs to which log is told by the *generation*, a random token in state that is replaced by every bundle that changes the log. An
index made by a bundle that failed, or whose job was set back to an older checkpoint, has a token that the state does not have, and
is not used: it would know ids of events that never went on, and these would be lost.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.utils.shared import Shared
from apache_beam.utils.timestamp import Timestamp
from pydantic import Field, field_validator

from streamgauge.transforms.batch import BatchCodec, BatchType, event_times
from streamgauge.transforms.config import MICROSECONDS, Config, Duration, did_you_mean, user_error
from streamgauge.transforms.hashing import hash_rows, spread_key
from streamgauge.transforms.options import StreamgaugeOptions
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.runners import keeps_time
from streamgauge.transforms.seen_ids import DUPLICATE, NEVER, NO_ID, UNJUDGED, SeenIds, ids_of, log_codec
from streamgauge.transforms.stable_ids import full_label, own_timers

MAX_HORIZON = 3_660 * MICROSECONDS["d"]
UNUSED_SECONDS = 120.0
"""An index that no bundle used for so long is given up (its shard has moved, or is idle); the log has its ids."""

_GENERATION = struct.Struct("<q16s")
"""What is forgotten (``SeenIds.forgotten``), and the token."""


class DeduplicateOptions(Config):
    """Drops events whose id was seen before."""

    by: list[str] = Field(
        min_length=1,
        description="Fields that together are the event's id: strings, booleans, integers, dates or timestamps. Null is a value, but an event of which all are null has no id and is never a duplicate.",
    )
    horizon: Duration = Field(
        10 * MICROSECONDS["m"],
        description="How far apart in event time an event and its duplicate may be. An id is remembered until the watermark is so far past its event time.",
    )
    shards: int = Field(8, ge=1, le=128, description="Parts that the ids are divided into; bounds the useful parallelism. Another number starts state anew.")

    @field_validator("by")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise user_error(f"'{next(name for name in value if value.count(name) > 1)}' is there twice")
        return value

    @field_validator("horizon")
    @classmethod
    def _bounded(cls, value: int) -> int:
        if not 0 <= value <= MAX_HORIZON:
            raise user_error("horizon must be from 0s to 3660d")
        return value


class Deduplicate(beam.PTransform):  # type: ignore[misc]
    """EventBatches -> EventBatches of the same schema.

    Options are those of :class:`DeduplicateOptions`. Of the events that have one id, an event is dropped when an earlier one (in the order in
    which they arrive) that went on is at most ``horizon`` from it in event time. The timestamp of an element is that of the one it was part of.

    An event behind the watermark of the job is compared with what is still remembered; one that is more than the horizon behind it may have
    been seen and forgotten, and goes on: dropping it could lose it, and AggregateWindows judges lateness anyway. Both are counted: ``duplicates``,
    ``events_unjudged`` and ``events_without_id`` are metrics of Beam, and are in the job's record.

    Guarantee: of the events with one id and at most ``horizon`` apart that are not behind the watermark, exactly one goes on, also
    after a failure: what was seen is in the same checkpoint as positions.
    """

    def __init__(self, label: str | None = None, **options: Any) -> None:
        super().__init__(label)
        self.options = DeduplicateOptions.model_validate(options)

    def expand(self, events: beam.PCollection) -> beam.PCollection:
        if not isinstance(events.element_type, BatchType):
            raise TypeError(f"Deduplicate takes EventBatches, such as ReadEvents makes; its input has elements of type {events.element_type}")
        schema = events.element_type.schema
        check_ids(self.options.by, schema)
        folder = events.pipeline.options.view_as(StreamgaugeOptions).record_folder
        seen = own_timers(_SeenDoFn, full_label(events.pipeline))
        kept = (
            events
            | "Shards" >> beam.ParDo(_ShardDoFn(self.options, schema)).with_output_types(tuple[bytes, bytes])
            | "Seen" >> beam.ParDo(seen(self.options, schema, folder, forgets=keeps_time(events.pipeline.runner)))
        )
        kept.element_type = BatchType(schema)
        return kept


def check_ids(by: list[str], schema: pa.Schema) -> None:
    """Raises a user's error for a field that is not there or cannot be part of an id."""
    fields = [name for name in schema.names if not name.startswith("__")]
    for name in by:
        if name not in fields:
            raise user_error(f"by '{name}': the schema has no such field{did_you_mean(name, fields)}; fields: {', '.join(fields)}")
        kind = schema.field(name).type
        if not any(test(kind) for test in _ID_TYPES):
            raise user_error(f"by '{name}': a {kind} cannot be part of an id; use a string, bool, integer, date or timestamp")


_ID_TYPES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_date, pa.types.is_timestamp,
    lambda kind: pa.types.is_dictionary(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)),
)  # fmt: skip


class _ShardDoFn(beam.DoFn):  # type: ignore[misc]
    """EventBatch -> (shard key, encoded rows of that shard), in their order."""

    def __init__(self, options: DeduplicateOptions, schema: pa.Schema) -> None:
        self._by = options.by
        self._shards = options.shards
        self._schema = schema

    def setup(self) -> None:
        self._codec = BatchCodec(self._schema)
        # The number of shards is part of the key: with another one, ids are in other shards, and the state is not theirs.
        self._keys = [spread_key(shard, lambda salt, shard=shard: b"%d/%d.%d" % (shard, self._shards, salt)) for shard in range(self._shards)]  # type: ignore[misc]

    def process(self, events: pa.RecordBatch) -> Iterator[tuple[bytes, bytes]]:
        if not events.num_rows:
            return
        columns = [events.column(name) for name in self._by]
        hashes = hash_rows(columns, events.num_rows)
        # Rows without an id hash alike, but need not be together.
        hashes = np.where(_have_id(columns), hashes, np.arange(events.num_rows, dtype=np.uint64))
        shards = (hashes % np.uint64(self._shards)).astype(np.uint8)
        order = np.argsort(shards, kind="stable")
        ordered, edges = events.take(pa.array(order)), np.searchsorted(shards[order], np.arange(self._shards + 1))
        for shard, (first, last) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            if first < last:
                yield self._keys[shard], self._codec.encode(ordered.slice(first, last - first))


def _have_id(columns: list[pa.Array]) -> npt.NDArray[np.bool_]:
    """Whether any of the fields has a value."""
    have: npt.NDArray[np.bool_] = np.logical_or.reduce([np.asarray(array.is_valid()) for array in columns])
    return have


@dataclass(eq=False)
class _Shard:
    """The index of a shard, as it was after the bundle that wrote ``generation`` (None: nothing was ever written).

    ``timer`` and ``ids_then``: when the timer will fire, where known, and how many ids there were when that was decided.
    """

    ids: SeenIds
    generation: bytes | None
    changed: bool = False
    timer: int | None = None
    ids_then: int = 0
    used: float = 0.0


class _Shards:
    """Indexes by shard key, of one process: bundles of a shard run in turn, but not always in the same instance of the DoFn.

    One is taken out while it is used. What a failed bundle took is gone.
    """

    def __init__(self) -> None:
        self._free: dict[bytes, _Shard] = {}
        self._lock = threading.Lock()

    def take(self, key: bytes, generation: bytes | None) -> _Shard | None:
        with self._lock:
            found = self._free.pop(key, None)
        return found if found is not None and found.generation == generation else None

    def put_back(self, shards: dict[bytes, _Shard]) -> None:
        now = time.monotonic()
        with self._lock:
            for key, shard in shards.items():
                shard.changed, shard.used = False, now
                self._free[key] = shard
            for key in [key for key, shard in self._free.items() if now - shard.used > UNUSED_SECONDS]:
                del self._free[key]


class _SeenDoFn(beam.DoFn):  # type: ignore[misc]
    """(shard key, encoded rows) in the global window -> EventBatch of the rows that are no duplicates.

    A bundle reads the generation once a shard; the log it only appends to. The timer removes what has expired, when that is half of the log
    or more, so that each id is rewritten a constant number of times; only the timer knows the watermark of the whole job.
    It is set anew only while there are ids, each time to a later event time: at the end of the input it ends by itself.
    """

    LOG = BagStateSpec("log", BytesCoder())
    GENERATION = BagStateSpec("generation", BytesCoder())
    EXPIRY = TimerSpec("expiry", TimeDomain.WATERMARK)

    def __init__(self, options: DeduplicateOptions, schema: pa.Schema, record_folder: str | None, *, forgets: bool = True) -> None:
        self._by = options.by
        self._forgets = forgets
        self._horizon = options.horizon
        self._schema = schema
        self._record_folder = record_folder
        self._shared = Shared()
        self._counts: Counter[int] = Counter()
        self._counters = {
            verdict: Metrics.counter("streamgauge", name)
            for verdict, name in ((DUPLICATE, "duplicates"), (UNJUDGED, "events_unjudged"), (NO_ID, "events_without_id"))
        }

    def setup(self) -> None:
        self._codec = BatchCodec(self._schema)
        self._log_codec = log_codec(", ".join(f"{name} {self._schema.field(name).type}" for name in self._by))
        self._record = JobRecord(self._record_folder)
        self._shards: _Shards = self._shared.acquire(_Shards)

    def start_bundle(self) -> None:
        # What a failed bundle left is not what the state holds.
        self._bundle: dict[bytes, _Shard] = {}
        self._found: Counter[int] = Counter()

    def process(
        self,
        element: tuple[bytes, bytes],
        log: Any = beam.DoFn.StateParam(LOG),
        generation: Any = beam.DoFn.StateParam(GENERATION),
        expiry: Any = beam.DoFn.TimerParam(EXPIRY),
    ) -> Iterator[pa.RecordBatch]:
        key, encoded = element
        shard = self._shard(key, log, generation)
        events = self._codec.decode(encoded)
        columns = [events.column(name) for name in self._by]
        times = event_times(events)
        before = len(shard.ids)
        verdicts = shard.ids.judge(ids_of(columns, events.num_rows), times, _have_id(columns))
        if len(shard.ids) > before:
            self._renew(shard, generation)
            for record in shard.ids.records(self._log_codec, before):
                log.add(record)
            self._set_timer(shard, expiry)
        counts = np.bincount(verdicts, minlength=NO_ID + 1)
        self._found.update({verdict: int(counts[verdict]) for verdict in self._counters})
        if not counts[DUPLICATE]:
            yield events
        elif counts[DUPLICATE] < events.num_rows:
            yield events.filter(pa.array(verdicts != DUPLICATE))

    @on_timer(EXPIRY)
    def expire(
        self,
        key: bytes = beam.DoFn.KeyParam,
        fired: Any = beam.DoFn.TimestampParam,
        log: Any = beam.DoFn.StateParam(LOG),
        generation: Any = beam.DoFn.StateParam(GENERATION),
        expiry: Any = beam.DoFn.TimerParam(EXPIRY),
    ) -> None:
        """The watermark has come to where ids can be forgotten."""
        shard = self._shard(key, log, generation)
        shard.timer = None
        if shard.ids.expire(fired.micros - self._horizon):
            shard.changed = False
            self._renew(shard, generation)
            log.clear()
            for record in shard.ids.records(self._log_codec):
                log.add(record)
        if len(shard.ids):
            self._set_timer(shard, expiry)

    def finish_bundle(self) -> None:
        self._shards.put_back(self._bundle)
        self._bundle = {}
        if self._found.total():
            self._counts += self._found
            for verdict, counter in self._counters.items():
                counter.inc(self._found[verdict])
            values = {"by": self._by, "events": self._counts[DUPLICATE], "unjudged": self._counts[UNJUDGED], "without_id": self._counts[NO_ID]}
            self._record.put_own("duplicates", ",".join(self._by), values, now=True)

    def _shard(self, key: bytes, log: Any, generation: Any) -> _Shard:
        """The index that belongs to the state: that of this bundle, or of the one before, or made from the log."""
        shard = self._bundle.get(key)
        if shard is None:
            stored = next(iter(generation.read()), None)
            shard = self._shards.take(key, stored) or self._restored(stored, log)
            self._bundle[key] = shard
        return shard

    def _restored(self, stored: bytes | None, log: Any) -> _Shard:
        ids = SeenIds(self._horizon, NEVER if stored is None else _GENERATION.unpack(stored)[0])
        if stored is not None:
            for record in log.read():
                ids.load(self._log_codec, record)
        return _Shard(ids, stored)

    def _renew(self, shard: _Shard, generation: Any) -> None:
        """The log changes, for the first time in this bundle or because ids were forgotten."""
        if not shard.changed:
            shard.changed = True
            shard.generation = _GENERATION.pack(shard.ids.forgotten, os.urandom(16))
            generation.clear()
            generation.add(shard.generation)

    def _set_timer(self, shard: _Shard, expiry: Any) -> None:
        """Again when there are twice as many ids: times far ahead must not keep others in memory."""
        if not self._forgets:
            return
        if shard.timer is None or len(shard.ids) >= 2 * shard.ids_then:
            wanted = shard.ids.expiry()
            shard.timer = wanted if shard.timer is None else min(shard.timer, wanted)
            shard.ids_then = len(shard.ids)
            expiry.set(Timestamp(micros=shard.timer))
