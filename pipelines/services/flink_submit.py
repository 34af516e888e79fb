"""Submitting a portable pipeline to a Flink session cluster through its REST API: a jar that holds the pipeline and no classes."""

from __future__ import annotations

import io
import zipfile

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner
from google.protobuf.json_format import MessageToJson

from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink_conf import TOLERABLE_CHECKPOINT_FAILURES
from streamgauge.pipelines.services.flink_rest import FlinkRefused, FlinkRest, innermost

ENTRY_CLASS = "streamgauge.SubmittedPipeline"
FLINK_VERSION = "1.19"
WORKERS_KEY = "streamgauge.workers"
"""Key in a cluster's Flink configuration: HOST:PORT of the pool of Python workers that its TaskManagers ask, each on its own machine."""


def environment_options(flink: FlinkRest) -> list[str]:
    """Beam options that say where the cluster's Python workers are.

    Raises:
        ServiceError: the cluster is of another version, or was not set up for Streamgauge.
    """
    version = str(flink.overview()["flink-version"])
    if not version.startswith(f"{FLINK_VERSION}."):
        raise ServiceError(
            f"The cluster at {flink.rest_url} runs Flink {version}; Streamgauge's jobs run on {FLINK_VERSION}. Start one with "
            "`streamgauge stack up flink`, or go through Beam's own job server for that version: --runner PortableRunner --job_endpoint=HOST:PORT."
        )
    workers = flink.cluster_configuration().get(WORKERS_KEY)
    if workers is None:
        raise ServiceError(
            f"The Flink configuration of the cluster at {flink.rest_url} has no key {WORKERS_KEY}: it does not say where its Python "
            "workers are. See docs/how-to/flink-cluster.md for what a cluster needs."
        )
    return ["--environment_type=EXTERNAL", f"--environment_config={workers}"]


def submit(flink: FlinkRest, pipeline: beam.Pipeline, options: PipelineOptions, restore_from: str | None, *, allow_dropped: bool = False) -> str:
    """Starts a job and returns its id.

    Args:
        restore_from: path or URI of a savepoint or checkpoint; None: empty state.
        allow_dropped: whether state in it that no step claims is forgotten; else that is an error.

    Raises:
        ServiceError: Flink refuses; the message has its innermost reason.
    """
    restore = {"savepointPath": restore_from, "allowNonRestoredState": allow_dropped} if restore_from else {}
    jar_id = flink.upload(_jar(pipeline, options))
    try:
        return flink.run_jar(jar_id, entryClass=ENTRY_CLASS, programArgsList=[str(TOLERABLE_CHECKPOINT_FAILURES)], **restore)
    except FlinkRefused as error:
        raise ServiceError(f"Flink at {flink.rest_url} does not take the job: {innermost(error.details) or error}") from None
    finally:
        flink.delete_jar(jar_id)


def _jar(pipeline: beam.Pipeline, options: PipelineOptions) -> bytes:
    proto = PortableRunner.get_proto_pipeline(pipeline, options)
    # What Python does not know is for the runner in Java.
    given = options.get_all_options(drop_default=True, retain_unknown_options=True)
    given.pop("runner", None)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as jar:
        jar.writestr("META-INF/MANIFEST.MF", f"Manifest-Version: 1.0\nMain-Class: {ENTRY_CLASS}\n")
        jar.writestr("pipeline.json", MessageToJson(proto))
        jar.writestr("pipeline-options.json", MessageToJson(JobServiceHandle.encode_pipeline_options(given)))
    return content.getvalue()
