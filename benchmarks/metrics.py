"""``scripts/bench``: contenders beside each other on the workload metrics-1s, each checked against an independent answer."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.contenders import CONTENDERS
from benchmarks.measure import Figures, run, seconds_of
from benchmarks.stages import fetch
from benchmarks.stages import measure as measure_stages
from benchmarks.topic import NAME, PARTITIONS
from benchmarks.workload import Workload, preload, same, stored
from streamgauge.pipelines.services.kafka import KafkaServer


def main(options: argparse.Namespace) -> int:
    figures: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="streamgauge-bench-") as folder, KafkaServer(Path(folder) / "kafka") as kafka:
        print(f"{NAME}: producing {options.events:,} events to Kafka ...", flush=True)
        workload = preload(kafka.brokers, Path(folder) / "events", options.events)
        if options.stages:
            for name, nanoseconds in [("fetch from Kafka", fetch(workload)), *measure_stages()]:
                print(f"{name:36}{nanoseconds:8.0f} ns of CPU an event")
            return 0
        for number in range(options.runs):
            for contender in options.only or CONTENDERS:
                print(f"run {number + 1}: {contender} ...", flush=True)
                figures.append(measure(workload, contender, Path(folder) / f"{contender}-{number}"))
    report.show(f"{NAME}, Kafka to SQLite on one machine, median of {options.runs}", figures)
    if options.json is not None:
        options.json.write_text(json.dumps([row.as_dict() for row in figures], indent=1) + "\n")
    if options.compare is not None:
        report.compare(figures, options.compare)
    return 0 if all(row.correct for row in figures) else 1


def measure(workload: Workload, name: str, folder: Path) -> Figures:
    """Runs a contender. Raises ContenderFailed."""
    folder.mkdir()
    contender = CONTENDERS[name]
    events = int(workload.events * contender.share) // PARTITIONS * PARTITIONS
    database = folder / "results.db"
    said, cpu, peak = run([sys.executable, "-m", f"benchmarks.contenders.{contender.module}", workload.brokers, str(database), str(events), *contender.more], folder / "log")
    cpu, seconds = said.get("cpu_s", cpu), said["seconds"] if "seconds" in said else seconds_of(Path(said["record"]))
    correct = not contender.answers or same(stored(database), workload.expected(events))
    return Figures(NAME, name, events, seconds, events / seconds, cpu, events / cpu, peak, correct)
