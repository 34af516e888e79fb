"""Another number of shards for slices to come: of each slice and key everything is in one shard, however often a job goes on with another number."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.reduce import SlicePartialDoFn
from streamgauge.transforms.sharding import Reach, Sharding, begin_from, reached
from tests.examples import examples
from tests.transforms.streamed import FIELDS, Event, batch_of

SECOND = 1_000_000
STEP = "Metrics/Aggregate"

EVENTS = st.lists(st.tuples(st.integers(0, 30 * SECOND), st.sampled_from(["a", "b", "c", None, "é"]), st.integers(0, 9)), min_size=1, max_size=8)
RUN = st.tuples(st.integers(1, 5), st.lists(EVENTS, max_size=3), st.integers(0, 2))
"""Shards, bundles, and how many of the bundles a failure takes back at its end."""


def run(record: JobRecord, sharding: Sharding, bundles: list[list[Event]]) -> list[list[tuple[int, bytes, list[str | None]]]]:
    """(slice, shard key, keys) of each partial of each bundle, as one worker makes them."""
    options = AggregateOptions(metric="m", window={"tumbling": "1s"}, by=["key"], aggregates={"n": "count"}, shards=sharding.shards)
    made = SlicePartialDoFn(build_metric(options, FIELDS), options.window.create(), 10**12, str(record.folder), sharding=sharding, step=STEP)
    made.setup()
    found = []
    for events in bundles:
        made.start_bundle()
        assert list(made.process(batch_of(events), MIN_TIMESTAMP)) == []
        partials = []
        for element in made.finish_bundle():
            key, encoded = element.value
            start = element.timestamp.micros // SECOND * SECOND
            assert (reached(record)[STEP] or 0) >= start, "how far slices go is said before a partial leaves"
            partials.append((start, key, made._partials.decode(encoded).column("key").to_pylist()))
        found.append(partials)
    return found


@settings(deadline=None, max_examples=examples(80))
@given(st.lists(RUN, min_size=1, max_size=5))
def test_a_slice_and_key_is_in_one_shard(runs: list[tuple[int, list[list[Event]], int]]) -> None:
    """Whatever is in state: a failure takes back partials, but not what was said of them."""
    with TemporaryDirectory() as name:
        record = JobRecord(name)
        sharding = Sharding(runs[0][0])
        state: list[list[tuple[int, bytes, list[str | None]]]] = []
        for shards, bundles, lost in runs:
            known = reached(record)
            sharding = sharding.changed(shards, known.get(STEP))
            begin_from(record, known)
            made = run(record, sharding, bundles)
            state += made[: max(len(made) - lost, 0)]
            # What was taken back is read again.
            state += run(record, sharding, bundles[max(len(made) - lost, 0) :])
        where = defaultdict(set)
        for partials in state:
            for start, shard, keys in partials:
                for key in keys:
                    where[start, key].add(shard)
        assert {len(shards) for shards in where.values()} <= {1}
        sent = {(time // SECOND * SECOND, key) for _, bundles, _ in runs for events in bundles for time, key, _ in events}
        assert set(where) == sent


@settings(max_examples=examples(200))
@given(st.integers(1, 9), st.lists(st.tuples(st.integers(1, 9), st.integers(-20, 20)), max_size=5), st.integers(-25, 25))
def test_each_slice_keeps_the_number_with_which_it_may_have_begun(first: int, changes: list[tuple[int, int]], start: int) -> None:
    sharding, wanted = Sharding(first), first
    for shards, reach in changes:
        if shards != sharding.shards and start > reach:
            wanted = shards
        sharding = sharding.changed(shards, reach)
        assert int(sharding.of(np.array([2**63], np.uint64), np.array([start]))[0]) == 2**63 % wanted
    edges = [until for until, _ in sharding.earlier]
    assert edges == sorted(set(edges))


def test_how_far_slices_go_is_written_seldom_however_fast_time_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, clock, written = JobRecord(tmp_path), [0.0], []
    put = record.put
    monkeypatch.setattr("streamgauge.transforms.sharding.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(record, "put", lambda *args, **more: (written.append(args), put(*args, **more)))
    reach = Reach(record, STEP, SECOND)
    for bundle in range(10_000):  # a hundred a second, each of a second of event time
        reach.extend(bundle * SECOND)
        clock[0] += 0.01
        known = reached(record)[STEP]
        assert known is not None and known >= bundle * SECOND
    assert len(written) < 150
    assert known <= 10_300 * SECOND
    reach.extend(0)
    assert len(written) < 150


def test_what_is_not_known_stays_unknown(tmp_path: Path) -> None:
    record = JobRecord(tmp_path)
    assert reached(record) == {} == reached(JobRecord(None))
    Reach(record, "a", SECOND).extend(7)
    Reach(record, "a", SECOND).extend(5)
    Reach(record, "b", SECOND).extend(-9)
    assert reached(record) == {"a": 7, "b": -9}
    begin_from(record, {"a": None, "c": 3})
    Reach(record, "a", SECOND).extend(8)
    assert reached(record) == {"a": None, "c": 3}


def test_shards_by_slice() -> None:
    hashes = np.array([7, 7, 7, 7], np.uint64)
    sharding = Sharding(4).changed(5, 99).changed(3, 199)
    assert sharding.of(hashes, np.array([0, 99, 100, 200])).tolist() == [3, 3, 2, 1]
    assert sharding.most == 5
