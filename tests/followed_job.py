"""A job that follows a file, and exactly what it must store: for tests of runs from end to end."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from streamgauge.transforms.record import JobRecord
from tests.running import Command, stored

JOB = """
pipeline:
  transforms:
    - type: ReadEvents
      config:
        from: {files: {path: "in/*.ndjson", follow: FOLLOW}}
        format: {json: {schema: {ts: "timestamp[ms]", key: string, value: int64}}}
        time: {field: ts, disorder: 0s}
    - type: AggregateWindows
      input: ReadEvents
      config:
        metric: m
        window: {tumbling: 1s}
        by: [key]
        aggregates: {n: count, total: {sum: value}}
        emit: EMIT
    - type: WriteResults
      input: AggregateWindows
      config: {to: TO}
"""
SQLITE = "{sqlite: {path: out/m.db, table: m}}"

START = 1_767_225_600_000
"""2026-01-01 00:00:00 UTC in milliseconds: the time of event 0; each later one is a millisecond later, 1,000 a window."""

KEYS = 7
Rows = list[tuple[str, str, int, int, int]]


def job(folder: Path, *, follow: bool = True, emit: str = "final", to: str = SQLITE) -> Path:
    path = folder / "m.yaml"
    (folder / "in").mkdir(exist_ok=True)
    path.write_text(JOB.replace("FOLLOW", str(follow).lower()).replace("EMIT", emit).replace("TO", to))
    return path


def key_of(number: int) -> str:
    return f"k{number % KEYS}"


def append(folder: Path, first: int, end: int) -> None:
    """Events ``[first, end)`` to the input file."""
    with (folder / "in" / "a.ndjson").open("a") as file:
        file.writelines(f'{{"ts":{START + i},"key":"{key_of(i)}","value":{i}}}\n' for i in range(first, end))


def expected(events: int) -> Rows:
    """What must be stored of the first ``events`` events, all windows closed."""
    counts: Counter[tuple[int, str]] = Counter()
    totals: Counter[tuple[int, str]] = Counter()
    for i in range(events):
        counts[i // 1000, key_of(i)] += 1
        totals[i // 1000, key_of(i)] += i
    return sorted((f"2026-01-01T00:{second // 60:02}:{second % 60:02}.000000Z", key, n, totals[second, key], 1) for (second, key), n in counts.items())


def rows(folder: Path) -> Rows:
    return stored(folder / "out" / "m.db", "SELECT window_start, key, n, total, final FROM m ORDER BY 1, 2")


def finals(folder: Path) -> int:
    return int((stored(folder / "out" / "m.db", "SELECT count(*) FROM m WHERE final") or [(0,)])[0][0])


def all_read(folder: Path) -> bool:
    """Whether the readers have passed the end of the input, as the job's record says."""
    splits = JobRecord(folder / ".streamgauge/jobs/m/record").all("splits")
    return sum(split["position"] for split in splits) == (folder / "in" / "a.ndjson").stat().st_size


def opened(folder: Path) -> float:
    """When the input was last opened, in seconds of the epoch: at the start, and by the workers that go on after a failure."""
    return max((split["opened"] for split in JobRecord(folder / ".streamgauge/jobs/m/record").all("splits")), default=0.0)


def drain(folder: Path) -> None:
    with Command(folder, "drain", "m.yaml") as command:
        assert command.wait() == 0, command.err


class Feed:
    """Appends events to the input as time passes, whatever happens to the job: about 40 times ``events`` a second."""

    def __init__(self, folder: Path, events: int = 100) -> None:
        self._folder = folder
        self._each = events
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.events = 0

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            append(self._folder, self.events, self.events + self._each)
            self.events += self._each

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
