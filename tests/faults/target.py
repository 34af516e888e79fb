"""What faults strike at: a Flink cluster of separate processes, behind a protocol, and the servers beside it."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil

from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.pipelines.services.questdb import QuestDbServer
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from streamgauge.pipelines.services.flink_cluster import FlinkCluster


class Target(Protocol):
    """A Flink cluster. Whoever dies is started again by a supervisor of its own."""

    @property
    def rest_url(self) -> str:
        """Of the leading JobManager."""

    def parts(self) -> dict[str, int]:
        """Name (zookeeper, jobmanager, taskmanager-1, ..., workers) -> pid of its main process, of the parts that run now."""

    def worker_pids(self) -> list[int]:
        """The Python workers that run now."""


@dataclass(frozen=True)
class Scene:
    """All there is to strike at. Clients of Kafka that shall feel cuts of the network go through ``proxy``."""

    target: Target
    kafka: KafkaServer
    questdb: QuestDbServer
    proxy: Proxy


class Embedded:
    """The embedded Flink of a ``streamgauge run``: one JVM without a supervisor, so it can be hindered, not killed.

    Args:
        pid: of the command. folder: the job's (``.streamgauge/jobs/NAME``).
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self._pid, self._folder = pid, folder

    @property
    def rest_url(self) -> str:
        """Empty until Flink was configured."""
        with contextlib.suppress(OSError):
            found = re.search(r"^rest\.port: (\d+)$", (self._folder / "flink/conf/flink-conf.yaml").read_text(), re.MULTILINE)
            return f"http://127.0.0.1:{found[1]}" if found else ""
        return ""

    def parts(self) -> dict[str, int]:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self._pid).children(recursive=True):
                if process.name() == "java":
                    return {"jobmanager": process.pid}
        return {}

    def worker_pids(self) -> list[int]:
        return []


class Standalone:
    """A cluster of processes."""

    def __init__(self, cluster: FlinkCluster) -> None:
        self._cluster = cluster

    @property
    def rest_url(self) -> str:
        return self._cluster.rest_url

    def parts(self) -> dict[str, int]:
        return {part.name: part.pid for part in self._cluster.parts() if part.pid is not None}

    def worker_pids(self) -> list[int]:
        return self._cluster.worker_pids()
