"""Flink in one JVM: Beam's job server with a mini cluster inside, checkpoints in a local folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from streamgauge.pipelines.services.class_data import ClassData
from streamgauge.pipelines.services.flink_conf import common, opens
from streamgauge.pipelines.services.flink_rest import FlinkRest
from streamgauge.pipelines.services.java import java
from streamgauge.pipelines.services.patches import flink_jars
from streamgauge.pipelines.services.process import HOST, Service, free_ports, port_open
from streamgauge.pipelines.services.server import JavaServer

MAIN = "org.apache.beam.runners.flink.FlinkJobServerDriver"
START_TIMEOUT_S = 90.0
# Key groups: fixed, so that a job can be rescaled from its checkpoints.
MAX_PARALLELISM = 128
BUNDLE_MS = 5
BUNDLE_ELEMENTS = 1000
WATERMARK_MS = 20
GOES_ON = "--fail_on_checkpointing_errors"
"""Turns that off, as a bare flag does for what is on by default. On, any failed checkpoint would restart the job, whatever Flink's configuration says."""
NO_PIP_FREEZE = "--experiments=disable_logging_submission_environment"
"""Beam would run it for a log of its own, a second at each start."""


class EmbeddedFlink(JavaServer, FlinkRest):
    """A job server that runs one streaming job at a time in its own JVM.

    Args:
        folder: gets the Flink configuration, the log, checkpoints and savepoints; kept on stop.
        parallelism: task slots and the job's default parallelism.
        checkpoint_interval_ms: milliseconds between checkpoints.
        heap: the JVM's largest heap, as -Xmx takes it.
        restore_from: a checkpoint or savepoint that jobs start from (see `latest_checkpoint`). Beam's option
            `--savepoint_path` is not heard by a mini cluster.
        conf: extra Flink configuration, which wins over ours.
        log_level: trace, debug, info, warn or error.
        patched: without it Beam's own checkpoint handler runs, whose checkpoints grow (to compare).
    """

    def __init__(
        self,
        folder: Path | str,
        parallelism: int = 2,
        checkpoint_interval_ms: int = 1000,
        *,
        restore_from: Path | None = None,
        heap: str = "1536m",
        conf: Mapping[str, object] | None = None,
        log_level: str = "warn",
        patched: bool = True,
        progress: bool = True,
    ) -> None:
        JavaServer.__init__(self, folder, "flink.log")
        self.parallelism, self.checkpoint_interval_ms = parallelism, checkpoint_interval_ms
        self.checkpoints_folder = self.folder / "checkpoints"
        self.savepoints_folder = self.folder / "savepoints"
        restore = {"execution.savepoint.path": restore_from.resolve().as_uri()} if restore_from else {}
        self._heap, self._extra, self._log_level = heap, {**restore, **(conf or {})}, log_level
        self._patched, self._progress = patched, progress
        self._job_port, self._artifact_port, self._rest_port = free_ports(3)
        FlinkRest.__init__(self, f"http://{HOST}:{self._rest_port}")

    @property
    def job_endpoint(self) -> str:
        """Where Beam's PortableRunner submits jobs."""
        return f"localhost:{self._job_port}"

    def start(self) -> EmbeddedFlink:
        """Fetch what is missing, start, wait until jobs are accepted.

        Raises:
            ServiceError: with the last log lines.
        """
        if self.running:
            return self
        jars = flink_jars(self._progress, self._patched)
        temporary = self.folder / "tmp"
        for part in (self.checkpoints_folder, self.savepoints_folder, self.folder / "conf", temporary):
            part.mkdir(parents=True, exist_ok=True)
        lines = [f"{key}: {value}" for key, value in self.configuration().items()]
        (self.folder / "conf" / "flink-conf.yaml").write_text("\n".join(lines) + "\n")
        shared = self._shared = ClassData("flink", jars, record=self._patched)
        command = java(
            f"-Xmx{self._heap}",
            "-XX:+ExitOnOutOfMemoryError",
            # Events never pass through the JVM one by one: its optimising compiler costs more than it can save
            # (11 CPU seconds with it, 5 without, for a job of 3 million events).
            "-XX:TieredStopAtLevel=1",
            # Little is alive and collections are short; a concurrent collector costs what it would save in pauses.
            "-XX:+UseSerialGC",
            *opens(),
            f"-Djava.io.tmpdir={temporary}",
            "-Djava.net.preferIPv4Stack=true",
            f"-Dorg.slf4j.simpleLogger.defaultLogLevel={self._log_level}",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
            *shared.flags(),
            *("-cp", shared.class_path, MAIN),
            *("--job-host", "localhost", "--job-port", str(self._job_port)),
            *("--artifact-port", str(self._artifact_port), "--expansion-port", "-1"),
            *("--artifacts-dir", str(temporary / "artifacts")),
            *("--flink-conf-dir", str(self.folder / "conf"), "--flink-master", "[local]"),
        )
        self._service = Service(
            "The embedded Flink",
            command,
            self.log_path,
            ready=lambda: port_open(self._job_port),
            timeout_s=START_TIMEOUT_S,
            env={**os.environ, "FLINK_CONF_DIR": str(self.folder / "conf")},
        )
        self._service.start()
        return self

    def configuration(self) -> dict[str, object]:
        """The Flink configuration that `start` writes."""
        return {
            **common(self._rest_port, self.checkpoints_folder, self.savepoints_folder, self.folder / "tmp"),
            "web.submit.enable": "false",
            "parallelism.default": self.parallelism,
            "taskmanager.numberOfTaskSlots": self.parallelism,
            "taskmanager.memory.managed.size": "16m",
            "taskmanager.memory.network.min": "64m",
            "taskmanager.memory.network.max": "64m",
            "state.backend.type": "hashmap",
            "restart-strategy.exponential-delay.max-backoff": "10 s",
            "restart-strategy.exponential-delay.attempts-before-reset-backoff": 10,
            **self._extra,
        }

    def pipeline_options(self) -> list[str]:
        """The Beam options under which a streaming job works here (some, Beam's Python does not know)."""
        return [
            "--runner=PortableRunner",
            f"--job_endpoint={self.job_endpoint}",
            "--environment_type=LOOPBACK",
            "--streaming",
            GOES_ON,
            *flink_options(self.parallelism, self.checkpoint_interval_ms),
        ]


def flink_options(parallelism: int, checkpoint_interval_ms: int) -> list[str]:
    """The Beam options for a streaming job on any Flink."""
    return [
        f"--parallelism={parallelism}",
        f"--max_parallelism={MAX_PARALLELISM}",
        f"--checkpointing_interval={checkpoint_interval_ms}",
        # Flags are bare: Beam refuses "--flag=true" for options that the job server declares.
        # Without it the output of a bundle that a checkpoint closes waits for the next bundle, perhaps for ever.
        "--finish_bundle_before_checkpointing",
        "--externalized_checkpoints_enabled",
        "--retain_externalized_checkpoints_on_cancellation",
        f"--max_bundle_time_mills={BUNDLE_MS}",  # sic
        f"--max_bundle_size={BUNDLE_ELEMENTS}",
        f"--auto_watermark_interval={WATERMARK_MS}",
        "--object_reuse",
        # State is read once, so there is nothing to cache; and the cache weighs each entry by walking all modules (0.4 ms).
        "--max_cache_memory_usage_mb=0",
        NO_PIP_FREEZE,
    ]


def latest_checkpoint(folder: Path | str) -> Path | None:
    """The newest complete checkpoint under an EmbeddedFlink's folder, to restore from; None if there is none."""
    found = [(path.stat().st_mtime_ns, path.parent) for path in Path(folder).glob("checkpoints/*/chk-*/_metadata")]
    return max(found)[1] if found else None


def silence_unknown_options() -> None:
    """Drop Beam's warnings about options of ours that only the Java side of the runner knows."""
    names = {option.split("=")[0] for option in (GOES_ON, *flink_options(1, 1)) if option != NO_PIP_FREEZE}

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(name in text for name in names)

    logging.getLogger("apache_beam.options.pipeline_options").addFilter(keep)
