"""Running a job: on the DirectRunner, on an embedded Flink, or with Beam options of the user's own.

A streaming job never shuts its own sources down: a job that does can complete no checkpoint any more. Whoever launched it sees
that every watermark has reached the end of time, waits for one more checkpoint (behind which every row is durable) and stops it.
"""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers

from streamgauge.pipelines.follow import POLL_SECONDS, Follower, embedded_state, failure, reason
from streamgauge.pipelines.job import Job, JobError, Output, job_folder, origins
from streamgauge.pipelines.job_layout import layout_of
from streamgauge.pipelines.live import View
from streamgauge.pipelines.progress import done, snapshot
from streamgauge.pipelines.run_build import build
from streamgauge.pipelines.run_cluster import Launch, run_on_cluster
from streamgauge.pipelines.run_scope import interrupts, logs_to, only_run, shown_as, stderr_to, waiting_for
from streamgauge.pipelines.run_state import Run, last_run, remember, start_anew, start_from, start_layouts, start_replay
from streamgauge.pipelines.services.flink import EmbeddedFlink, flink_options, latest_checkpoint
from streamgauge.pipelines.services.quick_bundles import quick_bundles
from streamgauge.transforms.dead_letter import SCHEMA as DEAD_LETTER_SCHEMA
from streamgauge.transforms.formats.compiled import load_numba
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.reduce import late_schema
from streamgauge.transforms.rows import RowSpec

PARALLELISM = 1
CHECKPOINT_MS = 1_000
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def run_job(
    job: Job, *, runner: str | None, flink: str | None, fresh: bool, options: list[str], json_lines: bool, launch: Launch | None = None
) -> int:
    """Runs a job to its end, or until Ctrl-C. Returns the exit code: 0 done, 1 failed, 130 interrupted.

    Args:
        runner: ``direct``, ``flink`` or any runner that Beam knows; None: direct for bounded input, flink else.
        flink: host:port of a Flink cluster's REST API; None: an embedded Flink.
        fresh: start anew, whatever checkpoints there are.
        options: Beam options, which win over ours.
        json_lines: progress as JSON lines on standard output.
        launch: how it is started, on a cluster above all.
    """
    launch = launch or Launch()
    runner = runner or ("direct" if job.bounded and flink is None else "flink")
    if flink is not None and runner != "flink":
        raise JobError(f"--flink {flink} and --runner {runner} do not go together; leave one of them out")
    folder = job_folder(job.name)
    folder.mkdir(parents=True, exist_ok=True)
    if flink is None:
        quick_bundles()
    with only_run(folder, job.name), shown_as(job.name, json_lines) as shown, logs_to(folder / "worker.log"):
        for read in job.reads:
            connector = read.source.create()
            with waiting_for(connector.name, shown):
                connector.splits()
        if runner in ("direct", "flink"):
            _open_stores(job, shown)
        if launch.replay and runner != "flink":
            raise JobError(f"--replay is for runs on Flink; the runner here is {runner}")
        if runner == "direct":
            return _run_direct(job, folder, options, shown)
        if flink is not None:
            parallelism = _option(options, "parallelism", 0) or None
            interval = _option(options, "checkpointing_interval", CHECKPOINT_MS)
            launch = replace(launch, fresh=fresh, options=tuple(options), parallelism=parallelism, checkpoint_interval_ms=interval)
            return run_on_cluster(job, folder, flink, launch, shown)
        if runner == "flink":
            return _run_embedded(job, folder, fresh, launch.replay, options, shown)
        return _run_elsewhere(job, folder, runner, options, shown)


def _open_stores(job: Job, shown: View) -> None:
    """Opens each store once: a wrong path or address is found before anything starts, and not by a worker that tries again and again."""
    for step in job.of("WriteResults"):
        for output in origins(step):
            schema = _row_schema(output)
            if schema is None:
                continue
            sink = step.options.to.create()
            try:
                with waiting_for(sink.name, shown):
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
        with stderr_to(folder / "worker.log"), interrupts(at_once=True) as interrupted:
            build(job, folder, options, FnApiRunner()).run().wait_until_finish()
    except (KeyboardInterrupt, Exception) as error:  # the runner raises whatever a worker raised, and Ctrl-C in a worker as an error
        if interrupted.is_set():
            shown.say(f"{job.name}: interrupted. The same command starts it anew: the DirectRunner keeps no checkpoints.")
            return INTERRUPTED
        shown.say(f"{job.name} failed: {reason(str(error))} (log: {folder / 'worker.log'})")
        return 1
    finally:
        stop.set()
        follower.join()
    shown.show(snapshot(record))
    shown.say(done(job.name, record))
    return 0


def _run_elsewhere(job: Job, folder: Path, runner: str, options: list[str], shown: View) -> int:
    """Submitted with Beam's own options: a Beam job server of the user's, Beam's FlinkRunner, Dataflow."""
    chosen = {"dataflow": "DataflowRunner"}.get(runner, runner)
    where = []
    if "flink" in runner.lower() and not job.bounded:
        where += ["--streaming", *flink_options(_option(options, "parallelism", PARALLELISM), _option(options, "checkpointing_interval", CHECKPOINT_MS))]
    JobRecord(folder / "record").clear()
    shown.say(f"{job.name}: {chosen}")
    try:
        state = build(job, folder, [f"--runner={chosen}", *where, *options]).run().wait_until_finish()
    except RuntimeError as error:  # of the runner, with what the job server said
        shown.say(f"{job.name} failed: {reason(str(error))} (log: {folder / 'worker.log'})")
        return 1
    return 0 if state == "DONE" else 1


def _run_embedded(job: Job, folder: Path, fresh: bool, replay: bool, options: list[str], shown: View) -> int:
    checkpoint = None if fresh or replay else _embedded_checkpoint(job, folder)
    record = JobRecord(folder / "record")
    parallelism = _option(options, "parallelism", PARALLELISM)
    layouts = [layout_of(job, parallelism)]
    if checkpoint is not None:
        layouts = start_from(job, folder, record, checkpoint, layouts[0], own=True, named_sources=False, say=shown.say)
    elif replay:
        start_replay(job, folder, record, shown.say)
    else:
        start_anew(folder, record)
    known = start_layouts(folder, layouts)
    flink = EmbeddedFlink(folder / "flink", parallelism, _option(options, "checkpointing_interval", CHECKPOINT_MS), restore_from=checkpoint)
    shown.say(f"{job.name}: embedded Flink, " + (f"resumed from checkpoint {checkpoint.name}" if checkpoint else "started anew"))
    # Only what the run resumes from is kept: whatever checkpoint there is later, it is one of this job.
    for run in flink.checkpoints_folder.glob("*"):
        if checkpoint is None or run not in checkpoint.parents:
            shutil.rmtree(run, ignore_errors=True)
    remember(folder, Run(job.fingerprint))
    with ThreadPoolExecutor(1) as beside:  # what can be done while Flink comes up
        pipeline = beside.submit(build, job, folder, [*flink.pipeline_options(), *known, *options])
        beside.submit(load_numba)
        flink.start()
    # Bundles that the end of Flink cuts off fail too.
    with stderr_to(folder / "worker.log"), flink, interrupts() as interrupted:
        result = pipeline.result().run()
        follower = Follower(flink, record, job.name, shown, embedded_state(flink, lambda: str(result.state)))
        ended = follower.follow(interrupted)
        if ended == "done":
            follower.stop()
            remember(folder, Run(job.fingerprint, completed=True))
            shown.say(done(job.name, record))
            return 0
        if ended == "interrupted":
            follower.stop()
            found = latest_checkpoint(flink.folder)
            how = f"from checkpoint {found.name}" if found else "from its start (there was no checkpoint yet)"
            shown.say(f"{job.name}: interrupted. The same command resumes it {how}; with --fresh it starts anew.")
            return INTERRUPTED
        shown.say(f"{job.name} failed: {failure(flink, follower)} (logs: {folder / 'worker.log'}, {flink.log_path})")
        return 1


def _embedded_checkpoint(job: Job, folder: Path) -> Path | None:
    """The checkpoint to resume from. Raises JobError when the last run was elsewhere."""
    run, found = last_run(folder), latest_checkpoint(folder / "flink")
    if run is None or run.completed or found is None:
        return None
    if run.flink is not None:
        raise JobError(f"{job.name} last ran on the cluster {run.flink}; go on there with --flink {run.flink}, or start anew with --fresh")
    return found


def _option(options: list[str], name: str, default: int) -> int:
    """The value of a Beam option that the embedded Flink must know too."""
    for option in options:
        if option.startswith(f"--{name}="):
            return int(option.partition("=")[2])
    return default
