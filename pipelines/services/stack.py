"""Local servers that outlive the command that started them: up, down, status.

What runs is recorded in the folder (`NAME.json`), with the process's start time, so that a record
whose process is gone, or whose number now belongs to another process, is noticed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import psutil

from streamgauge.pipelines.services import flink_cluster
from streamgauge.pipelines.services.cache import locked
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink_cluster import FlinkCluster
from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.pipelines.services.process import port_open, stop_group
from streamgauge.pipelines.services.questdb import QuestDbServer
from streamgauge.transforms.files import replace_text

PORTS = {"kafka": 9092, "questdb": 9000, "flink": 8081}
GRACE_S = 15.0
CLOCK_SLACK_S = 1.0


@dataclass(frozen=True)
class Server:
    """The state of one server of a stack.

    `state` is "running", "stopped" or "died" (recorded as running, but its process is gone);
    `started` is in epoch seconds; `ports` by use; `address` is what clients connect to; `parts` are processes of its own that it
    starts again when they die (a Flink cluster's), each with its state in words.
    """

    name: str
    state: str
    pid: int | None = None
    started: float | None = None
    ports: dict[str, int] = field(default_factory=dict)
    address: str | None = None
    log: str | None = None
    parts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """How large a Flink cluster is started: its TaskManagers, and the slots of each."""

    task_managers: int = 1
    slots: int = 2


def up(names: Iterable[str], folder: Path | str, ports: Mapping[str, int] | None = None, sizes: Sizes = Sizes()) -> list[Server]:
    """Start the named servers that do not run yet, and return their states.

    Args:
        names: of "kafka", "questdb" and "flink".
        folder: holds their data, logs and records.
        ports: their ports where not the usual ones (9092, 9000, 8081).
        sizes: of the Flink cluster.

    Raises:
        ServiceError: unknown name, port taken, or a server that does not start.
    """
    base = Path(folder).resolve()
    started = []
    for name in _known(names):
        with locked(base / f".{name}.lock"):
            server = _state(name, base)
            if server.state != "running":
                server = _start(name, base, (ports or {}).get(name), sizes)
            elif ports and ports.get(name, server.ports[name]) != server.ports[name]:
                raise ServiceError(
                    f"{name} already runs on port {server.ports[name]} with its data in {base / name}, not on "
                    f"{ports[name]}. Stop it first (streamgauge stack down {name}), or choose another folder."
                )
            started.append(server)
    return started


def down(names: Iterable[str], folder: Path | str) -> list[Server]:
    """Stop the named servers where they run; their data stays. Returns their states."""
    base = Path(folder).resolve()
    stopped = []
    for name in _known(names):
        if base.exists():
            with locked(base / f".{name}.lock"):
                server = _state(name, base)
                if server.state == "running" and server.pid:
                    stop_group(server.pid, GRACE_S, partial(_gone, psutil.Process(server.pid)))
                    _record(name, base).unlink(missing_ok=True)
                elif server.state == "died":
                    _record(name, base).unlink(missing_ok=True)
        stopped.append(Server(name, "stopped"))
    return stopped


def status(folder: Path | str) -> list[Server]:
    """The state of every server a stack can have."""
    return [_state(name, Path(folder).resolve()) for name in PORTS]


def _known(names: Iterable[str]) -> list[str]:
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in PORTS:
            raise ServiceError(f"There is no server {name!r}; expected one of {', '.join(PORTS)}.")
    return wanted


def _record(name: str, base: Path) -> Path:
    return base / f"{name}.json"


def _state(name: str, base: Path) -> Server:
    try:
        recorded = Server(**json.loads(_record(name, base).read_text()))
    except FileNotFoundError:
        return Server(name, "stopped")
    except (ValueError, TypeError):  # cut short or of another version: nothing we can trust
        return Server(name, "died")
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(recorded.pid)
        same = abs(process.create_time() - (recorded.started or 0.0)) < CLOCK_SLACK_S
        if same and not _gone(process):
            return replace(recorded, parts=_parts(name, base))
    return Server(name, "died", log=recorded.log)


def _gone(process: psutil.Process) -> bool:
    """Whether it has ended; so has a zombie, whose starter has not asked for its code yet."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def _start(name: str, base: Path, port: int | None, sizes: Sizes) -> Server:
    chosen = port or PORTS[name]
    if port_open(chosen):
        raise ServiceError(
            f"Port {chosen}, which {name} should listen on, is taken{_holder(chosen)}. Stop that, or give another port (port=...)."
        )
    server, address, ports = _STARTERS[name](base / name, chosen, sizes)
    server.start()
    pid = server.pid
    assert pid is not None
    created = psutil.Process(pid).create_time()
    state = Server(name, "running", pid, created, ports, address, str(server.log_path))
    replace_text(_record(name, base), json.dumps(asdict(state), indent=2))
    return replace(state, parts=_parts(name, base))


def _kafka(folder: Path, port: int, _: Sizes) -> tuple[KafkaServer, str, dict[str, int]]:
    server = KafkaServer(folder, port, detached=True)
    return server, server.brokers, {"kafka": server.port}


def _questdb(folder: Path, port: int, _: Sizes) -> tuple[QuestDbServer, str, dict[str, int]]:
    server = QuestDbServer(folder, port, detached=True)
    return server, server.url, {"questdb": server.http_port, "postgres": server.pg_port}


def _flink(folder: Path, port: int, sizes: Sizes) -> tuple[FlinkCluster, str, dict[str, int]]:
    server = FlinkCluster(folder, port, task_managers=sizes.task_managers, slots=sizes.slots, detached=True)
    return server, server.address, {"flink": server.rest_port}


_STARTERS: dict[str, Callable[[Path, int, Sizes], tuple[KafkaServer | QuestDbServer | FlinkCluster, str, dict[str, int]]]] = {
    "kafka": _kafka,
    "questdb": _questdb,
    "flink": _flink,
}


def _parts(name: str, base: Path) -> dict[str, str]:
    if name != "flink":
        return {}
    found = {}
    for part in flink_cluster.parts(base / name):
        again = f", started again {part.restarts} times" if part.restarts > 1 else ", started again once" if part.restarts else ""
        found[part.name] = (f"process {part.pid}" if part.pid else "down, starting again") + again
    workers = flink_cluster.worker_pids(base / name)
    if workers:
        found["python workers"] = f"{len(workers)}: " + ", ".join(f"process {pid}" for pid in workers)
    found["logs"] = str(base / name / "logs")
    return found


def _holder(port: int) -> str:
    """Who listens on a port, as far as we may see."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                process = psutil.Process(connection.pid)
                since = time.strftime("%Y-%m-%d %H:%M", time.localtime(process.create_time()))
                return f" by process {connection.pid} ({process.name()}, running since {since})"
    return " by another process"
