"""Runs a job to its end while faults strike it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink_rest import END_OF_TIME_MS, FlinkRest
from streamgauge.transforms.record import JobRecord
from tests.faults.faults import KINDS, NotNow, Strike
from tests.faults.schedule import Pace, Step
from tests.faults.target import Scene
from tests.running import Command

POLL_S = 0.05
END = {END_OF_TIME_MS: "at the end of time"}
LOOK_AT_FLINK_EVERY_S = 2.0
SHOWN_EXCEPTIONS, SHOWN_LINES, SHOWN_CHARACTERS = 3, 6, 3_000


@dataclass
class Outcome:
    """What happened.

    Attributes:
        strikes: the faults that struck. seconds: from the start of the command to its end. restarts: of the job by Flink, as far as it told.
        failure: why the run proves nothing: the job failed, took too long, or ended before every fault had struck; with Flink's state
            and last exceptions. None: the job ended well.
    """

    strikes: list[Strike] = field(default_factory=list)
    seconds: float = 0.0
    restarts: int = 0
    failure: str | None = None


def drive(
    scene: Scene, command: Command, record_folder: Path, steps: Sequence[Step], total: int, limit_s: float, say: Callable[[str], None]
) -> Outcome:
    """Strikes at the job that ``command`` runs, until it ends by itself. When this returns every fault is undone.

    Args:
        record_folder: of the job. total: number of records that it reads. limit_s: for all of it, seconds. say: gets a line for each fault.

    Raises what failed when a fault was undone: a server that does not start again.
    """
    outcome = Outcome()
    pace, record, flink = Pace(steps, total), JobRecord(record_folder), _Restarts(scene)
    read = 0

    def tell(text: str) -> None:
        say(f"{command.seconds:6.1f} s {100 * read / max(total, 1):5.1f} %  {text}")

    def strike(step: Step) -> None:
        try:
            outcome.strikes.append(KINDS[step.kind].strike(scene, step.seconds, step.draw, tell))
        except NotNow:
            return
        tell(f"{step.kind}: {outcome.strikes[-1].done}")
        pace.struck(time.monotonic())

    try:
        while command.running() and command.seconds < limit_s:
            read = progress(record, read)
            step = pace.due(time.monotonic(), read)
            lasting = {each.kind for each in outcome.strikes if each.lasts}
            if step is not None and step.kind not in lasting:
                strike(step)
            flink.look()
            time.sleep(POLL_S)
        outcome.seconds, outcome.restarts = command.seconds, flink.count
        if (why := _failure(command, pace)) is not None:
            outcome.failure = f"{why}\n{_diagnosis(scene, command, record)}"
        else:
            tell("the job has ended")
    finally:
        with ExitStack() as stack:  # each of them, even when one fails
            for each in outcome.strikes:
                stack.callback(each.finish)
    return outcome


def _failure(command: Command, pace: Pace) -> str | None:
    if command.running():
        return f"the job has not ended in {command.seconds:.0f} s"
    if (code := command.wait()) != 0:
        return f"the job ended with {code}"
    if pace.left:
        return f"the job ended before {', '.join(step.kind for step in pace.left)} could strike"
    return None


def progress(record: JobRecord, otherwise: int) -> int:
    """Records read, of all splits; ``otherwise`` while a job that starts clears its record."""
    try:
        return sum(values["position"] - values["start"] for values in record.all("splits"))
    except (OSError, ValueError):
        return otherwise


class _Restarts:
    """Counts the failures that Flink tells of. A JobManager forgets them when it dies: hence the union of what was told."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._seen: set[tuple[int, str]] = set()
        self._looked = time.monotonic()

    @property
    def count(self) -> int:
        return len(self._seen)

    def look(self) -> None:
        if time.monotonic() - self._looked >= LOOK_AT_FLINK_EVERY_S:
            self._seen.update((int(each["timestamp"]), str(each["exceptionName"])) for each in _exceptions(self._scene))
            self._looked = time.monotonic()


def _exceptions(scene: Scene) -> list[dict[str, Any]]:
    """Of the newest job; none while nobody answers."""
    try:
        flink = FlinkRest(scene.target.rest_url)
        jobs = sorted(flink.jobs(), key=lambda job: int(job["start-time"]))
        return flink.exceptions(jobs[-1]["jid"]) if jobs else []
    except (ServiceError, ValueError):  # an address that is not known yet is no URL
        return []


def _diagnosis(scene: Scene, command: Command, record: JobRecord) -> str:
    lines = [f"  {name}: pid {pid}" for name, pid in scene.target.parts().items()] + [f"  workers: {scene.target.worker_pids()}"]
    try:
        flink = FlinkRest(scene.target.rest_url)
        for job in flink.jobs():
            lines.append(f"  job {job['name']}: {job['state']}, tasks {job['tasks']}")
            watermarks = flink.watermarks(job["jid"])
            lines += [f"    {vertex.replace(chr(10), ' ')[:120]}: watermark {END.get(value, value)}" for vertex, value in watermarks.items()]
    except (ServiceError, ValueError) as error:
        lines.append(f"  {error}")
    for failure in _exceptions(scene)[:SHOWN_EXCEPTIONS]:
        trace = str(failure["stacktrace"]).strip().splitlines()
        causes = [line for line in trace if line.startswith("Caused by")]
        lines += [f"  at {failure['timestamp']}:", *(f"    {line[:300]}" for line in [*trace[:2], *causes, *trace[-SHOWN_LINES:]])]
    lines += [f"  {values['split']}: position {values['position']}, done {values['done']}" for values in record.all("splits")]
    return "\n".join([*lines, "  the command said:", (command.out + command.err)[-SHOWN_CHARACTERS:]])
