"""``scripts/bench --variants``: the workload metrics-1s with one thing changed at a time, each checked against an independent answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import payloads
from benchmarks.measure import run, seconds_of
from benchmarks.topic import FIELDS, TABLE
from benchmarks.workload import Workload, preload, same, stored
from streamgauge.pipelines.job import job_folder

FEW = 40_000
"""Events of a run that costs what starting costs."""

METRICS = 20
RATE = 1_000_000
"""Events per second of event time."""

AGGREGATES: dict[str, Any] = {"total": {"sum": "value"}, "lo": {"min": "value"}, "hi": {"max": "value"}}
FIVE = {name: kind for name, kind in FIELDS.items() if name != "region"}


@dataclass(frozen=True)
class Variant:
    """One thing that is not as in the workload.

    Attributes:
        payloads: how events are written into records.
        format: of the job.
        keys: different keys.
        seconds: length of a window that begins every second.
        more: further aggregates.
        batch: events a batch at most; None: as ReadEvents has it.
        parallelism: of the job.
    """

    payloads: payloads.Payloads = payloads.json
    format: dict[str, Any] = field(default_factory=lambda: {"json": {"schema": FIELDS}})
    keys: int = 1_000
    partitions: int = 4
    seconds: int = 1
    more: dict[str, Any] = field(default_factory=dict)
    batch: int | None = None
    parallelism: int = 1

    def data(self) -> tuple[Any, ...]:
        """What the topic depends on."""
        return self.payloads.__name__, self.keys, self.partitions

    def job(self, workload: Workload, database: Path, events: int) -> str:
        """The job file, for the first ``events`` of the topic."""
        stop = {partition: records * events // workload.events for partition, records in enumerate(workload.records)}
        window = {"tumbling": "1s"} if self.seconds == 1 else {"sliding": {"size": f"{self.seconds}s", "every": "1s"}}
        steps = [
            {"type": "ReadEvents", "config": {
                "from": {"kafka": {"brokers": workload.brokers, "topic": workload.topic, "stop": stop}}, "format": self.format,
                "time": {"field": "ts", "unit": "ms", "disorder": "500ms"},
            }},
            {"type": "AggregateWindows", "input": "ReadEvents", "config": {
                "metric": "load", "window": window, "by": {"series": "metric", "host": "host"}, "shards": 4, "aggregates": {**AGGREGATES, **self.more},
            }},
            {"type": "WriteResults", "input": "AggregateWindows", "config": {"to": {"sqlite": {"path": str(database), "table": TABLE}}}},
        ]  # fmt: skip
        return json.dumps({"pipeline": {"transforms": steps}, "options": {"streaming": True}})


BASE = Variant()
VARIANTS = {  # wide: of 60 fields 5 are used; arrow: a thousand events a record; sliding-60: 60 s, every second
    "metrics-1s": BASE,
    "quantile-distinct": replace(BASE, more={"p95": {"quantile": {"of": "value", "q": 0.95}}, "users": {"distinct": "user"}}),
    "csv": replace(BASE, payloads=payloads.csv, format={"csv": {"schema": FIELDS, "header": False}}),
    "arrow": replace(BASE, payloads=payloads.arrow, format={"arrow": {"schema": FIELDS}}),
    "wide": replace(BASE, payloads=payloads.wide, format={"json": {"schema": FIVE}}),
    "1-key": replace(BASE, keys=1),
    "100000-keys": replace(BASE, keys=100_000),
    "sliding-60": replace(BASE, seconds=60),
    "1-partition": replace(BASE, partitions=1),
    "16-partitions": replace(BASE, partitions=16),
    "batches-100": replace(BASE, batch=100),
    "batches-1000": replace(BASE, batch=1_000),
    "batches-50000": replace(BASE, batch=50_000),
    "parallelism-2": replace(BASE, parallelism=2),
}


@dataclass(frozen=True)
class Row:
    """Medians.

    Attributes:
        variant: name.
        events_per_s: from the first record read to the last row stored.
        ns: CPU nanoseconds an event, of all processes, without what starting costs.
        times: ``ns`` as a multiple of the first row's.
        peak_mb: all processes.
        correct: in all runs.
        runs: the values of ``ns``.
    """

    variant: str
    events_per_s: float
    ns: float
    times: float
    peak_mb: float
    correct: bool
    runs: list[float]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def measure(names: list[str], brokers: str, events: int, runs: int, folder: Path, say: Callable[[str], None]) -> Iterator[Row]:
    """Each variant with ``events``, ``runs`` times. Raises ContenderFailed."""
    topics: dict[tuple[Any, ...], Workload] = {}
    first = None
    for name in names:
        variant = VARIANTS[name]
        workload = topics.get(variant.data())
        if workload is None:
            say(f"{name}: producing {events:,} events to Kafka ...")
            workload = topics[variant.data()] = _preload(variant, brokers, events, folder / f"topic-{len(topics)}")
        found = []
        for number in range(runs):
            say(f"run {number + 1}: {name} ...")
            start = _run(variant, workload, min(FEW, events), folder / f"{len(topics)}-{names.index(name)}-{number}-start")
            found.append((_run(variant, workload, events, folder / f"{len(topics)}-{names.index(name)}-{number}"), start))
        ns = [(whole[1] - start[1]) / (events - min(FEW, events)) * 1e9 for whole, start in found]
        first = first or median(ns)
        rate, peak = (median(values) for values in zip(*((events / whole[0], whole[2]) for whole, _ in found), strict=True))
        yield Row(name, rate, median(ns), median(ns) / first, peak, all(each[3] for pair in found for each in pair), ns)


def _preload(variant: Variant, brokers: str, events: int, folder: Path) -> Workload:
    hosts, metrics = max(1, variant.keys // METRICS), min(METRICS, variant.keys)
    return preload(brokers, folder, events, folder.name, variant.partitions, variant.payloads, keys=hosts, metrics=metrics, event_rate=RATE)


def _run(variant: Variant, workload: Workload, events: int, folder: Path) -> tuple[float, float, float, bool]:
    """Seconds, CPU seconds, peak MB, whether the rows are right."""
    folder.mkdir()
    job, database = folder / f"{folder.name}.yaml", folder / "results.db"
    events = _whole_records(variant, workload, events)
    job.write_text(variant.job(workload, database, events))
    command = [sys.executable, "-m", "benchmarks.variants", str(job), str(variant.parallelism), str(variant.batch or 0)]
    said, cpu, peak = run(command, folder / "log")
    return said["seconds"], cpu, peak, same(stored(database), workload.expected(events, variant.seconds))


def _whole_records(variant: Variant, workload: Workload, events: int) -> int:
    """So many events as whole records in all partitions have."""
    each = (payloads.EVENTS_A_STREAM if variant.payloads is payloads.arrow else 1) * len(workload.records)
    return events // each * each


def main(job: Path, parallelism: int, batch: int) -> None:
    """The job as a command of its own, and how long it took."""
    command = ["benchmarks.sized_job", str(batch)] if batch else ["streamgauge.pipelines.cli"]
    options = ["--runner=flink", "--fresh", f"--parallelism={parallelism}"]
    subprocess.run([sys.executable, "-m", *command, "run", str(job), *options], check=True, stdout=sys.stderr)
    print(json.dumps({"seconds": seconds_of(job_folder(job.stem) / "record")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
