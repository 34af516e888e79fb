"""The end of bounded input on the embedded Flink: seen where the job failed on its way there, and where thousands of windows close at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from streamgauge.pipelines.follow import Follower, embedded_state
from streamgauge.pipelines.live import view
from streamgauge.pipelines.services.flink import EmbeddedFlink, latest_checkpoint
from streamgauge.transforms import AggregateWindows, ReadEvents, WriteResults
from streamgauge.transforms import read as read_module
from streamgauge.transforms.batch import BatchType
from streamgauge.transforms.record import JobRecord
from tests.integration.test_windows import moment
from tests.running import stored

pytestmark = pytest.mark.integration

S = 1_000_000
STEP = 30 * S
"""Of event time, from one event to the next: two in a window."""


def write(folder: Path, **counts: int) -> None:
    """Files with so many events each, one file after the other in event time."""
    (folder / "in").mkdir()
    number = 0
    for name, count in counts.items():
        with (folder / "in" / f"{name}.ndjson").open("w") as file:
            for _ in range(count):
                file.write(json.dumps({"ts": number * STEP, "key": f"k{number % 7}"}) + "\n")
                number += 1


def pipeline(folder: Path, flink: EmbeddedFlink, each: Callable[[pa.RecordBatch], pa.RecordBatch]) -> beam.Pipeline:
    """Counts the events of each key and minute in SQLite; ``each`` sees their batches first."""
    read = ReadEvents(
        **{"from": {"files": {"path": str(folder / "in/*.ndjson")}}},
        format={"json": {"schema": {"ts": "int64", "key": "string"}}}, time={"field": "ts", "unit": "us", "disorder": "1h"},
    )  # fmt: skip
    made = beam.Pipeline(options=PipelineOptions([*flink.pipeline_options(), f"--record_folder={folder / 'record'}"]))
    events = made | read | "Each" >> beam.Map(each)
    events.element_type = BatchType(read.schema)
    results = events | AggregateWindows(metric="m", window={"tumbling": "1m"}, by=["key"], aggregates={"n": "count"})
    _ = results | WriteResults(to={"sqlite": {"path": str(folder / "out.db"), "table": "m"}})
    return made


def follow(folder: Path, flink: EmbeddedFlink, made: beam.Pipeline) -> str:
    result = made.run()
    follower = Follower(flink, JobRecord(folder / "record"), "job", view("job", json_lines=False), embedded_state(flink, lambda: str(result.state)))
    return follower.follow(threading.Event())


def check(folder: Path, events: int) -> None:
    found = stored(folder / "out.db", "SELECT window_start, key, n, final FROM m")
    wanted = [(number * STEP // (60 * S) * (60 * S), f"k{number % 7}", 1, 1) for number in range(events)]
    assert sorted((moment(start), key, n, final) for start, key, n, final in found) == sorted(wanted)


def test_a_failed_checkpoint_restarts_no_job(tmp_path: Path) -> None:
    """Event time leaps to its end over 4,000 rows of 2,000 windows, and no checkpoint gets in between."""
    write(tmp_path, a=4_000)
    with EmbeddedFlink(tmp_path / "flink", 1, conf={"execution.checkpointing.timeout": "300 ms"}) as flink:
        assert follow(tmp_path, flink, pipeline(tmp_path, flink, lambda batch: batch)) == "done"
        (job,) = flink.jobs()
        assert flink.checkpoints(job["jid"])["counts"]["failed"] > 0 and flink.exceptions(job["jid"]) == []
    check(tmp_path, 4_000)


def test_a_job_that_fails_when_some_files_are_read_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those are not read again, and nobody says of them that they are read."""
    monkeypatch.setattr(read_module, "MAX_BATCH_EVENTS", 100)
    monkeypatch.setattr(read_module, "CALL_SECONDS", 0.0)
    write(tmp_path, a=100, b=6_000)
    record, failed = JobRecord(tmp_path / "record"), tmp_path / "failed"

    def each(batch: pa.RecordBatch) -> pa.RecordBatch:
        if not failed.exists():
            time.sleep(0.1)
            read_at = max((split["updated"] for split in record.all("splits") if split["done"]), default=None)
            checkpoint = latest_checkpoint(tmp_path / "flink")
            if read_at is not None and checkpoint is not None and (checkpoint / "_metadata").stat().st_mtime > read_at + 2.0:
                failed.touch()
                raise RuntimeError("once")
        return batch

    with EmbeddedFlink(tmp_path / "flink", 1) as flink:
        made = pipeline(tmp_path, flink, each)
        assert follow(tmp_path, flink, made) == "done"
        (job,) = flink.jobs()
        assert failed.exists() and len(flink.exceptions(job["jid"])) == 1
        begun = flink.attempt(job["jid"])
        read = {Path(split["split"]).name: split["updated"] * 1e3 > begun[0] for split in record.all("splits")} if begun else {}
    assert read == {"a.ndjson": False, "b.ndjson": True}
    check(tmp_path, 6_100)
