from __future__ import annotations

import threading
from pathlib import Path

import pytest

from streamgauge.pipelines.run_scope import logs_to


def failing(go: threading.Event) -> threading.Thread:
    def run() -> None:
        go.wait()
        raise ConnectionError("the other side is gone")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_threads_of_a_run_end_in_its_log_and_in_silence_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[threading.Thread | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: shown.append(args.thread))
    now, later = threading.Event(), threading.Event()
    other = failing(later)
    with logs_to(tmp_path / "worker.log"):
        during, left = failing(now), failing(later)
        now.set()
        during.join()
    later.set()
    for thread in (left, other):
        thread.join()
    assert shown == [other]
    log = (tmp_path / "worker.log").read_text()
    assert f"thread {during.name} ended" in log
    assert log.count("ConnectionError: the other side is gone") == 1
