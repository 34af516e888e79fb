"""Child processes with a log, a bounded wait until they are ready, and an end that is certain."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from streamgauge.pipelines.services.errors import ServiceError

HOST = "127.0.0.1"
BELOW_EPHEMERAL = range(15_000, 32_000)
GUARD = Path(__file__).with_name("guard.py")
POLL_S = 0.05
KILL_POLL_S = 0.005
DIES_WITHIN_S = 5.0
TAIL_LINES = 15


def free_ports(count: int) -> list[int]:
    """Different TCP ports that nobody listens on at 127.0.0.1 now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind((HOST, 0))
        return [sock.getsockname()[1] for sock in sockets]


def lasting_ports(count: int) -> list[int]:
    """As `free_ports`, below those that the kernel gives to outgoing connections: for servers that go and come back.

    A server's port is free while it is down. From the kernel's range it might go to any client in between, even to the one that tries to reach
    the server: a TCP connection to a port of one's own may connect to itself, and then the server cannot come back.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.sample(BELOW_EPHEMERAL, len(BELOW_EPHEMERAL)):
            sock = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                sock.bind((HOST, port))
                found.append(port)
            if len(found) == count:
                return found
    raise ServiceError(f"There are no {count} free ports between {BELOW_EPHEMERAL[0]} and {BELOW_EPHEMERAL[-1]}.")


def free_port() -> int:
    """A TCP port that nobody listens on at 127.0.0.1 now."""
    return free_ports(1)[0]


def port_open(port: int) -> bool:
    """Whether something accepts connections on 127.0.0.1:`port`."""
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex((HOST, port)) == 0


def http_ok(url: str) -> bool:
    """Whether a GET of `url` answers with a status below 400 within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=2.0):
            return True
    except (urllib.error.URLError, OSError):
        return False


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a text file; empty if there is none."""
    try:
        with path.open(errors="replace") as file:
            return "".join(deque(file, maxlen=lines)).rstrip()
    except OSError:
        return ""


class Service:
    """A child process, its output in a file.

    It dies with the process that started it, even when that one is killed with SIGKILL, unless it is
    `detached`. Use it as a context manager or call `start` and `stop`.

    Args:
        name: for messages.
        command: what to run.
        log_path: file that gets stdout and stderr (started anew).
        ready: polled until it returns true. None: ready when started.
        timeout_s: the bound on that wait, seconds.
        detached: whether it may outlive us.
        grace_s: how long SIGTERM has before SIGKILL, seconds.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_path: Path,
        *,
        ready: Callable[[], bool] | None = None,
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        detached: bool = False,
        grace_s: float = 10.0,
    ) -> None:
        self.name, self.log_path, self.detached = name, log_path, detached
        self._command, self._ready, self._timeout_s = list(command), ready, timeout_s
        self._env, self._cwd, self._grace_s = env, cwd, grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._life_line: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id (of the guard, whose group the command is in, unless detached)."""
        if self._process is None:
            raise ServiceError(f"{self.name} was not started.")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Service:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Service:
        """Start the process and wait until it is ready. Does nothing when it runs.

        Raises:
            ServiceError: it cannot be started, died, or was not ready in time; with its last log lines.
        """
        if self.running:
            return self
        self.stop()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._spawn()
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the whole process group: SIGTERM, after the grace SIGKILL. Does nothing when it is gone."""
        process, self._process = self._process, None
        if process is not None:
            stop_group(process.pid, self._grace_s, lambda: process.poll() is not None)
            process.wait()
        if self._life_line is not None:
            self._life_line.close()
            self._life_line = None

    def _spawn(self) -> None:
        command = self._command
        inherited: tuple[int, ...] = ()
        if not self.detached:
            read_end, write_end = os.pipe()
            self._life_line = os.fdopen(write_end, "wb")
            inherited = (read_end,)
            command = [sys.executable, "-I", "-S", str(GUARD), str(read_end), *command]
        try:
            with self.log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._env,
                    cwd=self._cwd,
                    start_new_session=True,
                    pass_fds=inherited,
                )
        except OSError as error:
            raise ServiceError(f"{self.name} could not be started: {error}") from None
        finally:
            for end in inherited:
                os.close(end)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            died = not self.running
            if not died and (self._ready is None or self._ready()):
                return
            if died:
                code = self._process.returncode if self._process else None
                raise ServiceError(self._failure(f"ended with code {code} before it was ready"))
            if time.monotonic() > deadline:
                raise ServiceError(self._failure(f"was not ready within {self._timeout_s:g} s"))
            time.sleep(POLL_S)

    def _failure(self, what: str) -> str:
        last = tail(self.log_path)
        shown = f"; the last lines:\n{last}" if last else " (empty)."
        return f"{self.name} {what}. Its log is {self.log_path}{shown}"


def stop_group(pid: int, grace_s: float, gone: Callable[[], bool]) -> None:
    """End the process group led by `pid`: SIGTERM, and SIGKILL after `grace_s` seconds unless `gone`."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while not gone() and time.monotonic() < deadline:
            time.sleep(POLL_S)
    kill_group(pid, gone)


def kill_group(pid: int, gone: Callable[[], bool]) -> None:
    """SIGKILL to the process group led by `pid`, and a wait until none of it is left: its leader may be gone before what that started.

    The wait is bounded: a process whose ends nobody collects stays in its group. `gone` collects the leader, if that is a child of ours.
    """
    deadline = time.monotonic() + DIES_WITHIN_S
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(pid, signal.SIGKILL)
            gone()
            time.sleep(KILL_POLL_S)
