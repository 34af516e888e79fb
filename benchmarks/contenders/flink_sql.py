"""Flink's own SQL: the same topic, windows and aggregates without Python, in one JVM.

What was decided, and why it is fair:

- The Flink is that of streamgauge's clusters (the wheel apache-flink-libraries) with a mini cluster in the JVM that submits, so that like
  streamgauge's embedded Flink it is one JVM. Its compilers are the JVM's default, since events pass through it one by one.
- The same heap, state backend (hash map), interval of checkpoints (1 s) and disorder as streamgauge's. All
  fields of an event are declared, as by every other contender. Objects are reused, and Kafka is fetched in large pieces.
- Windows by ``TUMBLE`` with the two steps of aggregation (local, global) that Flink's planner chooses.
- There is no SQLite for Flink, so its rows go to CSV files, which is less work than an upsert. They are read for the comparison with the right
  answer, outside of the time.
- The time is from the first source that runs to the job's end, as Flink logs them. Planning and deploying are not in it, as with streamgauge.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from string import Template

from benchmarks.topic import PARTITIONS, TOPIC
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink_conf import opens
from streamgauge.pipelines.services.jars import class_path, fetch
from streamgauge.pipelines.services.java import java
from streamgauge.pipelines.services.patches import patch_jar
from streamgauge.pipelines.services.process import HOST, tail

HERE = Path(__file__).parent
HEAP = "1536m"

LOG4J = """\
status = error
appender.file.type = File
appender.file.name = file
appender.file.fileName = ${sys:log.file}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss.SSS} %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
logger.graph.name = org.apache.flink.runtime.executiongraph
logger.graph.level = info
"""

_RUNS = re.compile(r"^(\S+) ExecutionGraph: Source: .* switched from INITIALIZING to RUNNING")
_ENDS = re.compile(r"^(\S+) ExecutionGraph: Job .* switched from state RUNNING to FINISHED")


def main(brokers: str, database: str, events: int, parallelism: int = 1) -> None:
    """Leaves the rows as CSV files in the folder ``database``. Raises ServiceError with what Flink said last."""
    folder = Path(f"{database}.flink")
    folder.mkdir()
    script, log = _prepare(folder, Path(database), brokers, events, parallelism), folder / "flink.log"
    command = java(
        f"-Xmx{HEAP}", *opens(), f"-Djava.io.tmpdir={folder}", "-Djava.net.preferIPv4Stack=true", f"-Dlog.file={log}",
        f"-Dlog4j.configurationFile={folder / 'log4j2.properties'}", "-cp", class_path(_jars()), "streamgauge.RunSql", folder, script,
    )  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    began, ended = _times(log)
    if done.returncode or began is None or ended is None:
        raise ServiceError(f"Flink SQL ended with code {done.returncode} and did not finish its job.\n{done.stdout[-2000:]}\n{tail(log)}")
    print(json.dumps({"seconds": (ended - began).total_seconds()}))


def _jars() -> list[Path]:
    """Our main class, Flink's distribution, and the Kafka connector of the jar set ``bench``."""
    try:
        import pyflink
    except ImportError:
        raise ServiceError("flink-sql needs the package apache-flink-libraries; run: pip install 'streamgauge[cluster]'") from None
    jars = [*sorted(Path(next(iter(pyflink.__path__))).glob("lib/*.jar")), *fetch("bench")]
    return [patch_jar(jars, folder=HERE / "java"), *jars]


def _prepare(folder: Path, results: Path, brokers: str, events: int, parallelism: int) -> Path:
    """Writes Flink's configuration, that of its log, and the script; returns the latter."""
    stop = ";".join(f"partition:{partition},offset:{events // PARTITIONS}" for partition in range(PARTITIONS))
    configuration = {
        "execution.target": "local", "table.local-time-zone": "UTC", "table.dml-sync": "true",
        "parallelism.default": parallelism, "taskmanager.numberOfTaskSlots": parallelism, "pipeline.object-reuse": "true",
        "state.backend.type": "hashmap", "state.checkpoints.dir": (folder / "checkpoints").as_uri(), "execution.checkpointing.interval": "1 s",
        "io.tmp.dirs": folder / "tmp", "taskmanager.memory.managed.size": "16m", "taskmanager.memory.network.min": "64m",
        "taskmanager.memory.network.max": "64m", "rest.address": HOST, "rest.bind-address": HOST, "rest.bind-port": 0,
        "jobmanager.bind-host": HOST, "taskmanager.bind-host": HOST, "taskmanager.host": HOST,
    }  # fmt: skip
    (folder / "flink-conf.yaml").write_text("".join(f"{key}: {value}\n" for key, value in configuration.items()))
    (folder / "log4j2.properties").write_text(LOG4J)
    script = folder / "metrics.sql"
    script.write_text(Template((HERE / script.name).read_text()).substitute(brokers=brokers, topic=TOPIC, stop=stop, results=results.as_uri()))
    return script


def _times(log: Path) -> tuple[datetime | None, datetime | None]:
    """When the first source ran and when the job had finished, by the log; None: it does not say."""
    lines = log.read_text().splitlines() if log.exists() else []
    times = ([datetime.fromisoformat(found[1]) for line in lines if (found := pattern.match(line))] for pattern in (_RUNS, _ENDS))
    began, ended = (next(iter(found), None) for found in times)
    return began, ended


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
