"""From a job to a Beam pipeline, and to a job on a Flink cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.yaml.yaml_transform import expand_pipeline

from streamgauge.pipelines.job import Job
from streamgauge.pipelines.services.flink import silence_unknown_options


def build(job: Job, folder: Path, options: list[str], runner: Any = None) -> beam.Pipeline:
    """The pipeline of a job whose folder is ``folder``; the job's own options give way to ``options``."""
    silence_unknown_options()
    record = f"--record_folder={folder / 'record'}"
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([record, f"--job_name={job.name}", *job.options, *options]))
    expand_pipeline(pipeline, job.spec)
    return pipeline
