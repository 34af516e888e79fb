"""A QuestDB on 127.0.0.1."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from streamgauge.pipelines.services.class_data import ClassData
from streamgauge.pipelines.services.jars import fetch
from streamgauge.pipelines.services.java import java
from streamgauge.pipelines.services.process import HOST, Service, free_ports, http_ok
from streamgauge.pipelines.services.server import JavaServer

START_TIMEOUT_S = 60.0

IDLE_LOOPS = 20
"""How often a QuestDB thread looks for work without a pause before it takes naps of a millisecond. By default it looks 7,000 times, which suits a machine of its own and
takes a third of a core from others here."""

SPLIT_SIZE = "1M"
"""Rows of the last seconds are written again and again, and QuestDB copies what comes behind them, of a partition that is larger than this; by default of the whole of one up to 50 MB."""


class QuestDbServer(JavaServer):
    """One QuestDB: HTTP (SQL and line protocol writes) and the PostgreSQL wire protocol; no telemetry.

    Args:
        folder: QuestDB's root, with configuration, log and tables; a server started on it again has its tables.
        http_port: TCP port of the HTTP server; None takes a free one.
        pg_port: TCP port of the PostgreSQL wire protocol; None takes a free one.
        properties: extra server properties (as in QuestDB's server.conf), which win over ours.
        heap: the JVM's largest heap, as -Xmx takes it; tables live outside of it.
        detached: whether it may outlive the process that starts it.
    """

    def __init__(
        self,
        folder: Path | str,
        http_port: int | None = None,
        pg_port: int | None = None,
        properties: Mapping[str, object] | None = None,
        *,
        heap: str = "512m",
        detached: bool = False,
        progress: bool = True,
    ) -> None:
        super().__init__(folder, "questdb.log")
        spare_http, spare_pg, spare_min = free_ports(3)
        self.http_port, self.pg_port = http_port or spare_http, pg_port or spare_pg
        self._health_port = spare_min
        self._extra, self._heap = dict(properties or {}), heap
        self._detached, self._progress = detached, progress

    @property
    def url(self) -> str:
        """The HTTP server: `/write` and `/exec` are below it."""
        return f"http://{HOST}:{self.http_port}"

    def start(self) -> QuestDbServer:
        """Fetch what is missing, start, wait until SQL is answered.

        Raises:
            ServiceError: with the last log lines.
        """
        if self.running:
            return self
        jars = fetch("questdb", self._progress)
        shared = self._shared = ClassData("questdb", jars, record=not self._detached)
        (self.folder / "conf").mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        lines = [f"{key}={value}\n" for key, value in self.configuration().items()]
        (self.folder / "conf" / "server.conf").write_text("".join(lines))
        environment = {key: value for key, value in os.environ.items() if not key.startswith("QDB_")}
        command = java(
            f"-Xmx{self._heap}",
            f"-Djava.io.tmpdir={temporary}",
            *shared.flags(),
            *("-cp", shared.class_path, "io.questdb.ServerMain", "-d", str(self.folder), "-n"),
        )
        self._service = Service(
            "QuestDB",
            command,
            self.log_path,
            ready=lambda: http_ok(f"{self.url}/exec?query=select%201"),
            timeout_s=START_TIMEOUT_S,
            env={**environment, "QDB_LOG_W_STDOUT_LEVEL": "ERROR,CRITICAL"},
            detached=self._detached,
        )
        self._service.start()
        return self

    def configuration(self) -> dict[str, object]:
        """The server properties that `start` writes."""
        return {
            "http.bind.to": f"{HOST}:{self.http_port}",
            "http.min.net.bind.to": f"{HOST}:{self._health_port}",
            "pg.net.bind.to": f"{HOST}:{self.pg_port}",
            "line.tcp.enabled": "false",
            "line.udp.enabled": "false",
            "telemetry.enabled": "false",
            "shared.worker.count": 2,
            "shared.worker.nap.threshold": IDLE_LOOPS,
            "wal.apply.worker.nap.threshold": IDLE_LOOPS,
            "cairo.o3.partition.split.min.size": SPLIT_SIZE,
            **self._extra,
        }
