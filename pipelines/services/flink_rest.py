"""The part of Flink's REST interface that a launcher and tests need."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

from streamgauge.pipelines.services.errors import ServiceError

TIMEOUT_S = 10.0
# Flink translates a job, and reads what it is restored from, before it answers.
SUBMIT_TIMEOUT_S = 120.0
# Flink's watermark before the first one (its Long.MIN_VALUE), in milliseconds.
NO_WATERMARK_MS = -(1 << 63)
# Flink's last watermark (Long.MAX_VALUE).
END_OF_TIME_MS = (1 << 63) - 1
POLL_S = 0.05
LONGEST_POLL_S = 0.4
SAVEPOINT_TIMEOUT_S = 120.0


class FlinkRefused(ServiceError):
    """Flink answered with an error. `code` is HTTP's, `details` what Flink says, stack traces included."""

    def __init__(self, code: int, message: str, details: str) -> None:
        super().__init__(message)
        self.code, self.details = code, details


class FlinkRest:
    """Questions and orders to the Flink cluster at `rest_url`. Every call raises ServiceError when it cannot answer."""

    def __init__(self, rest_url: str) -> None:
        self.rest_url = rest_url.rstrip("/")
        self._plans: dict[str, list[dict[str, Any]]] = {}

    def overview(self) -> dict[str, Any]:
        """`taskmanagers`, `slots-total`, `slots-available`, `jobs-running`, `flink-version` and so on."""
        return dict(self._call("/overview"))

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs: `jid`, `name`, `state`, `start-time` (epoch milliseconds), `tasks` and so on."""
        return list(self._call("/jobs/overview")["jobs"])

    def cluster_configuration(self) -> dict[str, str]:
        """The JobManager's configuration, keys that Flink does not know included."""
        return {str(entry["key"]): str(entry["value"]) for entry in self._call("/jobmanager/config")}

    def job(self, job_id: str) -> dict[str, Any]:
        """One job: `name`, `state`, `vertices`, `start-time` and so on."""
        return dict(self._call(f"/jobs/{job_id}"))

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

    def least_watermark(self, job_id: str) -> int | None:
        """The least input watermark of the vertices that read from another, epoch milliseconds; None while one of them has none.

        ``END_OF_TIME_MS`` and more: all input was processed. It may be an old one: a job that was restarted can show those of an earlier attempt.
        """
        found = []
        for node in self._nodes(job_id):
            if node.get("inputs"):
                found += [int(w["value"]) for w in self._call(f"/jobs/{job_id}/vertices/{node['id']}/watermarks")] or [NO_WATERMARK_MS]
        return None if not found or min(found) == NO_WATERMARK_MS else min(found)

    def _nodes(self, job_id: str) -> list[dict[str, Any]]:
        """The vertices of the job's plan; none while a new JobManager makes itself familiar with the job."""
        nodes = self._plans.get(job_id) or list(self._call(f"/jobs/{job_id}/plan")["plan"].get("nodes") or [])
        if nodes:
            self._plans[job_id] = nodes
        return nodes

    def attempt(self, job_id: str) -> tuple[int, int] | None:
        """Tells one attempt to run the job from the next: when its first vertex started (epoch milliseconds), and how many vertices it has.

        None while not all of them run.
        """
        vertices = self.job(job_id)["vertices"]
        if not vertices or any(vertex["status"] != "RUNNING" for vertex in vertices):
            return None
        return min(int(vertex["start-time"]) for vertex in vertices), len(vertices)

    def checkpoint_now(self, job_id: str, pause: Callable[[float], object] = time.sleep) -> bool:
        """Takes a checkpoint and waits for it: what was processed before is then durable. False when it failed.

        Args:
            pause: waits for so many seconds between two looks; when it returns something true, the wait ends and the answer is False.
        """
        trigger = self._call(f"/jobs/{job_id}/checkpoints", "POST", {"checkpointType": "CONFIGURED"})["request-id"]
        seconds = POLL_S
        while not pause(seconds):
            answer = self._call(f"/jobs/{job_id}/checkpoints/{trigger}")
            if answer["status"]["id"] == "COMPLETED":
                # A failed one is completed too, with its `failureCause`.
                return answer["operation"].get("checkpointId") is not None
            seconds = min(2 * seconds, LONGEST_POLL_S)
        return False

    def exceptions(self, job_id: str) -> list[dict[str, Any]]:
        """Failures of the job, newest first: `exceptionName`, `stacktrace`, `timestamp` (epoch milliseconds)."""
        return list(self._call(f"/jobs/{job_id}/exceptions")["exceptionHistory"]["entries"])

    def root_exception(self, job_id: str) -> str | None:
        """The stack trace of the failure that a job died of, or last restarted after; None when there was none."""
        found = self._call(f"/jobs/{job_id}/exceptions").get("root-exception")
        return None if found is None else str(found)

    def restarts(self, job_id: str) -> int:
        """How often the job was restarted since its JobManager took it over."""
        for metric in self._call(f"/jobs/{job_id}/metrics?get=numRestarts"):
            return int(metric["value"])
        return 0

    def parallelism_of(self, job_id: str) -> int:
        """The largest parallelism of its vertices."""
        return max((int(vertex["parallelism"]) for vertex in self.job(job_id)["vertices"]), default=0)

    def savepoint(self, job_id: str, folder: str | None = None, timeout_s: float = SAVEPOINT_TIMEOUT_S) -> str:
        """Takes a savepoint; the job goes on. Returns its URI.

        Raises:
            ServiceError: it failed, with the reason, or took longer than `timeout_s` seconds.
        """
        return self._savepoint(job_id, "savepoints", {"target-directory": folder, "cancel-job": False}, timeout_s)

    def stop_with_savepoint(self, job_id: str, folder: str | None = None, timeout_s: float = SAVEPOINT_TIMEOUT_S) -> str:
        """Takes a savepoint and ends the job with it. Returns its URI. Raises as `savepoint`."""
        return self._savepoint(job_id, "stop", {"targetDirectory": folder, "drain": False}, timeout_s)

    def _savepoint(self, job_id: str, how: str, body: dict[str, object], timeout_s: float) -> str:
        given = {key: value for key, value in body.items() if value is not None}
        trigger = self._call(f"/jobs/{job_id}/{how}", "POST", given)["request-id"]
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            answer = self._call(f"/jobs/{job_id}/savepoints/{trigger}")
            if answer["status"]["id"] == "COMPLETED":
                operation = answer["operation"]
                if "location" in operation:
                    return str(operation["location"])
                raise ServiceError(f"The savepoint failed: {innermost(str(operation['failure-cause'].get('stack-trace', 'no reason given')))}")
            time.sleep(POLL_S)
        raise ServiceError(f"The savepoint was not done after {timeout_s:g} s.")

    def cancel(self, job_id: str) -> None:
        """Ask for the end of the job; its retained checkpoints stay."""
        self._call(f"/jobs/{job_id}?mode=cancel", "PATCH")

    def upload(self, jar: bytes) -> str:
        """Gives the cluster a jar to run; returns its id."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="jarfile"; filename="job.jar"\r\nContent-Type: application/x-java-archive\r\n\r\n'
        body = head.encode() + jar + f"\r\n--{boundary}--\r\n".encode()
        answer = self._send("/jars/upload", "POST", body, f"multipart/form-data; boundary={boundary}", SUBMIT_TIMEOUT_S)
        return str(answer["filename"]).rpartition("/")[2]

    def run_jar(self, jar_id: str, **settings: object) -> str:
        """Runs an uploaded jar with the settings that Flink's REST API documents for it; returns the id of the job."""
        return str(self._send(f"/jars/{jar_id}/run", "POST", json.dumps(settings).encode(), "application/json", SUBMIT_TIMEOUT_S)["jobid"])

    def delete_jar(self, jar_id: str) -> None:
        """Forget an uploaded jar."""
        self._call(f"/jars/{jar_id}", "DELETE")

    def _call(self, path: str, method: str = "GET", body: object = None) -> Any:
        return self._send(path, method, None if body is None else json.dumps(body).encode(), "application/json", TIMEOUT_S)

    def _send(self, path: str, method: str, data: bytes | None, content_type: str, timeout_s: float) -> Any:
        request = urllib.request.Request(self.rest_url + path, data, {"Content-Type": content_type}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise FlinkRefused(error.code, f"Flink at {self.rest_url} answered {error.code} to {path}: {error.reason}.", _errors(error)) from None
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise ServiceError(f"Flink at {self.rest_url} did not answer: {error}.") from None


def innermost(trace: str) -> str:
    """The last cause in a Java stack trace, without its class.

    >>> innermost("java.lang.X: failed\\nCaused by: java.io.Y: no space\\n\\tat java.io")
    'no space'
    """
    lines = [line.strip().removeprefix("Caused by: ") for line in trace.splitlines() if line.strip()]
    causes = [line.strip().removeprefix("Caused by: ") for line in trace.splitlines() if line.strip().startswith("Caused by: ")]
    kind, colon, message = (causes or lines[:1] or [""])[-1].partition(": ")
    return message if colon else kind


def _errors(error: urllib.error.HTTPError) -> str:
    """What Flink says of a request that failed, with its stack traces."""
    try:
        return "\n".join(str(line) for line in json.loads(error.read())["errors"])
    except (ValueError, KeyError, TypeError, OSError):
        return ""
