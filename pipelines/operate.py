"""Operating the jobs of a Flink cluster: list, savepoint, stop, drain, cancel, rescale. Each says what it did and how to undo it."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from streamgauge.pipelines.follow import Follower, cluster_state, failing, note_watermark, quietly, reason
from streamgauge.pipelines.job import JobError, home, job_folder
from streamgauge.pipelines.live import View
from streamgauge.pipelines.progress import done
from streamgauge.pipelines.reshard import with_reach
from streamgauge.pipelines.run_cluster import LIVING, finish
from streamgauge.pipelines.run_state import LAYOUTS, last_run, local_path, remember
from streamgauge.pipelines.services import stack
from streamgauge.pipelines.services.flink_conf import TOLERABLE_CHECKPOINT_FAILURES
from streamgauge.pipelines.services.flink_rest import FlinkRest
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.state_layout import read_layouts, write_layouts

CANCEL_SECONDS = 60.0


@dataclass(frozen=True)
class JobStatus:
    """A job of a cluster, as people ask for it.

    Attributes:
        since: when it was started, epoch seconds. restarts: since its JobManager took it over. why: what it last restarted or died of.
        checkpoint_age: seconds since the last complete checkpoint. checkpoint_bytes, checkpoint_ms: its size and duration.
        failing: how many checkpoints failed since. failing_why: why the last one did.
    """

    name: str
    id: str
    state: str
    since: float
    parallelism: int
    restarts: int = 0
    why: str | None = None
    checkpoint_age: float | None = None
    checkpoint_bytes: int = 0
    checkpoint_ms: int = 0
    failing: int = 0
    failing_why: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def default_cluster() -> str:
    """HOST:PORT of the cluster that ``streamgauge stack`` runs here, else Flink's usual address."""
    for server in stack.status(home() / "stack"):
        if server.name == "flink" and server.state == "running" and server.address:
            return server.address
    return f"127.0.0.1:{stack.PORTS['flink']}"


def list_jobs(flink: FlinkRest) -> list[JobStatus]:
    """Every job that the cluster knows, those that run first. Raises ServiceError."""
    found = [_status(flink, job["jid"], job["name"], job["state"], job["start-time"] / 1e3) for job in flink.jobs()]
    return sorted(found, key=lambda job: (job.state not in LIVING, -job.since))


def _status(flink: FlinkRest, job_id: str, name: str, state: str, since: float) -> JobStatus:
    checkpoints = quietly(lambda: flink.checkpoints(job_id), {})
    latest = (checkpoints.get("latest") or {}).get("completed") or {}
    count, why_failing = failing(checkpoints)
    trace = quietly(lambda: flink.root_exception(job_id), None)
    return JobStatus(
        name=name, id=job_id, state=state, since=since, parallelism=quietly(lambda: flink.parallelism_of(job_id), 0),
        restarts=quietly(lambda: flink.restarts(job_id), 0) if state in LIVING else 0,
        why=reason(trace) if trace else None,
        checkpoint_age=time.time() - latest["latest_ack_timestamp"] / 1e3 if latest else None,
        checkpoint_bytes=int(latest.get("state_size", 0)), checkpoint_ms=int(latest.get("end_to_end_duration", 0)),
        failing=count, failing_why=why_failing,
    )  # fmt: skip


def job_lines(jobs: list[JobStatus], address: str) -> list[str]:
    """The jobs as people read them."""
    if not jobs:
        return [f"no jobs on {address}; start one: streamgauge run JOB.yaml --flink {address}"]
    lines = []
    for job in jobs:
        checkpoint = "no checkpoint yet"
        if job.checkpoint_age is not None:
            checkpoint = f"checkpoint {job.checkpoint_age:.0f} s ago, {job.checkpoint_bytes / 1024:,.0f} kB in {job.checkpoint_ms} ms"
        since = f"{datetime.fromtimestamp(job.since):%Y-%m-%d %H:%M:%S}"
        alive = f"{checkpoint}, {job.restarts} restarts" if job.state in LIVING else "its state is kept" if job.checkpoint_age is not None else ""
        lines.append(f"{job.name:<20} {job.state:<10} {job.id}  since {since}  parallelism {job.parallelism}  {alive}".rstrip())
        if job.failing and job.state in LIVING:
            lines.append(f"  the last {job.failing} checkpoints failed: {job.failing_why}")
        if job.why and (job.state in LIVING or job.state == "FAILED"):
            lines.append(f"  {'failed' if job.state == 'FAILED' else 'last restarted'}: {job.why}")
    return lines


def savepoint(flink: FlinkRest, job: str, folder: Path | None) -> str:
    """Takes a savepoint; the job goes on. Returns what was done."""
    name, job_id = find(flink, job)
    path = _described(name, local_path(flink.savepoint(job_id, folder.resolve().as_uri() if folder else None)))
    return f"{name}: savepoint {path}; the job goes on. To start from it: streamgauge resume JOB.yaml --from {path}. It is yours to delete."


def stop(flink: FlinkRest, job: str, folder: Path | None) -> str:
    """Takes a savepoint and ends the job with it. Returns what was done."""
    name, job_id = find(flink, job)
    path = stop_with_savepoint(flink, name, job_id, folder)
    return f"{name}: stopped with savepoint {path}. To go on from it: streamgauge resume JOB.yaml"


def stop_with_savepoint(flink: FlinkRest, name: str, job_id: str, folder: Path | None = None) -> Path:
    """Ends the job and remembers the savepoint for its next run; returns its path."""
    note_watermark(flink, job_id, JobRecord(job_folder(name) / "record"))
    path = _described(name, local_path(flink.stop_with_savepoint(job_id, folder.resolve().as_uri() if folder else None)))
    run = last_run(job_folder(name))
    if run is not None and run.job_id == job_id:
        remember(job_folder(name), replace(run, savepoint=str(path)))
    return path


def _described(name: str, savepoint: Path) -> Path:
    """Puts beside a savepoint what it holds, so that a changed job can tell whether it fits; returns its path."""
    known = job_folder(name) / LAYOUTS
    if known.exists() and savepoint.exists():
        layouts = read_layouts(known)
        # The record tells of all that left the job before now, so of all that is in the savepoint.
        layouts[-1] = with_reach(layouts[-1], JobRecord(job_folder(name) / "record"))
        write_layouts(savepoint / LAYOUTS, layouts)
    return savepoint


def drain(flink: FlinkRest, job: str, shown: View) -> str:
    """Has the readers end where they are, waits until all windows are stored, ends the job. Returns what was done.

    Flink's own drain is never used: it does not come back while a splittable DoFn reads an unbounded source.
    """
    name, job_id = find(flink, job)
    folder = job_folder(name)
    record = JobRecord(folder / "record")
    if not record.all("splits"):
        raise JobError(f"{name}: there is no record of its readers in {folder}; call drain in the folder in which the job was started")
    note_watermark(flink, job_id, record)
    record.ask_to_drain()
    follower = Follower(flink, record, name, shown, cluster_state(flink, job_id), job_id, TOLERABLE_CHECKPOINT_FAILURES)
    ended = follower.follow(threading.Event())
    if ended != "done":
        raise JobError(f"{name}: {ended} before it was drained: {follower.reason() or 'see streamgauge jobs'}")
    finish(folder, flink, job_id)
    return f"{done(name, record)}; all windows are stored, those that were open with what was read so far"


def cancel(flink: FlinkRest, job: str) -> str:
    """Ends the job at once; its last checkpoint stays. Returns what was done."""
    name, job_id = find(flink, job)
    note_watermark(flink, job_id, JobRecord(job_folder(name) / "record"))
    flink.cancel(job_id)
    deadline = time.monotonic() + CANCEL_SECONDS
    while flink.job(job_id)["state"] in (*LIVING, "CANCELLING"):
        if time.monotonic() > deadline:
            return f"{name}: asked to end, but it has not after {CANCEL_SECONDS:g} s; see {flink.rest_url}"
        time.sleep(0.1)
    return f"{name}: cancelled. To go on from its last checkpoint: streamgauge resume JOB.yaml"


def find(flink: FlinkRest, job: str) -> tuple[str, str]:
    """Name and id of a job that runs, given by its name, its file or its id. Raises JobError."""
    name = Path(job).stem if job.endswith((".yaml", ".yml")) else job
    jobs = [found for found in flink.jobs() if found["state"] in LIVING]
    for found in jobs:
        if name in (found["name"], found["jid"]):
            return str(found["name"]), str(found["jid"])
    running = ", ".join(sorted(str(found["name"]) for found in jobs)) or "none"
    raise JobError(f"no job {name} runs on {flink.rest_url}; running: {running}")
