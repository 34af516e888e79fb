"""The driver, on a command that only pretends, and faults that hit sleeping processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from streamgauge.pipelines.services.process import free_port
from streamgauge.transforms.record import JobRecord
from tests.faults.driver import Outcome, drive
from tests.faults.proxy import Proxy
from tests.faults.schedule import Step
from tests.faults.target import Scene

TOTAL = 1_000
LONG_S = 100.0


class Nobody:
    """A cluster of which nothing runs."""

    rest_url = ""

    def parts(self) -> dict[str, int]:
        return {}

    def worker_pids(self) -> list[int]:
        return []


class Pretended:
    """A command that reads some records each time it is asked whether it runs."""

    def __init__(self, record: Path, each: int = 100, code: int | None = 0) -> None:
        self._record, self._each, self._code = JobRecord(record), each, code
        self._read = 0
        self.seconds = 0.0
        self.out, self.err = "said this\n", "and this\n"

    def running(self) -> bool:
        self.seconds += 1.0
        self._read = min(self._read + self._each, TOTAL)
        self._record.put("splits", "t-0", {"split": "t-0", "start": 10, "position": 10 + self._read, "done": self._read == TOTAL}, now=True)
        return self._read < TOTAL or self._code is None

    def wait(self) -> int:
        assert self._code is not None
        return self._code


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Proxy(free_port(), free_port()) as proxy:
        yield Scene(Nobody(), cast(Any, None), cast(Any, None), proxy)


Drive = Callable[..., Outcome]


@pytest.fixture
def drives(scene: Scene, tmp_path: Path) -> Drive:
    def go(steps: list[Step], lines: list[str], **pretended: Any) -> Outcome:
        return drive(scene, cast(Any, Pretended(tmp_path, **pretended)), tmp_path, steps, TOTAL, 30.0, lines.append)

    return go


def cut(share: float) -> Step:
    return Step("network-cut", share, LONG_S, 0.0, 0)


def test_faults_strike_as_their_shares_are_read(drives: Drive) -> None:
    lines: list[str] = []
    outcome = drives([cut(0.25), cut(0.75)], lines)
    assert outcome.failure is None
    assert [strike.kind for strike in outcome.strikes] == ["network-cut"] * 2
    shares = [float(line.split()[2]) for line in lines if "network to Kafka cut" in line]
    assert shares == [30.0, 80.0]
    assert sum("mended" in line for line in lines) == 2
    assert lines[-1].endswith("the job has ended")


def test_what_lasts_is_undone_at_the_end(drives: Drive) -> None:
    lines: list[str] = []
    outcome = drives([Step("network-cut", 0.5, LONG_S, LONG_S, 0)], lines)
    assert not outcome.strikes[0].lasts
    assert lines[-1].endswith("mended")


def test_a_kind_does_not_strike_while_it_lasts(drives: Drive) -> None:
    outcome = drives([Step("network-cut", 0.2, LONG_S, LONG_S, 0), cut(0.5)], [])
    assert len(outcome.strikes) == 1
    assert outcome.failure is not None and outcome.failure.startswith("the job ended before network-cut could strike")


def test_a_job_that_fails_is_told_with_what_it_said(drives: Drive) -> None:
    outcome = drives([], [], code=3)
    assert outcome.failure is not None
    assert outcome.failure.startswith("the job ended with 3\n")
    assert "said this\nand this" in outcome.failure
    assert "t-0: position 1010, done True" in outcome.failure


def test_a_job_that_hangs_is_told(drives: Drive) -> None:
    outcome = drives([], [], code=None)
    assert outcome.failure is not None and outcome.failure.startswith("the job has not ended in 3")


def test_a_fault_without_a_victim_waits_for_one(drives: Drive) -> None:
    outcome = drives([Step("worker-kill", 0.1, LONG_S, 0.0, 0)], [])
    assert outcome.strikes == []
    assert outcome.failure is not None and "before worker-kill could strike" in outcome.failure
