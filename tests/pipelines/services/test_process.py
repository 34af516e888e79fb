"""Child processes: readiness, messages, and an end in every case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from streamgauge.pipelines.services import ServiceError
from streamgauge.pipelines.services.process import BELOW_EPHEMERAL, Service, free_port, free_ports, lasting_ports, port_open

SLEEP = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]


def wait_until(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_ready_by_port_and_stop(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with Service("Web", command, tmp_path / "log", ready=lambda: port_open(port), cwd=tmp_path) as service:
        assert service.running and port_open(port)
        family = [service.pid, *(child.pid for child in psutil.Process(service.pid).children(recursive=True))]
        assert len(family) == 2
    assert not service.running and not port_open(port)
    assert wait_until(lambda: all(map(gone, family)))


def test_not_ready_in_time_shows_the_log_and_stops(tmp_path: Path) -> None:
    log = tmp_path / "log"
    service = Service("Sleeper", SLEEP, log, ready=lambda: False, timeout_s=0.5)
    with pytest.raises(ServiceError, match=r"(?s)Sleeper was not ready within 0.5 s\. Its log is .*last lines:\nup"):
        service.start()
    assert not service.running


def test_death_before_ready_shows_code_and_log(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-c", "print('no such setting'); raise SystemExit(3)"]
    with pytest.raises(ServiceError, match=r"(?s)ended with code 3 before it was ready.*no such setting"):
        Service("Short", command, tmp_path / "log", ready=lambda: False).start()


@pytest.mark.parametrize("detached", [False, True])
def test_a_command_that_is_not_there(tmp_path: Path, detached: bool) -> None:
    with pytest.raises(ServiceError, match=r"Nothing .*not"):
        Service("Nothing", ["/no/such/command"], tmp_path / "log", ready=lambda: False, detached=detached).start()


def test_sigterm_ignored_is_killed_after_the_grace(tmp_path: Path) -> None:
    log = tmp_path / "log"
    service = Service("Stubborn", STUBBORN, log, ready=lambda: "up" in log.read_text(), grace_s=0.3).start()
    (child,) = psutil.Process(service.pid).children()
    service.stop()
    assert wait_until(lambda: gone(child.pid))


@pytest.mark.parametrize("in_thread", [False, True], ids=["main-thread", "thread-that-ended"])
def test_child_dies_with_its_killed_parent_but_not_with_a_thread(tmp_path: Path, in_thread: bool) -> None:
    code = f"""
import pathlib, psutil, threading, time
from streamgauge.pipelines.services.process import Service
service = Service("S", {STUBBORN!r}, pathlib.Path({str(tmp_path / "log")!r}))
if {in_thread}:
    thread = threading.Thread(target=service.start); thread.start(); thread.join()
else:
    service.start()
time.sleep(0.5)
assert service.running
print(service.pid, *[c.pid for c in psutil.Process(service.pid).children()], flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pids = [int(part) for part in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: all(map(gone, pids)))


def test_command_dies_with_its_guard(tmp_path: Path) -> None:
    service = Service("S", STUBBORN, tmp_path / "log", ready=(tmp_path / "log").read_text)
    service.start()
    (child,) = psutil.Process(service.pid).children()
    os.kill(service.pid, signal.SIGKILL)
    assert wait_until(lambda: gone(child.pid))
    service.stop()


def test_detached_outlives_its_starter(tmp_path: Path) -> None:
    code = f"""
import pathlib
from streamgauge.pipelines.services.process import Service
print(Service("S", {SLEEP!r}, pathlib.Path({str(tmp_path / "log")!r}), detached=True).start().pid)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pid = int(subprocess.check_output([sys.executable, "-c", code], env=environment))
    try:
        time.sleep(0.2)
        assert not gone(pid)
    finally:
        os.killpg(pid, signal.SIGKILL)


def test_free_ports_differ() -> None:
    assert len(set(free_ports(50))) == 50


def test_ports_are_different_and_not_the_kernels() -> None:
    ports = lasting_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) <= BELOW_EPHEMERAL[-1]
