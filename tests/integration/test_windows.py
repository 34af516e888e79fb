"""Every kind of window on the embedded Flink, several over one source in one job, with disorder; killed and resumed. The oracle is plain Python."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from streamgauge.pipelines.services.flink import latest_checkpoint
from streamgauge.transforms.record import JobRecord
from tests.running import Command, stored, until
from tests.transforms.test_combine import windows_with

pytestmark = pytest.mark.integration

S = 1_000_000
EVENTS = 20_000
STEP = 2_000
"""Microseconds of event time from one event to the next."""

KEYS = 7
GAP, LONGEST = S // 5, 5 * S
SLICED: dict[str, dict[str, Any]] = {
    "slide": {"sliding": {"size": "10s", "every": "1s"}}, "hop": {"sliding": {"size": "7s", "every": "3s"}}, "to_date": {"cumulative": {"size": "30s", "every": "5s"}},
    "plain": {"tumbling": "2s"},
}  # fmt: skip
METRICS = {**SLICED, "everything": "global", "visits": {"session": {"gap": f"{GAP}us", "max": f"{LONGEST}us"}}}
METRIC = """
    - type: AggregateWindows
      name: {name}
      input: Read
      config:
        metric: {name}
        window: {window}
        by: [host]
        aggregates: {{n: count, total: {{sum: value}}, top: {{max: value}}, users: {{distinct: user}}, middle: {{quantile: {{of: value, q: 0.5}}}}, mean: {{mean: real}}}}
        lateness: 2s
        emit: {emit}
    - type: WriteResults
      name: write_{name}
      input: {name}
      config: {{to: {{sqlite: {{path: out.db, table: {name}}}}}}}
"""
JOB = """
pipeline:
  transforms:
    - type: ReadEvents
      name: Read
      config:
        from: {files: {path: "data/*.ndjson", follow: FOLLOW}}
        format: {json: {schema: {ts: int64, host: string, user: string, value: int64, real: double}}}
        time: {field: ts, unit: us, disorder: 1s}
METRICS
options: {streaming: true}
"""
Bounds = tuple[int, int, str]


def events() -> list[dict[str, Any]]:
    random.seed(7)
    return [
        {
            "ts": i * STEP + random.randint(-500_000, 499_999), "host": f"h{min(int(random.expovariate(0.4)), KEYS - 1)}", "user": f"u{random.randrange(500)}",
            "value": random.randint(1, 1000), "real": random.choice([1e16, 0.1, -1e16, random.random()]),
        }
        for i in range(EVENTS)
    ]  # fmt: skip


def sessions(made: Sequence[dict[str, Any]]) -> dict[Bounds, list[dict[str, Any]]]:
    """Runs of events of a host with less than GAP between them; longer than LONGEST, cut at its multiples."""
    found: dict[Bounds, list[dict[str, Any]]] = {}
    by_host: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in sorted(made, key=lambda event: event["ts"]):
        by_host[event["host"]].append(event)
    for host, some in by_host.items():
        chains = [[some[0]]]
        for event in some[1:]:
            if event["ts"] - chains[-1][-1]["ts"] < GAP:
                chains[-1].append(event)
            else:
                chains.append([event])
        for chain in chains:
            end = chain[-1]["ts"] + GAP
            if end - chain[0]["ts"] <= LONGEST:
                found[chain[0]["ts"], end, host] = chain
                continue
            cells: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for event in chain:
                cells[event["ts"] // LONGEST].append(event)
            for cell, piece in cells.items():
                found[piece[0]["ts"], min(piece[-1]["ts"] + GAP, (cell + 1) * LONGEST), host] = piece
    return found


def expected(made: Sequence[dict[str, Any]], name: str) -> dict[Bounds, list[dict[str, Any]]]:
    """The events of each window and host."""
    if name == "visits":
        return sessions(made)
    found: dict[Bounds, list[dict[str, Any]]] = defaultdict(list)
    for event in made:
        for start, end in windows_with(SLICED[name], event["ts"]) if name in SLICED else [(0, 9_214_646_400_000_000)]:
            found[start, end, event["host"]].append(event)
    return found


def moment(text: str) -> int:
    return (datetime.fromisoformat(text.replace(" ", "T")).replace(tzinfo=timezone.utc) - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)


def check(folder: Path, made: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Every row of every metric is what its events say; returns the number of rows."""
    for name in METRICS:
        rows = stored(folder / "out.db", f"SELECT window_start, window_end, host, n, total, top, users, middle, mean, events, final FROM {name}")
        wanted = expected(made, name)
        found = {(moment(start), moment(end), host): values for start, end, host, *values in rows}
        assert sorted(found) == sorted(wanted), name
        for key, (n, total, top, users, middle, mean, counted, final) in found.items():
            values = sorted(event["value"] for event in wanted[key])
            assert (n, total, top, counted, final) == (len(values), sum(values), values[-1], len(values), 1), (name, key)
            assert users == len({event["user"] for event in wanted[key]})
            assert middle == pytest.approx(values[(len(values) - 1) // 2], rel=0.01)
            assert mean == pytest.approx(math.fsum(event["real"] for event in wanted[key]) / n, rel=1e-15)
    return {name: len(expected(made, name)) for name in METRICS}


def write_job(folder: Path, emit: str, *, follow: bool) -> None:
    (folder / "data").mkdir()
    text = "".join(METRIC.format(name=name, window=json.dumps(window), emit=emit) for name, window in METRICS.items())
    (folder / "m.yaml").write_text(JOB.replace("METRICS", text).replace("FOLLOW", str(follow).lower()))


def append(folder: Path, made: Sequence[dict[str, Any]]) -> None:
    """Every second event to one file, the others to another."""
    for part in range(2):
        with (folder / "data" / f"{part}.ndjson").open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in made[part::2])


@pytest.mark.parametrize("emit", ["final", "{every: 100ms}"])
def test_all_kinds_over_one_source(tmp_path: Path, emit: str) -> None:
    made = events()
    write_job(tmp_path, emit, follow=False)
    append(tmp_path, made)
    with Command(tmp_path, "run", "m.yaml", "--runner", "flink") as command:
        assert command.wait() == 0, command.err
    rows = check(tmp_path, made)
    if emit == "final":
        # Timers fire in order: no row of a window was final before it was whole.
        written = sum(values["final"] for values in JobRecord(tmp_path / ".streamgauge/jobs/m/record").all("sinks"))
        assert written == sum(rows.values())


@pytest.mark.parametrize("emit", ["final", "on_change"])
def test_killed_and_resumed(tmp_path: Path, emit: str) -> None:
    made = events()
    write_job(tmp_path, emit, follow=True)
    parts = [made[start : start + EVENTS // 4] for start in range(0, EVENTS, EVENTS // 4)]
    folder = tmp_path / ".streamgauge/jobs/m"

    def finals() -> int:
        return sum(values["final"] for values in JobRecord(folder / "record").all("sinks"))

    for part in parts[:-1]:
        with Command(tmp_path, "run", "m.yaml") as command:
            before, since = finals(), latest_checkpoint(folder / "flink")
            append(tmp_path, part)
            until(lambda before=before: finals() > before + 100, "windows are closed", of=command)
            until(lambda since=since: latest_checkpoint(folder / "flink") not in (None, since), "a checkpoint is complete", of=command)
            command.kill_group()
            assert command.wait(30) == -9
    append(tmp_path, parts[-1])
    with Command(tmp_path, "run", "m.yaml") as command:
        read = lambda: sum(values["events"] for values in JobRecord(folder / "record").all("splits"))  # noqa: E731
        until(lambda: command.lines, "it starts", of=command)
        positions = {str(path): path.stat().st_size for path in (tmp_path / "data").iterdir()}
        until(lambda: sum(values["position"] for values in JobRecord(folder / "record").all("splits")) == sum(positions.values()), f"all is read ({read()})", of=command)
        with Command(tmp_path, "drain", "m.yaml") as drained:
            assert drained.wait() == 0, drained.err
        assert command.wait() == 0, command.err
    check(tmp_path, made)


PACED = """
pipeline:
  type: chain
  transforms:
    - type: ReadEvents
      config:
        from: {generator: {rate: 2000, event_rate: 2000, events: 20000, keys: 20, seed: 1}}
        format: {json: {schema: {ts: "timestamp[ms]", metric: string, value: double}}}
        time: {field: ts, disorder: 200ms}
    - type: AggregateWindows
      config: {metric: m, window: {sliding: {size: 8s, every: 2s}}, by: {series: metric}, aggregates: {n: count}, lateness: 1m, shards: 1}
    - type: WriteResults
      config: {to: {sqlite: {path: out.db, table: m}}}
options: {streaming: true}
"""


def test_final_rows_of_sliding_windows_wait_for_nothing_but_their_end(tmp_path: Path) -> None:
    """Events come in step with the clock; the watermark that a row tells is that of its window's end, not of a later one's."""
    (tmp_path / "m.yaml").write_text(PACED)
    with Command(tmp_path, "run", "m.yaml") as command:
        assert command.wait() == 0, command.err
    rows = stored(tmp_path / "out.db", "SELECT DISTINCT window_end, watermark FROM m WHERE final ORDER BY 1")
    on_time = [end for end, watermark in rows if moment(watermark) == moment(end) - 1000]
    # The end of the input closes three more.
    assert len(rows) == 8 and len(on_time) >= 3, rows


def test_a_late_event_joins_two_sessions(tmp_path: Path) -> None:
    """The row of the second one is withdrawn: the view does not show it any more, the table keeps the mark."""
    write_job(tmp_path, "final", follow=True)
    query = "SELECT window_start, n, total FROM visits WHERE host = 'a' ORDER BY 1"

    def event(seconds: float, host: str, value: int) -> dict[str, Any]:
        return {"ts": round(seconds * S), "host": host, "user": "u", "value": value, "real": 0.0}

    with Command(tmp_path, "run", "m.yaml") as command:
        append(tmp_path, [event(second, host, value) for second, host, value in [(1, "a", 1), (1, "a", 2), (1.3, "a", 4), (1.3, "a", 8), (3, "z", 0), (3, "z", 0)]])
        until(lambda: len(stored(tmp_path / "out.db", query)) == 2, "two sessions are stored", of=command)
        assert [row[1:] for row in stored(tmp_path / "out.db", query)] == [(2, 3), (2, 12)]
        append(tmp_path, [event(1.15, "a", 16)])
        until(lambda: stored(tmp_path / "out.db", query)[0][1:] == (5, 31), "one session is stored", of=command)
        assert [row[1:] for row in stored(tmp_path / "out.db", query)] == [(5, 31)]
    marks = stored(tmp_path / "out.db", "SELECT n, events, revision, withdrawn FROM visits_versions WHERE withdrawn")
    assert marks == [(None, 0, 5, 1)]
