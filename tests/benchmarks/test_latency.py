"""The parts of the latency benchmark that need no server: figures, the reader, the baseline's windows, the pace."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import latency, latency_trace
from benchmarks.latency_figures import by_condition, finals, overlaps, pauses, percentiles
from benchmarks.latency_loop import COLUMNS, SqliteStore, Windows
from benchmarks.latency_producer import PARTITIONS, PROBE, Paced, keys, probe
from benchmarks.latency_reader import Seen, SqliteTable
from benchmarks.latency_run import Case
from streamgauge.pipelines.job import load_job

S = 1_000_000


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 5)), min_size=1, max_size=60))
def test_a_percentile_is_the_least_delay_that_enough_samples_do_not_exceed(weighted: list[tuple[int, int]]) -> None:
    delays, weights = (np.array(column, np.int64) for column in zip(*weighted, strict=True))
    spelled_out = sorted(delay for delay, weight in weighted for _ in range(weight))
    found = percentiles(delays, weights)
    for share in (50, 95, 99):
        wanted = next(delay for place, delay in enumerate(spelled_out, 1) if place * 100 >= share * len(spelled_out))
        assert found[f"p{share}"] == wanted / 1000
    assert found["max"] == spelled_out[-1] / 1000


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 30)), max_size=20), st.lists(st.tuples(st.integers(0, 100), st.integers(0, 30)), max_size=5))
def test_overlaps(samples: list[tuple[int, int]], intervals: list[tuple[int, int]]) -> None:
    begins = np.array([begin for begin, _ in samples], np.int64)
    lengths = np.array([length for _, length in samples], np.int64)
    found = overlaps(begins, begins + lengths, [(begin, begin + length) for begin, length in intervals])
    wanted = [any(set(range(b, b + n + 1)) & set(range(c, c + m + 1)) for c, m in intervals) for b, n in samples]
    assert found.tolist() == wanted


def test_samples_are_told_apart_by_what_was_going_on() -> None:
    samples = np.array([[0, 1000], [5000, 7000], [20_000, 50_000]])
    rows = {row["during"]: row for row in by_condition(samples, {"checkpoint": [(6000, 6500)], "pause": []})}
    assert {name: row["samples"] for name, row in rows.items()} == {"all": 3, "checkpoint": 1, "pause": 0, "none of these": 2}
    assert rows["checkpoint"]["p50"] == 2.0 and rows["none of these"]["max"] == 30.0 and rows["pause"]["p99"] is None


def test_final_rows_count_from_the_end_of_their_window() -> None:
    found = finals([(0, S + 100, 3), (0, S + 900, 1), (S, 2 * S + 500, 4), (5 * S, 7 * S, 9)], S, 0, 3 * S)
    assert found["rows"]["samples"] == 8 and found["windows"]["samples"] == 2
    assert found["rows"]["max"] == 0.9 and found["windows"]["p50"] == 0.5


def test_pauses_are_read_from_a_log_with_other_lines() -> None:
    log = "[1700000000100ms] Using G1\n[1700000001000ms] GC(0) Pause Full (System.gc()) 9M->8M(30M) 12.000ms\n[1700000001200ms] GC(1) Concurrent Mark Cycle 7.000ms\n"
    assert pauses(log) == [(1_700_000_000_988_000, 1_700_000_001_000_000)]


def test_the_pace_never_bursts_and_never_forgets() -> None:
    pace = Paced(1000, began=0.0)
    assert [pace.due(0.001), pace.due(0.003), pace.due(0.003)] == [1, 2, 0]
    assert pace.due(1.003) == 20 and pace.due(1.003) == 20 and pace.behind == pytest.approx(1.0, abs=0.002)
    while pace.due(1.003):
        pass
    assert pace.sent in (1002, 1003)  # 1.003 is no binary fraction


def test_every_payload_is_json_with_the_fields_of_the_job() -> None:
    schema = json.loads(Case("streamgauge", "sqlite", 1).job("b:1", "t", "x.db"))["pipeline"]["transforms"][0]["config"]["format"]["json"]["schema"]
    for payload in (probe(7, 1), *(b'{"ts": 1, ' + tail for tail in keys())):
        assert set(orjson.loads(payload)) == set(schema)
    assert len({(event["metric"], event["host"]) for event in (orjson.loads(b'{"ts": 1, ' + tail) for tail in keys())}) == 1000


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5000), st.sampled_from("ab")), max_size=60))
def test_the_baseline_counts_what_is_not_behind_every_partition(events: list[tuple[int, int, str]]) -> None:
    windows, told = Windows(1000, live=True, partitions=PARTITIONS), {}
    newest: dict[int, int] = defaultdict(int)
    for partition, step, host in events:
        newest[partition] += step  # each partition in order, as in Kafka
        windows.add(partition, orjson.dumps({"ts": newest[partition], "value": 1.0, "metric": "m", "host": host}))
    for row in windows.rows():
        told[row[0], row[2]] = row
    passed = min(newest.values()) if len(newest) == PARTITIONS else 0
    stamps: dict[int, int] = defaultdict(int)
    wanted: dict[tuple[int, str], int] = defaultdict(int)
    for partition, step, host in events:
        stamps[partition] += step
        wanted[stamps[partition] // 1000 * 1000, host] += 1
    assert {key: row[COLUMNS.index("events")] for key, row in told.items()} == wanted
    assert all(row[-1] == (start + 1000 <= passed) for (start, _), row in told.items())


def test_the_reader_sees_probes_once_and_final_rows_as_they_come(tmp_path: Path) -> None:
    path = str(tmp_path / "results.db")
    store, start = SqliteStore(path, "latency"), int(time.time()) * S
    table, seen = SqliteTable(path, "latency"), Seen()

    def row(host: str, stamp: int, *, final: bool, series: str = PROBE) -> tuple[object, ...]:
        return (start, series, host, 1.0, 1.0, 1.0, stamp, 1, final)

    def look(now: int) -> bool:
        found = table.look()
        if found is not None:
            seen.note(*found, now)
        return found is not None

    store.write([row("p1", start + 5, final=False), row("h", start + 6, final=False, series="m")])
    assert look(100) and not look(101)
    store.write([row("p1", start + 5, final=True), row("p2", start + 7, final=False)])
    assert look(200)
    store.write([row("p2", start + 7, final=True), row("h", start + 6, final=True, series="m")])
    assert look(300)
    assert seen.probes == [(start + 5, 100), (start + 7, 200)]
    assert seen.finals == [(start, 200, 1), (start, 300, 2)]


def test_the_reader_looks_at_new_rows_only_however_many_there_are(tmp_path: Path) -> None:
    path = str(tmp_path / "results.db")
    store, start = SqliteStore(path, "latency"), int(time.time()) * S
    store.write([(start, "m", "h", 1.0, 1.0, 1.0, start, 1, False)])
    asked: list[str] = []

    def connect(*arguments: object, **keywords: object) -> sqlite3.Connection:
        connection = sqlite3.connect(*arguments, **keywords)  # type: ignore[call-overload]
        connection.set_trace_callback(asked.append)
        return connection

    assert SqliteTable(path, "latency", connect).look() is not None
    plans = [row[-1] for query in asked if query.startswith("SELECT") for row in sqlite3.connect(path).execute(f"EXPLAIN QUERY PLAN {query}")]
    assert plans and not [plan for plan in plans if plan.startswith("SCAN") or "USING INDEX" in plan or "COVERING" in plan]


def test_the_reader_counts_final_rows_that_come_seconds_late(tmp_path: Path) -> None:
    path = str(tmp_path / "results.db")
    store, start = SqliteStore(path, "latency"), (int(time.time()) - 8) * S
    table, seen = SqliteTable(path, "latency"), Seen()
    for now, final in (100, False), (200, True):
        store.write([(start, "m", "h", 1.0, 1.0, 1.0, start, 1, final)])
        found = table.look()
        assert found is not None
        seen.note(*found, now)
    assert seen.finals == [(start, 200, 1)]


def test_time_is_attributed_step_by_step(tmp_path: Path) -> None:
    end = 2 * S
    notes = [
        *({"what": "probe", "stage": stage, "at": 1000 * at, "hosts": ["p1"]} for at, stage in enumerate(latency_trace.STAGES[1:-1], 1)),
        *({"what": "watermark", "at": end + 1000 * (1 + p), "split": f"s{p}", "micros": end} for p in range(PARTITIONS)),
        {"what": "passed", "at": S + 5000, "end": S}, {"what": "passed", "at": end + 9000, "end": end}, {"what": "final", "at": end + 12_000, "ends": [end]},
    ]  # fmt: skip
    (tmp_path / "notes.ndjson").write_text("".join(json.dumps(line) + "\n" for line in notes))
    (tmp_path / "seen.json").write_text(json.dumps({"hosts": [["p1", 0, 8000]], "finals": [[S, end + 13_000, 5]]}))
    found = latency_trace.attribute(tmp_path, 0)
    live = {row["step"]: row["p50"] for row in found["event to live row"]}
    assert live == {"produced to read": 1, "read to merge": 1, "merge to row": 1, "row to write": 1, "write to stored": 1, "stored to seen": 3, "all": 8}
    final = {row["step"]: row["p50"] for row in found["window end to its last final row"]}
    assert final == {"end to watermark": 4, "watermark to passed": 5, "passed to stored": 3, "stored to seen": 1, "all": 13}


@pytest.mark.parametrize("store", ["sqlite", "questdb"])
@pytest.mark.parametrize(("window", "emit"), [(1000, "on_change"), (1000, "50ms"), (100, "final")])
def test_the_job_is_one_that_streamgauge_takes(tmp_path: Path, store: str, window: int, emit: str) -> None:
    job = tmp_path / "latency.yaml"
    job.write_text(Case("streamgauge", store, 1000, window, emit).job("127.0.0.1:1", "t", "http://127.0.0.1:1" if store == "questdb" else str(tmp_path / "x.db")))
    assert len(load_job(job).steps) == 3


def test_small_windows_are_measured_by_their_final_rows() -> None:
    cases = latency.chosen(latency.parser().parse_args(["--store", "sqlite", "--contender", "streamgauge"]))
    assert [(case.rate, case.window_ms, case.emit) for case in cases] == [
        (1000, 1000, "on_change"), (20_000, 1000, "on_change"), (100_000, 1000, "on_change"), (20_000, 100, "final"), (20_000, 250, "final"),
    ]  # fmt: skip


def test_times_are_those_of_utc() -> None:
    from benchmarks.latency_reader import _micros

    assert _micros("2026-01-01T00:00:00.250000Z") == int(datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp() * S) + 250_000
