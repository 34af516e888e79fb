"""Local servers that outlive the command that started them: up, down, status.

What runs is recorded in the folder (`NAME.json`), with the process's start time, so that a record
whose process is gone, or whose number now belongs to another process, is noticed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import psutil

from streamgauge.pipelines.services.cache import locked
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.pipelines.services.process import port_open, stop_group
from streamgauge.pipelines.services.questdb import QuestDbServer

PORTS = {"kafka": 9092, "questdb": 9000}
GRACE_S = 15.0
CLOCK_SLACK_S = 1.0


@dataclass(frozen=True)
class Server:
    """The state of one server of a stack.

    `state` is "running", "stopped" or "died" (recorded as running, but its process is gone);
    `started` is in epoch seconds; `ports` by use; `address` is what clients connect to.
    """

    name: str
    state: str
    pid: int | None = None
    started: float | None = None
    ports: dict[str, int] = field(default_factory=dict)
    address: str | None = None
    log: str | None = None


def up(names: Iterable[str], folder: Path | str, ports: Mapping[str, int] | None = None) -> list[Server]:
    """Start the named servers that do not run yet, and return their states.

    Args:
        names: of "kafka" and "questdb".
        folder: holds their data, logs and records.
        ports: their ports where not the usual ones (9092 and 9000).

    Raises:
        ServiceError: unknown name, port taken, or a server that does not start.
    """
    base = Path(folder).resolve()
    started = []
    for name in _known(names):
        with locked(base / f".{name}.lock"):
            server = _state(name, base)
            if server.state != "running":
                server = _start(name, base, (ports or {}).get(name))
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
            return recorded
    return Server(name, "died", log=recorded.log)


def _gone(process: psutil.Process) -> bool:
    """Whether it has ended; so has a zombie, whose starter has not asked for its code yet."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def _start(name: str, base: Path, port: int | None) -> Server:
    chosen = port or PORTS[name]
    if port_open(chosen):
        raise ServiceError(
            f"Port {chosen}, which {name} should listen on, is taken{_holder(chosen)}. Stop that, or give another port (port=...)."
        )
    server, address, ports = _STARTERS[name](base / name, chosen)
    server.start()
    pid = server.pid
    assert pid is not None
    created = psutil.Process(pid).create_time()
    state = Server(name, "running", pid, created, ports, address, str(server.log_path))
    part = base / f".{name}.json.part"
    part.write_text(json.dumps(asdict(state), indent=2))
    part.replace(_record(name, base))
    return state


def _kafka(folder: Path, port: int) -> tuple[KafkaServer, str, dict[str, int]]:
    server = KafkaServer(folder, port, detached=True)
    return server, server.brokers, {"kafka": server.port}


def _questdb(folder: Path, port: int) -> tuple[QuestDbServer, str, dict[str, int]]:
    server = QuestDbServer(folder, port, detached=True)
    return server, server.url, {"questdb": server.http_port, "postgres": server.pg_port}


_STARTERS: dict[str, Callable[[Path, int], tuple[KafkaServer | QuestDbServer, str, dict[str, int]]]] = {
    "kafka": _kafka,
    "questdb": _questdb,
}


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
