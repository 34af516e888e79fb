"""One case of the latency benchmark: a job or the baseline, a producer and a reader, each a process of its own."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import orjson
import psutil
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.latency_figures import Interval, by_condition, during, finals, overlaps, pauses
from benchmarks.latency_producer import COUNT_MICROS, PARTITIONS
from benchmarks.latency_trace import attribute
from benchmarks.measure import ContenderFailed
from benchmarks.topic import FIELDS
from streamgauge.pipelines.follow import quietly
from streamgauge.pipelines.services.flink_rest import FlinkRest

TABLE = "latency"
WARM_SECONDS = 20.0
"""Left out at the beginning: kernels are loaded, the JVM compiles, caches fill."""
AFTER_SECONDS = 3.0
START_SECONDS = 120.0
STOP_SECONDS = 60.0
_CHECKPOINTS_EVERY_SECONDS = 2.0
_S = 1_000_000


@dataclass(frozen=True)
class Case:
    """What runs.

    Attributes:
        rate: events per second. window_ms: size of the windows. emit: early results, as in a job file. options: more arguments of ``streamgauge run``.
    """

    contender: str
    store: str
    rate: int
    window_ms: int = 1000
    emit: str = "on_change"
    shards: int = 1
    partitions: int = PARTITIONS
    options: tuple[str, ...] = ()

    @property
    def live(self) -> bool:
        return self.emit != "final"

    def job(self, brokers: str, topic: str, address: str) -> str:
        """The job file (JSON is YAML)."""
        to = {"sqlite": {"path": address, "table": TABLE}, "questdb": {"url": address, "table": TABLE}}[self.store]
        emit = self.emit if self.emit in ("final", "on_change") else {"every": self.emit}
        steps = [
            {"type": "ReadEvents", "config": {
                "from": {"kafka": {"brokers": brokers, "topic": topic, "start": "latest"}},
                "format": {"json": {"schema": FIELDS}}, "time": {"field": "ts", "unit": "us", "disorder": "0s"},
            }},
            {"type": "AggregateWindows", "input": "ReadEvents", "config": {
                "metric": "load", "window": {"tumbling": f"{self.window_ms}ms"}, "by": {"series": "metric", "host": "host"}, "shards": self.shards, "emit": emit,
                "aggregates": {"total": {"sum": "value"}, "lo": {"min": "value"}, "hi": {"max": "value"}, "newest": {"max": "ts"}},
            }},
            {"type": "WriteResults", "input": "AggregateWindows", "config": {"to": {self.store: to}}},
        ]  # fmt: skip
        return json.dumps({"pipeline": {"transforms": steps}, "options": {"streaming": True}}, indent=1)


@dataclass
class Outcome:
    """What a case showed. Delays in milliseconds.

    Attributes:
        live: rows of ``by_condition``: from an event's time stamp to its row in the store before the window has ended. final: see ``finals``.
        counts: numbers of conditions. correct: whether final rows hold each event once. cpu_s: see ``Used.since``.
        where: see latency_trace.py.
    """

    case: Case
    seconds: float
    live: list[dict[str, Any]]
    final: dict[str, Any]
    producer: dict[str, Any]
    counts: dict[str, int]
    correct: bool
    cpu_s: dict[str, float]
    where: dict[str, list[dict[str, Any]]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(case: Case, seconds: float, brokers: str, questdb: str, folder: Path, trace: bool = False) -> Outcome:
    """Raises ContenderFailed."""
    folder.mkdir(parents=True)
    topic = f"latency-{folder.name}"
    admin = AdminClient({"bootstrap.servers": brokers})  # must be there until its answer is
    admin.create_topics([NewTopic(topic, case.partitions, 1)])[topic].result()
    address = str(folder / "results.db") if case.store == "sqlite" else questdb
    if case.store == "questdb":
        _drop(questdb)
    with ExitStack() as stack:
        contender = {"streamgauge": _job, "python-loop": _loop}[case.contender]
        started = stack.enter_context(contender(case, brokers, topic, address, folder, trace))
        seen = folder / "seen.json"
        reader = stack.enter_context(_process(["benchmarks.latency_reader", case.store, address, TABLE, str(seen)], folder / "reader.log"))
        began = time.time()
        length = WARM_SECONDS + seconds
        producer = stack.enter_context(_process(["benchmarks.latency_producer", brokers, topic, str(case.partitions), str(case.rate), str(length), str(WARM_SECONDS)], folder / "producer.log"))
        before = Used.now(started.process.pid)
        used = before
        while producer.poll() is None:
            time.sleep(_CHECKPOINTS_EVERY_SECONDS / 2)
            started.look()
            if producer.poll() is None:
                used = Used.now(started.process.pid)
            for process, log in ((started.process, started.log), (reader, folder / "reader.log")):
                if process.poll() is not None:
                    raise ContenderFailed(f"{log.name} ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(AFTER_SECONDS)
        started.look()
        _end(reader, signal.SIGTERM)
    said = json.loads((folder / "producer.log").read_text().strip().splitlines()[-1])
    where = attribute(folder, round((began + WARM_SECONDS) * _S), case.partitions) if trace and case.contender == "streamgauge" else {}
    period = (began + WARM_SECONDS, began + length)
    return _outcome(case, period, json.loads(seen.read_text()), said, started, address, used.since(before), where)


def _outcome(case: Case, period: tuple[float, float], seen: dict[str, Any], said: dict[str, Any], started: _Started, address: str, cpu: dict[str, float], where: Any) -> Outcome:
    first, last = (round(moment * _S) for moment in period)
    probes = np.array([pair for pair in seen["probes"] if first <= pair[0] < last], np.int64).reshape(-1, 2)
    conditions = started.conditions()
    live = by_condition(probes, conditions) if case.live else []
    flushes = started.flushes()
    if case.live and flushes:
        live.append(during("produced during a write", probes[overlaps(probes[:, 0], probes[:, 0], flushes)]))
    size = case.window_ms * 1000
    counted = {int(key): value for key, value in said.pop("counted").items()}
    found = finals(seen["finals"], size, first, last - _S)
    counts = {name: len(intervals) for name, intervals in conditions.items()} | {"writes": len(flushes)}
    correct = _stored(case, address, first // size * size + size, (last - 2 * _S) // size * size, counted)
    return Outcome(case, period[1] - period[0], live, found, said, counts, correct, cpu, where)


def _stored(case: Case, address: str, first: int, last: int, counted: dict[int, int]) -> bool:
    """Whether the final rows of windows from ``first`` to ``last`` (microseconds) are of exactly the events that were produced."""
    size = case.window_ms * 1000
    wanted: dict[int, int] = {}
    for step, count in counted.items():
        start = step * COUNT_MICROS // size * size
        if first <= start and start + size <= last:
            wanted[start] = wanted.get(start, 0) + count
    query = f"SELECT window_start, sum(events) FROM {TABLE} WHERE final GROUP BY window_start"
    rows = _ask(address, query) if case.store == "questdb" else sqlite3.connect(address).execute(query).fetchall()
    found = {int(np.datetime64(str(start).removesuffix("Z"), "us").astype(np.int64)): int(total) for start, total in rows}
    return bool(wanted) and all(found.get(start) == count for start, count in wanted.items())


@dataclass
class _Started:
    """A contender that runs."""

    process: subprocess.Popen[bytes]
    log: Path
    notes: Path | None = None
    gc_log: Path | None = None
    rest: FlinkRest | None = None
    checkpoints: dict[int, Interval] = field(default_factory=dict)

    def look(self) -> None:
        """Asks Flink for its last checkpoints: it keeps ten."""
        rest = self.rest
        if rest is not None:
            for job in quietly(rest.jobs, []):
                for found in quietly(lambda job=job: rest.checkpoints(str(job["jid"])), {"history": []})["history"]:  # type: ignore[misc]
                    begin = int(found["trigger_timestamp"]) * 1000
                    self.checkpoints[int(found["id"])] = (begin, begin + int(found["end_to_end_duration"]) * 1000)

    def conditions(self) -> dict[str, list[Interval]]:
        if self.rest is None:
            return {}
        jvm = pauses(self.gc_log.read_text()) if self.gc_log is not None else []
        return {"checkpoint": list(self.checkpoints.values()), "JVM garbage collection": jvm, "Python garbage collection": self._noted("python gc")}

    def flushes(self) -> list[Interval]:
        return self._noted("flush")

    def _noted(self, what: str) -> list[Interval]:
        if self.notes is None or not self.notes.exists():
            return []
        lines = map(orjson.loads, self.notes.read_bytes().splitlines())
        return [(line["begin"], line["end"]) for line in lines if line["what"] == what]


class Used(NamedTuple):
    """CPU seconds so far."""

    contender: dict[str, float]
    ours: float
    everything: float

    @classmethod
    def now(cls, pid: int) -> Used:
        """``pid``: of the contender."""
        names: dict[str, float] = {}
        for process, seconds in _tree(pid):
            names[process] = names.get(process, 0.0) + seconds
        times = psutil.cpu_times()
        return cls(names, sum(seconds for _, seconds in _tree(os.getpid())), float(times.user + times.system + times.nice))

    def since(self, before: Used) -> dict[str, float]:
        """By name of the contender's processes; of broker, producer, reader and stores; of all else on this machine, which is in the way."""
        contender = {name: seconds - before.contender.get(name, 0.0) for name, seconds in self.contender.items()}
        ours, everything = self.ours - before.ours, self.everything - before.everything
        found = {**contender, "broker, producer, reader": ours - sum(contender.values()), "other work": everything - ours}
        return {name: max(0.0, round(seconds, 1)) for name, seconds in found.items()}


def _tree(pid: int) -> Iterator[tuple[str, float]]:
    """Name and CPU seconds of a process and its descendants."""
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            yield process.name(), times.user + times.system


@contextmanager
def _job(case: Case, brokers: str, topic: str, address: str, folder: Path, trace: bool) -> Iterator[_Started]:
    home, notes, gc_log = folder / "home", folder / "notes.ndjson", folder / "gc.log"
    job = folder / "latency.yaml"
    job.write_text(case.job(brokers, topic, address))
    environment = {**os.environ, "STREAMGAUGE_HOME": str(home), "JAVA_TOOL_OPTIONS": f"-Xlog:gc:file={gc_log}:timemillis", **({"LATENCY_TRACE": "1"} if trace else {})}
    command = ["benchmarks.latency_job", str(notes), "run", str(job), "--runner=flink", "--fresh", *case.options]
    with _process(command, folder / "job.log", environment) as process:
        record = home / "jobs" / "latency" / "record" / "splits"
        _wait(lambda: len(list(record.glob("[!.]*.json"))) == case.partitions, process, folder / "job.log")
        conf = (home / "jobs" / "latency" / "flink" / "conf" / "flink-conf.yaml").read_text()
        port = next(line.partition(": ")[2] for line in conf.splitlines() if line.startswith("rest.port: "))
        yield _Started(process, folder / "job.log", notes, gc_log, FlinkRest(f"http://127.0.0.1:{port}"))
        _end(process, signal.SIGINT)


@contextmanager
def _loop(case: Case, brokers: str, topic: str, address: str, folder: Path, trace: bool) -> Iterator[_Started]:
    command = ["benchmarks.latency_loop", brokers, topic, case.store, address, TABLE, str(case.partitions), str(case.window_ms * 1000), "live" if case.live else "final"]
    with _process(command, folder / "loop.log") as process:
        _wait(lambda: b"ready" in (folder / "loop.log").read_bytes(), process, folder / "loop.log")
        yield _Started(process, folder / "loop.log")
        _end(process, signal.SIGTERM)


@contextmanager
def _process(module: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A module as a process; killed when it is still there at the end."""
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", *module], stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process
    finally:
        _end(process, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(ready: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ContenderFailed(f"{log.name}: not ready within {START_SECONDS:.0f} s: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _drop(url: str) -> None:
    """What an earlier case left."""
    for statement in (f"DROP VIEW IF EXISTS {TABLE}", f"DROP TABLE IF EXISTS {TABLE}", f"DROP TABLE IF EXISTS {TABLE}_versions"):
        try:
            _ask(url, statement)
        except OSError:
            continue  # of the other kind: a table where a view is to be dropped, or the other way round


def _ask(url: str, query: str) -> list[list[Any]]:
    with urllib.request.urlopen(f"{url}/exec?query={quote(query)}", timeout=60) as answer:
        return list(orjson.loads(answer.read()).get("dataset", []))
