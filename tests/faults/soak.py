"""``scripts/soak``: keys that come and go for a quarter of an hour, and whether memory and state come back down.

A producer writes events whose keys live for a while and are never seen again. In the middle third of the time there are many times
more of them. Every few seconds the resident memory of workers and JVMs, RocksDB's files and the last checkpoint are written down. The stored
rows are compared with the producer's own count in the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Producer

from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink_cluster import FlinkCluster
from streamgauge.pipelines.services.kafka import KafkaServer
from tests.running import Command, stored

TOPIC, PARTITIONS = "soak", 4
EVENTS_PER_S = 20_000
TICK_S = 0.1
LIFE_S = 20
"""Seconds after which every key is replaced by one that was never seen before."""
FEW_KEYS, MANY_KEYS = 1_000, 50_000
"""Keys alive at a time: in the first and last third, and in the middle one."""
WINDOW_S = 10
SAMPLE_S = 5.0
POINTS = 45
"""In a chart."""
START, END = "<!-- soak:start -->", "<!-- soak:end -->"
MIB = 2**20

JOB = """\
pipeline:
  transforms:
    - type: ReadEvents
      config:
        from: {{kafka: {{brokers: "{brokers}", topic: {topic}}}}}
        format: {{json: {{schema: {{ts: "timestamp[ms]", key: string, value: int64}}}}}}
        time: {{field: ts, disorder: 500ms}}
    - type: AggregateWindows
      input: ReadEvents
      config: {{metric: soak, window: {{tumbling: {window}s}}, by: [key], aggregates: {{n: count, total: {{sum: value}}}}, emit: {{every: 1s}}}}
    - {{type: WriteResults, input: AggregateWindows, config: {{to: {{sqlite: {{path: "{store}", table: soak}}}}}}}}
options: {{streaming: true}}
"""


@dataclass(frozen=True)
class Sample:
    """What was seen at ``seconds`` since the start: MiB of resident memory (of all processes of a kind), of RocksDB's files, of the last checkpoint."""

    seconds: float
    keys: int
    workers: float
    task_managers: float
    job_manager: float
    rocksdb: float
    checkpoint: float
    checkpoint_ms: int
    failed_checkpoints: int


class Load(threading.Thread):
    """Produces events in real time; their event time is the time at which they are due."""

    def __init__(self, brokers: str, seconds: float) -> None:
        super().__init__(daemon=True)
        self._producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
        self._seconds = seconds
        self._began = time.time()
        self.events = 0
        self.total = 0

    def keys(self) -> int:
        """Keys alive now."""
        third = (time.time() - self._began) / self._seconds * 3
        return MANY_KEYS if 1 <= third < 2 else FEW_KEYS

    def run(self) -> None:
        each = int(EVENTS_PER_S * TICK_S)
        due = time.monotonic()
        while time.time() - self._began < self._seconds:
            keys, life = self.keys(), int((time.time() - self._began) / LIFE_S)
            stamp = int(time.time() * 1000)
            for number in range(self.events, self.events + each):
                payload = b'{"ts":%d,"key":"life-%d-%d","value":%d}' % (stamp, life, number % keys, number)
                self._producer.produce(TOPIC, payload, partition=number % PARTITIONS)
            self.events += each
            self.total = self.events * (self.events - 1) // 2
            self._producer.poll(0)
            due += TICK_S
            time.sleep(max(due - time.monotonic(), 0.0))
        self._producer.flush(30)


def soak(minutes: float, folder: Path) -> tuple[list[Sample], str]:
    """Runs it; returns what was seen and a verdict, ``PASS`` or ``FAIL`` with the reason."""
    with ExitStack() as stack:
        kafka = stack.enter_context(KafkaServer(folder / "kafka", progress=False))
        cluster = stack.enter_context(FlinkCluster(folder / "flink", task_managers=2, slots=1, progress=False))
        (folder / "soak.yaml").write_text(JOB.format(brokers=kafka.brokers, topic=TOPIC, window=WINDOW_S, store=folder / "soak.db"))
        load = Load(kafka.brokers, minutes * 60)
        load.start()
        time.sleep(2)  # the topic is there
        job = stack.enter_context(Command(folder, "run", "soak.yaml", "--flink", cluster.address))
        samples, began = [], time.monotonic()
        while load.is_alive() or time.monotonic() - began < minutes * 60 + 3 * WINDOW_S:
            time.sleep(SAMPLE_S)
            samples.append(_sample(cluster, time.monotonic() - began, load.keys() if load.is_alive() else 0))
            last = samples[-1]
            print(
                f"{last.seconds:6.0f} s  {last.keys:7,} keys  workers {last.workers:6.0f} MiB  TaskManagers {last.task_managers:6.0f} MiB  "
                f"RocksDB {last.rocksdb:6.1f} MiB  checkpoint {last.checkpoint:6.2f} MiB in {last.checkpoint_ms} ms",
                flush=True,
            )
        with Command(folder, "drain", "soak.yaml") as drain:
            drain.wait()
        if (code := job.wait(300)) != 0:
            return samples, f"FAIL: the job ended with {code}"
        ((events, total),) = stored(folder / "soak.db", "SELECT sum(n), sum(total) FROM soak WHERE final")
        right = (events, total) == (load.events, load.total)
        return samples, "PASS" if right else f"FAIL: {events:,} events with the sum {total:,} are stored, {load.events:,} with {load.total:,} were produced"


def _sample(cluster: FlinkCluster, seconds: float, keys: int) -> Sample:
    parts = {part.name: part.pid for part in cluster.parts()}
    latest: dict[str, Any] = {}
    failed = 0
    with suppress(ServiceError, LookupError):
        checkpoints = cluster.checkpoints(cluster.jobs()[0]["jid"])
        latest, failed = checkpoints["latest"]["completed"] or {}, checkpoints["counts"]["failed"]
    return Sample(
        seconds=round(seconds, 1),
        keys=keys,
        workers=_resident(cluster.worker_pids()),
        task_managers=_resident([pid for name, pid in parts.items() if name.startswith("taskmanager")]),
        job_manager=_resident([parts.get("jobmanager")]),
        rocksdb=sum(_size(path) for path in (cluster.folder / "tmp").rglob("*.sst")) / MIB,
        checkpoint=latest.get("state_size", 0) / MIB,
        checkpoint_ms=latest.get("end_to_end_duration", 0),
        failed_checkpoints=failed,
    )


def _size(path: Path) -> int:
    with suppress(OSError):  # compacted away
        return path.stat().st_size
    return 0


def _resident(pids: list[int | None]) -> float:
    total = 0
    for pid in pids:
        with suppress(psutil.Error):
            total += psutil.Process(pid).memory_info().rss if pid is not None else 0
    return round(total / MIB, 1)


def charts(samples: list[Sample], verdict: str) -> str:
    """Markdown with two charts, and the figures of the three thirds."""
    step = max(len(samples) // POINTS, 1)
    shown = samples[::step]
    minutes = samples[-1].seconds / 60
    memory = max(max(sample.workers, sample.task_managers) for sample in shown)
    state = max(sample.rocksdb + sample.checkpoint for sample in shown)
    lines = [
        *_chart("Resident memory, MiB: Python workers, TaskManagers", minutes, memory, [[s.workers for s in shown], [s.task_managers for s in shown]]),
        "",
        *_chart("State, MiB: RocksDB's files, last checkpoint", minutes, state, [[s.rocksdb for s in shown], [s.checkpoint for s in shown]]),
        "",
        "| Minute | Keys alive | Python workers | TaskManagers | JobManager | RocksDB | Checkpoint | in |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for share in (0.1, 0.3, 0.4, 0.5, 0.63, 0.75, 0.9, 1.0):
        s = samples[min(int(share * len(samples)), len(samples) - 1)]
        lines.append(
            f"| {s.seconds / 60:.1f} | {s.keys:,} | {s.workers:.0f} MiB | {s.task_managers:.0f} MiB | {s.job_manager:.0f} MiB | {s.rocksdb:.1f} MiB "
            f"| {s.checkpoint:.2f} MiB | {s.checkpoint_ms} ms |"
        )
    lines += ["", f"{samples[-1].failed_checkpoints} checkpoints failed. What was stored, compared with what was produced: {verdict}."]
    return "\n".join(lines)


def _chart(title: str, minutes: float, top: float, series: list[list[float]]) -> list[str]:
    lines = ["```mermaid", "xychart-beta", f'    title "{title}"', f'    x-axis "minutes" 0 --> {minutes:.0f}', f'    y-axis "MiB" 0 --> {max(top * 1.1, 1):.0f}']
    return [*lines, *(f"    line [{', '.join(f'{value:.1f}' for value in values)}]" for values in series), "```"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Keys that come and go: does memory stay bounded, and does state come back down?")
    parser.add_argument("--minutes", type=float, default=15.0, help="how long (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the samples there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put charts and figures between the markers of this page")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="streamgauge-soak-"))
    samples, verdict = soak(options.minutes, folder)
    print(verdict)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(sample) for sample in samples], indent=1))
    if options.page is not None:
        before, _, rest = options.page.read_text().partition(START)
        options.page.write_text(f"{before}{START}\n{charts(samples, verdict)}\n{END}{rest.partition(END)[2]}")
    if verdict != "PASS":
        print(f"kept: {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
