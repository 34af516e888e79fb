"""A standalone Flink cluster of two TaskManagers: operating a job on it, and what is said of mistakes. Rows are compared with plain Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import duckdb
import psutil
import pytest

from streamgauge.pipelines.services.flink_cluster import FlinkCluster
from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.pipelines.services.questdb import QuestDbServer
from tests.followed_job import KEYS, START, Feed, all_read, append, expected, finals, job, opened, rows
from tests.running import Command, until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    with FlinkCluster(tmp_path_factory.mktemp("cluster"), task_managers=2, slots=1) as running:
        yield running


def said(folder: Path, *arguments: str | Path, code: int = 0) -> str:
    """What a command that ends by itself says."""
    with Command(folder, *arguments) as command:
        assert command.wait() == code, command.out + command.err
        return (command.out + command.err).strip()


def run_state(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / ".streamgauge/jobs/m/run.json").read_text()))


def test_a_job_is_listed_stopped_resumed_rescaled_and_drained_without_losing_a_row(cluster: FlinkCluster, tmp_path: Path) -> None:
    path = job(tmp_path, emit="{every: 1s}")
    at = ("--flink", cluster.address)

    def progress(what: str) -> None:
        before = finals(tmp_path)
        until(lambda: finals(tmp_path) > before + 2 * KEYS, f"windows are closed {what}")

    with Feed(tmp_path) as feed:
        assert re.search(rf"m: started anew on {cluster.address} as job \w+, parallelism 2\n", said(tmp_path, "run", "m.yaml", *at, "--detach"))
        progress("after the start")
        (listed,) = json.loads(said(tmp_path, "jobs", *at, "--json"))
        assert (listed["name"], listed["state"], listed["parallelism"]) == ("m", "RUNNING", 2)
        assert "runs on" in said(tmp_path, "run", "m.yaml", *at, "--detach")
        assert "stop it first: streamgauge stop m" in said(tmp_path, "run", "m.yaml", *at, "--fresh", code=2)

        text = said(tmp_path, "savepoint", "m", *at, "--to", tmp_path / "kept")
        kept = Path(re.search(r"--from (\S+?)\. It is", text)[1])  # type: ignore[index]
        assert (kept / "_metadata").exists() and kept.parent == tmp_path / "kept"

        stopped = said(tmp_path, "stop", "m.yaml", *at)
        assert stopped.startswith("m: stopped with savepoint ") and stopped.endswith("To go on from it: streamgauge resume JOB.yaml")
        assert f"resumed from savepoint {Path(str(run_state(tmp_path)['savepoint'])).name}" in said(tmp_path, "resume", "m.yaml", *at)
        progress("after it was resumed")

        said(tmp_path, "stop", "m.yaml", *at)
        path.write_text(path.read_text().replace("emit: ", "shards: 3\n        emit: "))
        assert "AggregateWindows: shards 8 -> 3: windows that start after 2026-01-01T00:" in said(tmp_path, "resume", "m.yaml", *at)
        progress("with other shards")
        said(tmp_path, "cancel", "m.yaml", *at)
        path.write_text(path.read_text().replace("shards: 3", "shards: 5"))
        assert "AggregateWindows: shards 3 -> 5: windows that start after 2026-01-01T00:" in said(tmp_path, "resume", "m.yaml", *at)
        progress("with others again, from a checkpoint")

        rescaled = said(tmp_path, "rescale", "m.yaml", "--parallelism", "1", *at)
        assert "parallelism 1" in rescaled and rescaled.endswith("to undo it: streamgauge rescale m.yaml --parallelism 2")
        progress("after it was rescaled")
        said(tmp_path, "rescale", "m.yaml", "--parallelism", "2", *at)
        progress("after it was rescaled back")

        assert said(tmp_path, "cancel", "m", *at).startswith("m: cancelled.")
        assert "resumed from checkpoint chk-" in said(tmp_path, "resume", "m.yaml", *at)
        progress("after it was cancelled and resumed")

        said(tmp_path, "cancel", "m", *at)
        assert f"resumed from savepoint {kept.name}" in said(tmp_path, "resume", "m.yaml", *at, "--from", kept)
        feed.end()
        until(lambda: all_read(tmp_path), "all is read")
        assert "all windows are stored" in said(tmp_path, "stop", "m", "--drain", *at)
    assert rows(tmp_path) == expected(feed.events)
    assert "no job m runs" in said(tmp_path, "stop", "m", *at, code=2)


@pytest.mark.parametrize("victim", ["taskmanager-1", "jobmanager", "workers", "a worker"])
def test_a_followed_job_survives_the_death_of(cluster: FlinkCluster, tmp_path: Path, victim: str) -> None:
    job(tmp_path)
    with Feed(tmp_path) as feed, Command(tmp_path, "run", "m.yaml", "--flink", cluster.address) as command:
        until(lambda: finals(tmp_path) > 3 * KEYS, "windows are closed", of=command)
        pid = cluster.worker_pids()[0] if victim == "a worker" else next(part.pid for part in cluster.parts() if part.name == victim)
        assert pid is not None
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        if victim == "jobmanager":  # tasks go on for a while without one: what they read is not yet read by the job that survives
            until(lambda: opened(tmp_path) > killed, "the input is opened again", of=command)
        before = feed.events // 1000 * KEYS
        until(lambda: finals(tmp_path) > before + 3 * KEYS, f"windows are closed after the death of {victim}", of=command)
        feed.end()
        until(lambda: all_read(tmp_path), "all is read", of=command)
        with Command(tmp_path, "drain", "m.yaml") as drained:
            assert drained.wait() == 0
        assert command.wait() == 0, command.out + command.err
    assert rows(tmp_path) == expected(feed.events)
    until(lambda: all(part.pid and psutil.pid_exists(part.pid) for part in cluster.parts()), "every part runs again")
    until(lambda: cluster.overview()["slots-available"] == 2, "both slots are free again")


def test_what_no_savepoint_survives_is_replayed_without_gap_or_overlap(cluster: FlinkCluster, tmp_path: Path) -> None:
    path = job(tmp_path)
    at = ("--flink", cluster.address)
    with Feed(tmp_path) as feed:
        for round_ in range(4):
            if round_ == 0:
                said(tmp_path, "run", "m.yaml", *at, "--detach")
            else:
                assert "positions are read again" in said(tmp_path, "run", "m.yaml", *at, "--replay", "--detach")
            if round_ == 3:
                break
            before = finals(tmp_path)
            until(lambda before=before: finals(tmp_path) > before + 3 * KEYS, "windows are closed")
            if round_ == 1:  # some windows end with a part of their events
                said(tmp_path, "stop", "m", "--drain", *at)
            else:
                said(tmp_path, "cancel", "m", *at)
            if round_ == 0:
                path.write_text(path.read_text().replace("emit: final", "emit: final\n        lateness: 5s"))
                refused = said(tmp_path, "resume", "m.yaml", *at, code=2)
                assert "AggregateWindows: lateness 0s -> 5s" in refused and "(--replay)" in refused
        feed.end()
        until(lambda: all_read(tmp_path), "all is read")
        said(tmp_path, "stop", "m", "--drain", *at)
    assert rows(tmp_path) == expected(feed.events)


def test_bounded_input_runs_to_its_end(cluster: FlinkCluster, tmp_path: Path) -> None:
    job(tmp_path, follow=False)
    append(tmp_path, 0, 5_500)
    with Command(tmp_path, "run", "m.yaml", "--flink", cluster.address) as command:
        assert command.wait() == 0, command.out + command.err
        assert command.lines[-1] == "m: done, 5,500 events, 0 rejected, 0 late"
    assert rows(tmp_path) == expected(5_500)


def test_mistakes_are_told_in_a_line(cluster: FlinkCluster, tmp_path: Path) -> None:
    at = ("--flink", cluster.address)
    job(tmp_path)
    append(tmp_path, 0, 3_500)
    assert "there is nothing to resume from" in said(tmp_path, "resume", "m.yaml", *at, code=2)
    assert "is not there: was it moved or deleted?" in said(tmp_path, "resume", "m.yaml", *at, "--from", "nowhere", code=2)
    (tmp_path / "empty").mkdir()
    assert "has no file _metadata" in said(tmp_path, "resume", "m.yaml", *at, "--from", "empty", code=2)
    said(tmp_path, "run", "m.yaml", *at, "--detach")
    until(lambda: finals(tmp_path), "a row is stored")
    said(tmp_path, "stop", "m", *at)
    savepoint = str(run_state(tmp_path)["savepoint"])
    other = tmp_path / "other.yaml"
    other.write_text((tmp_path / "m.yaml").read_text().replace("type: ReadEvents\n", "type: ReadEvents\n      name: Source\n").replace("input: ReadEvents", "input: Source"))
    changed = said(tmp_path, "resume", "other.yaml", *at, "--from", savepoint, code=2)
    assert "ReadEvents: is not there any more" in changed and "renamed to Source?" in changed
    (Path(savepoint) / "layouts.json").unlink()  # as of a savepoint that others took
    refused = said(tmp_path, "resume", "other.yaml", *at, "--from", savepoint, code=1)
    assert "holds the state of steps that this job does not have" in refused and len(refused.splitlines()) == 1
    (Path(savepoint) / "_metadata").rename(Path(savepoint) / "moved")
    assert "has no file _metadata" in said(tmp_path, "resume", "m.yaml", *at, code=2)


def test_a_store_that_is_away_is_named_and_nothing_is_lost(cluster: FlinkCluster, tmp_path: Path) -> None:
    """Away for longer than a sink tries."""
    at = ("--flink", cluster.address)
    with QuestDbServer(tmp_path / "questdb") as questdb:
        http, postgres = questdb.http_port, questdb.pg_port
        job(tmp_path, to=f'{{questdb: {{url: "{questdb.url}", table: m}}}}')

        def stored() -> list[tuple[object, ...]]:
            sql = "SELECT window_start, key, n, total, final FROM m ORDER BY 1, 2"
            with suppress(OSError), urllib.request.urlopen(f"{questdb.url}/exec?{urllib.parse.urlencode({'query': sql})}", timeout=10) as answer:
                return [(*row[:4], int(row[4])) for row in json.loads(answer.read())["dataset"]]
            return []

        with Feed(tmp_path) as feed:
            said(tmp_path, "run", "m.yaml", *at, "--detach")
            until(stored, "rows are stored")
            questdb.stop()
            until(lambda: "questdb:127.0.0.1" in said(tmp_path, "jobs", *at), "the job names its store")
            assert "last restarted: questdb:127.0.0.1" in said(tmp_path, "jobs", *at)
            questdb = QuestDbServer(tmp_path / "questdb", http, postgres)
            with questdb:
                feed.end()
                until(lambda: all_read(tmp_path), "all is read")
                assert "all windows are stored" in said(tmp_path, "stop", "m", "--drain", *at)
                until(lambda: stored() == expected(feed.events), "QuestDB shows all rows", 20)


def test_records_that_kafka_has_deleted_are_never_skipped_silently(cluster: FlinkCluster, tmp_path: Path) -> None:
    """Deleted after the job was stopped, before it was resumed."""
    from confluent_kafka import Producer, TopicPartition
    from confluent_kafka.admin import AdminClient

    at = ("--flink", cluster.address)
    with KafkaServer(tmp_path / "kafka", progress=False) as kafka:
        producer = Producer({"bootstrap.servers": kafka.brokers, "enable.idempotence": True})

        def send(first: int, end: int) -> None:
            for number in range(first, end):
                producer.produce("t", b'{"ts":%d,"key":"k","value":%d}' % (START + number, number), partition=0)
            assert producer.flush(30) == 0

        send(0, 5_000)
        path = job(tmp_path)
        reads = f'{{kafka: {{brokers: "{kafka.brokers}", topic: t}}}}'
        path.write_text(path.read_text().replace('{files: {path: "in/*.ndjson", follow: true}}', reads))
        said(tmp_path, "run", "m.yaml", *at, "--detach")
        until(lambda: len(rows(tmp_path)) == 4, "four windows are closed")
        said(tmp_path, "stop", "m", *at)
        send(5_000, 9_000)
        admin, place = AdminClient({"bootstrap.servers": kafka.brokers}), TopicPartition("t", 0, 7_000)
        admin.delete_records([place])[place].result(30)

        said(tmp_path, "resume", "m.yaml", *at)
        lost = "the records from offset 5000 to 6999 were deleted before they were read (retention); set on_data_loss: earliest to go on without them"
        until(lambda: lost in said(tmp_path, "jobs", *at), "the job says what is gone")
        assert len(rows(tmp_path)) == 4
        said(tmp_path, "cancel", "m", *at)
        path.write_text(path.read_text().replace("topic: t}", "topic: t, on_data_loss: earliest}"))
        said(tmp_path, "resume", "m.yaml", *at)  # it came to no checkpoint of its own: from the savepoint again
        until(lambda: len(rows(tmp_path)) > 4, "a window is closed")
        said(tmp_path, "stop", "m", "--drain", *at)
    assert [row[2] for row in rows(tmp_path)] == [1000] * 5 + [1000] * 2
    found = duckdb.sql(f"SELECT error_type, position, message FROM '{tmp_path}/.streamgauge/jobs/m/record/dead_letters/*.parquet'").fetchall()
    assert [(kind, position) for kind, position, _ in found] == [("data_loss", 5000)] and "5000 to 6999" in found[0][2]


def test_checkpoints_that_keep_failing_are_told_and_end_the_job(tmp_path: Path) -> None:
    job(tmp_path)
    patience = {"restart-strategy.exponential-delay.attempts-before-reset-backoff": 1}
    with Feed(tmp_path), FlinkCluster(tmp_path / "cluster", task_managers=1, slots=2, conf=patience) as cluster:
        with Command(tmp_path, "run", "m.yaml", "--flink", cluster.address) as command:
            until(lambda: finals(tmp_path), "a row is stored", of=command)
            shutil.rmtree(cluster.checkpoints_folder)
            cluster.checkpoints_folder.write_text("no folder any more")
            assert command.wait() == 1
            assert any("failed in a row" in line for line in command.lines), command.lines
            assert command.lines[-1].startswith("m failed: ") and "heckpoint" in command.lines[-1]
        listed = said(tmp_path, "jobs", "--flink", cluster.address)
        assert "FAILED" in listed and "  failed: " in listed


def test_a_cluster_comes_back_with_its_jobs(tmp_path: Path) -> None:
    job(tmp_path)
    port = None
    with Feed(tmp_path) as feed:
        for again in (False, True):
            with FlinkCluster(tmp_path / "cluster", port, task_managers=1, slots=2) as cluster:
                port = cluster.rest_port
                if not again:
                    said(tmp_path, "run", "m.yaml", "--flink", cluster.address, "--detach")
                before = finals(tmp_path)
                until(lambda before=before: finals(tmp_path) > before + 3 * KEYS, "windows are closed")
                if again:
                    feed.end()
                    until(lambda: all_read(tmp_path), "all is read")
                    said(tmp_path, "stop", "m", "--drain", "--flink", cluster.address)
    assert rows(tmp_path) == expected(feed.events)
