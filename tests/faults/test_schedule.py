"""Which faults, and when: no clock, no processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.faults import EMBEDDED, KINDS
from tests.faults.schedule import SHARES, Pace, Step, schedule


@given(seed=st.integers(0, 2**64), count=st.integers(0, 40))
def test_a_seed_is_a_schedule(seed: int, count: int) -> None:
    steps = schedule(seed, count, list(KINDS))
    assert steps == schedule(seed, count, list(KINDS))
    assert len(steps) == count
    for first in range(0, count, len(KINDS)):
        round_ = [step.kind for step in steps[first : first + len(KINDS)]]
        assert len(set(round_)) == len(round_), "a kind came again before all had come"
    assert [step.share for step in steps] == sorted(step.share for step in steps)
    for step in steps:
        low, high = KINDS[step.kind].seconds
        assert low <= step.seconds <= high
        assert SHARES[0] <= step.share <= SHARES[1]


def test_seeds_differ() -> None:
    assert len({tuple(schedule(seed, 5, list(KINDS))) for seed in range(100)}) == 100
    assert {schedule(seed, 1, EMBEDDED)[0].kind for seed in range(100)} == set(EMBEDDED)


STEPS = [Step("kafka-restart", 0.2, 3.0, 1.0, 0), Step("network-cut", 0.5, 4.0, 1.0, 0), Step("disk-full", 0.9, 4.0, 1.0, 0)]


def test_a_fault_is_due_when_its_share_is_read() -> None:
    pace = Pace(STEPS, 1_000)
    assert pace.due(0.0, 199) is None
    assert pace.due(0.1, 200) is STEPS[0]
    assert pace.due(0.2, 210) is STEPS[0], "it stays due until it has struck"
    pace.struck(0.3)
    assert pace.due(0.4, 499) is None
    assert pace.due(0.5, 1_000) is STEPS[1]
    pace.struck(0.6)
    assert pace.due(0.7, 1_000) is STEPS[2]
    pace.struck(0.8)
    assert pace.due(100.0, 1_000) is None


def test_a_job_that_starts_slowly_is_not_stalled() -> None:
    pace = Pace(STEPS, 1_000)
    assert pace.due(0.0, 0) is None
    assert pace.due(1_000.0, 0) is None


def test_a_job_that_a_fault_has_stalled_is_struck_again() -> None:
    pace = Pace(STEPS, 1_000)
    assert pace.due(0.0, 300) is STEPS[0]
    pace.struck(1.0)
    assert pace.due(2.0, 310) is None
    assert pace.due(5.9, 310) is None
    assert pace.due(6.1, 310) is STEPS[1]
    pace.struck(7.0)
    assert pace.due(10.9, 310) is None
    assert pace.due(11.0, 310) is STEPS[2]


def test_going_back_to_a_checkpoint_is_no_standstill() -> None:
    pace = Pace(STEPS, 1_000)
    pace.due(0.0, 300)
    pace.struck(0.0)
    for second, progress in enumerate((320, 340, 250, 260, 250, 270, 290, 300), start=1):
        assert pace.due(float(second), progress) is None
