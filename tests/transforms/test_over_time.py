"""The meaning of early, on-time and late results, case by case, as docs/concepts/results-over-time.md draws it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.transforms.streamed import MS, Event, Step, micros, streamed

S = 1000 * MS
TUMBLING = {"tumbling": "10s"}
Told = tuple[int, int, int | None, bool]
"""Start of the window in seconds, total, revision, whether final."""


def told(steps: list[Step], window: Any = None, **options: Any) -> tuple[list[Told], int]:
    """Rows in the order in which they were made, and the number of late events."""
    rows, late = streamed(steps, window=window or TUMBLING, **options)
    return [(micros(row["window_start"]) // S, row["total"], row["revision"], row["final"]) for row in rows], len(late)


def at(second: float, value: int) -> list[Event]:
    return [(int(second * S), "a", value)]


def test_final_only() -> None:
    """One row, when the watermark passes the end of the window."""
    assert told([at(1, 1), "clock", at(9, 2), 9 * S, at(8, 4), 10 * S]) == ([(0, 7, 3, True)], 0)


def test_early_results() -> None:
    """Current rows on the way, of higher and higher revision; then the final one."""
    rows, late = told([at(1, 1), "clock", at(2, 2), at(3, 4), "clock", 10 * S], emit={"every": "1s"})
    assert rows[-1] == (0, 7, 3, True)
    assert [row for row in rows if not row[3]][-1] == (0, 7, 3, False)
    assert sorted(row[2] or 0 for row in rows) == [row[2] for row in rows]
    assert late == 0


def test_on_change() -> None:
    rows, _ = told([at(1, 1), "clock", at(2, 2), "clock", 10 * S], emit="on_change")
    assert rows == [(0, 1, 1, False), (0, 3, 2, False), (0, 3, 2, True)]


def test_early_rows_are_only_those_of_keys_that_changed() -> None:
    rows, _ = streamed([[(S, "a", 1), (S, "b", 1)], "clock", [(2 * S, "b", 1)], "clock", 10 * S], window=TUMBLING, emit="on_change")
    early = [(row["key"], row["revision"]) for row in rows if not row["final"]]
    assert sorted(early[:2]) == [("a", 1), ("b", 1)]
    assert early[2:] == [("b", 2)]
    assert sorted((row["key"], row["revision"]) for row in rows if row["final"]) == [("a", 1), ("b", 2)]


def test_a_late_event_within_lateness_corrects() -> None:
    """The correction is final too, with a higher revision."""
    assert told([at(1, 1), 12 * S, at(2, 2), 13 * S], lateness="5s") == ([(0, 1, 1, True), (0, 3, 2, True)], 0)


def test_a_correction_is_of_the_keys_that_changed() -> None:
    rows, _ = streamed([[(S, "a", 1), (S, "b", 1)], 12 * S, [(2 * S, "b", 1)], 13 * S], window=TUMBLING, lateness="5s", emit={"every": "1s"})
    final = {key: [row["revision"] for row in rows if row["final"] and row["key"] == key] for key in ("a", "b")}
    assert final == {"a": [1], "b": [1, 2]}


def test_a_window_that_only_late_events_have() -> None:
    assert told([at(11, 1), 12 * S, at(2, 2), 13 * S], lateness="5s")[0][0] == (0, 2, 1, True)


@pytest.mark.parametrize(("watermark", "late"), [(15 * S - 2 * MS, 0), (15 * S - MS, 1), (15 * S, 1)])
def test_lateness_ends_with_its_last_millisecond(watermark: int, late: int) -> None:
    assert told([at(1, 1), 10 * S, watermark, at(2, 2)], lateness="5s")[1] == late


def test_without_lateness_an_event_behind_the_window_is_late() -> None:
    rows, late = streamed([at(1, 1), 10 * S, at(2, 2)], window=TUMBLING)
    assert [(row["total"], row["final"]) for row in rows] == [(1, True)]
    assert [(micros(row["event_time"]), micros(row["window_start"]), row["value"]) for row in late] == [(2 * S, 0, 2)]


def test_an_event_can_be_late_for_one_window_and_in_time_for_the_next() -> None:
    rows, late = told([at(1, 1), 11 * S, at(9, 2), 15 * S], window={"sliding": {"size": "10s", "every": "5s"}})
    assert late == 0
    assert (5, 2, 1, True) in rows


def test_the_watermark_of_a_row() -> None:
    rows, _ = streamed([at(1, 1), "clock", 10 * S, at(11, 1), "clock", 20 * S], window=TUMBLING, emit="on_change")
    marks = [(row["final"], None if row["watermark"] is None else micros(row["watermark"])) for row in rows]
    assert marks[0] == (False, None)
    assert all(mark is not None and mark >= micros(row["window_end"]) - MS for (_, mark), row in zip(marks, rows, strict=True) if row["final"])


def test_sessions_that_the_end_of_the_input_closes_tell_a_watermark() -> None:
    rows, _ = streamed([at(1, 1), at(9, 1)], window={"session": "4s"})
    assert {micros(row["window_end"]) // S: micros(row["watermark"]) // S for row in rows} == {5: 13, 13: 13}


def test_global_has_results_on_the_way() -> None:
    rows, late = told([at(1, 1), "clock", 10 * S, at(100, 2), "clock"], window="global", emit="on_change")
    assert rows == [(0, 1, 1, False), (0, 3, 2, False), (0, 3, 2, True)]
    assert late == 0


def test_a_late_event_joins_two_sessions() -> None:
    """One of them stays, grown; the other's row is withdrawn, under the same revision."""
    rows, _ = streamed([at(1, 1), at(6, 2), 12 * S, at(3.5, 4), 13 * S], window={"session": "4s"}, lateness="10s")
    final = [(micros(row["window_start"]) // S, micros(row["window_end"]) // S, row["total"], row["events"], row["revision"], row["withdrawn"]) for row in rows]
    assert sorted(final[:2]) == [(1, 5, 1, 1, 1, False), (6, 10, 2, 1, 1, False)]
    assert sorted(final[2:], key=str) == [(1, 10, 7, 3, 3, False), (6, 10, None, 0, 3, True)]
