"""The read loop: every payload becomes one event or one dead letter, wherever bundles end; it can be asked to end."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker
from apache_beam.transforms.window import TimestampedValue
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms import ReadEvents, joint_reads
from streamgauge.transforms import read as read_module
from streamgauge.transforms.batch import EVENT_TIME, POSITION, SPLIT
from streamgauge.transforms.position_index import Indexes
from streamgauge.transforms.read import _Read
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.replay import ReplayPoint, SplitPoint
from streamgauge.transforms.restriction import UNBOUNDED, Positions, PositionsTracker
from streamgauge.transforms.sources.base import Split
from streamgauge.transforms.splits import split_element
from tests.collect import Collected
from tests.examples import examples
from tests.memory import event, memory

OPTIONS: dict[str, Any] = {
    "format": {"json": {"schema": {"t": "int64", "v": "int64"}}},
    "time": {"field": "t", "unit": "ms", "disorder": "1s"},
    "error_handling": {"output": "rejected"},
}


def read_all(payloads: dict[str, list[bytes | None]], record: Path | None = None, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    events, rejected = Collected(), Collected()
    flags = [] if record is None else [f"--record_folder={record}"]
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(flags)) as pipeline:
        read = pipeline | ReadEvents(**{"from": memory(payloads, **options)}, **OPTIONS)
        _ = read["events"] | events
        _ = read["rejected"] | rejected
    return events.rows, rejected.rows


@settings(deadline=None, max_examples=examples(8))
@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 10**6) | st.just(None), max_size=15), min_size=1, max_size=3), st.integers(1, 5))
def test_every_payload_is_one_event_or_one_dead_letter(values: dict[str, list[int | None]], step: int) -> None:
    """None stands for a payload that is no event."""
    payloads = {name: [b"{oops" if value is None else event(t=value, v=position) for position, value in enumerate(some)] for name, some in values.items()}
    events, rejected = read_all(payloads, step=step)
    good = {(name, position): value for name, some in values.items() for position, value in enumerate(some) if value is not None}
    assert sorted((row[SPLIT], row[POSITION]) for row in events) == sorted(good)
    for row in events:
        assert row["v"] == row[POSITION]
        assert round(row[EVENT_TIME].timestamp() * 1000) == row["t"] == good[row[SPLIT], row[POSITION]]
    bad = sorted((name, position) for name, some in values.items() for position, value in enumerate(some) if value is None)
    assert sorted((row["split"], row["position"]) for row in rejected) == bad
    assert all(row["payload"] == b"{oops" and row["stage"] == "read" and row["source"] == "memory" and row["message"] for row in rejected)


def test_the_record_says_what_was_read(tmp_path: Path) -> None:
    read_all({"a": [event(t=1000, v=1), b"x", event(t=5000, v=2)], "empty": []}, tmp_path)
    found = {values["split"]: values for values in JobRecord(tmp_path).all("splits")}
    assert {name: (v["position"], v["events"], v["rejected"], v["done"]) for name, v in found.items()} == {"a": (3, 2, 1, True), "empty": (0, 0, 0, True)}


class Call:
    """One call of the DoFn, as a runner makes it."""

    def __init__(self, dofn: _Read, element: bytes, positions: Positions, watermark: Any = None) -> None:
        tracker = ThreadsafeRestrictionTracker(PositionsTracker(positions))
        estimator = ManualWatermarkEstimator(watermark)
        dofn.start_bundle()
        self.outputs = list(dofn.process(element, RestrictionTrackerView(tracker), estimator))
        tracker.check_done()
        deferred = tracker.deferred_status()
        self.residual: Positions | None = None if deferred is None else deferred[0]
        self.pause = None if deferred is None else round(deferred[1].micros / 1e6, -1)  # what is left of it
        self.watermark = estimator.current_watermark()

    @property
    def positions(self) -> list[int]:
        batches = [output.value for output in self.outputs if isinstance(output, TimestampedValue)]
        return [position for batch in batches for position in batch.column(POSITION).to_pylist()]


def dofn(payloads: list[bytes | None], folder: Path, **options: Any) -> _Read:
    made = _Read(ReadEvents(**{"from": memory({"s": payloads}, **options)}, **OPTIONS), str(folder))
    made.setup()
    return made


def test_a_replay_from_any_restriction_reads_the_same_rest(tmp_path: Path) -> None:
    payloads = [event(t=1000 * i, v=i) for i in range(20)]
    element = split_element(0, Split("s", 0))
    made = dofn(payloads, tmp_path, endless=True, step=4)
    first = Call(made, element, Positions(0, UNBOUNDED))
    assert first.residual == Positions(first.positions[-1] + 1, UNBOUNDED)
    positions, left = [], Positions(7, UNBOUNDED)
    while len(positions) < 13:
        again = Call(made, element, left)
        assert again.positions, "a call reads what is there"
        positions, left = positions + again.positions, again.residual
    assert positions == list(range(7, 20))
    assert again.watermark.micros == (19_000 - 1_000 - 1) * 1000


@pytest.mark.parametrize(("full", "read"), [(4, 10), (100, 4)])
def test_a_call_goes_on_while_batches_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: int, read: int) -> None:
    """What was read alone is on its way at once; in a backlog a call reads more. (A batch of half the size counts as full.)"""
    monkeypatch.setattr("streamgauge.transforms.read.MAX_BATCH_EVENTS", full)
    made = dofn([event(t=1000 * i, v=i) for i in range(10)], tmp_path, endless=True, step=4)
    assert Call(made, split_element(0, Split("s", 0)), Positions(0, UNBOUNDED)).positions == list(range(read))


def test_an_idle_split_follows_only_what_was_read_before_its_end_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a day's events are written to partitions at rest: the first one that is read must not carry the watermark of the others away."""
    monkeypatch.setattr(joint_reads, "FRESH_SECONDS", 100.0)
    choice = memory({"a": [event(t=1_000, v=0), event(t=1_000, v=1), event(t=500_000, v=2)], "b": [event(t=1_000, v=0)]}, endless=True, step=1)
    made = _Read(ReadEvents(**{"from": choice, **OPTIONS, "time": {**OPTIONS["time"], "idle": "0s"}}), str(tmp_path))
    made.setup()
    a, b = (split_element(number, Split(name, 0)) for number, name in enumerate("ab"))
    first, quiet = Call(made, a, Positions(0, UNBOUNDED)), Call(made, b, Positions(0, UNBOUNDED))
    second = Call(made, a, Positions(1, UNBOUNDED), first.watermark)  # read when ``b`` was
    jumped = Call(made, a, Positions(2, UNBOUNDED), second.watermark)
    assert jumped.watermark.micros == (500_000 - 1_000 - 1) * 1000
    behind = Call(made, b, Positions(1, UNBOUNDED), quiet.watermark)
    assert behind.watermark == quiet.watermark, "its end was seen in the same go as the events of the other"
    monkeypatch.setattr(joint_reads, "FRESH_SECONDS", 0.0)
    assert Call(made, b, Positions(1, UNBOUNDED), behind.watermark).watermark == jumped.watermark


def test_a_split_found_later_begins_where_the_others_are_and_goes_its_own_way(tmp_path: Path) -> None:
    JobRecord(tmp_path).put("splits", "memory/other", {"source": "memory", "newest": 100_000_000}, now=True)
    made = dofn([event(t=99_500, v=0)], tmp_path, endless=True)
    element = split_element(0, Split("s", 0), found_later=True)
    (batch,) = (first := Call(made, element, Positions(0, UNBOUNDED))).outputs
    assert batch.timestamp.micros == first.watermark.micros == (100_000 - 1_000 - 1) * 1000
    JobRecord(tmp_path).put("splits", "memory/other", {"source": "memory", "newest": 900_000_000}, now=True)
    time.sleep(0.6)
    assert Call(made, element, Positions(1, UNBOUNDED), first.watermark).watermark == first.watermark, "what comes yet is not late"


def test_a_split_rests_longer_where_nothing_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_module, "PAUSE_SECONDS", 100.0)
    monkeypatch.setattr(read_module, "QUIET_PAUSE_SECONDS", 200.0)
    made, element = dofn([event(t=1, v=1)], tmp_path, endless=True), split_element(0, Split("s", 0))
    assert Call(made, element, Positions(0, UNBOUNDED)).pause == read_module.PAUSE_SECONDS
    assert Call(made, element, Positions(1, UNBOUNDED)).pause == read_module.PAUSE_SECONDS
    monkeypatch.setattr(read_module, "QUIET_SECONDS", 0.0)
    assert Call(made, element, Positions(1, UNBOUNDED)).pause == read_module.QUIET_PAUSE_SECONDS


def test_an_endless_split_defers_at_its_end_and_drains_when_asked(tmp_path: Path) -> None:
    element = split_element(0, Split("s", 0))
    made = dofn([event(t=1, v=1)], tmp_path, endless=True)
    waiting = Call(made, element, Positions(1, UNBOUNDED))
    assert (waiting.positions, waiting.residual) == ([], Positions(1, UNBOUNDED))
    JobRecord(tmp_path).ask_to_drain()
    ended = Call(made, element, Positions(0, UNBOUNDED))
    assert (ended.positions, ended.residual) == ([0], None)


def test_dead_letters_have_a_sink_even_when_nobody_asks(tmp_path: Path) -> None:
    options = {key: value for key, value in OPTIONS.items() if key != "error_handling"}
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([f"--record_folder={tmp_path}"])) as pipeline:
        _ = pipeline | ReadEvents(**{"from": memory({"a": [b"nonsense", event(t=1, v=1)]})}, **options)
    import duckdb

    (row,) = duckdb.sql(f"SELECT split, position, payload, error_type FROM read_parquet('{tmp_path}/dead_letters/**/*.parquet')").fetchall()
    assert row == ("a", 0, b"nonsense", "malformed")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": {"json": {"schema": {"t": "int46"}}}}, "int46"),
        ({"time": {"field": "tt"}}, "did you mean 't'"),
        ({"from": {"kafak": {}}}, "did you mean 'kafka'"),
        ({"frm": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_told_at_once(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadEvents(**{"from": memory({"a": []}), **OPTIONS, **changed})


def test_tagged_outputs_are_dead_letters(tmp_path: Path) -> None:
    call = Call(dofn([b"x", None], tmp_path), split_element(0, Split("s", 0, 2)), Positions(0, 2))
    (letters,) = [output for output in call.outputs if isinstance(output, TaggedOutput)]
    assert letters.value.value.column("error_type").to_pylist() == ["malformed", "tombstone"]
    assert letters.value.value.column("payload").to_pylist() == [b"x", None]


@settings(deadline=None, max_examples=examples(40))
@given(
    st.lists(st.integers(0, 40).map(lambda tenths: tenths * 500), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.sampled_from(["1s", "3s", "0s"])), min_size=1, max_size=5),
)
def test_the_record_knows_true_positions_after_any_restores(times: list[int], restores: list[tuple[int, bool, str]]) -> None:
    """The job is set back to an earlier position again and again, sometimes by another process, sometimes with another disorder."""
    payloads: list[bytes | None] = [event(t=time, v=number) for number, time in enumerate(times)]
    element = split_element(0, Split("s", 0))
    with TemporaryDirectory() as name:
        record, watermarks, position = JobRecord(name), {0: None}, 0
        for wanted, elsewhere, disorder in [(0, False, "1s"), *restores]:
            position = max(reached for reached in watermarks if reached <= wanted)
            if elsewhere:
                read_module._INDEXES = Indexes()
            made = _Read(ReadEvents(**{"from": memory({"s": payloads}, endless=True, step=4), **OPTIONS, "time": {**OPTIONS["time"], "disorder": disorder}}), name)
            made.setup()
            residual: Positions | None = Positions(position, UNBOUNDED)
            watermark = watermarks[position]
            for _ in range(2):
                assert residual is not None
                call = Call(made, element, residual, watermark)
                residual, watermark = call.residual, call.watermark
                assert residual is not None
                watermarks[residual.position] = watermark
            known = record.get("positions", "memory/s")
            assert known is not None and known["begin"] == 0
            assert known["facts"] == sorted(known["facts"])
            for before, newest in known["facts"]:
                assert max(times[:before]) * 1000 <= newest


def test_a_replay_reads_from_its_point(tmp_path: Path) -> None:
    ReplayPoint({}, {"memory/a": SplitPoint("memory", 2, 3, 0, [(2, 7)])}).save(tmp_path / "point.json")
    events = Collected()
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([f"--record_folder={tmp_path / 'record'}", f"--replay_point={tmp_path / 'point.json'}"])) as pipeline:
        read = pipeline | ReadEvents(**{"from": memory({name: [event(t=i, v=i) for i in range(4)] for name in "ab"})}, **OPTIONS)
        _ = read["events"] | events
    assert sorted((row[SPLIT], row[POSITION]) for row in events.rows) == [("a", 2), ("a", 3), ("b", 0), ("b", 1), ("b", 2), ("b", 3)]
    known = JobRecord(tmp_path / "record").get("positions", "memory/a")
    assert known is not None and known["begin"] == 0 and known["facts"][0] == [2, 7], "what an earlier run knew is kept for the next replay"
