"""A connector over lists of payloads, and what makes its life hard: for tests of the read loop."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from streamgauge.transforms.config import Choice, Config, Registry
from streamgauge.transforms.sources.base import RawBatch, Split


class MemoryOptions(Config):
    """Splits of payloads by name; ``step`` records a read; ``endless`` splits are caught up at their end rather than done."""

    payloads: dict[str, tuple[bytes | None, ...]]
    step: int = 3
    endless: bool = False


class MemoryReader:
    opened: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, options: MemoryOptions, split: Split, position: int) -> None:
        self._options, self._payloads, self._position = options, options.payloads[split.id], position
        self.opened.append((split.id, position))

    def read(self, max_records: int, max_bytes: int, timeout: float) -> RawBatch:
        first = self._position
        self._position = min(first + self._options.step, len(self._payloads))
        at_end = self._position == len(self._payloads)
        return RawBatch(
            pa.array(self._payloads[first : self._position], pa.binary()), np.arange(first, self._position), self._position,
            caught_up=at_end, done=at_end and not self._options.endless,
        )  # fmt: skip

    def close(self) -> None:
        pass


class Memory:
    Options = MemoryOptions
    name = "memory"

    def __init__(self, options: MemoryOptions) -> None:
        self._options = options
        self.bounded = not options.endless

    def splits(self) -> list[Split]:
        return [Split(name, 0, None if self._options.endless else len(payloads)) for name, payloads in self._options.payloads.items()]

    def open(self, split: Split, position: int) -> MemoryReader:
        return MemoryReader(self._options, split, position)


REGISTRY = Registry("sources", {"memory": "tests.memory:Memory"})


def memory(payloads: dict[str, list[bytes | None]], **options: Any) -> Choice:
    """For ``ReadEvents(**{"from": memory(...)})``."""
    return Choice(REGISTRY, "memory", MemoryOptions(payloads={name: tuple(values) for name, values in payloads.items()}, **options))


def event(**fields: Any) -> bytes:
    return json.dumps(fields).encode()
