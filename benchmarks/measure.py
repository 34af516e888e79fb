"""Runs a contender as processes of its own and accounts for all of them: CPU seconds, peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from streamgauge.transforms.record import JobRecord

SAMPLE_SECONDS = 0.2


@dataclass(frozen=True)
class Figures:
    """One row of the report. ``seconds``: from the first record read to the last result stored; ``cpu_s``: of all processes, from their start."""

    workload: str
    contender: str
    events: int
    seconds: float
    events_per_s: float
    cpu_s: float
    events_per_cpu_s: float
    peak_rss_mb: float
    correct: bool

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class ContenderFailed(RuntimeError):
    """The contender ended with an error; the message has what it printed last."""


def run(command: list[str], log: Path) -> tuple[dict[str, Any], float, float]:
    """(what it printed as its last line of JSON, CPU seconds, peak MB) of a command and all its descendants."""
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
    sampler = _Sampler(process.pid)
    sampler.start()
    assert process.stdout is not None
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    sampler.stop()
    if process.returncode:
        raise ContenderFailed(f"{' '.join(command)} ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}")
    # Descendants that were waited for are in the usage; those that were not, in the samples.
    cpu = max(usage.ru_utime + usage.ru_stime, sampler.cpu_s)
    return json.loads(output.strip().splitlines()[-1]), cpu, sampler.peak_mb


def seconds_of(record: Path) -> float:
    """From the first record read to the last row stored, by the record of a job of ours."""
    found = JobRecord(record)
    return float(max(sink["updated"] for sink in found.all("sinks")) - min(split["opened"] for split in found.all("splits")))


class _Sampler(threading.Thread):
    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self._cpu: dict[int, float] = {}
        self.peak_mb = 0.0

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu.values())

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            memory = 0.0
            for process in self._all():
                try:
                    times = process.cpu_times()
                    self._cpu[process.pid] = times.user + times.system
                    memory += process.memory_info().rss / 2**20
                except psutil.Error:
                    continue
            self.peak_mb = max(self.peak_mb, memory)

    def _all(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return []

    def stop(self) -> None:
        self._ended.set()
        self.join()
