"""Keeps processes running: ``python supervisor.py FILE`` starts what the file lists and starts again what ends.

Standard library only, since it may be the only process that is not killed in a test, and must start at once. What runs is
written to the file's ``status`` path on every change. SIGTERM ends all parts, last started first, and then itself; the
parts are in its process group, so that killing the group leaves nothing.

Format of FILE (JSON): ``{"status": PATH, "parts": [{"name", "command": [...], "log": PATH, "env": {...}, "last": bool}, ...], "after": [...] or null}``.
A part that is ``last`` does not hear the SIGTERM that its group gets, and is killed when all others have ended. Then the command
``after`` is started, which outlives the supervisor.
Format of the status: ``{NAME: {"pid": int or null, "started": epoch seconds, "restarts": int, "code": last exit code or null}}``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

POLL_S = 0.1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
STEADY_S = 60.0
"""A part that ran for so long starts again without much of a pause."""
GRACE_S = 8.0
LOG_BYTES = 50 * 2**20
"""A log that is longer when its part starts again is moved aside."""


class Part:
    """One process that shall run."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name: str = spec["name"]
        self._command: list[str] = spec["command"]
        self._log = Path(spec["log"])
        self._env = {**os.environ, **spec.get("env", {})}
        self._last: bool = spec.get("last", False)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._code: int | None = None
        self._pause = FIRST_PAUSE_S
        self._due = 0.0
        self._starts = 0

    def step(self) -> bool:
        """Notes an end, starts what is due; whether anything changed."""
        now = time.monotonic()
        if self._process is not None:
            if self._process.poll() is None:
                return False
            self._code = self._process.returncode
            self._process = None
            self._pause = FIRST_PAUSE_S if now - self._started > STEADY_S else min(self._pause * 2, LONGEST_PAUSE_S)
            self._due = now + self._pause
            return True
        if now < self._due:
            return False
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES:
            self._log.replace(self._log.with_name(f"{self._log.name}.1"))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self._env, preexec_fn=_deaf if self._last else None
            )
        self._started, self._starts = now, self._starts + 1
        return True

    def state(self) -> dict[str, Any]:
        running = self._process is not None
        return {
            "pid": self._process.pid if self._process else None,
            "started": time.time() - (time.monotonic() - self._started) if running else None,
            "restarts": max(self._starts - 1, 0),
            "code": self._code,
        }

    def terminate(self) -> None:
        if self._process is not None and not self._last:
            self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Its end, by force after ``seconds``."""
        if self._process is not None:
            try:
                self._process.wait(0.0 if self._last else seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def main() -> int:
    config = json.loads(Path(sys.argv[1]).read_text())
    parts = [Part(spec) for spec in config["parts"]]
    status = Path(config["status"])
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    while not asked:
        changed = [part.step() for part in parts]
        if any(changed):
            _write(status, parts)
        time.sleep(POLL_S)
    for part in reversed(parts):
        part.terminate()
    deadline = time.monotonic() + GRACE_S
    for part in reversed(parts):  # what is last stands first
        part.wait(max(deadline - time.monotonic(), 0.0))
    if config.get("after"):
        subprocess.Popen(config["after"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    return 0


def _deaf() -> None:
    """A JVM that finds SIGTERM ignored leaves it so."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _write(path: Path, parts: list[Part]) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(json.dumps({part.name: part.state() for part in parts}))
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main())
