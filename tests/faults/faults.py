"""The kinds of faults: what each does to whom, and how it is undone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.pipelines.services.process import kill_group
from streamgauge.pipelines.services.questdb import QuestDbServer
from tests.faults.proxy import Cut
from tests.faults.target import Scene

Undo = Callable[[], str]
"""Undoes a fault and says how."""


class NotNow(Exception):
    """There is nobody to strike at the moment: an earlier fault is not overcome yet."""


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: as ``--kinds`` takes it. seconds: shortest and longest duration; (0, 0): it is not undone here, the target overcomes it.
        act: (scene, seconds, draw) -> what was done to whom, and how to undo it. ``draw`` chooses among those there are. Raises NotNow.
    """

    name: str
    seconds: tuple[float, float]
    act: Callable[[Scene, float, int], tuple[str, Undo | None]]

    def strike(self, scene: Scene, seconds: float, draw: int, say: Callable[[str], None]) -> Strike:
        """Does it, and undoes it after ``seconds`` in a thread, which ``say``s so. Raises NotNow."""
        done, undo = self.act(scene, seconds, draw)
        return Strike(self.name, done, seconds, undo, say)


class Strike:
    """A fault that was done, until it is undone.

    Attributes:
        done: what was done to whom, a sentence for people.
    """

    def __init__(self, kind: str, done: str, seconds: float, undo: Undo | None, say: Callable[[str], None]) -> None:
        self.kind, self.done = kind, done
        self._undo, self._seconds, self._say = undo, seconds, say
        self._now = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    @property
    def lasts(self) -> bool:
        """Whether it is not undone yet. Raises what went wrong when undoing it."""
        if self._error is not None:
            raise self._error
        return self._thread.is_alive()

    def finish(self) -> None:
        """Undoes it now, if that is not done, and waits for it. Raises what went wrong."""
        self._now.set()
        self._thread.join()
        _ = self.lasts

    def _wait(self) -> None:
        if self._undo is None:
            return
        self._now.wait(self._seconds)
        try:
            self._say(self._undo())
        except BaseException as error:  # for the thread that asks
            self._error = error


def _processes(pids: list[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def _one(pids: list[int], draw: int) -> psutil.Process:
    alive = _processes(sorted(pids))
    if not alive:
        raise NotNow
    return alive[draw % len(alive)]


def _parts(scene: Scene, prefix: str) -> dict[str, int]:
    return {name: pid for name, pid in sorted(scene.target.parts().items()) if name.startswith(prefix)}


def _kill(process: psutil.Process, what: str) -> tuple[str, None]:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
        return f"SIGKILL to {what} (pid {process.pid})", None
    raise NotNow


def _kill_part(prefix: str) -> Callable[[Scene, float, int], tuple[str, None]]:
    def act(scene: Scene, seconds: float, draw: int) -> tuple[str, None]:
        parts = _parts(scene, prefix)
        process = _one(list(parts.values()), draw)
        return _kill(process, next(name for name, pid in parts.items() if pid == process.pid))

    return act


def _kill_worker(scene: Scene, seconds: float, draw: int) -> tuple[str, None]:
    return _kill(_one(scene.target.worker_pids(), draw), "a Python worker")


def _freeze_worker(scene: Scene, seconds: float, draw: int) -> tuple[str, Undo]:
    process = _one(scene.target.worker_pids(), draw)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()

        def undo() -> str:
            # psutil compares the start time too: never another process that has got the number.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
                return f"SIGCONT to the Python worker (pid {process.pid})"
            return f"the frozen Python worker (pid {process.pid}) was ended meanwhile"

        return f"SIGSTOP to a Python worker (pid {process.pid}) for {seconds:.1f} s", undo
    raise NotNow


def _restart(name: str, server_of: Callable[[Scene], KafkaServer | QuestDbServer]) -> Callable[[Scene, float, int], tuple[str, Undo]]:
    def act(scene: Scene, seconds: float, draw: int) -> tuple[str, Undo]:
        server = server_of(scene)
        pid = server.pid
        if pid is None or not server.running:
            raise NotNow
        kill_group(pid, lambda: not server.running)

        def undo() -> str:
            server.start()
            return f"{name} started again (process group {server.pid})"

        return f"SIGKILL to {name} (process group {pid}), to be started again after {seconds:.1f} s", undo

    return act


def _cut_network(scene: Scene, seconds: float, draw: int) -> tuple[str, Undo]:
    ways: tuple[Cut, Cut] = ("refuse", "swallow")
    how = ways[draw % 2]
    hit = scene.proxy.cut(how)

    def undo() -> str:
        scene.proxy.mend()
        return "network to Kafka mended"

    what = {"refuse": "connections reset and refused", "swallow": "packets swallowed"}[how]
    return f"network to Kafka cut for {seconds:.1f} s: {what}, {hit} connections hit", undo


def _fill_disk(scene: Scene, seconds: float, draw: int) -> tuple[str, Undo]:
    """No file can grow: every write of a checkpoint, a log or a spill fails, as on a full disk. (EFBIG in place of ENOSPC.)"""
    parts = _parts(scene, "jobmanager") | _parts(scene, "taskmanager")
    leaders = _processes(list(parts.values()))
    before: list[tuple[psutil.Process, Any]] = []
    for process in [every for leader in leaders for every in (leader, *_children(leader))]:
        with contextlib.suppress(psutil.NoSuchProcess):
            limits = process.rlimit(psutil.RLIMIT_FSIZE)
            process.rlimit(psutil.RLIMIT_FSIZE, (0, limits[1]))
            before.append((process, limits))
    if not before:
        raise NotNow

    def undo() -> str:
        left = 0
        for process, limits in before:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.rlimit(psutil.RLIMIT_FSIZE, limits)
                left += 1
        return f"files may grow again ({left} of {len(before)} processes are still there)"

    pids = ", ".join(str(process.pid) for process, _ in before)
    return f"no file of {', '.join(parts)} can grow for {seconds:.1f} s (pids {pids})", undo


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(process.children(recursive=True))
    return []


_KINDS = (
    Fault("worker-kill", (0, 0), _kill_worker),
    # Longer than the time-outs after which a worker counts as lost, so that it wakes when its replacement has taken over.
    Fault("worker-freeze", (33, 38), _freeze_worker),
    Fault("taskmanager-kill", (0, 0), _kill_part("taskmanager")),
    Fault("jobmanager-kill", (0, 0), _kill_part("jobmanager")),
    Fault("pool-kill", (0, 0), _kill_part("workers")),
    Fault("kafka-restart", (0, 8), _restart("Kafka", lambda scene: scene.kafka)),
    Fault("questdb-restart", (0, 8), _restart("QuestDB", lambda scene: scene.questdb)),
    Fault("disk-full", (8, 12), _fill_disk),
    Fault("network-cut", (8, 12), _cut_network),
)
KINDS = {fault.name: fault for fault in _KINDS}
EMBEDDED = ("kafka-restart", "questdb-restart", "network-cut", "disk-full")
"""What an embedded Flink, which nobody starts again, can be put through."""
