"""Deduplicate: what goes on, what is dropped, what survives failures. The oracle is plain Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing import test_stream
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamgauge.transforms import Deduplicate, ReadEvents, deduplicate, read, seen_ids
from streamgauge.transforms.batch import (
    EVENT_TIME,
    EVENT_TIME_TYPE,
    POSITION,
    SPLIT,
    SPLIT_TYPE,
    BatchCoder,
    BatchType,
    disorder_of,
    with_disorder,
)
from streamgauge.transforms.deduplicate import DeduplicateOptions, _SeenDoFn, _ShardDoFn
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.seen_ids import DUPLICATE, NEW, NO_ID, UNJUDGED, SeenIds, ids_of, log_codec
from tests.collect import Collected
from tests.examples import examples
from tests.running import Command, stored, until

H = 100_000
"""The horizon of these tests, in microseconds."""

FIELDS = with_disorder(
    pa.schema([
        pa.field(EVENT_TIME, EVENT_TIME_TYPE, nullable=False), pa.field(SPLIT, SPLIT_TYPE, nullable=False), pa.field(POSITION, pa.int64(), nullable=False),
        pa.field("id", pa.string()), pa.field("n", pa.int64()),
    ]), 5_000,
)  # fmt: skip
Event = tuple[int, str | None, int | None]
"""Event time in microseconds, and the two fields of the id."""

IDS = st.none() | st.sampled_from(["", "a", "b", "ab", "ü", "e\u0301", "é", "\0", "\U0001f600"])
TIMES = st.integers(-3 * H, 3 * H) | st.sampled_from([0, H, H + 1, -H, -H - 1, 2 * H, 2 * H + 1, 8 * (H + 1), 8 * (H + 1) - 1])
EVENTS = st.lists(st.tuples(TIMES, IDS, st.none() | st.sampled_from([0, 1, -1, 2**63 - 1])), max_size=40)


def batch(events: Sequence[Event], first: int = 0) -> pa.RecordBatch:
    """``first``: the position of the first."""
    columns = [
        pa.array([time for time, _, _ in events], pa.int64()).cast(EVENT_TIME_TYPE),
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(events), np.int8)), pa.array(["s"])), pa.array(range(first, first + len(events)), pa.int64()),
        pa.array([name for _, name, _ in events], pa.string()), pa.array([number for _, _, number in events], pa.int64()),
    ]
    return pa.record_batch(columns, schema=FIELDS)


def batches(events: Sequence[Event], cuts: Sequence[int]) -> list[pa.RecordBatch]:
    edges = sorted({0, len(events), *(cut % (len(events) + 1) for cut in cuts)})
    return [batch(events[first:last], first) for first, last in pairwise(edges)]


def positions(found: Sequence[pa.RecordBatch]) -> list[int]:
    return [position for part in found for position in part.column(POSITION).to_pylist()]


def first_ones(events: Sequence[Event], horizon: int = H) -> list[int]:
    """The oracle: the events that go on, by index, when none is forgotten."""
    kept: list[int] = []
    for index, (time, *name) in enumerate(events):
        same = [other for other in kept if list(events[other][1:]) == name and abs(events[other][0] - time) <= horizon]
        if not same or name == [None, None]:
            kept.append(index)
    return kept


# The DoFns, with a state that a failed bundle leaves as it was


class FakeBag:
    def __init__(self, values: list[bytes]) -> None:
        self._values = values
        self.reads = 0

    def read(self) -> Iterator[bytes]:
        self.reads += 1
        return iter(list(self._values))

    def add(self, value: bytes) -> None:
        self._values.append(value)

    def clear(self) -> None:
        self._values.clear()


class FakeTimer:
    def __init__(self, timers: dict[bytes, int], key: bytes) -> None:
        self._timers, self._key = timers, key

    def set(self, when: Timestamp) -> None:
        self._timers[self._key] = when.micros


class Failed(Exception):
    pass


class Task:
    """One task of a runner: committed state and timers by key, and an instance of the DoFn (or two, in turn)."""

    def __init__(self, by: Sequence[str] = ("id", "n"), horizon: int = H, shards: int = 3, instances: int = 1, folder: Path | None = None) -> None:
        options = DeduplicateOptions(by=list(by), horizon=horizon, shards=shards)
        self.sharding = _ShardDoFn(options, FIELDS)
        self.sharding.setup()
        made = _SeenDoFn(options, FIELDS, str(folder) if folder else None)
        self.instances = [_copy(made) for _ in range(instances)]
        self.logs: dict[bytes, list[bytes]] = {}
        self.generations: dict[bytes, list[bytes]] = {}
        self.timers: dict[bytes, int] = {}
        self.log_reads = 0

    def saved(self) -> Any:
        return [{key: list(values) for key, values in state.items()} for state in (self.logs, self.generations)], dict(self.timers)

    def restore(self, saved: Any) -> None:
        (logs, generations), self.timers = saved[0], dict(saved[1])
        self.logs, self.generations = ({key: list(values) for key, values in state.items()} for state in (logs, generations))

    @contextmanager
    def bundle(self) -> Iterator[Any]:
        """Gives (call, timer call); what happened is undone when the block raises Failed."""
        before = self.saved()
        dofn = self.instances[0]
        self.instances.append(self.instances.pop(0))
        handles: dict[bytes, dict[str, Any]] = {}

        def state(key: bytes) -> dict[str, Any]:
            if key not in handles:
                log, generation = FakeBag(self.logs.setdefault(key, [])), FakeBag(self.generations.setdefault(key, []))
                handles[key] = {"log": log, "generation": generation, "expiry": FakeTimer(self.timers, key)}
            return handles[key]

        dofn.start_bundle()
        try:
            yield dofn, state
            dofn.finish_bundle()
        except Failed:
            self.restore(before)
        self.log_reads += sum(handle["log"].reads for handle in handles.values())

    def run(self, events: pa.RecordBatch, fails: bool = False) -> list[int]:
        """A bundle of one batch: the positions that went on."""
        found: list[pa.RecordBatch] = []
        with self.bundle() as (dofn, state):
            for key, encoded in self.sharding.process(events):
                found += dofn.process((key, encoded), **state(key))
            if fails:
                raise Failed
        assert all(part.num_rows and part.schema.equals(FIELDS) and disorder_of(part.schema) == 5_000 for part in found)
        return [] if fails else positions(found)

    def advance(self, watermark: int) -> None:
        """Fires timers, also those that a firing sets, until none is left before the watermark."""
        for _ in range(100):
            due = {key: when for key, when in self.timers.items() if when <= watermark}
            if not due:
                return
            with self.bundle() as (dofn, state):
                for key, when in due.items():
                    del self.timers[key]
                    dofn.expire(key=key, fired=Timestamp(micros=when), **state(key))
        pytest.fail("the timers never end")

    @property
    def remembered(self) -> int:
        codec = self.instances[0]._log_codec
        return sum(codec.decode(record).num_rows for log in self.logs.values() for record in log)


def _copy(dofn: _SeenDoFn) -> _SeenDoFn:
    """As a runner makes an instance."""
    made: _SeenDoFn = pickler.loads(pickler.dumps(dofn))
    made.setup()
    return made


@settings(deadline=None, max_examples=examples(60))
@given(EVENTS, st.lists(st.integers(0, 100), max_size=6), st.integers(1, 5), st.sampled_from([("id", "n"), ("id",), ("n",)]), st.sampled_from([H, 0, 1, 10**14]))
def test_the_first_of_each_id_goes_on(events: list[Event], cuts: list[int], shards: int, by: tuple[str, ...], horizon: int) -> None:
    task = Task(by=by, shards=shards, horizon=horizon)
    found = [position for part in batches(events, cuts) for position in task.run(part)]
    only = [(time, name if "id" in by else None, number if "n" in by else None) for time, name, number in events]
    assert sorted(found) == first_ones(only, horizon)
    assert task.remembered == sum(1 for index in found if only[index][1:] != (None, None))


@settings(deadline=None, max_examples=examples(40))
@given(EVENTS, st.lists(st.integers(0, 100), max_size=8), st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(1, 3))
def test_failures_and_older_checkpoints_lose_nothing(events: list[Event], cuts: list[int], happens: list[int], instances: int) -> None:
    """0, 1: the bundle succeeds. 2: it fails and is tried again. 3: a checkpoint. 4: everything since the checkpoint is done again."""
    task, parts = Task(instances=instances), batches(events, cuts)
    checkpoint: tuple[Any, int, int] = (task.saved(), 0, 0)
    found: list[int] = []
    step, place = 0, 0
    while place < len(parts):
        what = happens[step] if step < len(happens) else 0
        step += 1
        if what == 2:
            task.run(parts[place], fails=True)
            continue
        if what == 3:
            checkpoint = (task.saved(), place, len(found))
        if what == 4:
            task.restore(checkpoint[0])
            place, found = checkpoint[1], found[: checkpoint[2]]
            continue
        found += task.run(parts[place])
        place += 1
    assert sorted(found) == first_ones(events)


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(st.tuples(TIMES.map(lambda time: time % (2 * H)), IDS, st.just(0)), max_size=40), st.lists(st.integers(0, 100), max_size=8), st.integers(0, H), st.booleans())
def test_what_is_not_behind_the_watermark_is_judged_exactly_though_ids_expire(events: list[Event], cuts: list[int], disorder: int, few: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen_ids, "FEW_IDS", 3 if few else 1_000)
        patch.setattr(seen_ids, "CHUNK_ROWS", 2)
        # Event time goes on, and the watermark with it.
        events = [(time + index * H // 3, name, number) for index, (time, name, number) in enumerate(events)]
        task, watermark, kept = Task(), seen_ids.NEVER, []
        for part in batches(events, cuts):
            went_on = set(task.run(part))
            for index in part.column(POSITION).to_pylist():
                time, *name = events[index]
                partners = [other for other in kept if list(events[other][1:]) == name and abs(events[other][0] - time) <= H]
                if index not in went_on:
                    assert partners, "a lost event"
                else:
                    assert time < watermark or not partners, "a duplicate that went on"
                    kept.append(index)
            watermark = max(watermark, *(events[index][0] - disorder for index in part.column(POSITION).to_pylist()))
            task.advance(watermark)
        task.advance(100 * H)
    assert (task.remembered, task.timers) == (0, {}), "idle shards remember nothing"


def test_an_event_that_is_too_old_to_tell_goes_on_and_is_counted(tmp_path: Path) -> None:
    task = Task(folder=tmp_path)
    assert task.run(batch([(0, "a", 0), (0, "b", 0), (H, "a", 0), (H, None, None), (H, None, None)])) == unordered(task, [0, 1, 3, 4])
    task.advance(H)  # ids at 0 may still have a duplicate at H
    assert task.run(batch([(H, "b", 0)])) == []
    task.advance(2 * H)
    assert task.run(batch([(0, "a", 0), (0, "a", 0), (10 * H, "a", 0), (10 * H, "b", 0)], 10)) == unordered(task, [10, 11, 12, 13])
    (values,) = JobRecord(tmp_path).all("duplicates")
    assert {name: value for name, value in values.items() if name != "name"} == {"by": ["id", "n"], "events": 2, "unjudged": 2, "without_id": 2}


def unordered(task: Task, wanted: list[int]) -> Any:
    """Equal to a list of these, in any order: shards have none between them."""

    class Same(list[int]):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, list) and sorted(other) == sorted(self)

        __hash__ = None  # type: ignore[assignment]

    return Same(wanted)


def test_an_index_is_used_only_with_the_state_that_it_was_made_with() -> None:
    task = Task(shards=1)
    task.run(batch([(0, "a", 0)]))
    task.run(batch([(0, "a", 0), (0, "b", 0)]))
    assert task.log_reads == 0, "the index is at hand"
    older = task.saved()
    task.run(batch([(0, "c", 0)]))
    task.restore(older)
    assert task.run(batch([(0, "a", 0), (0, "c", 0), (0, "b", 0)])) == [1]
    assert task.log_reads == 1
    task.run(batch([(0, "d", 0)]), fails=True)
    assert task.run(batch([(0, "d", 0), (0, "a", 0)])) == [0]
    assert task.log_reads == 2


def test_bundles_of_other_instances_share_the_index() -> None:
    task = Task(shards=1, instances=3)
    for index in range(9):
        assert task.run(batch([(0, f"{index}", 0), (0, "a", 0)], 2 * index)) == ([0, 1] if index == 0 else [2 * index])
    assert task.log_reads == 0


def test_an_index_that_is_not_used_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task()
    task.run(batch([(0, "a", 0)]))
    monkeypatch.setattr(deduplicate, "UNUSED_SECONDS", -1.0)
    task.run(batch([(0, "a", 0)]))
    assert task.run(batch([(0, "a", 0)])) == []
    assert task.log_reads == 1


def test_a_log_of_other_ids_is_not_read() -> None:
    one, other = Task(by=("id",), shards=1), Task(by=("n",), shards=1)
    one.run(batch([(0, "a", 0)]))
    other.restore(one.saved())
    with pytest.raises(ValueError, match="start it anew with --fresh"):
        other.run(batch([(0, "a", 0)]))


def test_what_is_forgotten_is_known_after_a_failure_too() -> None:
    """A bundle that adds ids and then forgets others: both are in what it leaves."""
    task = Task(shards=1)
    task.run(batch([(0, "a", 0)]))
    ((key, when),) = task.timers.items()
    with task.bundle() as (dofn, state):
        for part in task.sharding.process(batch([(H, "b", 0)])):
            list(dofn.process(part, **state(key)))
        dofn.expire(key=key, fired=Timestamp(micros=when), **state(key))
    shard = _copy(task.instances[0])._restored(task.generations[key][0], FakeBag(task.logs[key]))
    assert (len(shard.ids), shard.ids.forgotten) == (1, when - H)


def test_an_id_far_ahead_does_not_keep_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_ids, "FEW_IDS", 4)
    task = Task(shards=1)
    task.run(batch([(10**6 * H, "far", 0)]))
    for index in range(200):
        task.run(batch([(index * H // 10, f"{index}", 0)]))
        task.advance(index * H // 10)
        assert task.remembered <= 1 + 2 * 10 + 10
    assert task.run(batch([(10**6 * H, "far", 0)])) == []


def test_the_log_is_rewritten_a_constant_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_ids, "FEW_IDS", 10)
    task, written, before = Task(shards=1), 0, 0
    for index in range(300):
        task.run(batch([(index * H // 20 + k, f"{index}-{k}", 0) for k in range(5)]))
        log = next(iter(task.logs.values()))
        before = len(log)
        task.advance(index * H // 20)
        if len(log := next(iter(task.logs.values()))) < before:
            written += task.remembered
        assert task.remembered <= 5 * (2 * 20 + 20), "at most twice what cannot expire yet, and what came since"
    assert 0 < written <= 3 * 300 * 5


# The index


@settings(deadline=None, max_examples=examples(40))
@given(EVENTS, st.sampled_from([H, 0]))
@example([(0, "a", 0), (0, "b", 0), (0, "a", 0), (0, "a", 1)], H)
def test_ids_whose_hashes_collide_are_still_told_apart(events: list[Event], horizon: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen_ids, "hashes_of", lambda ids: np.zeros(len(ids.ends) - 1, np.uint64))
        task = Task(horizon=horizon, shards=1)
        assert sorted(task.run(batch(events))) == first_ones(events, horizon)


KINDS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.string(), ["", "a", "b", "é"]), (pa.large_string(), ["x", "xy"]), (pa.dictionary(pa.int8(), pa.string()), ["p", "q"]), (pa.bool_(), [True, False]),
    (pa.int8(), [-128, 0, 127]), (pa.uint64(), [0, 2**63, 2**64 - 1]), (pa.date32(), [date(1, 1, 1), date(2013, 1, 1)]),
    (pa.timestamp("ns"), [datetime(2013, 1, 1), datetime(1969, 1, 1)]), (pa.timestamp("s", "UTC"), [datetime(2013, 1, 1, tzinfo=timezone.utc)]),
]  # fmt: skip


@settings(deadline=None)
@given(st.data())
def test_different_ids_are_different_bytes(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    rows = data.draw(st.lists(st.tuples(*(st.none() | st.sampled_from(values) for _, values in kinds)), max_size=20))
    skipped = data.draw(st.integers(0, len(rows)))
    arrays = [pa.array(column, kind).slice(skipped) for (kind, _), column in zip(kinds, zip(*rows, strict=True) if rows else [()] * len(kinds), strict=True)]
    ends, bytes_ = ids_of(arrays, len(rows) - skipped)
    made = [bytes(bytes_[first:last]) for first, last in pairwise(ends.tolist())]
    for i, one in enumerate(made):
        for j, other in enumerate(made):
            assert (one == other) == (rows[skipped + i] == rows[skipped + j])


def test_one_id_that_comes_often_makes_no_long_search() -> None:
    """A hundred thousand entries of one id: with a search through all of them this would take minutes."""
    seen, rows = SeenIds(horizon=10), 100_000
    ids = ids_of([pa.array(["a"] * rows)], rows)
    verdicts = seen.judge(ids, np.arange(rows) * 6, np.ones(rows, np.bool_))
    assert verdicts.tolist() == [NEW, DUPLICATE] * (rows // 2)
    assert seen.expire(rows * 3) and len(seen) == rows // 4
    assert (seen.judge(ids, np.arange(rows) * 6, np.ones(rows, np.bool_)) == UNJUDGED).sum() == rows // 2 - 1
    assert set(seen.judge(ids, np.arange(rows) * 6, np.zeros(rows, np.bool_)).tolist()) == {NO_ID}


@settings(deadline=None, max_examples=examples(30))
@given(EVENTS, st.integers(-2 * H, 2 * H))
def test_an_index_from_its_records_is_the_same(events: list[Event], before: int) -> None:
    def judged(seen: SeenIds) -> list[int]:
        ids = ids_of([pa.array([name or "" for _, name, _ in events])], len(events))
        return seen.judge(ids, np.array([time for time, _, _ in events], np.int64), np.ones(len(events), np.bool_)).tolist()

    codec, seen = log_codec("id"), SeenIds(H)
    judged(seen)
    seen.expire(before)
    loaded = SeenIds(H, before)
    for record in seen.records(codec):
        loaded.load(codec, record)
    assert len(loaded) == len(seen)
    assert judged(loaded) == judged(seen)


BOUNDS = """
import numba
import numpy as np
import pyarrow as pa
from streamgauge.transforms.seen_ids import SeenIds, ids_of, log_codec

assert numba.config.BOUNDSCHECK
chance, seen, codec = np.random.default_rng(7), SeenIds(1000), log_codec("id")
for rows in [1, 0, 3, 64, 1000, 31, 5000]:
    texts = pa.array([None if n % 7 == 0 else "x" * (n % 50) + str(n) for n in chance.integers(0, 3000, rows).tolist()], pa.string())
    ids = ids_of([texts, pa.array(chance.integers(-2, 2, rows))], rows)
    seen.judge(ids, np.sort(chance.integers(-10**6, 10**6, rows)), np.asarray(texts.is_valid()))
    loaded = SeenIds(1000)
    for record in seen.records(codec):
        loaded.load(codec, record)
    seen.expire(-10**6 + rows * 100)
assert len(seen) > 100
"""


@pytest.mark.integration
def test_no_kernel_leaves_its_memory(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", BOUNDS], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


# In a pipeline


@settings(deadline=None, max_examples=examples(12))
@given(EVENTS.filter(bool), st.lists(st.integers(0, 100), max_size=5), st.integers(1, 4))
def test_in_a_pipeline_exactly_one_goes_on(events: list[Event], cuts: list[int], shards: int) -> None:
    elements = [TimestampedValue(part, MIN_TIMESTAMP) for part in (batch([]), *batches(events, cuts))]
    collected = Collected()
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        parts = pipeline | beam.Create(range(len(elements)), reshuffle=False) | beam.Map(elements.__getitem__)
        parts.element_type = BatchType(FIELDS)
        _ = parts | Deduplicate(by=["id", "n"], horizon=H, shards=shards) | collected
    kept = positions(collected.batches)
    assert sorted(set(kept)) == sorted(kept)
    for index, event in enumerate(events):
        partners = [other for other in kept if events[other][1:] == event[1:] != (None, None) and abs(events[other][0] - event[0]) <= H]
        assert partners == [index] if index in kept and event[1:] != (None, None) else partners or index in kept


def test_on_the_direct_runner_nothing_is_forgotten_between_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch a bundle; that runner fires event-time timers whenever the reader pauses, long before their time."""
    monkeypatch.setattr(read, "MAX_BATCH_EVENTS", 100)
    monkeypatch.setattr(read, "CALL_SECONDS", 0.0)
    (tmp_path / "in.ndjson").write_text("".join(f'{{"ts":{i % 500 * 1000},"id":"i{i % 500}"}}\n' for i in range(1000)))
    collected = Collected()
    source = {"from": {"files": str(tmp_path / "in.ndjson")}}
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([f"--record_folder={tmp_path / 'record'}"])) as pipeline:
        events = pipeline | ReadEvents(**source, format={"json": {"schema": {"ts": "timestamp[ms]", "id": "string"}}}, time={"field": "ts", "disorder": "0s"})
        _ = events | Deduplicate(by=["id"], horizon="1h") | collected
    assert sorted(row["id"] for row in collected.rows) == sorted(f"i{i}" for i in range(500))
    assert sum(values["events"] for values in JobRecord(tmp_path / "record").all("duplicates")) == 500


def test_ids_expire_as_the_watermark_passes(tmp_path: Path) -> None:
    """The same id again and again: within the horizon dropped, beyond it not; too late to tell: goes on."""
    stream = test_stream.TestStream(coder=BatchCoder(FIELDS))
    steps = [(0, 0), (0, H), (H, H), (H, H + 1), (3 * H, 3 * H), (3 * H, 0), (3 * H, 3 * H), (9 * H, 9 * H)]
    for position, (watermark, time) in enumerate(steps):
        if position == 0 or watermark > steps[position - 1][0]:
            stream = stream.advance_watermark_to(Timestamp(micros=watermark))
        stream = stream.add_elements([TimestampedValue(batch([(time, "a", 0)], position), Timestamp(micros=watermark))])
    collected = Collected()
    with beam.Pipeline(runner=BundleBasedDirectRunner(), options=PipelineOptions(["--streaming", f"--record_folder={tmp_path}"])) as pipeline:
        parts = pipeline | stream.advance_watermark_to_infinity()
        parts.element_type = BatchType(FIELDS)
        _ = parts | Deduplicate(by=["id"], horizon=H, shards=1) | collected
    assert positions(collected.batches) == [0, 3, 4, 5, 7]
    values = JobRecord(tmp_path).all("duplicates")
    assert (sum(value["events"] for value in values), sum(value["unjudged"] for value in values)) == (3, 1)


def test_shards_keep_order_and_share_the_rows_without_id() -> None:
    sharding = _ShardDoFn(DeduplicateOptions(by=["id"], shards=4), FIELDS)
    sharding.setup()
    coder = BatchCoder(FIELDS)
    events: list[Event] = [(0, None if index % 3 == 0 else f"{index % 20}", 0) for index in range(400)]
    parts = {key: coder.decode(encoded) for key, encoded in sharding.process(batch(events))}
    assert len(parts) == 4
    assert all(list(positions([part])) == sorted(positions([part])) for part in parts.values())
    assert all(part.column("id").null_count >= 30 for part in parts.values())
    assert sorted(positions(list(parts.values()))) == list(range(400))
    by_id = [set(part.column("id").drop_null().to_pylist()) for part in parts.values()]
    assert sum(len(ids) for ids in by_id) == len(set().union(*by_id)) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ["idd"]}, "by 'idd': the schema has no such field - did you mean 'id'\\?; fields: id, n, x"),
        ({"by": ["x"]}, "by 'x': a double cannot be part of an id"),
        ({"by": ["id", "id"]}, "'id' is there twice"),
        ({"by": ["__position"]}, "no such field"),
        ({"by": []}, "at least 1 item"),
        ({}, "by\n"),
        ({"by": ["id"], "horizon": "soon"}, "is not a duration"),
        ({"by": ["id"], "horizon": "4000d"}, "from 0s to 3660d"),
        ({"by": ["id"], "horizon": -1}, "from 0s to 3660d"),
        ({"by": ["id"], "shards": 129}, "less than or equal to 128"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(options: dict[str, Any], message: str) -> None:
    pipeline = beam.Pipeline(runner=FnApiRunner())
    parts = pipeline | beam.Create([1])
    parts.element_type = BatchType(FIELDS.append(pa.field("x", pa.float64())))
    with pytest.raises(ValueError, match=message):
        _ = parts | Deduplicate(**options)


def test_other_elements_are_refused() -> None:
    with pytest.raises(TypeError, match="takes EventBatches"):
        _ = beam.Pipeline(runner=FnApiRunner()) | beam.Create([1]) | Deduplicate(by=["id"])


# On Flink

JOB = """
pipeline:
  transforms:
    - type: ReadEvents
      config:
        from: {files: {path: "in/*.ndjson", follow: true}}
        format: {json: {schema: {ts: "timestamp[ms]", id: int64}}}
        time: {field: ts, disorder: 1s}
    - {type: Deduplicate, input: ReadEvents, config: {by: [id], horizon: 2s, shards: 3}}
    - {type: AggregateWindows, input: Deduplicate, config: {metric: m, window: {tumbling: 1s}, aggregates: {n: count, total: {sum: id}}}}
    - {type: WriteResults, input: AggregateWindows, config: {to: {sqlite: {path: m.db, table: m}}}}
"""
START_MS = 1_767_225_600_000


@pytest.mark.integration
def test_on_flink_each_event_counts_once_whenever_the_job_is_killed(tmp_path: Path) -> None:
    """Every third event comes again after 500, in another split; the ids of the first seconds expire while the last are read."""
    (tmp_path / "in").mkdir()
    (tmp_path / "m.yaml").write_text(JOB)

    def feed(first: int, end: int) -> None:
        with (tmp_path / "in/a.ndjson").open("a") as one, (tmp_path / "in/b.ndjson").open("a") as other:
            for i in range(first, end):
                one.write(f'{{"ts":{START_MS + i},"id":{i}}}\n')
                if i >= 500 and i % 3 == 0:
                    other.write(f'{{"ts":{START_MS + i - 500},"id":{i - 500}}}\n')

    def stored_rows() -> list[tuple[Any, ...]]:
        return stored(tmp_path / "m.db", "SELECT n, total FROM m WHERE final ORDER BY window_start")

    def checkpointed() -> bool:
        return any((tmp_path / ".streamgauge/jobs/m/flink/checkpoints").glob("*/chk-*/_metadata"))

    record = JobRecord(tmp_path / ".streamgauge/jobs/m/record")

    def all_read() -> bool:
        sizes = {f"in/{path.name}": path.stat().st_size for path in (tmp_path / "in").glob("*")}
        return {values["split"]: values["position"] for values in record.all("splits")} == sizes

    for part in range(3):
        feed(part * 8_000, (part + 1) * 8_000)
        with Command(tmp_path, "run", "m.yaml") as command:
            until(lambda part=part: len(stored_rows()) >= part * 8 + 5 and checkpointed(), "windows are closed", of=command)
            if part < 2:
                command.kill_group()
                command.wait(30)
                continue
            until(all_read, "all is read", of=command)
            record.ask_to_drain()
            assert command.wait() == 0, command.err
    assert sum(values["events"] for values in record.all("duplicates")) > 1_000
    assert stored_rows() == [(1_000, sum(range(first, first + 1_000))) for first in range(0, 24_000, 1_000)]
