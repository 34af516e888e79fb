"""What a job's folder remembers: what to resume from, and whether a changed job fits it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from streamgauge.pipelines.job import Job, JobError, load_job
from streamgauge.pipelines.job_layout import layout_of
from streamgauge.pipelines.reshard import with_reach
from streamgauge.pipelines.run_state import (
    LAYOUTS,
    REPLAY_POINT,
    Run,
    last_run,
    local_path,
    newest_checkpoint,
    remember,
    start_anew,
    start_from,
    start_layouts,
    start_replay,
)
from streamgauge.pipelines.verify import verify_job
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.sharding import Reach
from streamgauge.transforms.state_layout import Layout, read_layouts, write_layouts
from tests.followed_job import job as write_job


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    return load_job(write_job(tmp_path))


def checkpoint(folder: Path, number: int, *, complete: bool = True) -> Path:
    path = folder / f"chk-{number}"
    path.mkdir(parents=True)
    if complete:
        (path / "_metadata").touch()
    return path


def test_what_was_remembered_is_found_again(tmp_path: Path) -> None:
    assert last_run(tmp_path) is None
    run = Run("abc", flink="h:1", job_id="j", checkpoints=str(tmp_path / "c"), parallelism=3, savepoint="/s")
    remember(tmp_path, run)
    assert last_run(tmp_path) == run
    (tmp_path / "run.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(JobError, match="was not written by this version"):
        last_run(tmp_path)


def test_a_savepoint_goes_before_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    run = Run("abc", job_id="j", checkpoints=str(tmp_path))
    assert run.newest() is None and newest_checkpoint(tmp_path / "j") is None
    assert Run("abc", job_id="j", checkpoints=str(tmp_path), restored_from="/before").newest() == Path("/before")
    first = checkpoint(tmp_path / "j", 1)
    assert Run("abc", job_id="j", checkpoints=str(tmp_path), restored_from="/before").newest() == first
    checkpoint(tmp_path / "j", 2, complete=False)
    assert run.newest() == first
    assert Run("abc", job_id="j", checkpoints=str(tmp_path), savepoint="/sp").newest() == Path("/sp")
    assert local_path("file:/a%20b/c") == local_path("file:///a%20b/c") == Path("/a b/c") and local_path("/a/c") == Path("/a/c")


def test_a_changed_job_is_refused_or_told_what_happens(tmp_path: Path, job: Job) -> None:
    said: list[str] = []
    restore = checkpoint(tmp_path, 7)
    record = JobRecord(tmp_path / "record")

    def start() -> list[Layout]:
        now = load_job(job.path)
        return start_from(now, tmp_path, record, restore, layout_of(now, 2), own=True, named_sources=True, say=said.append)

    assert start() == [layout_of(job, 2)]
    write_layouts(tmp_path / LAYOUTS, [layout_of(job, 2)])
    assert start() == 2 * [layout_of(job, 2)]
    assert said == []

    text = Path(job.path).read_text()
    Path(job.path).write_text(text.replace(", total: {sum: value}", ""))
    assert start() == [layout_of(job, 2), layout_of(load_job(job.path), 2)]
    assert len(said) == 1 and "AggregateWindows: without total" in said[0]

    Path(job.path).write_text(text.replace("tumbling: 1s", "tumbling: 1m"))
    with pytest.raises(JobError, match=r"it has changed since chk-7 was made.*\n  AggregateWindows: window tumbling 1s -> tumbling 1m: .*--replay.*\nUndo the change"):
        start()

    # What lies beside the savepoint goes before what the last run was.
    write_layouts(restore / LAYOUTS, [layout_of(load_job(job.path), 2)])
    assert len(start()) == 2


@pytest.mark.parametrize("where", ["record", "savepoint", "nowhere", "a record of another job's run"])
def test_windows_that_have_begun_keep_their_shards(tmp_path: Path, job: Job, where: str) -> None:
    record, restore = JobRecord(tmp_path / "record"), checkpoint(tmp_path, 7)
    said: list[str] = []

    def start(shards: int, *, own: bool = True) -> list[list[int]]:
        text = re.sub(r"(\n +shards: \d+)?\n +emit: final", f"\n        shards: {shards}\n        emit: final", Path(job.path).read_text())
        Path(job.path).write_text(text)
        now = load_job(job.path)
        layouts = start_from(now, tmp_path, record, restore, layout_of(now), own=own, named_sources=True, say=said.append)
        write_layouts(tmp_path / LAYOUTS, layouts)
        return list(layouts[-1].steps["AggregateWindows"].values["earlier_shards"])

    write_layouts(tmp_path / LAYOUTS, [layout_of(job)])
    if where != "nowhere":
        record.put("splits", "s", {}, now=True)
    if where.startswith("a record"):
        with pytest.raises(JobError, match="shards 8 -> 3: it is not known which windows have begun; replay"):
            start(3, own=False)
        return
    if where == "nowhere":
        with pytest.raises(JobError, match="shards 8 -> 3: it is not known which windows have begun; replay"):
            start(3)
        assert start(8) == []
        record.put("splits", "s", {}, now=True)
        with pytest.raises(JobError, match="it is not known"):  # what the state had at the start is never known any more
            start(3)
        return
    assert start(3) == []
    assert said.pop() == "  AggregateWindows: shards 8 -> 3: no window has begun yet"
    Reach(record, "AggregateWindows", 1_000_000).extend(5_000_000)
    if where == "savepoint":
        write_layouts(restore / LAYOUTS, [with_reach(read_layouts(tmp_path / LAYOUTS)[-1], record)])
        record.clear()
        record.put("splits", "s", {}, now=True)
    assert start(4) == [[5_000_001, 3]]
    assert said.pop() == "  AggregateWindows: shards 3 -> 4: windows that start after 1970-01-01T00:00:05.000Z have the new number, those before keep theirs"
    (restore / LAYOUTS).unlink(missing_ok=True)
    assert start(4) == [[5_000_001, 3]]
    Reach(record, "AggregateWindows", 1_000_000).extend(4_000_000)  # another process, later, with old events
    assert start(5) == [[5_000_001, 3]], "no window has the 4 shards that were never used"
    Reach(record, "AggregateWindows", 1_000_000).extend(6_000_000)
    assert start(2) == [[5_000_001, 3], [6_000_001, 5]]
    assert said == ["  AggregateWindows: shards 4 -> 5: windows that start after 1970-01-01T00:00:05.000Z have the new number, those before keep theirs",
                    "  AggregateWindows: shards 5 -> 2: windows that start after 1970-01-01T00:00:06.000Z have the new number, those before keep theirs"]  # fmt: skip


def test_a_replay_needs_an_earlier_run_and_is_passed_on_until_a_fresh_start(tmp_path: Path, job: Job) -> None:
    record = JobRecord(tmp_path / "record")
    with pytest.raises(JobError, match="there is no record of an earlier run"):
        start_replay(job, tmp_path, record, print)
    remember(tmp_path, Run(job.fingerprint))
    write_layouts(tmp_path / LAYOUTS, [layout_of(job)])
    source = job.reads[0].source.create().name
    record.put("splits", "s", {"source": source, "split": "in/a.ndjson", "start": 0, "position": 900, "done": False, "watermark": None, "finished": False}, now=True)
    said: list[str] = []
    start_replay(job, tmp_path, record, said.append)
    assert said[0] == "m: replay: 900 positions are read again; windows that were complete are left as they are"
    assert record.all("splits") == []
    assert f"--replay_point={tmp_path / REPLAY_POINT}" in start_layouts(tmp_path, [layout_of(job)])
    start_replay(job, tmp_path, record, said.append)  # the last one was not submitted: nothing is forgotten
    assert said[1] == said[0]
    with pytest.raises(JobError, match="its last run was a replay"):
        verify_job(job, tmp_path / "record")
    start_anew(tmp_path, record)
    assert start_layouts(tmp_path, [layout_of(job)]) == [f"--earlier_layouts={tmp_path / LAYOUTS}"]
