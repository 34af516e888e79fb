"""``scripts/bench --instructions``: machine instructions an event of the kernels, which no other work on the machine changes.

A forked process runs the step while its parent lets it go on instruction by instruction (``PTRACE_SINGLESTEP`` of ptrace(2)) and counts: slow, but it needs neither
hardware counters, which virtual machines seldom have, nor another program. What the interpreter does around the kernels is in it. Addresses are not
randomised, so that hash tables by address are the same in each run.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding

from benchmarks.topic import FIELDS
from streamgauge.transforms.aggregates.exact_sum import sum_doubles
from streamgauge.transforms.formats.columns import Columns
from streamgauge.transforms.formats.fields import fields_of
from streamgauge.transforms.formats.json import Json
from streamgauge.transforms.formats.json_kernel import Keys, parse_rows
from streamgauge.transforms.formats.payloads import MAX_BYTES, prepare
from streamgauge.transforms.groups import group_rows
from streamgauge.transforms.reductions import reduced
from streamgauge.transforms.sources.generator import Generator

BASELINE = Path(__file__).with_name("instructions.json")
"""What an earlier commit had: ``python -m benchmarks.instructions --write``."""

EVENTS = 100
_MOST = 5_000_000
"""Instructions after which a step is given up."""
_NO_RANDOM_ADDRESSES = 0x0040000
_TRACEME, _SINGLESTEP = 0, 9
_STARTED = "STREAMGAUGE_INSTRUCTIONS"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class CannotCountError(RuntimeError):
    """This system does not let a process trace its child."""


def count(step: Callable[[], Any]) -> int:
    """Instructions of one call, the second one: the first one loads and remembers what it needs. Raises CannotCountError."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})  # waking the other one on another processor takes ten times as long as on the same
    try:
        return _count(step)
    finally:
        os.sched_setaffinity(0, processors)


def _count(step: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        try:
            step()
            if _libc.ptrace(_TRACEME, 0, None, None) == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
                step()
                os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    steps = 0
    try:
        while os.WIFSTOPPED(status) and (steps == 0 or os.WSTOPSIG(status) != signal.SIGSTOP):
            if steps > _MOST or _libc.ptrace(_SINGLESTEP, child, None, None):
                raise CannotCountError(f"after {steps:,} instructions: {os.strerror(ctypes.get_errno())}")
            _, status = os.waitpid(child, 0)
            steps += 1
    finally:
        if os.WIFSTOPPED(status):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if not os.WIFSTOPPED(status):
        raise CannotCountError(f"ptrace(2) is not allowed here, or the step ended its process (status {status})")
    return steps


def measure() -> dict[str, float]:
    """Instructions an event by kernel, with what calls it."""
    return {name: round(count(step) / EVENTS, 1) for name, step in kernels(EVENTS).items()}


def kernels(events: int) -> dict[str, Callable[[], Any]]:
    """Those that every event of the workload metrics-1s goes through once it is fetched."""
    source = Generator(Generator.Options(events=events))
    raw = source.open(source.splits()[0], 0).read(events, 2**30, 1.0)
    fields = fields_of(FIELDS)
    keys, columns = Keys.of(fields), Columns(fields)
    lines, offsets, status = prepare(raw, MAX_BYTES)
    out, scratch = columns.room(events, len(lines)), keys.scratch(len(fields))
    parsed = Json(Json.Options(schema=FIELDS)).parse(raw).events
    by, values = [parsed.column("metric"), parsed.column("host")], parsed.column("value")
    groups = group_rows(by, events)
    return {
        "parse JSON": lambda: parse_rows(keys, columns.plan, out, scratch, lines, offsets, status),
        "group by metric and host": lambda: group_rows(by, events),
        "exact sum": lambda: sum_doubles(values, groups),
        "minimum": lambda: reduced("min", values, groups),
    }


def report(found: dict[str, float]) -> None:
    """A line a step, beside the baseline where that is of the same kind of processor (kernels are compiled for the one at hand)."""
    before = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    cpu = llvmlite.binding.get_host_cpu_name()
    known = before.get("instructions", {}) if before.get("cpu") == cpu else {}
    print(f"instructions an event, {EVENTS} events a batch" + ("" if known else f" (no figures of an earlier commit for a {cpu})"))
    for name, value in found.items():
        print(f"{name:36}{value:10,.1f}" + (f"{value / known[name]:8.3f} times {BASELINE.name}" if known.get(name) else ""))


def main(arguments: list[str] | None = None) -> int:
    """A report, never a verdict: 0 also where nothing can be counted."""
    given = sys.argv[1:] if arguments is None else arguments
    if _STARTED not in os.environ and _libc.personality(_NO_RANDOM_ADDRESSES) != -1:
        environment = {**os.environ, _STARTED: "1", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.instructions", *given], environment)
    try:
        found = measure()
    except CannotCountError as error:
        print(f"instructions are not counted: {error}")
        return 0
    report(found)
    if "--write" in given:
        BASELINE.write_text(json.dumps({"cpu": llvmlite.binding.get_host_cpu_name(), "instructions": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
