"""Following a job on an embedded Flink: how far it is, whether it has ended, why it failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from streamgauge.pipelines.live import View, view
from streamgauge.pipelines.progress import snapshot
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink import EmbeddedFlink
from streamgauge.pipelines.services.process import tail
from streamgauge.transforms.record import JobRecord

POLL_SECONDS = 0.5
LOG_LINES = 200


class Follower:
    """Watches one job on an embedded Flink."""

    def __init__(self, flink: EmbeddedFlink, record: JobRecord, name: str, shown: View) -> None:
        self._flink, self._record, self._name, self._shown = flink, record, name, shown
        self._job_id: str | None = None
        self._told_restarts = 0
        self._why: str | None = None

    def follow(self, interrupted: threading.Event, state: Callable[[], str]) -> str:
        """``done``, ``interrupted`` or ``failed``."""
        while not interrupted.wait(POLL_SECONDS):
            if state() in ("FAILED", "CANCELLED") or not self._flink.running:
                return "failed"
            if self._job_id is None:
                self._job_id = next((str(job["jid"]) for job in self._quietly(self._flink.jobs, [])), None)
                continue
            self._shown.show(snapshot(self._record, self._figures()))
            at_end = self._quietly(lambda: self._flink.at_end(str(self._job_id)), False)
            if at_end and self._quietly(lambda: self._flink.checkpoint_now(str(self._job_id)), False):
                self._shown.show(snapshot(self._record, self._figures()))
                return "done"
        return "interrupted"

    def stop(self) -> None:
        """Cancel the job; its checkpoints stay."""
        if self._job_id is not None:
            self._quietly(lambda: self._flink.cancel(str(self._job_id)), None)

    def failure(self) -> str:
        """Why the job failed: a mini cluster that has given up answers no more, so this is the reason it last restarted, else what its log ends with."""
        return self._why or reason(tail(self._flink.log_path, LOG_LINES))

    def _figures(self) -> dict[str, int]:
        checkpoints = self._quietly(lambda: self._flink.checkpoints(str(self._job_id)), {})
        if not checkpoints:
            return {}
        latest = (checkpoints.get("latest") or {}).get("completed") or {}
        failures = self._quietly(lambda: self._flink.exceptions(str(self._job_id)), [])
        if len(failures) > self._told_restarts:
            self._told_restarts = len(failures)
            self._why = reason(str(failures[0]["stacktrace"]))
            self._shown.say(f"{self._name}: restarting from the last checkpoint: {self._why}")
        return {
            "checkpoints": int(checkpoints["counts"]["completed"]),
            "checkpoint_bytes": int(latest.get("state_size", 0)),
            "checkpoint_ms": int(latest.get("end_to_end_duration", 0)),
            "restarts": len(failures),
        }

    @staticmethod
    def _quietly(call: Callable[[], Any], otherwise: Any) -> Any:
        """While a job starts or ends, Flink may not answer for a moment."""
        try:
            return call()
        except ServiceError:
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


def wait_for_end(flink: EmbeddedFlink, state: Callable[[], str]) -> bool:
    """Waits until the one job on ``flink`` has processed all its input and stored all its rows; False when it failed."""
    follower = Follower(flink, JobRecord(None), "job", view("job", json_lines=False))
    return follower.follow(threading.Event(), state) == "done"
