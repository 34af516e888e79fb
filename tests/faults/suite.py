"""One run: servers, a filled topic, a job on Flink, faults, a verdict."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.pipelines.services.process import HOST, lasting_ports
from streamgauge.pipelines.services.questdb import QuestDbServer
from tests.faults.driver import drive
from tests.faults.faults import EMBEDDED, KINDS
from tests.faults.proxy import Proxy
from tests.faults.report import Result
from tests.faults.schedule import schedule
from tests.faults.target import Embedded, Scene, Standalone, Target
from tests.faults.verdict import Verdict, judge
from tests.faults.workload import JOB_DISORDER_MS, TOPIC, WINDOW_MS, Workload, produce
from tests.running import Command

JOB, TABLE = "faults", "faults"
FETCH_BYTES = 1 << 19
"""Of one answer of the broker: those of the usual size would take seconds through the slowed network, and progress would jump."""
BYTES_A_RECORD = 104
"""On the wire, on average."""

TEXT = """\
pipeline:
  transforms:
    - type: ReadEvents
      config:
        from: {{kafka: {{brokers: "{brokers}", topic: {topic}, stop: latest, client: {{max.partition.fetch.bytes: {fetch}}}}}}}
        format: {{json: {{schema: {{ts: "timestamp[ms]", key: string, value: int64, id: string}}}}}}
        time: {{field: ts, disorder: {disorder}ms}}
        error_handling: {{output: rejected}}
    - type: AggregateWindows
      input: ReadEvents
      config:
        metric: faults
        window: {{tumbling: {window}ms}}
        by: [key]
        aggregates: {{n: count, total: {{sum: value}}, low: {{min: value}}, high: {{max: value}}}}
        emit: {emit}
    - {{type: WriteResults, name: Results, input: AggregateWindows, config: {{to: {{questdb: {{url: "{questdb}", table: {table}}}}}}}}}
    - {{type: WriteResults, name: Rejected, input: ReadEvents.rejected, config: {{to: {{parquet: {{path: "{letters}"}}}}}}}}
options: {{streaming: true}}
"""
EMITS = ("final", "{every: 1s}")


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        cluster: "cluster" (a standalone Flink) or "embedded". kinds: of faults, from which the seed chooses.
        pace_s: the network to Kafka is slowed so that all events take at least so long, seconds; the faults then meet many different
            moments of the job, and a run does not depend on how fast the machine is. limit_s: for the job, seconds.
    """

    seed: int
    faults: int
    events: int
    cluster: str
    kinds: Sequence[str]
    pace_s: float
    limit_s: float


def kinds_of(cluster: str) -> tuple[str, ...]:
    """The faults that a kind of cluster can be put through."""
    return EMBEDDED if cluster == "embedded" else tuple(KINDS)


@contextmanager
def servers(folder: Path, bytes_per_s: float) -> Iterator[tuple[KafkaServer, QuestDbServer, Proxy]]:
    """Kafka, which tells clients of its second listener that it is where the proxy is, and QuestDB; started side by side."""
    inside, outside, controller, proxied, http, postgres, health = lasting_ports(7)
    properties = {
        "listeners": f"PLAINTEXT://{HOST}:{inside},PROXIED://{HOST}:{outside},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{inside},PROXIED://{HOST}:{proxied}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
        "controller.quorum.voters": f"1@{HOST}:{controller}",
        # So long after it was killed a broker is not let in again by its own controller.
        "broker.session.timeout.ms": 3_000,
    }
    kafka = KafkaServer(folder / "kafka", inside, properties, progress=False)
    questdb = QuestDbServer(folder / "questdb", http, postgres, {"http.min.net.bind.to": f"{HOST}:{health}"}, progress=False)
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        for server in (kafka, questdb):
            stack.callback(server.stop)
        for started in [pool.submit(server.start) for server in (kafka, questdb)]:
            started.result()
        yield kafka, questdb, stack.enter_context(Proxy(outside, proxied, bytes_per_s))


@contextmanager
def command(plan: Plan, folder: Path) -> Iterator[tuple[Command, Target]]:
    """The running ``streamgauge run`` of the job in ``folder``, and the Flink that it uses."""
    arguments = ["run", f"{JOB}.yaml", "--runner", "flink"]
    if plan.cluster == "embedded":
        with Command(folder, *arguments) as running:
            yield running, Embedded(running.process.pid, folder / ".streamgauge" / "jobs" / JOB)
        return
    from streamgauge.pipelines.services.flink_cluster import FlinkCluster  # imports Beam

    with FlinkCluster(folder / "flink", task_managers=2, slots=1, progress=False) as cluster, Command(folder, *arguments, "--flink", cluster.address) as running:
        yield running, Standalone(cluster)


def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> tuple[Result, Verdict]:
    """The run of a seed. Its result is PASS when the job ended well and the verdict on what it stored is right."""
    workload = Workload.of(plan.seed, plan.events)
    emit = random.Random(f"emit {plan.seed}").choice(EMITS)
    letters = folder / "rejected"
    rows, bad = len(workload.expected()), len(workload.expected_letters())
    with servers(folder, BYTES_A_RECORD * plan.events / plan.pace_s) as (kafka, questdb, proxy):
        began = time.monotonic()
        produce(workload, kafka.brokers)
        took = time.monotonic() - began
        say(f"seed {plan.seed}: {plan.events:,} events in Kafka after {took:.1f} s, {rows:,} rows and {bad:,} dead letters to come, emit: {emit}")
        (folder / f"{JOB}.yaml").write_text(
            TEXT.format(
                brokers=f"{HOST}:{proxy.port}", topic=TOPIC, fetch=FETCH_BYTES, disorder=JOB_DISORDER_MS, window=WINDOW_MS, emit=emit, questdb=questdb.url, table=TABLE,
                letters=letters,
            )
        )  # fmt: skip
        steps = schedule(plan.seed, plan.faults, plan.kinds)
        with command(plan, folder) as (running, target):
            scene = Scene(target, kafka, questdb, proxy)
            record = folder / ".streamgauge" / "jobs" / JOB / "record"
            outcome = drive(scene, running, record, steps, plan.events, plan.limit_s, say)
        verdict = judge(workload, questdb.url, TABLE, letters)
    if outcome.failure is not None:
        say(outcome.failure)
    word = verdict.word if outcome.failure is None else f"FAIL: {outcome.failure.splitlines()[0]}"
    struck = [strike.kind for strike in outcome.strikes]
    return Result(plan.seed, plan.events, plan.cluster, emit, struck, round(outcome.seconds, 1), outcome.restarts, rows, bad, word), verdict

