"""Running a job on a Flink cluster: submit, follow, let go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamgauge.pipelines.follow import Follower, cluster_state, quietly, reason
from streamgauge.pipelines.job import Job, JobError
from streamgauge.pipelines.job_layout import layout_of
from streamgauge.pipelines.live import View
from streamgauge.pipelines.progress import done
from streamgauge.pipelines.run_build import build
from streamgauge.pipelines.run_scope import interrupts, waiting_for
from streamgauge.pipelines.run_state import Run, last_run, local_path, remember, start_anew, start_from, start_layouts, start_replay
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink import flink_options
from streamgauge.pipelines.services.flink_conf import TOLERABLE_CHECKPOINT_FAILURES
from streamgauge.pipelines.services.flink_rest import FlinkRest
from streamgauge.pipelines.services.flink_submit import environment_options, submit
from streamgauge.transforms.record import JobRecord

LIVING = ("INITIALIZING", "CREATED", "RUNNING", "RESTARTING", "FAILING", "RECONCILING", "SUSPENDED")
"""Flink's states of a job that is not over."""


@dataclass(frozen=True)
class Launch:
    """How a job is started on a cluster.

    Attributes:
        fresh: start anew, whatever there is to resume from. restore_from: a savepoint or checkpoint; None: where the last run stopped.
        allow_dropped: state that no step claims any more is forgotten; else that is an error.
        replay: from recorded positions instead of state. detach: come back once it runs. must_resume: there has to be something to resume from.
        parallelism: None: as the last run had it, else all slots of the cluster. checkpoint_interval_ms: milliseconds.
        options: Beam options, which win over ours.
    """

    fresh: bool = False
    restore_from: Path | None = None
    allow_dropped: bool = False
    replay: bool = False
    detach: bool = False
    must_resume: bool = False
    parallelism: int | None = None
    checkpoint_interval_ms: int = 1_000
    options: tuple[str, ...] = ()


def living_job(flink: FlinkRest, name: str) -> str | None:
    """Id of the job of this name that is not over; None if there is none."""
    return next((str(job["jid"]) for job in flink.jobs() if job["name"] == name and job["state"] in LIVING), None)


def run_on_cluster(job: Job, folder: Path, address: str, launch: Launch, shown: View) -> int:
    """Submits the job, or finds it running, and follows it. Returns the exit code: 0 done or let go, 1 failed."""
    flink = FlinkRest(f"http://{address}")
    job_id = living_job(flink, job.name)
    if job_id is None:
        job_id = _start(job, folder, address, flink, launch, shown)
    else:
        run = last_run(folder)
        if launch.fresh or launch.replay or launch.restore_from or launch.must_resume or run is None or run.job != job.fingerprint:
            raise JobError(f"{job.name} runs on {address} already, as job {job_id}; stop it first: streamgauge stop {job.name}")
        shown.say(f"{job.name}: runs on {address} as job {job_id}")
    if launch.detach:
        shown.say(f"  to follow it: streamgauge run {job.path} --flink {address}; to stop it: streamgauge stop {job.name}")
        return 0
    return _follow(job, folder, address, flink, job_id, shown)


def _start(job: Job, folder: Path, address: str, flink: FlinkRest, launch: Launch, shown: View) -> str:
    where = environment_options(flink)
    run = last_run(folder)
    restore = _resume_point(job, run, address, launch)
    parallelism = launch.parallelism or (run.parallelism if run and restore else None) or int(flink.overview()["slots-total"])
    record = JobRecord(folder / "record")
    layouts = [layout_of(job, parallelism)]
    if restore is not None:
        own, dropped = run is not None and run.left(restore), launch.allow_dropped
        layouts = start_from(job, folder, record, restore, layouts[0], own=own, allow_dropped=dropped, named_sources=True, say=shown.say)
    elif launch.replay:
        start_replay(job, folder, record, shown.say)
    else:
        start_anew(folder, record)
    streaming = ["--streaming", *flink_options(parallelism, launch.checkpoint_interval_ms), *where, *start_layouts(folder, layouts), *launch.options]
    with _readable(restore, address), waiting_for(f"the cluster at {address}", shown):
        pipeline = build(job, folder, streaming)
        job_id = submit(flink, pipeline, pipeline.options, restore.as_uri() if restore else None, allow_dropped=launch.allow_dropped)
    checkpoints = str(local_path(flink.cluster_configuration()["state.checkpoints.dir"]))
    remember(folder, Run(job.fingerprint, False, address, job_id, checkpoints, parallelism, restored_from=str(restore) if restore else None))
    how = f"resumed from {_kind(restore)} {restore.name}" if restore else "started anew"
    shown.say(f"{job.name}: {how} on {address} as job {job_id}, parallelism {parallelism}")
    return job_id


def _resume_point(job: Job, run: Run | None, address: str, launch: Launch) -> Path | None:
    if launch.fresh or launch.replay:
        return None
    if launch.restore_from is not None:
        return _existing(launch.restore_from)
    found = run.newest() if run and not run.completed and run.flink else None
    if found is not None:
        return _existing(found)
    if launch.must_resume:
        raise JobError(f"{job.name}: there is nothing to resume from; name a savepoint or checkpoint with --from, or start it: streamgauge run {job.path}")
    return None


def _existing(path: Path) -> Path:
    """The folder of a savepoint or checkpoint. Raises JobError when it is none."""
    if (path / "_metadata").exists():
        return path.resolve()
    inside = sorted(child.parent.name for child in path.glob("*/_metadata")) if path.is_dir() else []
    if inside:
        raise JobError(f"{path} holds several savepoints or checkpoints; name one of them: {', '.join(inside[-5:])}")
    what = "has no file _metadata: it is no complete savepoint or checkpoint" if path.exists() else "is not there: was it moved or deleted?"
    raise JobError(f"{path} {what}. Name another with --from, or start anew with --fresh")


def _kind(path: Path) -> str:
    return "checkpoint" if path.name.startswith("chk-") else "savepoint"


@contextmanager
def _readable(restore: Path | None, address: str) -> Iterator[None]:
    """Flink's words for a savepoint that does not fit, in ours."""
    try:
        yield
    except ServiceError as error:
        if restore is not None and "Cannot map checkpoint/savepoint state" in str(error):
            raise ServiceError(
                f"{restore} holds the state of steps that this job does not have: it is a savepoint of another job, or steps were removed or "
                "renamed. Name another with --from; or, to forget their state, add --drop-state."
            ) from None
        raise


def _follow(job: Job, folder: Path, address: str, flink: FlinkRest, job_id: str, shown: View) -> int:
    record = JobRecord(folder / "record")
    with interrupts() as interrupted:
        follower = Follower(flink, record, job.name, shown, cluster_state(flink, job_id), job_id, TOLERABLE_CHECKPOINT_FAILURES)
        ended = follower.follow(interrupted)
    if ended == "done":
        finish(folder, flink, job_id)
        shown.say(done(job.name, record))
        return 0
    if ended == "interrupted":
        shown.say(f"{job.name}: goes on, on {address}. To follow it again: the same command; to stop it: streamgauge stop {job.name}")
        return 0
    if ended == "stopped":
        shown.say(f"{job.name}: was stopped. To go on from there: streamgauge resume {job.path}")
        return 0
    trace: Any = quietly(lambda: flink.root_exception(job_id), None)
    shown.say(
        f"{job.name} failed: {reason(trace) if trace else follower.reason() or 'Flink gives no reason'} (web interface: {flink.rest_url}). "
        f"To go on from its last checkpoint: streamgauge resume {job.path}"
    )
    return 1


def finish(folder: Path, flink: FlinkRest, job_id: str) -> None:
    """Ends a job that has come to the end of its input, with every row stored."""
    flink.cancel(job_id)
    run = last_run(folder)
    if run is not None:
        remember(folder, Run(run.job, True, run.flink, run.job_id, run.checkpoints, run.parallelism))
