"""The job's record."""

from __future__ import annotations

from pathlib import Path

from streamgauge.transforms.record import JobRecord


def test_counts_of_writers_that_live_one_after_the_other_add_up(tmp_path: Path) -> None:
    """Instances of a step come and go, and the next one may be where the last one was in memory."""
    for _ in range(50):
        record = JobRecord(tmp_path)
        record.put("duplicates", f"id-{record.writer}", {"events": 1}, now=True)
        del record
    assert sum(value["events"] for value in JobRecord(tmp_path).all("duplicates")) == 50
