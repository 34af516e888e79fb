"""The plan of a job, as people and programs get it."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from streamgauge.pipelines.check import plan, show
from streamgauge.pipelines.job import load_job
from streamgauge.transforms.sinks.sqlite import Sqlite

JOBS = Path(__file__).parents[2] / "templates" / "jobs"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAMGAUGE_HOME", str(tmp_path))
    return tmp_path


def test_the_plan_says_what_will_happen() -> None:
    found = plan(load_job(JOBS / "flights.yaml", {"out": "o", "input": "i.ndjson"}))
    assert json.loads(json.dumps(found)) == found
    assert (found["bounded"], found["runner"]) == (True, "direct")
    (source,) = found["sources"]
    assert (source["source"], source["bounded"], source["time"]["disorder"], source["rejected"]) == ("files:i.ndjson", True, "15m", ["parquet:o/rejected"])
    (metric,) = found["metrics"]
    assert metric["aggregates"]["mean_delay"] == {"is": "mean of dep_delay", "type": "double"}
    assert metric["by"] == {"origin": "origin", "carrier": "carrier"}
    assert metric["aggregates"]["miles"]["type"] == "int64"
    assert (metric["key"], metric["late"], metric["results"]) == (
        ["metric", "origin", "carrier", "window_start"], ["parquet:o/late"], ["sqlite:o/departures.db/departures"],
    )  # fmt: skip
    assert [sink["takes"] for sink in found["sinks"]] == [["results of AggregateWindows"], ["late events of AggregateWindows"], ["dead letters of ReadEvents"]]
    assert found["sinks"][0]["guarantee"] == Sqlite.guarantee


def test_the_plan_has_what_is_dropped(tmp_path: Path) -> None:
    text = (JOBS / "flights.yaml").read_text()
    unique = "    - {type: Deduplicate, input: ReadEvents, config: {by: [carrier, origin], horizon: 90m, shards: 2}}\n"
    (tmp_path / "job.yaml").write_text(text.replace("    - type: AggregateWindows\n      input: ReadEvents\n", unique + "    - type: AggregateWindows\n      input: Deduplicate\n"))
    job = load_job(tmp_path / "job.yaml")
    line = next(number for number, content in enumerate((tmp_path / "job.yaml").read_text().splitlines(), 1) if "type: Deduplicate" in content)
    wanted = {"step": "Deduplicate", "line": line, "reads": ["ReadEvents"], "by": ["carrier", "origin"], "horizon": "90m", "shards": 2}
    assert (plan(job)["deduplicates"], plan(job)["metrics"][0]["reads"]) == ([wanted], ["Deduplicate"])
    out = StringIO()
    show(job, Console(file=out, highlight=False))
    for words in ("deduplicate carrier, origin", "an event whose id was seen at most 90m of event time away", "events of Deduplicate"):
        assert words in out.getvalue(), words


def test_a_stream_runs_on_flink_and_dead_letters_have_a_place_by_default(home: Path) -> None:
    assert plan(load_job(JOBS / "flights-kafka.yaml"))["runner"] == "flink"
    assert plan(load_job(JOBS / "metrics.yaml"))["sources"][0]["rejected"] == [f"parquet:{home}/jobs/metrics/record/dead_letters"]


def test_people_get_it_in_words_without_colours_where_there_is_no_terminal(tmp_path: Path) -> None:
    text = (JOBS / "flights-kafka.yaml").read_text()
    (tmp_path / "job.yaml").write_text(text.replace("        lateness: 1h\n", "        lateness: 1h\n        emit: {every: 500ms}\n"))
    out = StringIO()
    show(load_job(tmp_path / "job.yaml"), Console(file=out, highlight=False))
    text = out.getvalue()
    assert "\x1b" not in text
    for words in (
        "an embedded Flink, with checkpoints: its input does not end",
        "scheduled_departure timestamp, carrier string",
        "field scheduled_departure, up to 15m out of order within a split",
        "a split at its end for 30s no longer holds the watermark back",
        "mean_delay = mean of dep_delay (double)",
        "current ones every 500ms",
        "corrected for 1h after the window's end, then late events are counted and go to parquet:out/flights-kafka/late",
        "metric, origin, carrier, window_start",
        "A replay leaves what the view TABLE shows as it was",
    ):
        assert words in text, words
