"""What a job's folder remembers of its last run: what to resume from, and whether the job file still fits it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from streamgauge.pipelines.compat import compare
from streamgauge.pipelines.job import Job, JobError
from streamgauge.pipelines.replay_point import ReplayError, make_replay_point
from streamgauge.pipelines.reshard import carry_reach, resharded, with_reach, without_reach
from streamgauge.transforms.files import replace_text
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.replay import ReplayPoint
from streamgauge.transforms.state_layout import Layout, read_layouts, write_layouts

_FILE = "run.json"
LAYOUTS = "layouts.json"
"""What the state of the last run is made of; a copy is beside each savepoint."""
REPLAY_POINT = "replay.json"
"""From where the last run read, when it was a replay."""
PASSED = ("passed", "watermark")
"""Kind and name in the job's record: the last watermark that every step was seen to have passed, epoch milliseconds."""


@dataclass(frozen=True)
class Run:
    """A run of a job.

    Attributes:
        job: fingerprint of the job as it ran.
        completed: whether it came to the end of its input.
        flink: HOST:PORT of the cluster; None: embedded.
        job_id: Flink's id. checkpoints: folder of its checkpoints. parallelism: as it ran. All three are known on a cluster only.
        savepoint: path of the savepoint that it was stopped with. restored_from: path of what it started from itself.
    """

    job: str
    completed: bool = False
    flink: str | None = None
    job_id: str | None = None
    checkpoints: str | None = None
    parallelism: int | None = None
    savepoint: str | None = None
    restored_from: str | None = None

    def left(self, restore: Path) -> bool:
        """Whether this savepoint or checkpoint is one of the run's, or what it started from itself."""
        checkpoints = Path(self.checkpoints) / self.job_id if self.checkpoints and self.job_id else None
        known = [path.resolve() for path in (checkpoints, self.newest()) if path is not None]
        return bool({restore.resolve(), restore.resolve().parent} & {*known})

    def newest(self) -> Path | None:
        """What the next run resumes from: the savepoint it was stopped with, else its newest checkpoint, else, when it came to none, what it
        started from itself; None if there is nothing."""
        if self.savepoint is not None:
            return Path(self.savepoint)
        found = newest_checkpoint(Path(self.checkpoints) / self.job_id) if self.checkpoints and self.job_id else None
        return found or (Path(self.restored_from) if self.restored_from else None)


def last_run(folder: Path) -> Run | None:
    """The last run in a job's folder; None if there was none."""
    try:
        return Run(**json.loads((folder / _FILE).read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise JobError(f"{folder / _FILE} was not written by this version; start the job anew with --fresh") from None


def remember(folder: Path, run: Run) -> None:
    """Replaces what is known of the last run."""
    replace_text(folder / _FILE, json.dumps(asdict(run), indent=1))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder/chk-*``."""
    found = [(path.stat().st_mtime_ns, path.parent) for path in folder.glob("chk-*/_metadata")]
    return max(found)[1] if found else None


def local_path(uri: str) -> Path:
    """The path of a ``file:`` URI, or of what is a path already."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)


def start_from(
    job: Job, folder: Path, record: JobRecord, restore: Path, after: Layout, *, own: bool, allow_dropped: bool = False, named_sources: bool, say: Callable[[str], None]
) -> list[Layout]:
    """Has the next run start from a savepoint or checkpoint, if it can, and says what happens to the state.

    Args:
        after: layout of the job as it is now. allow_dropped, named_sources: as for ``compat.compare``.
        own: what is restored is what the last run of the folder left, so that the record tells of it.

    Returns the layouts of the runs that made the state, oldest first, where they are known, and that of the job. Raises JobError.
    """
    earlier: list[Layout] = []
    if (restore / LAYOUTS).exists():
        earlier = read_layouts(restore / LAYOUTS)
    elif (folder / LAYOUTS).exists():
        earlier = read_layouts(folder / LAYOUTS)
        if own:
            earlier[-1] = with_reach(earlier[-1], record)
    if earlier:
        _check_fits(job, restore, earlier[-1], after, allow_dropped=allow_dropped, named_sources=named_sources, say=say)
        after = resharded(earlier[-1], after)
    carry_reach(record, earlier[-1] if earlier else None, after)
    record.keep_reading()
    return [*(without_reach(layout) for layout in earlier), after]


def _check_fits(job: Job, restore: Path, before: Layout, after: Layout, *, allow_dropped: bool, named_sources: bool, say: Callable[[str], None]) -> None:
    changes = compare(before, after, allow_dropped=allow_dropped, named_sources=named_sources)
    refused = [change for change in changes if change.verdict == "refused"]
    if refused:
        lines = "\n".join(f"  {change}" for change in refused)
        raise JobError(f"{job.path}: it has changed since {restore.name} was made, and cannot start from it:\n{lines}\nUndo the change, or start anew with --fresh")
    for change in changes:
        say(f"  {change}")


def start_layouts(folder: Path, layouts: list[Layout]) -> list[str]:
    """Writes down what state a run makes and starts from; returns the Beam options that tell the transforms."""
    write_layouts(folder / LAYOUTS, layouts)
    replay = [f"--replay_point={folder / REPLAY_POINT}"] if (folder / REPLAY_POINT).exists() else []
    return [f"--earlier_layouts={folder / LAYOUTS}", *replay]


def start_anew(folder: Path, record: JobRecord) -> None:
    """Forgets what the last run left."""
    record.clear()
    (folder / REPLAY_POINT).unlink(missing_ok=True)


def start_replay(job: Job, folder: Path, record: JobRecord, say: Callable[[str], None]) -> None:
    """Has the next run read again what the last one had not finished, whatever its state was.

    Raises JobError when there is nothing to replay, or when it could not give the right rows.
    """
    previous = ReplayPoint.load(folder / REPLAY_POINT) if (folder / REPLAY_POINT).exists() else None
    if not record.all("splits") and previous is None:
        raise JobError(f"{job.name}: there is no record of an earlier run in {folder}, so nothing to replay; leave --replay out")
    passed = record.get(*PASSED)
    before = read_layouts(folder / LAYOUTS)[-1] if (folder / LAYOUTS).exists() else None
    try:
        point = make_replay_point(record, job, watermark=passed["watermark"] * 1000 if passed else None, before=before, previous=previous)
    except ReplayError as error:
        raise JobError(f"{job.path}: {error}") from None
    point.save(folder / REPLAY_POINT)
    record.clear(dead_letters=False)
    again = sum(max(split.end - split.start, 0) for split in point.splits.values())
    say(f"{job.name}: replay: {again:,} positions are read again; windows that were complete are left as they are")
    for note in point.notes:
        say(f"  {note}")
