"""Session windows as functions of event times. The oracle is plain Python."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamgauge.transforms.config import problems
from streamgauge.transforms.groups import group_rows
from streamgauge.transforms.windows.session import Session, SessionOptions
from tests.examples import examples

MS = 1000
TIMES = st.integers(-40, 40).map(lambda half: half * MS // 2) | st.sampled_from([3 * MS - 1, 3 * MS, 3 * MS + 1, -1, 0, 1, 250_000_000_000_000_000, -60_000_000_000_000_000])


def named(events: list[tuple[int, int]], gap: int, longest: int | None) -> set[frozenset[int]]:
    """The oracle: indices of events that are in one piece."""
    made: list[list[int]] = []
    for index in sorted(range(len(events)), key=events.__getitem__):
        key, time = events[index]
        before = events[made[-1][-1]] if made else None
        if before and before[0] == key and time - before[1] < gap and (longest is None or time // longest == before[1] // longest):
            made[-1].append(index)
        else:
            made.append([index])
    return {frozenset(piece) for piece in made}


@settings(deadline=None, max_examples=examples(150))
@given(st.lists(st.tuples(st.sampled_from([0, 1, 70_000]), TIMES), max_size=25), st.sampled_from([1, 3, 1000]), st.sampled_from([None, 3, 5, 1000]))
def test_pieces(events: list[tuple[int, int]], gap: int, longest: int | None) -> None:
    gap, longest = gap * MS, None if longest is None else max(longest, gap) * MS
    ids = np.array([key for key, _ in events], np.int64)
    session = Session(SessionOptions(gap=gap, max=longest))
    numbers = session.pieces(ids, np.array([time for _, time in events], np.int64))
    found: dict[tuple[int, int], list[int]] = {}
    for index, (key, _) in enumerate(events):
        found.setdefault((key, int(numbers[index])), []).append(index)
    assert {frozenset(piece) for piece in found.values()} == named(events, gap, longest)
    for key in set(ids.tolist()):
        assert sorted({int(number) for number in numbers[ids == key]}) == list(range(len(set(numbers[ids == key].tolist())))), "numbered from 0"


def test_a_batch_without_two_pieces_of_a_key_is_not_split() -> None:
    groups = group_rows([pa.array([0, 1, 0])], 3)
    session = Session(SessionOptions(gap="1s"))
    assert groups.split(session.pieces(groups.ids, np.array([0, 5_000_000, 999_999]))) is groups


def test_bounds() -> None:
    """A window as long as `max` is not cut, one microsecond more is; a cut session ends at its cell's border at the latest."""
    session = Session(SessionOptions(gap="1ms", max="10ms"))
    assert session.too_long(np.array([5, 5]), np.array([9_005, 9_006])).tolist() == [False, True]
    ends = session.ends(np.array([9_005, 9_005, 3]), np.array([0, 0, 0]), np.array([False, True, True]))
    assert ends.tolist() == [10_005, 10_000, 1_003]
    assert session.describe() == "session gap 1ms max 10ms"
    assert Session(SessionOptions(gap="1h")).describe() == "session gap 1h"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing"),
        ({"gap": "0s"}, "expected whole milliseconds, from 1ms to 3660d"),
        ({"gap": "1500us"}, "1500us: expected whole milliseconds"),
        ({"gap": "4000d"}, "from 1ms to 3660d"),
        ({"gap": "2s", "max": "1s"}, "max 1s must not be shorter than gap 2s"),
        ({"gap": "2s", "size": "1s"}, "unknown key"),
        ({"gap": 30.5}, "is not a duration"),
    ],
)
def test_a_mistake_is_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SessionOptions.model_validate(options)
    assert message in "; ".join(text for _, text in problems(caught.value))
