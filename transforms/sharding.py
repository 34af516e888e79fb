"""The number of shards that the keys of a slice are divided into. It may change from one slice to the next, but never within one.

So a job that goes on with another number needs to know which slices may have state: each process says in the job's record how far its slices go
(:class:`Reach`), before any of them leaves it. Slices up to there keep the old number, those behind it have the new one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.windows.base import Times

_KIND = "reached"
_SECONDS = 1.0
"""About as often a process writes how far its slices go, however fast event time passes: the faster, the further ahead it says."""


@dataclass(frozen=True)
class Sharding:
    """Shards by slice.

    Attributes:
        shards: of slices that start at or after the last of ``earlier``.
        earlier: (until, shards): of slices that start before ``until``, microseconds, and not before that of the one before; growing.
    """

    shards: int
    earlier: tuple[tuple[int, int], ...] = ()

    @property
    def most(self) -> int:
        """The largest number of shards."""
        return max([self.shards, *(shards for _, shards in self.earlier)])

    def of(self, hashes: npt.NDArray[np.uint64], starts: Times) -> npt.NDArray[np.int64]:
        """The shard of each row, by the hash of its key and the start of its slice.

        >>> Sharding(2, ((10, 3),)).of(np.array([5, 5], np.uint64), np.array([9, 10])).tolist()
        [2, 1]
        """
        if not self.earlier:
            return divided(hashes, self.shards)
        numbers = np.array([*(shards for _, shards in self.earlier), self.shards], np.uint64)
        edges = np.array([until for until, _ in self.earlier])
        return divided(hashes, numbers[np.searchsorted(edges, starts, side="right")])

    def changed(self, shards: int, reached: int | None) -> Sharding:
        """With another number for slices that start after ``reached``; None: no slice has begun.

        >>> Sharding(4).changed(8, 99).changed(2, 50)
        Sharding(shards=2, earlier=((51, 4),))
        """
        if shards == self.shards or reached is None:
            return Sharding(shards, self.earlier if shards == self.shards else ())
        edge, earlier = reached + 1, []
        for until, number in (*self.earlier, (edge, self.shards)):
            earlier.append((min(until, edge), number))
            if until >= edge:
                break
        return Sharding(shards, tuple(earlier))

    @classmethod
    def read(cls, shards: int, earlier: Sequence[Sequence[int]]) -> Sharding:
        """From values of JSON."""
        return cls(shards, tuple((until, number) for until, number in earlier))


def divided(hashes: npt.NDArray[np.uint64], shards: int | npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The shard of each hash, from 0."""
    return (hashes % np.asarray(shards, np.uint64)).astype(np.int64)


class Reach:
    """Says how far the slices of a step go that have left this process, or will."""

    def __init__(self, record: JobRecord, step: str, slice_size: int) -> None:
        self._record = record
        self._step = step
        self._slice_size = slice_size
        # Never a name that an earlier process had: what that one said still holds.
        self._name = f"{step}-{uuid.uuid4().hex}"
        self._told: int | None = None
        self._ahead = 0
        self._when = float("-inf")

    def extend(self, start: int) -> None:
        """To be called before a partial of the slice with this start leaves."""
        if self._told is not None and start <= self._told:
            return
        now = time.monotonic()
        self._ahead = 2 * self._ahead + self._slice_size if now - self._when < _SECONDS else self._ahead // 2
        self._told, self._when = start + self._ahead, now
        _say(self._record, self._name, self._step, self._told)


def reached(record: JobRecord) -> dict[str, int | None]:
    """Start of the last slice that may have state, microseconds, by step; None where that is not known. Of a step that is not there none has."""
    found: dict[str, int | None] = {}
    for said in record.all(_KIND):
        step, start = said["step"], said["start"]
        before = found.get(step, start)
        found[step] = None if start is None or before is None else max(start, before)
    return found


def begin_from(record: JobRecord, known: dict[str, int | None]) -> None:
    """What ``reached`` tells of the state that a run starts from; nothing else is known of it."""
    for step, start in known.items():
        _say(record, step, step, start)
    # Last: at no moment less is said than is so.
    record.keep_only(_KIND, known)


def _say(record: JobRecord, name: str, step: str, start: int | None) -> None:
    values: dict[str, Any] = {"step": step, "start": start}
    record.put(_KIND, name, values, now=True, synced=True)
