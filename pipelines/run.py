"""Running a job: on the DirectRunner, on an embedded Flink, or with Beam options of the user's own.

A streaming job never shuts its own sources down: a job that does can complete no checkpoint any more. Whoever launched it sees
that every watermark has reached the end of time, waits for one more checkpoint (behind which every row is durable) and stops it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.yaml.yaml_transform import expand_pipeline

from streamgauge.pipelines.job import Job, JobError, job_folder
from streamgauge.pipelines.live import View, view
from streamgauge.pipelines.progress import snapshot
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink import EmbeddedFlink, flink_options, latest_checkpoint, silence_unknown_options
from streamgauge.transforms.record import JobRecord

POLL_SECONDS = 0.5
PARALLELISM = 2
CHECKPOINT_MS = 1_000
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def run_job(job: Job, *, runner: str | None, flink: str | None, fresh: bool, options: list[str], json_lines: bool) -> int:
    """Runs a job to its end, or until Ctrl-C. Returns the exit code: 0 done, 1 failed, 130 interrupted.

    Args:
        runner: ``direct``, ``flink`` or any runner that Beam knows; None: direct for bounded input, flink else.
        flink: host:port of a Beam job server for a Flink cluster; None: an embedded Flink.
        fresh: start anew, whatever checkpoints there are.
        options: Beam options, which win over ours.
        json_lines: progress as JSON lines on standard output.
    """
    runner = runner or ("direct" if job.bounded else "flink")
    folder = job_folder(job.name)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_run(folder, job.name), _logs_to(folder / "worker.log"), _view(job.name, json_lines) as shown:
        for read in job.reads:
            read.source.create().splits()
        if runner == "direct":
            return _run_direct(job, folder, options, shown)
        if runner == "flink" and flink is None:
            return _run_embedded(job, folder, fresh, options, shown)
        return _run_elsewhere(job, folder, runner, flink, options, shown)


def _build(job: Job, folder: Path, options: list[str], runner: Any = None) -> beam.Pipeline:
    silence_unknown_options()
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([f"--record_folder={folder / 'record'}", *job.options, *options]))
    expand_pipeline(pipeline, job.spec)
    return pipeline


def _run_direct(job: Job, folder: Path, options: list[str], shown: View) -> int:
    """The FnApiRunner, in this process. Chosen by name: Beam's switch would first try to fetch another runner.

    Its worker's state cache cannot be configured, and weighs every entry by walking all loaded modules, 0.4 ms a state
    operation: more than everything else together. State here is read once, so there is nothing to cache.
    """
    worker_handlers.STATE_CACHE_SIZE_MB = 0
    record = JobRecord(folder / "record")
    record.clear()
    shown.say(f"{job.name}: DirectRunner")
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(POLL_SECONDS):
            shown.show(snapshot(record))

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        _build(job, folder, options, FnApiRunner()).run().wait_until_finish()
    except KeyboardInterrupt:
        shown.say("interrupted; a bounded job on the DirectRunner starts anew the next time")
        return INTERRUPTED
    except Exception as error:  # the runner raises whatever a worker raised
        shown.say(f"{job.name} failed: {_reason(str(error))} (log: {folder / 'worker.log'})")
        return 1
    finally:
        stop.set()
        follower.join()
    shown.show(snapshot(record))
    shown.say(_done(job.name, record))
    return 0


def _run_elsewhere(job: Job, folder: Path, runner: str, flink: str | None, options: list[str], shown: View) -> int:
    """Submitted with Beam's own options: a job server of the user's, Beam's FlinkRunner, Dataflow."""
    chosen = {"flink": "PortableRunner", "dataflow": "DataflowRunner"}.get(runner, runner)
    where = [f"--job_endpoint={flink}", "--environment_type=LOOPBACK"] if flink else []
    if "flink" in runner.lower() and not job.bounded:
        where += ["--streaming", *flink_options(_option(options, "parallelism", PARALLELISM), _option(options, "checkpointing_interval", CHECKPOINT_MS))]
    shown.say(f"{job.name}: {chosen}{f' at {flink}' if flink else ''}")
    result = _build(job, folder, [f"--runner={chosen}", *where, *options]).run()
    state = result.wait_until_finish()
    return 0 if state == "DONE" else 1


def _run_embedded(job: Job, folder: Path, fresh: bool, options: list[str], shown: View) -> int:
    state = _State(folder, job)
    checkpoint = None if fresh else state.checkpoint()
    record = JobRecord(folder / "record")
    if checkpoint is None:
        record.clear()
    flink = EmbeddedFlink(
        folder / "flink", _option(options, "parallelism", PARALLELISM), _option(options, "checkpointing_interval", CHECKPOINT_MS), restore_from=checkpoint
    )
    shown.say(f"{job.name}: embedded Flink, " + (f"resumed from checkpoint {checkpoint.name}" if checkpoint else "started anew"))
    with flink, _interrupts() as interrupted:
        state.started()
        result = _build(job, folder, [*flink.pipeline_options(), *options]).run()
        follower = _Follower(flink, record, job.name, shown)
        ended = follower.follow(interrupted, lambda: str(result.state))
        if ended == "done":
            follower.stop()
            state.completed()
            shown.say(_done(job.name, record))
            return 0
        if ended == "interrupted":
            follower.stop()
            found = latest_checkpoint(flink.folder)
            how = f"from checkpoint {found.name}" if found else "from its start (there was no checkpoint yet)"
            shown.say(f"{job.name}: interrupted. The same command resumes it {how}; with --fresh it starts anew.")
            return INTERRUPTED
        shown.say(f"{job.name} failed: {_reason(follower.failure())} (logs: {folder / 'worker.log'}, {flink.log_path})")
        return 1


class _State:
    """Whether there is something to resume, and of what job."""

    def __init__(self, folder: Path, job: Job) -> None:
        self._folder = folder
        self._path = folder / "run.json"
        self._job = job

    def checkpoint(self) -> Path | None:
        """The checkpoint to resume from. Raises JobError when the job file has changed since."""
        if not self._path.exists():
            return None
        values = json.loads(self._path.read_text())
        found = latest_checkpoint(self._folder / "flink")
        if values["completed"] or found is None or found.stat().st_mtime < values["started"]:
            return None
        if values["job"] != self._job.fingerprint:
            raise JobError(
                f"{self._job.path}: the job has changed since checkpoint {found.name}; undo the change to resume, or start anew with --fresh"
            )
        return found

    def started(self) -> None:
        self._write(completed=False)

    def completed(self) -> None:
        self._write(completed=True)

    def _write(self, *, completed: bool) -> None:
        self._path.write_text(json.dumps({"job": self._job.fingerprint, "started": time.time(), "completed": completed}))


class _Follower:
    """Watches one job on an embedded Flink."""

    def __init__(self, flink: EmbeddedFlink, record: JobRecord, name: str, shown: View) -> None:
        self._flink, self._record, self._name, self._shown = flink, record, name, shown
        self._job_id: str | None = None
        self._told_restarts = 0

    def follow(self, interrupted: threading.Event, state: Callable[[], str]) -> str:
        """``done``, ``interrupted`` or ``failed``."""
        while not interrupted.wait(POLL_SECONDS):
            if state() in ("FAILED", "CANCELLED") or not self._flink.running:
                return "failed"
            if self._job_id is None:
                self._job_id = next((str(job["jid"]) for job in self._quietly(self._flink.jobs, [])), None)
                continue
            self._shown.show(snapshot(self._record, self._figures()))
            if self._quietly(lambda: self._flink.at_end(str(self._job_id)), False):
                if self._quietly(lambda: self._flink.checkpoint_now(str(self._job_id)), False):
                    self._shown.show(snapshot(self._record, self._figures()))
                    return "done"
        return "interrupted"

    def stop(self) -> None:
        """Cancel the job; its checkpoints stay."""
        if self._job_id is not None:
            self._quietly(lambda: self._flink.cancel(str(self._job_id)), None)

    def failure(self) -> str:
        """The newest exception of the job, else what the log ends with."""
        found = self._quietly(lambda: self._flink.exceptions(str(self._job_id)), []) if self._job_id else []
        return str(found[0]["stacktrace"]) if found else "see the logs"

    def _figures(self) -> dict[str, int]:
        checkpoints = self._quietly(lambda: self._flink.checkpoints(str(self._job_id)), {})
        if not checkpoints:
            return {}
        latest = (checkpoints.get("latest") or {}).get("completed") or {}
        failures = self._quietly(lambda: self._flink.exceptions(str(self._job_id)), [])
        if len(failures) > self._told_restarts:
            self._told_restarts = len(failures)
            self._shown.say(f"{self._name}: restarting from the last checkpoint: {_reason(str(failures[0]['stacktrace']))}")
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


def _reason(trace: str) -> str:
    """The one line of a stack trace that says why: the innermost cause, Python's rather than Java's."""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    python = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "Mismatch", "Warning")) and not line.startswith(("Caused by", "java.", "org.", "at "))]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    found = (python or causes[-1:] or lines[:1] or ["unknown"])[-1]
    return found.split(" [while running")[0]


def _done(name: str, record: JobRecord) -> str:
    now = snapshot(record)
    return f"{name}: done, {now.events:,} events, {now.rejected:,} rejected, {now.late:,} late"


def _option(options: list[str], name: str, default: int) -> int:
    """The value of a Beam option that the embedded Flink must know too."""
    for option in options:
        if option.startswith(f"--{name}="):
            return int(option.partition("=")[2])
    return default


def wait_for_end(flink: EmbeddedFlink, state: Callable[[], str]) -> bool:
    """Waits until the one job on ``flink`` has processed all its input and stored all its rows; False when it failed."""
    follower = _Follower(flink, JobRecord(None), "job", view("job", json_lines=False))
    return follower.follow(threading.Event(), state) == "done"


@contextmanager
def _view(name: str, json_lines: bool) -> Iterator[View]:
    shown = view(name, json_lines=json_lines)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def _only_run(folder: Path, name: str) -> Iterator[None]:
    """One run of a job at a time: two would overwrite each other's checkpoints."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JobError(f"{name} is running already, in {folder}; stop it first, or give the copy another file name") from None
        yield


@contextmanager
def _logs_to(path: Path) -> Iterator[None]:
    """What Beam and the workers log goes to a file: people see the view, and a line for each failure."""
    handler = logging.FileHandler(path, mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    before, root.handlers = root.handlers, [handler]
    hook = threading.excepthook

    def log_thread(args: threading.ExceptHookArgs) -> None:
        # Beam's connections to the job server end with an exception in their threads when it stops.
        root.warning("thread %s ended", args.thread and args.thread.name, exc_info=args.exc_value)

    threading.excepthook = log_thread
    try:
        yield
    finally:
        threading.excepthook = hook
        root.handlers = before
        handler.close()


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Set by Ctrl-C and by SIGTERM; a second Ctrl-C ends at once."""
    event = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
