"""Ours, as a user runs it: ``streamgauge run`` with a job file, Kafka to SQLite through the embedded Flink."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from streamgauge.pipelines.job import job_folder
from streamgauge.transforms.record import JobRecord

JOB = Path(__file__).with_name("metrics.yaml")


def main(brokers: str, database: str, events: int) -> None:
    stop = json.dumps({str(partition): events // 4 for partition in range(4)})
    values = {"brokers": brokers, "database": database, "stop": stop}
    command = [sys.executable, "-m", "streamgauge.pipelines.cli", "run", str(JOB), "--runner=flink", "--fresh"]
    subprocess.run([*command, *(f"--set={name}={value}" for name, value in values.items())], check=True, stdout=sys.stderr)
    record = JobRecord(job_folder(JOB.stem) / "record")
    began = min(split["opened"] for split in record.all("splits"))
    ended = max(sink["updated"] for sink in record.all("sinks"))
    print(json.dumps({"seconds": ended - began}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
