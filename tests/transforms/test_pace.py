"""Who reads waits for the next bundle that ends, and for no longer than it is willing to."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from apache_beam.runners.worker.bundle_processor import BundleProcessor

from streamgauge.pipelines.services import quick_bundles as quick_bundles_module
from streamgauge.transforms import ReadEvents
from streamgauge.transforms import read as read_module
from streamgauge.transforms.pace import Pace
from streamgauge.transforms.read import _Read
from streamgauge.transforms.restriction import UNBOUNDED, Positions
from streamgauge.transforms.sources.base import Split
from streamgauge.transforms.splits import split_element
from tests.memory import event, memory
from tests.transforms.test_read import OPTIONS, Call, dofn

LONG = 60.0


class Waiting(threading.Thread):
    def __init__(self, pace: Pace) -> None:
        super().__init__(daemon=True)
        self._pace = pace
        self.start()

    def run(self) -> None:
        self._pace.wait(LONG)


def test_nobody_waits_where_nothing_runs() -> None:
    pace = Pace()
    pace.wait(LONG)
    with pytest.raises(ZeroDivisionError), pace.bundle():
        _ = 1 / 0
    pace.wait(LONG)


def test_one_waits_for_the_first_of_those_that_run_to_end() -> None:
    pace = Pace()
    with pace.bundle():
        with pace.bundle():
            waiting = Waiting(pace)
            waiting.join(0.05)
            assert waiting.is_alive()
        waiting.join(LONG)
        assert not waiting.is_alive()
        pace.wait(0.01)  # the other one still runs, and the wait has an end
    pace.wait(LONG)


class _Wait:
    """A pace that notes who would have waited."""

    def __init__(self) -> None:
        self.waits = 0

    def wait(self, seconds: float) -> None:
        self.waits += 1


@pytest.mark.parametrize(("full", "endless", "waits"), [(1, True, 1), (100, True, 3), (100, False, 0)])
def test_who_is_behind_or_reads_to_an_end_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: int, endless: bool, waits: int) -> None:
    pace = _Wait()
    monkeypatch.setattr(read_module, "PACE", pace)
    monkeypatch.setattr(read_module, "MAX_BATCH_EVENTS", full)
    monkeypatch.setattr(read_module, "CALL_SECONDS", 0.0)
    made, element = dofn([event(t=i, v=i) for i in range(10)], tmp_path, endless=endless, step=1), split_element(0, Split("s", 0))
    left = Positions(0, UNBOUNDED if endless else 10)
    for _ in range(3):
        left = Call(made, element, left).residual
    assert pace.waits == waits


@pytest.mark.parametrize(("splits", "waits"), [("a", 2), ("ab", 1)])
def test_events_of_all_splits_of_a_bundle_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: str, waits: int) -> None:
    """Two events of a split are a third of a batch, four of two splits are two thirds."""
    pace = _Wait()
    monkeypatch.setattr(read_module, "PACE", pace)
    monkeypatch.setattr(read_module, "MAX_BATCH_EVENTS", 6)
    made = _Read(ReadEvents(**{"from": memory({name: [event(t=i, v=i) for i in range(10)] for name in "ab"}, endless=True, step=2), **OPTIONS}), str(tmp_path))
    made.setup()
    made.start_bundle()
    with monkeypatch.context() as one_bundle:
        one_bundle.setattr(made, "start_bundle", lambda: None)
        for number, name in enumerate(splits):
            assert len(Call(made, split_element(number, Split(name, 0)), Positions(0, UNBOUNDED)).positions) == 2
    made.start_bundle()
    assert pace.waits == waits


def test_bundles_that_do_not_read_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    pace, seen = Pace(), []
    monkeypatch.setattr(quick_bundles_module, "PACE", pace)
    monkeypatch.setattr(quick_bundles_module, "_PROCESS_BUNDLE", lambda processor, name: seen.append(pace.is_running))
    monkeypatch.setattr(quick_bundles_module, "SdfProcessSizedElements", str)
    for ops in ({"a": object()}, {"a": object(), "b": "reads"}):
        processor = object.__new__(BundleProcessor)
        processor.ops = ops
        quick_bundles_module._process_bundle(processor, "1")
    assert seen == [True, False] and not pace.is_running
