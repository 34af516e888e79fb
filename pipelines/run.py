"""Running a job: on the DirectRunner, on an embedded Flink, or with Beam options of the user's own.

A streaming job never shuts its own sources down: a job that does can complete no checkpoint any more. Whoever launched it sees
that every watermark has reached the end of time, waits for one more checkpoint (behind which every row is durable) and stops it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import FrameType
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.yaml.yaml_transform import expand_pipeline

from streamgauge.pipelines.job import Job, JobError, Output, job_folder, origins
from streamgauge.pipelines.live import View, view
from streamgauge.pipelines.progress import snapshot
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink import EmbeddedFlink, flink_options, latest_checkpoint, silence_unknown_options
from streamgauge.pipelines.services.process import tail
from streamgauge.transforms.aggregate import late_schema
from streamgauge.transforms.dead_letter import SCHEMA as DEAD_LETTER_SCHEMA
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.rows import RowSpec

POLL_SECONDS = 0.5
PARALLELISM = 2
CHECKPOINT_MS = 1_000
LOG_LINES = 200
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
    with _only_run(folder, job.name), _view(job.name, json_lines) as shown, _logs_to(folder / "worker.log"):
        for read in job.reads:
            read.source.create().splits()
        if runner in ("direct", "flink") and flink is None:
            _open_stores(job)
        if runner == "direct":
            return _run_direct(job, folder, options, shown)
        if runner == "flink" and flink is None:
            return _run_embedded(job, folder, fresh, options, shown)
        return _run_elsewhere(job, folder, runner, flink, options, shown)


def _open_stores(job: Job) -> None:
    """Opens each store once: a wrong path or address is found before anything starts, and not by a worker that tries again and again."""
    for step in job.of("WriteResults"):
        for output in origins(step):
            schema = _row_schema(output)
            if schema is None:
                continue
            sink = step.options.to.create()
            try:
                sink.open(schema, RowSpec.of(schema))
            except ValueError as error:
                raise JobError(f"{job.path}:{step.line}: {error}") from None
            finally:
                sink.close()


def _row_schema(output: Output) -> pa.Schema | None:
    """Columns of the rows of an output; None where a transform of Beam's makes them."""
    metric = output.step.metric
    if output.kind == "dead letters":
        return DEAD_LETTER_SCHEMA
    if metric is None:
        return None
    return late_schema(metric) if output.kind == "late events" else metric.result_schema


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
        with _stderr_to(folder / "worker.log"), _interrupts(at_once=True) as interrupted:
            _build(job, folder, options, FnApiRunner()).run().wait_until_finish()
    except (KeyboardInterrupt, Exception) as error:  # the runner raises whatever a worker raised, and Ctrl-C in a worker as an error
        if interrupted.is_set():
            shown.say(f"{job.name}: interrupted. The same command starts it anew: the DirectRunner keeps no checkpoints.")
            return INTERRUPTED
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
    JobRecord(folder / "record").clear()
    shown.say(f"{job.name}: {chosen}{f' at {flink}' if flink else ''}")
    try:
        state = _build(job, folder, [f"--runner={chosen}", *where, *options]).run().wait_until_finish()
    except RuntimeError as error:  # of the runner, with what the job server said
        shown.say(f"{job.name} failed: {_reason(str(error))} (log: {folder / 'worker.log'})")
        return 1
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
    state.started(checkpoint)
    flink.start()
    # Bundles that the end of Flink cuts off fail too.
    with _stderr_to(folder / "worker.log"), flink, _interrupts() as interrupted:
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
        shown.say(f"{job.name} failed: {follower.failure()} (logs: {folder / 'worker.log'}, {flink.log_path})")
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
        if values["completed"] or found is None:
            return None
        if values["job"] != self._job.fingerprint:
            raise JobError(
                f"{self._job.path}: the job has changed since checkpoint {found.name}; undo the change to resume, or start anew with --fresh"
            )
        return found

    def started(self, checkpoint: Path | None) -> None:
        """Only what the run resumes from is kept: whatever checkpoint there is later, it is one of this job."""
        for run in (self._folder / "flink" / "checkpoints").glob("*"):
            if checkpoint is None or run not in checkpoint.parents:
                shutil.rmtree(run, ignore_errors=True)
        self._write(completed=False)

    def completed(self) -> None:
        self._write(completed=True)

    def _write(self, *, completed: bool) -> None:
        self._path.write_text(json.dumps({"job": self._job.fingerprint, "completed": completed}))


class _Follower:
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

    def _ended(self) -> bool:
        """All input was processed, and what came of it is durable: the sinks' bundles ended before the checkpoint."""
        return self._flink.at_end(str(self._job_id)) and self._flink.checkpoint_now(str(self._job_id))

    def stop(self) -> None:
        """Cancel the job; its checkpoints stay."""
        if self._job_id is not None:
            self._quietly(lambda: self._flink.cancel(str(self._job_id)), None)

    def failure(self) -> str:
        """Why the job failed: a mini cluster that has given up answers no more, so this is the reason it last restarted, else what its log ends with."""
        return self._why or _reason(tail(self._flink.log_path, LOG_LINES))

    def _figures(self) -> dict[str, int]:
        checkpoints = self._quietly(lambda: self._flink.checkpoints(str(self._job_id)), {})
        if not checkpoints:
            return {}
        latest = (checkpoints.get("latest") or {}).get("completed") or {}
        failures = self._quietly(lambda: self._flink.exceptions(str(self._job_id)), [])
        if len(failures) > self._told_restarts:
            self._told_restarts = len(failures)
            self._why = _reason(str(failures[0]["stacktrace"]))
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


def _reason(trace: str) -> str:
    """The one line of a stack trace that says why: Python's last exception, else Java's innermost cause.

    >>> _reason("java.lang.X: Traceback (most recent call last):\\n  File 1\\nstruct.error: too short [while running 'Read']\\n\\n\\tat java")
    'struct.error: too short'
    >>> _reason("java.lang.X: failed\\nCaused by: java.io.Y: no space\\n\\tat java")
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
    path.unlink(missing_ok=True)
    handler = logging.FileHandler(path)
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
def _stderr_to(path: Path) -> Iterator[None]:
    """Beam's worker prints the stack trace of every failed bundle, besides logging it."""
    with path.open("a") as file, redirect_stderr(file):
        yield


@contextmanager
def _interrupts(*, at_once: bool = False) -> Iterator[threading.Event]:
    """Set by Ctrl-C and by SIGTERM; a second one, or with ``at_once`` the first, raises KeyboardInterrupt too."""
    event = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        again = event.is_set()
        event.set()
        if again or at_once:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
