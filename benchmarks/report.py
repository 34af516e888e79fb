"""Figures as a table, as JSON, and as ratios: against another contender of the same run, or against an earlier run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Figures

SUBJECT = "streamgauge"


def medians(figures: Sequence[Figures]) -> list[Figures]:
    """One row for each workload and contender, in the order of the first of each; correct if all are."""
    groups: dict[tuple[str, str], list[Figures]] = {}
    for row in figures:
        groups.setdefault((row.workload, row.contender), []).append(row)
    names = ("seconds", "events_per_s", "cpu_s", "events_per_cpu_s", "peak_rss_mb")
    return [
        replace(rows[0], **{name: median(getattr(row, name) for row in rows) for name in names}, correct=all(row.correct for row in rows))
        for rows in groups.values()
    ]


def show(title: str, figures: Sequence[Figures]) -> None:
    """Medians, with what the subject reaches as a multiple of each contender of the same workload."""
    table = Table(title=title)
    named = len({row.workload for row in figures}) > 1
    for heading in (*(["workload"] if named else []), "contender", "events", "seconds", "events/s", "times", "CPU s", "events/CPU s", "times", "peak MB", "correct"):
        table.add_column(heading, justify="left" if heading in ("workload", "contender") else "right")
    rows = medians(figures)
    subjects = {row.workload: row for row in rows if row.contender == SUBJECT}
    for row in rows:
        subject = subjects.get(row.workload)
        table.add_row(
            *([row.workload] if named else []), row.contender, f"{row.events:,}", f"{row.seconds:.1f}", f"{row.events_per_s:,.0f}",
            _times(subject and subject.events_per_s / row.events_per_s), f"{row.cpu_s:.1f}", f"{row.events_per_cpu_s:,.0f}",
            _times(subject and subject.events_per_cpu_s / row.events_per_cpu_s), f"{row.peak_rss_mb:,.0f}", "yes" if row.correct else "NO",
        )  # fmt: skip
    console().print(table)
    print("times: what streamgauge reaches, as a multiple of the line's")


def compare(figures: Sequence[Figures], earlier: Path) -> None:
    """What is, as a multiple of what an earlier run's JSON says. Raises ValueError when that is no such file."""
    try:
        before = {(row.workload, row.contender): row for row in medians([Figures(**row) for row in json.loads(earlier.read_text())])}
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{earlier} cannot be compared with: write one with --json in a run without --windows, --aggregates, --latency ({error})") from None
    table = Table(title=f"times what {earlier} says")
    for heading in ("workload", "contender", "events/s", "events/CPU s", "peak MB"):
        table.add_column(heading, justify="left" if heading in ("workload", "contender") else "right")
    for row in medians(figures):
        old = before.get((row.workload, row.contender))
        ratios = [None] * 3 if old is None else [row.events_per_s / old.events_per_s, row.events_per_cpu_s / old.events_per_cpu_s, row.peak_rss_mb / old.peak_rss_mb]
        table.add_row(row.workload, row.contender, *map(_times, ratios))
    console().print(table)


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def console() -> Console:
    """A table that is cut helps nobody: what is no terminal has no width."""
    found = Console()
    return found if found.is_terminal else Console(width=150)
