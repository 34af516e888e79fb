"""``streamgauge run`` from end to end, as a process: starts, ends, interruptions, mistakes. What it must store is computed here, in plain Python."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from streamgauge.pipelines.services.flink import latest_checkpoint
from streamgauge.pipelines.services.process import free_port
from tests.followed_job import KEYS, Feed, all_read, append, drain, expected, finals, job, rows
from tests.running import Command, until

pytestmark = pytest.mark.integration

STARTS = 3
FAST_ENOUGH = 60.0
"""Seconds from the start of the command to its first final row: a bound that only a broken start exceeds."""


def checkpoint(folder: Path) -> Path | None:
    return latest_checkpoint(folder / ".streamgauge/jobs/m/flink")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that ran to its end on Flink: what follows a completed run."""
    folder = tmp_path_factory.mktemp("ended")
    job(folder, follow=False)
    append(folder, 0, 5_500)
    with Command(folder, "run", "m.yaml", "--runner", "flink") as command:
        until(lambda: finals(folder), "a row is stored", of=command)
        ports = command.ports()
        assert command.wait() == 0, command.err
        assert len(ports) >= 3 and command.left_nothing(ports)
        assert command.lines == ["m: embedded Flink, started anew", "m: done, 5,500 events, 0 rejected, 0 late"]
    assert rows(folder) == expected(5_500)
    return folder


def test_rows_arrive_after_every_start(tmp_path: Path) -> None:
    job(tmp_path)
    append(tmp_path, 0, 3_000)
    times = []
    for _ in range(STARTS):
        (tmp_path / "out" / "m.db").unlink(missing_ok=True)
        with Command(tmp_path, "run", "m.yaml", "--fresh") as command:
            until(lambda: finals(tmp_path), "a final row is stored", FAST_ENOUGH, of=command)
            times.append(command.seconds)
            command.send(signal.SIGINT)
            assert command.wait() == 130
    print(f"\n{len(times)} of {STARTS} starts brought rows; seconds to the first final row: {' '.join(f'{t:.1f}' for t in sorted(times))}")
    assert len(times) == STARTS


def test_an_interrupted_and_a_killed_job_resume_from_their_last_checkpoint(tmp_path: Path) -> None:
    job(tmp_path)
    with Feed(tmp_path) as feed:
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)):
            before, since = finals(tmp_path), checkpoint(tmp_path)
            with Command(tmp_path, "run", "m.yaml") as command:
                until(lambda before=before: finals(tmp_path) > before + 7 * KEYS, "windows are closed", of=command)
                until(lambda since=since: checkpoint(tmp_path) not in (None, since), "a checkpoint is complete", of=command)
                ports = command.ports()
                if number == signal.SIGKILL:
                    command.kill_group()
                else:
                    command.send(number)
                assert command.wait(30) == code
                assert len(ports) >= 3 and command.left_nothing(ports)
                found = checkpoint(tmp_path)
                assert found is not None and found != since
                lines = ["m: embedded Flink, " + (f"resumed from checkpoint {since.name}" if since else "started anew")]
                if number != signal.SIGKILL:
                    lines.append(f"m: interrupted. The same command resumes it from checkpoint {found.name}; with --fresh it starts anew.")
                assert command.lines == lines
        for when in ("before there is a new checkpoint", "to the end"):
            with Command(tmp_path, "run", "m.yaml") as command:
                until(lambda command=command: command.lines, "it starts", of=command)
                assert command.lines == [f"m: embedded Flink, resumed from checkpoint {found.name}"]
                if when != "to the end":
                    command.kill_group()
                    assert command.wait(30) == -9 and command.left_nothing(set())
                    assert checkpoint(tmp_path) == found
                    continue
                before = finals(tmp_path)
                until(lambda before=before: finals(tmp_path) > before + 7 * KEYS, "windows are closed", of=command)
                feed.end()
                until(lambda: all_read(tmp_path), "all is read", of=command)
                drain(tmp_path)
                assert command.wait() == 0, command.err
                assert command.lines[-1].startswith("m: done, ") and command.lines[-1].endswith(" 0 rejected, 0 late")
                assert command.left_nothing(set())
    assert rows(tmp_path) == expected(feed.events)


def test_shards_change_for_windows_to_come(tmp_path: Path) -> None:
    path = job(tmp_path, emit="on_change")
    with Feed(tmp_path) as feed:
        for shards in (3, 11, 1):
            before, since = finals(tmp_path), checkpoint(tmp_path)
            with Command(tmp_path, "run", "m.yaml") as command:
                until(lambda before=before: finals(tmp_path) > before + 5 * KEYS, "windows are closed", of=command)
                until(lambda since=since: checkpoint(tmp_path) not in (None, since), "a checkpoint is complete", of=command)
                command.send(signal.SIGINT)
                assert command.wait(30) == 130, command.out + command.err
                assert ("keep theirs" in command.out) == (since is not None), command.out
            path.write_text(re.sub(r"(shards: \d+\n        )?emit: ", f"shards: {shards}\n        emit: ", path.read_text()))
        with Command(tmp_path, "run", "m.yaml") as command:
            until(lambda: finals(tmp_path) > before + 12 * KEYS, "windows are closed", of=command)
            feed.end()
            until(lambda: all_read(tmp_path), "all is read", of=command)
            drain(tmp_path)
            assert command.wait() == 0, command.err
            assert "AggregateWindows: shards 11 -> 1: windows that start after 2026-01-01T00:" in command.out
    assert rows(tmp_path) == expected(feed.events)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_on_the_direct_runner_starts_anew(tmp_path: Path, number: int) -> None:
    path = job(tmp_path, follow=False)
    files = 'files: {path: "in/*.ndjson", follow: false}'
    endless = path.read_text().replace(files, "generator: {events: 1000000000, start: '2026-01-01T00:00:00Z'}").replace("key: string, ", "")
    path.write_text(endless.replace("value: int64", "host: string, value: double").replace("by: [key]", "by: {key: host}"))
    with Command(tmp_path, "run", "m.yaml", "--runner", "direct") as command:
        until(lambda: finals(tmp_path), "a row is stored", of=command)
        command.send(number)
        assert command.wait(30) == 130
        assert command.lines == ["m: DirectRunner", "m: interrupted. The same command starts it anew: the DirectRunner keeps no checkpoints."]
        assert command.left_nothing(set())


def test_fresh_starts_anew_and_a_changed_job_is_refused_without_it(tmp_path: Path) -> None:
    path = job(tmp_path)
    append(tmp_path, 0, 3_000)
    with Command(tmp_path, "run", "m.yaml") as command:
        until(lambda: finals(tmp_path) and checkpoint(tmp_path), "there are a row and a checkpoint", of=command)
        with Command(tmp_path, "run", "m.yaml") as second:
            assert second.wait(30) == 2
            assert second.lines == [f"m is running already, in {tmp_path / '.streamgauge/jobs/m'}; stop it first, or give the copy another file name"]
        command.send(signal.SIGINT)
        assert command.wait(30) == 130
    path.write_text(path.read_text().replace("tumbling: 1s", "tumbling: 2s"))
    name = getattr(checkpoint(tmp_path), "name", None)
    with Command(tmp_path, "run", "m.yaml") as command:
        assert command.wait(30) == 2
        assert command.lines[0] == f"m.yaml: it has changed since {name} was made, and cannot start from it:"
        assert "  AggregateWindows: window tumbling 1s -> tumbling 2s: open windows are of the old kind; replay" in command.err
        assert command.lines[1:] == ["Undo the change, or start anew with --fresh"]
    path.write_text(path.read_text().replace("tumbling: 2s", "tumbling: 1s") + "# the same job with a comment\n")
    (tmp_path / "out" / "m.db").unlink()
    with Command(tmp_path, "run", "m.yaml", "--fresh") as command:
        until(lambda: finals(tmp_path) == 2 * KEYS, "what was read before is read again", of=command)
        assert command.lines == ["m: embedded Flink, started anew"]
        append(tmp_path, 3_000, 4_200)
        until(lambda: all_read(tmp_path), "all is read", of=command)
        drain(tmp_path)
        assert command.wait() == 0, command.err
    assert rows(tmp_path) == expected(4_200)


def test_a_run_after_a_completed_one_starts_anew(ended: Path) -> None:
    (ended / "out" / "m.db").unlink()
    with Command(ended, "run", "m.yaml", "--runner", "flink") as command:
        assert command.wait() == 0, command.err
        assert command.lines == ["m: embedded Flink, started anew", "m: done, 5,500 events, 0 rejected, 0 late"]
    assert rows(ended) == expected(5_500)


def test_early_results_come_before_the_window_closes_and_end_as_final_ones(tmp_path: Path) -> None:
    job(tmp_path, emit="{every: 200ms}")
    append(tmp_path, 0, 500)
    with Command(tmp_path, "run", "m.yaml") as command:
        until(lambda: sum(row[2] for row in rows(tmp_path)) == 500, "early rows count all events", of=command)
        assert rows(tmp_path) == [(*row[:4], 0) for row in expected(500)]
        append(tmp_path, 500, 700)
        until(lambda: sum(row[2] for row in rows(tmp_path)) == 700, "they are brought up to date", of=command)
        assert finals(tmp_path) == 0
        drain(tmp_path)
        assert command.wait() == 0, command.err
    assert rows(tmp_path) == expected(700)


@pytest.mark.parametrize(
    ("runner", "to", "words"),
    [
        ("direct", "{sqlite: {path: in, table: m}}", "unable to open database file"),
        ("flink", "{sqlite: {path: in, table: m}}", "unable to open database file"),
        ("flink", "{questdb: {url: 'http://127.0.0.1:PORT', table: m}}", "questdb:127.0.0.1:PORT/m: "),
    ],
    ids=["folder-direct", "folder-flink", "refused-flink"],
)
def test_a_store_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, runner: str, to: str, words: str) -> None:
    port = str(free_port())
    job(tmp_path, follow=False, to=to.replace("PORT", port))
    append(tmp_path, 0, 3_000)
    with Command(tmp_path, "run", "m.yaml", "--runner", runner) as command:
        assert command.wait(90) == 1
        assert len(command.lines) == 1 and words.replace("PORT", port) in command.lines[0]
        assert command.left_nothing(set())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('files: {path: "none/*.ndjson"}', "no file matches none/*.ndjson"),
        ('kafka: {brokers: "127.0.0.1:PORT", topic: t}', "127.0.0.1:PORT"),
    ],
    ids=["file", "broker"],
)
def test_a_source_that_is_not_there_is_told_in_one_line(tmp_path: Path, source: str, words: str) -> None:
    port = str(free_port())
    path = job(tmp_path)
    path.write_text(path.read_text().replace('files: {path: "in/*.ndjson", follow: true}', source.replace("PORT", port)))
    with Command(tmp_path, "run", "m.yaml", "--runner", "flink") as command:
        assert command.wait(90) == 1
        assert len(command.lines) == 1 and words.replace("PORT", port) in command.lines[0]
        assert command.left_nothing(set())
