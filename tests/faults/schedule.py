"""Which faults strike, and when: a function of the seed and of how far the job is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.faults.faults import KINDS

SHARES = (0.02, 0.7)
"""Of the input: between these moments each fault has an equal part, within which it is due at random. What the client has fetched ahead is
read at once when a fault is over: so the last one is due well before the end."""
PATIENCE_S = (2.0, 15.0)


@dataclass(frozen=True)
class Step:
    """One fault to come.

    Attributes:
        kind: name of the fault. share: of the input that must have been read before. patience_s: how long the job may have read nothing,
            because of an earlier fault, before this one strikes all the same. seconds: how long it lasts. draw: chooses the victim.
    """

    kind: str
    share: float
    patience_s: float
    seconds: float
    draw: int


def schedule(seed: int, count: int, kinds: Sequence[str]) -> list[Step]:
    """The faults of a seed, in order: all kinds before one repeats."""
    chance = random.Random(f"faults {seed}")
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += chance.sample(kinds, len(kinds))
    first, last = SHARES
    shares = [first + (last - first) * (number + chance.random()) / count for number in range(count)]
    return [
        Step(kind, share, chance.uniform(*PATIENCE_S), chance.uniform(*KINDS[kind].seconds), chance.getrandbits(32))
        for kind, share in zip(chosen[:count], shares, strict=True)
    ]


class Pace:
    """Says when the next fault is due. ``now`` is in monotonic seconds."""

    def __init__(self, steps: Sequence[Step], total: int) -> None:
        self.left = list(steps)
        self._total = total
        self._progress = 0
        self._moved: float | None = None

    def due(self, now: float, progress: int) -> Step | None:
        """The next step when its share is read, or when the job has stood still for its patience since the last fault."""
        if progress != self._progress:
            self._progress = progress
            self._moved = None if self._moved is None else now
        if not self.left:
            return None
        step = self.left[0]
        stalled = self._moved is not None and now - self._moved >= step.patience_s
        return step if progress >= step.share * self._total or stalled else None

    def struck(self, now: float) -> None:
        """The step that was due has struck."""
        self.left.pop(0)
        self._moved = now
