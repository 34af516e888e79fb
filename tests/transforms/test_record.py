"""The job's record."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from streamgauge.transforms import record as record_module
from streamgauge.transforms.record import JobRecord


def test_counts_of_writers_that_live_one_after_the_other_add_up(tmp_path: Path) -> None:
    """Instances of a step come and go, and the next one may be where the last one was in memory."""
    for _ in range(50):
        record = JobRecord(tmp_path)
        record.put_own("duplicates", "id", {"events": 1}, now=True)
        del record
    assert sum(value["events"] for value in JobRecord(tmp_path).all("duplicates")) == 50


def test_a_full_disk_stops_only_who_must_be_sure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, synced: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    record = JobRecord(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(record_module, "replace_text", full)
        record.put("splits", "a", {"events": 1})
        with pytest.raises(OSError, match="No space left"):
            record.put("splits", "a", {"events": 1}, now=True)
    assert record.get("splits", "a") is None
    record.put("splits", "a", {"events": 2}, every=0.0)
    assert record.get("splits", "a") == {"name": "a", "events": 2}
