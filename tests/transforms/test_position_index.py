"""Facts about positions stay true however reading is interrupted, and lead to the last position that they allow."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms.position_index import LIMIT, SPACING, Indexes, PositionIndex
from tests.examples import examples


def newest_before(times: list[int], position: int) -> int | None:
    return max(times[:position], default=None)


def assert_true(index: PositionIndex, times: list[int]) -> None:
    """The oracle: the events themselves."""
    assert index.facts == sorted(index.facts)
    for position, newest in index.facts:
        before = newest_before(times, position)
        assert before is None or before <= newest


@settings(deadline=None, max_examples=examples(200))
@given(
    st.lists(st.integers(0, 100).map(lambda tenths: tenths * SPACING // 10), min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(1, 7), st.none() | st.integers(0, 60), st.integers(0, 3), st.booleans()), min_size=1, max_size=25),
)
def test_facts_are_true_after_any_restores(times: list[int], calls: list[tuple[int, int | None, int, bool]]) -> None:
    """A call reads a few events; before it, the job may be set back to any earlier position, with what was written down or with an older version."""
    index, written = PositionIndex(0), [PositionIndex(0)]
    index.resume(0, None)
    position = reached = 0
    for count, restore, slack, old in calls:
        if restore is not None:
            position = min(restore, reached)
            kept = written[-1 if not old else len(written) // 2]
            index = PositionIndex(kept.begin, list(kept.facts))
            bound = newest_before(times, position)
            index.resume(position, None if bound is None else bound + slack * SPACING)
        after = min(position + count, len(times))
        index.add(after, max(times[position:after], default=None))
        index.add(after, None)
        assert index.position == after
        position, reached = after, max(reached, after)
        written.append(PositionIndex(index.begin, list(index.facts)))
        assert_true(index, times)
        for moment in range(0, 11 * SPACING, SPACING // 2):
            start = index.start_before(moment)
            assert all(time < moment for time in times[:start])
            assert start == max([fact[0] for fact in index.facts if fact[1] < moment], default=0)


def test_facts_are_a_second_apart_and_the_last_is_where_reading_stands() -> None:
    index = PositionIndex(5)
    index.resume(5, None)
    for position in range(6, 46):
        index.add(position, position * SPACING // 10)
    gaps = [later[1] - earlier[1] for earlier, later in zip(index.facts, index.facts[1:], strict=False)]
    assert all(gap >= SPACING for gap in gaps[:-1])
    assert index.facts[-1] == (45, 45 * SPACING // 10)
    assert index.start_before(None) == index.start_before(0) == 5


def test_there_are_never_too_many_and_old_and_recent_ones_stay() -> None:
    index = PositionIndex(0)
    index.resume(0, None)
    for position in range(1, 20_001):
        index.add(position, position * SPACING)
        assert len(index.facts) <= LIMIT
    assert index.facts[0] == (1, SPACING)
    assert index.start_before(20_000 * SPACING) == 19_999
    assert index.start_before(19_900 * SPACING) == 19_899
    assert 0 < index.start_before(5_000 * SPACING) < 5_000
    assert_true(index, [(position + 1) * SPACING for position in range(20_000)])


def test_events_without_time_move_only_what_is_known() -> None:
    index = PositionIndex(0)
    index.resume(0, None)
    index.add(3, None)
    assert (index.facts, index.position) == ([], 3)
    index.add(4, 7)
    index.add(9, None)
    assert index.facts == [(4, 7), (9, 7)]
    assert index.start_before(8) == 9


def test_an_index_is_taken_only_where_it_stands() -> None:
    indexes, index = Indexes(), PositionIndex(0)
    index.resume(4, None)
    indexes.put_back(("record", "split"), index)
    assert indexes.take(("record", "split"), 3) is None
    indexes.put_back(("record", "split"), index)
    assert indexes.take(("record", "split"), 4) is index
    assert indexes.take(("record", "split"), 4) is None
