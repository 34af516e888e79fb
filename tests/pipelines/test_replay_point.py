"""A replay from recorded positions: what all runs together have stored is what one run over everything would have, to the unit.

Splits are files that grow from run to run; each run ends somewhere, as a job does that drains (windows cut short are stored as final) or as one that
is stopped (they are not). The oracle is plain Python over the whole input.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.yaml.yaml_transform import expand_pipeline
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamgauge.pipelines.job import Job, load_job
from streamgauge.pipelines.job_layout import layout_of
from streamgauge.pipelines.replay_point import ReplayError, make_replay_point
from streamgauge.transforms import read
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.replay import ReplayPoint
from streamgauge.transforms.watermark import reported
from tests.examples import examples

MS = 1_000
S = 1_000_000
BASE = 1_767_225_600 * S
"""2026-01-01 00:00:00 UTC; a whole day, so windows of any of the sizes here start there."""

END_OF_TIME = (2**63 - 1) * MS
"""What Flink says when all is read."""

Events = dict[str, list[int]]
"""By split, event times in the order of positions (milliseconds after BASE)."""

JOB = """
pipeline:
  transforms:
    - type: ReadEvents
      config:
        from: {{files: "{folder}/in/*.ndjson"}}
        format: {{json: {{schema: {{t: "timestamp[ms]", k: string, v: int64}}}}}}
        time: {{field: t, disorder: {disorder}ms}}
{dedup}
    - type: AggregateWindows
      input: {reads}
      config:
        metric: {metric}
        window: {window}
        by: [k]
        aggregates: {{total: {{sum: v}}}}
        lateness: {lateness}ms
        late: true
    - type: WriteResults
      input: AggregateWindows.results
      config: {{to: {{sqlite: {{path: "{folder}/out.db", table: results}}}}}}
    - type: WriteResults
      name: Late
      input: AggregateWindows.late
      config: {{to: {{sqlite: {{path: "{folder}/out.db", table: late}}}}}}
"""
DEDUP = """
    - type: Deduplicate
      input: ReadEvents
      config: {by: [v], horizon: 3s}
"""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A batch has a handful of events, so there is a fact for each few."""
    monkeypatch.setattr(read, "MAX_BATCH_EVENTS", 3)
    yield


def job_of(folder: Path, size: int, lateness: int, disorder: int, metric: str = "m", dedup: bool = False, window: str | None = None) -> Job:
    path = folder / "job.yaml"
    reads, step = ("Deduplicate", DEDUP) if dedup else ("ReadEvents", "")
    window = window or f"{{tumbling: {size}ms}}"
    path.write_text(JOB.format(folder=folder, window=window, lateness=lateness, disorder=disorder, metric=metric, reads=reads, dedup=step))
    return load_job(path)


def key_of(split: str, position: int) -> str:
    return "ab"[(position + len(split)) % 2]


def write(folder: Path, events: Events, upto: dict[str, int]) -> None:
    (folder / "in").mkdir(exist_ok=True)
    for split, times in events.items():
        lines = [
            json.dumps({"t": BASE // MS + time, "k": key_of(split, position), "v": position + 1}) + "\n" for position, time in enumerate(times[: upto[split]])
        ]
        (folder / "in" / f"{split}.ndjson").write_text("".join(lines))


def run(job: Job, record: Path, replay: ReplayPoint | None) -> None:
    """One run, from a clean record, as a launcher starts it."""
    JobRecord(record).clear()
    flags = [f"--record_folder={record}"]
    if replay is not None:
        replay.save(record.parent / "replay.json")
        flags.append(f"--replay_point={record.parent / 'replay.json'}")
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(flags))
    expand_pipeline(pipeline, job.spec)
    pipeline.run().wait_until_finish()


def cut_short(record: Path) -> int | None:
    """As if the readers had been told to end where they were. Returns the least watermark of them."""
    for path in (record / "splits").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "finished": False}))
    watermarks = [values["watermark"] for values in JobRecord(record).all("splits")]
    return None if None in watermarks else min(watermarks)


def query(folder: Path, text: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "out.db")) as connection, connection:
        try:
            return connection.execute(text).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise


def micros(column: str) -> str:
    """SQL: a stored time as microseconds after BASE."""
    return f"(unixepoch(substr({column}, 1, 19)) * 1000000 + CAST(substr({column}, 21, 6) AS INTEGER) - {BASE})"


def stored(folder: Path, metric: str = "m") -> dict[tuple[int, str], tuple[int, int]]:
    rows = query(folder, f"SELECT {micros('window_start')}, k, events, total FROM results WHERE metric = '{metric}'")
    return {(start, key): (events, total) for start, key, events, total in rows}


def late_rows(folder: Path) -> set[tuple[int, str, int]]:
    """(window start, split, position as bytes) of all late events."""
    rows = query(folder, f"SELECT {micros('window_start')}, split, position FROM late")
    return {(start, Path(split).stem, position) for start, split, position in rows}


def byte_positions(folder: Path) -> dict[str, list[int]]:
    """Where each event of the whole input begins in its file."""
    found = {}
    for path in (folder / "in").glob("*.ndjson"):
        lines = path.read_bytes().splitlines(keepends=True)
        found[path.stem] = [sum(map(len, lines[:number])) for number in range(len(lines))]
    return found


def oracle(events: Events, size: int, lateness: int, disorder: int) -> tuple[dict[tuple[int, str], tuple[int, int]], set[tuple[int, str, int]]]:
    """What one run over everything stores, and which events (by their number) it finds late: by the events before them in their split."""
    counts: Counter[tuple[int, str]] = Counter()
    totals: Counter[tuple[int, str]] = Counter()
    late = set()
    for split, times in events.items():
        newest = 0
        for position, time in enumerate(times):
            newest = max(newest, time) if position else time
            start = time * MS // (size * MS) * (size * MS)
            if start + (size + lateness) * MS <= reported(newest * MS, disorder * MS) + MS:
                late.add((start, split, position))
            else:
                counts[start, key_of(split, position)] += 1
                totals[start, key_of(split, position)] += position + 1
    return {key: (count, totals[key]) for key, count in counts.items()}, late


TIMES = st.lists(st.integers(0, 300), min_size=3, max_size=24).flatmap(
    # A walk forward with events that lag behind: most are in time, some are late.
    lambda steps: st.lists(st.sampled_from([0, 0, 0, 500, 2_000, 9_000]), min_size=len(steps), max_size=len(steps)).map(
        lambda lags: [max(sum(steps[: number + 1]) * 10 - lag, 0) for number, lag in enumerate(lags)]
    )
)
EVENTS = st.dictionaries(st.sampled_from(["p", "qq", "rrr"]), TIMES, min_size=1, max_size=3)
STOPS = st.lists(st.tuples(st.fixed_dictionaries({name: st.sampled_from([50, 30, 70, 100, 10, 0]) for name in ("p", "qq", "rrr")}), st.booleans(), st.integers(0, 3_000)), min_size=1, max_size=2)


@pytest.mark.integration
@settings(deadline=None, max_examples=examples(6))
@example({"p": [100, 3_600, 8_900, 3_700, 200]}, [({"p": 60, "qq": 0, "rrr": 0}, True, 0)], 1_000, 5_000, 0)
@example({"p": [100, 3_600, 8_900, 3_700, 200]}, [({"p": 60, "qq": 0, "rrr": 0}, False, 0)], 1_000, 5_000, 0)
@given(EVENTS, STOPS, st.sampled_from([1_000, 2_500, 7_000, 60_000]), st.sampled_from([0, 1_000, 5_000]), st.sampled_from([0, 500, 3_000]))
def test_old_and_new_run_together_are_one_run(
    events: Events, stops: list[tuple[dict[str, int], bool, int]], size: int, lateness: int, disorder: int
) -> None:
    """Several runs one after another, each stopped somewhere and replayed by the next; the last one reads everything."""
    with TemporaryDirectory() as name:
        folder, replay = Path(name), None
        job = job_of(folder, size, lateness, disorder)
        reached = dict.fromkeys(events, 0)
        for upto, drained, seen_before in stops:
            reached = {split: max(reached[split], len(times) * upto[split] // 100) for split, times in events.items()}
            write(folder, events, reached)
            run(job, folder / "record", replay)
            watermark = cut_short(folder / "record")
            # Flink's word may be older than what the readers have reported, or what it says at the end of a drain.
            said = END_OF_TIME if drained else None if watermark is None else watermark - seen_before * MS
            replay = make_replay_point(JobRecord(folder / "record"), job, watermark=said, previous=replay)
            if not drained and query(folder, "SELECT 1 FROM results LIMIT 1"):
                # A job that is stopped has not stored the windows that were open.
                end = -(10**18) if said is None else said - BASE
                query(folder, f"DELETE FROM results WHERE {micros('window_end')} + {lateness * MS} > {end} AND {micros('window_start')} >= {replay_cutoff(replay)}")
        write(folder, events, {split: len(times) for split, times in events.items()})
        run(job, folder / "record", replay)
        rows, late = oracle(events, size, lateness, disorder)
        places = byte_positions(folder)
        assert stored(folder) == rows
        assert late_rows(folder) == {(start, split, places[split][position]) for start, split, position in late}


def replay_cutoff(replay: ReplayPoint) -> int:
    """Relative to BASE; everything is computed anew where there is none."""
    return replay.cutoff["AggregateWindows"] - BASE if replay.cutoff else -(10**18)


@settings(deadline=None, max_examples=examples(5))
@given(
    EVENTS, st.fixed_dictionaries({name: st.integers(30, 100) for name in ("p", "qq", "rrr")}),
    st.sampled_from([1_000, 2_500, 7_000, 60_000]), st.sampled_from([1_000, 2_500, 7_000, 60_000]), st.sampled_from([0, 1_000, 5_000]), st.sampled_from([0, 4_000]),
)  # fmt: skip
def test_changed_windows_leave_no_gap(events: Events, upto: dict[str, int], size: int, new_size: int, lateness: int, new_lateness: int) -> None:
    """The old windows before the first new one are all complete, and the new ones are those of one run over everything."""
    with TemporaryDirectory() as name:
        folder, disorder = Path(name), 500
        old = job_of(folder, size, lateness, disorder)
        write(folder, events, {split: len(times) * upto[split] // 100 for split, times in events.items()})
        run(old, folder / "record", None)
        layout, watermark = layout_of(old), cut_short(folder / "record")
        new = job_of(folder, new_size, new_lateness, disorder, metric="new")
        replay = make_replay_point(JobRecord(folder / "record"), new, watermark=watermark, before=layout)
        write(folder, events, {split: len(times) for split, times in events.items()})
        run(new, folder / "record", replay)
        cutoff = replay_cutoff(replay)
        rows, _ = oracle(events, new_size, new_lateness, disorder)
        assert stored(folder, "new") == {key: row for key, row in rows.items() if key[0] >= cutoff}
        before, _ = oracle(events, size, lateness, disorder)
        complete = {key: row for key, row in before.items() if key[0] < cutoff}
        assert {key: stored(folder)[key] for key in complete if key in stored(folder)} == complete
        assert watermark is None or cutoff <= watermark - BASE


def test_duplicates_of_what_is_stored_stay_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event comes again a second later, as a producer writes it that had no answer: the copy may be behind the cutoff, and its original before it."""
    # In one call: between calls the FnApiRunner's watermark is at the end of time, and ids are forgotten.
    monkeypatch.setattr(read, "CALL_SECONDS", 60.0)
    job = job_of(tmp_path, 1_000, 0, 0, dedup=True)
    ids = range(1, 101)
    lines = [json.dumps({"t": BASE // MS + time, "k": "a", "v": number}) + "\n" for time, number in sorted((100 * i + again, i) for i in ids for again in (0, 1_000))]
    path = tmp_path / "in" / "p.ndjson"
    path.parent.mkdir()
    path.write_text("".join(lines[:110]))
    run(job, tmp_path / "record", None)
    replay = make_replay_point(JobRecord(tmp_path / "record"), job, watermark=cut_short(tmp_path / "record"))
    assert [point.start > 0 for point in replay.splits.values()] == [True]
    assert replay.notes == ["Deduplicate: copies of an event in different splits and with different times may both count near the cutoff"]
    path.write_text("".join(lines))
    run(job, tmp_path / "record", replay)
    assert stored(tmp_path) == {(second * S, "a"): (len(some), sum(some)) for second in range(11) if (some := [i for i in ids if i // 10 == second])}


def test_what_is_read_again_but_stored_is_counted(tmp_path: Path) -> None:
    job = job_of(tmp_path, 1_000, 0, 0)
    events = {"p": list(range(0, 10_000, 100))}
    write(tmp_path, events, {"p": 55})
    run(job, tmp_path / "record", None)
    replay = make_replay_point(JobRecord(tmp_path / "record"), job, watermark=cut_short(tmp_path / "record"))
    assert replay_cutoff(replay) == 5 * S
    events["p"] += [0, 9_950]
    write(tmp_path, events, {"p": len(events["p"])})
    run(job, tmp_path / "record", replay)
    record = JobRecord(tmp_path / "record")
    again = sum(values["events"] for values in record.all("already_stored"))
    read_again = sum(values["events"] for values in record.all("splits"))
    assert 0 < again < 50, "the start is near the cutoff, not at the beginning"
    assert again + 52 == read_again
    assert [values["events"] for values in record.all("late")] == [1], "behind the old end, of a window that is complete: late"


def test_old_events_of_a_split_that_is_new_are_late(tmp_path: Path) -> None:
    job = job_of(tmp_path, 1_000, 0, 0)
    write(tmp_path, {"p": [0, 5_000, 9_000]}, {"p": 3})
    run(job, tmp_path / "record", None)
    replay = make_replay_point(JobRecord(tmp_path / "record"), job, watermark=cut_short(tmp_path / "record"))
    write(tmp_path, {"qq": [100, 9_500]}, {"qq": 2})
    run(job, tmp_path / "record", replay)
    assert late_rows(tmp_path) == {(0, "qq", 0)}
    assert [(start, count) for (start, _), (count, _) in sorted(stored(tmp_path).items())] == [(0, 1), (5 * S, 1), (9 * S, 2)]


def test_a_split_that_is_gone_is_told(tmp_path: Path) -> None:
    job = job_of(tmp_path, 1_000, 0, 0)
    write(tmp_path, {"p": [0, 5_000, 9_000], "qq": [9_000]}, {"p": 3, "qq": 1})
    run(job, tmp_path / "record", None)
    replay = make_replay_point(JobRecord(tmp_path / "record"), job, watermark=cut_short(tmp_path / "record"))
    (tmp_path / "in" / "p.ndjson").unlink()
    with pytest.raises(Exception, match=r"in/p.ndjson must be read again and is not there any more; start anew with --fresh"):
        run(job, tmp_path / "record", replay)


KINDS = {
    # Windows with a time (ms after BASE), by the definition.
    "{sliding: {size: 3s, every: 1s}}": lambda time: [(start, start + 3_000) for start in range(time // 1_000 * 1_000 - 2_000, time + 1, 1_000)],
    "{sliding: {size: 2500ms, every: 1s}}": lambda time: [(start, start + 2_500) for start in range(-3_000, time + 1, 1_000) if start + 2_500 > time],
    "{cumulative: {size: 4s, every: 1s}}": lambda time: [(time // 4_000 * 4_000, end) for end in range(time // 1_000 * 1_000 + 1_000, time // 4_000 * 4_000 + 4_001, 1_000)],
    "global": lambda time: [(-BASE // MS, 9_214_646_400_000 - BASE // MS)],
}  # fmt: skip


def windows_oracle(
    events: Events, windows: Any, lateness: int, disorder: int
) -> tuple[dict[tuple[int, int, str], tuple[int, int]], set[tuple[str, int]], set[tuple[int, int]]]:
    """What one run over everything stores, by both bounds (microseconds after BASE), what it finds late, which is what its last window is too late for,
    and windows that may lack an event: it came when they were closed, and counts in later ones."""
    unsure = set()
    values: dict[tuple[int, int, str], list[int]] = {}
    late = set()
    for split, times in events.items():
        for position, time in enumerate(times):
            newest = max(times[: position + 1])
            passed = reported(newest * MS, disorder * MS) + MS
            if (windows(time)[-1][1] + lateness) * MS <= passed:
                late.add((split, position))
                continue
            for start, end in windows(time):
                if (end + lateness) * MS <= passed:
                    unsure.add((start * MS, end * MS))
                values.setdefault((start * MS, end * MS, key_of(split, position)), []).append(position + 1)
    return {key: (len(some), sum(some)) for key, some in values.items()}, late, unsure


@pytest.mark.integration
@settings(deadline=None, max_examples=examples(8))
@example({"p": [100, 3_600, 8_900, 9_000, 9_100, 8_000]}, {"p": 60, "qq": 0, "rrr": 0}, "{cumulative: {size: 4s, every: 1s}}", 0, 0)
@example({"p": [100, 3_600, 8_900, 9_000, 9_100, 8_000]}, {"p": 60, "qq": 0, "rrr": 0}, "{sliding: {size: 3s, every: 1s}}", 0, 0)
@given(EVENTS, st.fixed_dictionaries({name: st.integers(10, 100) for name in ("p", "qq", "rrr")}), st.sampled_from(sorted(KINDS)), st.sampled_from([0, 1_000]), st.sampled_from([0, 500]))
def test_windows_of_every_kind_are_replayed(events: Events, upto: dict[str, int], window: str, lateness: int, disorder: int) -> None:
    """A run that was stopped, its unfinished windows not stored, and the replay are together one run."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        job = job_of(folder, 0, lateness, disorder, window=window)
        write(folder, events, {split: len(times) * upto[split] // 100 for split, times in events.items()})
        run(job, folder / "record", None)
        watermark = cut_short(folder / "record")
        replay = make_replay_point(JobRecord(folder / "record"), job, watermark=watermark)
        cutoff = replay_cutoff(replay)
        first = query(folder, f"SELECT count(*), coalesce(sum({micros('window_start')} >= {cutoff}), 0) FROM results")
        query(folder, f"DELETE FROM results WHERE {micros('window_start')} >= {cutoff}")
        marked = query(folder, "UPDATE results SET total = total RETURNING 1")
        write(folder, events, {split: len(times) for split, times in events.items()})
        run(job, folder / "record", replay)
        rows, late, unsure = windows_oracle(events, KINDS[window], lateness, disorder)
        found = query(folder, f"SELECT {micros('window_start')}, {micros('window_end')}, k, events, total FROM results")
        stored = {(start, end, key): (count, total) for start, end, key, count, total in found if (start, end) not in unsure}
        assert stored == {key: row for key, row in rows.items() if key[:2] not in unsure}
        places = byte_positions(folder)
        assert {(split, position) for _, split, position in late_rows(folder)} == {(split, places[split][position]) for split, position in late}
        assert not first or len(marked) == first[0][0] - first[0][1]


@pytest.mark.parametrize(("window", "cutoff"), [("{sliding: {size: 3s, every: 1s}}", 6), ("{cumulative: {size: 4s, every: 1s}}", 8)])
def test_stored_windows_are_left_alone(tmp_path: Path, window: str, cutoff: int) -> None:
    """A replay neither reads all nor writes a window that was complete: what someone wrote into such a row stays."""
    job = job_of(tmp_path, 0, 0, 0, window=window)
    events = {"p": list(range(0, 12_000, 100))}
    write(tmp_path, events, {"p": 85})
    run(job, tmp_path / "record", None)
    replay = make_replay_point(JobRecord(tmp_path / "record"), job, watermark=cut_short(tmp_path / "record"))
    assert replay_cutoff(replay) == cutoff * S and all(point.start > 0 for point in replay.splits.values())
    query(tmp_path, "UPDATE results SET total = -1, events = 0, revision = 0")
    write(tmp_path, events, {"p": 120})
    run(job, tmp_path / "record", replay)
    left = query(tmp_path, f"SELECT DISTINCT {micros('window_start')} >= {cutoff * S} FROM results WHERE total = -1")
    assert left == [(0,)]
    rows, _, _ = windows_oracle(events, KINDS[window], 0, 0)
    found = query(tmp_path, f"SELECT {micros('window_start')}, {micros('window_end')}, k, events, total FROM results WHERE total <> -1")
    assert {(start, end, key): (count, total) for start, end, key, count, total in found} == {key: row for key, row in rows.items() if key[0] >= cutoff * S}


HOURS = [hour * 3_600_000 for hour in range(72)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("window", "cutoff"),
    [("{tumbling: {size: 1d, timezone: Europe/Berlin}}", 23), ("{cumulative: {size: 1d, every: 30m, timezone: America/New_York}}", 29), ("{sliding: {size: 2d, every: 1d, timezone: Asia/Kolkata}}", -5.5)],
)  # fmt: skip
def test_days_of_a_time_zone_are_replayed(tmp_path: Path, window: str, cutoff: float) -> None:
    """50 hours were read: the cutoff is at the zone's last midnight before, or where the first unfinished window of two days began."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    write(whole, {"p": HOURS}, {"p": 72})
    run(job_of(whole, 0, 0, 0, window=window), whole / "record", None)
    job = job_of(parts, 0, 0, 0, window=window)
    write(parts, {"p": HOURS}, {"p": 41})
    run(job, parts / "record", None)
    replay = make_replay_point(JobRecord(parts / "record"), job, watermark=cut_short(parts / "record"))
    assert replay_cutoff(replay) == int(cutoff * 3_600) * S
    query(parts, f"DELETE FROM results WHERE {micros('window_start')} >= {replay_cutoff(replay)}")
    write(parts, {"p": HOURS}, {"p": 72})
    run(job, parts / "record", replay)
    every = "SELECT window_start, window_end, k, events, total FROM results ORDER BY 1, 2, 3"
    assert query(parts, every) == query(whole, every) != []


@pytest.mark.parametrize("which", ["before", "after"])
def test_sessions_are_refused_in_words(tmp_path: Path, which: str) -> None:
    sessions, tumbling = (job_of(tmp_path, 1_000, 0, 0, window=window) for window in ("{session: {gap: 10s, max: 1h}}", None))
    before, after = (sessions, tumbling) if which == "before" else (tumbling, sessions)
    with pytest.raises(ReplayError, match=r"^AggregateWindows: window session gap 10s max 1h: sessions begin where the events of their key say, .* start anew with --fresh$"):
        make_replay_point(JobRecord(tmp_path / "record"), after, watermark=None, before=layout_of(before))


CHANGES = [
    ("time: {field: t", "time: {field: u", "is read with time.field t, unit None and with time.field u, unit None: positions by one are none by the other"),
    ("{tumbling: 1000ms}", "{tumbling: {size: 1d, timezone: Europe/London}}", "window tumbling 1s -> tumbling 1d in Europe/London: rows of both have the same keys"),
    ("{tumbling: 1000ms}", "{sliding: {size: 2s, every: 1s}}", "window tumbling 1s -> sliding 2s every 1s: rows of both have the same keys"),
    ("late: true", "late: true\n        keys: {limit: 5}", "keys without a limit -> limit 5, beyond other: rows of keys that only the old limit lets in would stay beside"),
    ("tumbling: 1000ms", "tumbling: 300ms", "window tumbling 1s -> tumbling 300ms: rows of both have the same keys, and a store does not replace a row by one of fewer events"),
]


@pytest.mark.parametrize(("old", "new", "message"), CHANGES)
def test_what_would_give_wrong_rows_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    job = job_of(tmp_path, 1_000, 0, 0)
    before = layout_of(job)
    path = tmp_path / "job.yaml"
    path.write_text(path.read_text().replace("k: string", 'u: "timestamp[ms]", k: string').replace(old, new))
    with pytest.raises(ReplayError, match=message):
        make_replay_point(JobRecord(tmp_path / "record"), load_job(path), watermark=0, before=before)


def test_longer_windows_of_one_name_are_noted(tmp_path: Path) -> None:
    before = layout_of(job_of(tmp_path, 1_000, 0, 0))
    replay = make_replay_point(JobRecord(tmp_path / "record"), job_of(tmp_path, 60_000, 0, 0), watermark=BASE + 90 * S, before=before)
    assert replay.notes == [
        "AggregateWindows: window tumbling 1s -> tumbling 1m: rows of unfinished windows of 1s stay beside the new ones, unless the metric has another name"
    ]
    assert replay_cutoff(replay) == 60 * S


def test_a_replay_point_survives_its_file(tmp_path: Path) -> None:
    job = job_of(tmp_path, 1_000, 0, 0)
    write(tmp_path, {"p": [0, 5_000, 9_000]}, {"p": 3})
    run(job, tmp_path / "record", None)
    replay = make_replay_point(JobRecord(tmp_path / "record"), job, watermark=cut_short(tmp_path / "record"))
    assert replay.cutoff
    replay.save(tmp_path / "point.json")
    assert ReplayPoint.load(tmp_path / "point.json") == replay
