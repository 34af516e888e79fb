"""The faults themselves, on processes that do nothing, and the proxy."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from streamgauge.pipelines.services.process import HOST, Service, free_port, port_open
from tests.faults.faults import KINDS, NotNow, Strike
from tests.faults.proxy import Proxy
from tests.faults.target import Scene

LONG_S, PATIENCE_S = 100.0, 20.0
WRITER = """
import sys, time
while True:
    time.sleep(0.01)
    try:
        with open(sys.argv[1], "wb") as file:
            file.write(b"x")
    except OSError:
        open(sys.argv[2], "wb").close()
"""


@dataclass
class Parts:
    """A cluster of processes that sleep."""

    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    rest_url: str = ""

    def start(self, name: str, code: str = "import time; time.sleep(1000)", *arguments: str) -> psutil.Process:
        self.running[name] = subprocess.Popen([sys.executable, "-c", code, *arguments])
        return psutil.Process(self.running[name].pid)

    def parts(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.running.items() if process.poll() is None and not name.startswith("python")}

    def worker_pids(self) -> list[int]:
        return [process.pid for name, process in self.running.items() if process.poll() is None and name.startswith("python")]


class Server:
    """Stands for Kafka or QuestDB."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-c", f"import socket, time; s = socket.create_server(('{HOST}', {self.port})); time.sleep(1000)"]
        self._service = Service("test", command, folder / "log", ready=lambda: port_open(self.port))

    @property
    def pid(self) -> int:
        return self._service.pid

    @property
    def running(self) -> bool:
        return self._service.running

    def start(self) -> None:
        self._service.start()

    def stop(self) -> None:
        self._service.stop()


@pytest.fixture
def target() -> Iterator[Parts]:
    parts = Parts()
    yield parts
    for process in parts.running.values():
        process.kill()
        process.wait()


@pytest.fixture
def scene(target: Parts, tmp_path: Path) -> Iterator[Scene]:
    kafka = Server(tmp_path)
    kafka.start()
    with Proxy(kafka.port, free_port()) as proxy:
        yield Scene(target, cast(Any, kafka), cast(Any, kafka), proxy)
    kafka.stop()


class Said(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def strike(kind: str, scene: Scene, draw: int = 0, seconds: float = LONG_S, said: Said | None = None) -> Strike:
    return KINDS[kind].strike(scene, seconds, draw, Said() if said is None else said)


def until(reached: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize(
    ("kind", "name"), [("worker-kill", "python"), ("taskmanager-kill", "taskmanager-1"), ("jobmanager-kill", "jobmanager"), ("pool-kill", "workers")]
)
def test_a_kill_kills_whom_it_says_and_nobody_else(scene: Scene, target: Parts, kind: str, name: str) -> None:
    for each in ("zookeeper", "jobmanager", "taskmanager-1", "workers", "python"):
        target.start(each)
    done = strike(kind, scene)
    victim = target.running[name]
    assert done.done.startswith("SIGKILL") and f"(pid {victim.pid})" in done.done
    assert victim.wait(PATIENCE_S) == -9
    assert [each for each, process in target.running.items() if process.poll() is not None] == [name]
    done.finish()


def test_the_draw_chooses_the_victim(scene: Scene, target: Parts) -> None:
    pids = sorted(target.start(f"taskmanager-{number}").pid for number in range(3))
    assert f"(pid {pids[1]})" in strike("taskmanager-kill", scene, draw=4).done


@pytest.mark.parametrize("kind", ["worker-kill", "worker-freeze", "taskmanager-kill", "jobmanager-kill", "pool-kill", "disk-full"])
def test_when_nobody_is_there_it_is_not_now(scene: Scene, kind: str) -> None:
    with pytest.raises(NotNow):
        strike(kind, scene)


def test_a_frozen_worker_wakes(scene: Scene, target: Parts) -> None:
    worker, said = target.start("python"), Said()
    done = strike("worker-freeze", scene, said=said)
    assert until(lambda: worker.status() == psutil.STATUS_STOPPED)
    assert done.lasts
    done.finish()
    assert until(lambda: worker.status() != psutil.STATUS_STOPPED)
    assert said == [f"SIGCONT to the Python worker (pid {worker.pid})"]
    assert not done.lasts


def test_a_fault_undoes_itself(scene: Scene, target: Parts) -> None:
    worker, said = target.start("python"), Said()
    done = strike("worker-freeze", scene, seconds=0.1, said=said)
    assert until(lambda: not done.lasts)
    assert said and worker.status() != psutil.STATUS_STOPPED


def test_a_frozen_worker_may_be_killed_meanwhile(scene: Scene, target: Parts) -> None:
    target.start("python")
    said = Said()
    done = strike("worker-freeze", scene, said=said)
    target.running["python"].kill()
    target.running["python"].wait()
    done.finish()
    assert "was ended meanwhile" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kafka-restart", "questdb-restart"])
def test_a_server_is_killed_and_started_on_its_port(scene: Scene, kind: str) -> None:
    before = scene.kafka.pid
    done = strike(kind, scene)
    assert f"(process group {before})" in done.done
    assert not scene.kafka.running and not port_open(scene.kafka.port)
    with pytest.raises(NotNow):
        strike(kind, scene)
    done.finish()
    assert scene.kafka.running and port_open(scene.kafka.port)
    assert scene.kafka.pid != before


@pytest.mark.slow
def test_a_server_that_does_not_start_again_is_an_error(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("it is broken")

    done = strike("kafka-restart", scene)
    monkeypatch.setattr(scene.kafka, "start", fail)
    with pytest.raises(RuntimeError, match="it is broken"):
        done.finish()


def test_a_full_disk_lets_no_file_grow(scene: Scene, target: Parts, tmp_path: Path) -> None:
    written, failed = tmp_path / "written", tmp_path / "failed"
    target.start("taskmanager-1", WRITER, str(written), str(failed))
    target.start("workers")
    assert until(written.exists) and not failed.exists()
    done = strike("disk-full", scene)
    assert "taskmanager-1" in done.done and "workers" not in done.done
    assert until(failed.exists)
    done.finish()
    assert until(lambda: written.stat().st_size == 1)


@pytest.mark.parametrize("draw", [0, 1])
def test_the_network_is_cut_and_mended(scene: Scene, draw: int) -> None:
    said = Said()
    done = strike("network-cut", scene, draw=draw, said=said)
    assert ("refused" if draw == 0 else "swallowed") in done.done
    assert port_open(scene.proxy.port) == (draw == 1)
    done.finish()
    assert port_open(scene.proxy.port)
    assert said == ["network to Kafka mended"]


def test_no_thread_is_left(scene: Scene) -> None:
    before = threading.active_count()
    strike("network-cut", scene).finish()
    assert until(lambda: threading.active_count() <= before)
