"""How far a job is: one snapshot from its record, and from Flink where there is one."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from streamgauge.transforms.record import JobRecord


@dataclass(frozen=True)
class Snapshot:
    """Counts since the readers of this run were opened; times in microseconds since the epoch.

    Attributes:
        at: monotonic seconds when it was taken.
        splits, splits_done: number of splits known, and of those read to their end.
        events, rejected, late: events read, payloads and rows rejected, events that came too late. duplicates: events dropped as such.
        rows, final: rows written to result tables, final ones among them.
        newest: largest event time read. watermark: smallest of the splits still read. closed: start of the newest window with a final row.
        checkpoints: completed ones. checkpoints_failing: how many of the last ones failed in a row. checkpoint_bytes, checkpoint_ms: size and duration of the latest.
        checkpoint_open_s: for how long one has been under way. restarts: of the job by Flink.
    """

    at: float = field(default_factory=time.monotonic)
    splits: int = 0
    splits_done: int = 0
    events: int = 0
    rejected: int = 0
    late: int = 0
    duplicates: int = 0
    rows: int = 0
    final: int = 0
    newest: int | None = None
    watermark: int | None = None
    closed: int | None = None
    checkpoints: int = 0
    checkpoints_failing: int = 0
    checkpoint_bytes: int = 0
    checkpoint_ms: int = 0
    checkpoint_open_s: int = 0
    restarts: int = 0

    def lag_seconds(self) -> float | None:
        """How far the watermark is behind the newest event, in event time."""
        return None if self.newest is None or self.watermark is None else max(self.newest - self.watermark, 0) / 1e6

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "at"}


def snapshot(record: JobRecord, flink: dict[str, int] | None = None) -> Snapshot:
    """What the record says now; ``flink`` has the last six attributes."""
    splits = record.all("splits")
    sinks = [values for values in record.all("sinks") if values["kind"] == "results"]
    reading = [values for values in splits if not values["done"]]
    known = [values["watermark"] for values in reading if values["watermark"] is not None]
    return Snapshot(
        splits=len(splits),
        splits_done=len(splits) - len(reading),
        events=sum(values["events"] for values in splits),
        rejected=sum(values["rejected"] for values in (*splits, *record.all("maps"), *sinks)),
        late=sum(values["events"] for values in record.all("late")),
        duplicates=sum(values["events"] for values in record.all("duplicates")),
        rows=sum(values["rows"] for values in sinks),
        final=sum(values["final"] for values in sinks),
        newest=max((values["newest"] for values in splits if values["newest"] is not None), default=None),
        watermark=min(known) if known and len(known) == len(reading) else None,
        closed=max((values["newest_final"] for values in sinks if values["newest_final"] is not None), default=None),
        **(flink or {}),
    )


def done(name: str, record: JobRecord) -> str:
    """What is said of a job that has come to its end."""
    now = snapshot(record)
    duplicates = f", {now.duplicates:,} duplicates" if now.duplicates else ""
    return f"{name}: done, {now.events:,} events, {now.rejected:,} rejected, {now.late:,} late{duplicates}"
