"""What a person sees while a job runs: a live table on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime, timezone
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from streamgauge.pipelines.progress import Snapshot

LINE_EVERY_SECONDS = 2.0
LONG_SECONDS = 10
"""A checkpoint that takes longer is told of: nothing else may be seen to happen meanwhile."""


class View(Protocol):
    """Shows snapshots; ``say`` prints a sentence that stays."""

    def show(self, snapshot: Snapshot) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


def view(name: str, *, json_lines: bool) -> View:
    """The view that fits where standard output goes."""
    if json_lines:
        return _JsonView()
    console = Console()
    return _TerminalView(name, console) if console.is_terminal else _PlainView()


class _Rate:
    """Events per second between snapshots, smoothed over the last few."""

    def __init__(self) -> None:
        self._past: list[tuple[float, int]] = []

    def of(self, snapshot: Snapshot) -> float:
        self._past = [*self._past[-8:], (snapshot.at, snapshot.events)]
        (first, before), (last, now) = self._past[0], self._past[-1]
        return max(now - before, 0) / (last - first) if last > first else 0.0


def _clock(micros: int | None) -> str:
    return "-" if micros is None else f"{datetime.fromtimestamp(micros / 1e6, timezone.utc):%Y-%m-%d %H:%M:%S}"


def _lag(snapshot: Snapshot) -> str:
    lag = snapshot.lag_seconds()
    return "-" if lag is None else f"{lag:,.1f} s"


class _PlainView:
    def __init__(self) -> None:
        self._rate = _Rate()
        self._shown = float("-inf")

    def show(self, snapshot: Snapshot) -> None:
        rate = self._rate.of(snapshot)
        if snapshot.at - self._shown < LINE_EVERY_SECONDS:
            return
        self._shown = snapshot.at
        parts = [
            f"{snapshot.events:,} events ({rate:,.0f}/s)", f"{snapshot.final:,} final rows", f"newest window {_clock(snapshot.closed)}",
            f"watermark lag {_lag(snapshot)}", f"{snapshot.rejected:,} rejected", f"{snapshot.late:,} late",
        ]
        if snapshot.duplicates:
            parts.append(f"{snapshot.duplicates:,} duplicates")
        if snapshot.checkpoints:
            parts.append(f"checkpoint {snapshot.checkpoints} ({snapshot.checkpoint_bytes / 1024:,.0f} kB, {snapshot.checkpoint_ms} ms)")
        if snapshot.checkpoint_open_s >= LONG_SECONDS:
            parts.append(f"a checkpoint has been under way for {snapshot.checkpoint_open_s} s")
        if snapshot.checkpoints_failing:
            parts.append(f"{snapshot.checkpoints_failing} checkpoints failed since")
        if snapshot.restarts:
            parts.append(f"{snapshot.restarts} restarts")
        print("  " + ", ".join(parts), flush=True)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


class _JsonView:
    def __init__(self) -> None:
        self._people = sys.stderr

    def show(self, snapshot: Snapshot) -> None:
        print(json.dumps({"time": time.time(), **snapshot.as_dict()}), flush=True)

    def say(self, text: str) -> None:
        print(text, file=self._people, flush=True)

    def close(self) -> None:
        pass


class _TerminalView:
    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._rate = _Rate()
        self._console = console
        self._live: Live | None = None

    def show(self, snapshot: Snapshot) -> None:
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=4, transient=False, redirect_stderr=False)
            self._live.start()
        self._live.update(self._table(snapshot))

    def _table(self, snapshot: Snapshot) -> Table:
        table = Table(title=self._name, title_justify="left", show_header=False, box=None, pad_edge=False)
        table.add_column(style="dim", min_width=18)
        table.add_column(justify="right", min_width=22)
        table.add_column(style="dim")
        table.add_row("events", f"[bold]{snapshot.events:,}[/]", f"{self._rate.of(snapshot):,.0f}/s from {snapshot.splits} splits, {snapshot.splits_done} at their end")
        table.add_row("final rows", f"[bold green]{snapshot.final:,}[/]", f"of {snapshot.rows:,} written")
        table.add_row("newest window", _clock(snapshot.closed), "UTC")
        table.add_row("watermark lag", _lag(snapshot), "of event time behind the newest event")
        table.add_row("rejected", f"[{'yellow' if snapshot.rejected else 'dim'}]{snapshot.rejected:,}[/]", "in the dead letters")
        table.add_row("late", f"[{'yellow' if snapshot.late else 'dim'}]{snapshot.late:,}[/]", "after their window had closed")
        if snapshot.duplicates:
            table.add_row("duplicates", f"{snapshot.duplicates:,}", "dropped")
        if snapshot.checkpoints:
            table.add_row("checkpoints", f"{snapshot.checkpoints:,}", f"latest {snapshot.checkpoint_bytes / 1024:,.0f} kB in {snapshot.checkpoint_ms} ms")
        if snapshot.checkpoint_open_s >= LONG_SECONDS:
            table.add_row("", f"[yellow]{snapshot.checkpoint_open_s} s[/]", "so long has one been under way")
        if snapshot.checkpoints_failing:
            table.add_row("", f"[red]{snapshot.checkpoints_failing}[/]", "checkpoints failed since")
        if snapshot.restarts:
            table.add_row("restarts", f"[red]{snapshot.restarts}[/]", "by Flink")
        return table

    def say(self, text: str) -> None:
        (self._live.console if self._live else self._console).print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
