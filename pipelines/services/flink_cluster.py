"""A standalone Flink cluster on this machine, its parts as processes of their own that are started again when they die.

ZooKeeper remembers which jobs run and their last checkpoints, so a JobManager that died comes back with its jobs; Python workers
come from a pool (see worker_pool.py). Everything comes from the Flink distribution's wheel and the locked jars.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from streamgauge.pipelines.services.class_data import ClassData
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink_conf import common, opens
from streamgauge.pipelines.services.flink_rest import FlinkRest
from streamgauge.pipelines.services.flink_submit import WORKERS_KEY
from streamgauge.pipelines.services.jars import fetch
from streamgauge.pipelines.services.java import java
from streamgauge.pipelines.services.patches import cluster_jar, patch_jar, rpc_jar
from streamgauge.pipelines.services.process import HOST, Service, lasting_ports, port_open
from streamgauge.pipelines.services.server import JavaServer

JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
ZOOKEEPER = "org.apache.flink.shaded.zookeeper3.org.apache.zookeeper.server.ZooKeeperServerMain"
_FORKED = "multiprocessing.forkserver"
SUPERVISOR = Path(__file__).with_name("supervisor.py")
START_TIMEOUT_S = 120.0
MIB = 2**20

# Jars of the job server that the distribution has its own versions of.
_DISTRIBUTION_HAS = ("flink-", "log4j", "slf4j", "scala-")

LOG4J = """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = ${sys:log.file}
appender.file.filePattern = ${sys:log.file}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{ISO8601} %p %c: %m%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 50MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 2
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
logger.zookeeper.name = org.apache.flink.shaded.zookeeper3
logger.zookeeper.level = warn
logger.curator.name = org.apache.flink.shaded.curator5
logger.curator.level = warn
logger.beam.name = org.apache.beam
logger.beam.level = warn
"""


@dataclass(frozen=True)
class Part:
    """A process of the cluster: its name, process id (None: it is being started again) and how often it was."""

    name: str
    pid: int | None
    restarts: int
    log: str


class FlinkCluster(JavaServer, FlinkRest):
    """ZooKeeper, a JobManager, TaskManagers and a pool of Python workers. Jobs survive the death of any of them.

    Args:
        folder: gets configuration, logs, checkpoints, savepoints and what ZooKeeper knows; a cluster started on it again
            goes on with the jobs that ran when it was stopped.
        rest_port: TCP port of the web interface and REST API; None takes a free one.
        task_managers: their number.
        slots: of each TaskManager: how many parallel parts of jobs it runs.
        heap_mib: the largest heap of a TaskManager's JVM, MiB.
        conf: extra Flink configuration, which wins over ours.
        detached: whether it may outlive the process that starts it.
    """

    def __init__(
        self,
        folder: Path | str,
        rest_port: int | None = None,
        *,
        task_managers: int = 1,
        slots: int = 2,
        heap_mib: int = 512,
        conf: Mapping[str, object] | None = None,
        detached: bool = False,
        progress: bool = True,
    ) -> None:
        JavaServer.__init__(self, folder, "cluster.log")
        self.task_managers, self.slots = task_managers, slots
        self._heap, self._extra = heap_mib, dict(conf or {})
        self._detached, self._progress = detached, progress
        spare, self._zookeeper_port, workers = lasting_ports(3)
        self.rest_port = rest_port or spare
        # Jobs that the cluster comes back with know their workers by this address.
        self.workers_port = _last_workers_port(self.folder) or workers
        self.checkpoints_folder = self.folder / "checkpoints"
        self.savepoints_folder = self.folder / "savepoints"
        self.logs_folder = self.folder / "logs"
        FlinkRest.__init__(self, f"http://{HOST}:{self.rest_port}")

    @property
    def address(self) -> str:
        """What ``streamgauge run --flink`` takes."""
        return f"{HOST}:{self.rest_port}"

    def start(self) -> FlinkCluster:
        """Fetch what is missing, start, wait until every TaskManager has registered.

        Raises:
            ServiceError: with the last log lines.
        """
        if self.running:
            return self
        if port_open(self.workers_port):
            raise ServiceError(f"Port {self.workers_port}, at which this cluster's jobs look for Python workers, is taken; stop who listens there.")
        shared = ClassData("cluster", class_path(self._progress))
        conf = self.folder / "conf"
        for folder in (self.checkpoints_folder, self.savepoints_folder, self.logs_folder, conf, self.folder / "tmp", self.folder / "zookeeper"):
            folder.mkdir(parents=True, exist_ok=True)
        (conf / "flink-conf.yaml").write_text("".join(f"{key}: {value}\n" for key, value in self.configuration().items()))
        (conf / "log4j2.properties").write_text(LOG4J)
        (conf / "zookeeper.cfg").write_text(
            f"dataDir={self.folder / 'zookeeper'}\nclientPort={self._zookeeper_port}\nclientPortAddress={HOST}\n"
            "tickTime=1000\nmaxClientCnxns=0\nadmin.enableServer=false\nautopurge.purgeInterval=1\n"
        )
        plan = self.folder / "parts.json"
        plan.write_text(json.dumps({"status": str(self._status_path), "parts": self._plan(shared), "after": shared.writer()}, indent=1))
        self._status_path.unlink(missing_ok=True)
        self._service = Service(
            "The Flink cluster", [sys.executable, "-I", "-S", str(SUPERVISOR), str(plan)], self.log_path,
            ready=self._ready, timeout_s=START_TIMEOUT_S, detached=self._detached, grace_s=15.0,
        )  # fmt: skip
        self._service.start()
        return self

    def parts(self) -> list[Part]:
        """The processes, in the order in which they were started."""
        return parts(self.folder)

    def worker_pids(self) -> list[int]:
        """Process ids of the Python workers that TaskManagers have asked for."""
        return worker_pids(self.folder)

    def configuration(self) -> dict[str, object]:
        """The Flink configuration that `start` writes."""
        return {
            **common(self.rest_port, self.checkpoints_folder, self.savepoints_folder, self.folder / "tmp"),
            "jobmanager.rpc.address": HOST,
            "jobmanager.memory.heap.size": f"{512 * MIB}b",
            "jobmanager.execution.failover-strategy": "full",
            "high-availability.type": "zookeeper",
            "high-availability.storageDir": (self.folder / "recovery").as_uri(),
            "high-availability.zookeeper.quorum": f"{HOST}:{self._zookeeper_port}",
            "high-availability.cluster-id": "/streamgauge",
            # So long after a JobManager's death its successor takes over.
            "high-availability.zookeeper.client.session-timeout": 8_000,
            "high-availability.zookeeper.client.max-retry-attempts": 10,
            "zookeeper.sasl.disable": "true",
            "web.submit.enable": "true",
            "web.upload.dir": self.folder / "uploads",
            "web.cancel.enable": "true",
            "heartbeat.interval": 2_000,
            "heartbeat.timeout": 20_000,
            "taskmanager.numberOfTaskSlots": self.slots,
            # TaskManagers want every part of their memory spelled out; Flink's own start scripts compute these figures.
            "taskmanager.cpu.cores": float(self.slots),
            "taskmanager.memory.task.heap.size": f"{(self._heap - 128) * MIB}b",
            "taskmanager.memory.framework.heap.size": f"{128 * MIB}b",
            "taskmanager.memory.task.off-heap.size": f"{128 * MIB}b",
            "taskmanager.memory.framework.off-heap.size": f"{128 * MIB}b",
            "taskmanager.memory.network.min": f"{64 * MIB}b",
            "taskmanager.memory.network.max": f"{64 * MIB}b",
            "taskmanager.memory.managed.size": f"{128 * MIB}b",
            "taskmanager.memory.jvm-metaspace.size": f"{256 * MIB}b",
            "taskmanager.memory.jvm-overhead.min": f"{128 * MIB}b",
            "taskmanager.memory.jvm-overhead.max": f"{128 * MIB}b",
            WORKERS_KEY: f"{HOST}:{self.workers_port}",
            "state.backend.type": "rocksdb",
            "state.backend.incremental": "true",
            "state.backend.rocksdb.options-factory": "streamgauge.SmallManifest",
            **self._extra,
        }

    @property
    def _status_path(self) -> Path:
        return self.folder / "status.json"

    def _ready(self) -> bool:
        try:
            return int(self.overview()["taskmanagers"]) >= self.task_managers
        except ServiceError:
            return False

    def _plan(self, shared: ClassData) -> list[dict[str, object]]:
        conf = ["--configDir", str(self.folder / "conf")]
        task_manager_memory = [f"-Xms{self._heap // 4}m", f"-Xmx{self._heap}m", f"-XX:MaxDirectMemorySize={320}m", "-XX:MaxMetaspaceSize=256m"]
        managers = [f"taskmanager-{number}" for number in range(1, self.task_managers + 1)]
        environment = {key: value for key, value in os.environ.items() if key.startswith(("PYTHON", "PATH", "LD_", "NUMBA", "STREAMGAUGE"))}
        pool = [sys.executable, "-m", "streamgauge.pipelines.services.worker_pool", "--port", str(self.workers_port)]
        return [
            # Last to go: a JobManager that cannot say goodbye is waited for at the next start.
            {**self._java("zookeeper", shared, ["-Xmx96m"], ZOOKEEPER, [str(self.folder / "conf" / "zookeeper.cfg")]), "last": True},
            {"name": "workers", "command": pool, "log": str(self.logs_folder / "workers.log"), "env": environment},
            self._java("jobmanager", shared, ["-Xmx512m", "-XX:MaxMetaspaceSize=256m"], JOB_MANAGER, conf),
            *(self._java(name, shared, task_manager_memory, TASK_MANAGER, conf) for name in managers),
        ]

    def _java(self, name: str, shared: ClassData, memory: list[str], main: str, arguments: list[str]) -> dict[str, object]:
        """One of the JVMs."""
        command = java(
            *memory,
            # The optimising compiler and a concurrent collector cost more than they can save here: events never pass through the JVM one by one.
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-XX:+ExitOnOutOfMemoryError",
            *opens(),
            "-Djava.net.preferIPv4Stack=true",
            f"-Djava.io.tmpdir={self.folder / 'tmp'}",
            f"-Dlog.file={self.logs_folder / f'{name}.log'}",
            f"-Dlog4j.configurationFile={self.folder / 'conf' / 'log4j2.properties'}",
            *shared.flags(name),
            *("-cp", shared.class_path, main, *arguments),
        )
        return {"name": name, "command": command, "log": str(self.logs_folder / f"{name}.out")}


def class_path(progress: bool = True) -> list[Path]:
    """Jars of the cluster's JVMs: classes of ours, the Flink distribution, Beam and what it needs.

    Raises:
        ServiceError: the distribution's wheel is not installed, or a jar cannot be had.
    """
    try:
        import pyflink
    except ImportError:
        raise ServiceError("A Flink cluster needs the package apache-flink-libraries; run: pip install 'streamgauge[cluster]'") from None
    distribution = Path(next(iter(pyflink.__path__))) / "lib"
    jars = fetch("flink", progress)
    own = [jar for jar in sorted(distribution.glob("*.jar")) if jar.name.startswith(("flink-dist-", "log4j-"))]
    found = [patch_jar(jars, progress), *own, *(jar for jar in jars if not jar.name.startswith(_DISTRIBUTION_HAS)), rpc_jar(own)]
    return [cluster_jar(found, progress), *found]


def parts(folder: Path) -> list[Part]:
    """The processes of the cluster in ``folder``, as its supervisor last wrote them down."""
    try:
        known = json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return []
    return [Part(name, state["pid"], state["restarts"], str(folder / "logs" / f"{name}.log")) for name, state in known.items()]


def _last_workers_port(folder: Path) -> int | None:
    """Where the pool of the cluster that was last started in ``folder`` listened."""
    with suppress(FileNotFoundError):
        for line in (folder / "conf" / "flink-conf.yaml").read_text().splitlines():
            if line.startswith(f"{WORKERS_KEY}: "):
                return int(line.rpartition(":")[2])
    return None


def worker_pids(folder: Path) -> list[int]:
    """Process ids of the Python workers of the cluster in ``folder``. Like all its processes they are in the group of its supervisor; they
    are forked by a process that looks like them, and outlive the pool that had it start them."""
    known = next((part.pid for part in parts(folder) if part.pid), None)
    if known is None:
        return []
    forked = {}
    try:
        group = os.getpgid(known)
    except ProcessLookupError:
        return []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):  # it has ended, or is not ours to look at
            if _FORKED in " ".join(process.cmdline()) and os.getpgid(process.pid) == group:
                forked[process.pid] = process.ppid()
    return sorted(pid for pid, parent in forked.items() if parent in forked)
