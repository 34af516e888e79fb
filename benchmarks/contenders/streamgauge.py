"""Ours, as a user runs it: ``streamgauge run`` with a job file, Kafka to SQLite through the embedded Flink."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.topic import PARTITIONS

JOB = Path(__file__).with_name("metrics.yaml")


def main(brokers: str, database: str, events: int, *options: str) -> None:
    """Prints where the job's record is: to import what reads it would count as the job's CPU time."""
    home = Path(f"{database}.home")
    values = {"brokers": brokers, "database": database, "stop": json.dumps({str(partition): events // PARTITIONS for partition in range(PARTITIONS)})}
    command = [sys.executable, "-m", "streamgauge.pipelines.cli", "run", str(JOB), "--runner=flink", "--fresh", *options]
    given = [f"--set={name}={value}" for name, value in values.items()]
    subprocess.run([*command, *given], check=True, stdout=sys.stderr, env={**os.environ, "STREAMGAUGE_HOME": str(home)})
    print(json.dumps({"record": str(home / "jobs" / JOB.stem / "record")}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
