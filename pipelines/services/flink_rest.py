"""The part of Flink's REST interface that a launcher and tests need."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from streamgauge.pipelines.services.errors import ServiceError

TIMEOUT_S = 10.0
# Flink's watermark before the first one (its Long.MIN_VALUE), in milliseconds.
NO_WATERMARK_MS = -(1 << 63)
# Flink's last watermark (Long.MAX_VALUE).
END_OF_TIME_MS = (1 << 63) - 1
POLL_S = 0.05


class FlinkRest:
    """Questions and orders to the Flink cluster at `rest_url`. Every call raises ServiceError when it cannot answer."""

    def __init__(self, rest_url: str) -> None:
        self.rest_url = rest_url.rstrip("/")

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs: `jid`, `name`, `state`, `start-time` (epoch milliseconds), `tasks` and so on."""
        return list(self._call("/jobs/overview")["jobs"])

    def checkpoints(self, job_id: str) -> dict[str, Any]:
        """Checkpoint statistics: `counts`, `summary`, `latest`, `history` (sizes in bytes, times in milliseconds)."""
        return dict(self._call(f"/jobs/{job_id}/checkpoints"))

    def watermarks(self, job_id: str) -> dict[str, int]:
        """The least input watermark of each vertex by name, epoch milliseconds; vertices without one are left out.

        Flink collects these when they are asked for and answers with what it had: the first answer is often empty,
        later ones are older by up to `metrics.fetcher.update-interval`. Poll.
        """
        found = {}
        for vertex in self._call(f"/jobs/{job_id}")["vertices"]:
            values = [int(w["value"]) for w in self._call(f"/jobs/{job_id}/vertices/{vertex['id']}/watermarks")]
            if values and min(values) != NO_WATERMARK_MS:
                found[str(vertex["name"])] = min(values)
        return found

    def at_end(self, job_id: str) -> bool:
        """Whether the watermark of every vertex that reads from another has reached the end of time: all input was processed."""
        for node in self._call(f"/jobs/{job_id}/plan")["plan"]["nodes"]:
            if node.get("inputs"):
                values = [int(w["value"]) for w in self._call(f"/jobs/{job_id}/vertices/{node['id']}/watermarks")]
                if not values or min(values) < END_OF_TIME_MS:
                    return False
        return True

    def checkpoint_now(self, job_id: str, timeout_s: float = 60.0) -> bool:
        """Takes a checkpoint and waits for it: what was processed before is then durable. False when it failed or took too long."""
        trigger = self._call(f"/jobs/{job_id}/checkpoints", "POST", {"checkpointType": "CONFIGURED"})["request-id"]
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            answer = self._call(f"/jobs/{job_id}/checkpoints/{trigger}")
            if answer["status"]["id"] == "COMPLETED":
                return "failure-cause" not in (answer.get("operation") or {})
            time.sleep(POLL_S)
        return False

    def exceptions(self, job_id: str) -> list[dict[str, Any]]:
        """Failures of the job, newest first: `exceptionName`, `stacktrace`, `timestamp` (epoch milliseconds)."""
        return list(self._call(f"/jobs/{job_id}/exceptions")["exceptionHistory"]["entries"])

    def cancel(self, job_id: str) -> None:
        """Ask for the end of the job; its retained checkpoints stay."""
        self._call(f"/jobs/{job_id}?mode=cancel", "PATCH")

    def _call(self, path: str, method: str = "GET", body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.rest_url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise ServiceError(f"Flink at {self.rest_url} answered {error.code} to {path}: {error.reason}.") from None
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise ServiceError(
                f"Flink at {self.rest_url} did not answer: {error}. An embedded one answers only while a job runs."
            ) from None
