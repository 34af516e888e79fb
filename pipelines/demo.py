"""The demonstration: a year of flights as a live stream, through an embedded Flink, into exact hourly results, checked.

``scripts/demo`` calls it, as does ``streamgauge demo``. Everything it makes is in one folder, ``.streamgauge/demo``, laid anew each time.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path

from rich.console import Console

from streamgauge.pipelines.flights import PARTITIONS, FlightsInput, write_events
from streamgauge.pipelines.job import Job, home, job_folder, load_job
from streamgauge.pipelines.run import run_job
from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.pipelines.services.questdb import QuestDbServer
from streamgauge.pipelines.verify import verify_job
from streamgauge.pipelines.verify_report import show
from streamgauge.transforms.record import JobRecord

TOPIC = "flights"

JOBS = resources.files("streamgauge.templates") / "jobs"


def run_demo(*, kafka: bool, rate: float) -> int:
    """Plays the year at ``rate`` events a second (20,000: in 17 seconds). Returns 0 when the results agree, 1 when they do not."""
    return _with_kafka(rate) if kafka else _with_files(rate)


def _with_files(rate: float) -> int:
    folder, flights = _prepare()
    live = folder / "live.ndjson"
    live.touch()
    job = load_job(str(JOBS / "flights.yaml"), {"input": str(live), "out": str(folder), "follow": "true"})
    with _replay(job, sum(path.stat().st_size for path in flights.files), "--rate", str(rate), "--file", str(live)):
        code = run_job(job, runner="flink", flink=None, fresh=True, options=[], json_lines=False)
    return code or _verdict(job, f"results: {folder}/departures.db (SQLite), rejected lines: {folder}/rejected (Parquet)")


def _with_kafka(rate: float) -> int:
    folder, flights = _prepare()
    with ExitStack() as servers:
        print("starting Kafka and QuestDB ...", flush=True)
        kafka = servers.enter_context(KafkaServer(folder / "kafka"))
        questdb = servers.enter_context(QuestDbServer(folder / "questdb"))
        _make_topic(kafka.brokers)
        print(f"  Kafka at {kafka.brokers}, QuestDB at {questdb.url}", flush=True)
        job = load_job(str(JOBS / "flights-kafka.yaml"), {"brokers": kafka.brokers, "questdb": questdb.url, "topic": TOPIC, "idle": "1s", "out": str(folder)})
        with _replay(job, flights.events + len(flights.damaged), "--rate", str(rate), "--brokers", kafka.brokers, "--topic", TOPIC):
            code = run_job(job, runner="flink", flink=None, fresh=True, options=[], json_lines=False)
        return code or _verdict(job, f"results were in QuestDB, rejected lines: {folder}/rejected (Parquet)")


def _prepare() -> tuple[Path, FlightsInput]:
    folder = home() / "demo"
    for old in (folder / name for name in ("live.ndjson", "departures.db", "departures.db-wal", "departures.db-shm", "rejected", "late", "kafka", "questdb")):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    flights = write_events(folder / "input")
    print(f"{flights.events:,} flights of 2013, {len(flights.damaged):,} damaged lines, up to {flights.disorder_minutes:g} minutes out of order", flush=True)
    return folder, flights


def _make_topic(brokers: str) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])[TOPIC].result()


@contextmanager
def _replay(job: Job, length: int, *arguments: str) -> Iterator[None]:
    """Plays the lines while the job runs; when all was read, asks the job to drain: then all windows close.

    Args:
        length: sum of the positions that the splits of the whole stream come to: bytes of files, or records.
    """
    folder = home() / "demo"
    record = JobRecord(job_folder(job.name) / "record")
    record.clear()
    ended = threading.Event()

    def drain_when_read() -> None:
        while not ended.wait(0.3):
            # Positions and not counts: those begin anew with a reader that Flink opens again.
            if sum(split["position"] - split["start"] for split in record.all("splits")) >= length:
                record.ask_to_drain()
                return

    # It starts when the job reads: the live view then shows the whole stream.
    def play() -> None:
        while not ended.wait(0.1):
            if record.all("splits"):
                break
        if not ended.is_set():
            players.append(subprocess.Popen([sys.executable, "-m", "streamgauge.pipelines.replay", str(folder / "input"), *arguments]))

    players: list[subprocess.Popen[bytes]] = []
    threads = [threading.Thread(target=work, daemon=True) for work in (play, drain_when_read)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        for player in players:
            player.terminate()
            player.wait()


def _verdict(job: Job, where: str) -> int:
    print(where, flush=True)
    print("verifying: the same answer by DuckDB's SQL over the raw events ...", flush=True)
    verdict = verify_job(job)
    show(verdict, Console(highlight=False))
    return 0 if verdict.agrees else 1
