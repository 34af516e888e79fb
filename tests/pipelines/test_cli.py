"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamgauge.pipelines import cli
from streamgauge.pipelines.job import JobError, load_job
from streamgauge.pipelines.run_cluster import Launch
from streamgauge.pipelines.services import stack
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sources.base import SourceError

METRICS = Path(__file__).parents[2] / "templates" / "jobs" / "metrics.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMGAUGE_HOME", raising=False)
    return tmp_path


def ran(monkeypatch: pytest.MonkeyPatch, does: Any) -> dict[str, Any]:
    """Replaces run_job; what it was called with."""
    seen: dict[str, Any] = {}

    def run_job(job: Any, **options: Any) -> int:
        seen.update(options, job=job)
        if isinstance(does, Exception):
            raise does
        return int(does)

    monkeypatch.setattr("streamgauge.pipelines.run.run_job", run_job)
    return seen


def test_run_passes_its_options_on_and_those_of_beam_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = ran(monkeypatch, 0)
    code = cli.main(["run", str(METRICS), "--set", "events=7", "--runner", "flink", "--flink", "h:1", "--fresh", "--json", "--parallelism=3", "--foo", "bar"])
    job = seen.pop("job")
    assert code == 0 and job.name == "metrics" and job.reads[0].source.options.events == 7
    assert seen == {"runner": "flink", "flink": "h:1", "fresh": True, "json_lines": True, "options": ["--parallelism=3", "--foo", "bar"], "launch": Launch()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--detach",), "--detach, --from and --drop-state are for a Flink cluster; name it with --flink HOST:PORT"),
        (("--flink", "h:1", "--fresh", "--from", "x"), "--fresh starts anew and --from resumes; leave one of them out"),
        (("--replay", "--fresh"), "--replay reads from recorded positions; leave --fresh and --from out"),
    ],
)
def test_run_refuses_options_that_contradict_each_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str) -> None:
    ran(monkeypatch, 0)
    assert cli.main(["run", str(METRICS), *options]) == 2
    assert capsys.readouterr().err == f"{message}\n"


@pytest.mark.parametrize(
    ("does", "code"),
    [(0, 0), (1, 1), (JobError("j: bad"), 2), (ServiceError("no Java"), 1), (SourceError("no topic"), 1), (SinkError("down"), 1), (ValueError("Error applying transform x"), 2)],
)  # fmt: skip
def test_exit_codes_and_one_line_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], does: Any, code: int) -> None:
    ran(monkeypatch, does)
    assert cli.main(["run", str(METRICS)]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{does}\n" if isinstance(does, Exception) else "")


def test_bugs_keep_their_stack_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    ran(monkeypatch, ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["run", str(METRICS)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "nope.yaml"], "nope.yaml: there is no such file"),
        (["check", str(METRICS), "--set", "evnts=1"], "no such variable - did you mean 'events'?"),
        (["verify", str(METRICS)], "run the job first"),
        (["drain", str(METRICS)], "there is no record of a run"),
    ],
)
def test_mistakes_exit_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["chekc"], ["check"], ["check", str(METRICS), "--jsn"], ["check", str(METRICS), "--set", "events"], ["check", str(METRICS), "--json", "--beam"]], ids=str
)  # fmt: skip
def test_wrong_arguments_exit_with_2_and_the_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: streamgauge" in capsys.readouterr().err


def test_check_prints_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(METRICS)]) == 0
    assert "measurements" in capsys.readouterr().out
    assert cli.main(["check", str(METRICS), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"][0]["metric"] == "measurements"
    assert cli.main(["check", str(METRICS), "--beam"]) == 0
    beam = capsys.readouterr().out
    Path("copy.yaml").write_text(beam)
    assert load_job("copy.yaml").fingerprint == load_job(METRICS).fingerprint and "providers:" in beam
    assert cli.main(["check", "--schema"]) == 0
    assert "AggregateWindows" in json.loads(capsys.readouterr().out)["$defs"]


def test_drain_asks_the_readers_to_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = here / ".streamgauge/jobs/metrics/record"
    record.mkdir(parents=True)
    assert not JobRecord(record).draining()
    assert cli.main(["drain", "metrics.yaml"]) == 0
    assert JobRecord(record).draining()
    (here / "other").mkdir()
    assert cli.main(["drain", "metrics.yaml", "--record", "other"]) == 0
    assert JobRecord("other").draining()


def test_stack_starts_stops_and_tells(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []
    running = stack.Server("kafka", "running", pid=1, started=2.0, address="127.0.0.1:9092")
    monkeypatch.setattr(stack, "up", lambda names, folder, sizes: calls.append(("up", names, folder, sizes)) or [running])
    monkeypatch.setattr(stack, "down", lambda names, folder: calls.append(("down", names, folder)) or [stack.Server("kafka", "stopped")])
    monkeypatch.setattr(stack, "status", lambda folder: calls.append(("status", folder)) or [stack.Server("kafka", "died", log="k.log")])
    assert cli.main(["stack", "up", "kafka"]) == cli.main(["stack", "down", "--folder", "f"]) == cli.main(["stack", "status"]) == 0
    folder = here / ".streamgauge/stack"
    assert calls == [("up", ["kafka"], folder, stack.Sizes(1, 2)), ("down", ["kafka", "questdb", "flink"], Path("f")), ("status", folder)]
    assert capsys.readouterr().out.splitlines() == ["kafka      running  127.0.0.1:9092", "kafka      stopped", "kafka      died  (log: k.log)"]
    assert cli.main(["stack", "up", "kafka", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["address"] == "127.0.0.1:9092"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "streamgauge.pipelines.cli", *arguments], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_job_runs_and_is_verified_and_a_changed_value_is_found(here: Path) -> None:
    done = command("run", str(METRICS), "--set", "events=20000")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    verified = command("verify", str(METRICS), "--set", "events=20000")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert verified.stderr == ""
    assert verified.stdout.splitlines()[-1].startswith("verify: ") and verified.stdout.splitlines()[-1].endswith(" rows agree")

    import sqlite3

    with sqlite3.connect("out/metrics/metrics.db") as connection:
        connection.execute("UPDATE measurements SET n = n + 1 WHERE rowid = 1")
    connection.close()
    differs = command("verify", str(METRICS), "--set", "events=20000")
    assert differs.returncode == 1
    assert differs.stdout.splitlines()[-1].startswith("verify: 1 of ") and differs.stdout.splitlines()[-1].endswith(" rows differ")
    as_json = json.loads(command("verify", str(METRICS), "--set", "events=20000", "--json").stdout)
    assert as_json["agrees"] is False and as_json["results"][0]["differences"][0]["column"] == "n"


def test_a_reader_that_stops_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run([sys.executable, "-m", "streamgauge.pipelines.cli", "check", "--schema"], stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
