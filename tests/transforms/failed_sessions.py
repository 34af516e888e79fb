"""What a job with sessions writes when attempts fail: rows of attempts that were rolled back stay where they were written."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa

from tests.transforms.test_sessions import END, GAP, MS, Bag, Event, Key, Task, oracle


class _Rows:
    """Takes the place of a store: keeps all batches."""

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []

    def write(self, batch: pa.RecordBatch) -> None:
        self.batches.append(batch)


def history(seed: int) -> tuple[list[pa.RecordBatch], dict[Key, dict[str, Any]]]:
    """(batches of rows in the order of writing, the rows that must hold in the end), of few keys and events close to each other.

    After each failure the events that no checkpoint has come again, in another order. A worker may wake up late: some batches are written twice.
    """
    chance = random.Random(seed)
    longest = chance.choice([None, GAP, 2 * GAP, 10 * MS])
    most = chance.choice([20, 40, 60]) * MS
    events: list[Event] = [(chance.randrange(most), chance.choice(["a", "b", None]), chance.randint(-9, 9)) for _ in range(chance.randint(2, 40))]
    # Many at a place: sessions with more events than longer ones.
    for _ in range(chance.randint(0, 2)):
        place = chance.randrange(most)
        events += [(place + chance.randrange(2 * MS), "a", 1) for _ in range(20)]
    task = Task(longest, lateness=chance.choice([0, 3 * MS, 100 * MS]), emit_every=chance.choice([None, 0, 0]))
    rows: Any = _Rows()
    task.store = rows
    rest = list(events)
    for _ in range(chance.randint(0, 3)):
        saved = list(task.bag.values), dict(task.end.times), dict(task.emit.times), task.watermark, list(task.accepted), list(rest)
        _attempt(task, rest, chance, chance.randint(1, 8))
        task.bag, task.end.times, task.emit.times, task.watermark, task.accepted, rest = Bag(saved[0]), *saved[1:]
        if chance.random() < 0.5:
            # A checkpoint on the way.
            rest = _attempt(task, rest, chance, chance.randint(0, 4))
    while rest:
        rest = _attempt(task, rest, chance, 4)
    task.advance(END)
    assert len(task.accepted) == len(events)
    written = rows.batches
    for _ in range(chance.randint(0, 3) if written else 0):
        written = [*written, chance.choice(written)]
    return written, oracle(events, longest)


def _attempt(task: Task, rest: list[Event], chance: random.Random, steps: int) -> list[Event]:
    """Some of the events in any order, and firings; no watermark makes one late that is still to come. The events that are left."""
    # Another process: what the last one knew is gone.
    task.instances[0]._memory._known.clear()
    rest = chance.sample(rest, len(rest)) if chance.random() < 0.7 else sorted(rest, key=lambda event: event[0], reverse=chance.random() < 0.5)
    for _ in range(steps):
        size = chance.randint(0, 8)
        if rest[:size]:
            task.bundle([rest[:size]])
            rest = rest[size:]
        if chance.random() < 0.6:
            task.period()
        if chance.random() < 0.6:
            earliest = min((time for time, _, _ in rest), default=60 * MS)
            task.advance(chance.randint(-GAP, earliest + GAP + task.lateness - MS - 1))
    return rest
