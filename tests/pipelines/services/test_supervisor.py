"""The supervisor: what it starts is started again when it dies, and ends with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from streamgauge.pipelines.services import supervisor
from tests.running import until


def sleeper(name: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {"name": name, "command": [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"], "log": str(folder / f"{name}.log"), **more}


@pytest.fixture
def started(tmp_path: Path) -> Any:
    status = tmp_path / "status.json"
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"status": str(status), "parts": [sleeper("first", tmp_path, last=True), sleeper("second", tmp_path)], "after": ["touch", str(tmp_path / "after")]}))
    process = subprocess.Popen([sys.executable, supervisor.__file__, str(plan)])
    until(status.exists, "the status is written")
    yield process, status, tmp_path
    process.kill()
    process.wait()


def test_a_part_that_dies_is_started_again(started: Any) -> None:
    _, status, folder = started
    until(lambda: (folder / "second.log").read_text() == "up\n", "the part runs")
    before = json.loads(status.read_text())
    os.kill(before["second"]["pid"], signal.SIGKILL)
    until(lambda: json.loads(status.read_text())["second"]["restarts"] == 1, "it is started again")
    until(lambda: (folder / "second.log").read_text() == "up\nup\n", "its log goes on")
    after = json.loads(status.read_text())
    assert after["second"]["pid"] != before["second"]["pid"] and after["second"]["code"] == -signal.SIGKILL
    assert after["first"] == {**before["first"], "started": pytest.approx(before["first"]["started"], abs=1)}


def test_all_parts_end_with_it_and_the_last_one_does_not_hear_sigterm(started: Any) -> None:
    process, status, folder = started
    pids = {name: state["pid"] for name, state in json.loads(status.read_text()).items()}
    os.kill(pids["first"], signal.SIGTERM)
    time.sleep(0.3)
    assert json.loads(status.read_text())["first"]["pid"] == pids["first"] and psutil.Process(pids["first"]).is_running()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    until((folder / "after").exists, "what is for afterwards has run")
