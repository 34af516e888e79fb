"""Following a job on Flink: how far it is, whether it has ended, why it failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from streamgauge.pipelines.live import View, view
from streamgauge.pipelines.progress import snapshot
from streamgauge.pipelines.run_state import PASSED
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink import EmbeddedFlink
from streamgauge.pipelines.services.flink_rest import END_OF_TIME_MS, FlinkRefused, FlinkRest
from streamgauge.pipelines.services.process import tail
from streamgauge.transforms.record import JobRecord

POLL_SECONDS = 0.5
ASK_SECONDS = 2.0
"""Between two looks at Flink while there is more to read: a look costs both sides some ten milliseconds of CPU, which the job then lacks."""

SETTLED_SECONDS, DOUBTFUL_SECONDS = 5.0, 60.0
"""So long after a job came back, every reader that has something left to read has begun: readers go on at once. The latter where they should have, by the clocks."""

LOG_LINES = 200
_CUT_OFF = "Checkpoint Coordinator is suspending"
OUTAGE_SECONDS = 180.0
"""A cluster that does not answer for so long is given up: a JobManager that died is back well before."""


class Follower:
    """Watches one job.

    Args:
        state: what became of the job: ``running``, ``failed``, or ``stopped`` by someone else.
        job_id: Flink's; None: of the first job that Flink knows.
        tolerable: so many checkpoints may fail in a row before the job restarts; None: any number.
    """

    def __init__(
        self, flink: FlinkRest, record: JobRecord, name: str, shown: View, state: Callable[[], str], job_id: str | None = None,
        tolerable: int | None = None,
    ) -> None:  # fmt: skip
        self._flink, self._record, self._name, self._shown, self._state = flink, record, name, shown, state
        self._job_id = job_id
        self._tolerable = tolerable
        self._interrupted = threading.Event()
        self._told_restart: object = None
        self._told_failed = 0
        self._why: str | None = None
        self._asked = float("-inf")
        self._flinks: dict[str, int] = {}

    def follow(self, interrupted: threading.Event) -> str:
        """``done``, ``interrupted``, ``failed`` or ``stopped``."""
        self._interrupted = interrupted
        while not interrupted.wait(POLL_SECONDS):
            if (state := self._state()) != "running":
                return state
            if self._job_id is None:
                self._job_id = next((str(job["jid"]) for job in quietly(self._flink.jobs, [])), None)
                continue
            may_end = self._may_end()
            if not self._look(now=may_end):
                continue
            passed = note_watermark(self._flink, self._job_id, self._record)
            if may_end and quietly(partial(self._at_end, self._job_id, passed), False):
                self._look(now=True)
                return "done"
        return "interrupted"

    def _look(self, *, now: bool = False) -> bool:
        """Shows how far the job is. Flink is asked, too, if the last time is a while ago, or ``now``; returns whether it was."""
        asks = now or time.monotonic() - self._asked >= ASK_SECONDS
        if asks:
            self._asked, self._flinks = time.monotonic(), self._figures()
        self._shown.show(snapshot(self._record, self._flinks))
        return asks

    def _may_end(self) -> bool:
        """Whether it is worth asking for the end: readers have said so of every split, or of none yet."""
        return all(split["done"] for split in self._record.all("splits"))

    def _at_end(self, job_id: str, passed: int | None) -> bool:
        """Whether all input was processed and every row is durable; ``passed``: the least watermark.

        Flink's watermarks tell, but those that its REST API shows of a job that was restarted can be old ones for ever, of an attempt that failed
        over its last rows, too: they are believed only of a job that never failed. Hence a second way. A checkpoint completes only behind every
        watermark that was sent before it, and when bundles were open, at least one vertex further on. So when all is read, after as many checkpoints
        in one attempt as there are vertices, and one more, the end has come everywhere. One before them ends the bundles that readers began
        when the attempt did: whoever found something left to read has said so by then.
        """
        if passed is not None and passed >= END_OF_TIME_MS and not self._flink.exceptions(job_id):
            return self._checkpoint(job_id) and not self._flink.exceptions(job_id)
        attempt = self._flink.attempt(job_id)
        if attempt is None:
            return False
        began, vertices = attempt
        splits = self._record.all("splits")
        if not splits or not self._all_read(job_id, splits, began):
            return False
        told = all(self._checkpoint(job_id) for _ in range(vertices + 2))
        # The same record: no split was read since, and none is in it that a slow reader began late.
        return told and self._flink.attempt(job_id) == attempt and self._record.all("splits") == splits

    def _all_read(self, job_id: str, splits: list[dict[str, Any]], began: int) -> bool:
        """Whether nothing is left to read for an attempt that began then (epoch milliseconds): readers have said so of each split, in this attempt, or before the
        checkpoint that it began from was complete. Of the latter some may have been read after their part of the checkpoint was taken: they are read again,
        and readers say that when the attempt begins.
        """
        if not all(split["done"] for split in splits):
            return False
        earlier = [split["updated"] * 1e3 for split in splits if split["updated"] * 1e3 <= began]
        if not earlier:
            return True
        checkpoints = self._flink.checkpoints(job_id)
        restored = checkpoints["latest"].get("restored")
        if restored is None:
            return False
        # Flink remembers the last few checkpoints only.
        completed = [int(each["latest_ack_timestamp"]) for each in checkpoints["history"] if each["id"] == restored["id"]]
        # What was read later than that must be read again, unless the clocks of two hosts differ.
        seconds = SETTLED_SECONDS if not completed or max(earlier) < completed[0] else DOUBTFUL_SECONDS
        return time.time() * 1e3 >= began + seconds * 1e3

    def _checkpoint(self, job_id: str) -> bool:
        """Takes a checkpoint, which lasts while many windows close at once. False when it failed, or nobody waits for it any more."""
        return self._flink.checkpoint_now(job_id, self._pause)

    def _pause(self, seconds: float) -> bool:
        """Waits; returns whether the job is to be left alone."""
        return self._interrupted.wait(seconds) or (self._look() and self._state() != "running")

    def stop(self) -> None:
        """Cancel the job; its checkpoints stay."""
        if self._job_id is not None:
            quietly(lambda: self._flink.cancel(str(self._job_id)), None)

    def reason(self) -> str | None:
        """Why the job last restarted, as far as was seen: an embedded Flink that has given up answers no more."""
        return self._why

    def _figures(self) -> dict[str, int]:
        checkpoints = quietly(lambda: self._flink.checkpoints(str(self._job_id)), {})
        if not checkpoints:
            return {}
        latest = (checkpoints.get("latest") or {}).get("completed") or {}
        failures = quietly(lambda: self._flink.exceptions(str(self._job_id)), [])
        if failures and failures[0]["timestamp"] != self._told_restart:
            self._told_restart = failures[0]["timestamp"]
            self._why = reason(str(failures[0]["stacktrace"]))
            self._shown.say(f"{self._name}: restarting from the last checkpoint: {self._why}")
        failed, why = failing(checkpoints)
        if failed > self._told_failed:
            then = "the job goes on, and after a failure reads again what came since the last good one"
            if self._tolerable is not None:
                then = f"after {self._tolerable + 1} the job restarts from the last good one"
            self._shown.say(f"{self._name}: {failed} checkpoint{'s have' if failed > 1 else ' has'} failed in a row: {why}; {then}")
        self._told_failed = failed
        return {
            "checkpoints": int(checkpoints["counts"]["completed"]),
            "checkpoints_failing": failed,
            "checkpoint_bytes": int(latest.get("state_size", 0)),
            "checkpoint_ms": int(latest.get("end_to_end_duration", 0)),
            "checkpoint_open_s": under_way(checkpoints),
            "restarts": len(failures),
        }


def failing(checkpoints: dict[str, Any]) -> tuple[int, str]:
    """How many of the last checkpoints failed in a row, and why the last one did. Those that a restart of the job cut off do not count."""
    reasons = []
    for checkpoint in checkpoints.get("history") or []:
        if checkpoint["status"] == "COMPLETED":
            break
        why = str(checkpoint.get("failure_message") or "no reason given").partition("\n")[0]
        if checkpoint["status"] == "FAILED" and _CUT_OFF not in why:
            reasons.append(why)
    return len(reasons), reasons[0] if reasons else ""


def under_way(checkpoints: dict[str, Any]) -> int:
    """For how many seconds a checkpoint has been under way; 0: none is. It waits where thousands of windows close at once."""
    begun = [int(each["trigger_timestamp"]) for each in checkpoints.get("history") or [] if each["status"] == "IN_PROGRESS"]
    return max(int(time.time() - min(begun) / 1e3), 0) if begun else 0


def note_watermark(flink: FlinkRest, job_id: str, record: JobRecord) -> int | None:
    """Writes down how far every step is, for a replay (see run_state.py), and returns it: epoch milliseconds, None when it is not known."""
    passed: int | None = quietly(lambda: flink.least_watermark(job_id), None)
    if passed is not None:
        record.put(*PASSED, {"watermark": passed})
    return passed


def embedded_state(flink: EmbeddedFlink, state: Callable[[], str]) -> Callable[[], str]:
    """What became of a job on an embedded Flink; ``state`` is Beam's, which calls a cancelled job failed."""
    return lambda: "failed" if state() in ("FAILED", "CANCELLED") or not flink.running else "running"


def cluster_state(flink: FlinkRest, job_id: str) -> Callable[[], str]:
    """What became of a job on a cluster, whose JobManager may be away for a while.

    The callable raises ServiceError when it has been away for too long.
    """
    seen = time.monotonic()

    def state() -> str:
        nonlocal seen
        try:
            found = str(flink.job(job_id)["state"])
        except FlinkRefused:
            # A JobManager that has just come back does not know its jobs yet.
            return "running" if time.monotonic() - seen < OUTAGE_SECONDS else "stopped"
        except ServiceError as error:
            if time.monotonic() - seen > OUTAGE_SECONDS:
                raise ServiceError(f"{error} It has been so for {OUTAGE_SECONDS:g} s; the job may still run.") from None
            return "running"
        seen = time.monotonic()
        return {"FAILED": "failed", "CANCELED": "stopped", "FINISHED": "stopped"}.get(found, "running")

    return state


def quietly(call: Callable[[], Any], otherwise: Any) -> Any:
    """While a job starts or ends, or a JobManager is replaced, Flink may not answer for a moment, or with less than usual."""
    try:
        return call()
    except (ServiceError, LookupError):
        return otherwise


def reason(trace: str) -> str:
    """The one line of a stack trace that says why: Python's last exception, else Java's innermost cause.

    >>> reason("java.lang.X: Traceback (most recent call last):\\n  File 1\\nstruct.error: too short [while running 'Read']\\n\\n\\tat java")
    'struct.error: too short'
    >>> reason("java.lang.X: failed\\nCaused by: java.io.Y: no space\\n\\tat java")
    'java.io.Y: no space'
    """
    lines = [line for line in trace.splitlines() if line.strip()]
    python = [
        next((line for line in lines[number + 1 :] if not line[0].isspace()), "")
        for number, line in enumerate(lines) if line.endswith("Traceback (most recent call last):")
    ]  # fmt: skip
    causes = [line.strip().removeprefix("Caused by: ") for line in lines if line.strip().startswith("Caused by: ")]
    found = next((line for line in (*reversed(python), *reversed(causes), *lines) if line), "unknown")
    kind, _, message = found.split(" [while running")[0].partition(": ")
    return message if kind.endswith((".SinkError", ".SourceError")) else f"{kind}: {message}" if message else kind


def failure(flink: EmbeddedFlink, follower: Follower) -> str:
    """Why the job of an embedded Flink failed: the reason it last restarted, else what its log ends with."""
    return follower.reason() or reason(tail(flink.log_path, LOG_LINES))


def wait_for_end(flink: EmbeddedFlink, state: Callable[[], str]) -> bool:
    """Waits until the one job on ``flink`` has processed all its input and stored all its rows; False when it failed."""
    follower = Follower(flink, JobRecord(None), "job", view("job", json_lines=False), embedded_state(flink, state))
    return follower.follow(threading.Event()) == "done"
