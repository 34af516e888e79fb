"""Counting by single steps: more work is more instructions, and the same work as many again."""

from __future__ import annotations

import pytest

from benchmarks.instructions import CannotCountError, count


def counted(numbers: int) -> int:
    try:
        return count(lambda: sum(range(numbers)))
    except CannotCountError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_instructions_follow_the_work() -> None:
    few, many = counted(100), counted(1_000)
    assert 900 < many - few < 900 * 200
    assert counted(1_000) == pytest.approx(many, rel=0.1)
