"""What a job's folder remembers of its last run: what to resume from, and whether the job file still fits it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from streamgauge.pipelines.job import Job, JobError

_FILE = "run.json"


@dataclass(frozen=True)
class Run:
    """A run of a job.

    Attributes:
        job: fingerprint of the job as it ran.
        completed: whether it came to the end of its input.
        flink: HOST:PORT of the cluster; None: embedded.
        job_id: Flink's id. checkpoints: folder of its checkpoints. parallelism: as it ran. All three are known on a cluster only.
        savepoint: path of the savepoint that it was stopped with.
    """

    job: str
    completed: bool = False
    flink: str | None = None
    job_id: str | None = None
    checkpoints: str | None = None
    parallelism: int | None = None
    savepoint: str | None = None

    def newest(self) -> Path | None:
        """What the next run resumes from: the savepoint it was stopped with, else its newest checkpoint; None if there is neither."""
        if self.savepoint is not None:
            return Path(self.savepoint)
        return newest_checkpoint(Path(self.checkpoints) / self.job_id) if self.checkpoints and self.job_id else None


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
    unfinished = folder / f".{_FILE}.part"
    unfinished.write_text(json.dumps(asdict(run), indent=1))
    unfinished.replace(folder / _FILE)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder/chk-*``."""
    found = [(path.stat().st_mtime_ns, path.parent) for path in folder.glob("chk-*/_metadata")]
    return max(found)[1] if found else None


def local_path(uri: str) -> Path:
    """The path of a ``file:`` URI, or of what is a path already."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)


def check_unchanged(job: Job, run: Run, where: Path) -> None:
    """Raises JobError when the job file has changed since ``where`` was written."""
    if run.job != job.fingerprint:
        raise JobError(f"{job.path}: the job has changed since {where.name}; undo the change to resume, or start anew with --fresh")
