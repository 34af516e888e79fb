"""Whether a job on Flink has ended, told from what its REST API says, which is not always of this attempt."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from streamgauge.pipelines.follow import Follower
from streamgauge.pipelines.live import view
from streamgauge.pipelines.services.flink_rest import END_OF_TIME_MS
from streamgauge.transforms.record import JobRecord

BEGAN_MS = 1_000_000


@dataclass
class Flink:
    """What the REST API of a job with three vertices answers."""

    exceptions_: list[dict[str, Any]] = field(default_factory=list)
    restored: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    taken: int = 0
    fails_at: int = -1
    """The checkpoint that is taken while the job fails and comes back."""

    def exceptions(self, job_id: str) -> list[dict[str, Any]]:
        return self.exceptions_

    def attempt(self, job_id: str) -> tuple[int, int]:
        return BEGAN_MS, 3

    def checkpoints(self, job_id: str) -> dict[str, Any]:
        return {"latest": {"restored": self.restored}, "history": self.history}

    def checkpoint_now(self, job_id: str) -> bool:
        if self.taken == self.fails_at:
            self.exceptions_ = [{"timestamp": BEGAN_MS}]
        self.taken += 1
        return True


def ended(flink: Flink, folder: Path, read_at_ms: float, watermark: int | None = END_OF_TIME_MS) -> bool:
    """``read_at_ms``: when the reader of the one split said that it is done."""
    record = JobRecord(str(folder))
    record.put("splits", "0", {"done": True, "updated": read_at_ms / 1e3}, now=True)
    follower = Follower(flink, record, "job", view("job", json_lines=True), lambda: "running", "1")  # type: ignore[arg-type]
    return follower._at_end("1", watermark)


def test_watermarks_tell_of_a_job_that_never_failed(tmp_path: Path) -> None:
    flink = Flink()
    assert ended(flink, tmp_path, BEGAN_MS + 1)
    assert flink.taken == 1, "what was stored is in a checkpoint"


@pytest.mark.parametrize("fails_at", [-1, 0])
def test_watermarks_of_an_attempt_that_failed_over_its_last_rows_do_not_tell(tmp_path: Path, fails_at: int) -> None:
    flink = Flink([{"timestamp": 1}] if fails_at < 0 else [], fails_at=fails_at)
    assert not ended(flink, tmp_path, BEGAN_MS - 1)


def test_after_a_failure_checkpoints_tell_once_everything_is_read_again(tmp_path: Path) -> None:
    flink = Flink([{"timestamp": 1}])
    assert ended(flink, tmp_path, BEGAN_MS + 1)
    assert flink.taken == 1 + 3 + 1


@pytest.mark.parametrize(("taken_ms", "expected"), [(BEGAN_MS - 50, True), (BEGAN_MS - 150, False)])
def test_an_attempt_that_begins_behind_the_end_of_the_input_ends_too(tmp_path: Path, taken_ms: int, expected: bool) -> None:
    flink = Flink([{"timestamp": 1}], {"id": 7}, [{"id": 8, "trigger_timestamp": BEGAN_MS + 9}, {"id": 7, "trigger_timestamp": taken_ms}])
    assert ended(flink, tmp_path, BEGAN_MS - 100) is expected


@pytest.mark.parametrize(("done", "expected"), [([], True), ([True, False], False), ([True, True], True)])
def test_the_end_is_asked_for_when_every_known_split_is_read(tmp_path: Path, done: list[bool], expected: bool) -> None:
    record = JobRecord(str(tmp_path))
    for number, value in enumerate(done):
        record.put("splits", str(number), {"done": value, "updated": 0.0}, now=True)
    follower = Follower(Flink(), record, "job", view("job", json_lines=True), lambda: "running", "1")  # type: ignore[arg-type]
    assert follower._may_end() is expected
