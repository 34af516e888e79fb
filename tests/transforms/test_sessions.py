"""Sessions in keyed state: whatever the order, the batches, the failures and the firings, the rows come to what all events say at once.

The oracle is plain Python, a function of the set of the events that did not come too late.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from apache_beam.transforms.window import GlobalWindow, TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamgauge.transforms import session_table, sessions
from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE, BatchType, SchemaMismatch
from streamgauge.transforms.partials import Metric, Partials
from streamgauge.transforms.rows import CUT
from streamgauge.transforms.session_table import NEVER, SESSION_STATE, SessionTable
from streamgauge.transforms.sessions import SessionDoFn
from streamgauge.transforms.stable_ids import own_timers
from streamgauge.transforms.windows.session import Session, SessionOptions
from tests.collect import Collected
from tests.examples import examples

MS = 1000
GAP = 4 * MS
SCHEMA = pa.schema([pa.field(EVENT_TIME, EVENT_TIME_TYPE, nullable=False), ("key", pa.string()), ("value", pa.int64())])
AGGREGATES = {"total": {"sum": "value"}, "least": {"min": "value"}, "n": "count"}
Event = tuple[int, str | None, int | None]
"""Event time in microseconds, dimension, value."""
Key = tuple[str | None, int]
"""Dimension and start of a session."""


def session_metric(aggregates: dict[str, Any] = AGGREGATES) -> Metric:
    options = AggregateOptions(metric="m", window={"tumbling": "1s"}, by=["key"], aggregates=aggregates, shards=1)
    return replace(build_metric(options, SCHEMA), withdraws=True, disjoint=True, extra=SESSION_STATE, window_key="window_start")


def windows(longest: int | None) -> Session:
    return Session(SessionOptions(gap=GAP, max=longest))


def fragment(partials: Partials, session: Session, events: Sequence[Event]) -> pa.RecordBatch:
    """What the first step makes of a batch."""
    columns = [pa.array(column, field.type) for column, field in zip(zip(*events, strict=True), SCHEMA, strict=True)]
    batch = pa.record_batch(columns, schema=SCHEMA)
    groups = partials.group(batch)
    return partials.reduce(batch, groups.split(session.pieces(groups.ids, np.array([time for time, _, _ in events]))))


def chains(events: Sequence[Event]) -> list[list[Event]]:
    made: list[list[Event]] = []
    for event in sorted(events, key=lambda event: (event[1] is None, event[1] or "", event[0])):
        if made and made[-1][-1][1] == event[1] and event[0] - made[-1][-1][0] < GAP:
            made[-1].append(event)
        else:
            made.append([event])
    return made


def oracle(events: Sequence[Event], longest: int | None) -> dict[Key, dict[str, Any]]:
    rows = {}
    for chain in chains(events):
        long = longest is not None and chain[-1][0] + GAP - chain[0][0] > longest
        cells = sorted({event[0] // longest for event in chain}) if long else [None]
        for cell in cells:
            part = [event for event in chain if cell is None or event[0] // longest == cell]
            end = part[-1][0] + GAP if cell is None else min(part[-1][0] + GAP, (cell + 1) * longest)
            values = [value for _, _, value in part if value is not None]
            rows[part[0][1], part[0][0]] = {
                "window_end": end, "total": sum(values) if values else None, "least": min(values, default=None), "n": len(part), "events": len(part),
            }  # fmt: skip
    return rows


class Store:
    """Rows as a sink keeps them: a row replaces one of its key with a revision that is not larger."""

    def __init__(self) -> None:
        self.rows: dict[Key, dict[str, Any]] = {}
        self.written = 0

    def write(self, batch: pa.RecordBatch) -> None:
        seen = set()
        for row in batch.to_pylist():
            self.written += 1
            key, stored = self.key(row), self.rows.get(self.key(row))
            assert key not in seen, "one row a key"
            seen.add(key)
            assert row["metric"] == "m"
            if row["withdrawn"]:
                assert (row["events"], row["total"], row["least"], row["n"], row["final"]) == (0, None, None, None, True)
            if stored is not None:
                assert row["revision"] >= stored["revision"], "the newer row is the one with the higher revision"
                if row["revision"] == stored["revision"]:
                    ignored = {"final", "watermark"}
                    assert {k: v for k, v in row.items() if k not in ignored} == {k: v for k, v in stored.items() if k not in ignored}
            self.rows[key] = row

    @staticmethod
    def key(row: dict[str, Any]) -> Key:
        return row["key"], round(row["window_start"].timestamp() * 1e6)

    def current(self, *, final: bool | None = None) -> dict[Key, dict[str, Any]]:
        found = {}
        for key, row in self.rows.items():
            if not row["withdrawn"] and final in (None, row["final"]):
                values = {name: row[name] for name in ("total", "least", "n", "events")}
                found[key] = {"window_end": round(row["window_end"].timestamp() * 1e6), **values}
        return found


class Bag:
    def __init__(self, values: list[bytes]) -> None:
        self.values = values

    def read(self) -> Iterator[bytes]:
        return iter(list(self.values))

    def add(self, value: bytes) -> None:
        self.values.append(value)

    def clear(self) -> None:
        self.values.clear()


class Timer:
    """The timers of one family, by tag. The one for the end of time is not waited for here."""

    def __init__(self) -> None:
        self.times: dict[str, int] = {}

    @property
    def when(self) -> int | None:
        return min(self.times.values(), default=None)

    def set(self, when: Timestamp, dynamic_timer_tag: str = "") -> None:
        if dynamic_timer_tag != "last":
            self.times[dynamic_timer_tag] = when.micros

    def clear(self) -> None:
        self.times.pop("", None)

    def fire(self) -> int:
        tag = min(self.times, key=self.times.__getitem__)
        return self.times.pop(tag)


class Task:
    """One shard on a runner: state, timers, a watermark, two instances of the DoFn in turn."""

    def __init__(self, longest: int | None, lateness: int = 0, emit_every: int | None = None, forgets: bool = True, earlier: Sequence[pa.Schema] = ()) -> None:
        self.session, self.lateness, self.emits = windows(longest), lateness, emit_every is not None
        made = SessionDoFn(session_metric(), self.session, lateness, emit_every, forgets, earlier)
        self.instances = [pickler.loads(pickler.dumps(made)) for _ in range(2)]
        # Instances of one process share what Beam keeps in a Shared.
        self.instances[1]._shared = self.instances[0]._shared
        for instance in self.instances:
            instance.setup()
        self.partials = Partials(session_metric())
        self.bag, self.end, self.emit = Bag([]), Timer(), Timer()
        self.watermark = NEVER
        self.accepted: list[Event] = []
        self.store = Store()

    def bundle(self, batches: Sequence[Sequence[Event]], *, fails: bool = False) -> None:
        dofn = self._begin()
        for events in batches:
            kept = [event for event in events if event[0] + GAP + self.lateness > self.watermark + MS]
            self.accepted += kept
            if kept:
                encoded = self.partials.codec.encode(fragment(self.partials, self.session, kept))
                assert dofn.process((b"k", encoded), self.bag, self.end, self.emit) is None
        if not fails:
            dofn.finish_bundle()

    def failing_bundle(self, batches: Sequence[Sequence[Event]], fire: bool) -> None:
        """All that it did to state and timers is undone; the process goes on."""
        saved, timers, store = list(self.bag.values), (dict(self.end.times), dict(self.emit.times)), self.store
        accepted, self.store = list(self.accepted), Store()
        self.bundle(batches, fails=True)
        if fire:
            dofn = self._begin()
            list(dofn.passed(b"k", Timestamp(micros=self.watermark), self.bag, self.end, self.emit))
        self.bag, (self.end.times, self.emit.times), self.store, self.accepted = Bag(saved), timers, store, accepted

    def advance(self, watermark: int) -> None:
        self.watermark = max(self.watermark, watermark)
        while self.end.when is not None and self.end.when <= self.watermark:
            fired = self.end.fire()
            assert fired % MS == 0 or fired == GlobalWindow().max_timestamp().micros
            dofn = self._begin()
            self._write(dofn.passed(b"k", Timestamp(micros=fired), self.bag, self.end, self.emit))
            dofn.finish_bundle()

    def period(self) -> None:
        if self.emit.when is not None:
            self.emit.fire()
            dofn = self._begin()
            self._write(dofn.periodic(b"k", self.bag))
            dofn.finish_bundle()

    def _begin(self) -> SessionDoFn:
        self.instances.append(self.instances.pop(0))
        self.instances[0].start_bundle()
        return self.instances[0]

    def _write(self, rows: Iterator[pa.RecordBatch]) -> None:
        for batch in rows:
            self.store.write(batch)


END = GlobalWindow().max_timestamp().micros
TIMES = st.integers(0, 120).map(lambda half: half * MS // 2) | st.sampled_from([GAP - 1, GAP, GAP + 1, 2 * GAP, 10 * MS - 1, 10 * MS, -1, 7 * MS + 1])
EVENTS = st.lists(st.tuples(TIMES, st.none() | st.sampled_from("ab"), st.none() | st.integers(-9, 9)), min_size=1, max_size=12)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("bundle"), st.lists(EVENTS, min_size=1, max_size=3)), st.tuples(st.just("advance"), st.integers(0, 70).map(lambda at: at * MS)),
        st.tuples(st.just("period"), st.none()), st.tuples(st.just("fail"), st.lists(EVENTS, min_size=1, max_size=2)),
    ), max_size=14,
)  # fmt: skip
LONGEST = st.sampled_from([None, GAP, 2 * GAP, 10 * MS])


@settings(deadline=None, max_examples=examples(50))
@example(
    [("bundle", [[(0, None, None), (22_500, None, None)]]), ("advance", 22_000), ("fail", [[(0, None, None)]] * 2), ("bundle", [[(56_000, None, None)]]), ("advance", 26_000)],
    None, 0, None,
)  # fmt: skip
@given(STEPS, LONGEST, st.sampled_from([0, 3 * MS, 100 * MS]), st.sampled_from([None, 0, 1_000_000]))
def test_rows_come_to_what_the_events_say(steps: list[tuple[str, Any]], longest: int | None, lateness: int, emit_every: int | None) -> None:
    task = Task(longest, lateness, emit_every)
    for what, given_ in steps:
        if what == "bundle":
            task.bundle(given_)
        elif what == "fail":
            task.failing_bundle(given_, fire=len(given_) > 1)
        elif what == "advance":
            task.advance(given_)
        else:
            task.period()
        expected = oracle(task.accepted, longest)
        task.advance(task.watermark)
        final = task.store.current(final=True)
        # A late event can make a session end at a border that the watermark has passed already: that is told with the chain's next end.
        delay = 0 if longest is None else 2 * GAP
        closed = {key: row for key, row in expected.items() if row["window_end"] + delay <= task.watermark + MS}
        assert {key: row for key, row in final.items() if key in closed} == closed, "final as soon as the watermark has passed"
        if emit_every is not None and what == "period":
            assert task.store.current() == expected, "all that came is told"
    task.advance(END)
    assert task.store.current(final=True) == oracle(task.accepted, longest)
    assert task.store.current() == task.store.current(final=True)
    assert not task.bag.values and task.end.when is None, "nothing is left"


@settings(deadline=None, max_examples=examples(25))
@given(st.lists(EVENTS, min_size=1, max_size=5), LONGEST, st.lists(st.booleans(), min_size=5, max_size=5))
def test_a_runner_that_fires_too_early_loses_nothing(batches: list[list[Event]], longest: int | None, fires: list[bool]) -> None:
    task = Task(longest, forgets=False, emit_every=0)
    for events, fire in zip(batches, fires, strict=False):
        task.bundle([events])
        if fire:
            # As the direct runner does, which then goes on as if nothing had been.
            task.advance(END)
            task.watermark = NEVER
            assert task.store.current(final=True) == oracle(task.accepted, longest)
    task.advance(END)
    assert task.store.current() == task.store.current(final=True) == oracle(task.accepted, longest)


@settings(deadline=None, max_examples=examples(30))
@given(st.lists(EVENTS, min_size=1, max_size=6), LONGEST, st.integers(0, 10**6))
def test_pieces_are_merged_in_any_order_and_grouping(batches: list[list[Event]], longest: int | None, seed: int) -> None:
    """What is merged is one row for each piece of all the events."""
    session, partials = windows(longest), Partials(session_metric())
    table = SessionTable(partials, session, 0)
    parts = [fragment(partials, session, events) for events in batches]
    chance = random.Random(seed)
    while len(parts) > 1:
        chance.shuffle(parts)
        size = chance.randint(2, len(parts))
        parts = [table.merge(parts[:size]), *parts[size:]]
    events = [event for batch in batches for event in batch]
    at_once = fragment(partials, session, events)
    assert sorted(parts[0].to_pylist(), key=str) == sorted(at_once.to_pylist(), key=str)


def test_a_late_event_that_joins_two_sessions_makes_one_of_them() -> None:
    task = Task(None, lateness=100 * MS)
    task.bundle([[(0, "a", 1), (6 * MS, "a", 2), (0, "b", 5)]])
    task.advance(20 * MS)
    assert set(task.store.current(final=True)) == {("a", 0), ("a", 6 * MS), ("b", 0)}
    written = task.store.written
    task.bundle([[(3 * MS, "a", 4)]])
    task.advance(20 * MS)
    assert task.store.written - written == 2, "only what changed is told"
    gone, joined = task.store.rows["a", 6 * MS], task.store.rows["a", 0]
    assert gone["withdrawn"] and gone["revision"] == 3 and gone["window_end"] == joined["window_end"]
    assert (joined["total"], joined["revision"], joined["final"]) == (7, 3, True)


def test_an_earlier_event_moves_the_start() -> None:
    task = Task(None, lateness=100 * MS, emit_every=0)
    task.bundle([[(6 * MS, "a", 2)]])
    task.period()
    assert not task.store.rows["a", 6 * MS]["final"]
    task.bundle([[(3 * MS, "a", 4)]])
    task.period()
    assert task.store.rows["a", 6 * MS]["withdrawn"]
    assert task.store.current() == {("a", 3 * MS): {"window_end": 10 * MS, "total": 6, "least": 2, "n": 2, "events": 2}}
    written = task.store.written
    task.bundle([[(3 * MS, "b", 4)]])
    task.period()
    assert task.store.written == written + 1, "only what changed is told"


def test_a_start_that_was_withdrawn_can_come_back() -> None:
    """10 ms starts a session; 9 ms takes it over; then the chain is too long, is cut at the border, and 10 ms starts a session again."""
    task = Task(10 * MS, lateness=100 * MS, emit_every=0)
    for time in (10, 9, 13, 16, 19):
        task.bundle([[(time * MS, "a", time)]])
        task.period()
        assert task.store.current() == oracle(task.accepted, 10 * MS)
    assert task.store.rows["a", 10 * MS]["revision"] > 2


def test_nothing_is_forgotten_that_an_event_can_still_change() -> None:
    """The last events that are accepted: one that extends a session told as final, and one before the border at which a long one was cut."""
    task = Task(10 * MS)
    task.bundle([[(0, "a", 1)], [(time * MS, "b", 1) for time in (1, 4, 7, 10, 13)]])
    task.advance(5 * MS)
    assert ("a", 0) in task.store.current(final=True)
    task.bundle([[(3 * MS, "a", 2)]])
    task.advance(11 * MS)
    assert task.store.current(final=True)["b", MS]["n"] == 3
    task.bundle([[(9 * MS, "b", 2)]])
    task.advance(END)
    assert len(task.accepted) == 8
    assert task.store.current(final=True) == oracle(task.accepted, 10 * MS)
    assert task.store.rows["b", MS]["n"] == 4


def test_after_a_failure_no_session_ends_later_than_it_would_have() -> None:
    """What the process knew of the timer is gone, and the timer must not be put off."""
    task = Task(None)
    task.bundle([[(0, "a", 1)]])
    task.failing_bundle([[(2 * MS, "b", 1)]], fire=False)
    task.bundle([[(3 * MS, "b", 1)]])
    task.advance(3 * MS)
    assert set(task.store.current(final=True)) == {("a", 0)}


def test_state_of_an_endless_session_does_not_grow() -> None:
    task = Task(10 * MS, lateness=5 * MS)
    for step in range(200):
        task.bundle([[(step * 2 * MS, "a", 1)]])
        task.advance(step * 2 * MS)
    rows = task.instances[0]._table.decode(list(task.bag.read())).rows.num_rows
    assert rows < 16
    task.advance(END)
    assert task.store.current(final=True) == oracle(task.accepted, 10 * MS)
    assert max(row["revision"] for row in task.store.rows.values()) < CUT + 6, "with what is in a cell, not with the session"


def test_large_states_are_told_an_eighth_of_a_gap_late_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_table, "EXACT_ROWS", 4)
    monkeypatch.setattr(session_table, "LARGE_ROWS", 8)
    monkeypatch.setattr(session_table, "MOST_SHARE", 2)
    task = Task(None)
    task.bundle([[(number * 100, f"k{number}", number) for number in range(100)]])
    fired = 0
    for watermark in range(0, 20 * MS, MS):
        before = task.store.written
        task.advance(watermark)
        fired += task.store.written > before
        due = {key for key, row in oracle(task.accepted, None).items() if row["window_end"] + GAP // 2 <= watermark + MS}
        assert due <= set(task.store.current(final=True))
    assert fired < 10
    assert task.store.current(final=True) == oracle(task.accepted, None)


def test_appended_records_are_merged_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "COMPACT_AFTER", 4 * sessions.RECORD_COST)
    task = Task(None)
    for step in range(200):
        task.bundle([[(step * MS, "a", 1)]])
        assert len(task.bag.values) <= 5
    task.advance(END)
    assert task.store.current(final=True) == oracle(task.accepted, None)


def test_state_of_an_earlier_version_is_read() -> None:
    """Also that in tables: what is needed is there, in another order, and one column more."""
    old = session_metric({"n": "count", "most": {"max": "value"}, "least": {"min": "value"}, "total": {"sum": "value"}})
    partials, session = Partials(old), windows(None)
    table = SessionTable(partials, session, 0)
    task = Task(None, lateness=100 * MS, earlier=[old.partial_schema])
    first: list[Event] = [(0, "a", 3), (0, "b", 4), (GAP - 1, "b", 1), (9 * MS, "a", 1)]
    told = table.tell(table.decode([table.fragment(partials.codec.encode(fragment(partials, session, first)))]), 6 * MS, early=False, forget=False)
    assert told.results is not None and told.results.num_rows == 1
    for record in [*table.encode(told.table), table.fragment(partials.codec.encode(fragment(partials, session, [(1, "a", 5)])))]:
        task.bag.add(record)
    task.accepted += [*first, (1, "a", 5)]
    task.bundle([[(2, "a", None)]])
    task.advance(END)
    assert task.store.current(final=True) == oracle(task.accepted, None)
    with pytest.raises(SchemaMismatch, match="the job's fields or aggregates changed"):
        SessionTable(Partials(session_metric()), session, 0).decode(table.encode(told.table))


# On Beam's runners


def run(stream: Any, runner: Any, dofn: SessionDoFn, *flags: str) -> list[pa.RecordBatch]:
    collected = Collected()
    with beam.Pipeline(runner=runner, options=PipelineOptions(flags)) as pipeline:
        rows = pipeline | stream | beam.Map(lambda element: element).with_output_types(tuple[bytes, bytes]) | beam.ParDo(dofn)
        rows.element_type = BatchType(session_metric().result_schema)
        _ = rows | collected
    return collected.batches


def element(events: Sequence[Event], longest: int | None = None) -> tuple[bytes, bytes]:
    partials = Partials(session_metric())
    return b"k", partials.codec.encode(fragment(partials, windows(longest), events))


def step(longest: int | None, lateness: int, emit_every: int | None, forgets: bool = True) -> SessionDoFn:
    made: SessionDoFn = own_timers(SessionDoFn, "step")(session_metric(), windows(longest), lateness, emit_every, forgets)
    return made


def test_on_a_stream() -> None:
    """On time; then a late event that joins two sessions; then one that is cut."""
    longest = 20 * MS
    stream = test_stream.TestStream()
    batches: list[tuple[int, list[Event]]] = [
        (0, [(6 * MS, "a", 2), (0, "a", 1), (1, "b", 5)]), (10 * MS, [(9 * MS, "b", 1)]), (14 * MS, [(3 * MS, "a", 4)]),
        (30 * MS, [(time * MS, "c", 1) for time in range(30, 60, 3)]), (70 * MS, [(60 * MS, "c", 2)]),
    ]  # fmt: skip
    for watermark, events in batches:
        stream = stream.advance_watermark_to(Timestamp(micros=watermark)).add_elements([TimestampedValue(element(events, longest), Timestamp(micros=watermark))])
    rows = run(stream.advance_watermark_to_infinity(), BundleBasedDirectRunner(), step(longest, 100 * MS, None), "--streaming")
    store = Store()
    for batch in rows:
        store.write(batch)
    events = [event for _, some in batches for event in some]
    assert store.current(final=True) == store.current() == oracle(events, longest)
    assert [key for key, row in store.rows.items() if row["withdrawn"]] == [("a", 6 * MS)]
    assert len(store.rows) == len(oracle(events, longest)) + 1
    assert all(row["watermark"] is None or row["window_end"] <= row["watermark"] for row in store.rows.values() if row["final"])


def test_early_results_on_a_stream() -> None:
    stream = test_stream.TestStream().advance_watermark_to(Timestamp(0))
    batches: list[list[Event]] = [[(6 * MS, "a", 2), (0, "b", 1)], [(3 * MS, "a", 4)]]
    for events in batches:
        stream = stream.add_elements([TimestampedValue(element(events), Timestamp(0))]).advance_processing_time(10**10)
    rows = run(stream.advance_watermark_to_infinity(), BundleBasedDirectRunner(), step(None, 0, 1_000_000), "--streaming")
    told = [[(row["key"], Store.key(row)[1] // MS, row["events"], row["revision"], row["final"], row["withdrawn"]) for row in batch.to_pylist()] for batch in rows]
    assert sorted(told[0]) == [("a", 6, 1, 1, False, False), ("b", 0, 1, 1, False, False)]
    assert sorted(told[1]) == [("a", 3, 2, 2, False, False), ("a", 6, 0, 2, True, True)]
    assert sorted(row for batch in told[2:] for row in batch) == [("a", 3, 2, 2, True, False), ("b", 0, 1, 1, True, False)]


@example([[(0, "a", 1)], [(3 * MS, "a", 1)]])
@settings(deadline=None, max_examples=examples(4))
@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_on_the_direct_runner(batches: list[list[Event]]) -> None:
    elements = [element(events) for events in batches]
    rows = run(beam.Create(elements, reshuffle=False), FnApiRunner(), step(None, 0, None, forgets=False))
    store = Store()
    for batch in rows:
        store.write(batch)
    assert store.current(final=True) == oracle([event for events in batches for event in events], None)
