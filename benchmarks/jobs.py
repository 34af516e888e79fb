"""Whole jobs on the embedded Flink without a broker: made-up JSON events, parsed, aggregated, written to Parquet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.measure import run, seconds_of
from benchmarks.topic import FIELDS
from streamgauge.pipelines.job import job_folder

METRICS = 20
FEW = 40_000
"""Events of a run that costs what starting costs."""


@dataclass(frozen=True)
class Case:
    """A job: ``window`` over so many ``keys``, ``event_rate`` events per second of event time."""

    window: Mapping[str, Any]
    keys: int
    event_rate: float

    def text(self, events: int, output: Path) -> str:
        """The job file."""
        generator = {"events": events, "metrics": METRICS, "keys": max(1, self.keys // METRICS), "event_rate": self.event_rate, "splits": 2}
        steps = [
            {"type": "ReadEvents", "config": {
                "from": {"generator": generator}, "format": {"json": {"schema": FIELDS}}, "time": {"field": "ts", "unit": "ms", "disorder": "500ms"},
            }},
            {"type": "AggregateWindows", "input": "ReadEvents", "config": {
                "metric": "load", "window": dict(self.window), "by": {"series": "metric", "host": "host"}, "shards": 4,
                "aggregates": {"total": {"sum": "value"}, "lo": {"min": "value"}, "hi": {"max": "value"}},
            }},
            {"type": "WriteResults", "input": "AggregateWindows", "config": {"to": {"parquet": {"path": str(output)}}}},
        ]  # fmt: skip
        return json.dumps({"pipeline": {"transforms": steps}, "options": {"streaming": True}})


@dataclass(frozen=True)
class Cost:
    """What a run took: seconds from the first event read to the last row written, CPU seconds and peak memory of all its processes."""

    events: int
    seconds: float
    cpu_s: float
    peak_mb: float
    rows: int
    counted: int
    """Events in the rows: each as often as it is in windows."""


def measure(case: Case, events: int, folder: Path) -> Cost:
    """Runs the job."""
    folder.mkdir(parents=True)
    job, output = folder / f"bench-{folder.name}.yaml", folder / "rows"
    job.write_text(case.text(events, output))
    said, cpu, peak = run([sys.executable, "-m", "benchmarks.jobs", str(job)], folder / "log")
    (found,) = duckdb.sql(f"SELECT count(*), sum(events)::BIGINT FROM read_parquet('{output}/**/*.parquet')").fetchall()
    return Cost(events, said["seconds"], cpu, peak, *found)


def main(job: Path) -> None:
    subprocess.run([sys.executable, "-m", "streamgauge.pipelines.cli", "run", str(job), "--runner=flink", "--fresh"], check=True, stdout=sys.stderr)
    print(json.dumps({"seconds": seconds_of(job_folder(job.stem) / "record")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
