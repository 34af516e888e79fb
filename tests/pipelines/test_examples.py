"""The example job with a metric of each kind: it runs as it stands, and what it stores is right."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from streamgauge.pipelines.check import show
from streamgauge.pipelines.job import load_job
from streamgauge.pipelines.verify import verify_job
from tests.pipelines.test_verify import run

JOB = Path(__file__).parents[2] / "templates" / "jobs" / "dashboard.yaml"


@pytest.mark.slow
def test_the_dashboard_runs_and_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMGAUGE_HOME", str(tmp_path / "home"))
    job = load_job(JOB, {"events": "6000", "out": "out"})
    run(job)
    verdict = verify_job(job)
    assert [(results.what, results.differences) for results in verdict.results] == [(metric, []) for metric in ("latency", "sessions", "busiest", "today")]
    assert verdict.agrees and verdict.events == 6_000 and all(results.compared for results in verdict.results)
    with closing(sqlite3.connect("out/dashboard.db")) as connection:
        assert [connection.execute(f"SELECT sum(events) FROM {table}").fetchone()[0] for table in ("latency", "sessions", "busiest")] == [60_000, 6_000, 6_000]
        for (hosts,) in connection.execute("SELECT hosts FROM busiest"):
            counts = [host["count"] for host in json.loads(hosts)]
            assert len(counts) == 5 and counts == sorted(counts, reverse=True)
        days = {start for (start,) in connection.execute("SELECT DISTINCT window_start FROM today")}
    assert days == {"2026-03-27T23:00:00.000000Z"}, "midnight in Berlin, before the clocks are put forward"


def test_the_dashboard_has_a_plan() -> None:
    out = StringIO()
    show(load_job(JOB), Console(file=out, highlight=False))
    for words in (
        "sliding 10m every 1m, made of 10 slices of 1m", "p95 = quantile of value, q 0.95 (double)", "slow = count where value > 900 (int64)",
        "session gap 2m max 4h", "hosts = top of host, k 5 (", "cumulative 1d every 30m in Europe/Berlin, made of 48 slices of 30m",
    ):  # fmt: skip
        assert words in out.getvalue(), out.getvalue()
