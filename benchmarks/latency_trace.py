"""Where the time goes: notes when each probe was read, came to the merge, became a row and was stored, and the same of windows' ends.

``LATENCY_TRACE=1`` installs it in the job's process (see latency_job.py), ``--trace`` of latency.py asks for it and shows the tables; it costs a little.
``python -m benchmarks.latency_trace CASE_FOLDER [SINCE [PARTITIONS]]`` shows them again.
"""

from __future__ import annotations

import functools
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.latency_figures import percentiles
from benchmarks.latency_producer import PARTITIONS, PROBE

STAGES = ("produced", "read", "merge", "row", "write", "stored", "seen")
"""Of a probe: its time stamp; parsed; its partial is at the merge; result row made; write to the store begins; ends; a reader saw the row."""
FINAL_STAGES = ("end", "watermark", "passed", "stored", "seen")
"""Of a window: its end; every split's watermark is there; the last timer of it ran; its last final row is stored; a reader saw it."""
_SPANS = ("bundle", "state read", "state commit", "flush")
_MS = 1000


def probes(table: Any, series: str) -> list[str]:
    """Hosts of the probes in a batch of events, a partial or rows."""
    return list(table.column("host").filter(pc.equal(table.column(series), PROBE)).to_pylist())


def install(notes: Any) -> None:
    """Puts notes around the functions of each step."""
    from apache_beam.runners.worker import bundle_processor, sdk_worker

    from benchmarks.latency_job import now, spans
    from streamgauge.transforms import merge, read, results
    from streamgauge.transforms.sinks.questdb import QuestDb
    from streamgauge.transforms.sinks.sqlite import Sqlite

    def note(stage: str, at: int, hosts: list[str]) -> None:
        if hosts:
            notes.add(what="probe", stage=stage, at=at, hosts=hosts)

    def around(kind: Any, name: str, make: Any) -> None:
        original = getattr(kind, name)
        setattr(kind, name, functools.wraps(original)(make(original)))

    def with_lineage(original: Any) -> Any:
        def noted(self: Any, *given: Any) -> Any:
            events = original(self, *given)
            note("read", now(), probes(events, "metric"))
            return events

        return noted

    def emit(original: Any) -> Any:
        def noted(self: Any, split: Any, batch: Any, reader: Any, watermark: Any, index: Any) -> Iterator[Any]:
            yield from original(self, split, batch, reader, watermark, index)
            notes.add(what="watermark", at=now(), split=split.id, micros=int(watermark.current.micros))

        return noted

    def process(original: Any) -> Any:
        def noted(self: Any, element: Any, window: Any, partials: Any, end: Any, emit: Any, progress: Any, timestamp: Any) -> None:
            note("merge", now(), probes(self._partials.decode(element[1]), "series"))
            original(self, element, window, partials, end, emit, progress, timestamp)

        noted.__defaults__ = original.__defaults__  # Beam reads from them what to give
        return noted

    def of(original: Any) -> Any:
        def noted(self: Any, key: bytes, partials: Any, merged: Any, start: int, end: int, *, final: bool, **named: Any) -> Iterator[Any]:
            if final:
                notes.add(what="passed", at=now(), end=end)
            for rows in original(self, key, partials, merged, start, end, final=final, **named):
                note("row", now(), probes(rows, "series"))
                yield rows

        return noted

    def write(original: Any) -> Any:
        def noted(self: Any, batch: Any) -> Any:
            begin = now()
            done = original(self, batch)
            hosts = probes(batch, "series")
            note("write", begin, hosts)
            note("stored", now(), hosts)
            ends = pc.unique(batch.filter(batch.column("final")).column("window_end")).cast(pa.int64()).to_pylist()
            if ends:
                notes.add(what="final", at=now(), ends=ends)
            return done

        return noted

    spans(notes, sdk_worker.SdkWorker, "process_bundle", "bundle")
    spans(notes, sdk_worker.GrpcStateHandler, "_blocking_request", "state read")
    spans(notes, bundle_processor.SynchronousBagRuntimeState, "commit", "state commit")
    around(read._Read, "_with_lineage", with_lineage)
    around(read._Read, "_emit", emit)
    around(merge.MergeDoFn, "process", process)
    around(results.ResultRows, "of", of)
    for kind in (Sqlite, QuestDb):
        around(kind, "write", write)


def attribute(folder: Path, since: int, partitions: int = PARTITIONS) -> dict[str, list[dict[str, Any]]]:
    """Milliseconds between the stages of probes, and of windows' ends, from the notes of one case; and how long bundles and state took.

    Args:
        since: microseconds since the epoch; what began earlier is left out.
        partitions: of the topic.
    """
    seen = json.loads((folder / "seen.json").read_text())
    notes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in map(orjson.loads, (folder / "notes.ndjson").read_bytes().splitlines()):
        notes[line["what"]].append(line)
    spans = {what: np.array([line["end"] - line["begin"] for line in notes[what] if line["begin"] >= since], np.int64) for what in _SPANS}
    return {
        "event to live row": _steps(STAGES, _probes(notes["probe"], seen["hosts"]), since),
        "window end to its last final row": _steps(FINAL_STAGES, _windows(notes, seen["finals"], partitions), since),
        "in the worker": [{"step": what, "times": len(found), **percentiles(found), "mean": found.mean() / _MS} for what, found in spans.items() if len(found)],
    }


def _probes(lines: Sequence[dict[str, Any]], seen: Sequence[Sequence[Any]]) -> list[dict[str, int]]:
    times: dict[str, dict[str, int]] = defaultdict(dict)
    for line in lines:
        for host in line["hosts"]:
            times[host].setdefault(line["stage"], line["at"])
    for host, stamp, at in seen:
        times[host].update(produced=stamp, seen=at)
    return list(times.values())


def _windows(notes: dict[str, list[dict[str, Any]]], seen: Sequence[Sequence[int]], partitions: int) -> list[dict[str, int]]:
    """When the last of each window was at each stage. Sizes are those of the windows whose timers ran."""
    ends = sorted({line["end"] for line in notes["passed"]})
    times: dict[int, dict[str, int]] = {end: {"end": end} for end in ends}
    for line in notes["passed"]:
        times[line["end"]]["passed"] = max(line["at"], times[line["end"]].get("passed", 0))
    for line in notes["final"]:
        for end in line["ends"]:
            times.setdefault(end, {"end": end})["stored"] = max(line["at"], times[end].get("stored", 0))
    size = min((after - before for before, after in pairwise(ends)), default=0)
    for start, at, _ in seen:
        if start + size in times:
            times[start + size]["seen"] = max(at, times[start + size].get("seen", 0))
    reached: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in notes["watermark"]:
        reached[line["split"]].append(line)
    if len(reached) == partitions:
        marks = [(np.maximum.accumulate([line["micros"] for line in lines]), np.array([line["at"] for line in lines])) for lines in reached.values()]
        for end, found in times.items():
            places = [int(np.searchsorted(micros, end - _MS)) for micros, _ in marks]
            if all(place < len(at) for place, (_, at) in zip(places, marks, strict=True)):
                found["watermark"] = max(int(at[place]) for place, (_, at) in zip(places, marks, strict=True))
    return list(times.values())


def _steps(stages: Sequence[str], samples: Sequence[dict[str, int]], since: int) -> list[dict[str, Any]]:
    """A row a step, with its share in the slowest hundredth of the samples."""
    whole = sorted([found[stage] for stage in stages] for found in samples if all(stage in found for stage in stages) and found[stages[0]] >= since)
    if not whole:
        return []
    table = np.array(whole, np.int64)
    steps, total = np.diff(table, axis=1), table[:, -1] - table[:, 0]
    slow = total >= np.quantile(total, 0.99)
    named = [(f"{begin} to {end}", steps[:, number]) for number, (begin, end) in enumerate(pairwise(stages))]
    return [
        {"step": name, "times": len(found), **percentiles(found), "mean": found.mean() / _MS, "slowest 1 %": found[slow].mean() / _MS}
        for name, found in (*named, ("all", total))
    ]


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    for title, rows in found.items():
        if rows:
            print(f"{title}, milliseconds")
            print(" ".join(f"{name:>12}" for name in rows[0]))
            for row in rows:
                print(" ".join(f"{value:12.1f}" if isinstance(value, float) else f"{value:>12}" for value in row.values()))


if __name__ == "__main__":
    show(attribute(Path(sys.argv[1]), *(map(int, sys.argv[2:4] or [0]))))
