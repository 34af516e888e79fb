"""``scripts/bench``: contenders beside each other on one workload, each checked against an independent answer."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import aggregates, windows
from benchmarks.measure import ContenderFailed, Figures, run
from benchmarks.stages import fetch
from benchmarks.stages import measure as measure_stages
from benchmarks.workload import NAME, Workload, preload, same, stored
from streamgauge.pipelines.services.kafka import KafkaServer

CONTENDERS = {"streamgauge": 1.0, "python-loop": 1.0, "beam-per-element": 0.1}
"""Contender -> share of the events that it gets: one that is 20 times slower need not run 20 times longer."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Events per second and per CPU second, beside baselines, in one run.")
    parser.add_argument("--events", type=int, default=3_000_000, help="Events in the topic (default %(default)s).")
    parser.add_argument("--runs", type=int, default=1, help="Runs of each contender; all are reported.")
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), help="Only this contender; may be repeated.")
    parser.add_argument("--json", type=Path, help="Write the figures as a list of objects to this file.")
    parser.add_argument("--stages", action="store_true", help="Instead: CPU time an event of each step alone, without Flink.")
    parser.add_argument("--windows", nargs="*", choices=windows.PARTS, help="Instead: what keys, sessions and sliding windows cost; no Kafka. All, or those named.")
    parser.add_argument("--aggregates", action="store_true", help="Instead: CPU time an event and state a key of each aggregate; no Kafka.")
    options = parser.parse_args()
    if options.windows is not None or options.aggregates:
        return beside(options)
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
    show(figures)
    if options.json is not None:
        options.json.write_text(json.dumps([row.as_dict() for row in figures], indent=1) + "\n")
    return 0 if all(row.correct for row in figures) else 1


def beside(options: argparse.Namespace) -> int:
    """What needs no broker."""
    rows: list[dict[str, Any]] = []
    if options.aggregates:
        rows = aggregates.measure()
        _print("Beside count, 1,000 keys; the first line is count itself", rows)
    else:
        with tempfile.TemporaryDirectory(prefix="streamgauge-bench-") as folder:
            parts = tuple(options.windows) or windows.PARTS
            rows = [row.as_dict() for row in windows.measure(parts, options.events, options.runs, Path(folder), lambda text: print(text, flush=True))]
        _print(f"{options.events:,} events, median of {options.runs}", [{name: value for name, value in row.items() if name != "runs"} for row in rows])
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row.get("correct", True) for row in rows) else 1


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(_text(name, value) for name, value in row.items()))
    _console().print(table)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.2f}" if name == "times" else f"{value:,.0f}"
    return "" if value is None else str(value)


def measure(workload: Workload, contender: str, folder: Path) -> Figures:
    folder.mkdir()
    events = int(workload.events * CONTENDERS[contender]) // 4 * 4
    database = folder / "results.db"
    module = f"benchmarks.contenders.{contender.replace('-', '_')}"
    said, cpu, peak = run([sys.executable, "-m", module, workload.brokers, str(database), str(events)], folder / "log")
    correct = same(stored(database), workload.expected(events))
    return Figures(NAME, contender, events, said["seconds"], events / said["seconds"], cpu, events / cpu, peak, correct)


def show(figures: list[Figures]) -> None:
    table = Table(title=f"{NAME}, Kafka to SQLite on one machine")
    for title in ("contender", "events", "seconds", "events/s", "CPU s", "events/CPU s", "peak MB", "correct"):
        table.add_column(title, justify="left" if title == "contender" else "right")
    for row in figures:
        table.add_row(
            row.contender, f"{row.events:,}", f"{row.seconds:.1f}", f"{row.events_per_s:,.0f}", f"{row.cpu_s:.1f}", f"{row.events_per_cpu_s:,.0f}",
            f"{row.peak_rss_mb:,.0f}", "yes" if row.correct else "NO",
        )  # fmt: skip
    _console().print(table)


def _console() -> Console:
    """A table that is cut helps nobody: what is no terminal has no width."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ContenderFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
