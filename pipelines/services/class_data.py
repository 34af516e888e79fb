"""Class data sharing (AppCDS): servers start in half the time from the second start on.

The first server of a kind lists the classes that its processes load. When it has stopped, a process of
low priority writes them into an archive in the cache, which the next ones map into memory. The JVM
checks itself that the archive fits (Java, class path, jars) and goes without it otherwise.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from streamgauge.pipelines.services.cache import cache_folder
from streamgauge.pipelines.services.jars import class_path
from streamgauge.pipelines.services.java import java, java_version

WRITER = Path(__file__).with_name("class_archive.py")
# A list of classes that nobody has added to for so long (seconds) is from a server that was killed.
ABANDONED_S = 300.0


class ClassData:
    """The shared classes of one server.

    Args:
        name: of the server, part of the archive's name.
        jars: its class path, which `class_path` then holds.
        record: whether to make the archive if there is none; the caller then calls `finish`, or runs `writer`, after the server's end.
    """

    def __init__(self, name: str, jars: list[Path], record: bool = True) -> None:
        self.class_path = class_path(jars)
        digest = hashlib.sha256(f"{java_version()} {self.class_path}".encode()).hexdigest()[:16]
        self._archive = cache_folder() / "classes" / f"{name}-{digest}.jsa"
        self._list: Path | None = None
        if record and not self._archive.exists() and not self._recording():
            self._archive.parent.mkdir(parents=True, exist_ok=True)
            self._list = self._archive.with_suffix(f".list.{os.getpid()}")

    def _recording(self) -> bool:
        """Whether another server records now, or its archive is being written."""
        newest = time.time() - ABANDONED_S
        return any(path.stat().st_mtime > newest for path in self._archive.parent.glob(f"{self._archive.stem}.list.*"))

    def use(self) -> list[str]:
        """JVM flags that use the archive if there is one."""
        return [f"-XX:SharedArchiveFile={self._archive}", "-Xshare:auto"] if self._archive.exists() else []

    def flags(self, process: str = "main") -> list[str]:
        """JVM flags that use the archive, or list the classes for one; `process` tells those of a server apart."""
        return [f"-XX:DumpLoadedClassList={self._list}.{process}"] if self._list else self.use()

    def writer(self) -> list[str] | None:
        """The command that writes the archive (5 to 15 seconds of one core) from what was listed; None where nothing is."""
        if self._list is None:
            return None
        part = self._archive.with_suffix(f".part.{os.getpid()}")
        command = java(
            "-Xshare:dump",
            f"-XX:SharedClassListFile={self._list}",
            f"-XX:SharedArchiveFile={part}",
            *("-cp", self.class_path),
        )
        return [sys.executable, "-I", "-S", str(WRITER), str(self._list), str(part), str(self._archive), *command]

    def finish(self) -> None:
        """After the server's end: have the archive written, in the background."""
        command, self._list = self.writer(), None
        if command is None:
            return
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
