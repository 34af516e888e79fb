"""``streamgauge`` as a user runs it, in a process that also writes down when a write to the store and a collection of Python's garbage began and ended.

``python -m benchmarks.latency_job NOTES run JOB.yaml ...``: lines of JSON go to NOTES, times in microseconds since the epoch. With
LATENCY_TRACE=1 also when each probe was where (see latency_trace.py), which costs a little.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

LONG_MICROS = 1_000
"""Shorter collections are not noted."""


class Notes:
    """Appends lines to a file; from several threads."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self, **values: object) -> None:
        os.write(self._file, orjson.dumps(values) + b"\n")


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def collections(notes: Notes) -> Callable[[str, dict[str, int]], None]:
    """A callback of Python's garbage collector."""
    began = 0

    def told(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = now()
        elif now() - began >= LONG_MICROS:
            notes.add(what="python gc", begin=began, end=now(), generation=info["generation"])

    return told


def spans(notes: Notes, kind: Any, method: str, what: str) -> None:
    """Has each call of a method noted."""
    original = getattr(kind, method)

    def noted(self: Any, *given: Any, **named: Any) -> Any:
        begin = now()
        try:
            return original(self, *given, **named)
        finally:
            notes.add(what=what, begin=begin, end=now(), rows=len(given[0]) if given and hasattr(given[0], "__len__") else 0)

    setattr(kind, method, noted)


def main() -> None:
    notes = Notes(Path(sys.argv[1]))
    gc.callbacks.append(collections(notes))
    for module, kind in (("sqlite", "Sqlite"), ("questdb", "QuestDb")):
        spans(notes, getattr(importlib.import_module(f"streamgauge.transforms.sinks.{module}"), kind), "write", "flush")
    if os.environ.get("LATENCY_TRACE"):
        importlib.import_module("benchmarks.latency_trace").install(notes)
    sys.argv = ["streamgauge", *sys.argv[2:]]
    importlib.import_module("streamgauge.pipelines.cli").command()


if __name__ == "__main__":
    main()
