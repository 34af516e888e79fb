"""``streamgauge verify`` for every kind of window and the aggregates that SQL can compute: right rows agree, a changed value is found."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.pipelines.job import JobError, load_job
from streamgauge.pipelines.verify import Verdict, verify_job
from streamgauge.pipelines.verify_windows import _instant, place
from streamgauge.transforms.config import Choice
from streamgauge.transforms.windows import WINDOWS
from tests.examples import examples
from tests.pipelines.test_verify import run

# Whole jobs, run and verified.
pytestmark = pytest.mark.integration

AGGREGATES = {
    "n_values": "{count: value}", "big": "{count: {where: value > 50 OR host = 'b'}}", "recent": "{count: {where: \"ts >= TIMESTAMPTZ '2020-03-28 22:00:00+00'\"}}",
    "some": "{sum: {of: n, where: value IS NOT NULL}}", "mean": "{mean: {of: value, where: \"small + 100 > 0\"}}",
    "opened": "{first: value}", "closed": "{last: host}", "at_least": "{argmin: {of: n, by: value}}", "at_most": "{argmax: {of: host, by: small}}",
    "spread": "{variance: value}", "deviation": "{stddev: {of: small, population: true, where: n > 0}}", "one_bad": "{any: value < -200}", "all_up": "{all: up}",
    "hosts": "{distinct: host}", "numbers": "{distinct: {of: small, exact: true}}", "usual": "{mode: small}", "usual_host": "{mode: host}", "share": "{ratio: {of: value > 0, to: up}}",
    "p95": "{quantile: {of: value, q: 0.95}}",
}  # fmt: skip
JOB = """
pipeline:
  transforms:
    - type: ReadEvents
      config:
        from: {files: "*.ndjson"}
        format: {json: {schema: {ts: "timestamp[ms]", host: string, value: double, n: int64, small: int8, up: bool}}}
        time: {field: ts, disorder: 2h}
    - type: AggregateWindows
      input: ReadEvents
      config:
        metric: load
        window: WINDOW
        by: {server: host}
        late: true
        MORE
        aggregates:
          AGGREGATES
    - {name: Results, type: WriteResults, input: AggregateWindows.results, config: {to: {sqlite: {path: out.db, table: load}}}}
    - {name: Late, type: WriteResults, input: AggregateWindows.late, config: {to: {parquet: {path: late}}}}
"""
BEGIN = int(datetime(2020, 3, 27, 12, tzinfo=timezone.utc).timestamp() * 1000)
"""Two days before the clocks of Europe are put forward."""


def lines(seed: int) -> Iterator[str]:
    """Events of four days, three minutes apart or so, within two hours of disorder; a few come a day late."""
    rng = random.Random(seed)
    for index in range(700):
        minute = index * 8 - rng.uniform(0, 100) - (1_500 if rng.random() < 0.02 else 0)
        if index % 90 < 20:
            continue
        event = {"ts": BEGIN + int(minute * 60_000), "host": rng.choice(["a", "b", "ü", None]), "n": rng.randrange(-5, 2**50), "small": rng.randrange(-9, 9)}
        yield json.dumps({**event, "value": None if rng.random() < 0.1 else rng.gauss(1e6, 100), "up": rng.choice([True, True, False, None])})


def verified(folder: Path, window: str, more: str = "", aggregates: dict[str, str] = AGGREGATES) -> Verdict:
    listed = "\n          ".join(f"{name}: {given}" for name, given in aggregates.items())
    (folder / "job.yaml").write_text(JOB.replace("WINDOW", window).replace("MORE", more or "lateness: 1h").replace("AGGREGATES", listed))
    for name in "xy":
        (folder / f"{name}.ndjson").write_text("\n".join(lines(ord(name))) + "\n")
    run(load_job("job.yaml"))
    return verify_job(load_job("job.yaml"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMGAUGE_HOME", raising=False)
    return tmp_path


def query(text: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect("out.db")) as connection, connection:
        return connection.execute(text).fetchall()


CASES = [
    "{sliding: {size: 6h, every: 2h}}", "{sliding: {size: 5h, every: 2h, offset: 30m}}", "{sliding: {size: 2d, every: 1d, timezone: Europe/Berlin}}",
    "{cumulative: {size: 1d, every: 3h, offset: 1h}}", "{cumulative: {size: 1d, every: 30m, timezone: Europe/Berlin}}", "{cumulative: {size: 2d, every: 1d, timezone: Europe/Berlin}}",
    "{tumbling: {size: 1d, timezone: Europe/Berlin, offset: 6h}}", "{tumbling: {size: 1d, timezone: Asia/Kolkata}}", "{session: 25m}", "{session: {gap: 40m, max: 3h}}", "global",
]  # fmt: skip


@pytest.mark.parametrize("window", CASES)
def test_right_rows_agree_and_a_wrong_one_is_found(folder: Path, window: str) -> None:
    verdict = verified(folder, window)
    (results,) = verdict.results
    assert (verdict.agrees, results.differences) == (True, [])
    assert results.compared == query("SELECT count(*) FROM load")[0][0] > 2
    assert "not compared: p95 (quantile)" in results.notes
    assert "d" in window or "global" in window or results.late > 0
    table = "load_versions" if "session" in window else "load"
    row = f"(SELECT rowid FROM {table} WHERE server = 'a' AND events > 2 LIMIT 1)"
    query(f"UPDATE {table} SET some = some + 1 WHERE rowid = {row}")
    (results,) = verify_job(load_job("job.yaml")).results
    assert [(results.differing, {difference.column for difference in results.differences})] == [(1, {"some"})]


def test_each_aggregate_is_compared(folder: Path) -> None:
    assert verified(folder, "{tumbling: 12h}").agrees
    for name in AGGREGATES:
        if name == "p95":
            continue
        row = "(SELECT rowid FROM load WHERE server = 'a' AND events > 5 LIMIT 1)"
        ((was,),) = query(f"SELECT {name} FROM load WHERE rowid = {row}")
        query(f"UPDATE load SET {name} = CASE WHEN typeof({name}) = 'text' THEN 'zz' WHEN {name} IN (0, 1) THEN 1 - {name} ELSE {name} * 1.000001 + 1 END WHERE rowid = {row}")
        (results,) = verify_job(load_job("job.yaml")).results
        assert (results.differing, results.differences[0].column) == (1, name), name
        with closing(sqlite3.connect("out.db")) as connection, connection:
            connection.execute(f"UPDATE load SET {name} = ? WHERE rowid = {row}", (was,))
    assert verify_job(load_job("job.yaml")).agrees


@pytest.mark.parametrize("beyond", ["other", "dead_letters"])
def test_keys_beyond_a_limit(folder: Path, beyond: str) -> None:
    """Which keys have rows is a matter of hashes; what they and the others count is not."""
    few = {"n_values": "{count: value}"}
    (results,) = verified(folder, "{tumbling: 12h}", f"keys: {{limit: 2, beyond: {beyond}}}\n        shards: 1", few).results
    assert (results.agrees, results.differences) == (True, []) and results.compared > 5
    noted = [note for note in results.notes if "beyond the limit" in note]
    assert len(noted) == (beyond == "dead_letters")
    if beyond == "other":
        query("UPDATE load SET events = events + 1 WHERE rowid = (SELECT rowid FROM load WHERE other IS NOT NULL LIMIT 1)")
        (results,) = verify_job(load_job("job.yaml")).results
        assert [(difference.column, difference.key.keys()) for difference in results.differences] == [("(keys beyond the limit)", {"window_start": 0}.keys())]
    query("UPDATE load SET n_values = n_values + 1 WHERE rowid = (SELECT rowid FROM load WHERE server IS NOT NULL LIMIT 1)")
    assert "n_values" in {difference.column for difference in verify_job(load_job("job.yaml")).results[0].differences}


def test_withdrawn_rows_are_no_rows(folder: Path) -> None:
    few = {"n_values": "{count: value}"}
    verdict = verified(folder, "{session: 25m}", "lateness: 2d\n        emit: on_change", few)
    assert verdict.agrees, verdict.results[0].differences
    (count,) = query("SELECT count(*) FROM load_versions WHERE withdrawn")[0]
    query("UPDATE load_versions SET withdrawn = 1 WHERE rowid = (SELECT rowid FROM load_versions WHERE NOT withdrawn LIMIT 1)")
    assert [difference.stored for difference in verify_job(load_job("job.yaml")).results[0].differences] == ["missing"]
    assert query("SELECT count(*) FROM load_versions WHERE withdrawn") == [(count + 1,)]


def test_events_that_were_changed_are_refused_before_anything_is_read(folder: Path) -> None:
    text = JOB.replace("WINDOW", "global").replace("MORE", "shards: 1").replace("AGGREGATES", "n: count")
    mapped = text.replace("    - type: AggregateWindows\n      input: ReadEvents\n", "    - {type: MapEvents, input: ReadEvents, config: {where: n > 0}}\n    - type: AggregateWindows\n      input: MapEvents\n")
    (folder / "job.yaml").write_text(mapped)
    with pytest.raises(JobError, match=r"job.yaml:\d+: verify cannot compute load again: MapEvents \(line \d+\) changes its events first"):
        verify_job(load_job("job.yaml"))


# Windows in SQL, against the definition

H = 3_600_000_000


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60)), min_size=1, max_size=12), st.integers(1, 9), st.none() | st.integers(0, 20),
)  # fmt: skip
def test_sessions_in_sql(events: list[tuple[str, int]], gap: int, more: int | None) -> None:
    """Gaps, and cuts at multiples of the maximum, by going through the events of a key one by one (in milliseconds)."""
    longest = None if more is None else gap + more
    options = {"gap": f"{gap}ms", **({} if longest is None else {"max": f"{longest}ms"})}
    window = Choice(WINDOWS, "session", WINDOWS.load("session").Options(**options))
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE e (split VARCHAR, position BIGINT, time BIGINT, k0 VARCHAR)")
        connection.executemany("INSERT INTO e VALUES ('s', ?, ?, ?)", [(number, time * 1000, key) for number, (key, time) in enumerate(events)])
        found = connection.execute(f"SELECT position, window_start // 1000, window_end // 1000 FROM ({place(connection, 'e', window, ['k0'])})").fetchall()
    wanted = {}
    for key in "ab":
        chains: list[list[tuple[int, int]]] = []
        for time, number in sorted((time, number) for number, (other, time) in enumerate(events) if other == key):
            if not chains or time - chains[-1][-1][0] >= gap:
                chains.append([])
            chains[-1].append((time, number))
        for chain in chains:
            cut = longest is not None and chain[-1][0] + gap - chain[0][0] > longest
            for time, number in chain:
                part = [other for other, _ in chain if not cut or longest is None or other // longest == time // longest]
                end = max(part) + gap
                wanted[number] = (number, min(part), min(end, (time // longest + 1) * longest) if cut and longest is not None else end)
    assert sorted(found) == sorted(wanted.values())


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo", "Asia/Beirut", "America/Scoresbysund", "Pacific/Apia", "UTC"])
def test_midnights_are_when_the_date_changes(zone: str) -> None:
    """The first second at which the clock shows the day, also where midnight is left out or comes twice; whole years of days."""
    there = ZoneInfo(zone)
    for day in range(14_000, 18_500):
        instant = _instant(day * 24 * H, zone)
        moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=instant)
        date = datetime(1970, 1, 1) + timedelta(days=day)
        assert moment.astimezone(there).replace(tzinfo=None) >= date, (zone, date)
        assert (moment - timedelta(seconds=1)).astimezone(there).replace(tzinfo=None) < date, (zone, date)
