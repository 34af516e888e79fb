"""Flink's configuration as far as embedded and standalone clusters share it."""

from __future__ import annotations

from pathlib import Path

from streamgauge.pipelines.services.process import HOST

OPENS = ("io", "lang", "lang.reflect", "net", "nio", "text", "time", "util", "util.concurrent", "util.concurrent.atomic", "util.concurrent.locks")
"""Packages of java.base that Beam and Flink look into."""

CHECKPOINT_TIMEOUT_S = 600
"""A checkpoint that takes longer has failed (Flink's default). Where event time leaps, thousands of windows close at once, and no checkpoint comes between them.
Sinks give up a bundle well before (see sinks/rows_util.py), so that a store that is away shows as a failed write and not as failed checkpoints."""

TOLERABLE_CHECKPOINT_FAILURES = 3
"""In a row; one more restarts a job on a cluster from the last good one. An embedded Flink lets its job go on: what failed, a full disk above all, would
fail again after a restart."""

RESTARTS = 30
"""Attempts, with growing pauses between them, before a job fails for good; a minute without a failure starts the count anew."""


def opens() -> list[str]:
    """JVM flags."""
    return [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in OPENS]


def common(rest_port: int, checkpoints: Path, savepoints: Path, temporary: Path) -> dict[str, object]:
    """Addresses, checkpoints and restarts."""
    return {
        "rest.address": HOST,
        "rest.bind-address": HOST,
        "rest.port": rest_port,
        "rest.bind-port": rest_port,
        "jobmanager.bind-host": HOST,
        "taskmanager.bind-host": HOST,
        "taskmanager.host": HOST,
        "io.tmp.dirs": temporary,
        # What crosses from one step to the next is a table, a few dozen times a second: it is sent at once, and not when a buffer is full or 100 ms are over.
        "execution.buffer-timeout.interval": "0 ms",
        # Beyond 5 MB checkpoints in JobManager memory fail, and the job restarts in a loop.
        "state.checkpoints.dir": checkpoints.as_uri(),
        "state.savepoints.dir": savepoints.as_uri(),
        "state.checkpoints.num-retained": 2,
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "execution.checkpointing.timeout": f"{CHECKPOINT_TIMEOUT_S} s",
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "500 ms",
        "restart-strategy.exponential-delay.max-backoff": "30 s",
        "restart-strategy.exponential-delay.reset-backoff-threshold": "1 min",
        "restart-strategy.exponential-delay.attempts-before-reset-backoff": RESTARTS,
        "metrics.fetcher.update-interval": 500,
        "web.refresh-interval": 500,
    }
