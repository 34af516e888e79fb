from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgauge.transforms.restriction import FINISHED, UNBOUNDED, Positions, PositionsCoder, PositionsTracker

POSITION = st.integers(0, 2**62)


@given(POSITION, POSITION | st.just(UNBOUNDED))
def test_positions_survive_the_coder(position: int, end: int) -> None:
    assert PositionsCoder().decode(PositionsCoder().encode(Positions(position, end))) == Positions(position, end)


def test_another_version_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="version 9"):
        PositionsCoder().decode(b"\x09" + bytes(16))


@given(st.lists(st.integers(0, 100), max_size=10))
def test_a_split_leaves_what_was_not_claimed(steps: list[int]) -> None:
    tracker = PositionsTracker(Positions(5, UNBOUNDED))
    at = 5
    for step in steps:
        at += step
        assert tracker.try_claim(at)
    assert tracker.try_split(0.5) is None, "a split is never read by two workers"
    assert tracker.try_split(0) == (Positions(5, at), Positions(at, UNBOUNDED))
    tracker.check_done()
    assert not tracker.try_claim(at + 1)
    assert tracker.try_split(0) is None


def test_finished_ends_a_split_anywhere() -> None:
    tracker = PositionsTracker(Positions(5, UNBOUNDED))
    tracker.try_claim(7)
    with pytest.raises(ValueError, match="stopped at 7"):
        tracker.check_done()
    tracker.try_claim(FINISHED)
    tracker.check_done()
    assert tracker.try_split(0) is None


def test_claims_never_go_back() -> None:
    tracker = PositionsTracker(Positions(5, 10))
    tracker.try_claim(8)
    with pytest.raises(ValueError, match="claimed after"):
        tracker.try_claim(7)
