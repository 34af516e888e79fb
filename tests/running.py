"""``streamgauge`` commands as processes of their own, watched until nothing of them is left: for tests from end to end."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 240.0
"""Seconds after which something that should happen counts as not happening."""

_MARK = "STREAMGAUGE_TEST_RUN"
_CLASS_DATA = "class_archive.py"


def until(reached: Callable[[], Any], what: str, seconds: float = PATIENCE, *, of: Command | None = None) -> Any:
    """What ``reached`` returns, once it is true; fails at once when the command that should bring it about has ended."""
    deadline = time.monotonic() + seconds
    while not (result := reached()):
        assert time.monotonic() < deadline, f"in {seconds:g} s it did not happen that {what}"
        assert of is None or of.running() or reached(), f"the command ended before {what}: {of.out[-2000:]}{of.err[-2000:]}"
        time.sleep(0.02)
    return result


class Command:
    """``streamgauge ARGUMENTS`` in ``folder``, in a session of its own; a context manager that ends what is left of it."""

    def __init__(self, folder: Path, *arguments: str | Path) -> None:
        self._mark = uuid.uuid4().hex
        self._out, self._err = folder / f"{self._mark}.out", folder / f"{self._mark}.err"
        self.began = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamgauge.pipelines.cli", *map(str, arguments)],
                cwd=folder, env={**os.environ, _MARK: self._mark}, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes():
            process.kill()
        self.process.wait()

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def lines(self) -> list[str]:
        """What it said to people: all but the lines of progress, which are indented."""
        return [line for line in (self.out + self.err).splitlines() if not line.startswith("  ")]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def running(self) -> bool:
        return self.process.poll() is None

    def send(self, number: int) -> None:
        """A signal to the command alone, as a shell's ``kill`` does."""
        self.process.send_signal(number)

    def kill_group(self) -> None:
        """SIGKILL to its whole process group: nobody can clean up."""
        os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end in {seconds:g} s: {self.out[-2000:]}{self.err[-2000:]}") from None

    def processes(self) -> list[psutil.Process]:
        """Every process that inherited its environment, in whatever session; not what writes class data for the next start."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark and not any(_CLASS_DATA in part or part == "-Xshare:dump" for part in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def ports(self) -> set[int]:
        """The TCP ports that its processes listen on."""
        found = set()
        for process in self.processes():
            try:
                found |= {each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
            except psutil.Error:
                continue
        return found

    def left_nothing(self, ports: set[int], seconds: float = 20.0) -> bool:
        """Whether all of its processes have ended and nobody listens on its ports; what was ended by a signal has a moment for that."""
        deadline = time.monotonic() + seconds
        while self.processes() or _listening(ports):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def _listening(ports: set[int]) -> set[int]:
    """Which of the ports somebody listens on: a process that is ending has lost its environment before its sockets."""
    return ports & {each.laddr.port for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN}


def stored(path: Path, query: str) -> list[tuple[Any, ...]]:
    """Rows of an SQLite file that may still be written; none while it or its table is not there yet."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            return connection.execute(query).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error) or "locked" in str(error):
                return []
            raise
