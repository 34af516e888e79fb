"""A one-node Kafka (KRaft) on 127.0.0.1."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from streamgauge.pipelines.services.class_data import ClassData
from streamgauge.pipelines.services.jars import fetch
from streamgauge.pipelines.services.java import java, run_java
from streamgauge.pipelines.services.process import HOST, Service, free_port, free_ports, port_open
from streamgauge.pipelines.services.server import JavaServer

START_TIMEOUT_S = 60.0
NODE_ID = 1

LOG4J = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


class KafkaServer(JavaServer):
    """One broker that is its own controller; topics have one replica and are created on first use.

    Args:
        folder: gets configuration, log and data; a server started on it again has its topics.
        port: TCP port of the broker; None takes a free one.
        properties: extra server properties, which win over ours (limits, retention and so on).
        heap: the JVM's largest heap, as -Xmx takes it.
        detached: whether it may outlive the process that starts it.
    """

    def __init__(
        self,
        folder: Path | str,
        port: int | None = None,
        properties: Mapping[str, object] | None = None,
        *,
        heap: str = "512m",
        detached: bool = False,
        progress: bool = True,
    ) -> None:
        super().__init__(folder, "kafka.log")
        self.port = port or free_port()
        self._extra, self._heap = dict(properties or {}), heap
        self._detached, self._progress = detached, progress

    @property
    def brokers(self) -> str:
        """The bootstrap address, "127.0.0.1:PORT"."""
        return f"{HOST}:{self.port}"

    def start(self) -> KafkaServer:
        """Fetch what is missing, format the folder the first time, start, wait until ready.

        Raises:
            ServiceError: with the last log lines.
        """
        if self.running:
            return self
        shared = self._shared = ClassData("kafka", fetch("kafka", self._progress), record=not self._detached)
        self.folder.mkdir(parents=True, exist_ok=True)
        config, log4j = self.folder / "server.properties", self.folder / "log4j2.properties"
        log4j.write_text(LOG4J)
        config.write_text("".join(f"{key}={value}\n" for key, value in self.configuration().items()))
        base = ["-Xmx" + self._heap, f"-Dlog4j2.configurationFile={log4j}", "-Djava.net.preferIPv4Stack=true"]
        class_path = ["-cp", shared.class_path]
        if not (self.folder / "data" / "meta.properties").exists():
            cluster = str(uuid.uuid4())
            tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster, "-c", str(config)]
            run_java(*base, "-XX:TieredStopAtLevel=1", *shared.use(), *class_path, *tool)
        self._service = Service(
            "Kafka",
            java(*base, *shared.flags(), *class_path, "kafka.Kafka", str(config)),
            self.log_path,
            ready=lambda: port_open(self.port),
            timeout_s=START_TIMEOUT_S,
            detached=self._detached,
        )
        self._service.start()
        return self

    def configuration(self) -> dict[str, object]:
        """The server properties that `start` writes."""
        controller = free_ports(1)[0]
        return {
            "process.roles": "broker,controller",
            "node.id": NODE_ID,
            "controller.quorum.voters": f"{NODE_ID}@{HOST}:{controller}",
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": self.folder / "data",
            "num.partitions": 4,
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "log.cleaner.dedupe.buffer.size": 16777216,
            **self._extra,
        }
