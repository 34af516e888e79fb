"""Whether a job on Flink has ended, told from what its REST API says, which is not always of this attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from streamgauge.pipelines import follow
from streamgauge.pipelines.follow import Follower
from streamgauge.pipelines.live import view
from streamgauge.pipelines.progress import Snapshot
from streamgauge.pipelines.services.flink_rest import END_OF_TIME_MS, FlinkRest
from streamgauge.transforms.record import JobRecord

BEGAN_MS = 1_000_000

FAILURE = {"timestamp": 1, "stacktrace": "java.lang.X: failed"}
READ: dict[str, Any] = {"done": True, "finished": True, "events": 1, "rejected": 0, "newest": None, "watermark": None, "position": 1, "source": "files"}
"""A split that is read."""


@dataclass
class Flink:
    """What the REST API of a job with three vertices answers."""

    exceptions_: list[dict[str, Any]] = field(default_factory=list)
    restored: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    taken: int = 0
    fails_at: int = -1
    """The checkpoint that is taken while the job fails and comes back."""
    during: Callable[[], None] = lambda: None
    """Happens while a checkpoint is taken."""

    def exceptions(self, job_id: str) -> list[dict[str, Any]]:
        return self.exceptions_

    def attempt(self, job_id: str) -> tuple[int, int]:
        return BEGAN_MS, 3

    def checkpoints(self, job_id: str) -> dict[str, Any]:
        return {"counts": {"completed": 1}, "latest": {"restored": self.restored}, "history": self.history}

    def checkpoint_now(self, job_id: str, pause: Callable[[float], bool]) -> bool:
        if pause(0.0):
            return False
        self.during()
        if self.taken == self.fails_at:
            self.exceptions_ = [{**FAILURE, "timestamp": BEGAN_MS}]
        self.taken += 1
        return True


def follower(flink: Flink, folder: Path, state: str = "running", **read_at_ms: float) -> Follower:
    """Of a job whose readers said of splits, at these times, that they are done."""
    record = JobRecord(str(folder))
    for name, moment in read_at_ms.items():
        record.put("splits", name, {**READ, "updated": moment / 1e3}, now=True)
    return Follower(flink, record, "job", view("job", json_lines=True), lambda: state, "1")  # type: ignore[arg-type]


def ended(flink: Flink, folder: Path, watermark: int | None = END_OF_TIME_MS, **read_at_ms: float) -> bool:
    return follower(flink, folder, **read_at_ms)._at_end("1", watermark)


def test_watermarks_tell_of_a_job_that_never_failed(tmp_path: Path) -> None:
    flink = Flink()
    assert ended(flink, tmp_path, a=BEGAN_MS + 1)
    assert flink.taken == 1, "what was stored is in a checkpoint"


@pytest.mark.parametrize("fails_at", [-1, 0])
def test_watermarks_of_an_attempt_that_failed_over_its_last_rows_do_not_tell(tmp_path: Path, fails_at: int) -> None:
    flink = Flink([FAILURE] if fails_at < 0 else [], fails_at=fails_at)
    assert not ended(flink, tmp_path, a=BEGAN_MS - 1)


def test_after_a_failure_checkpoints_tell_once_everything_is_read_again(tmp_path: Path) -> None:
    flink = Flink([FAILURE])
    assert ended(flink, tmp_path, a=BEGAN_MS + 1)
    assert flink.taken == 3 + 2


def restarted(complete_ms: int | None) -> Flink:
    """A job that began from a checkpoint that was complete then; None: so long ago that Flink does not remember."""
    history = [{"id": 8, "status": "COMPLETED", "latest_ack_timestamp": BEGAN_MS + 9}, *([{"id": 7, "status": "COMPLETED", "latest_ack_timestamp": complete_ms}] if complete_ms else [])]
    return Flink([FAILURE], {"id": 7}, history)


@pytest.mark.parametrize(
    ("complete_ms", "seconds", "expected"),
    [
        (BEGAN_MS - 50, 4, False), (BEGAN_MS - 50, 6, True), (None, 4, False), (None, 6, True),
        (BEGAN_MS - 150, 6, False), (BEGAN_MS - 150, 61, True),  # by the clock it must be read again: but whose clock?
    ],
)  # fmt: skip
@pytest.mark.parametrize("others", [{}, {"b": BEGAN_MS + 5}])
def test_what_was_read_before_the_job_began_from_a_checkpoint_need_not_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complete_ms: int | None, seconds: int, expected: bool, others: dict[str, float]
) -> None:
    """Its readers get time to say otherwise."""
    monkeypatch.setattr(follow.time, "time", lambda: BEGAN_MS / 1e3 + seconds)
    assert ended(restarted(complete_ms), tmp_path, a=BEGAN_MS - 100, **others) is expected


def test_a_job_that_began_without_a_checkpoint_reads_everything_again(tmp_path: Path) -> None:
    assert not ended(Flink([FAILURE]), tmp_path, a=BEGAN_MS - 100, b=BEGAN_MS + 5)


@pytest.mark.parametrize("name", ["a", "b"])
def test_what_is_read_while_checkpoints_are_taken_is_not_behind_them(tmp_path: Path, name: str) -> None:
    """A split is read again, or one is found."""
    flink = restarted(None)
    flink.during = lambda: JobRecord(str(tmp_path)).put("splits", name, {**READ, "updated": BEGAN_MS / 1e3 + 7}, now=True)
    assert not ended(flink, tmp_path, a=BEGAN_MS - 100)
    assert ended(flink, tmp_path)


def test_nobody_waits_for_a_checkpoint_of_a_job_that_was_stopped(tmp_path: Path) -> None:
    stopped = follower(Flink(), tmp_path, "stopped", a=BEGAN_MS + 1)
    assert not stopped._at_end("1", None) and stopped._flink.taken == 0  # type: ignore[attr-defined]
    interrupted = follower(Flink(), tmp_path)
    interrupted._interrupted.set()
    assert not interrupted._at_end("1", None) and interrupted._flink.taken == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("operation", "expected"), [({"checkpointId": 20}, True), ({"failureCause": {"class": "CompletionException", "stack-trace": "expired"}}, False)]
)
def test_a_checkpoint_that_failed_is_none(monkeypatch: pytest.MonkeyPatch, operation: dict[str, Any], expected: bool) -> None:
    """What Flink 1.19 answers: both are completed."""
    answers = iter([{"request-id": "1"}, {"status": {"id": "IN_PROGRESS"}}, {"status": {"id": "COMPLETED"}, "operation": operation}])
    monkeypatch.setattr(FlinkRest, "_call", lambda *_: next(answers))
    assert FlinkRest("http://127.0.0.1:1").checkpoint_now("1", lambda _: False) is expected


@pytest.mark.parametrize(("done", "expected"), [([], True), ([True, False], False), ([True, True], True)])
def test_the_end_is_asked_for_when_every_known_split_is_read(tmp_path: Path, done: list[bool], expected: bool) -> None:
    record = JobRecord(str(tmp_path))
    for number, value in enumerate(done):
        record.put("splits", str(number), {"done": value, "updated": 0.0}, now=True)
    assert follower(Flink(), tmp_path)._may_end() is expected


def test_for_how_long_a_checkpoint_has_been_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow.time, "time", lambda: 100.0)
    done, running = {"status": "COMPLETED", "trigger_timestamp": 1}, {"status": "IN_PROGRESS", "trigger_timestamp": 88_500}
    assert follow.under_way({"history": [running, done]}) == 11
    assert follow.under_way({"history": [done]}) == follow.under_way({}) == 0


def test_a_long_checkpoint_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    for seconds, expected in ((9, False), (37, True)):
        view("job", json_lines=False).show(Snapshot(checkpoint_open_s=seconds))
        assert ("a checkpoint has been under way for 37 s" in capsys.readouterr().out) is expected
